"""Create and lock the folder of a run; define the names of its files."""

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
    """Create the folder of a run, and lock it until ``held`` is closed.

    If ``out`` is None, the folder is the first unused one of ``root/train``, ``root/train2``, ...

    Raises:
        ConfigError: ``out`` already holds a run, is locked by another run, or is not a folder.
    """
    check_free(out)
    number, folder = 1, Path(root) / "train" if out is None else Path(out)
    while True:
        try:
            # `mkdir` fails if a concurrent run has just created the folder.
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
            _check_empty(folder)  # again: another run may have written it before the lock
            return folder


def claim(folder: Path, held: ExitStack) -> None:
    """Lock the folder of a run against other runs until ``held`` is closed or the process ends.

    The lock is on the file ``.lock``, because an export into the folder locks the folder itself.

    Raises:
        ConfigError: another run has locked the folder, or the folder cannot be written.
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
