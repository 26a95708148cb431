"""The folder of a run, and the names of its files."""

from __future__ import annotations

import os
from pathlib import Path

from y7edge.errors import ConfigError

BEST = "best.safetensors"
LAST = "last.safetensors"
RESULTS = "results.csv"
CURVES = "results.png"
CONFIG = "config.yaml"
REPORT = "report.html"
BATCHES = "batches"
EVENTS = "tensorboard"
STATE = "state.safetensors"
PREVIOUS = "state-previous.safetensors"


def create(out: Path | str | None, root: Path | str = "runs") -> Path:
    """Create the folder of a run; None: the next free of ``root/train``, ``root/train2``, ...

    Raises:
        ConfigError: ``out`` holds a run already, or is not a folder.
    """
    number = 1
    while out is None:
        folder = Path(root) / ("train" if number == 1 else f"train{number}")
        try:
            folder.mkdir(parents=True)  # not exist_ok: concurrent runs get different folders
        except FileExistsError:
            number += 1
        else:
            return folder
    check_free(out)
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot create the folder of the run: {error}") from error
    return folder


def check_free(out: Path | str | None) -> None:
    """Raise ConfigError if a folder holds a run or cannot be written."""
    if out is None:
        return
    folder = Path(out)
    files = (BEST, LAST, RESULTS, STATE, PREVIOUS)
    taken = [name for name in files if (folder / name).exists()]
    if taken:
        raise ConfigError(
            f"{folder} already holds a run ({', '.join(taken)}): resume it with "
            f"--resume {folder}, give another --out, or remove the folder"
        )
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        what = "not writable" if there.is_dir() else "is a file"
        raise ConfigError(f"{folder}: cannot create the folder of the run: {there}: {what}")
