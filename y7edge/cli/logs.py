"""Where log records go: to standard error or the journal, and to a file that is rotated."""

from __future__ import annotations

import logging
import logging.handlers
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from y7edge.cli.console import note
from y7edge.errors import OutputError, Y7EdgeError
from y7edge.files import reason
from y7edge.text import one_line

Level = Literal["debug", "info", "warning", "error"]
FILE_BYTES, FILES = 5_000_000, 5
"""Largest size of a log file, and how many older ones are kept (FILE.1 is the newest of them)."""
SAME, SAME_SECONDS = 20, 60.0
"""Of records that differ only in their numbers, as many are logged in this time."""
REMARKS = "y7edge.live"
"""Name of the logger whose records of level INFO are always printed."""


class Remarks(logging.Handler):
    """Print warnings on standard error, and what a command has to say to its user."""

    def __init__(self, level: int = logging.WARNING) -> None:
        super().__init__()
        self._least = level

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record as one line; those of other packages with the name of the logger."""
        is_remark = record.name == REMARKS and record.levelno == logging.INFO
        if not is_remark and record.levelno < self._least:
            return
        logger = "" if record.name.split(".")[0] == "y7edge" else f"{record.name}: "
        level = "" if is_remark else f"{record.levelname.lower()}: "
        note(one_line(f"{level}{logger}{record.getMessage()}"), record.levelno)


class _File(logging.handlers.RotatingFileHandler):
    """Writes one line for each record: time (UTC), level, logger, message."""

    def __init__(self, path: Path, level: int) -> None:
        super().__init__(path, maxBytes=FILE_BYTES, backupCount=FILES, encoding="utf-8")
        self.setLevel(level)
        self._reported = False

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        start = f"{seconds}.{int(record.msecs):03d}Z {record.levelname} {record.name}"
        return f"{start} {one_line(record.getMessage())}"

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - of the base class
        """Say once that the log cannot be written: the program continues without it."""
        if not self._reported:
            self._reported = True
            note(f"warning: the log {self.baseFilename} cannot be written", logging.WARNING)


class _Sparing(logging.Handler):
    """Passes records on to other handlers, but few of those that repeat."""

    def __init__(self, handlers: Sequence[logging.Handler]) -> None:
        super().__init__()
        self._handlers = handlers
        self._since, self._left_out = time.monotonic(), 0
        self._counts: Counter[tuple[str, object, str]] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a record on, or count it."""
        if time.monotonic() - self._since > SAME_SECONDS:
            self.report()
        first = record.args[0] if isinstance(record.args, tuple) and record.args else ""
        key = record.name, record.msg, str(first)  # messages of one place, about one source
        self._counts[key] += 1
        if self._counts[key] > SAME:
            self._left_out += 1
        else:
            self._pass_on(record)

    def report(self) -> None:
        """Say how many records were left out, and start to count again."""
        if self._left_out:
            text = f"{self._left_out} more messages of the same kinds were not logged"
            found = (REMARKS, logging.WARNING, __file__, 0, text, None, None)
            self._pass_on(logging.LogRecord(*found))
        self._since, self._left_out = time.monotonic(), 0
        self._counts.clear()

    def _pass_on(self, record: logging.LogRecord) -> None:
        for handler in self._handlers:
            if record.levelno >= handler.level:
                handler.handle(record)


@contextmanager
def logging_to(path: Path | None, level: Level | None) -> Iterator[None]:
    """Log to standard error, and to a file; the error that ends the program goes to the file too.

    Args:
        path: of the file, which is continued; None: no file.
        level: of the records; None: "info" in the file, "warning" on standard error.

    Raises:
        OutputError: the file cannot be written.
    """
    given = None if level is None else int(getattr(logging, level.upper()))
    handlers: list[logging.Handler] = [Remarks(logging.WARNING if given is None else given)]
    file = None
    if path is not None:
        try:
            file = _File(path, logging.INFO if given is None else given)
        except OSError as error:
            raise OutputError(f"{path}: cannot write the log: {reason(error)}") from error
        handlers.append(file)
    ours, all_loggers, sparing = (
        logging.getLogger("y7edge"),
        logging.getLogger(),
        _Sparing(handlers),
    )
    ours.addHandler(sparing)
    ours.propagate = False  # the handlers of other packages' records would print them again
    ours.setLevel(logging.INFO if given is None else min(given, logging.INFO))
    if file is not None:
        all_loggers.addHandler(file)
    before, warnings.showwarning = warnings.showwarning, _log_warning
    try:
        yield
    except Exception as error:
        if file is not None:  # on standard error, it is printed at the end
            text = str(error) if isinstance(error, Y7EdgeError) else repr(error)
            found = (REMARKS, logging.ERROR, __file__, 0, one_line(text), None, None)
            file.handle(logging.LogRecord(*found))
        raise
    finally:
        warnings.showwarning = before
        sparing.report()
        ours.removeHandler(sparing)
        ours.propagate = True
        ours.setLevel(logging.NOTSET)
        if file is not None:
            all_loggers.removeHandler(file)
            with suppress(OSError):  # was reported
                file.close()


def _log_warning(message: Warning | str, *_: object, **__: object) -> None:
    logging.getLogger("y7edge").warning(str(message))
