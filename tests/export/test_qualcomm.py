"""Target qualcomm: the ranges as quantisation overrides, and the script that calls the SDK."""

from __future__ import annotations

import json
import os
import subprocess

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.export import handovers
from y7edge.errors import ConfigError
from y7edge.export.graph.quantize_check import parse
from y7edge.export.targets import qualcomm

TOOLS = ("qairt-converter", "qairt-quantizer", "qnn-context-binary-generator")
PROGRAM = """#!/bin/sh
printf '%s\\n' "$(basename "$0") $*" >> "$CALLS"
[ -z "${FAIL:-}" ] || [ "$(basename "$0")" != "$FAIL" ]
"""
DTYPES = {8: np.uint8, 16: np.uint16}


@pytest.fixture(scope="module")
def calibration(tmp_path_factory):
    return handovers.make_images(tmp_path_factory.mktemp("images") / "images")


@pytest.fixture(scope="module", params=["u16s8", "u8s8"])
def quantised(request, narrow_tiny, calibration, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "m"
    options = {"soc": "sm8550"}
    return handovers.build(
        "qualcomm", narrow_tiny, folder, calibration, profile=request.param, options=options
    )


def convert(folder, tmp_path, **variables):
    programs, calls = tmp_path / "bin", tmp_path / "calls"
    programs.mkdir()
    for name in TOOLS:
        (programs / name).write_text(PROGRAM)
        (programs / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "CALLS": str(calls),
        "QNN_SDK_ROOT": "/sdk",
        **variables,
    }
    done = subprocess.run(
        ["sh", str(folder / "convert.sh")],
        env={key: value for key, value in environment.items() if value},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    return done, calls.read_text().splitlines() if calls.exists() else []


def entries(overrides):
    return {**overrides["activation_encodings"], **overrides["param_encodings"]}


def quantise_as_the_sdk(model, overrides):
    """Return a QDQ graph of a float graph with overrides: real = (integer + offset) x scale."""
    graph, arrays = model.graph, {t.name: t for t in model.graph.initializer}
    for name, found in overrides["param_encodings"].items():
        if found[0]["dtype"] == "float":
            continue
        values = numpy_helper.to_array(arrays[name]).astype(np.float64)
        shape = (-1, *[1] * (values.ndim - 1))
        scale = np.array([entry["scale"] for entry in found]).reshape(shape)
        offset = np.array([entry["offset"] for entry in found]).reshape(shape)
        integers = np.clip(np.round(values / scale) - offset, 0, 255)
        rounded = ((integers + offset) * scale).astype(np.float32)
        np.testing.assert_allclose(rounded, values, rtol=1e-5, atol=1e-9)  # nothing is lost
        arrays[name].CopyFrom(numpy_helper.from_array(rounded, name))
    pairs, outputs = {}, {value.name for value in graph.output}
    for name, (entry,) in overrides["activation_encodings"].items():
        if entry["dtype"] == "float":
            continue
        dtype = DTYPES[entry["bitwidth"]]
        for key, value in (
            ("scale", np.float32(entry["scale"])),
            ("zero", dtype(-entry["offset"])),
        ):
            graph.initializer.append(numpy_helper.from_array(np.array(value), f"{name}/{key}"))
        before, after = name, f"{name}/after"
        for node in graph.node:
            node.input[:] = [after if text == name else text for text in node.input]
        if name in outputs:
            before, after = f"{name}/before", name
            for node in graph.node:
                node.output[:] = [before if text == name else text for text in node.output]
        numbers = [f"{name}/scale", f"{name}/zero"]
        pairs[before] = [
            helper.make_node("QuantizeLinear", [before, *numbers], [f"{name}/q"]),
            helper.make_node("DequantizeLinear", [f"{name}/q", *numbers], [after]),
        ]
    nodes = list(pairs["images"])
    for node in graph.node:
        nodes += [node, *pairs.get(node.output[0], ())]
    del graph.node[:]
    graph.node.extend(nodes)
    model.opset_import[0].version, model.ir_version = 21, 10
    return model


def test_overrides_and_float_graph_give_the_proved_outputs(quantised, calibration, tmp_path):
    folder, manifest = quantised.path, quantised.manifest
    overrides = json.loads((folder / "overrides.json").read_text())
    rebuilt = quantise_as_the_sdk(onnx.load(folder / "float.onnx"), overrides)
    onnx.checker.check_model(rebuilt, full_check=True)
    onnx.save(rebuilt, tmp_path / "rebuilt.onnx")
    array = handovers.fed(calibration, manifest)
    # Optimised, ONNX Runtime rounds otherwise, and quantises weights with one scale per tensor.
    expected = handovers.run(folder / "model.onnx", array, optimize=False)
    found = handovers.run(tmp_path / "rebuilt.onnx", array, optimize=False)
    for one, other in zip(expected, found, strict=True):
        # In 8 bits they are equal; in 16 bits, biases are rounded in one of them.
        np.testing.assert_allclose(other, one, atol=1e-3 * np.abs(one).max(), rtol=0)
    floats = handovers.run(folder / "float.onnx", array)
    assert any(np.abs(one - other).max() > 0 for one, other in zip(expected, floats, strict=True))


def test_overrides_cover_all_tensors(quantised):
    folder, bits = quantised.path, 16 if quantised.manifest.quantization.profile == "u16s8" else 8
    overrides = json.loads((folder / "overrides.json").read_text())
    model = onnx.load(folder / "float.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert (model.opset_import[0].version, model.ir_version) == (17, 8)
    assert not {node.op_type for node in model.graph.node} & {"QuantizeLinear", "DequantizeLinear"}
    written = {name for node in model.graph.node for name in node.output}
    assert set(overrides["activation_encodings"]) == written | {"images"}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert set(overrides["param_encodings"]) == {node.input[1] for node in convolutions}
    for name, (entry,) in overrides["activation_encodings"].items():
        assert (entry["bitwidth"], entry["is_symmetric"]) == (bits, "False"), name
        assert entry["min"] <= 0 <= entry["max"]
        assert entry["min"] == pytest.approx(entry["scale"] * entry["offset"])
        levels = 2**bits - 1
        assert entry["max"] == pytest.approx(entry["scale"] * (entry["offset"] + levels))
    for node in convolutions:
        found = overrides["param_encodings"][node.input[1]]
        (weight,) = (t for t in model.graph.initializer if t.name == node.input[1])
        assert len(found) == weight.dims[0]
        assert {(e["bitwidth"], e["offset"], e["is_symmetric"]) for e in found} == {
            (8, -128, "True")
        }


def test_convolutions_in_float_stay_in_float(narrow_tiny, calibration, tmp_path):
    made = handovers.build(
        "qualcomm", narrow_tiny, tmp_path / "m", calibration, profile="u8s8", kept_heads=True
    )
    overrides = json.loads((made.path / "overrides.json").read_text())
    model = onnx.load(made.path / "float.onnx")
    heads = [node for node in model.graph.node if node.output[0].startswith("head")]
    floats = {name for name, found in entries(overrides).items() if found[0]["dtype"] == "float"}
    # The inputs of the heads are in float too: no convolution in integers reads them.
    assert floats >= {name for node in heads for name in (*node.input, node.output[0])}
    assert all(entries(overrides)[name] == [{"bitwidth": 16, "dtype": "float"}] for name in floats)
    integers = parse(onnx.load(made.path / "model.onnx")).tensors
    assert floats & {name for node in model.graph.node for name in node.output} == (
        {name for node in model.graph.node for name in node.output} - set(integers)
    )
    assert len(heads) == 3


def test_script_calls_the_sdk(quantised, tmp_path):
    done, calls = convert(quantised.path, tmp_path)
    assert done.returncode == 0, done.stderr
    bits = 16 if quantised.manifest.quantization.profile == "u16s8" else 8
    outputs = " ".join(
        f"--source_model_output_layout head{i} NCHW --desired_output_layout head{i} NCHW"
        for i in range(3)
    )
    assert calls == [
        "qairt-converter --input_network float.onnx --output_path model_float.dlc "
        "--source_model_input_layout images NCHW --desired_input_layout images NCHW "
        f"{outputs} --quantization_overrides overrides.json",
        "qairt-quantizer --input_dlc ../model_float.dlc --input_list input_list.txt "
        f"--act_bitwidth {bits} --weights_bitwidth 8 --bias_bitwidth 32 "
        "--act_quantizer_calibration min-max --param_quantizer_calibration min-max "
        "--use_per_channel_quantization --output_dlc ../model.dlc",
        "qnn-context-binary-generator --model /sdk/lib/x86_64-linux-clang/libQnnModelDlc.so "
        "--backend /sdk/lib/x86_64-linux-clang/libQnnHtp.so --dlc_path model.dlc "
        "--config_file context.json --output_dir . --binary_file model",
    ]
    htp = json.loads((quantised.path / "htp.json").read_text())
    assert htp == {"devices": [{"dsp_arch": "v73"}]}
    context = json.loads((quantised.path / "context.json").read_text())
    assert (quantised.path / context["backend_extensions"]["config_file_path"]).is_file()
    text = (quantised.path / "README.md").read_text()
    assert "how its mAP compares" in text
    assert "outputs and boxes equal" not in text


def test_script_stops_at_the_first_error(quantised, tmp_path):
    done, calls = convert(quantised.path, tmp_path, FAIL="qairt-quantizer")
    assert done.returncode == 1
    assert len(calls) == 2
    (tmp_path / "without").mkdir()
    done, calls = convert(quantised.path, tmp_path / "without", QNN_SDK_ROOT="")
    assert done.returncode != 0
    assert "envsetup.sh" in done.stderr
    assert calls == []


def test_raw_files_are_the_network_input(quantised, calibration):
    folder = quantised.path / "calibration"
    lines = (folder / "input_list.txt").read_text().splitlines()
    assert len(lines) == len(calibration.images)
    for index, line in enumerate(lines):
        expected = handovers.fed(calibration, quantised.manifest, index)
        found = np.fromfile(folder / line, "<f4").reshape(expected.shape)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("given", "bits"), [({}, 16), ({"activations": "8"}, 8)])
def test_without_our_ranges_the_quantiser_chooses(given, bits, narrow_tiny, calibration, tmp_path):
    made = handovers.build("qualcomm", narrow_tiny, tmp_path / "m", calibration, options=given)
    names = {path.name for path in made.path.iterdir()}
    assert not names & {"float.onnx", "overrides.json"}
    done, calls = convert(made.path, tmp_path)
    assert done.returncode == 0, done.stderr
    assert calls[0].startswith("qairt-converter --input_network model.onnx ")
    assert "overrides" not in calls[0]
    assert f"--act_bitwidth {bits} " in calls[1]


def test_the_profile_decides_in_int8(narrow_tiny, calibration, tmp_path):
    with pytest.raises(ConfigError, match=r"is for precision fp32.*u16s8 or u8s8"):
        handovers.build(
            "qualcomm",
            narrow_tiny,
            tmp_path / "m",
            calibration,
            profile="u8s8",
            options={"activations": "8"},
        )
    assert qualcomm.INT8_HEADS
