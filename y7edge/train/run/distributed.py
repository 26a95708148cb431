"""Communicate between the processes of a distributed training run.

Each process has a *rank*. Rank 0 writes the files, evaluates the model and decides when to stop.
Lightning Fabric handles devices, precision and gradients.
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

# Any one of these environment variables tells Fabric how to connect several machines.
_RENDEZVOUS = ("MASTER_ADDR", "NODE_RANK", "SLURM_JOB_ID")
# Environment variable: path of the file store that connects the processes of one machine.
_STORE_FILE = "Y7EDGE_TRAIN_STORE"

T = TypeVar("T")


class Ranks:
    """Collective operations for process ``rank`` of ``world``; no-ops if ``world`` is 1."""

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world = rank, world
        # gloo runs on the CPU: it does not wait for a GPU, and has no short timeout like NCCL.
        self._group = None if world == 1 else distributed.new_group(backend="gloo", timeout=TIMEOUT)

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes, evaluates and decides."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all ranks; no gradient flows between ranks."""
        if self.world == 1:
            return tensor
        total = tensor.detach().clone()
        distributed.all_reduce(total)
        return total

    def largest(self, value: int) -> int:
        """Return the maximum of ``value`` over all ranks."""
        if self._group is None:
            return value
        shared = torch.tensor(value)
        distributed.all_reduce(shared, distributed.ReduceOp.MAX, group=self._group)
        return int(shared)

    def from_first(self, value: T) -> T:
        """Return rank 0's ``value`` on every rank."""
        if self._group is None:
            return value
        shared = [value]
        distributed.broadcast_object_list(shared, src=0, group=self._group)
        return shared[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        """If the code in this context raises an error on one rank, raise it on all ranks.

        Otherwise the other ranks would wait forever. All ranks must enter the context. The code in
        it must not communicate between ranks.
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
    """Recreate the error of another rank from its class name and message."""
    if name == KeyboardInterrupt.__name__:
        return KeyboardInterrupt()
    kind = getattr(errors, name, TrainingError)
    return kind(text) if issubclass(kind, Y7EdgeError) else TrainingError(text)


def under_torchrun(config: TrainConfig) -> TrainConfig:
    """Return ``config`` with the numbers of devices and nodes that ``torchrun`` started, if any.

    Raises:
        ConfigError: ``config`` has other numbers, or several nodes that cannot connect.
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
    or ``mps``. ``config.precision`` is ``auto`` (fp16 mixed on CUDA, else fp32) or a precision of
    Fabric, such as ``32-true``.

    Raises:
        DeviceError: the devices do not exist, or a CPU cannot train in this precision.
    """
    from lightning_fabric import Fabric

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # hide its list of processes
    kind, index = _device(config.device)
    available = torch.cuda.device_count() if kind == "cuda" else 1 if kind == "mps" else None
    if available is not None and index + config.devices > available:
        raise DeviceError(
            f"{config.devices} devices from {kind}:{index} on are not available: found {available} "
            "in total"
        )
    precision = config.precision
    if precision == "auto":
        precision = "16-mixed" if kind == "cuda" else "32-true"
    if precision == "16-mixed" and kind == "cpu":
        # Fabric would silently use bf16, while the files of the run would say fp16.
        raise DeviceError("fp16 training is not available on a CPU: use --precision bf16 or fp32")
    chosen = list(range(index, index + config.devices)) if kind == "cuda" else config.devices
    strategy = _strategy(config.devices) if config.devices * config.nodes > 1 else "auto"
    return Fabric(
        accelerator=kind,
        devices=chosen,
        num_nodes=config.nodes,
        strategy=strategy,
        precision=precision,  # type: ignore[arg-type]
    )


def _device(device: str) -> tuple[str, int]:
    """Split a device name into kind and index, e.g. ``cuda:1`` into ``("cuda", 1)``.

    Raises:
        DeviceError: the device is not available.
    """
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
    """Return Fabric's DDP strategy for one process on each of ``devices``.

    If ``_STORE_FILE`` is set, the processes connect through that file instead of a TCP port, which
    torch would open on all network interfaces.
    """
    from lightning_fabric.strategies.ddp import DDPStrategy

    timeout = timedelta(minutes=30)

    class FileStoreDDP(DDPStrategy):
        def setup_environment(self) -> None:
            if place := os.environ.get(_STORE_FILE):
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

    return FileStoreDDP(timeout=timeout)


def launch(fabric: Any, held: ExitStack) -> Ranks:
    """Start one process for each device, connect them, and return the `Ranks` of this process.

    Fabric runs the command of this process again for each further device. The further processes
    print nothing and end when rank 0 ends. On one machine, the processes connect over the loopback
    interface only. The file that connects the processes is deleted when ``held`` is closed: close
    ``held`` after training.
    """
    if int(os.environ.get("LOCAL_RANK", 0)):
        die_with(os.getppid())
    strategy = fabric.strategy
    environment = getattr(strategy, "cluster_environment", None)
    if environment is not None and strategy.num_nodes == 1:
        loopback = "lo0" if sys.platform == "darwin" else "lo"
        os.environ.update(GLOO_SOCKET_IFNAME=loopback, NCCL_SOCKET_IFNAME=loopback)
        if not environment.creates_processes_externally:
            os.environ[_STORE_FILE] = str(held.enter_context(temporary_folder()) / "store")
            held.callback(os.environ.pop, _STORE_FILE)
    fabric.launch()
    if fabric.world_size == 1:
        return Ranks()
    # Harmless: tensors of implicit knowledge (1, C, 1, 1) have two equivalent memory layouts.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    if fabric.global_rank:
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - until exit
        logging.disable(logging.WARNING)
        warnings.simplefilter("ignore")
    return Ranks(fabric.global_rank, fabric.world_size)
