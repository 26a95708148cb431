"""Target rknn, with a stand-in for rknn-toolkit2; ``test_rknn_toolkit`` has the real one."""

from __future__ import annotations

import re
from dataclasses import replace

import cv2
import numpy as np
import pytest

from tests import fake_rknn
from y7edge import Detector, interpreters
from y7edge.data.synthetic import scenes
from y7edge.detect.selftest import selftest
from y7edge.errors import ConfigError, DeviceError, DigestError, ExportError, RuntimeMissing
from y7edge.export import export
from y7edge.export.conversion import build
from y7edge.runtimes import registry, rknnrt

SIZE = (64, 96)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return fake_rknn.install(tmp_path_factory.mktemp("rknn") / "toolkit with blanks")


@pytest.fixture(autouse=True)
def toolkit(program, monkeypatch):
    monkeypatch.setenv(fake_rknn.VARIABLE, str(program))
    monkeypatch.delenv("FAKE_RKNN", raising=False)
    (program.parent / "calls").unlink(missing_ok=True)
    interpreters._versions.cache_clear()
    yield program.parent
    interpreters._versions.cache_clear()


@pytest.fixture(scope="module")
def onnx_artifact(narrow_tiny, tmp_path_factory):
    return export(narrow_tiny, tmp_path_factory.mktemp("onnx") / "m.onnx", imgsz=SIZE)


def refused(checkpoint, tmp_path, **options) -> str:
    """Export, which must fail in one line and leave nothing behind; return the message."""
    out = tmp_path / "out" / "m.rknn"
    with pytest.raises((ConfigError, DeviceError, ExportError, RuntimeMissing)) as caught:
        export(checkpoint, out, target="rknn", imgsz=SIZE, **options)
    assert not out.parent.exists() or not list(out.parent.iterdir())
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)
    return str(caught.value)


def test_an_artifact_is_proved_in_the_simulator(narrow_tiny, onnx_artifact, tmp_path, toolkit):
    made = export(narrow_tiny, tmp_path / "m.rknn", target="rknn", imgsz=SIZE)
    manifest = made.manifest
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        *("m.rknn", "m.rknn.json", "m.rknn.onnx")
    ]
    assert (manifest.precision, manifest.engine) == ("fp16", {"platform": "rk3588"})
    image = manifest.input
    assert (image.shape, image.dtype) == ((1, *SIZE, 3), "uint8")
    assert (image.scale, image.zero_point, image.color) == (1.0, 0, "rgb")
    assert [(o.layout, o.dtype, o.activation) for o in manifest.outputs] == [
        ("NCHW", "float32", "logit")
    ] * 3
    assert manifest.tools["rknn-toolkit2"] == "2.5.0"
    parity = manifest.parity
    assert parity["status"] == "passed"
    assert parity["arithmetic"] == "float16 (RKNN simulator, rk3588)"
    assert parity["device"] == "simulator"
    report = selftest(made.path)
    assert report.device == "simulator" and report.versions["rknn-toolkit2"] == "2.5.0"
    frame = scenes.scene(3, (100, 130)).image
    with Detector(made.path, conf=0.01) as found, Detector(onnx_artifact.path, conf=0.01) as wanted:
        assert found.info["device"] == "simulator"
        boxes, expected = found(frame), wanted(frame)
        assert len(boxes) == len(expected) > 0
        np.testing.assert_allclose(boxes.xyxy, expected.xyxy, atol=0.05)
        np.testing.assert_allclose(boxes.confidence, expected.confidence, atol=1e-4)


def test_the_toolkit_is_called_as_documented(narrow_tiny, tmp_path, toolkit):
    options = {"platform": "rk3566"}
    made = export(
        narrow_tiny,
        tmp_path / "m.rknn",
        target="rknn",
        imgsz=SIZE,
        outputs="heads-sigmoid",
        options=options,
    )
    calls = fake_rknn.calls(toolkit)
    names = [name for name, _ in calls]
    assert names[:4] == ["config", "load_onnx", "build", "export_rknn"]
    assert names[4:8] == ["config", "load_onnx", "build", "init_runtime"]
    assert calls[:1] + calls[2:3] == calls[4:5] + calls[6:7], "the simulator builds another graph"
    assert calls[0][1] == {
        "mean_values": [[0, 0, 0]],
        "std_values": [[255, 255, 255]],
        "target_platform": "rk3566",
    }
    assert calls[2][1] == {"do_quantization": False}
    assert calls[8] == ("inference", {"inputs": [[1, *SIZE, 3]], "data_format": ["nhwc"]})
    assert made.manifest.engine == options
    assert {output.activation for output in made.manifest.outputs} == {"sigmoid"}


