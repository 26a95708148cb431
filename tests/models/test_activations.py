"""Variants with another activation: names, errors, checkpoints."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from y7edge.cli import main
from y7edge.errors import CheckpointError, ConfigError
from y7edge.models import registry, weights
from y7edge.models.scaling import scale
from y7edge.models.spec import ACTS
from y7edge.nn.random_weights import random_weights

DEMO = Path(__file__).parents[1] / "reference" / "demo.safetensors"


@pytest.mark.parametrize(
    ("name", "act", "expected", "activation"),
    [
        ("yolov7-tiny", None, "yolov7-tiny", "leaky_relu"),
        ("yolov7-tiny", "leaky", "yolov7-tiny", "leaky_relu"),
        ("yolov7-tiny", "relu", "yolov7-tiny-relu", "relu"),
        ("yolov7-tiny", "silu", "yolov7-tiny-silu", "silu"),
        ("yolov7-tiny-silu", "leaky", "yolov7-tiny", "leaky_relu"),
        ("yolov7-tiny-silu", "hardswish", "yolov7-tiny-hardswish", "hardswish"),
        ("yolov7-tiny-relu", None, "yolov7-tiny-relu", "relu"),
        ("yolov7-tiny-relu", "silu", "yolov7-tiny-silu", "silu"),
        ("yolov7-silu", None, "yolov7", "silu"),
        ("yolov7-w6-leaky", None, "yolov7-w6-leaky", "leaky_relu"),
        ("yolov7-w6-leaky", "silu", "yolov7-w6", "silu"),
    ],
)
def test_names(name, act, expected, activation):
    spec = registry.get(name, nc=2, act=act)
    assert (spec.name, spec.activation, spec.nc) == (expected, activation, 2)
    usual = registry.get(registry.split(name)[0], nc=2)
    assert spec == replace(usual, name=expected, activation=activation)
    if registry.split(expected)[1] is not None:
        assert registry.get(expected, nc=2) == spec, "the name says which one it is"


def test_published_variants_keep_their_activation():
    assert {n for n in registry.names() if registry.get(n).activation == "leaky_relu"} == {
        "yolov7-tiny"
    }
    assert all(registry.split(name) == (name, None) for name in registry.names())


@pytest.mark.parametrize("name", ["yolov7-mish", "relu", "-relu", "yolov7-", "yolov7-leaky_relu"])
def test_unknown_names(name):
    assert registry.split(name) is None
    with pytest.raises(ConfigError, match="unknown model"):
        registry.get(name)


@pytest.mark.parametrize("act", ["mish", "leaky_relu", "ReLU", "\n"])
def test_unknown_activations(act):
    with pytest.raises(ConfigError, match="act must be one of relu, leaky, silu, hardswish, not"):
        registry.get("yolov7", act=act)


@pytest.mark.parametrize("act", ACTS)
def test_a_checkpoint_keeps_its_activation(act, tmp_path):
    spec = scale(registry.get("yolov7-tiny", nc=2, act=act), width=0.05)
    path = tmp_path / "model.safetensors"
    weights.save(random_weights(spec, seed=1), path)
    assert weights.load(path).spec == spec


def test_the_digest_covers_the_activation(tmp_path):
    checkpoint = weights.load(DEMO)
    other = replace(checkpoint, spec=registry.with_activation(checkpoint.spec, "relu"))
    assert checkpoint.spec.activation == "leaky_relu"
    assert other.spec.name.endswith("-relu")
    assert other.digest != checkpoint.digest
    path = tmp_path / "model.safetensors"
    weights.save(other, path)
    path.write_bytes(path.read_bytes().replace(b'activation\\":\\"relu', b'activation\\":\\"silu'))
    with pytest.raises(CheckpointError, match="was changed"):
        weights.load(path)
    path.write_bytes(path.read_bytes().replace(b'activation\\":\\"silu', b'activation\\":\\"mish'))
    with pytest.raises(CheckpointError, match="activation"):
        weights.load(path)


def test_info_names_the_activation(capsys):
    assert main(["info", "yolov7x-relu"]) == 0
    assert ["activation", "relu"] in [line.split() for line in capsys.readouterr().out.splitlines()]
    assert main(["info", str(DEMO), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["activation"] == "leaky_relu"
