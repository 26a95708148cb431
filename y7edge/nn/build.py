"""Build a torch module from the rows of a spec, and convert between modules and checkpoints."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from y7edge.errors import CheckpointError, ConfigError, DeviceError
from y7edge.models import planning, registry
from y7edge.models.checkpoint import Checkpoint, default_names
from y7edge.models.shapes import convolutions, input_channels
from y7edge.models.spec import IMAGE, Form, Row, Spec
from y7edge.nn.blocks import SPPCSPC, Concat, ConvBlock, DownC, Reorg, RepConv, Sum
from y7edge.nn.head import Head

if hasattr(os, "register_at_fork"):  # else torch waits for threads that a fork lacks
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))
_PROCESS = os.getpid()


def set_threads(count: int) -> None:
    """Set the number of threads that torch uses.

    Raises:
        DeviceError: ``count`` exceeds 1 in a process forked after the import of this module.
    """
    if count > 1 and os.getpid() != _PROCESS:
        raise DeviceError(
            f"threads is {count}, expected 1 in a forked process: omit threads, or start processes "
            "with the method 'spawn' of multiprocessing"
        )
    torch.set_num_threads(count)


class Model(nn.Module):
    """Detection network built from the rows of a spec, with randomly initialised weights.

    ``model(images)`` takes float images (B, 3, H, W), RGB in 0..1. Height and width are multiples
    of the largest stride. The result is a list of raw outputs (B, anchors, H / stride,
    W / stride, 5 + nc), finest level first. In training mode, the outputs of the auxiliary heads
    are appended.

    Raises:
        ConfigError: the spec is inconsistent, or has a RepConv identity branch that
            ``y7edge.models.planning`` does not allow. With ``allow_identity``, every identity
            branch is allowed.
    """

    def __init__(self, spec: Spec, *, allow_identity: bool = False) -> None:
        super().__init__()
        planning.check(spec, allow_identity=allow_identity)
        convolutions(spec)  # raises if inputs of a row differ in size, or the model is too large
        self.spec = spec
        self.rows = nn.ModuleList(_module(spec, row) for row in spec.rows)
        self._schedules = {
            True: _schedule(spec, range(len(spec.rows) - 1), spec.head.inputs),
            False: _schedule(spec, registry.kept_rows(spec), spec.lead_inputs),
        }

    @property
    def head(self) -> Head:
        """The detection head, the last row."""
        return cast(Head, self.rows[-1])

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return raw outputs of the lead head; in training mode, also of the auxiliary heads."""
        if self.training:
            return self.raw(images)
        return self.head.forward_lead(self._features(images, aux=False))

    def raw(self, images: Tensor) -> list[Tensor]:
        """Return raw outputs of the lead head and of the auxiliary heads, in any mode."""
        maps = self._features(images, aux=self.spec.has_aux)
        levels = self.spec.levels
        return self.head.forward_lead(maps[:levels]) + self.head.forward_aux(maps[levels:])

    def heads(self, images: Tensor) -> list[Tensor]:
        """Return the lead head's outputs (B, anchors * (5 + nc), H, W), as in exported graphs."""
        return self.head.lead_planes(self._features(images, aux=False))

    def decode(self, heads: Sequence[Tensor]) -> Tensor:
        """Decode raw lead outputs to (B, N, 5 + nc): cx, cy, w, h in pixels, then probabilities."""
        return self.head.decode(heads[: self.spec.levels])

    def _features(self, images: Tensor, *, aux: bool) -> list[Tensor]:
        """Run the rows before the head, and return the head's inputs.

        Without ``aux``, skip the rows that only the auxiliary heads need. Free each map after its
        last use.

        Raises:
            ConfigError: height or width is not a multiple of the largest stride.
        """
        height, width = images.shape[-2:]
        if height % self.spec.max_stride or width % self.spec.max_stride:
            raise ConfigError(
                f"images are {height}x{width}, expected multiples of {self.spec.max_stride} (the "
                f"largest stride of {self.spec.name})"
            )
        maps: dict[int, Tensor] = {IMAGE: images}
        for index, finished in self._schedules[aux]:
            inputs = [maps[i] for i in self.spec.rows[index].inputs]
            maps[index] = self.rows[index](*inputs)
            for old in finished:
                del maps[old]
        return [maps[i] for i in (self.spec.head.inputs if aux else self.spec.lead_inputs)]