def test_int8_takes_the_scales_of_the_qdq_graph(narrow_tiny, tmp_path, toolkit):
    import onnx

    folder = tmp_path / "images"
    folder.mkdir()
    for seed in range(4):
        cv2.imwrite(str(folder / f"{seed}.png"), scenes.scene(seed, (120, 160)).image)
    made = export(
        narrow_tiny,
        tmp_path / "m.rknn",
        target="rknn",
        imgsz=SIZE,
        precision="int8",
        calib=folder,
        unverified="random weights",
        ranges="minmax",
        quantize_heads=True,
        options={"platform": "rv1106"},  # which takes no float
    )
    assert made.manifest.parity["arithmetic"].startswith("int8 and float16 (RKNN sim")
    graph = onnx.load(rknnrt.graph_of(made.path))
    assert not graph.metadata_props and graph.opset_import[0].version <= 19
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in graph.graph.node}
    assert dict(fake_rknn.calls(toolkit))["build"] == {"do_quantization": False}


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ("refuse load_onnx", r"load_onnx failed with code -1.*'/row1/Conv'\) is not supported!$"),
        ("refuse build", r"build failed .* printed: build: The Conv\('/row1/Conv'\) is not"),
        ("raise build", "ValueError: the last line"),
        ("abort build", "SIGABRT.*Meet unsupported conv"),
        ("cut file", "wrote a broken file of .* bytes"),
        ("other file", "wrote a broken file"),
        ("foreign file", "wrote a broken file"),
        ("no file", "wrote no file"),
        ("refuse init_runtime", "simulator of RKNN ended with code 1: init_runtime: The Conv"),
    ],
)
def test_a_toolkit_that_fails_leaves_nothing(narrow_tiny, tmp_path, monkeypatch, fault, problem):
    monkeypatch.setenv("FAKE_RKNN", fault)
    monkeypatch.setattr("y7edge.export.pipeline.make_probes", lambda *_: ())
    assert re.search(problem, refused(narrow_tiny, tmp_path))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"options": {"platform": "rk3399"}}, "no platform 'rk3399'; choose from rk2118, rk3562"),
        ({"options": {"platform": "RK3588"}}, "no platform 'RK3588'"),
        ({"options": {"platform": "../\x1b[31m" + 99 * "x"}}, "no platform '../"),
        ({"options": {"chip": "rk3588"}}, "no option 'chip'"),
        ({"options": {"platform": "rv1103b"}}, "rv1103b computes in integers only.*fp16.*--qua"),
        ({"precision": "fp32"}, "no precision 'fp32'"),
        ({"outputs": "decoded"}, "no outputs 'decoded'; choose from heads, heads-sigmoid"),
        ({"device": "cuda"}, "device is 'cuda', expected auto, simulator, npu or npu:N"),
    ],
)
def test_wrong_options_are_named(narrow_tiny, tmp_path, options, problem):
    assert re.search(problem, refused(narrow_tiny, tmp_path, **options))


def test_without_an_interpreter_the_recipe_is_named(narrow_tiny, tmp_path, monkeypatch):
    monkeypatch.delenv(fake_rknn.VARIABLE)
    message = refused(narrow_tiny, tmp_path)
    assert "pip install --no-deps rknn-toolkit2==2.5.0 && " in message
    assert message.endswith("then set Y7EDGE_RKNN_PYTHON=ENV/bin/python")


def test_float_probes_cannot_be_repeated(onnx_artifact, tmp_path):
    with pytest.raises(ConfigError, match=r"8-bit images.*y7edge export"):
        build(onnx_artifact.path, tmp_path / "m.rknn", target="rknn", precision="fp16")
    assert not list(tmp_path.iterdir())


def test_kept_layers_are_refused_for_chips_without_float(narrow_tiny, tmp_path, monkeypatch):
    folder = tmp_path / "images"
    folder.mkdir()
    cv2.imwrite(str(folder / "0.png"), scenes.scene(0, (120, 160)).image)
    int8 = {"precision": "int8", "calib": folder, "unverified": "test", "ranges": "minmax"}
    message = refused(narrow_tiny, tmp_path, **int8, options={"platform": "rv1106"})
    assert "the graph has 3 convolutions in float" in message
    message = refused(narrow_tiny, tmp_path, **int8, options={"platform": "rk2118"})
    assert "does not take int8 graphs" in message


def test_each_file_is_covered_by_a_digest(narrow_tiny, tmp_path):
    made = export(narrow_tiny, tmp_path / "m.rknn", target="rknn", imgsz=SIZE)
    for file in made.files:
        whole = file.read_bytes()
        file.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
        with pytest.raises(DigestError):
            selftest(made.path)
        file.write_bytes(whole)
    assert registry.check_payload(registry.load(made.path))
    changed = replace(made.manifest, engine={"platform": "rk3568"})
    text = changed.to_json().replace("rk3568", "rk3566")
    made.files[2].write_text(text)
    with pytest.raises(DigestError, match="changed after it was proved"):
        registry.load(made.path)
