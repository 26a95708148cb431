"""Statistics of BatchNorm for averaged weights, which no training ever had.

Mean and variance of every BatchNorm's input over many images: "precise BN" of "Rethinking 'Batch'
in BatchNorm" (arXiv 2105.07576). Each batch is normalised by its own statistics, as in training;
these are pooled exactly, the spread between batches included.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from y7edge.errors import DataError
from y7edge.nn.build import Model
from y7edge.train.loading.dataset import TrainingSet, loader
from y7edge.train.loading.sampling import BatchPlan
from y7edge.train.loading.workers import batches

# Images that are enough: the paper above finds no gain beyond some thousand.
ENOUGH = 4096


class Moments:
    """Mean and variance of each channel over any number of maps, in float64.

    Attributes:
        count: values seen in each channel.
        mean: float64 (C,).
        spread: float64 (C,), sum of squared distances from the mean.
    """

    def __init__(self, channels: int, device: torch.device) -> None:
        self.count = 0
        self.mean = torch.zeros(channels, dtype=torch.float64, device=device)
        self.spread = torch.zeros_like(self.mean)

    def add(self, maps: Tensor) -> None:
        """Take in maps (B, C, H, W)."""
        count = maps.numel() // maps.shape[1]
        variance, mean = torch.var_mean(maps.detach().float(), dim=(0, 2, 3), correction=0)
        # Chan, Golub and LeVeque: two samples put together without a difference of large squares.
        whole = self.count + count
        away = mean.double() - self.mean
        self.mean += away * (count / whole)
        self.spread += variance.double() * count + away**2 * (self.count * count / whole)
        self.count = whole

    @property
    def variance(self) -> Tensor:
        """float64 (C,), unbiased, as BatchNorm keeps it."""
        return self.spread / max(self.count - 1, 1)


def normalizers(model: nn.Module) -> set[str]:
    """Names of the BatchNorms in a model."""
    return {name for name, layer in model.named_modules() if isinstance(layer, nn.BatchNorm2d)}


@torch.no_grad()
def reestimate(
    model: Model, pictures: Iterable[Tensor], names: Collection[str] | None = None
) -> None:
    """Replace the running statistics of a model's BatchNorms; nothing else of it changes.

    Args:
        model: in ``eval()`` or not, which it keeps.
        pictures: batches (B, 3, H, W) on the model's device, 0 to 1; the same ones in the same
            order give the same statistics.
        names: of the BatchNorms (``rows.0.bn``); the others keep theirs, and normalise by them.
            None: all.

    Raises:
        DataError: no pictures.
    """
    wanted = normalizers(model) if names is None else set(names)
    layers = {name: layer for name, layer in model.named_modules() if name in wanted}
    with _normalising_by_batch(model, layers.values()), _watching(layers) as found:
        for images in pictures:
            model.raw(images)
    for name, layer in layers.items():
        if name not in found:
            raise DataError("expected pictures to estimate statistics of BatchNorm on, found none")
        layer.running_mean.copy_(found[name].mean)
        layer.running_var.copy_(found[name].variance)


@contextmanager
def _normalising_by_batch(model: nn.Module, layers: Iterable[Any]) -> Iterator[None]:
    """Layers in training mode, the rest of the model not; their momentum moves nothing."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    for layer in (layers := list(layers)):
        layer.train()
        layer.track_running_stats = False  # nor are batches counted
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def _watching(layers: dict[str, Any]) -> Iterator[dict[str, Moments]]:
    """Moments of what comes into each layer."""
    found: dict[str, Moments] = {}

    def watch(name: str) -> Any:
        def take(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            (maps,) = inputs
            if name not in found:
                found[name] = Moments(maps.shape[1], maps.device)
            found[name].add(maps)

        return take

    handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def whole_pictures(shown: TrainingSet, batch: int, workers: int = 0) -> Iterator[Tensor]:
    """Images of a set as they are evaluated: whole, letterboxed, unchanged; uint8 (B, 3, S, S).

    They are shuffled, the same way each time, since neighbours in a data set are often alike; of
    more than ``ENOUGH`` the first are taken.

    Args:
        shown: the training images; their cache is shared.
        batch: images in a forward pass.
        workers: processes that load, for this pass only.
    """
    plain = shown.unchanged()
    stream = batches(loader(plain, BatchPlan(len(plain), batch), workers=workers))
    for images, _ in islice(stream, -(-ENOUGH // batch)):
        yield images
