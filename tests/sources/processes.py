"""What a camera must not leave: processes, threads, descriptors."""

from __future__ import annotations

import os
import threading
from pathlib import Path

OTHERS: list[int] = []  # processes that other tests have left


def all_children():
    """Processes of this one that have not ended, or were not waited for."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            found.append(int(stat.parent.name))
    return found


def children():
    """Those that the running test has started."""
    return [process for process in all_children() if process not in OTHERS]


def watchers():
    return [thread for thread in threading.enumerate() if thread.name == "y7edge camera"]


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))
