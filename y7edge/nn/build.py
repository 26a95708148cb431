"""From rows to a torch module, from checkpoints to modules and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from y7edge.errors import CheckpointError, ConfigError
from y7edge.models import planning, registry
from y7edge.models.checkpoint import Checkpoint
from y7edge.models.shapes import input_channels, strides
from y7edge.models.spec import IMAGE, Form, Row, Spec
from y7edge.nn.blocks import SPPCSPC, Concat, ConvBlock, DownC, Reorg, RepConv, Sum
from y7edge.nn.head import Head


class Model(nn.Module):
    """A detector built from rows.

    ``model(images)`` takes float (B, 3, H, W), RGB, 0..1, with height and width multiples of the
    largest stride, and gives raw outputs (B, anchors, H / stride, W / stride, 5 + nc), finest level
    first: the lead's in evaluation mode; in training mode the lead's, then the auxiliary ones'.
    """

    def __init__(self, spec: Spec, *, allow_identity: bool = False) -> None:
        """Build the module of a spec with freshly initialised weights.

        Raises:
            ConfigError: the spec contradicts itself, or asks for a RepConv identity branch where
                the plan allows none (``allow_identity`` overrides that rule).
        """
        super().__init__()
        planning.check(spec, allow_identity=allow_identity)
        strides(spec)  # checks that maps which meet are of one size
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
        """Raw outputs: lead, and in training mode the auxiliary ones behind them."""
        if self.training:
            return self.raw(images)
        return self.head.forward_lead(self._features(images, aux=False))

    def raw(self, images: Tensor) -> list[Tensor]:
        """Raw outputs of the lead, then of the auxiliary heads, in either mode."""
        maps = self._features(images, aux=self.spec.has_aux)
        levels = self.spec.levels
        return self.head.forward_lead(maps[:levels]) + self.head.forward_aux(maps[levels:])

    def decode(self, heads: Sequence[Tensor]) -> Tensor:
        """Raw lead outputs to (B, N, 5 + nc): cx, cy, w, h in input pixels, then probabilities."""
        return self.head.decode(heads[: self.spec.levels])

    def _features(self, images: Tensor, *, aux: bool) -> list[Tensor]:
        """Run the rows; every map is dropped behind its last reader.

        Raises:
            ConfigError: height or width is no multiple of the largest stride. By luck the maps of
                such a picture can still meet, but boxes would be off.
        """
        height, width = images.shape[-2:]
        if height % self.spec.max_stride or width % self.spec.max_stride:
            raise ConfigError(
                f"pictures are {height}x{width}, expected multiples of {self.spec.max_stride}, the "
                f"largest stride of {self.spec.name}"
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
    """(row to run, maps that nobody reads after it) in order."""
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
) -> Model:
    """A published variant as a module, freshly initialised.

    Args:
        name: one of :func:`y7edge.models.names`.
        nc: number of classes.
        form: ``training``; ``deploy``: plain heads, no auxiliary rows, BatchNorm and RepConv still
            there, as the published files have it; ``folded``: plain convolutions.
        anchors: (levels, anchors, 2) in pixels, default the published ones.

    Raises:
        ConfigError: unknown name or form, or unusable anchors.
    """
    return Model(registry.get(name, nc=nc, form=form, anchors=anchors))


def from_checkpoint(checkpoint: Checkpoint) -> Model:
    """The module of a checkpoint, in evaluation mode, float32.

    Raises:
        CheckpointError: the arrays don't fit the rows.
    """
    # What was trained with an identity branch by override is rebuilt as it was.
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
    """A snapshot of a module: rows, weights, class names; anchors are those of the module.

    Args:
        model: any :class:`Model`; it is not changed.
        names: class names, default "0", "1", ...
        meta: JSON-able facts to keep with the weights (metrics, provenance, licence, ...).
    """
    arrays = {
        key: np.array(value.detach().cpu().numpy()) for key, value in model.state_dict().items()
    }
    spec = replace(model.spec, anchors=anchors_in_pixels(model))
    return Checkpoint(
        spec=spec,
        arrays=arrays,
        names=tuple(names) if names is not None else tuple(str(i) for i in range(spec.nc)),
        meta=dict(meta or {}),
    )


def anchors_in_pixels(model: Model) -> tuple[tuple[tuple[float, float], ...], ...]:
    """The head's anchors as (width, height) in pixels, finest level first."""
    grid = model.head.anchors.detach().cpu().double()
    pixels = grid * torch.tensor(model.spec.strides, dtype=torch.float64)[:, None, None]
    return tuple(tuple((float(w), float(h)) for w, h in level) for level in pixels.tolist())
