"""Implement ``y7edge data``, whose command ``check`` validates a data set."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from y7edge.cli.console import note, show
from y7edge.cli.grouped import Grouped, Sections
from y7edge.cli.options import Json, out_file
from y7edge.cli.progress import Progress
from y7edge.errors import GateError
from y7edge.text import counted, printable

if TYPE_CHECKING:
    from y7edge.data.check.examine import Report

EXAMPLE = "y7edge data check data.yaml --save report.html"

data = typer.Typer(name="data", cls=Sections, no_args_is_help=True, rich_markup_mode=None)

_Data = Annotated[
    Path,
    typer.Argument(
        metavar="DATA",
        help="data.yaml, COCO JSON, a list of images, or a folder (YOLO, COCO, Pascal VOC).",
    ),
]
_Side = Annotated[
    int, typer.Option("--imgsz", min=32, help="Side of the training's input, to find small boxes.")
]
_Fix = Annotated[
    Path | None,
    typer.Option("--fix", metavar="OUT", help="Write a cleaned copy to OUT; DATA is not changed."),
]
_Val = Annotated[
    float | None,
    typer.Option(
        "--val",
        min=0.01,
        max=0.99,
        metavar="FRACTION",
        help="With --fix, if there is no split val: fraction of the images of train to move there.",
    ),
]
_Save = Annotated[
    Path | None,
    typer.Option(
        "--save",
        metavar="PAGE.html",
        help="Write an HTML page with images of each class and of the findings.",
        callback=out_file,
    ),
]
_CLASSES = 20  # largest number of classes in the table; --json and the page have all
_COLOURS = {"error": "red", "warning": "yellow", "info": "blue"}


@data.callback()
def _data() -> None:
    """Check data sets."""


@data.command(cls=Grouped, epilog=f"\b\nExample:\n  {EXAMPLE}", rich_help_panel="Data and training")
def check(
    data: _Data,
    imgsz: _Side = 640,
    fix: _Fix = None,
    val: _Val = None,
    save: _Save = None,
    as_json: Json = False,
) -> None:
    """Check a data set, and write a corrected copy.

    Finds damaged images, invalid labels, images in two splits, classes without labels, and more.
    The exit code is 4 if there are errors; warnings and remarks (info) do not count. With --fix, a
    cleaned copy is written, and the exit code depends on the errors in the copy. --val makes the
    split val of the copy; nearly equal images stay in one split.
    """
    from y7edge.data.check.examine import examine, record
    from y7edge.data.check.fix import write_copy
    from y7edge.data.check.paths import require_copy, require_page
    from y7edge.data.check.report import write_page

    if val is not None and fix is None:
        raise typer.BadParameter("needs --fix OUT, because DATA is not changed", param_hint="--val")
    if save is not None:
        require_page(save, fix)
    if fix is not None:
        require_copy(fix)
    with Progress("images") as progress:
        report = examine(data, imgsz=imgsz, val=val, progress=progress.update)
    if save is not None:
        write_page(report, save)
    result: dict[str, Any] = record(report)
    fixed = None
    if fix is not None:
        with Progress("copied") as progress:
            fixed = write_copy(report, fix, progress=progress.update)
        result["fix"] = fixed.record()
    if as_json:
        show(result, (), as_json=True)
    else:
        _print(report, whole=save is not None)
        if save is not None:
            note(f"page: {save}")
        if fixed is not None:
            show(None, fixed.lines(), as_json=False)
    final = fixed.after if fixed else report
    errors = [finding.check for finding in final.findings if finding.severity == "error"]
    reasons = (
        [f"{counted(len(errors), 'error')} ({', '.join(sorted(set(errors)))})"] if errors else []
    )
    reasons += fixed.losses if fixed else ()
    if reasons:
        raise GateError(f"{fix if fixed else data}: {'; '.join(reasons)}")


def _print(report: Report, *, whole: bool) -> None:
    """Print a report; ``whole``: print no hint, because a page with all findings is written."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from y7edge.data.check.paths import in_words

    # Outside a terminal, rich would wrap lines at 80 characters.
    terminal = sys.stdout is not None and sys.stdout.isatty()
    console = Console(width=None if terminal else 160, highlight=False, markup=False)
    scan, summary = report.scan, report.summary
    for split, counts in summary["splits"].items():
        console.print(
            f"{split}: {counts['images']} images ({counts['background']} without labels), "
            f"{counts['labels']} labels"
        )
    splits = list(summary["splits"])
    classes = Table("class", *splits, box=None, pad_edge=False, header_style="bold")
    for row in summary["classes"][:_CLASSES]:
        classes.add_row(Text(printable(row["name"])), *(str(row[split]) for split in splits))
    console.print(classes)
    if (more := len(summary["classes"]) - _CLASSES) > 0:
        console.print(f"... {more} more classes (--json has all)")
    for side, values in summary["box_sides"].items():
        shown = ", ".join(f"{value:g}" for value in values)
        console.print(f"{side} of boxes at {scan.imgsz}: min, 5 %, median, 95 %, max: {shown}")
    if report.findings:
        table = Table("check", "severity", "count", "first", pad_edge=False, header_style="bold")
        for (name, severity), group in report.by_check().items():
            words = Text(in_words(group[0], scan.root))
            table.add_row(name, Text(severity, _COLOURS[severity]), str(len(group)), words)
        console.print(table)
        if any(len(group) > 1 for group in report.by_check().values()) and not whole:
            console.print("first finding of each kind; --save report.html shows more, --json all")
    counts = [counted(report.count(severity), severity) for severity in _COLOURS]
    console.print(", ".join(counts))
