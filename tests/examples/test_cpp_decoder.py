"""The decoder of examples/cpp, compiled and compared with numpy's boxes on heads of artifacts."""

from __future__ import annotations

import ctypes
import itertools
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from y7edge.artifact.artifact import read_sidecar
from y7edge.artifact.c_header import c_header
from y7edge.artifact.manifest import LevelInfo
from y7edge.data.synthetic import scenes
from y7edge.detect.inference import _placed
from y7edge.detect.postprocess import Boxes, Criteria, Postprocessor
from y7edge.detect.preprocess import Preprocessor, letterbox_geometry
from y7edge.runtimes import registry

CPP = Path(__file__).parents[2] / "examples" / "cpp"
INT8 = (
    CPP.parents[1]
    / "tests/reference/artifacts/litert/narrow-precision-int8-quantize_heads-True.tflite"
)
STRICT = ("-Wall", "-Wextra", "-Werror", "-pedantic", "-ffp-contract=off", f"-I{CPP}")
LOGIT = 2e-6  # largest relative difference of scores and corners, if the heads are logits

needs_compiler = pytest.mark.skipif(
    not (shutil.which("gcc") and shutil.which("g++")), reason="gcc or g++ is not installed"
)
pytestmark = needs_compiler


def compile_program(folder, header, *options):
    """Compile decode.cpp with a model's header; return a function that runs it."""
    (folder / "model.h").write_text(header)
    program = folder / "decode"
    command = ["g++", "-std=c++11", *STRICT, *options, f"-I{folder}", str(CPP / "decode.cpp")]
    subprocess.run([*command, "-o", str(program)], check=True)

    def run(heads, *arguments):
        files = []
        for index, head in enumerate(heads):
            files.append(folder / f"head{index}.bin")
            head.tofile(files[-1])
        return subprocess.run(
            [program, *map(str, (*arguments, *files))], capture_output=True, text=True, check=False
        )

    return run


def boxes_of(done):
    """Return the boxes of each image that the program printed."""
    assert done.returncode == 0, done.stderr
    images = [json.loads(line)["detections"] for line in done.stdout.splitlines()]
    return [
        Boxes(
            np.array([box["xyxy"] for box in found], np.float32).reshape(-1, 4),
            np.array([box["confidence"] for box in found], np.float32),
            np.array([box["class_id"] for box in found], np.int32),
        )
        for found in images
    ]


def require_equal(found, expected, tolerance=LOGIT):
    """Compare boxes; those whose scores differ by rounding may have another order."""
    assert len(found.score) == len(expected.score)
    assert (found.score[1:] <= found.score[:-1]).all()
    apart = np.abs(found.xyxy[:, None] - expected.xyxy).max(axis=2, initial=0)
    apart[found.class_id[:, None] != expected.class_id] = np.inf
    order = apart.argmin(axis=0) if len(apart) else np.empty(0, int)
    assert sorted(order) == list(range(len(order)))
    found = Boxes(*(values[order] for values in found))
    np.testing.assert_allclose(found.score, expected.score, rtol=tolerance, atol=0)
    limits = tolerance * np.abs(expected.xyxy).max(axis=1, initial=0, keepdims=True)
    assert (np.abs(found.xyxy - expected.xyxy) <= limits).all()


@pytest.mark.parametrize("activation", ["logit", "sigmoid"])
def test_heads_of_a_trained_model(parts_model, tmp_path, activation):
    """The program prints the Detector's boxes, in pixels of the image; no sanitizer complains.

    If the heads have sigmoids, the boxes are equal bit by bit.
    """
    artifact = registry.load(parts_model)
    names = ('a"b', "back\\slash", "??/ */ //", "Öse 日本 \N{ROCKET} 100%s")
    outputs = tuple(replace(one, activation=activation) for one in artifact.manifest.outputs)
    manifest = replace(artifact.manifest, names=names, outputs=outputs)
    run = compile_program(
        tmp_path,
        c_header(manifest),
        "-g",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=undefined",
    )
    image, place = manifest.input, Preprocessor(manifest.input)
    numpy = Postprocessor(manifest.levels, manifest.nc, activation)
    session, count = registry.open_session(artifact), 0
    for seed, size in enumerate([(160, 160), (97, 203), (300, 99)]):
        geometry = place(scenes.scene(seed, size).image)
        found = session.infer({image.name: place.tensor})
        heads = [found[output.name] for output in outputs]
        if activation == "sigmoid":
            heads = [1 / (1 + np.exp(-head)) for head in heads]
        (expected,) = numpy.heads(heads, Criteria())
        expected = _placed(expected, geometry)
        done = run(heads, "--image", f"{size[1]}x{size[0]}")
        require_equal(boxes_of(done)[0], expected, LOGIT if activation == "logit" else 0)
        for box in json.loads(done.stdout)["detections"]:
            assert box["class_name"] == names[box["class_id"]]
        count += len(expected.score)
    session.close()
    assert count >= 8


