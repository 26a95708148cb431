"""The CUDA kernels: the shipped PTX, and the logic of the same source compiled for the CPU."""

from __future__ import annotations

import hashlib
import platform
import re
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.fake_model import make_manifest
from tests.runtimes.cuda_on_cpu.machine import SOURCE, Machine, needs_compiler
from y7edge.artifact.manifest import (
    InputInfo,
    Letterbox,
    LevelInfo,
    OutputInfo,
    expected_shapes,
    in_layout,
)
from y7edge.data.synthetic import scenes
from y7edge.detect.detector import Detector
from y7edge.detect.postprocess import Boxes, Criteria, Postprocessor, detected
from y7edge.detect.preprocess import Preprocessor, nv12_to_bgr
from y7edge.errors import ConfigError, DataError, DeviceError, RuntimeMissing
from y7edge.export import export
from y7edge.models import weights
from y7edge.runtimes import _cuda_kernels as kernels
from y7edge.runtimes import onnxrt
from y7edge.runtimes._cuda_kernels import CANDIDATE, PARAMETERS, Frame, Placement, Selection
from y7edge.runtimes.base import SessionOptions

DEMO = Path(__file__).parents[1] / "reference" / "demo.safetensors"
GUARD = 64  # values before and after a result that a kernel must not write


@pytest.fixture(scope="module")
def machine(tmp_path_factory) -> Machine:
    return Machine(tmp_path_factory.mktemp("kernels"))


# --- the shipped PTX -----------------------------------------------------------------------------


def test_ptx_was_compiled_from_the_source():
    text = kernels.ptx().decode()
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()
    advice = "run examples/research/cuda_kernels.py"
    assert re.findall(r"^// source sha256 (\w+)$", text, re.M) == [digest], advice
    assert re.findall(r"^// compiler NVRTC 12\.[12] .*--fmad=false", text, re.M), advice
    # PTX 8.1 and 8.2 are those of CUDA 12.1 and 12.2; JetPack 6.0 has 12.2.
    assert re.findall(r"^\.version (.*)$", text, re.M) in (["8.1"], ["8.2"])
    assert re.findall(r"^\.target (.*)$", text, re.M) == ["sm_75"]
    assert text.endswith("\0")


def test_ptx_has_the_kernels_with_their_parameters():
    text = kernels.ptx().decode()
    kinds = {"P": "u64", "q": "u64", "i": "u32", "f": "f32"}
    found = {
        name: re.findall(r"\.param \.(\w+) ", parameters)
        for name, parameters in re.findall(r"\.visible \.entry (\w+)\((.*?)\)", text, re.S)
    }
    assert found == {name: [kinds[k] for k in form] for name, form in PARAMETERS.items()}


def test_a_missing_file_is_explained(monkeypatch, tmp_path):
    monkeypatch.setattr(kernels, "__file__", str(tmp_path / "_cuda_kernels.py"))
    with pytest.raises(RuntimeMissing, match="install y7edge again"):
        kernels.ptx()


# --- letterbox -----------------------------------------------------------------------------------


def letterboxed(machine, frame: Frame, network: InputInfo, geometry, backwards=False):
    """The network's input that the kernel writes, with guards around it that it must not touch."""
    placement = Placement(geometry.image_hw, geometry.resized_hw, geometry.top, geometry.left)
    taps, count = placement.taps(), 3 * network.height * network.width
    memory = np.full(count + 2 * GUARD, 77, network.dtype)
    target = memory[GUARD : GUARD + count]
    launch = kernels.letterbox(frame, placement, taps.ctypes.data, network, target.ctypes.data)
    machine.run(launch, backwards=backwards)
    assert (memory[:GUARD] == 77).all()
    assert (memory[-GUARD:] == 77).all()
    return target.reshape([side for side in network.shape if side != "dynamic"][-3:])


def assert_same_pixels(found, expected, network: InputInfo):
    if platform.machine() == "x86_64":
        np.testing.assert_array_equal(found, expected)
    else:  # OpenCV has other code for the resize there
        step = 1 if network.dtype == "uint8" else network.scale
        np.testing.assert_allclose(found.astype(float), expected, atol=1.01 * step, rtol=1e-3)


