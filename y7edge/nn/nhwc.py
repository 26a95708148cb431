"""Wrap a model for converters that read torch modules: channels-last input, named outputs.

The activations are written with the operations that integer engines support.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from y7edge.errors import ConfigError
from y7edge.models.spec import LEAKY_SLOPE
from y7edge.nn.build import Model


class ChannelsLast(nn.Module):
    """A copy of a folded model with the outputs of an artifact.

    ``module(images=x)`` takes float (B, H, W, 3), RGB in 0..1. Height and width must be those of
    ``imgsz``. The names of the results are those of exported graphs. ``outputs`` is one of:

    - ``heads``: return the logits ``head0``, ``head1``, ... of each level, finest level first. Each
      is (B, H / stride, W / stride, anchors x (5 + nc)).
    - ``decoded``: return ``boxes`` (B, N, 4), cx, cy, w, h in pixels, and ``scores`` (B, N, nc).

    Raises:
        ConfigError: the model is not folded, or ``outputs`` is unknown.
    """

    def __init__(self, model: Model, outputs: str, imgsz: tuple[int, int]) -> None:
        super().__init__()
        if model.spec.form != "folded" or outputs not in ("heads", "decoded"):
            raise ConfigError(
                f"cannot wrap a model in {model.spec.form} form for outputs {outputs!r}: expected "
                "the folded form, and the outputs 'heads' or 'decoded'"
            )
        self.model = _for_integers(deepcopy(model).eval())
        self.decoders: nn.ModuleList | None = None
        if outputs == "decoded":
            self.decoders = nn.ModuleList(
                _Decoder(model, level, (imgsz[0] // stride, imgsz[1] // stride))
                for level, stride in enumerate(model.spec.strides)
            )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the outputs by name."""
        heads = [head.permute(0, 2, 3, 1) for head in self.model.heads(images.permute(0, 3, 1, 2))]
        if self.decoders is None:
            return {f"head{level}": head for level, head in enumerate(heads)}
        levels = [decoder(head) for decoder, head in zip(self.decoders, heads, strict=True)]
        boxes, scores = zip(*levels, strict=True)
        return {"boxes": torch.cat(boxes, dim=1), "scores": torch.cat(scores, dim=1)}


class _Decoder(nn.Module):
    """Decode one level, with the operations of ``y7edge.export.graph.decode``."""

    largest: Tensor
    offset: Tensor

    def __init__(self, model: Model, level: int, cells: tuple[int, int]) -> None:
        super().__init__()
        spec = model.spec
        self.fields, self.anchors = spec.outputs_per_anchor, len(spec.anchors[level])
        self.stride = spec.strides[level]
        ys, xs = torch.meshgrid(*(torch.arange(float(n)) for n in cells), indexing="ij")
        grid = torch.stack((xs, ys), dim=-1).view(1, 1, -1, 2)
        self.register_buffer("offset", (grid - 0.5) * self.stride)
        sizes = torch.tensor(spec.anchors[level], dtype=torch.float64).view(1, -1, 1, 2)
        self.register_buffer("largest", (4 * sizes).float())

    def forward(self, head: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, H, W, anchors x (5 + nc)) to (B, N, 4) and (B, N, nc)."""
        batch = head.shape[0]
        rows = head.reshape(batch, -1, self.anchors, self.fields).permute(0, 2, 1, 3).sigmoid()
        xy, wh = rows[..., :2], rows[..., 2:4]
        boxes = torch.cat((xy * (2 * self.stride) + self.offset, wh * wh * self.largest), dim=-1)
        scores = rows[..., 4:5]
        if self.fields > 6:  # several classes
            scores = scores * rows[..., 5:]
        return boxes.reshape(batch, -1, 4), scores.reshape(batch, -1, self.fields - 5)


class _LeakyMaximum(nn.Module):
    """LeakyReLU as max(x, slope x), which equals it for slopes between 0 and 1."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation."""
        return torch.maximum(x, LEAKY_SLOPE * x)


def _for_integers(model: Model) -> Model:
    """Replace modules of a model, in place, by others with equal results that integer NPUs take.

    ai-edge-quantizer keeps LeakyReLU in float, so it would run on the CPU instead of the NPU.
    MediaTek's accelerators take windows of pooling up to 8; those of 9 and 13 are 2 and 3 windows
    of 5 in series, of which the converter computes equal ones once.
    """
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.LeakyReLU):
                setattr(module, name, _LeakyMaximum())
            elif isinstance(child, nn.MaxPool2d) and child.kernel_size in (9, 13):
                count = (int(child.kernel_size) - 1) // 4
                setattr(module, name, nn.Sequential(*(nn.MaxPool2d(5, 1, 2),) * count))
    return model
