"""What a run begins with: packages, device, model."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from y7edge.errors import CheckpointError, ConfigError, DeviceError, RuntimeMissing
from y7edge.models import registry, weights
from y7edge.models.scaling import scale
from y7edge.models.spec import Spec
from y7edge.nn.build import Model
from y7edge.train.config import TrainConfig

# Needed at the end of the first validated epoch at the latest: better missed before the first one.
_NEEDED = ("cv2", "faster_coco_eval", "lightning_fabric", "matplotlib", "safetensors")


def check_packages() -> None:
    """Find out before the first epoch whether everything for the last one is installed.

    Raises:
        RuntimeMissing: a package is not there; the message says how to install it.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise RuntimeMissing(f'training needs {", ".join(missing)}: pip install "y7edge[train]"')


def open_fabric(device: str, precision: str) -> Any:
    """Lightning Fabric on one device: moves tensors, casts, scales gradients under fp16.

    Args:
        device: ``auto`` (CUDA if there is, else the CPU), ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        precision: ``auto`` (fp16 mixed on CUDA, else fp32) or one of Fabric's names.

    Raises:
        DeviceError: there is no such device here.
    """
    from lightning_fabric import Fabric

    kind, _, number = device.partition(":")
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": _mps_count()}.get(kind, 0)
    index = int(number) if number.isdecimal() else 0
    if index >= count or (number and not number.isdecimal()):
        raise DeviceError(
            f"device {device!r} is not here: expected cpu"
            + "".join(f", cuda:{i}" for i in range(torch.cuda.device_count()))
            + (", mps" if _mps_count() else "")
        )
    if precision == "auto":
        precision = "16-mixed" if kind == "cuda" else "32-true"
    devices: Any = [index] if kind == "cuda" else 1
    return Fabric(accelerator=kind, devices=devices, precision=precision)  # type: ignore[arg-type]


def _mps_count() -> int:
    return int(torch.backends.mps.is_available())


def build_spec(config: TrainConfig, classes: int, anchors: Any = None) -> Spec:
    """The rows that a run trains.

    Raises:
        ConfigError: unknown model, a width that cannot be, a model with auxiliary heads, or an
            input size that the strides don't divide or that is a single cell of the largest.
    """
    spec = registry.get(config.model, nc=classes, anchors=anchors)
    if spec.has_aux:
        raise ConfigError(
            f"{config.model} has auxiliary heads, whose losses are not in this version: "
            "train yolov7-tiny, yolov7-tiny-silu, yolov7 or yolov7x"
        )
    if config.imgsz % spec.max_stride:
        up = -(-config.imgsz // spec.max_stride) * spec.max_stride
        raise ConfigError(
            f"imgsz must be a multiple of {spec.max_stride} for {config.model}, "
            f"not {config.imgsz}: take {up}"
        )
    if config.imgsz < 2 * spec.max_stride:
        # BatchNorm has no statistics of the single cell that a batch of one would leave.
        raise ConfigError(
            f"imgsz must be {2 * spec.max_stride} or more to train {config.model}, "
            f"not {config.imgsz}"
        )
    return scale(spec, width=config.width)


def start_model(config: TrainConfig, classes: int) -> tuple[Model, str]:
    """The model to train and one line about where its weights come from.

    With ``config.weights``, every entry of equal key and shape is copied, so that a model trained
    for other classes gives all but its head; its anchors come along, as its weights mean offsets
    from them.

    Raises:
        ConfigError: the model cannot be trained (see :func:`build_spec`).
        CheckpointError: the weights are folded, or most of them don't fit.
    """
    if config.weights is None:
        return Model(build_spec(config, classes)), "trained from random weights"
    path = Path(config.weights)
    checkpoint = weights.load(path)
    if checkpoint.form == "folded":
        raise CheckpointError(
            f"{path}: a folded checkpoint cannot be trained on; give the one it was folded from"
        )
    same_levels = len(checkpoint.spec.anchors) == len(registry.get(config.model).anchors)
    anchors = checkpoint.spec.anchors if same_levels else None
    model = Model(build_spec(config, classes, anchors))
    copied, total = copy_fitting(model, checkpoint.arrays)
    # Counters, and some layers by chance, fit any model; other classes change nothing but the head.
    kernels = sum(key.endswith(".conv.weight") for key in model.state_dict())
    fitting = sum(key.endswith(".conv.weight") for key in copied)
    if fitting < kernels / 2:
        raise CheckpointError(
            f"{path}: of the {kernels} convolutions of {model.spec.name} it fits {fitting}, as it "
            f"holds {checkpoint.spec.name}; give the --model and --width that it was trained with"
        )
    source = f"{path.name} (digest {checkpoint.digest[:16]})"
    return model, f"fine-tuned from {source}, {len(copied)} of {total} entries"


def copy_fitting(model: Model, arrays: Mapping[str, Any]) -> tuple[list[str], int]:
    """Copy the arrays whose key and shape a model has.

    Returns:
        The keys that were copied, and how many the model has; the anchors, which the spec decides,
        are left out of both.
    """
    own = {k: v for k, v in model.state_dict().items() if not k.endswith(".anchors")}
    fitting = {
        key: torch.from_numpy(arrays[key].copy())
        for key, value in own.items()
        if key in arrays and tuple(arrays[key].shape) == tuple(value.shape)
    }
    model.load_state_dict(fitting, strict=False)
    return list(fitting), len(own)


def loading_workers(asked: int | None, device: torch.device) -> int:
    """Processes that load pictures: as asked, else what the device leaves free.

    On a CPU the network itself keeps all cores busy, and a process that loads only competes with
    it; a GPU leaves the cores to loading.
    """
    if asked is not None:
        return asked
    return 0 if device.type == "cpu" else min(8, os.cpu_count() or 1)