def padded(image: np.ndarray, stride: int, rng) -> np.ndarray:
    """Rows of ``stride`` bytes: those of the image, then noise."""
    rows = rng.integers(0, 256, (len(image), stride), dtype=np.uint8)
    rows[:, : image[0].size] = image.reshape(len(image), -1)
    return rows


INPUTS = [
    InputInfo("images", 1, 64, 96, layout, dtype, color, 1.0 if dtype == "uint8" else scale)
    for layout, color in (("NCHW", "rgb"), ("NHWC", "bgr"), ("NCHW", "bgr"), ("NHWC", "rgb"))
    for dtype, scale in (("float32", 1 / 255), ("float16", 1 / 255), ("uint8", 1), ("float16", 1))
]


@needs_compiler
@pytest.mark.parametrize("network", INPUTS, ids=lambda n: f"{n.layout} {n.color} {n.dtype}")
def test_letterbox_equals_numpy(machine, network):
    seed = INPUTS.index(network)
    rng = np.random.default_rng(seed)
    for number in range(40):
        height, width = (int(side) for side in rng.integers(1, 260, 2))
        if number < 4:  # no resize, twice as large, half as large, an extreme aspect ratio
            height, width = ((64, 96), (128, 192), (32, 48), (1, 250))[number]
        channels = (1, 3, 4)[number % 3]
        color = ("bgr", "rgb")[number // 3 % 2]
        image = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
        rows = padded(image, width * channels + int(rng.integers(0, 9)), rng)
        preprocess = Preprocessor(network)
        geometry = preprocess(image, color)
        form = {1: "grey", 3: color, 4: f"{color}a"}[channels]
        frame = Frame(form, height, width, rows.ctypes.data, rows.shape[1])
        found = letterboxed(machine, frame, network, geometry, backwards=number % 2 == 1)
        assert_same_pixels(found, preprocess.tensor[0], network)


@needs_compiler
@pytest.mark.parametrize("network", INPUTS[::3], ids=lambda n: f"{n.layout} {n.color} {n.dtype}")
@pytest.mark.parametrize("planes", ["one block", "apart"])
def test_letterbox_of_nv12_equals_numpy(machine, network, planes):
    rng = np.random.default_rng(1)
    sizes = [(720, 1278, 1280), (2, 2, 2), (64, 96, 96)]
    sizes += [(2 * h, 2 * w, 2 * w + s) for h, w, s in rng.integers(1, 130, (12, 3)).tolist()]
    for height, width, stride in sizes:
        block = rng.integers(0, 256, (3 * height // 2, stride), dtype=np.uint8)
        luma = block[:height]
        chroma = block[height:]
        if planes == "apart":
            chroma = padded(chroma, stride + 6, rng)
        frame = Frame(
            *("nv12", height, width, luma.ctypes.data, stride),
            *(chroma.ctypes.data, chroma.shape[1]),
        )
        preprocess = Preprocessor(network)
        geometry = preprocess(nv12_to_bgr(block, width))
        found = letterboxed(machine, frame, network, geometry)
        assert_same_pixels(found, preprocess.tensor[0], network)


@needs_compiler
@pytest.mark.parametrize("size", [(8, 8), (9, 33), (640, 640), (8, 31), (17, 65)])
def test_inputs_of_any_size_are_filled(machine, size):
    # Grids are rounded up to whole blocks of 32 x 8 threads.
    network = InputInfo("images", 1, *size, letterbox=Letterbox(pad=33))
    image = np.random.default_rng(2).integers(0, 256, (45, 80, 3), dtype=np.uint8)
    preprocess = Preprocessor(network)
    geometry = preprocess(image)
    frame = Frame("bgr", 45, 80, image.ctypes.data, 240)
    found = letterboxed(machine, frame, network, geometry, backwards=True)
    assert_same_pixels(found, preprocess.tensor[0], network)


def test_invalid_frames_are_refused():
    with pytest.raises(ConfigError, match="format is 'yuy2', expected one of grey, bgr"):
        Frame("yuy2", 4, 4, 1, 16)
    with pytest.raises(DataError, match="at least 12 bytes per row"):
        Frame("bgr", 4, 4, 1, 11)
    with pytest.raises(DataError, match="expected an address"):
        Frame("bgr", 4, 4, 0, 12)
    with pytest.raises(DataError, match="0x4 pixels"):
        Frame("bgr", 0, 4, 1, 12)
    with pytest.raises(DataError, match="expected even sides"):
        Frame("nv12", 4, 3, 1, 4, 1, 4)
    with pytest.raises(DataError, match="chroma of the NV12 frame"):
        Frame("nv12", 4, 4, 1, 4, 1, 2)


def test_placements_and_inputs_that_do_not_fit_are_refused():
    network = InputInfo("images", 1, 64, 96)
    frame = Frame("bgr", 45, 80, 1, 240)
    for placement in (
        Placement((45, 81), (54, 96), 5, 0),
        Placement((45, 80), (54, 97), 5, 0),
        Placement((45, 80), (54, 96), 11, 0),
        Placement((45, 80), (54, 96), -1, 0),
    ):
        with pytest.raises(DataError, match="cannot be placed"):
            kernels.letterbox(frame, placement, 1, network, 1)
    with pytest.raises(ConfigError, match="int8 NCHW, expected float32"):
        kernels.require_input(replace(network, dtype="int8"))
    with pytest.raises(ConfigError, match=r"uint8 with scale 0\.0039"):
        kernels.require_input(replace(network, dtype="uint8"))


# --- candidates ----------------------------------------------------------------------------------

LEVELS = (
    LevelInfo(8, ((10.0, 13.0), (16.0, 30.0), (33.0, 23.0))),
    LevelInfo(16, ((30.0, 61.0), (62.0, 45.0), (59.0, 119.0))),
)


def head_manifest(nc=4, batch=2, size=(80, 112), dtype="float32", **output):
    image = InputInfo("images", batch, *size)
    shapes = expected_shapes(image, LEVELS, nc)
    quantised = {}
    if dtype in ("int8", "uint8"):
        least = np.iinfo(dtype).min
        probability = output.get("activation") == "sigmoid"
        quantised = {
            "scale": 1 / 255 if probability else 0.07,
            "zero_point": int(least) if probability else int(least) + 150,
        }
    layout = output.get("layout", "NCHW")
    places = [in_layout(shapes[f"head{i}"], layout) for i in range(2)]
    heads = tuple(
        OutputInfo(f"head{i}", "head", places[i], i, dtype, **quantised, **output) for i in range(2)
    )
    names = tuple(f"class {i}" for i in range(nc))
    changes = {"nc": nc, "names": names, "input": image, "levels": LEVELS, "outputs": heads}
    return replace(make_manifest(), **changes)


def random_heads(manifest, rng, distinct=None):
    """Heads with few objects; ``distinct``: number of different values, for ties."""
    heads = []
    for output in manifest.outputs:
        values = rng.normal(-1, 2, output.shape)
        if distinct:
            values = rng.choice(np.linspace(-6, 4, distinct), output.shape)
        if output.activation == "sigmoid":
            values = 1 / (1 + np.exp(-values))
        if output.scale is not None:
            limits = np.iinfo(output.dtype)
            values = (values / output.scale + output.zero_point).clip(limits.min, limits.max)
        heads.append(np.ascontiguousarray(values.astype(output.dtype)))
    return heads


def selected(machine, manifest, heads, conf, images=None, capacity=4096, backwards=False):
    """What ``Selection.read`` returns, after the kernels filled a buffer of stale bytes."""
    selection = Selection(manifest, capacity)
    anchors = selection.anchors
    memory = np.full(selection.nbytes + 32, 0xEE, np.uint8)
    buffer = memory[-memory.ctypes.data % 16 :][: selection.nbytes]
    images = images or manifest.input.images
    for launch in selection.launches(
        [head.ctypes.data for head in heads], anchors.ctypes.data, buffer.ctypes.data, images, conf
    ):
        machine.run(launch, backwards=backwards)
    after = memory[-memory.ctypes.data % 16 :][selection.nbytes :]
    assert (after == 0xEE).all()
    return selection.read(buffer, images)


def post_of(manifest) -> Postprocessor:
    head = manifest.outputs[0]
    quantised = None if head.scale is None else (head.scale, head.zero_point)
    return Postprocessor(
        manifest.levels, manifest.nc, head.activation, [quantised] * 2, head.layout
    )


def expected_candidates(manifest, heads, image, criteria) -> Boxes:
    if manifest.outputs[0].layout == "NHWC":
        heads = [np.moveaxis(head, -1, 1) for head in heads]
    return post_of(manifest).candidates([head[image] for head in heads], criteria)


@needs_compiler
@pytest.mark.parametrize("distinct", [None, 5], ids=["", "ties"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("activation", ["logit", "sigmoid"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "uint8"])
def test_selection_equals_numpy(machine, dtype, activation, layout, distinct):
    rng = np.random.default_rng(3)
    for nc, conf in ((1, 0.6), (4, 0.25), (80, 0.3), (4, 0.0), (4, 1.0)):
        manifest = head_manifest(nc, dtype=dtype, activation=activation, layout=layout)
        heads = random_heads(manifest, rng, distinct)
        criteria = Criteria(conf=conf, max_det=100_000)
        found = selected(machine, manifest, heads, conf, backwards=nc == 4)
        for image, one in enumerate(found):
            expected = expected_candidates(manifest, heads, image, criteria)
            np.testing.assert_array_equal(one.class_id, expected.class_id)
            np.testing.assert_allclose(one.score, expected.score, rtol=1e-6)
            np.testing.assert_allclose(one.xyxy, expected.xyxy, rtol=1e-5, atol=1e-4)
        assert conf == 1.0 or sum(len(one.score) for one in found) > 50


@needs_compiler
@pytest.mark.parametrize(
    "criteria",
    [
        Criteria(conf=0.2),
        Criteria(conf=0.2, agnostic=True, iou=0.2, max_det=7),
        Criteria(conf=0.2, classes=(1, 3)),
        Criteria(conf=0.1, class_conf=(0.1, 0.3, 0.2, 0.6)),
    ],
    ids=str,
)
def test_detected_boxes_equal_numpy_with_exact_ties(machine, criteria):
    manifest = head_manifest(batch=3)
    heads = random_heads(manifest, np.random.default_rng(4), distinct=4)
    expected = post_of(manifest).heads(heads, criteria)
    assert len(np.unique(expected[0].score)) < len(expected[0].score)
    for backwards in (False, True):
        found = selected(machine, manifest, heads, criteria.conf, backwards=backwards)
        for one, reference in zip(found, expected, strict=True):
            boxes = detected(Boxes(*one), criteria)
            np.testing.assert_array_equal(boxes.class_id, reference.class_id)
            np.testing.assert_allclose(boxes.xyxy, reference.xyxy, rtol=1e-5, atol=1e-4)


@needs_compiler
def test_only_images_of_the_batch_are_examined(machine):
    manifest = head_manifest(batch=3)
    heads = random_heads(manifest, np.random.default_rng(5))
    for head in heads:
        head[2] = np.nan  # an unused place of a fixed batch
    assert len(selected(machine, manifest, heads, 0.25, images=2)) == 2


@needs_compiler
def test_not_a_number_and_infinity_are_treated_as_in_numpy(machine):
    manifest = head_manifest(batch=1)
    heads = random_heads(manifest, np.random.default_rng(6))
    fields = heads[0].reshape(3, 9, -1)
    fields[:, 4, :10] = 5
    fields[0, 5:, 0] = (np.nan, 1, np.nan, 2)  # the best class is not NaN
    fields[0, 5:, 1] = np.nan
    fields[0, 5:, 2] = np.inf  # of equal classes, the first
    fields[0, 5:, 3] = -np.inf
    fields[0, 0, 4] = np.nan  # a box that is not finite
    fields[0, :4, 5] = (np.inf, -np.inf, np.inf, -np.inf)
    (found,) = selected(machine, manifest, heads, 0.25)
    expected = expected_candidates(manifest, heads, 0, Criteria(conf=0.25))
    np.testing.assert_array_equal(found.class_id, expected.class_id)
    np.testing.assert_allclose(found.xyxy, expected.xyxy, rtol=1e-5, atol=1e-4)
    fields[1, 4, 7] = np.nan
    with pytest.raises(DeviceError, match="NaN in 1 values of objectness"):
        selected(machine, manifest, heads, 0.25)


@needs_compiler
def test_more_candidates_than_capacity_are_reported(machine):
    manifest = head_manifest(batch=1)
    heads = random_heads(manifest, np.random.default_rng(7))
    (every,) = selected(machine, manifest, heads, 0.25)
    count = len(every.score)
    (exact,) = selected(machine, manifest, heads, 0.25, capacity=count)
    np.testing.assert_array_equal(exact.score, every.score)
    assert selected(machine, manifest, heads, 0.25, capacity=count - 1) is None


def test_wrong_content_of_the_buffer_is_refused():
    selection = Selection(head_manifest(batch=1), 8)
    buffer = np.zeros(selection.nbytes, np.uint8)
    assert [len(one.score) for one in selection.read(buffer, 1)] == [0]
    buffer[:4] = 255
    with pytest.raises(DeviceError, match="counted -1 candidates"):
        selection.read(buffer, 1)
    buffer[:4] = (2, 0, 0, 0)
    buffer[CANDIDATE.itemsize :].view(CANDIDATE)["image"][1] = 5
    with pytest.raises(DeviceError, match="2 candidates of 1 images"):
        selection.read(buffer, 1)
    with pytest.raises(DeviceError, match="returned 1 candidates"):
        selection.read(buffer[: 2 * CANDIDATE.itemsize], 1)


def test_unsupported_outputs_and_arguments_are_refused():
    with pytest.raises(ConfigError, match=r"boxes \(boxes\) is float32"):
        Selection(make_manifest(outputs="decoded"))
    with pytest.raises(ConfigError, match="is int8 with scale None"):
        heads = tuple(replace(o, scale=None) for o in head_manifest(dtype="int8").outputs)
        Selection(replace(head_manifest(), outputs=heads))
    with pytest.raises(ConfigError, match="capacity is 0"):
        Selection(head_manifest(), 0)
    with pytest.raises(ConfigError, match="there are 1 heads, 1 images"):
        Selection(head_manifest()).launches([1], 1, 1, 1, 0.5)


@needs_compiler
def test_a_trained_model_finds_the_same_objects(machine, tmp_path):
    # Frame, letterbox by the kernel, ONNX Runtime, selection by the kernel, NMS in numpy.
    artifact = export(weights.load(DEMO), tmp_path / "demo.onnx", imgsz=160)
    manifest = artifact.manifest
    criteria = Criteria(conf=0.1)
    detector = Detector(artifact.path, conf=0.1)
    total = 0
    with closing(onnxrt.open(artifact, SessionOptions())) as session:
        for seed in range(6):
            image = scenes.scene(seed, (240, 318)).image
            geometry = Preprocessor(manifest.input)(image)
            frame = Frame("bgr", 240, 318, image.ctypes.data, 3 * 318)
            pixels = letterboxed(machine, frame, manifest.input, geometry)
            outputs = session.infer({manifest.input.name: pixels[None]})
            heads = [np.ascontiguousarray(outputs[o.name]) for o in manifest.outputs]
            (one,) = selected(machine, manifest, heads, criteria.conf)
            found = detected(Boxes(*one), criteria)
            expected = detector(image)
            assert len(found.score) == len(expected)
            np.testing.assert_array_equal(found.class_id, expected.class_id)
            np.testing.assert_allclose(found.score, expected.confidence, rtol=1e-6)
            np.testing.assert_allclose(geometry.to_source(found.xyxy), expected.xyxy, atol=1e-3)
            total += len(expected)
    assert total > 20


@needs_compiler
def test_a_wrong_parameter_is_noticed(machine, monkeypatch):
    monkeypatch.setitem(PARAMETERS, "clear_candidates", "Pi")
    with pytest.raises(AssertionError, match="takes other arguments"):
        machine.run(kernels.Launch("clear_candidates", (1, 1, 1), (1, 1, 1), (1, 2)))
