"""Target and runtime qnn in Qualcomm's emulation of the HTP, and the traps of int8 detectors.

All of it is slow and needs onnxruntime-qnn (x86-64): ``pip install "y7edge[qnn]"``.
"""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.runtimes import fake_qnn
from tests.tampering import flip
from y7edge import Detector
from y7edge.data.synthetic import scenes
from y7edge.detect.selftest import selftest
from y7edge.errors import ArtifactError, DeviceError
from y7edge.export import export
from y7edge.export.folding import fold_checkpoint
from y7edge.export.graph import build
from y7edge.export.proof.verify import verify
from y7edge.export.quantization import Quantizer
from y7edge.models import registry as variants
from y7edge.models import weights
from y7edge.models.scaling import scale
from y7edge.nn.random_weights import random_weights
from y7edge.runtimes import onnxrt, qnn, registry
from y7edge.runtimes.base import SessionOptions, missing

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing(qnn.NEEDS)), reason="onnxruntime-qnn is not installed"),
]
ROOT = Path(__file__).parents[2]
SETTINGS = {"htp_arch": "73", "offload_graph_io_quantization": "0"}


@pytest.fixture(scope="module")
def demo():
    return weights.load(ROOT / "tests" / "reference" / "demo.safetensors")


@pytest.fixture(scope="module")
def inputs():
    """Scenes as the demo's inputs (1, 3, 160, 160); it was trained with other seeds."""
    frames = (scenes.scene(9000 + index).image for index in range(4))
    return [np.ascontiguousarray(batch) for batch in map(_letterboxed, frames)]


