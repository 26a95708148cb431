"""Exponential moving average of a model: the model that is judged, saved and used in the end.

The decay grows with the number of updates, d(u) = limit * (1 - exp(-u / tau)), so that the average
doesn't hang on to the random start (YOLOv7's published training: limit 0.9999, tau 2000).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

ModelT = TypeVar("ModelT", bound=nn.Module)


class ModelEma(Generic[ModelT]):
    """Moving average over all floating state: parameters, batch-norm statistics, anchors.

    Integer buffers (batch norm's counters) keep their initial values, as published.

    Attributes:
        model: the average, in float32 and in ``eval()``; it shares no memory with the trained one.
        updates: how many times it was updated.
        begins: the first epoch (from 1) at whose end it counts.
    """

    begins = 1

    def __init__(self, model: ModelT, *, decay: float = 0.9999, tau: float = 2000.0) -> None:
        self.model: ModelT = copy.deepcopy(model).float().eval().requires_grad_(False)
        self.updates = 0
        self._limit = decay
        self._tau = tau

    def decay(self, updates: int) -> float:
        """Share of the old average that is kept at an update (counted from 1)."""
        return self._limit * (1 - math.exp(-updates / self._tau))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in ``model`` (of the same keys) after an optimiser step."""
        self.updates += 1
        new = model.state_dict()
        floating = {k: v for k, v in self.model.state_dict().items() if v.is_floating_point()}
        torch._foreach_lerp_(
            list(floating.values()),
            [new[key].to(value.dtype) for key, value in floating.items()],
            1 - self.decay(self.updates),
        )

    def end_epoch(self, model: nn.Module, epoch: int, pictures: object) -> None:
        """Nothing: the average is fit to be judged after every update."""

    def state(self) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
        """The average and the number of updates, which the decay goes by."""
        return self.model.state_dict(), {"updates": self.updates}

    def load(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Take over what :meth:`state` gave."""
        self.model.load_state_dict(tensors)
        self.updates = int(facts["updates"])