LIBRARY = """
#include "y7edge.h"
size_t workspace(const y7edge_model_info *m) { return y7edge_workspace_size(m); }
int decode(const y7edge_model_info *m, const y7edge_tensor *h, int i, const y7edge_criteria *c,
           void *w, size_t n, y7edge_box *b, int k) {
  return y7edge_decode(m, h, i, c, w, n, b, k);
}
y7edge_letterbox fit(const y7edge_model_info *m, int w, int h) { return y7edge_fit(m, w, h); }
int to_image(const y7edge_letterbox *f, y7edge_box *b, int n) { return y7edge_to_image(f, b, n); }
"""
INT, DOUBLE, TEXT, POINTER = ctypes.c_int, ctypes.c_double, ctypes.c_char_p, ctypes.c_void_p


class Head(ctypes.Structure):
    _fields_ = [
        *(("name", TEXT), ("dtype", INT), ("channels_last", INT), ("sigmoid", INT)),
        *(("scale", DOUBLE), ("zero_point", INT), ("stride", INT), ("anchors", INT)),
        ("anchor", POINTER),
    ]


class Model(ctypes.Structure):
    _fields_ = [
        *(("name", TEXT), ("digest", TEXT), ("input_name", TEXT), ("batch", INT)),
        *(("height", INT), ("width", INT), ("input_channels_last", INT), ("input_dtype", INT)),
        *(("input_scale", DOUBLE), ("input_zero", INT), ("bgr", INT), ("pad", INT)),
        *(("black", INT), ("white", INT), ("classes", INT), ("names", POINTER)),
        *(("conf", DOUBLE), ("iou", DOUBLE), ("max_det", INT), ("levels", INT)),
        ("heads", ctypes.POINTER(Head)),
    ]


class Tensor(ctypes.Structure):
    _fields_ = [("data", POINTER), ("bytes", ctypes.c_size_t)]


class CCriteria(ctypes.Structure):
    _fields_ = [
        *(("conf", DOUBLE), ("iou", DOUBLE), ("max_det", INT), ("agnostic", INT)),
        *(("class_conf", POINTER), ("wanted", POINTER)),
    ]


class Letterbox(ctypes.Structure):
    names = ("image_width", "image_height", "width", "height", "left", "top")
    _fields_ = [(name, INT) for name in names]


ROW = np.dtype([("xyxy", np.float32, 4), ("score", np.float32), ("class_id", np.int32)])
DTYPES = ("float32", "float16", "int8", "uint8", "int16", "uint16")
LEVELS = (
    LevelInfo(8, ((10.0, 13.5), (16, 30))),
    LevelInfo(16, ((30, 61), (62, 45), (59, 119.3))),
    LevelInfo(32, ((116, 90),)),
)
SIZE = (64, 96)  # height, width


