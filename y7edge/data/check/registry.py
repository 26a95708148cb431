"""Findings, and lists of checks that make them.

A check is a function that looks at a `Scan` and yields a `Hit` for each thing that it finds. The
decorator `Checks.add` gives it a name, a severity and words for people, and puts it on its module's
list; `y7edge.data.check.examine` joins the lists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from y7edge.data.formats.records import Corners, Effect, Entry, Label, Scan, Severity


class Hit(NamedTuple):
    """What a check found, where; ``severity`` where it differs from the check's own."""

    message: str
    file: Path
    line: int = 0
    image: Path | None = None
    box: Corners | None = None
    severity: Severity | None = None
    other: Path | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """One defect, or remark, of a data set.

    Attributes:
        check: Name of the check.
        severity: Errors fail the gate; warnings deserve a look; infos are worth knowing.
        message: What was found, and the way out.
        file: The file that it is in.
        line: Its line, from 1; 0 where there is none.
        image: The image that shows it.
        box: The box that it is about: corners in fractions of that image.
        fix: What ``--fix`` does about it; empty: nothing.
        other: A second image, for comparison.
        effect: What training does about it.
        doubtful: Whether a repair would be a guess.
    """

    check: str
    severity: Severity
    message: str
    file: Path
    line: int = 0
    image: Path | None = None
    box: Corners | None = None
    fix: str = ""
    other: Path | None = None
    effect: Effect = "advice"
    doubtful: bool = False


Run = Callable[[Scan], Iterable[Hit]]


@dataclass(frozen=True, slots=True)
class Check:
    """One entry of the list.

    Attributes:
        name: Stands in tables and JSON.
        severity: Of its findings, unless a finding says otherwise.
        title: What it looks for, in a few words.
        fix: What ``--fix`` does about it; empty: nothing.
        run: Looks at a scan.
    """

    name: str
    severity: Severity
    title: str
    fix: str
    run: Run

    def findings(self, scan: Scan) -> list[Finding]:
        """What it finds."""
        return [
            Finding(
                self.name,
                hit.severity or self.severity,
                hit.message,
                hit.file,
                hit.line,
                hit.image,
                hit.box,
                self.fix,
                hit.other,
            )
            for hit in self.run(scan)
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
