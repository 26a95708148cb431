"""Create seeded random weights with outputs like those of trained weights, for trying commands.

With plain random initialisation, all scores are nearly equal. Therefore BatchNorm statistics are
calibrated on synthetic images, so that activations have unit variance. Then the heads are scaled,
so that scores spread over 0 to 1.
"""

from __future__ import annotations

import zlib
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor, nn

from y7edge.data.synthetic.scenes import scene
from y7edge.models import registry
from y7edge.models.checkpoint import Checkpoint
from y7edge.models.shapes import weight_shapes
from y7edge.models.spec import Spec
from y7edge.nn.build import Model, to_checkpoint

# Standard deviations of the raw outputs. Trained objectness is low in nearly all cells, and varies
# widely in the others; a large deviation around a low mean imitates this.
BOX, OBJECTNESS, CLASSES = 0.8, 5.0, 2.0
IMAGES = 4


def random_checkpoint(name: str, nc: int = 80, seed: int = 0) -> Checkpoint:
    """Return a published variant with seeded random weights.

    Raises:
        ConfigError: the name is unknown.
    """
    return random_weights(registry.get(name, nc=nc), seed)


def random_weights(spec: Spec, seed: int = 0) -> Checkpoint:
    """Return seeded random weights for a spec with BatchNorm, in training or deploy form."""
    model = Model(spec, allow_identity=True)
    fixed = {key: value for key, value in model.state_dict().items() if key.endswith(".anchors")}
    values = {
        key: torch.from_numpy(_draw(key, shape, seed))
        for key, shape in weight_shapes(spec).items()
        if key not in fixed
    }
    model.load_state_dict({**values, **fixed})
    _calibrate(model, seed)
    return to_checkpoint(
        model.eval(),
        meta={
            "imgsz": [spec.imgsz, spec.imgsz],
            "provenance": f"random weights, seed {seed}: for trying things, not trained",
        },
    )


def _generator(key: str, seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64([zlib.crc32(key.encode()), seed]))


def _draw(key: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Draw a tensor, seeded by its key, so that layers common to two variants get equal weights."""
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    noise = _generator(key, seed).standard_normal(shape, dtype=np.float32)
    entry, norm = key.rsplit(".", 1)[-1], ".bn." in key or ".identity." in key
    if norm and entry == "bias":
        return noise * np.float32(0.5)
    if norm:
        # With small gains, activations stay where SiLU is nearly linear. With gains of 1, the
        # activations of images with another contrast would shrink or grow in every layer.
        gain, spread = (0.2, 0.02) if entry == "weight" else (1.0, 0.1)
        return noise * np.float32(spread) + np.float32(gain)
    if ".add." in key or ".mul." in key:
        return noise * np.float32(0.1) + np.float32(".mul." in key)
    if entry == "bias":
        return noise * np.float32(0.3)
    fan_in = max(1, int(np.prod(shape[1:])))
    return noise / np.float32(np.sqrt(fan_in))


@torch.no_grad()
def _calibrate(model: Model, seed: int) -> None:
    """Set BatchNorm statistics to those of synthetic images, then scale the heads."""
    model.eval()
    hooks = [
        module.register_forward_pre_hook(_take_statistics)
        for module in model.modules()
        if isinstance(module, nn.BatchNorm2d)
    ]
    side = 4 * model.spec.max_stride
    model.raw(torch.cat((_scenes(side), _noise(side, seed))))
    for hook in hooks:
        hook.remove()
    raws = model.raw(_scenes(side))
    for conv, raw in zip([*model.head.lead, *model.head.aux], raws, strict=True):
        assert isinstance(conv, nn.Conv2d) and conv.bias is not None
        deviation, mean = torch.std_mean(raw, dim=(0, 2, 3))  # (anchors, 5 + nc)
        target = torch.full_like(mean, BOX)
        middle = torch.zeros_like(mean)
        target[:, 4], target[:, 5:] = OBJECTNESS, CLASSES
        # The best cell of these scenes gets a logit of -1: cells of other images can be better.
        middle[:, 4] = -1 - OBJECTNESS * ((raw.amax((0, 2, 3)) - mean) / deviation)[:, 4]
        # The best class gets a logit of about 0: the mean is minus the median of the maximum of nc
        # normal values.
        middle[:, 5:] = -CLASSES * NormalDist().inv_cdf(0.5 ** (1 / model.spec.nc))
        gain = (target / deviation).flatten()
        conv.weight.mul_(gain[:, None, None, None])
        conv.bias.mul_(gain).add_((middle - target / deviation * mean).flatten())


def _take_statistics(norm: nn.Module, inputs: tuple[Tensor]) -> None:
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None
    assert norm.running_var is not None
    variance, mean = torch.var_mean(inputs[0], dim=(0, 2, 3))
    norm.running_mean.copy_(mean)
    # One variance per layer: otherwise, channels that are constant on these images could get huge
    # values on other images. Random factors of about 1 keep the channels different.
    norm.running_var.abs_().clamp_(min=0.5).mul_(variance.mean())


def _scenes(side: int) -> Tensor:
    """Return synthetic scenes (4, 3, side, side), float32 RGB in 0..1."""
    images = [scene(index, size=(side, side)).image[..., ::-1] for index in range(IMAGES)]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


def _noise(side: int, seed: int) -> Tensor:
    """Return noise of several frequencies (4, 3, side, side), float32 in 0..1."""
    noise = _generator("pictures", seed).random((IMAGES, 3, side, side), dtype=np.float32)
    images = torch.from_numpy(noise)
    for index in range(1, IMAGES):
        cells = nn.functional.avg_pool2d(images[index], 4**index // 2)
        size = (side, side)
        blobs = nn.functional.interpolate(cells[None], size=size, mode="bilinear")[0]
        images[index] = (blobs - blobs.min()) / (blobs.max() - blobs.min())
    return images
