"""The module for converters equals the model, without operations that NPUs lack."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from y7edge.artifact.description import describe
from y7edge.errors import ConfigError
from y7edge.export.folding import fold_checkpoint
from y7edge.export.proof.agreement import decode
from y7edge.models import registry
from y7edge.models.scaling import scale
from y7edge.nn import from_checkpoint
from y7edge.nn.nhwc import ChannelsLast
from y7edge.nn.random_weights import random_weights

CASES = [
    *(("yolov7-tiny", 3), ("yolov7-tiny", 1), ("yolov7-w6", 2)),
    *(("yolov7-tiny-relu", 2), ("yolov7-tiny-hardswish", 2)),
]


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """(folded model, its manifest, images): NHWC and not square."""
    name, nc = request.param
    spec = scale(registry.get(name, nc=nc), width=0.05)
    checkpoint = fold_checkpoint(random_weights(spec, seed=1))
    size = (spec.max_stride, 2 * spec.max_stride)
    manifest = describe(checkpoint, checkpoint.spec, size, batch=2, outputs="decoded", tools={})
    images = torch.rand(2, *size, 3, generator=torch.Generator().manual_seed(0))
    return from_checkpoint(checkpoint), manifest, images


def test_heads(case):
    model, manifest, images = case
    module = ChannelsLast(model, "heads", tuple(images.shape[1:3]))
    with torch.no_grad():
        found, expected = module(images=images), model(images.permute(0, 3, 1, 2))
    assert list(found) == [f"head{level}" for level in range(len(manifest.levels))]
    for head, raw in zip(found.values(), expected, strict=True):
        batch, _, rows, columns, _ = raw.shape
        planes = raw.permute(0, 2, 3, 1, 4).reshape(batch, rows, columns, -1)
        torch.testing.assert_close(head, planes, rtol=1e-5, atol=1e-5)
    assert not any(isinstance(m, nn.LeakyReLU) for m in module.modules())
    if model.spec.activation == "leaky_relu":
        assert any(isinstance(m, nn.LeakyReLU) for m in model.modules()), "the model is a copy"
        largest = [
            max(m.kernel_size for m in some.modules() if isinstance(m, nn.MaxPool2d))
            for some in (model, module)
        ]
        assert largest == [13, 5]  # MediaTek's accelerators take up to 8


def test_decoded(case):
    model, manifest, images = case
    module = ChannelsLast(model, "decoded", tuple(images.shape[1:3]))
    with torch.no_grad():
        found = module(images=images)
        heads = [head.numpy() for head in model.heads(images.permute(0, 3, 1, 2))]
    assert list(found) == ["boxes", "scores"]
    for index in range(2):
        one = [head[index : index + 1] for head in heads]
        wanted = decode(one, manifest.levels, manifest.nc)
        np.testing.assert_allclose(
            found["boxes"][index].numpy(), wanted.boxes, rtol=1e-4, atol=1e-3
        )
        np.testing.assert_allclose(found["scores"][index].numpy(), wanted.scores, atol=1e-5)
    assert found["scores"].shape[2] == manifest.nc


def test_models_that_are_not_folded_are_refused():
    model = from_checkpoint(random_weights(scale(registry.get("yolov7-tiny"), width=0.05)))
    with pytest.raises(ConfigError, match="training form"):
        ChannelsLast(model, "heads", (64, 64))
