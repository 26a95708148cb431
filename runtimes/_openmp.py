"""Set up the OpenMP library that some engines bring along."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_OPENMP_WAITING = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}  # environment variables
_OPENMP_SPINS = "1000"  # less than a tenth of a millisecond


@contextmanager
def openmp_waits_briefly() -> Iterator[None]:
    """Set up the GNU OpenMP library of an engine that is imported inside a ``with`` statement.

    By default, waiting threads spin for milliseconds, which takes processors from other sessions
    and from the rest of the robot's software. Without any spinning, the threads would sleep and
    wake in every layer, which makes two threads slower than one. The library reads its environment
    when it is loaded. A policy set by the user is kept.

    If torch was imported before, the engine would use torch's library, whose threads spin.
    Therefore symbols are looked up in the engine's own libraries first (RTLD_DEEPBIND of glibc).
    """
    flags = sys.getdlopenflags() if hasattr(os, "RTLD_DEEPBIND") else 0
    set_here = not os.environ.keys() & _OPENMP_WAITING
    try:
        if flags:
            sys.setdlopenflags(flags | os.RTLD_DEEPBIND)
        if set_here:
            os.environ["GOMP_SPINCOUNT"] = _OPENMP_SPINS
        yield
    finally:
        if set_here:  # other libraries and child processes are not affected
            os.environ.pop("GOMP_SPINCOUNT", None)
        if flags:
            sys.setdlopenflags(flags)
