"""Precisions in recorded outputs of TensorRT's engine inspector."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from y7edge.export.targets._trt_inspector import inspect

RECORDED = Path(__file__).parents[1] / "reference" / "tensorrt" / "inspector.json"
SAMPLES = json.loads(RECORDED.read_text())
ALL = ("fp32", "tf32", "fp16", "int8", "bf16", "fp8")


@pytest.mark.parametrize("sample", SAMPLES, ids=[s["source"][:40] for s in SAMPLES])
@pytest.mark.parametrize("wrap", [lambda layers: {"Layers": layers}, lambda layers: layers])
def test_recorded_layers(sample, wrap):
    text = json.dumps(wrap(sample["layers"]))
    for asked in ALL:
        found = inspect(text, {sample["node"]: asked})
        assert found.counts == {sample["precision"]: 1}
        if sample["precision"] in (asked, "unknown"):
            assert not found.wrong
            assert found.unknown == (sample["precision"] == "unknown")
        else:
            words = f"{sample['node']} is computed in {sample['precision']}, expected {asked}"
            assert found.wrong == (words,)


def layer(name, kind, **more):
    return {"Name": name, "LayerType": "CaskConvolution", "Weights": {"Type": kind}, **more}


def test_each_convolution_has_its_own_precision():
    asked = {"/row1/Conv": "int8", "/row11/Conv": "fp32", "/row1/cv1/Conv": "int8"}
    layers = [
        layer("/row11/Conv", "Float"),
        layer("/row1/Conv + /row1/cv1/Conv", "Int8"),
    ]
    found = inspect(json.dumps({"Layers": layers}), asked)
    assert (found.counts, found.wrong) == ({"fp32": 1, "int8": 2}, ())
    layers[0]["Weights"]["Type"] = "Int8"
    found = inspect(json.dumps({"Layers": layers}), asked)
    assert found.wrong == ("/row11/Conv is computed in int8, expected fp32",)
    layers = {"Layers": [layer("aa.Conv", "Float"), layer("a.Conv.b", "Half")]}
    found = inspect(json.dumps(layers), {"a.Conv": "int8", "aa.Conv": "fp32", "a.Conv.b": "fp16"})
    assert (found.counts, found.wrong) == ({"fp32": 1, "fp16": 1, "unknown": 1}, ())


def test_layers_with_other_names_are_compared_with_all_nodes():
    asked = {"a": "fp16", "b": "fp16"}
    good = inspect(json.dumps({"Layers": [layer("x", "Half"), layer("y", "Half")]}), asked)
    assert (good.counts, good.wrong) == ({"fp16": 2}, ())
    bad = inspect(json.dumps({"Layers": [layer("x", "Half"), layer("y", "Float")]}), asked)
    assert bad.wrong == ("y is computed in fp32, expected fp16",)


@pytest.mark.parametrize(
    "text",
    [
        *("", "nothing", "7", "null", '{"Layers": 5}', '{"Layers": [5, null, []]}'),
        '{"Layers": [{"LayerType": "conv", "Weights": 3, "Inputs": [3]}]}',
        '{"Layers": [{"LayerType": "conv", "Inputs": [{"Format/Datatype": "Half or Float"}]}]}',
        '{"Layers": [{"LayerType": "Convert", "Weights": {"Type": "Half"}}]}',
    ],
)
def test_other_texts_give_nothing(text):
    assert inspect(text, {"a": "fp16"}).counts == {"unknown": 1}
