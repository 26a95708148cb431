"""Outputs of seven variants against the published implementation's, same weights and inputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from y7edge.models.published import official
from y7edge.nn import create

VARIANTS = [
    "yolov7-tiny", "yolov7-tiny-silu", "yolov7", "yolov7x", "yolov7-w6", "yolov7-e6", "yolov7-d6",
]  # fmt: skip


def model_of(golden, name, description, overrides=None):
    model = create(name)
    published = golden.state_dict(description, overrides)
    ours = official.convert({k: torch.from_numpy(v) for k, v in published.items()}, name)
    model.load_state_dict(ours, strict=True)
    return model.eval()


def limit(name, probe=False):
    """Absolute tolerance of raw values: a structural error shows as 0.1 or more."""
    base = 2e-3 if name == "yolov7-d6" else 5e-4
    return base * (2.5 if probe and name == "yolov7-d6" else 2 if probe else 1)


@pytest.mark.parametrize("name", VARIANTS)
def test_outputs(golden, name):
    description, expected = golden.description(name), golden.outputs(name)
    model = model_of(golden, name, description)
    image = golden.image(description["input_key"], description["input_shape"])
    with torch.inference_mode():
        raw = model.raw(torch.from_numpy(image))
        decoded = model.decode(model(torch.from_numpy(image))).numpy()
    keys = [f"raw{i}" for i in range(model.spec.levels)]
    keys += [f"aux{i}" for i in range(len(raw) - len(keys))]
    assert set(keys) | {"decoded"} == set(expected.files)
    for key, output in zip(keys, raw, strict=True):
        np.testing.assert_allclose(output.numpy(), expected[key], rtol=0, atol=limit(name))
    boxes, scores = expected["decoded"][..., :4], expected["decoded"][..., 4:]
    np.testing.assert_allclose(decoded[..., :4], boxes, rtol=1e-3, atol=0.02)
    np.testing.assert_allclose(decoded[..., 4:], scores, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", VARIANTS)
def test_wide_image(golden, name):
    """At 128 px the deepest maps are 2x2: pool sizes and swapped axes would go unnoticed."""
    description = golden.description(name)
    probe = description["nonsquare_probe"]
    model = model_of(golden, name, description, probe["recipe_overrides"])
    image = golden.image(probe["input_key"], probe["input_shape"])
    with torch.inference_mode():
        raw = model.raw(torch.from_numpy(image))
        decoded = model.decode(raw).numpy()
    for output, expected in zip(raw, probe["raw"] + probe["aux"], strict=True):
        assert list(output.shape) == expected["shape"]
        found = output.numpy().reshape(-1)[expected["idx"]]
        np.testing.assert_allclose(found, expected["val"], rtol=0, atol=limit(name, probe=True))
    found = decoded.reshape(-1)[probe["decoded"]["idx"]]
    np.testing.assert_allclose(found, probe["decoded"]["val"], rtol=1e-3, atol=0.02)


@pytest.mark.parametrize("name", ["yolov7-tiny", "yolov7-w6"])
def test_golden_weights_can_be_regenerated(golden, name):
    """The recipes reproduce the stored first values; all other tests depend on this."""
    description = golden.description(name)
    published = golden.state_dict(description)
    for key, values in description["first4_values"].items():
        np.testing.assert_array_equal(published[key].reshape(-1)[:4], np.float32(values))
