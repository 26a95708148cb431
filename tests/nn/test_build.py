"""Modules of all variants: sizes, modes, initial biases, order of weights, random weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from y7edge.errors import ConfigError
from y7edge.models import registry, shapes
from y7edge.models.scaling import scale
from y7edge.models.spec import ACTS
from y7edge.nn import create, from_checkpoint, to_checkpoint
from y7edge.nn.blocks import is_activation
from y7edge.nn.build import Model
from y7edge.nn.random_weights import random_checkpoint, random_weights


@pytest.mark.parametrize("form", ["training", "deploy", "folded"])
@pytest.mark.parametrize("name", registry.names())
def test_state_dict_follows_the_rows(name, form):
    spec = scale(registry.get(name, nc=3), width=0.125)
    spec = {"training": spec, "deploy": registry.deploy(spec), "folded": registry.folded(spec)}[
        form
    ]
    model = Model(spec)
    found = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert list(found.items()) == list(shapes.weight_shapes(spec).items())
    assert sum(p.numel() for p in model.parameters()) == shapes.parameters(spec)


@pytest.mark.parametrize("name", registry.names())
def test_modes_and_layout(name):
    model = Model(scale(registry.get(name, nc=2), width=0.125))
    stride = model.spec.max_stride
    images = torch.rand(1, 3, stride, 2 * stride)
    with torch.inference_mode():
        model.train()
        training = model(images)
        model.eval()
        lead, both = model(images), model.raw(images)
    assert len(training) == len(both) == len(model.spec.head.inputs)
    assert len(lead) == model.spec.levels
    for output, step in zip(both, model.spec.strides * 2, strict=False):
        assert tuple(output.shape) == (1, 3, stride // step, 2 * stride // step, 7)
    assert all(torch.equal(a, b) for a, b in zip(lead, both, strict=False))
    cells = sum(3 * 2 * (stride // step) ** 2 for step in model.spec.strides)
    assert tuple(model.decode(lead).shape) == (1, cells, 7)


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        ("relu", lambda x: np.maximum(x, 0)),
        ("leaky", lambda x: np.where(x < 0, 0.1 * x, x)),
        ("silu", lambda x: x / (1 + np.exp(-x))),
        ("hardswish", lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),
    ],
)
def test_every_convolution_but_the_heads_has_the_chosen_activation(act, expected):
    model = create("yolov7", nc=2, act=act)
    assert model.spec.activation == ACTS[act]
    found = [module for module in model.modules() if is_activation(module)]
    kernels = sum(key.endswith("conv.weight") for key in model.state_dict())
    branches = sum(row.block == "repconv" for row in model.spec.rows)
    assert len(found) == kernels - branches
    x = np.linspace(-8, 8, 33)
    for module in found:
        made = module(torch.from_numpy(x.copy())).numpy()
        np.testing.assert_allclose(made, expected(x), atol=1e-7)


@pytest.mark.parametrize(("name", "nc"), [("yolov7-tiny", 80), ("yolov7-w6", 1)])
def test_biases_start_at_the_published_priors(name, nc):
    torch.manual_seed(0)
    head = create(name, nc=nc).head
    for conv, stride in zip([*head.lead, *head.aux], head.strides * 2, strict=False):
        bias = conv.bias.detach().view(3, 5 + nc)
        bound = 1 / math.sqrt(conv.in_channels)  # of the uniform start that the prior is added to
        assert (bias[:, :4].abs() <= bound).all()
        assert (bias[:, 4] - math.log(8 / (640 / stride) ** 2)).abs().max() <= bound
        assert (bias[:, 5:] - math.log(0.6 / (nc - 0.99))).abs().max() <= bound


def test_batch_norm_has_the_published_constants():
    norms = [m for m in create("yolov7", nc=1).modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.03)}


def test_custom_anchors_reach_head_and_checkpoint():
    anchors = [
        [[3, 4], [5, 6], [7, 8]],
        [[9, 10], [11, 12], [13, 14]],
        [[15, 16], [17, 18], [19, 20]],
    ]
    model = create("yolov7-tiny", nc=1, anchors=anchors)
    assert torch.equal(model.head.anchors[1] * 16, torch.tensor(anchors[1], dtype=torch.float32))
    assert np.allclose(to_checkpoint(model).spec.anchors, anchors)
    with pytest.raises(ConfigError, match="pairs in pixels"):
        create("yolov7-tiny", anchors=[[1, 2, 3]])


def test_checkpoint_round_trip_keeps_outputs():
    model = Model(scale(registry.get("yolov7-e6e", nc=2), width=0.125)).eval()
    again = from_checkpoint(to_checkpoint(model, ["a", "b"]))
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        for first, second in zip(model.raw(images), again.raw(images), strict=True):
            assert torch.equal(first, second)


def test_intermediate_maps_are_freed():
    """A map is freed after its last use, or memory would be the sum of all maps."""
    model = Model(scale(registry.get("yolov7", nc=1), width=0.125))
    dropped = [i for _, finished in model._schedules[False] for i in finished]
    assert len(dropped) == len(set(dropped))
    assert set(dropped) == {-1, *range(105)} - set(model.spec.lead_inputs)


class TestRandomWeights:
    def test_are_a_function_of_the_seed(self):
        first, second = (
            random_checkpoint("yolov7-tiny", nc=2),
            random_checkpoint("yolov7-tiny", nc=2),
        )
        assert first.digest == second.digest
        assert random_checkpoint("yolov7-tiny", nc=2, seed=1).digest != first.digest

    @pytest.mark.parametrize(
        ("name", "nc"),
        [("yolov7-tiny", 80), ("yolov7-tiny", 3), ("yolov7", 80), ("yolov7-w6", 80)],
    )
    def test_scores_spread(self, name, nc):
        """The 100 best scores spread by more than 0.2, which proofs of exports need."""
        from y7edge.data.synthetic.scenes import scene

        model = from_checkpoint(random_weights(scale(registry.get(name, nc=nc), width=0.5)))
        scenes = np.stack([scene(seed, size=(256, 256)).image[..., ::-1] for seed in range(8)])
        with torch.inference_mode():
            images = torch.from_numpy(scenes.transpose(0, 3, 1, 2) / np.float32(255))
            decoded = model.decode(model(images))
        best = (decoded[..., 4] * decoded[..., 5:].amax(-1)).flatten().topk(100).values
        assert best[0] - best[-1] > 0.2


@pytest.mark.parametrize("size", [(100, 128), (128, 100)])
def test_size_not_divisible_by_the_stride_is_refused(size):
    # At 100 the model would run, but its grid would be that of 96 pixels.
    model = Model(scale(registry.get("yolov7-tiny", nc=1), width=0.125)).eval()
    with pytest.raises(ConfigError, match="expected multiples of 32 "):
        model(torch.zeros(1, 3, *size))
