"""The line of status of ``y7edge live``."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from y7edge.text import printable

if TYPE_CHECKING:
    from y7edge.live.loop import Loop

NOTE_SECONDS = 60.0  # between two lines about the state, if standard error is not a terminal
_log = logging.getLogger("y7edge.live")


class StatusLine:
    """One line for each source on standard error, refreshed if that is a terminal."""

    interval = 0.25

    def __init__(self, loop: Loop, quiet: bool) -> None:
        from rich.console import Console
        from rich.live import Live

        console = Console(stderr=True)
        # Records on the same terminal would be mixed with lines that move.
        moves = sys.stderr.isatty() and not (quiet and sys.stdout.isatty())
        # Records on standard output are not redirected to the terminal.
        self._live = (
            Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False)
            if moves
            else None
        )
        self._loop = loop
        self._next = time.monotonic() + NOTE_SECONDS

    def update(self) -> bool:
        """Print the state."""
        from rich.text import Text

        if self._live is not None:
            self._live.start()  # does nothing later
            self._live.update(Text("\n".join(self._lines()), no_wrap=True, overflow="ellipsis"))
            self._live.refresh()
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + NOTE_SECONDS
            for line in self._lines():
                _log.info(line)
        return True

    def _lines(self) -> Iterator[str]:
        rows = self._loop.facts()
        for row in rows:
            age = row["age"]
            objects = (f"{count} {name}" for name, count in row["named"].items())
            # A terminal may cut the end: the name of the only source is known.
            parts = [
                row["state"],
                ", ".join(objects) or "no objects",
                *([f"no result for {row['silent']:.0f} s"] if row["silent"] else []),
                f"{row['rate']:.1f} frames/s",
                *([f"age p50 {age['p50_ms']:.0f}, p99 {age['p99_ms']:.0f} ms"] if age else []),
                f"{row['dropped']} dropped",
                *([row["problem"]] if row["problem"] and row["state"] != "running" else []),
            ]
            start = f"{row['name']}: " if len(rows) > 1 else ""
            yield printable(start + " · ".join(parts))

    def close(self) -> None:
        """Remove the line."""
        if self._live is not None:
            self._live.stop()
