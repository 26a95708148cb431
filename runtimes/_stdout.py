"""Discard what engines print from C while they are imported."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

_STDOUT = 1


@contextmanager
def silent_stdout() -> Iterator[None]:
    """Discard what this process, including code in C, writes to standard output."""
    library = ctypes.CDLL("ucrtbase" if os.name == "nt" else None)
    try:
        real = os.dup(_STDOUT)
    except OSError:  # standard output is closed
        yield
        return
    library.fflush(None)
    discarded = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(discarded, _STDOUT)
        yield
    finally:
        library.fflush(None)
        os.dup2(real, _STDOUT)
        os.close(real)
        os.close(discarded)