class Decoder:
    """The decoder as a C library, for one kind of heads of ``LEVELS``."""

    def __init__(self, library, dtype, layout, activation, nc, quantization=(None,) * 3):
        self.library = library
        self.numpy = Postprocessor(LEVELS, nc, activation, quantization, layout)
        self.nc = nc
        self.anchors = [np.array(level.anchors, np.float32) for level in LEVELS]
        self.heads = (Head * 3)(
            *(
                Head(
                    *(b"head", DTYPES.index(dtype), layout == "NHWC", activation == "sigmoid"),
                    *(quantization[i] or (0.0, 0)),
                    *(LEVELS[i].stride, len(LEVELS[i].anchors), self.anchors[i].ctypes.data),
                )
                for i in range(3)
            )
        )
        self.model = Model(height=SIZE[0], width=SIZE[1], classes=nc, levels=3, heads=self.heads)

    def __call__(self, heads, criteria, image=0, sizes=None, capacity=None):
        """Return the boxes of the library, or its error."""
        class_conf = wanted = None
        if criteria.class_conf is not None:
            class_conf = np.array(criteria.class_conf, np.float32)
        if criteria.classes is not None:
            wanted = np.isin(np.arange(self.nc), criteria.classes).astype(np.uint8)
        given = CCriteria(
            *(criteria.conf, criteria.iou, criteria.max_det, criteria.agnostic),
            *(None if values is None else values.ctypes.data for values in (class_conf, wanted)),
        )
        heads = [np.ascontiguousarray(head) for head in heads]
        sizes = sizes or [head.nbytes for head in heads]
        tensors = (Tensor * 3)(
            *(Tensor(head.ctypes.data, size) for head, size in zip(heads, sizes, strict=True))
        )
        memory = ctypes.create_string_buffer(self.library.workspace(ctypes.byref(self.model)) or 1)
        capacity = criteria.max_det if capacity is None else capacity
        rows = np.zeros(max(capacity, 0) + 1, ROW)
        rows[-1] = ([7, 7, 7, 7], 7, 7)  # is not overwritten
        count = self.library.decode(
            *(ctypes.byref(self.model), tensors, image, ctypes.byref(given)),
            *(memory, ctypes.c_size_t(len(memory)), POINTER(rows.ctypes.data), capacity),
        )
        assert rows[-1]["class_id"] == 7
        found = rows[: max(count, 0)]
        return count if count < 0 else Boxes(found["xyxy"], found["score"], found["class_id"])


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The header compiled as C, with checks for undefined behaviour that end the process."""
    folder = tmp_path_factory.mktemp("library")
    (folder / "library.c").write_text(LIBRARY)
    command = ["gcc", "-std=c99", *STRICT, "-Wconversion", "-O2", "-shared", "-fPIC"]
    command += ["-fsanitize=undefined", "-fno-sanitize-recover=undefined"]
    made = folder / "library.so"
    subprocess.run([*command, str(folder / "library.c"), "-lm", "-o", str(made)], check=True)
    loaded = ctypes.CDLL(str(made))
    loaded.workspace.restype = ctypes.c_size_t
    loaded.fit.restype = Letterbox
    return loaded


def random_heads(seed, dtype, layout, activation, nc, quantization, batch=2):
    """Heads with few candidates, equal scores, and values that are not finite."""
    generator = np.random.default_rng(seed)
    heads = []
    for level, numbers in zip(LEVELS, quantization, strict=True):
        rows, columns = (side // level.stride for side in SIZE)
        shape = (batch, len(level.anchors), 5 + nc, rows, columns)
        values = generator.normal(-1, 2, shape)
        if activation == "sigmoid":
            values = 1 / (1 + np.exp(-values.round(1)))  # rounded: some scores are equal
        if numbers is None:
            places = generator.random(shape)
            for number, hostile in enumerate((np.nan, np.inf, -np.inf, 65504, -65504)):
                values[places < 0.002 * (5 - number)] = hostile
        else:
            limits = np.iinfo(dtype)
            values = (values / numbers[0] + numbers[1]).round().clip(limits.min, limits.max)
        head = values.reshape(batch, -1, rows, columns).astype(dtype)
        heads.append(np.moveaxis(head, 1, -1) if layout == "NHWC" else head)
    return heads


QUANTIZATION = {
    ("int8", "logit"): ((0.09, -7), (0.11, 30), (0.0625, 0)),
    ("int8", "sigmoid"): ((1 / 256, -128), (1 / 255, -128), (1 / 200, -100)),
    ("uint8", "logit"): ((0.09, 120), (0.11, 130), (0.0625, 0)),
    ("uint8", "sigmoid"): ((1 / 256, 0), (1 / 255, 0), (1 / 200, 3)),
    ("int16", "logit"): ((3e-4, -7), (4e-4, 30), (5e-4, 0)),
    ("int16", "sigmoid"): ((1 / 32768, 0), (1 / 32767, 0), (1 / 20000, 0)),
    ("uint16", "logit"): ((3e-4, 30000), (4e-4, 32768), (5e-4, 0)),
    ("uint16", "sigmoid"): ((1 / 65536, 0), (1 / 65535, 0), (1 / 65535, 5)),
}
CRITERIA = (
    Criteria(),
    Criteria(conf=0.001, iou=0.65, max_det=100_000),
    Criteria(conf=0, iou=0, max_det=7),
    Criteria(conf=0.3, iou=0.5, agnostic=True),
    Criteria(conf=0.1, classes=(0,), iou=1),
    Criteria(conf=0.05, class_conf=(0.5, 0.1, 0.2)),
    Criteria(conf=1),
)


@pytest.mark.parametrize("activation", ["logit", "sigmoid"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered")
def test_random_heads(library, dtype, layout, activation):
    """The library returns numpy's boxes: with sigmoids in the heads, bit by bit."""
    quantization = QUANTIZATION.get((dtype, activation), (None,) * 3)
    count = 0
    for nc, (number, criteria) in itertools.product((1, 3), enumerate(CRITERIA)):
        if criteria.class_conf and nc == 1:
            criteria = replace(criteria, class_conf=(0.5,))
        decoder = Decoder(library, dtype, layout, activation, nc, quantization)
        heads = random_heads(number, dtype, layout, activation, nc, quantization)
        for image, expected in enumerate(decoder.numpy.heads(heads, criteria)):
            found = decoder(heads, criteria, image)
            if activation == "sigmoid":
                for one, other in zip(found, expected, strict=True):
                    np.testing.assert_array_equal(one, other)
            else:
                require_equal(found, expected)
            count += len(expected.score)
    assert count > 300


