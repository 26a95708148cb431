"""Conversion of reference outputs to layouts and activations of a target."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.fake_model import make_manifest
from y7edge.artifact.manifest import in_layout
from y7edge.detect.selftest import as_input
from y7edge.errors import ArtifactError
from y7edge.export.proof.agreement import decode
from y7edge.export.proof.probes import decode_outputs, outputs_of
from y7edge.export.proof.reference import Answer


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("activation", ["logit", "sigmoid"])
def test_reference_is_converted_to_the_outputs(layout, activation):
    plain = make_manifest()
    outputs = tuple(
        replace(o, shape=in_layout(o.shape, layout), layout=layout, activation=activation)
        for o in plain.outputs
    )
    manifest = replace(plain, outputs=outputs)
    rng = np.random.default_rng(0)
    heads = tuple(rng.normal(0, 3, o.shape).astype(np.float32) for o in plain.outputs)
    found = outputs_of(Answer(heads, 1.0, ""), manifest)
    for output, head in zip(outputs, heads, strict=True):
        expected = 1 / (1 + np.exp(-head)) if activation == "sigmoid" else head
        if layout == "NHWC":
            expected = np.moveaxis(expected, 1, 3)
        assert found[output.name].shape == output.shape
        np.testing.assert_allclose(found[output.name], expected, rtol=1e-6)
    decoded, expected = decode_outputs(found, manifest), decode(heads, plain.levels, plain.nc)
    np.testing.assert_allclose(decoded.boxes, expected.boxes, rtol=1e-5)
    np.testing.assert_allclose(decoded.scores, expected.scores, rtol=1e-5)


def test_pixels_are_converted_to_the_input():
    image = make_manifest().input
    pixels = np.random.default_rng(0).random((2, 3, 64, 96), np.float32)
    np.testing.assert_array_equal(as_input(pixels, image), pixels)
    fed = as_input(pixels, replace(image, layout="NHWC", dtype="float16"))
    assert (fed.shape, fed.dtype, fed.flags.c_contiguous) == ((2, 64, 96, 3), np.float16, True)
    np.testing.assert_array_equal(np.moveaxis(fed, 3, 1), pixels.astype(np.float16))
    for changes in (
        {"dtype": "int8"},
        {"dtype": "int8", "scale": 1.0},
        {"dtype": "uint8"},
        {"scale": 1.0},
        {"zero_point": 1},
    ):
        with pytest.raises(ArtifactError, match=r"the input is \w+ with scale .*expected float32"):
            as_input(pixels, replace(image, **changes))


@pytest.mark.parametrize(("dtype", "zero"), [("uint8", 0), ("int8", -128)])
def test_pixels_for_an_8_bit_input_are_exact_or_refused(dtype, zero):
    image = make_manifest().input
    image = replace(image, layout="NHWC", dtype=dtype, scale=1.0, zero_point=zero)
    grey = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), np.uint8)
    grey.reshape(-1)[:256] = np.arange(256)
    pixels = np.ascontiguousarray(grey.transpose(0, 3, 1, 2), np.float32) / np.float32(255)
    fed = as_input(pixels, image)
    assert (fed.dtype, fed.flags.c_contiguous) == (dtype, True)
    np.testing.assert_array_equal(fed.astype(int) - zero, grey)
    for wrong in (np.float32(0.5), np.float32(1.1), np.float32(-1 / 255), np.float32(np.nan)):
        changed = pixels.copy()
        changed[1, 2, 3, 4] = wrong
        with pytest.raises(ArtifactError, match="not a multiple of 1/255"):
            as_input(changed, image)
