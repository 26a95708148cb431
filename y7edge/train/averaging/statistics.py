"""Estimate BatchNorm statistics for averaged weights.

This is "Precise BN" of "Rethinking 'Batch' in BatchNorm" (arXiv 2105.07576): the mean and variance
of every BatchNorm's input over many images. Each batch is normalized by its own statistics, as in
training. Statistics of batches are combined exactly, including the variance between batches.
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

ENOUGH = 4096  # images; the paper finds no gain from more


class Moments:
    """Mean and variance of each channel over all added feature maps, float64 (C,)."""

    def __init__(self, channels: int, device: torch.device) -> None:
        self.count = 0  # values per channel
        self.mean = torch.zeros(channels, dtype=torch.float64, device=device)
        self.spread = torch.zeros_like(self.mean)  # sum of squared distances from the mean

    def add(self, maps: Tensor) -> None:
        """Add feature maps (B, C, H, W)."""
        count = maps.numel() // maps.shape[1]
        variance, mean = torch.var_mean(maps.detach().float(), dim=(0, 2, 3), correction=0)
        # Chan, Golub and LeVeque's formula combines two samples without cancellation.
        whole = self.count + count
        away = mean.double() - self.mean
        self.mean += away * (count / whole)
        self.spread += variance.double() * count + away**2 * (self.count * count / whole)
        self.count = whole

    @property
    def variance(self) -> Tensor:
        """Unbiased variance, as in BatchNorm's running statistics."""
        return self.spread / max(self.count - 1, 1)


def normalizers(model: nn.Module) -> set[str]:
    """Return the module names of a model's BatchNorms, such as ``rows.0.bn``."""
    return {name for name, layer in model.named_modules() if isinstance(layer, nn.BatchNorm2d)}


@torch.no_grad()
def reestimate(
    model: Model, images: Iterable[Tensor], names: Collection[str] | None = None
) -> None:
    """Estimate the running statistics of a model's BatchNorms; change nothing else.

    ``images`` are batches (B, 3, H, W) from 0 to 1 on the model's device. ``names`` selects the
    BatchNorms; None selects all. The other BatchNorms keep and use their statistics.

    Raises:
        DataError: there are no images.
    """
    wanted = normalizers(model) if names is None else set(names)
    layers = {name: layer for name, layer in model.named_modules() if name in wanted}
    with _batch_statistics(model, layers.values()), _input_moments(layers) as found:
        for batch in images:
            model.raw(batch)
    for name, layer in layers.items():
        if name not in found:
            raise DataError("expected images for BatchNorm statistics, found none")
        layer.running_mean.copy_(found[name].mean)
        layer.running_var.copy_(found[name].variance)


@contextmanager
def _batch_statistics(model: nn.Module, layers: Iterable[Any]) -> Iterator[None]:
    """Let only ``layers`` normalize by batch statistics; don't update running statistics."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    for layer in (layers := list(layers)):
        layer.train()
        layer.track_running_stats = False  # also stops the counter
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def _input_moments(layers: dict[str, Any]) -> Iterator[dict[str, Moments]]:
    """Collect the moments of each layer's input within the context."""
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


def letterboxed_batches(train_set: TrainingSet, batch: int, workers: int = 0) -> Iterator[Tensor]:
    """Iterate over at most ``ENOUGH`` letterboxed images of a set, in batches.

    A batch is uint8 (B, 3, size, size). Images are shuffled, because neighbours in a data set are
    often similar. The order is always the same.
    """
    plain = train_set.without_augmentation()
    stream = batches(loader(plain, BatchPlan(len(plain), batch), workers=workers))
    for images, _ in islice(stream, -(-ENOUGH // batch)):
        yield images
