"""Detection head: 1x1 convolutions with implicit knowledge, auxiliary head, decoding."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from y7edge.models.shapes import convolutions
from y7edge.models.spec import Spec

# As published, initial biases assume 8 objects in an image of 640 pixels (also for P6 models), and
# equally frequent classes.
PRIOR_OBJECTS = 8
PRIOR_SIZE = 640
PRIOR_CLASS = 0.6


class Head(nn.Module):
    """1x1 convolutions of the lead head and the auxiliary head, one of each per level.

    In training form, the lead head has implicit knowledge ("You only learn one representation",
    arXiv 2105.04206): it computes ``mul * conv(x + add)`` with two learnt vectors per level.
    """

    anchors: Tensor

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        infos = convolutions(spec)
        lead, aux = ([i for i in infos if i.part == part] for part in ("lead", "aux"))
        self.per_anchor = spec.outputs_per_anchor
        self.strides = spec.strides
        pixels = torch.tensor(spec.anchors)
        strides = torch.tensor(spec.strides, dtype=pixels.dtype)
        self.register_buffer("anchors", pixels / strides[:, None, None])  # (L, A, 2) grid units
        self.lead = nn.ModuleList(nn.Conv2d(info.cin, info.cout, 1) for info in lead)
        self.aux = nn.ModuleList(nn.Conv2d(info.cin, info.cout, 1) for info in aux)
        implicit = lead if spec.implicit else []
        self.add = nn.ParameterList(torch.randn(1, info.cin, 1, 1) * 0.02 for info in implicit)
        self.mul = nn.ParameterList(torch.randn(1, info.cout, 1, 1) * 0.02 + 1 for info in implicit)
        self._start_biases(spec.nc)

    def _start_biases(self, nc: int) -> None:
        for convs in (self.lead, self.aux):
            for conv, stride in zip(convs, self.strides, strict=False):
                assert isinstance(conv, nn.Conv2d) and conv.bias is not None
                with torch.no_grad():
                    bias = conv.bias.view(-1, self.per_anchor)
                    bias[:, 4] += math.log(PRIOR_OBJECTS / (PRIOR_SIZE / stride) ** 2)
                    bias[:, 5:] += math.log(PRIOR_CLASS / (nc - 0.99))

    def lead_planes(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the outputs of the lead head's convolutions, each (B, A * (5 + nc), H, W)."""
        outputs = []
        for level, (conv, x) in enumerate(zip(self.lead, maps, strict=True)):
            if self.add:
                outputs.append(self.mul[level] * conv(x + self.add[level]))
            else:
                outputs.append(conv(x))
        return outputs

    def forward_lead(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the raw outputs of the lead head, each (B, A, H, W, 5 + nc)."""
        return [self._split(planes) for planes in self.lead_planes(maps)]

    def forward_aux(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the raw outputs of the auxiliary head, each (B, A, H, W, 5 + nc)."""
        return [self._split(conv(x)) for conv, x in zip(self.aux, maps, strict=True)]

    def _split(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        return x.view(batch, -1, self.per_anchor, height, width).permute(0, 1, 3, 4, 2)

    def decode(self, heads: Sequence[Tensor]) -> Tensor:
        """Decode raw lead outputs to (B, N, 5 + nc): cx, cy, w, h in pixels, then probabilities.

        The N boxes are ordered by level, anchor, row, column. A centre lies at most half a cell
        outside its cell. A size is at most four times that of the anchor.
        """
        decoded = []
        for level, (raw, stride) in enumerate(zip(heads, self.strides, strict=True)):
            batch, _, height, width, entries = raw.shape
            p = raw.sigmoid()
            rows, columns = torch.meshgrid(
                torch.arange(height, device=raw.device, dtype=p.dtype),
                torch.arange(width, device=raw.device, dtype=p.dtype),
                indexing="ij",
            )
            grid = torch.stack((columns, rows), dim=-1)
            centre = (p[..., :2] * 2 - 0.5 + grid) * stride
            anchors = (self.anchors[level] * stride)[:, None, None, :].to(p.dtype)
            size = (p[..., 2:4] * 2) ** 2 * anchors
            decoded.append(torch.cat((centre, size, p[..., 4:]), -1).view(batch, -1, entries))
        return torch.cat(decoded, dim=1)
