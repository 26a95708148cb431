"""Registry of checks.

A check is a function that yields a `Hit` for each finding in a `Scan`. The decorator `Checks.add`
adds it, with a name, a severity and a title, to the list of its module. `examine` runs the lists of
all modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from y7edge.data.formats.records import Corners, Entry, Label, Problem, Scan, Severity


class Hit(NamedTuple):
    """One finding of a check; ``severity`` overrides that of the check."""

    message: str
    file: Path
    line: int = 0
    image: Path | None = None
    box: Corners | None = None
    severity: Severity | None = None
    other: Path | None = None


Run = Callable[[Scan], Iterable[Hit]]


class Check(NamedTuple):
    """A registered check."""

    name: str  # in tables and JSON
    severity: Severity  # of findings that do not override it
    title: str  # a short description of what it finds
    fix: str  # how --fix repairs it; empty if it does not
    run: Run

    def findings(self, scan: Scan) -> list[Problem]:
        """Run the check, and return its findings."""
        found = ((hit, hit.severity or self.severity) for hit in self.run(scan))
        return [
            Problem(self.name, "advice", severity, *hit[:5], self.fix, other=hit.other)
            for hit, severity in found
        ]


class Checks(list[Check]):
    """The checks of one module, in the order in which they are reported."""

    def add(self, name: str, severity: Severity, title: str, fix: str = "") -> Callable[[Run], Run]:
        """Return a decorator that registers a check."""

        def register(run: Run) -> Run:
            self.append(Check(name, severity, title, fix, run))
            return run

        return register


def at(entry: Entry, label: Label, message: str, box: Corners | None = None) -> Hit:
    """Make a hit for one label; ``box`` is drawn in the report."""
    what = f"{label.item}: {message}" if label.item else message
    return Hit(what, label.file, label.line, entry.path, box)
