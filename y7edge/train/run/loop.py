"""Train a model, or resume a run.

    result = train(TrainConfig(data="data.yaml", model="yolov7-tiny", imgsz=320, epochs=60))
    result.best                                     # runs/train/best.safetensors
    resume("runs/train")                            # after an interruption

``setup/parts.py`` builds the parts of a run; ``trainer.py`` trains, and evaluates and saves the
averaged weights after each epoch. The state is saved between batches, every few minutes and on
Ctrl-C (``state.py``, ``resume.py``). The recipe is that of YOLOv7 (arXiv 2207.02696) with the
changes that ``config.py`` lists.
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
    """Train a model; save its best and last weights in the run's folder.

    With several devices, the same command is started again for each further one (unless
    ``torchrun`` did). ``progress`` displays the run, see ``progress.for_terminal()``.

    Raises:
        ConfigError: an invalid setting, or a folder that holds a run already.
        DataError: data that cannot be read, or a split without images.
        CheckpointError: initial weights that don't fit.
        DeviceError: no such device.
        RuntimeMissing: a package is not installed.
        TrainingError: the loss is not finite, the disk is full, or a process died.
        KeyboardInterrupt: after the state was saved.
    """
    check_packages()
    if not int(os.environ.get("LOCAL_RANK", 0)):
        files.check_free(config.out)
    return _run(under_torchrun(config), progress)


def resume(folder: Path | str, *, progress: Progress | None = None) -> TrainResult:
    """Resume the interrupted run in a folder.

    On a CPU the final weights equal those of an uninterrupted run, bit by bit.

    Raises:
        ConfigError: no run in this folder, or a finished one.
        CheckpointError: no complete state is left.
        DataError: the data have changed.
        Y7EdgeError: as for :func:`train`.
    """
    check_packages()
    folder = Path(folder)
    path = folder / files.CONFIG
    if not path.is_file():
        raise ConfigError(f"{folder}: no {files.CONFIG}: expected the folder of a run")
    config = replace(configfile.read(path), out=folder)
    if not Path(config.data).exists():
        raise ConfigError(
            f"{path}: data: {config.data} does not exist; restore it, or write its new path there"
        )
    return _run(under_torchrun(config), progress, folder)


def _run(config: TrainConfig, progress: Progress | None, folder: Path | None = None) -> TrainResult:
    fabric = open_fabric(config)
    ranks = launch(fabric)
    progress = progress if progress and ranks.first else Progress()
    try:
        saved = None if folder is None else _read_state(folder, ranks, progress)
        parts = build(
            config,
            log=progress.log,
            fabric=fabric,
            ranks=ranks,
            folder=folder,
            resumed=saved.facts["start"] if saved else None,
        )
        result = Trainer(parts, progress, saved).run()
    except (Y7EdgeError, OSError, KeyboardInterrupt):
        if ranks.first:
            raise
        sys.exit(0)  # the first process reports the error
    except RuntimeError as error:
        # A CPU raises a plain RuntimeError.
        if isinstance(error, OutOfMemoryError) or "DefaultCPUAllocator" in str(error):
            raise TrainingError(
                f"out of memory on {fabric.device} with batch {config.batch} at {config.imgsz} px: "
                "start a new run with a smaller --batch or --imgsz, and the last epoch's --weights"
            ) from error
        lost = isinstance(error, distributed.DistError) or "gloo" in str(error).lower()
        if ranks.world == 1 or not lost:
            raise
        raise TrainingError(
            f"another process of the run died ({' '.join(str(error).split())[:120]}): see its "
            "output; resume the last complete state with y7edge train --resume DIR"
        ) from error
    finally:
        progress.close()
    if ranks.world > 1:
        distributed.destroy_process_group()
    return result


def _read_state(folder: Path, ranks: Ranks, progress: Progress) -> state.State:
    """Read the state to resume; the first rank first, which skips a damaged one."""
    saved = None
    with ranks.together():
        if ranks.first:
            saved = state.load(folder, log=progress.log)
            if saved.facts.get("finished"):
                raise ConfigError(
                    f"{folder}: the run is finished after {saved.facts['epoch']} epochs; to "
                    f"continue, start a new one with --weights {folder / files.LAST} and --epochs"
                )
    with ranks.together():
        return saved or state.load(folder, log=progress.log)
