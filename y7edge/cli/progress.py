"""A progress bar on standard error."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager
from typing import Any

from y7edge.text import printable

_WIDTH = 28  # of the name, in characters


class Progress(AbstractContextManager["Progress"]):
    """Show the progress of a long input, if standard error is a terminal.

    Args:
        name: name of the input.
        unit: what is counted.
        done: fraction that earlier runs have done.
        also_stdout: whether to show it if standard output is a terminal too.
    """

    def __init__(
        self, name: str, unit: str = "images", done: float = 0.0, *, also_stdout: bool = True
    ) -> None:
        self._bar: Any = None
        self._unit = unit
        self._count = 0
        if sys.stderr.isatty() and (also_stdout or not sys.stdout.isatty()):
            from rich.console import Console
            from rich.markup import escape
            from rich.progress import Progress, TextColumn

            self._bar = Progress(
                *Progress.get_default_columns(),
                TextColumn("{task.fields[rate]}"),
                console=Console(stderr=True),
                transient=True,
                redirect_stdout=False,
            )
            words = printable(name)
            if len(words) > _WIDTH:  # else the other columns would be cut on a narrow terminal
                words = f"…{words[1 - _WIDTH :]}"
            self._task = self._bar.add_task(escape(words), total=1.0, completed=done, rate="")
            self._bar.start()
            self._began = time.monotonic()

    def update(self, done: float, total: float = 1.0) -> None:
        """Count one, and show that ``done`` of ``total`` is done."""
        if self._bar is not None:
            self._count += 1
            rate = self._count / max(time.monotonic() - self._began, 1e-9)
            self._bar.update(self._task, completed=done / total, rate=f"{rate:.1f} {self._unit}/s")

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
