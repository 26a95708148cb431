"""Create and lock the folder of a run, and name its files."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

from y7edge.errors import ConfigError
from y7edge.files import is_file, is_folder, locked, reason, require_replaceable

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
LOCK = ".lock"


def create(out: Path | str | None, held: ExitStack, root: Path | str = "runs") -> Path:
    """Create the folder of a run; None: the next free of ``root/train``, ``root/train2``, ...

    It is claimed until ``held`` is closed.

    Raises:
        ConfigError: ``out`` holds a run already, another run has claimed it, or it is not a folder.
    """
    check_free(out)
    number, folder = 1, Path(root) / "train" if out is None else Path(out)
    while True:
        try:
            # Concurrent runs without a name get different folders.
            folder.mkdir(parents=True, exist_ok=out is not None)
        except FileExistsError as error:
            if out is not None:
                raise ConfigError(f"{folder}: expected a folder, found a file") from error
            number += 1
            folder = Path(root) / f"train{number}"
        except OSError as error:
            words = f"cannot create the folder of the run: {reason(error)}"
            raise ConfigError(f"{folder}: {words}") from error
        else:
            claim(folder, held)
            _check_empty(folder)  # another run may have ended there since
            return folder


def claim(folder: Path, held: ExitStack) -> None:
    """Lock the folder of a run against other runs until ``held`` is closed or the process ends.

    It locks a file in the folder, because exporting an artifact into it locks the folder itself.

    Raises:
        ConfigError: another run has claimed it, or it cannot be written.
    """
    try:
        path = folder / LOCK
        path.touch()
        held.enter_context(locked(path, wait=False))
    except BlockingIOError as error:
        raise ConfigError(
            f"{folder}: another run is using this folder: wait until it ends, or give another --out"
        ) from error
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {reason(error)}") from error


def check_free(out: Path | str | None) -> None:
    """Raise ConfigError if a folder holds a run, cannot be written, or is a link or pipe."""
    if out is None:
        return
    folder = Path(out)
    if is_file(folder / LOCK):
        with ExitStack() as held:
            claim(folder, held)
    _check_empty(folder)
    problem = f"{folder}: cannot create the folder of the run"
    try:
        require_replaceable(folder, file=False)
    except OSError as error:
        raise ConfigError(f"{problem}: {reason(error)}") from error
    places = (folder, *folder.absolute().parents)
    there = next(place for place in places if os.path.exists(place))  # noqa: PTH110 - never raises
    if not is_folder(there) or not os.access(there, os.W_OK | os.X_OK):
        what = "not writable" if is_folder(there) else "is a file"
        raise ConfigError(f"{problem}: {there}: {what}")


def _check_empty(folder: Path) -> None:
    files = (BEST, LAST, RESULTS, STATE, PREVIOUS)
    if taken := [name for name in files if os.path.lexists(folder / name)]:
        raise ConfigError(
            f"{folder} already holds a run ({', '.join(taken)}): resume it with "
            f"--resume {folder}, give another --out, or remove the folder"
        )
