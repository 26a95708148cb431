"""Train a model, or resume a run.

    result = train(TrainConfig(data="data.yaml", model="yolov7-tiny", imgsz=320, epochs=60))
    result.best                                     # runs/train/best.safetensors
    resume("runs/train")                            # after an interruption

``setup/parts.py`` builds the data loader, model, optimizer and other parts of a run. ``trainer.py``
trains. After each epoch it saves the averaged weights; some epochs are evaluated. Every few minutes
and on Ctrl-C, it saves the state of the run between two batches (``state.py``, ``resume.py``). The
recipe is that of YOLOv7 (arXiv 2207.02696) with the changes listed in ``settings/config.py``.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import OutOfMemoryError, distributed

from y7edge.errors import ConfigError, TrainingError, Y7EdgeError
from y7edge.files import is_file
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

    With several devices, the command of this process is run again for each further device, unless
    ``torchrun`` started the processes. ``progress`` displays the run, for example
    ``for_terminal()``; None displays nothing.

    Raises:
        ConfigError: a setting is invalid, or the folder already holds a run.
        DataError: the data cannot be read, or a split has no labels.
        CheckpointError: the initial weights do not fit the model.
        DeviceError: the device does not exist.
        RuntimeMissing: a package is not installed.
        TrainingError: the loss is not finite, the disk is full, or a process died.
        KeyboardInterrupt: Ctrl-C or SIGTERM stopped the run; its state was saved.
    """
    check_packages()
    if not int(os.environ.get("LOCAL_RANK", 0)):
        files.check_free(config.out)
    return _run(under_torchrun(config), progress)


def resume(folder: Path | str, *, progress: Progress | None = None) -> TrainResult:
    """Resume the interrupted run in a folder.

    On a CPU the final weights equal those of an uninterrupted run, bit by bit.

    Raises:
        ConfigError: the folder holds no run, or the run is finished.
        CheckpointError: the folder has no complete state.
        DataError: the data have changed since the run began.
        Y7EdgeError: any other error of ``train``.
    """
    check_packages()
    folder = Path(folder)
    path = folder / files.CONFIG
    if not is_file(path):
        raise ConfigError(f"{folder}: no {files.CONFIG}: expected the folder of a run")
    config = replace(configfile.read(path), out=folder)
    if not Path(config.data).exists():
        raise ConfigError(
            f"{path}: data: {config.data} does not exist; restore it, or set its new path in "
            f"{files.CONFIG}"
        )
    return _run(under_torchrun(config), progress, folder)


def _run(config: TrainConfig, progress: Progress | None, folder: Path | None = None) -> TrainResult:
    fabric = open_fabric(config)
    with ExitStack() as held:
        ranks = launch(fabric, held)
        progress = progress if progress and ranks.first else Progress()
        try:
            result = _trainer(config, fabric, ranks, progress, folder, held).run()
        except (Y7EdgeError, OSError, KeyboardInterrupt):
            if ranks.first:
                raise
            sys.exit(0)  # rank 0 reports the error
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise TrainingError(
                    f"out of memory on {fabric.device} with batch {config.batch} at {config.imgsz} "
                    "px: start a new run with a smaller --batch or --imgsz, and with the --weights "
                    "of the last epoch"
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


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether torch had too little memory; on a CPU, this is a plain RuntimeError."""
    return isinstance(error, OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _trainer(
    config: TrainConfig,
    fabric: Any,
    ranks: Ranks,
    progress: Progress,
    folder: Path | None,
    held: ExitStack,
) -> Trainer:
    """Create the trainer of a new run, or of the run to resume in ``folder``.

    The folder is locked until ``held`` is closed.
    """

    def begin(saved: state.State | None) -> Trainer:
        if saved and saved.facts.finished:
            raise ConfigError(
                f"{folder}: the run is finished after {saved.facts.position.epoch} epochs; to "
                f"continue, start a new one with --weights {config.out}/{files.LAST} "
                "and --epochs"
            )
        parts = build(
            config,
            log=progress.log,
            fabric=fabric,
            ranks=ranks,
            folder=folder,
            resumed=saved.facts.began if saved else None,
            held=held,
        )
        return Trainer(parts, progress, saved)

    if folder is None:
        return begin(None)
    with ranks.together():
        if ranks.first:
            files.claim(folder, held)
    return state.load(folder, begin, log=progress.log, ranks=ranks)