def test_more_candidates_than_the_limit(library):
    """Of many candidates, numpy and the library examine the same ones."""
    level = (
        LevelInfo(1, ((3.0, 4.0), (5.0, 2.0), (1.0, 1.0), (2.0, 2.0), (3.0, 3.0), (4.0, 4.0))),
    )
    decoder = Decoder(library, "float32", "NCHW", "sigmoid", 1)
    anchors = np.array(level[0].anchors, np.float32)
    heads = (Head * 1)(Head(b"head", 0, 0, 1, 0.0, 0, 1, 6, anchors.ctypes.data))
    decoder.model = Model(height=SIZE[0], width=SIZE[1], classes=1, levels=1, heads=heads)
    decoder.numpy = Postprocessor(level, 1, "sigmoid")
    head = np.random.default_rng(0).random((1, 36, *SIZE), np.float32).round(3)
    criteria = Criteria(conf=0.01, iou=0.01, max_det=100_000)
    (expected,) = decoder.numpy.heads([head], criteria)
    found = decoder([head], criteria)
    assert len(expected.score) < 30_000 < (head[0, 4::6] > 0.01).sum()
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_letterbox(library):
    """Fit and mapping of boxes are those of the Detector, for sides of any parity."""
    generator = np.random.default_rng(0)
    for index in range(300):
        height, width = (int(side) for side in generator.integers(1, [700, 900][index % 2], 2))
        model = Model(height=SIZE[0], width=SIZE[1])
        fit = library.fit(ctypes.byref(model), width, height)
        geometry = letterbox_geometry((height, width), SIZE)
        expected = (width, height, *geometry.resized_hw[::-1], geometry.left, geometry.top)
        assert tuple(getattr(fit, name) for name in Letterbox.names) == expected
        xyxy = generator.uniform(-20, 120, (9, 4)).astype(np.float32)
        rows = np.zeros(9, ROW)
        rows["xyxy"] = xyxy
        count = library.to_image(ctypes.byref(fit), POINTER(rows.ctypes.data), 9)
        mapped = geometry.to_source(xyxy)
        kept = (mapped[:, 2:] > mapped[:, :2]).all(axis=1)
        np.testing.assert_array_equal(rows["xyxy"][:count], mapped[kept])


NO_ANCHORS = np.array([1, np.nan, 3, 4], np.float32)  # lives as long as its address is used


def changed(level, **values):
    """A change of one head of a model."""

    def change(model):
        for name, value in values.items():
            setattr(model.heads[level], name, value)

    return change


@pytest.mark.parametrize(
    "change",
    [
        *(changed(1, stride=value) for value in (0, -8, 7, 2048)),
        *(changed(2, anchors=value) for value in (0, -1, 65, 2**31 - 1)),
        *(changed(0, dtype=value) for value in (-1, 6)),
        *(changed(0, dtype=2, scale=value) for value in (0, -1, float("nan"), float("inf"))),
        changed(0, anchor=None),
        changed(0, anchor=NO_ANCHORS.ctypes.data),
        *(
            lambda model, pair=pair: setattr(model, *pair)
            for pair in (
                *(("levels", value) for value in (0, -1, 9, 2**31 - 1)),
                *(("classes", value) for value in (0, -5, 65537)),
                *(("height", value) for value in (0, -64, 65, 2**31 - 32)),
                *(("width", value) for value in (0, 2**30)),
                ("batch", -1),
                ("heads", None),
            )
        ),
    ],
)
def test_hostile_models(library, change):
    """A model with impossible constants is refused before its heads are read."""
    decoder = Decoder(library, "float32", "NCHW", "logit", 3)
    heads = random_heads(0, "float32", "NCHW", "logit", 3, (None,) * 3)
    assert decoder(heads, Criteria(conf=0.01)).score.size
    change(decoder.model)
    assert library.workspace(ctypes.byref(decoder.model)) == 0
    assert decoder(heads, Criteria()) == -1