def _letterboxed(frame):
    height, width = frame.shape[:2]
    assert height == width
    small = frame[:: height // 160, :: width // 160]
    return (small[None, :, :, ::-1].transpose(0, 3, 1, 2) / np.float32(255)).astype(np.float32)


def compiled(model):
    """Compile a graph for the HTP, without files; return a function that runs it."""
    session = qnn._start(qnn.load_engine(), model.SerializeToString(), {}, SETTINGS)
    names = [output.name for output in session.get_outputs()]
    return lambda pixels: dict(zip(names, session.run(None, {"images": pixels}), strict=True))


def on_cpu(model, tmp_path):
    path = tmp_path / "cpu.onnx"
    path.write_bytes(model.SerializeToString())
    run = onnxrt.opened(path)
    return lambda pixels: run({"images": pixels})


def worst(first, second, name, inputs):
    """The largest difference of one output."""
    pairs = ((first(pixels)[name], second(pixels)[name]) for pixels in inputs)
    return max(float(np.abs(a.astype(np.float32) - b).max()) for a, b in pairs)


# --- the package ---------------------------------------------------------------------------------


def test_the_stand_ins_have_the_packages_names():
    import onnxruntime
    import onnxruntime_qnn

    real, made = onnxruntime_qnn, fake_qnn.package()
    for name in fake_qnn.NAMES:
        assert type(getattr(real, name)) is type(getattr(made, name)) or name.endswith("info")
    assert real.EP_NAME == made.EP_NAME == qnn.PROVIDER
    assert isinstance(real.build_and_package_info.qnn_version, str)
    for name in ("get_library_path", "get_qnn_htp_path"):
        assert not inspect.signature(getattr(real, name)).parameters
        assert Path(getattr(real, name)()).is_file()
    for name in fake_qnn.EXTENSIONS:
        assert hasattr(onnxruntime, name)
    for name in ("add_session_config_entry", "add_provider_for_devices"):
        assert hasattr(onnxruntime.SessionOptions, name)
    assert hasattr(onnxruntime.OrtHardwareDeviceType, "NPU")


def test_the_stand_in_writes_the_same_node(demo, tmp_path):
    made = export(demo, tmp_path / "demo.qnn.onnx", target="qnn")
    proto = onnx.load(made.path, load_external_data=False)
    (node,) = proto.graph.node
    assert (node.op_type, node.domain) == ("EPContext", "com.microsoft")
    found = {a.name: type(helper.get_attribute_value(a)) for a in node.attribute}
    expected = {k: bytes if isinstance(v, str) else int for k, v in fake_qnn.ATTRIBUTES.items()}
    assert found == {**expected, qnn.BINARY: bytes}
    assert {entry.key for entry in proto.metadata_props} == {*fake_qnn.METADATA, "y7edge"}


def test_artifacts_are_proved_tampered_with_and_reproducible(demo, tmp_path):
    first = export(demo, tmp_path / "demo.qnn.onnx", target="qnn")
    again = export(demo, tmp_path / "again" / "demo.qnn.onnx", target="qnn")
    assert [f.read_bytes() for f in first.files] == [f.read_bytes() for f in again.files]
    assert selftest(first.path).status == "passed"
    assert verify(first.path, demo).status == "passed"
    with Detector(first.path) as detector:
        assert detector.session.device == "emulator"
    for file in again.files:
        before = file.read_bytes()
        flip(file, file, len(before) // 2)
        with pytest.raises(ArtifactError):
            selftest(again.path)
        with pytest.raises(ArtifactError):
            verify(again.path, demo)
        file.write_bytes(before)


def test_truncated_and_empty_binaries_do_not_end_the_process(demo, tmp_path):
    """Also without the check of the digest, which comes first.

    A changed byte in the header may still crash Qualcomm's library.
    """
    made = export(demo, tmp_path / "demo.qnn.onnx", target="qnn")
    binary = made.side_files[0]
    data = binary.read_bytes()
    for broken in (b"", data[:1000], data[: len(data) // 2], bytes(len(data)), data[1:]):
        binary.write_bytes(broken)
        with pytest.raises(DeviceError, match="QNN cannot open"):
            registry.open_session(made, SessionOptions(check_payload=False))


def test_nothing_is_printed(demo, tmp_path):
    made = export(demo, tmp_path / "demo.qnn.onnx", target="qnn")
    script = "import sys; from y7edge import Detector; Detector(sys.argv[1]).close()"
    command = [sys.executable, "-c", script, str(made.path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# --- the traps of int8 detectors -----------------------------------------------------------------


def test_scores_that_share_a_tensor_with_boxes_are_lost(demo, inputs, tmp_path):
    """One scale for pixels and probabilities: all scores are multiples of half a pixel or more."""
    model = build.build_graph(
        fold_checkpoint(demo), outputs="decoded", precision="fp16", height=160, width=160
    )
    good = compiled(model)
    reference = on_cpu(model, tmp_path)
    assert worst(good, reference, "scores", inputs) < 0.02
    both = _quantised_together(model)
    bad = compiled(both)
    expected = [reference(pixels)["scores"] for pixels in inputs]
    for run in (bad, on_cpu(both, tmp_path)):
        scores = [run(pixels)["both"][..., 4:] for pixels in inputs]
        errors = [np.abs(a - b).max() for a, b in zip(scores, expected, strict=True)]
        assert max(errors) > 0.25


def _quantised_together(model):
    """Join boxes and scores, with the scale of a uint8 tensor of 0 to 200 pixels."""
    proto = onnx.ModelProto.FromString(model.SerializeToString())
    graph = proto.graph
    graph.initializer.append(numpy_helper.from_array(np.float32(200 / 255), "both/scale"))
    graph.initializer.append(numpy_helper.from_array(np.uint8(0), "both/zero"))

    def quantised(source, output):
        scale = ["both/scale", "both/zero"]
        graph.node.append(helper.make_node("QuantizeLinear", [source, *scale], [f"{output}/q"]))
        graph.node.append(helper.make_node("DequantizeLinear", [f"{output}/q", *scale], [output]))
        return output

    parts = [quantised(name, f"{name}/dequantised") for name in ("boxes", "scores")]
    graph.node.append(helper.make_node("Concat", parts, ["both/joined"], axis=2))
    quantised("both/joined", "both")
    shape = [d.dim_value for d in graph.output[0].type.tensor_type.shape.dim]
    columns = 4 + graph.output[1].type.tensor_type.shape.dim[2].dim_value
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("both", 1, [*shape[:2], columns]))
    return proto


@pytest.mark.parametrize("profile", ["u8s8", "u16s8"])
def test_a_second_consumer_of_the_sigmoid_changes_nothing(demo, inputs, tmp_path, profile):
    """Where a toolchain fuses convolution and Sigmoid, a second consumer costs accuracy."""
    folded = fold_checkpoint(demo)
    model = build.build_graph(folded, outputs="heads-sigmoid", height=160, width=160)
    quantizer = Quantizer(model, inputs, profile, method="minmax")
    one = quantizer.quantized(frozenset())
    two = onnx.ModelProto.FromString(one.SerializeToString())
    for name in [output.name for output in one.graph.output]:
        shape = next(o for o in one.graph.output if o.name == name).type.tensor_type.shape
        sizes = [d.dim_value for d in shape.dim]
        node = helper.make_node("ReduceMax", [name], [f"{name}/best"], axes=[1], keepdims=1)
        if one.opset_import[0].version >= 18:
            axes = numpy_helper.from_array(np.array([1], np.int64), f"{name}/axes")
            two.graph.initializer.append(axes)
            node = helper.make_node("ReduceMax", [name, axes.name], [f"{name}/best"], keepdims=1)
        two.graph.node.append(node)
        value = helper.make_tensor_value_info(f"{name}/best", 1, [1, 1, *sizes[2:]])
        two.graph.output.append(value)
    first, second, reference = compiled(one), compiled(two), on_cpu(model, tmp_path)
    for name in ("head0", "head1", "head2"):
        alone = worst(first, reference, name, inputs)
        assert worst(second, reference, name, inputs) <= alone + 0.01
        assert worst(second, first, name, inputs) <= 0.01


@pytest.mark.parametrize("precision", ["fp16", "u8s8", "u16s8"])
def test_strided_slices_are_accepted_and_the_rewrite_gives_the_same(precision, tmp_path):
    """The P6 models begin with four Slice of steps 2, which some toolchains refuse."""
    spec = scale(variants.get("yolov7-w6", nc=3), width=0.125)
    folded = fold_checkpoint(random_weights(spec, seed=2))
    pixels = np.random.default_rng(0).random((1, 3, 128, 128), np.float32)
    found = []
    for rewrites in ((), ("reorg-conv6",)):
        float_graph = "fp16" if precision == "fp16" else "fp32"
        model = build.build_graph(
            folded, precision=float_graph, height=128, width=128, rewrites=rewrites
        )
        assert ("Slice" in {node.op_type for node in model.graph.node}) == (not rewrites)
        reference = on_cpu(model, tmp_path)(pixels)
        if precision != "fp16":
            quantizer = Quantizer(model, [pixels], precision, method="minmax")
            model = quantizer.quantized(quantizer.heads)
        outputs = compiled(model)(pixels)
        cosines = {name: _cosine(outputs[name], reference[name]) for name in reference}
        found.append(min(cosines.values()))
    least = {"fp16": 0.99, "u8s8": 0.9, "u16s8": 0.999}[precision]
    assert min(found) > least
    assert abs(found[0] - found[1]) < 1 - least


def _cosine(first, second):
    a, b = (np.asarray(values, np.float64).ravel() for values in (first, second))
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))
