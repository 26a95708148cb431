"""The Quantizer: one calibration, many graphs."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper

from y7edge.artifact.manifest import InputInfo
from y7edge.data.synthetic import scenes
from y7edge.detect.preprocess import Preprocessor
from y7edge.export.folding import fold_checkpoint
from y7edge.export.graph.build import build_graph
from y7edge.export.graph.quantize_ranges import opened
from y7edge.export.quantization import Quantizer
from y7edge.models import weights

DEMO = Path(__file__).parents[1] / "reference" / "demo.safetensors"
HEADS = ("head0", "head1", "head2")


@pytest.fixture(scope="module")
def graph():
    return build_graph(fold_checkpoint(weights.load(DEMO)), height=160, width=160)


@pytest.fixture(scope="module")
def images():
    preprocess = Preprocessor(InputInfo("images", 1, 160, 160))
    found = []
    for seed in range(12):
        preprocess(scenes.scene(seed).image)
        found.append(preprocess.tensor.copy())
    return found


@pytest.fixture(scope="module")
def wide(graph, images):
    return Quantizer(graph, images[:8], "u16s8")


def outputs_of(model, images, tmp_path):
    run = opened(model, HEADS, tmp_path)
    return [run({"images": image}) for image in images]


def error(found, expected):
    return np.mean(
        [np.abs(a[n] - b[n]).mean() for a, b in zip(found, expected, strict=True) for n in HEADS]
    )


def biases(model):
    return {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if ".bias" in tensor.name
    }


def test_corrected_biases_halve_the_error_of_rounded_weights(graph, images, wide, tmp_path):
    """With 16-bit activations, nearly all of the error comes from the 8-bit weights."""
    others = images[8:]  # not those of the calibration
    expected = outputs_of(graph, others, tmp_path)
    found = error(outputs_of(wide.quantized(), others, tmp_path), expected)
    plain = copy.copy(wide)
    plain.means = {}
    without = error(outputs_of(plain.quantized(), others, tmp_path), expected)
    assert found < 0.65 * without


def test_layers_in_float_keep_weight_and_bias(graph, wide):
    made = wide.quantized([layer.name for layer in wide.layers[:5]])
    kept = {
        node.input[2] for node in graph.graph.node if node.name in {x.name for x in wide.layers[:5]}
    }
    before, after = biases(graph), biases(made)
    for name in kept:
        assert np.array_equal(before[name], after[name])
    assert not set(before) - kept & set(after)  # all others are integers


def test_the_float_graph_is_not_changed(graph, wide):
    before = graph.SerializeToString(deterministic=True)
    wide.quantized()
    assert wide.model.SerializeToString(deterministic=True) == before


def test_one_calibration_gives_the_same_graph_again(wide):
    first = wide.quantized().SerializeToString(deterministic=True)
    wide.quantized([])
    assert wide.quantized().SerializeToString(deterministic=True) == first
    assert wide.images == 8