def test_hostile_arguments(library):
    """Small heads, impossible images and thresholds that are not 0 to 1 are refused."""
    decoder = Decoder(library, "float32", "NCHW", "logit", 3)
    heads = random_heads(0, "float32", "NCHW", "logit", 3, (None,) * 3)
    sizes = [head.nbytes for head in heads]
    assert decoder(heads, Criteria(), image=2) == -3
    assert decoder(heads, Criteria(), image=1, sizes=[*sizes[:2], sizes[2] - 1]) == -3
    assert decoder(heads, Criteria(), sizes=[0, *sizes[1:]]) == -3
    assert decoder(heads, Criteria(), image=-1) == -2
    assert decoder(heads, Criteria(), capacity=0) == decoder(heads, Criteria(), capacity=-1) == -2
    for name, value in (("conf", -0.1), ("conf", np.nan), ("iou", 1.1), ("max_det", 0)):
        criteria = Criteria()
        object.__setattr__(criteria, name, value)
        assert decoder(heads, criteria, capacity=5) == -2
    decoder.model.batch = 1
    assert decoder(heads, Criteria(), image=1) == -2
    assert len(decoder(heads, Criteria(conf=0.01), capacity=3).score) == 3


def test_int8_heads_of_a_tflite_file(tmp_path):
    """With the constants of a full-integer artifact, int8 heads give numpy's boxes."""
    manifest = read_sidecar(INT8)
    assert {(head.dtype, head.layout) for head in manifest.outputs} == {("int8", "NHWC")}
    quantization = [(head.scale, head.zero_point) for head in manifest.outputs]
    generator, heads = np.random.default_rng(1), []
    for head, (scale, zero) in zip(manifest.outputs, quantization, strict=True):
        values = generator.normal(-2, 1.5, head.shape) / scale + zero
        heads.append(values.round().clip(-128, 127).astype(np.int8))
    numpy = Postprocessor(manifest.levels, manifest.nc, "logit", quantization, "NHWC")
    run = compile_program(tmp_path, c_header(manifest), "-O2")
    height, width = manifest.input.height, manifest.input.width
    for conf, iou, max_det in ((0.25, 0.45, 300), (0.05, 0.7, 20)):
        (expected,) = numpy.heads(heads, Criteria(conf=conf, iou=iou, max_det=max_det))
        expected = _placed(expected, letterbox_geometry((97, 120), (height, width)))
        thresholds = ("--conf", conf, "--iou", iou, "--max-det", max_det)
        (found,) = boxes_of(run(heads, "--image", "120x97", *thresholds, "--bench", 2))
        require_equal(found, expected)
        assert len(found.score) > 5
    for arguments, message in (
        (("--conf", "nan"), "--conf is 'nan'"),
        (("--image", "10x"), "WIDTHxHEIGHT"),
        (("--zzz", 1), "no option --zzz"),
        (("more.bin",), "4 files were given"),
    ):
        done = run(heads, *arguments)
        assert done.returncode == 1 and message in done.stderr
    done = run([heads[0][:, 1:], *heads[1:]])
    assert done.returncode == 1 and "expected a multiple of" in done.stderr


@pytest.mark.parametrize("conf", [0.001, 0.25, 0.5, 0.999])
@pytest.mark.parametrize("activation", ["logit", "sigmoid"])
def test_scores_near_the_threshold(library, conf, activation):
    """The first scan of the raw objectness loses no candidate, and keeps none below."""
    decoder = Decoder(library, "float32", "NCHW", activation, 1)
    heads = random_heads(0, "float32", "NCHW", "logit", 1, (None,) * 3, batch=1)
    for head in heads:
        fields = np.nan_to_num(head, nan=0, posinf=0, neginf=0).reshape(-1, 6, *head.shape[2:])
        scores = conf * (1 + np.linspace(-1e-4, 1e-4, fields[:, 4].size)).reshape(
            fields[:, 4].shape
        )
        fields[:, 4] = np.log(scores / (1 - scores)) if activation == "logit" else scores
        fields[:, 2:4] = 0.1 if activation == "sigmoid" else -5
        head[:] = fields.reshape(head.shape)
    criteria = Criteria(conf=conf, iou=1, max_det=100_000)
    (expected,) = decoder.numpy.heads(heads, criteria)
    found = decoder(heads, criteria)
    assert len(expected.score) > 100
    if activation == "sigmoid":
        np.testing.assert_array_equal(found.score, expected.score)
    # In the last bits, a logit at the threshold may be on either side of it.
    sure = [boxes.score[boxes.score > conf * (1 + 1e-6)] for boxes in (found, expected)]
    assert len(sure[0]) == len(sure[1]) and abs(len(found.score) - len(expected.score)) < 10
