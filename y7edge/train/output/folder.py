"""Names of the files of a run, and its folder."""

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


def claim(out: Path | str | None, root: Path | str = "runs") -> Path:
    """Make the folder of a new run.

    Args:
        out: the folder asked for; None takes the next free one of ``root/train``,
            ``root/train2``, ``root/train3``, ...
        root: parent of unnamed runs.

    Raises:
        ConfigError: ``out`` holds a run already, or is not a folder.
    """
    if out is None:
        return _next_free(Path(root))
    check_free(out)
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be made a folder for the run: {error}") from error
    return folder


def check_free(out: Path | str | None) -> None:
    """Raise ConfigError for a folder that holds a run or cannot be written."""
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
        what = "only its owner may write there" if there.is_dir() else "it is a file"
        raise ConfigError(f"{folder} cannot be made a folder for the run: {there}: {what}")


def _next_free(root: Path) -> Path:
    """Made with ``exist_ok=False``, so that two runs started together get two folders."""
    number = 1
    while True:
        folder = root / ("train" if number == 1 else f"train{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return folder
