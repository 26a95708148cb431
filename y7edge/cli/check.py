"""``y7edge check``: show installed packages and usable backends."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from y7edge.cli.console import show, table
from y7edge.cli.options import Json

if TYPE_CHECKING:
    from y7edge.environment import Report


def check(as_json: Json = False) -> None:
    """Show which packages are installed, and which backends are usable.

    The exit code is 3 if detection cannot run here.
    """
    from y7edge.environment import check as look

    report = look()
    record = {**asdict(report), "ok": report.exit_code == 0}
    show(record, _lines(report), as_json=as_json)
    if report.exit_code:
        raise typer.Exit(report.exit_code)


def _lines(report: Report) -> list[str]:
    opencv = report.opencv
    gstreamer = "with GStreamer" if opencv["gstreamer"] else "without GStreamer"
    found = f"{opencv['version']}, {gstreamer}" if opencv["installed"] else opencv["problem"]
    backends = [(b.name, "yes" if b.usable else "no", b.reason) for b in report.backends]
    purposes = [
        (purpose, "yes" if ready else "no: needs " + ", ".join(report.missing[purpose]))
        for purpose, ready in report.ready.items()
    ]
    packages = [(name, version or "not installed") for name, version in report.packages.items()]
    return [
        f"y7edge {report.y7edge}, Python {report.python}, {report.system}",
        f"OpenCV: {found}",
        "",
        *table([("backend", "usable", "why"), *backends]),
        "",
        *table([("package", "version"), *packages]),
        "",
        *table([("purpose", "ready"), *purposes]),
    ]
