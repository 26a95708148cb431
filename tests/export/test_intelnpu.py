"""Target intelnpu: static IR, compiled only where OpenVINO finds an NPU."""

from __future__ import annotations

from types import SimpleNamespace

import cv2
import onnx
import pytest
from onnx import TensorProto, helper

from tests.runtimes.conftest import SIZE, skip_unless_built_here
from y7edge import Detector
from y7edge.data.synthetic import scenes
from y7edge.detect.selftest import selftest
from y7edge.errors import ConfigError, ExportError
from y7edge.export import export
from y7edge.export.targets import intelnpu
from y7edge.runtimes import ov

OPTIONS = {"target": "intelnpu", "imgsz": SIZE}


@pytest.fixture(autouse=True)
def openvino():
    skip_unless_built_here(intelnpu)


def test_a_model_is_proved_on_the_cpu_and_not_compiled(narrow_tiny, tmp_path):
    lines: list[str] = []
    out = tmp_path / "m.intelnpu.handover"
    made = export(narrow_tiny, out, progress=lines.append, **OPTIONS)
    assert made.manifest.precision == "fp16"
    assert made.manifest.parity["status"] == "passed"
    assert {path.name for path in out.iterdir()} == {
        *("model.xml", "model.bin", "README.md", "files.json", "manifest.json")
    }
    assert selftest(out).status == "passed"
    (line,) = [line for line in lines if "NPU" in line]
    assert line.startswith("not compiled: OpenVINO finds no NPU here, only CPU")
    readme = (out / "README.md").read_text()
    assert line in readme
    assert "benchmark_app -m model.xml -d NPU" in readme
    shape = ov.open_core().read_model(str(out / "model.xml")).inputs[0].partial_shape
    assert shape.is_static
    assert Detector(out)(scenes.scene(1, (100, 130)).image) is not None


def test_a_dynamic_batch_and_boxes_are_refused(narrow_tiny, tmp_path):
    out = tmp_path / "m.intelnpu.handover"
    with pytest.raises(ConfigError, match="target intelnpu has no batch size 'dynamic'"):
        export(narrow_tiny, out, dynamic=True, **OPTIONS)
    with pytest.raises(ConfigError, match="target intelnpu has no outputs 'decoded'"):
        export(narrow_tiny, out, outputs="decoded", **OPTIONS)


@pytest.mark.parametrize("refused", ["", "level zero: no memory\nsecond line"])
def test_a_model_is_compiled_if_there_is_an_npu(tmp_path, monkeypatch, refused):
    calls = []

    def compile_model(*arguments):
        calls.append(arguments)
        if refused:
            raise RuntimeError(refused)

    core = SimpleNamespace(
        available_devices=["CPU", "NPU.3720"],
        compile_model=compile_model,
        get_property=lambda device, name: f"Intel(R) AI Boost ({device}, {name})",
    )
    monkeypatch.setattr(ov, "open_core", lambda: core)
    if refused:
        with pytest.raises(ExportError, match="NPU's compiler refuses the model: level zero") as e:
            intelnpu._compiled(tmp_path / "model.xml")
        assert "\n" not in str(e.value)
    else:
        text = intelnpu._compiled(tmp_path / "model.xml")
        assert text.startswith("compiled on Intel(R) AI Boost (NPU, FULL_DEVICE_NAME) without")
        assert "not compared" in text
    assert calls == [(str(tmp_path / "model.xml"), "NPU")]


def test_int8_has_integers_outside_of_activations(narrow_tiny, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for seed in range(2):
        cv2.imwrite(str(images / f"{seed}.png"), scenes.scene(seed, (120, 160)).image)
    out = tmp_path / "m.intelnpu.handover"
    options = {"precision": "int8", "calib": images, "unverified": "random weights"}
    made = export(narrow_tiny, out, **options, **OPTIONS)
    assert made.manifest.quantization.profile == "u8s8-fused"
    assert selftest(out).status == "passed"


@pytest.mark.parametrize("kind", ["Add", "Mul", "Max"])
@pytest.mark.parametrize("scales", [(0.5, 0.5), (0.5, 0.25)])
def test_operators_with_inputs_of_several_scales(tmp_path, kind, scales):
    nodes, values = [], []
    for index, scale in enumerate(scales):
        name = f"x{index}"
        values.append(helper.make_tensor(f"{name}/scale", TensorProto.FLOAT, (), [scale]))
        values.append(helper.make_tensor(f"{name}/zero_point", TensorProto.UINT8, (), [3]))
        numbers = [f"{name}/scale", f"{name}/zero_point"]
        nodes += [
            helper.make_node("QuantizeLinear", [name, *numbers], [f"{name}/quantized"]),
            helper.make_node(
                "DequantizeLinear", [f"{name}/quantized", *numbers], [f"{name}/dequantized"]
            ),
        ]
    read = ["x0/dequantized", "x1/dequantized"]
    nodes.append(helper.make_node(kind, read, ["y"], name="/row7/Join"))
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, (1, 8)) for n in ("x0", "x1", "y")]
    graph = helper.make_graph(nodes, "g", ends[:2], ends[2:], values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    path = tmp_path / "q.onnx"
    onnx.save(model, path)
    if scales[0] == scales[1]:
        intelnpu._require_unified(path)
    else:
        with pytest.raises(ExportError, match=rf"{kind} /row7/Join reads .* 2 scales.* fp16"):
            intelnpu._require_unified(path)
