"""Run the unfolded model of a checkpoint with torch, as a runtime session.

This session is the reference that artifacts are compared with, and it is meant for debugging. The
commands ``predict``, ``val``, ``benchmark`` and ``diff`` use it for checkpoints. Training uses it
for validation, through the same Detector that runs artifacts. This module is not in the registry of
runtimes, since it needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from y7edge import __version__
from y7edge.artifact import description
from y7edge.artifact.manifest import Manifest
from y7edge.errors import DeviceError
from y7edge.models.checkpoint import Checkpoint
from y7edge.nn.build import Model, from_checkpoint, set_threads
from y7edge.nn.quantized import QuantizedGraph
from y7edge.nn.source import open_checkpoint
from y7edge.runtimes.base import Session, SessionOptions, parse_device

DEVICES = ("cpu", "cuda", "cuda:N")


def open(
    source: str | Path, options: SessionOptions, imgsz: tuple[int, int] | None = None
) -> EagerSession:
    """Open a session for a checkpoint file, or for a variant's name with random weights.

    ``imgsz`` is (height, width) of the input; None: the size of the training.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        ConfigError: the size is not a multiple of the largest stride.
        DeviceError: the device does not exist.
    """
    checkpoint = open_checkpoint(source)
    manifest = describe(checkpoint, imgsz or checkpoint.imgsz)
    return EagerSession(from_checkpoint(checkpoint), manifest, options)


def describe(checkpoint: Checkpoint, imgsz: tuple[int, int]) -> Manifest:
    """Return a manifest of an unfolded checkpoint, with which a Detector can run the checkpoint.

    Raises:
        ConfigError: the size is not a multiple of the largest stride.
    """
    tools = {"y7edge": __version__, "torch": torch.__version__}
    described = description.describe(checkpoint, checkpoint.spec, imgsz, tools=tools)
    return replace(described, parity={"status": "source"})


class EagerSession(Session):
    """Session that runs a model in evaluation mode; its outputs are the raw heads.

    The model is not copied, so changes of its weights take effect at the next call.
    """

    ENGINE = "torch"
    backend = "torch"
    why = "torch runs checkpoints"

    def __init__(
        self, model: Model | QuantizedGraph, manifest: Manifest, options: SessionOptions
    ) -> None:
        self.manifest = manifest
        self._device = pick_device(options.device)
        super().__init__(
            manifest.model,
            manifest,
            device=str(self._device),
            arithmetic=f"float32 (torch {torch.__version__}, {self._device})",
            versions={"torch": torch.__version__},
        )
        if options.threads is not None:
            set_threads(options.threads)
        self.threads = torch.get_num_threads()
        self._model: Model | QuantizedGraph | None = model.to(self._device).eval()

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        assert self._model is not None
        images = torch.from_numpy(np.ascontiguousarray(feeds["images"])).to(self._device)
        cudnn = torch.backends.cudnn
        # TF32 has a mantissa of only 10 bits. Without `enabled`, `flags` would turn cuDNN off.
        with torch.inference_mode(), cudnn.flags(enabled=cudnn.enabled, allow_tf32=False):
            heads = self._model.heads(images)
        return {
            spec.name: head.float().cpu().contiguous().numpy()
            for spec, head in zip(self.outputs, heads, strict=True)
        }

    def _close(self) -> None:
        self._model = None


def pick_device(name: str) -> torch.device:
    """Return the torch device of a name in ``DEVICES``; for "auto": CUDA if available, else CPU.

    Raises:
        ConfigError: the name is unknown.
        DeviceError: the device does not exist.
    """
    kind, index = parse_device(name, DEVICES)
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(kind) if index is None else torch.device(kind, index)
    count = torch.cuda.device_count()
    if kind == "cuda" and (index or 0) >= count:
        raise DeviceError(
            f"device {name!r} does not exist: torch found {count} CUDA devices; use device='cpu', "
            "or install a build of torch for this GPU"
        )
    return device
