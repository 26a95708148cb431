"""Findings, and lists of checks that make them.

A check is a function that looks at a `Scan` and yields a `Hit` for each thing that it finds. The
decorator `Checks.add` gives it a name, a severity and words for people, and puts it on its module's
list; `y7edge.data.check.examine` joins the lists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from y7edge.data.formats.records import Corners, Entry, Label, Problem, Scan, Severity


class Hit(NamedTuple):
    """What a check found, where; ``severity`` where it differs from the check's own."""

    message: str
    file: Path
    line: int = 0
    image: Path | None = None
    box: Corners | None = None
    severity: Severity | None = None
    other: Path | None = None


Run = Callable[[Scan], Iterable[Hit]]


class Check(NamedTuple):
    """One entry of the list."""

    name: str  # stands in tables and JSON
    severity: Severity  # of its findings, unless a finding says otherwise
    title: str  # what it looks for, in a few words
    fix: str  # what --fix does about it; empty: nothing
    run: Run

    def findings(self, scan: Scan) -> list[Problem]:
        """What it finds."""
        found = ((hit, hit.severity or self.severity) for hit in self.run(scan))
        return [
            Problem(self.name, "advice", severity, *hit[:5], self.fix, other=hit.other)
            for hit, severity in found
        ]


class Checks(list[Check]):
    """The checks of one module, in their order."""

    def add(self, name: str, severity: Severity, title: str, fix: str = "") -> Callable[[Run], Run]:
        """Put a function on the list."""

        def register(run: Run) -> Run:
            self.append(Check(name, severity, title, fix, run))
            return run

        return register


def at(entry: Entry, label: Label, message: str, box: Corners | None = None) -> Hit:
    """A hit on one label."""
    what = f"{label.item}: {message}" if label.item else message
    return Hit(what, label.file, label.line, entry.path, box)
