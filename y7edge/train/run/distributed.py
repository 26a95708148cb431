"""Several processes that train one model: their sums, common decisions and errors.

Each process has a *rank*; rank 0 (the *first*) writes, evaluates and decides. Devices, precision
and the exchange of gradients are Lightning Fabric's.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from y7edge import errors
from y7edge.errors import ConfigError, DeviceError, TrainingError, Y7EdgeError
from y7edge.train.loading.workers import die_with
from y7edge.train.settings.config import TrainConfig

# The others wait while rank 0 evaluates a model on a large set.
PATIENCE = timedelta(hours=24)

# With one of these set, the processes know where to meet without torchrun.
_MEETING = ("MASTER_ADDR", "NODE_RANK", "SLURM_JOB_ID")

T = TypeVar("T")


class Ranks:
    """The processes of a run as one of them sees them. With one process every call is free.

    Attributes:
        world: how many processes there are.
        rank: number of this one.
    """

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world = rank, world
        # On the CPU, whatever the device: decisions never wait for a GPU, and a long validation
        # doesn't look like a GPU that hangs.
        self._talk = None if world == 1 else distributed.new_group(backend="gloo", timeout=PATIENCE)

    @property
    def first(self) -> bool:
        """Whether this process writes, evaluates and decides."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all ranks, on each of them; without gradient."""
        if self.world == 1:
            return tensor
        total = tensor.detach().clone()
        distributed.all_reduce(total)
        return total

    def largest(self, value: int) -> int:
        """The largest of the ranks' numbers: what any of them wants, all of them do."""
        if self._talk is None:
            return value
        shared = torch.tensor(value)
        distributed.all_reduce(shared, distributed.ReduceOp.MAX, group=self._talk)
        return int(shared)

    def from_first(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        if self._talk is None:
            return value
        shared = [value]
        distributed.broadcast_object_list(shared, src=0, group=self._talk)
        return shared[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Run a block on every rank; an error on one is raised on all, so that none waits forever.

        The block itself must not exchange anything.
        """
        problem: BaseException | None = None
        try:
            yield
        except (Y7EdgeError, OSError, KeyboardInterrupt) as error:
            if self._talk is None:
                raise
            problem = error
        if self.largest(int(problem is not None)):
            found = self._gather(None if problem is None else _described(problem))
            raise problem or _rebuilt(next(text for text in found if text is not None))

    def _gather(self, value: T) -> list[T]:
        everyone: list[Any] = [None] * self.world
        distributed.all_gather_object(everyone, value, group=self._talk)
        return everyone


def _described(error: BaseException) -> tuple[str, str]:
    return type(error).__name__, str(error)


def _rebuilt(described: tuple[str, str]) -> BaseException:
    name, text = described
    if name == KeyboardInterrupt.__name__:
        return KeyboardInterrupt()
    kind = getattr(errors, name, TrainingError)
    return kind(text) if issubclass(kind, Y7EdgeError) else TrainingError(text)


def under_torchrun(config: TrainConfig) -> TrainConfig:
    """The configuration with the devices and nodes that ``torchrun`` has started, if it has.

    Raises:
        ConfigError: the configuration asks for others, or for machines without a way to meet.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        if config.nodes > 1 and not any(name in os.environ for name in _MEETING):
            raise ConfigError(
                f"--nodes {config.nodes}: this process has no way to meet those of the other "
                f"machines: start it on each of them with torchrun --nnodes {config.nodes} "
                f"--nproc-per-node {config.devices} ... -m y7edge.cli train"
            )
        return config
    world, local = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if config.devices not in (1, local) or config.nodes not in (1, world // local):
        raise ConfigError(
            f"torchrun started {world // local} nodes of {local} processes, --devices and --nodes "
            f"say {config.nodes} of {config.devices}: leave them out under torchrun"
        )
    return replace(config, devices=local, nodes=world // local)


def open_fabric(config: TrainConfig) -> Any:
    """Lightning Fabric for a run, not launched yet: devices, casts, scaling under fp16, gradients.

    ``config.device`` is ``auto`` (CUDA if there is, else the CPU), ``cpu``, ``cuda``, ``cuda:N`` or
    ``mps``; ``config.precision`` is ``auto`` (fp16 mixed on CUDA, else fp32) or a name of Fabric's.

    Raises:
        DeviceError: no such device, not so many of them, or not this precision.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.ddp import DDPStrategy

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it counts processes aloud
    kind, index = _device(config.device)
    available = torch.cuda.device_count() if kind == "cuda" else 1 if kind == "mps" else None
    if available is not None and index + config.devices > available:
        raise DeviceError(
            f"{config.devices} devices from {kind}:{index} on are not here: found {available}"
        )
    precision = config.precision
    if precision == "auto":
        precision = "16-mixed" if kind == "cuda" else "32-true"
    if precision == "16-mixed" and kind == "cpu":
        # Fabric would take bf16 instead, and the run's files would say fp16.
        raise DeviceError("a CPU has no fp16 training: take --precision bf16 or fp32")
    devices: Any = config.devices
    if kind == "cuda":
        devices = list(range(index, index + config.devices))
    strategy: Any = "auto"
    if config.devices * config.nodes > 1:
        strategy = DDPStrategy(timeout=timedelta(minutes=30))
    return Fabric(
        accelerator=kind,
        devices=devices,
        num_nodes=config.nodes,
        strategy=strategy,
        precision=precision,  # type: ignore[arg-type]
    )


def _device(device: str) -> tuple[str, int]:
    """Kind and index of a device.

    Raises:
        DeviceError: there is no such device here.
    """
    kind, _, number = device.partition(":")
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    mps = int(torch.backends.mps.is_available())
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": mps}.get(kind, 0)
    index = int(number) if number.isdecimal() else 0
    if index >= count or (number and not number.isdecimal()):
        raise DeviceError(
            f"device {device!r} is not here: expected cpu"
            + "".join(f", cuda:{i}" for i in range(torch.cuda.device_count()))
            + (", mps" if mps else "")
        )
    return kind, index


def launch(fabric: Any) -> Ranks:
    """Start the other processes, if Fabric has any to start, and connect to them.

    Fabric starts this very command again, once for each further device. Those processes print
    nothing, and die with the one that started them.
    """
    if int(os.environ.get("LOCAL_RANK", 0)):
        # Elsewhere than on Linux a process notices at the next exchange that it is alone.
        die_with(os.getppid())
    fabric.launch()
    if fabric.world_size == 1:
        return Ranks()
    # Of the head's vectors, (1, C, 1, 1), there are two layouts for the same bytes.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    if fabric.global_rank:
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - for good
        logging.disable(logging.WARNING)
        warnings.simplefilter("ignore")
    return Ranks(fabric.global_rank, fabric.world_size)
