"""Train one model in several processes: sums, decisions and errors.

Each process has a *rank*; rank 0 (the *first*) writes, evaluates and decides. Lightning Fabric
handles devices, precision and gradients.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from y7edge import errors
from y7edge.errors import ConfigError, DeviceError, TrainingError, Y7EdgeError
from y7edge.files import temporary_folder
from y7edge.train.loading.workers import die_with
from y7edge.train.settings.config import TrainConfig

TIMEOUT = timedelta(hours=24)  # other ranks wait while rank 0 evaluates

# One of these lets processes connect without torchrun.
_RENDEZVOUS = ("MASTER_ADDR", "NODE_RANK", "SLURM_JOB_ID")
_MEETING = "Y7EDGE_TRAIN_STORE"  # path of the file by which processes of one machine connect

T = TypeVar("T")


class Ranks:
    """Process ``rank`` of ``world`` processes. With one process, all calls are no-ops."""

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world = rank, world
        # A CPU group: decisions don't wait for a GPU, and a long validation can't time out NCCL.
        self._group = None if world == 1 else distributed.new_group(backend="gloo", timeout=TIMEOUT)

    @property
    def first(self) -> bool:
        """Whether this process writes, evaluates and decides."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all ranks, without gradient."""
        if self.world == 1:
            return tensor
        total = tensor.detach().clone()
        distributed.all_reduce(total)
        return total

    def largest(self, value: int) -> int:
        """Return the largest of the ranks' numbers."""
        if self._group is None:
            return value
        shared = torch.tensor(value)
        distributed.all_reduce(shared, distributed.ReduceOp.MAX, group=self._group)
        return int(shared)

    def from_first(self, value: T) -> T:
        """Return rank 0's value."""
        if self._group is None:
            return value
        shared = [value]
        distributed.broadcast_object_list(shared, src=0, group=self._group)
        return shared[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Run a block on every rank; an error on one rank is raised on all, so that none hangs.

        The block must not communicate.
        """
        problem: BaseException | None = None
        try:
            yield
        except (Y7EdgeError, OSError, KeyboardInterrupt) as error:
            if self._group is None:
                raise
            problem = error
        if self.largest(int(problem is not None)):
            found: list[Any] = [None] * self.world
            encoded = None if problem is None else (type(problem).__name__, str(problem))
            distributed.all_gather_object(found, encoded, group=self._group)
            raise problem or _decode(*next(each for each in found if each is not None))


def _decode(name: str, text: str) -> BaseException:
    if name == KeyboardInterrupt.__name__:
        return KeyboardInterrupt()
    kind = getattr(errors, name, TrainingError)
    return kind(text) if issubclass(kind, Y7EdgeError) else TrainingError(text)


def under_torchrun(config: TrainConfig) -> TrainConfig:
    """Set the devices and nodes that ``torchrun`` started, if it did.

    Raises:
        ConfigError: the configuration has other numbers, or several nodes without a rendezvous.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        if config.nodes > 1 and not any(name in os.environ for name in _RENDEZVOUS):
            raise ConfigError(
                f"--nodes {config.nodes}: cannot connect to the other machines; run this on each "
                f"machine: torchrun --nnodes {config.nodes} --nproc-per-node {config.devices} ... "
                "-m y7edge.cli train"
            )
        return config
    world, local = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if config.devices not in (1, local) or config.nodes not in (1, world // local):
        raise ConfigError(
            f"torchrun started {world // local} nodes of {local} processes, but --nodes is "
            f"{config.nodes} and --devices {config.devices}: omit both with torchrun"
        )
    return replace(config, devices=local, nodes=world // local)


def open_fabric(config: TrainConfig) -> Any:
    """Configure Lightning Fabric for a run, without launching it.

    ``config.device`` is ``auto`` (CUDA if available, else the CPU), ``cpu``, ``cuda``, ``cuda:N``
    or ``mps``; ``config.precision`` is ``auto`` (fp16 mixed on CUDA, else fp32) or a name of
    Fabric's.

    Raises:
        DeviceError: no such device, too few of them, or unsupported precision.
    """
    from lightning_fabric import Fabric

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # hides its list of processes
    kind, index = _device(config.device)
    available = torch.cuda.device_count() if kind == "cuda" else 1 if kind == "mps" else None
    if available is not None and index + config.devices > available:
        raise DeviceError(
            f"{config.devices} devices from {kind}:{index} are not available: found {available}"
        )
    precision = config.precision
    if precision == "auto":
        precision = "16-mixed" if kind == "cuda" else "32-true"
    if precision == "16-mixed" and kind == "cpu":
        # Fabric would use bf16, and the run's files would be wrong.
        raise DeviceError("fp16 training is not available on a CPU: use --precision bf16 or fp32")
    devices: Any = config.devices
    if kind == "cuda":
        devices = list(range(index, index + config.devices))
    strategy: Any = "auto"
    if config.devices * config.nodes > 1:
        strategy = _strategy(config.devices)
    return Fabric(
        accelerator=kind,
        devices=devices,
        num_nodes=config.nodes,
        strategy=strategy,
        precision=precision,  # type: ignore[arg-type]
    )


def _device(device: str) -> tuple[str, int]:
    """Parse a device into kind and index; refuse one that is not available."""
    kind, _, number = device.partition(":")
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    mps = int(torch.backends.mps.is_available())
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": mps}.get(kind, 0)
    index = int(number) if number.isdecimal() else 0
    if index >= count or (number and not number.isdecimal()):
        raise DeviceError(
            f"device {device!r} is not available: expected cpu"
            + "".join(f", cuda:{i}" for i in range(torch.cuda.device_count()))
            + (", mps" if mps else "")
        )
    return kind, index


def _strategy(devices: int) -> Any:
    """Return Fabric's DDP strategy, which connects processes by a file if `launch` names one.

    By default Fabric uses a TCP port, which torch opens on all interfaces.
    """
    from lightning_fabric.strategies.ddp import DDPStrategy

    timeout = timedelta(minutes=30)

    class MeetInFile(DDPStrategy):
        def setup_environment(self) -> None:
            if place := os.environ.get(_MEETING):
                on_gpu = self.root_device.type == "cuda"
                if self.accelerator:
                    self.accelerator.setup_device(self.root_device)
                distributed.init_process_group(
                    "nccl" if on_gpu else "gloo",
                    store=distributed.FileStore(place, devices),  # type: ignore[attr-defined]
                    rank=int(os.environ.get("LOCAL_RANK", 0)),
                    world_size=devices,
                    timeout=timeout,
                    device_id=self.root_device if on_gpu else None,
                )
            super().setup_environment()

    return MeetInFile(timeout=timeout)


def launch(fabric: Any, held: ExitStack) -> Ranks:
    """Start the other processes, if any, and connect to them until ``held`` is closed.

    Fabric starts the same command for each further device. Those processes print nothing, and end
    with the first one. On one machine they connect over the loopback interface only.
    """
    if int(os.environ.get("LOCAL_RANK", 0)):
        die_with(os.getppid())
    strategy = fabric.strategy
    environment = getattr(strategy, "cluster_environment", None)
    if environment is not None and strategy.num_nodes == 1:
        loopback = "lo0" if sys.platform == "darwin" else "lo"
        os.environ.update(GLOO_SOCKET_IFNAME=loopback, NCCL_SOCKET_IFNAME=loopback)
        if not environment.creates_processes_externally:
            os.environ[_MEETING] = str(held.enter_context(temporary_folder()) / "store")
            held.callback(os.environ.pop, _MEETING)
    fabric.launch()
    if fabric.world_size == 1:
        return Ranks()
    # The head's vectors (1, C, 1, 1) have two equivalent layouts.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    if fabric.global_rank:
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - for good
        logging.disable(logging.WARNING)
        warnings.simplefilter("ignore")
    return Ranks(fabric.global_rank, fabric.world_size)
