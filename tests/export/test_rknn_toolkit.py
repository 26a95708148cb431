"""Target rknn with the real rknn-toolkit2, and what the toolkit does to graphs (docs/rknn.md)."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests import fake_rknn
from y7edge import Detector
from y7edge.data.synthetic import scenes
from y7edge.detect.selftest import selftest
from y7edge.export import export
from y7edge.export.folding import fold_checkpoint
from y7edge.export.graph.build import build_graph
from y7edge.export.graph.rewrites import reorg_window
from y7edge.export.quantization import Quantizer
from y7edge.export.targets import rknn_file
from y7edge.models import registry as models
from y7edge.models import weights
from y7edge.models.scaling import scale
from y7edge.nn.random_weights import random_weights
from y7edge.runtimes import registry, rknnrt
from y7edge.runtimes._rknn_simulator import CHILD, LOG, complaint

PYTHON = os.environ.get(fake_rknn.VARIABLE)
SIDE = 160
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason=f"needs {fake_rknn.VARIABLE}: {rknnrt.RECIPE}"),
]

# Prints the layers of the compiled graph, and saves the outputs; quantises if images are given.
_COMPILE = """
import sys
import numpy as np
from rknn.api import RKNN
chip, graph, image, *images = sys.argv[1:]
tool = RKNN(verbose=True)
tool.config(mean_values=[[0, 0, 0]], std_values=[[255, 255, 255]], target_platform=chip)
tool.load_onnx(model=graph)
open("images.txt", "w").write("\\n".join(images))
assert tool.build(do_quantization=bool(images), dataset="images.txt") == 0
assert tool.init_runtime() == 0
np.savez("outputs.npz", *tool.inference(inputs=[np.load(image)], data_format=["nhwc"]))
"""


@pytest.fixture(scope="module")
def demo():
    return weights.load(Path(__file__).parents[1] / "reference" / "demo.safetensors")


@pytest.fixture(scope="module")
def calib(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calib")
    for seed in range(16):
        cv2.imwrite(str(folder / f"{seed}.png"), scenes.scene(seed, (SIDE, SIDE)).image)
    return folder


def frames(count=10):
    return [scenes.scene(2000 + seed).image for seed in range(count)]


def compiled(model, folder, *, own=False, chip="rk3588"):
    """Compile a graph; return the layers [(kind, dtype, device)], and the outputs."""
    onnx.save(model, folder / "graph.onnx")
    side = model.graph.input[0].type.tensor_type.shape.dim[2].dim_value
    arrays = [scenes.scene(seed, (side, side)).image[None, ..., ::-1] for seed in range(5)]
    np.save(folder / "image.npy", np.ascontiguousarray(arrays[0]))
    for index, array in enumerate(arrays[1:]):
        np.save(folder / f"{index}.npy", np.ascontiguousarray(array.transpose(0, 3, 1, 2)))
    images = [f"{index}.npy" for index in range(4)] if own else []
    done = subprocess.run(
        [PYTHON, "-I", "-c", _COMPILE, chip, "graph.onnx", "image.npy", *images],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )
    row = r"\] \d+ +(\w+) +(\w+) +(NPU|CPU|GPU) +[\\(]"
    with np.load(folder / "outputs.npz") as found:
        return re.findall(row, done.stdout), [found[name] for name in found.files]


def graph_of(checkpoint, outputs, side=SIDE, rewrites=()):
    return build_graph(
        fold_checkpoint(checkpoint),
        outputs=outputs,
        input="float32",
        precision="fp32",
        height=side,
        width=side,
        batch=1,
        rewrites=rewrites,
    )


def count(layers, kind):
    return sum(found == kind for found, _, _ in layers)


# --- artifacts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("outputs", ["heads", "heads-sigmoid"])
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_boxes_equal_those_of_the_model(demo, calib, tmp_path, precision, outputs):
    int8 = {"calib": calib, "unverified": "test", "precision": "int8"}
    made = export(
        demo,
        tmp_path / "m.rknn",
        target="rknn",
        outputs=outputs,
        **(int8 if precision == "int8" else {}),
    )
    assert selftest(made.path).status == "passed"
    reference = export(demo, tmp_path / "m.onnx")
    least, most = (0.99, 0.01) if precision == "fp16" else (0.8, 0.15)
    with Detector(made.path) as found, Detector(reference.path) as wanted:
        assert found.info["device"] == "simulator"
        for frame in frames():
            boxes, expected = found(frame), wanted(frame)
            sure = expected.confidence > expected_margin(precision)
            assert len(boxes) >= sure.sum() > 0
            for box, score, kind in zip(
                expected.xyxy[sure], expected.confidence[sure], expected.class_id[sure], strict=True
            ):
                same = boxes.class_id == kind
                overlap = ious(box, boxes.xyxy[same])
                assert overlap.max() > least
                assert abs(boxes.confidence[same][overlap.argmax()] - score) < most


def expected_margin(precision):
    """Boxes of the reference with less confidence may be below the threshold in the artifact."""
    return 0.26 if precision == "fp16" else 0.4


def ious(box, others):
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = (high - low).clip(0).prod(axis=1)
    areas = [(b[..., 2:] - b[..., :2]).prod(axis=-1) for b in (box, others)]
    return shared / (areas[0] + areas[1] - shared)


def test_the_stand_in_takes_the_keywords_of_the_toolkit():
    script = (
        "import inspect, json\n"
        "from rknn.api import RKNN\n"
        "names = ('config', 'load_onnx', 'build', 'export_rknn', 'init_runtime', 'inference')\n"
        "found = {n: list(inspect.signature(getattr(RKNN, n)).parameters) for n in names}\n"
        "print(); print(json.dumps(found))\n"
    )
    done = subprocess.run([PYTHON, "-I", "-c", script], capture_output=True, text=True, check=True)
    for name, keywords in json.loads(done.stdout.splitlines()[-1]).items():
        ours = inspect.signature(getattr(fake_rknn.RKNN, name)).parameters
        assert set(ours) <= set(keywords), name


@pytest.fixture(scope="module")
def graphs(demo, calib, tmp_path_factory):
    """Graphs in float, in int8 with heads in float, and all in int8."""
    folder, model = tmp_path_factory.mktemp("graphs"), graph_of(demo, "heads")
    quantizer = Quantizer(model, pixels_of(calib), "u8s8")
    onnx.save(model, folder / "float.onnx")
    onnx.save(quantizer.quantized(quantizer.heads), folder / "mixed.onnx")
    onnx.save(quantizer.quantized(frozenset()), folder / "int8.onnx")
    return folder


@pytest.mark.parametrize("chip", rknnrt.PLATFORMS)
def test_every_platform_compiles(graphs, tmp_path, chip):
    """What target rknn refuses for a chip, the toolkit refuses too."""
    refused = {
        *(("float", "mixed") if chip in rknn_file._INTEGERS_ONLY else ()),
        *(("mixed", "int8") if chip in rknn_file._FLOAT_ONLY else ()),
    }
    for name in ("float", "mixed", "int8"):
        (folder := tmp_path / name).mkdir()
        graph, made = graphs / f"{name}.onnx", folder / "m.rknn"
        command = [PYTHON, "-I", str(CHILD), "build", chip, str(graph), made.name]
        done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
        assert (done.returncode != 0) is (name in refused), name
        if done.returncode:
            why = complaint(folder / LOG)
            assert re.search("do_quantization = False|float16|unsupported conv", why), why
        else:
            rknn_file._require_whole(made, chip)


def pixels_of(folder):
    """Four calibration images as inputs of a graph."""
    return [
        cv2.imread(str(path))[None, ..., ::-1].transpose(0, 3, 1, 2).astype(np.float32) / 255
        for path in sorted(folder.iterdir())[:4]
    ]


# --- graphs --------------------------------------------------------------------------------------


def test_a_sigmoid_is_not_fused_if_the_logits_are_an_output_too(demo, tmp_path):
    model = graph_of(demo, "heads-sigmoid")
    layers, alone = compiled(model, tmp_path, own=True)
    assert count(layers, "ConvSigmoid") == 3 and count(layers, "Sigmoid") == 0
    sigmoids = [node for node in model.graph.node if node.output[0].startswith("head")]
    for node in sigmoids:  # a second reader of the sigmoid does no harm
        model.graph.node.append(helper.make_node("Mul", [node.output[0]] * 2, [f"{node.name}2"]))
        model.graph.output.append(
            helper.make_tensor_value_info(f"{node.name}2", TensorProto.FLOAT, None)
        )
    layers, found = compiled(model, tmp_path, own=True)
    assert count(layers, "ConvSigmoid") == 3
    np.testing.assert_array_equal(found[0], alone[0])
    model = graph_of(demo, "heads-sigmoid")
    for node in sigmoids:
        model.graph.output.append(
            helper.make_tensor_value_info(node.input[0], TensorProto.FLOAT, None)
        )
    layers, both = compiled(model, tmp_path, own=True)
    assert count(layers, "ConvSigmoid") == 0 and count(layers, "Sigmoid") == 3
    # Probabilities now have the steps of int8 logits.
    assert len(np.unique(both[0])) < 0.5 * len(np.unique(alone[0]))


def test_float_heads_keep_the_fused_sigmoid_in_an_int8_graph(demo, calib, tmp_path):
    quantizer = Quantizer(graph_of(demo, "heads-sigmoid"), pixels_of(calib), "u8s8")
    layers, _ = compiled(quantizer.quantized(quantizer.heads), tmp_path)
    assert [row[1:] for row in layers if row[0] == "ConvSigmoid"] == [("FLOAT16", "NPU")] * 3
    layers, _ = compiled(quantizer.quantized(frozenset()), tmp_path)
    assert count(layers, "ConvSigmoid") == 0 and count(layers, "Sigmoid") == 3


def test_boxes_and_scores_in_one_int8_tensor_lose_all_scores(demo, tmp_path):
    model = graph_of(demo, "decoded")
    _, (boxes, scores) = compiled(model, tmp_path, own=True)
    assert boxes.shape[-1] == 4 and scores.max() > 0.9
    model.graph.node.append(helper.make_node("Concat", ["boxes", "scores"], ["all"], axis=2))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("all", TensorProto.FLOAT, None))
    _, (together,) = compiled(model, tmp_path, own=True)
    np.testing.assert_allclose(together[..., :4], boxes, atol=10)
    assert together[..., 4:].max() == 0  # steps of several pixels


@pytest.mark.parametrize("rewrites", [(), ("reorg-conv6",)])
def test_strided_slices_become_a_convolution(tmp_path, rewrites):
    spec = scale(models.get("yolov7-w6", nc=3), width=0.125)
    model = graph_of(random_weights(spec, seed=1), "heads", 128, rewrites)
    assert any(node.op_type == "Slice" for node in model.graph.node) is not bool(rewrites)
    assert reorg_window(rewrites) == (6 if rewrites else 0)
    layers, _ = compiled(model, tmp_path)
    assert count(layers, "Slice") == 0
    ends = {"InputOperator", "OutputOperator"}
    assert {device for kind, _, device in layers if kind not in ends} == {"NPU"}


def test_another_artifact_of_the_same_graph_gives_the_same_outputs(demo, tmp_path):
    """The bytes of .rknn files differ, because they contain addresses of memory."""
    first, second = (export(demo, tmp_path / f"{n}.rknn", target="rknn") for n in "ab")
    sizes = [file.path.stat().st_size for file in (first, second)]
    assert sizes[0] == sizes[1]
    assert first.files[1].read_bytes() == second.files[1].read_bytes()
    pixels = {"images": np.ascontiguousarray(scenes.scene(1, (SIDE, SIDE)).image[None])}
    found = []
    for made in (first, second):
        with closing(registry.open_session(made)) as session:
            found.append(session.infer(pixels))
    for name, array in found[0].items():
        np.testing.assert_array_equal(array, found[1][name])
