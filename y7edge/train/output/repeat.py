"""``repeat.txt``: what is needed to do a run again: command, seed, versions, digest of the data."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from y7edge import __version__
from y7edge.data.dataset import Dataset
from y7edge.files import atomic_write
from y7edge.train.output.folder import CONFIG
from y7edge.train.settings.config import TrainConfig

# Whatever takes part in the numbers.
_PACKAGES = (
    *("torch", "lightning-fabric", "numpy", "opencv-python", "opencv-python-headless"),
    *("faster-coco-eval", "safetensors"),
)


def lines(config: TrainConfig, data: Dataset) -> list[str]:
    """The content, line by line."""
    command = config.command or f"train(configfile.read({CONFIG!r}))"
    known = {"y7edge": __version__, "python": platform.python_version(), **_versions()}
    return [
        f"command   {command}",
        f"seed      {config.seed}",
        f"data      {data.source}",
        f"digest    {data.digest} (SHA-256 of names, labels, and the pictures' names and sizes)",
        f"machine   {platform.machine()}, {platform.system()}, {_processor()}",
        *(f"version   {name} {number}" for name, number in known.items()),
        "",
        "Equal versions, seed, data and threads on the same kind of processor give equal weights;",
        f"all settings are in {CONFIG}.",
    ]


def write(config: TrainConfig, data: Dataset, path: Path) -> None:
    """Write the file."""
    with atomic_write(path) as temporary:
        temporary.write_text("\n".join(lines(config, data)) + "\n", encoding="utf-8")


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # one of two that are the same, or a build under another name
            continue
    return found


def _processor() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} threads"
