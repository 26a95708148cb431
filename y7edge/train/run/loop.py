"""Training from start to end.

    result = train(TrainConfig(data="data.yaml", model="yolov7-tiny", imgsz=320, epochs=60))
    result.best                                     # runs/train/best.safetensors
    resume("runs/train")                            # after an interruption

The parts of a run are built first (``setup/parts.py``). After each epoch the average of the weights
is evaluated and saved (``trainer.py``). The state is saved between batches, every few minutes and
on Ctrl-C (``state.py``, ``resume.py``); a run is resumed from there. The recipe is that of YOLOv7
(arXiv 2207.02696) with the departures that ``config.py`` names.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

from torch import OutOfMemoryError, distributed

from y7edge.errors import ConfigError, TrainingError, Y7EdgeError
from y7edge.train.output import folder as files
from y7edge.train.output.results import TrainResult
from y7edge.train.run import state
from y7edge.train.run.distributed import Ranks, launch, open_fabric, under_torchrun
from y7edge.train.run.progress import Progress
from y7edge.train.run.trainer import Trainer
from y7edge.train.settings import configfile
from y7edge.train.settings.config import TrainConfig
from y7edge.train.setup.parts import build, check_packages

__all__ = ["TrainResult", "resume", "train"]


def train(config: TrainConfig, *, progress: Progress | None = None) -> TrainResult:
    """Train a model and keep its best and last weights in the run's folder.

    With several devices this very command is started again for each further one (or ``torchrun``
    has started them all).

    Args:
        config: what to train on what.
        progress: displays the run; None shows nothing (``progress.for_terminal()`` does).

    Returns:
        Paths and figures of the run.

    Raises:
        ConfigError: a setting that cannot be, or a folder that holds a run already.
        DataError: data that cannot be read, or a split without pictures.
        CheckpointError: weights to start from that don't fit.
        DeviceError: no such device.
        RuntimeMissing: a package is not installed.
        TrainingError: the loss is no longer a number, a disk is full, or a process died.
        KeyboardInterrupt: as it came, after the state was saved.
    """
    check_packages()
    if not int(os.environ.get("LOCAL_RANK", 0)):
        files.check_free(config.out)
    return _run(under_torchrun(config), progress)


def resume(folder: Path | str, *, progress: Progress | None = None) -> TrainResult:
    """Resume a run that was interrupted.

    On a CPU the weights at the end are, bit by bit, those of an uninterrupted run.

    Args:
        folder: of the run.
        progress: as for :func:`train`.

    Returns:
        Paths and figures of the whole run.

    Raises:
        ConfigError: no run in this folder, or a finished one.
        CheckpointError: no whole state is left.
        DataError: the data are not those of the run.
        Y7EdgeError: as for :func:`train`.
    """
    check_packages()
    folder = Path(folder)
    path = folder / files.CONFIG
    if not path.is_file():
        raise ConfigError(f"{folder}: no {files.CONFIG}, so there is no run to resume")
    config = replace(configfile.read(path), out=folder)
    if not Path(config.data).exists():
        raise ConfigError(
            f"{path}: data: nothing is at {config.data} any more; bring it back, or, if it was "
            "moved, write its new place there"
        )
    return _run(under_torchrun(config), progress, folder)


def _run(config: TrainConfig, progress: Progress | None, folder: Path | None = None) -> TrainResult:
    fabric = open_fabric(config)
    ranks = launch(fabric)
    progress = progress if progress and ranks.first else Progress()
    try:
        kept = None if folder is None else _read_state(folder, ranks, progress)
        parts = build(
            config,
            say=progress.say,
            fabric=fabric,
            ranks=ranks,
            folder=folder,
            again=kept.facts["start"] if kept else None,
        )
        result = Trainer(parts, progress, kept).run()
    except (Y7EdgeError, OSError, KeyboardInterrupt):
        if ranks.first:
            raise
        sys.exit(0)  # the first process says what happened, and gives the exit code
    except RuntimeError as error:
        if _is_short_of_memory(error):
            raise TrainingError(
                f"out of memory on {fabric.device} with batch {config.batch} at {config.imgsz} px: "
                "take a smaller --batch or --imgsz in a new run, from the weights of the finished "
                "epochs with --weights"
            ) from error
        if ranks.world == 1 or not _is_lost_contact(error):
            raise
        raise TrainingError(
            f"another process of the run is gone ({' '.join(str(error).split())[:120]}): see what "
            "it said; the last whole state is kept, resume with y7edge train --resume DIR"
        ) from error
    finally:
        progress.close()
    if ranks.world > 1:
        distributed.destroy_process_group()
    return result


def _read_state(folder: Path, ranks: Ranks, progress: Progress) -> state.State:
    """The state to resume; only the first rank searches for an undamaged one."""
    kept = None
    with ranks.together():
        if ranks.first:
            kept = state.load(folder, say=progress.say)
            if kept.facts.get("finished"):
                raise ConfigError(
                    f"{folder}: the run is finished after {kept.facts['epoch']} epochs; to train "
                    f"on, start a new one with --weights {folder / files.LAST} and --epochs"
                )
    with ranks.together():
        return kept or state.load(folder, say=progress.say)


def _is_lost_contact(error: RuntimeError) -> bool:
    """Whether an exchange between processes broke off."""
    return isinstance(error, distributed.DistError) or "gloo" in str(error).lower()


def _is_short_of_memory(error: RuntimeError) -> bool:
    """Whether the device has no memory left; on a CPU that is a plain ``RuntimeError``."""
    return isinstance(error, OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
