"""onnx-simplifier: its graph is used only if results and interface are equal."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import numpy as np
import onnx
import onnxsim
import pytest
from onnx import TensorProto, helper, numpy_helper

from y7edge.export.graph import simplify as simplifier
from y7edge.export.graph.simplify import simplify


@pytest.fixture
def model():
    """y = sigmoid(conv(x)) with a dynamic batch, and an Identity that can go."""
    weight = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="/row0/Conv", pads=[1] * 4),
        helper.make_node("Identity", ["c"], ["i"], name="/row0/Identity"),
        helper.make_node("Sigmoid", ["i"], ["y"], name="/row0/Sigmoid"),
    ]
    shape = ["batch", 3, 8, 12]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4, 8, 12])],
        [numpy_helper.from_array(weight, "w")],
    )
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, ir_version=8, opset_imports=opset, producer_name="y7edge")


def test_telemetry_is_off(model, tmp_path):
    # The telemetry of ONNX Runtime leaves a file in the temporary folder; in tests it is off.
    silencers = ("ORT_DISABLE_TELEMETRY", "CI", "PYTEST_CURRENT_TEST", "PYTEST_VERSION")
    environment = {k: v for k, v in os.environ.items() if k not in silencers}
    path, temporary = tmp_path / "m.onnx", tmp_path / "temporary"
    onnx.save(model, path)
    temporary.mkdir()
    script = "import onnx; from y7edge.export.graph.simplify import simplify\n"
    script += f"assert simplify(onnx.load({str(path)!r}))[1].startswith('simplified: ')"
    environment["TMPDIR"] = str(temporary)
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)
    assert list(temporary.iterdir()) == []


def test_equal_graph_is_kept(model):
    before = model.SerializeToString(deterministic=True)
    simplified, note = simplify(model)
    assert [node.op_type for node in simplified.graph.node] == ["Conv", "Sigmoid"]
    assert note == "simplified: 3 nodes to 2, results equal to the bit"
    assert model.SerializeToString(deterministic=True) == before


def test_additions_are_removed_and_bytes_repeat(model):
    first, second = simplify(model)[0], simplify(model)[0]
    assert first.SerializeToString(deterministic=True) == second.SerializeToString()
    assert not first.metadata_props
    assert not first.graph.value_info
    assert first.producer_name == "y7edge"
    assert (first.ir_version, first.opset_import[0].version) == (8, 17)


def test_unchanged_graph_returns_the_model(model):
    tight, _ = simplify(model)
    again, note = simplify(tight)
    assert again is tight
    assert note == "simplified: nothing to remove"


def test_bytes_are_compared_on_all_values(model, monkeypatch):
    """The values for the comparison of a graph with a uint8 input are not all zeros."""
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    model.graph.node.insert(0, helper.make_node("Cast", ["x"], ["f"], name="/images/Cast", to=1))
    model.graph.node[1].input[0] = "f"
    (fed,) = simplifier._feeds(model).values()
    assert fed.dtype == np.uint8
    assert len(np.unique(fed)) > 200
    assert simplify(model)[1].endswith("results equal to the bit")

    def damaging(original, **_):
        changed = copy.deepcopy(original)
        _scaled(changed)
        return changed, True

    monkeypatch.setattr(onnxsim, "simplify", damaging)
    assert "changed the results of y" in simplify(model)[1]


def _scaled(model):
    weight = numpy_helper.to_array(model.graph.initializer[0]) * np.float32(1.000001)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))


def _renamed(model):
    model.graph.node[-1].output[0] = "z"
    model.graph.output[0].name = "z"


def _reshaped(model):
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def _newer(model):
    model.ir_version = 9
    model.graph.node[0].name = "renamed"


def _invalid(model):
    model.graph.node[0].op_type = "NoSuchOperator"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_scaled, "changed the results of y"),
        (_renamed, "changed the outputs"),
        (_reshaped, "changed the inputs"),
        (_newer, "changed the opset or the IR version"),
        (_invalid, "onnx-simplifier failed"),
    ],
)
def test_changed_results_keep_the_original(model, monkeypatch, damage, reason):
    def damaging(original, **_):
        changed = copy.deepcopy(original)
        damage(changed)
        return changed, True

    monkeypatch.setattr(onnxsim, "simplify", damaging)
    kept, note = simplify(model)
    assert kept is model
    assert note.startswith("not simplified: ")
    assert reason in note


def test_a_crash_keeps_the_original(model, monkeypatch):
    def crash(_, **__):
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(onnxsim, "simplify", crash)
    kept, note = simplify(model)
    assert kept is model
    assert note == "not simplified: onnx-simplifier failed (first line second line)"
    onnx.checker.check_model(kept)


def test_without_engine_the_graph_is_not_simplified(model, monkeypatch):
    monkeypatch.setattr(simplifier, "missing", lambda needs: list(needs))
    kept, note = simplify(model)
    assert kept is model
    assert note.startswith("not simplified: ONNX Runtime")