def _schedule(
    spec: Spec, order: Sequence[int], outputs: Sequence[int]
) -> list[tuple[int, tuple[int, ...]]]:
    """Return, for each row of ``order``, the row and the maps that can be freed after it has run.

    The maps in ``outputs`` are never freed.
    """
    last = {source: index for index in order for source in spec.rows[index].inputs}
    return [
        (index, tuple(s for s, reader in last.items() if reader == index and s not in outputs))
        for index in order
    ]


def _module(spec: Spec, row: Row) -> nn.Module:
    cin, act, plain = input_channels(spec, row)[0], spec.activation, spec.form == "folded"
    match row.block:
        case "repconv" if not plain:
            return RepConv(cin, row.out, row.kernel, row.stride, act, identity=row.identity)
        case "conv" | "repconv":
            return ConvBlock(cin, row.out, row.kernel, row.stride, act, plain=plain)
        case "downc":
            return DownC(cin, row.out, act, plain=plain)
        case "sppcspc":
            return SPPCSPC(cin, row.out, act, plain=plain)
        case "maxpool":
            return nn.MaxPool2d(row.kernel, row.stride, 0 if row.kernel == 2 else row.kernel // 2)
        case "upsample":
            return nn.Upsample(scale_factor=2, mode="nearest")
        case "concat":
            return Concat()
        case "sum":
            return Sum()
        case "reorg":
            return Reorg()
        case "head":
            return Head(spec)


def create(
    name: str,
    nc: int = 80,
    form: Form = "training",
    anchors: Sequence[Sequence[Sequence[float]]] | None = None,
    act: str | None = None,
) -> Model:
    """Build a variant with randomly initialised weights.

    See ``y7edge.models.get`` for the arguments, and ``Spec`` for the forms.

    Raises:
        ConfigError: the name, form or activation is unknown, or the anchors are invalid.
    """
    return Model(registry.get(name, nc=nc, form=form, anchors=anchors, act=act))


def from_checkpoint(checkpoint: Checkpoint) -> Model:
    """Build the float32 module of a checkpoint, in evaluation mode.

    Raises:
        CheckpointError: the arrays do not fit the rows.
    """
    # The checkpoint may have been trained with allow_identity.
    model = Model(checkpoint.spec, allow_identity=True)
    tensors = {key: torch.from_numpy(np.array(value)) for key, value in checkpoint.arrays.items()}
    try:
        model.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"the weights don't fit the rows of {checkpoint.spec.name} ({checkpoint.form} form): "
            f"{' '.join(str(error).split())[:300]}"
        ) from error
    return model.eval()


def to_checkpoint(
    model: Model, names: Sequence[str] | None = None, meta: Mapping[str, Any] | None = None
) -> Checkpoint:
    """Copy a module's rows, weights and anchors into a checkpoint.

    Args:
        model: the module to copy.
        names: class names; default "0", "1", ...
        meta: JSON values to store with the weights (metrics, provenance, licence, ...).
    """
    arrays = {key: np.array(value.cpu().numpy()) for key, value in model.state_dict().items()}
    spec = replace(model.spec, anchors=anchors_in_pixels(model))
    known = default_names(spec.nc) if names is None else tuple(names)
    return Checkpoint(spec, arrays, known, dict(meta or {}))


def anchors_in_pixels(model: Model) -> tuple[tuple[tuple[float, float], ...], ...]:
    """Return the head's anchors as (width, height) in pixels, finest level first."""
    grid = model.head.anchors.detach().cpu().double()
    pixels = grid * torch.tensor(model.spec.strides, dtype=torch.float64)[:, None, None]
    return tuple(tuple((float(w), float(h)) for w, h in level) for level in pixels.tolist())
