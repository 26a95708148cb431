"""Target litert: the interpreter of its own, and the committed artifacts."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import pytest

from tests.runtimes.conftest import SIZE, committed, unavailable
from y7edge import Detector, interpreters
from y7edge.data.synthetic import scenes
from y7edge.detect.postprocess import Criteria, Postprocessor
from y7edge.detect.preprocess import Preprocessor
from y7edge.detect.selftest import as_input, probe_input, recipe_for, selftest
from y7edge.errors import ExportError, ParityError, RuntimeMissing
from y7edge.export import export
from y7edge.export.folding import fold_checkpoint
from y7edge.export.graph.build import build_graph
from y7edge.export.graph.quantize import placement_of, ranges_of
from y7edge.export.graph.quantize_check import parse
from y7edge.export.graph.quantize_ranges import Histogram
from y7edge.export.quantization import Quantizer
from y7edge.export.targets import _litert_convert as script
from y7edge.export.targets import litert_file
from y7edge.models import registry as models
from y7edge.models.scaling import scale
from y7edge.nn.random_weights import random_weights
from y7edge.runtimes import base, registry, tflite
from y7edge.runtimes.base import SessionOptions

VARIABLE = "Y7EDGE_LITERT_PYTHON"
KEPT = [
    {},
    {"precision": "fp16"},
    {"batch": 2},
    {"batch": 8, "imgsz": 320},
    {"outputs": "decoded"},
    {"precision": "int8"},
    {"precision": "int8", "quantize_heads": True},
]
INT8 = KEPT[-2:]
FLOAT32 = 0  # TensorType of schema.fbs


def narrowest():
    """The model of the committed artifacts."""
    spec = scale(models.get("yolov7-tiny", nc=3), width=0.03)
    return replace(random_weights(spec, seed=3), names=("nut", "washer", "screw"))


def kept_export(options, out, folder):
    """Export the model of the committed artifacts; int8 with four synthetic images."""
    options = {"imgsz": SIZE, **options}
    if options.get("precision") == "int8":
        folder.mkdir(parents=True)
        for seed in range(4):
            cv2.imwrite(str(folder / f"{seed}.png"), scenes.scene(seed, (120, 160)).image)
        options |= {"calib": folder, "unverified": "random weights", "ranges": "minmax"}
    return export(narrowest(), out, target="litert", **options)


@pytest.fixture
def program(monkeypatch, tmp_path):
    """Stand in for the interpreter with litert-torch: a shell script that answers for it."""

    def install(convert):
        path = tmp_path / "python with blanks"
        versions = '{"litert-torch": "1.0", "litert-converter": "1", "ai-edge-quantizer": "1",'
        path.write_text(
            f'#!/bin/sh\nif [ "$2" = "-c" ]; then echo \'{versions} "torch": "1"}}\'; exit; fi\n'
            f"{convert}\n"
        )
        path.chmod(0o755)
        monkeypatch.setenv(VARIABLE, str(path))
        interpreters._versions.cache_clear()
        return path

    yield install
    interpreters._versions.cache_clear()


def exported(narrow_tiny, tmp_path):
    out = tmp_path / "out" / "m.tflite"
    try:
        return export(narrow_tiny, out, target="litert", imgsz=SIZE)
    finally:
        assert not out.exists()


def test_without_an_interpreter_the_recipe_is_named_before_the_work(
    narrow_tiny, tmp_path, monkeypatch
):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(interpreters, "find_spec", lambda _: None)
    with pytest.raises(
        RuntimeMissing, match=rf"pip install litert-torch.*set {VARIABLE}="
    ) as found:
        exported(narrow_tiny, tmp_path)
    assert "\n" not in str(found.value)


def test_both_missing_packages_are_named_at_once(narrow_tiny, tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(interpreters, "find_spec", lambda _: None)
    monkeypatch.setattr(base, "missing", lambda _: ["ai_edge_litert"])
    with pytest.raises(RuntimeMissing, match=rf"y7edge\[litert\].*litert-torch.*set {VARIABLE}="):
        exported(narrow_tiny, tmp_path)


def test_this_interpreter_is_used_if_it_has_the_package(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(interpreters, "find_spec", lambda _: True)
    assert os.access(litert_file._interpreter(), os.X_OK)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "does not exist|expected a Python interpreter"),
        ("#!/bin/sh\necho '{}'\n", "does not have litert-torch, litert-converter"),
        ("#!/bin/sh\necho hello\n", "is not a Python interpreter"),
        ("#!/bin/sh\nexit 3\n", "is not a Python interpreter"),
    ],
)
def test_an_unusable_interpreter_is_named(narrow_tiny, tmp_path, monkeypatch, text, problem):
    path = tmp_path / "python"
    if text:
        path.write_text(text)
        path.chmod(0o755)
    monkeypatch.setenv(VARIABLE, str(path))
    interpreters._versions.cache_clear()
    with pytest.raises(RuntimeMissing, match=problem):
        exported(narrow_tiny, tmp_path)
    interpreters._versions.cache_clear()


def test_the_converters_last_words_are_in_the_error(narrow_tiny, tmp_path, program, capfd):
    program("echo noise; echo first >&2; echo 'ValueError: no such  op' >&2; exit 1")
    with pytest.raises(ExportError, match=r"cannot .*: ValueError: no such op .code 1"):
        exported(narrow_tiny, tmp_path)
    assert "noise" not in "".join(capfd.readouterr())


def test_a_converter_that_writes_nothing_fails(narrow_tiny, tmp_path, program):
    program("exit 0")
    with pytest.raises(ExportError, match="ended without an error, but wrote no file: no message"):
        exported(narrow_tiny, tmp_path)


def test_a_converter_that_hangs_is_ended(narrow_tiny, tmp_path, program, monkeypatch):
    program("exec sleep 60")
    monkeypatch.setattr(litert_file, "_SECONDS", 0.5)
    with pytest.raises(ExportError, match=r"it took more than 0\.5 s"):
        exported(narrow_tiny, tmp_path)


def test_the_converter_is_offline_and_has_no_home(narrow_tiny, tmp_path, program):
    program(
        'test "$HF_HUB_OFFLINE" = 1 && test "$HOME" = "$PWD" && test "$TMPDIR" = "$PWD"'
        ' && test "$1" = -I && test -s "$3" && test "$5" = fp32 || exit 1\n'
        'echo "it was called right" >&2; exit 9'
    )
    with pytest.raises(ExportError, match="called right"):
        exported(narrow_tiny, tmp_path)


@pytest.mark.parametrize("options", KEPT, ids=str)
def test_committed_artifacts_pass_their_proof(options):
    path = committed(litert_file, options)
    artifact = registry.load(path)
    assert selftest(path).status == "passed"
    assert artifact.manifest.input.layout == "NHWC"
    dtype = "int8" if options.get("quantize_heads") else "float32"
    assert {output.dtype for output in artifact.manifest.outputs} == {dtype}
    image = ("int8", 1.0, -128) if options in INT8 else ("float32", 1 / 255, 0)
    found = artifact.manifest.input
    assert (found.dtype, found.scale, found.zero_point) == image


@pytest.mark.slow
@pytest.mark.parametrize("options", KEPT, ids=str)
def test_conversion_gives_the_committed_artifact(options, tmp_path):
    if VARIABLE not in os.environ:
        pytest.skip(f"{VARIABLE} is not set")
    assert not unavailable(litert_file)
    kept = registry.load(committed(litert_file, options))
    made = kept_export(options, tmp_path / kept.path.name, tmp_path / "images")
    if all(made.manifest.tools[k] == kept.manifest.tools[k] for k in litert_file._PACKAGES):
        assert made.manifest.payload_digest == kept.manifest.payload_digest
    image = made.manifest.input
    key = {"recipe": recipe_for(image), "key": "a"}
    pixels = probe_input(**key, shape=(int(image.batch), 3, image.height, image.width))
    images = as_input(pixels, image)
    results = []
    for artifact in (kept, made):
        session = registry.open_session(artifact, SessionOptions("cpu", 1))
        results.append(session.infer({"images": images}))
    for name, array in results[0].items():
        scale_of = np.abs(array.astype(np.float32)).max()
        np.testing.assert_allclose(results[1][name], array, atol=1e-4 * scale_of)


def write_committed() -> None:
    """Write the committed artifacts again; see tests/reference/README.md."""
    for options in KEPT:
        out = committed(litert_file, options)
        with TemporaryDirectory() as folder:
            made = kept_export(options, out, Path(folder) / "images")
        print(Path(out).name, made.size)


# --- int8 ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quantizer():
    size = {"height": 64, "width": 96, "batch": 1}
    checkpoint = fold_checkpoint(narrowest())
    graph = build_graph(checkpoint, outputs="heads", precision="fp32", **size)
    images = np.random.default_rng(0).random((2, 1, 3, 64, 96), np.float32)
    return Quantizer(graph, images, litert_file.PROFILES[0])


def read(quantizer, kept, path):
    """What the target reads of a QDQ graph, and the graph."""
    model = quantizer.quantized(kept)
    path.write_bytes(model.SerializeToString())
    return *litert_file._of_qdq(path, fold_checkpoint(narrowest())), parse(model)


def test_weights_and_ranges_are_those_of_the_graph(quantizer, tmp_path):
    kept = {quantizer.layers[7].name, *quantizer.heads}
    checkpoint, operators, graph = read(quantizer, kept, tmp_path / "q.onnx")
    plain = fold_checkpoint(narrowest())
    convolutions = operators["CONV_2D"]
    assert len(convolutions) == len(quantizer.layers) == 58
    assert len(operators["CONCATENATION"]) == 14
    assert not operators["ADD"]
    for layer, found in zip(quantizer.layers, convolutions, strict=True):
        (node,) = (n for n in graph.model.graph.node if n.name == layer.name)
        key = node.input[1].removesuffix("/dequantized")
        weight, before = checkpoint.arrays[key], plain.arrays[key]
        ohwi = np.ascontiguousarray(weight.transpose(0, 2, 3, 1))
        assert found["weights"] == hashlib.sha256(ohwi).hexdigest()
        if layer.name in kept:
            assert found["written"] is None
            np.testing.assert_array_equal(weight, before)
            continue
        constant, numbers = graph.constants[node.input[1]], graph.tensors[node.output[0]]
        scale = constant.numbers.scale[:, None, None, None]
        np.testing.assert_array_equal(weight, (constant.values * scale).astype(np.float32))
        assert np.abs(weight - before).max() <= scale.max() * 0.5001
        low, high = found["written"]
        assert low <= 0 <= high
        assert (high - low) / 255 == pytest.approx(float(numbers.scale))
        assert -low / float(numbers.scale) == pytest.approx(int(numbers.zero))
        assert weight.dtype == np.float32
    before_heads = [c for c in convolutions if c["written"] and not c["activated"]]
    assert len(before_heads) == len(quantizer.heads)  # their activations are read in float


def test_operators_are_in_the_order_of_rows(quantizer, tmp_path):
    """Simplified graphs may have another order."""
    _, expected, _ = read(quantizer, (), tmp_path / "q.onnx")
    model = quantizer.quantized(())
    nodes = list(model.graph.node)[::-1]
    rows = {litert_file._row(node) for node in nodes}
    del model.graph.node[:]
    for row in sorted(rows, reverse=True):
        model.graph.node.extend(n for n in nodes[::-1] if litert_file._row(n) == row)
    path = tmp_path / "reversed.onnx"
    path.write_bytes(model.SerializeToString())
    assert litert_file._of_qdq(path, fold_checkpoint(narrowest()))[1] == expected


@pytest.fixture(scope="module")
def floats():
    """The committed float file, read by the converter's script."""
    pytest.importorskip("ai_edge_litert")
    return str(committed(litert_file, {}))


def with_float_weights(quantizer, tmp_path):
    """The operators of a graph of integers, with the weights of the float file."""
    _, plain, _ = read(quantizer, [layer.name for layer in quantizer.layers], tmp_path / "f.onnx")
    _, operators, _ = read(quantizer, (), tmp_path / "q.onnx")
    for found, layer in zip(operators["CONV_2D"], plain["CONV_2D"], strict=True):
        found["weights"] = layer["weights"]
    return operators


def test_every_tensor_of_a_file_gets_a_range(quantizer, floats, tmp_path):
    operators = with_float_weights(quantizer, tmp_path)
    limits, kept = script.assigned(floats, operators)
    assert not kept
    assert limits[next(iter(limits))] == [0.0, 1.0]
    written = list(script.operators(floats))
    assert set(limits) == {written[0][1][0].name, *(outputs[0].name for _, _, outputs in written)}
    convolutions = iter(operators["CONV_2D"])
    for kind, inputs, outputs in written:
        name = outputs[0].name
        if kind == "CONV_2D":
            layer = next(convolutions)
            assert limits[name] == layer["written"]
        elif kind in ("MUL", "MAXIMUM"):
            assert limits[name] == layer["activated"]
        elif kind in ("PAD", "MAX_POOL_2D", "RESIZE_NEAREST_NEIGHBOR"):
            assert limits[name] == limits[inputs[0].name]


def test_a_convolution_in_float_keeps_its_activation(quantizer, floats, tmp_path):
    operators = with_float_weights(quantizer, tmp_path)
    operators["CONV_2D"][7]["written"] = None
    operators["CONV_2D"][9]["activated"] = None
    operators["CONCATENATION"][2] = None
    _, kept = script.assigned(floats, operators)
    kinds, layer, joined = [], -1, -1
    for kind, _, outputs in script.operators(floats):
        layer, joined = layer + (kind == "CONV_2D"), joined + (kind == "CONCATENATION")
        if outputs[0].name in kept:
            kinds.append((kind, joined if kind == "CONCATENATION" else layer))
    assert ("CONV_2D", 7) in kinds and ("CONV_2D", 9) not in kinds
    assert {("MUL", 7), ("MAXIMUM", 7), ("MUL", 9), ("MAXIMUM", 9), ("CONCATENATION", 2)} < {*kinds}
    assert not any(kind == "CONV_2D" and layer != 7 for kind, layer in kinds)


def test_a_sigmoid_is_in_float_if_its_product_is(monkeypatch):
    def tensor(name):
        return script.Tensor(name, FLOAT32, name.encode() if name == "w" else b"")

    rows = [("CONV_2D", "xw", "c"), ("LOGISTIC", "c", "s"), ("MUL", "cs", "m")]
    found = [(k, [*map(tensor, i)], [tensor(o)]) for k, i, o in rows]
    monkeypatch.setattr(script, "operators", lambda _: iter(found))
    layer = {"weights": hashlib.sha256(b"w").hexdigest(), "written": [-1, 2], "activated": [0, 2]}
    operators = {"CONV_2D": [layer], "CONCATENATION": [], "ADD": []}
    limits, kept = script.assigned("", operators)
    assert limits == {"x": [0, 1], "c": [-1, 2], "s": [0, 1], "m": [0, 2]}
    assert not kept
    layer["activated"] = None
    assert script.assigned("", operators)[1] == ["s", "m"]
    layer["written"] = None
    assert script.assigned("", operators)[1] == ["c", "s", "m"]


def test_hardswish_and_relu_have_the_range_behind_the_convolution(monkeypatch):
    def tensor(name):
        return script.Tensor(name, FLOAT32, name.encode() if name == "w" else b"")

    layer = {"weights": hashlib.sha256(b"w").hexdigest(), "written": [-4, 2], "activated": [0, 2]}
    operators = {"CONV_2D": [layer], "CONCATENATION": [], "ADD": []}
    for kind in ("HARD_SWISH", "RELU"):
        rows = [("CONV_2D", "xw", "c"), (kind, "c", "a"), ("MAX_POOL_2D", "a", "p")]
        found = [(k, [*map(tensor, i)], [tensor(o)]) for k, i, o in rows]
        monkeypatch.setattr(script, "operators", lambda _, found=found: iter(found))
        limits, kept = script.assigned("", operators)
        assert limits == {"x": [0, 1], "c": [-4, 2], "a": [0, 2], "p": [0, 2]}
        assert not kept


@pytest.mark.parametrize("act", ["relu", "hardswish"])
def test_ranges_of_other_activations(act, tmp_path):
    spec = scale(models.get("yolov7-tiny", nc=3, act=act), width=0.03)
    checkpoint = fold_checkpoint(random_weights(spec, seed=3))
    images = np.random.default_rng(0).random((1, 1, 3, 64, 96), np.float32)
    made = Quantizer(build_graph(checkpoint, height=64, width=96), images, "u8s8")
    path = tmp_path / "q.onnx"
    path.write_bytes(made.quantized({made.layers[7].name}).SerializeToString())
    _, operators = litert_file._of_qdq(path, checkpoint)
    for index, (layer, found) in enumerate(zip(made.layers, operators["CONV_2D"], strict=True)):
        head = layer.name in made.heads
        assert (found["written"] is None) == (index == 7)
        if act == "relu" and not head:  # a part of the convolution, unless that is in float
            assert found["activated"][0] == 0
            assert found["written"] in (found["activated"], None)
        elif not head:
            assert found["activated"][0] > -0.4  # the smallest value of HardSwish is -0.375
            assert found["written"] is None or found["written"][0] < found["activated"][0]


@pytest.mark.slow
@pytest.mark.parametrize("act", ["relu", "hardswish"])
def test_conversion_with_other_activations(act, tmp_path):
    """The integers of the file are those of the QDQ graph, and no operator is in float."""
    if VARIABLE not in os.environ:
        pytest.skip(f"{VARIABLE} is not set")
    spec = scale(models.get("yolov7-tiny", nc=3, act=act), width=0.06)
    checkpoint = random_weights(spec, seed=3)
    for seed in range(4):
        cv2.imwrite(str(tmp_path / f"{seed}.png"), scenes.scene(seed, (120, 160)).image)
    options = {"imgsz": SIZE, "calib": tmp_path, "unverified": "random", "quantize_heads": True}
    files = {
        target: export(checkpoint, tmp_path / name, target=target, precision="int8", **options)
        for target, name in (("litert", "m.tflite"), ("onnx", "m.onnx"))
    }
    path = str(tmp_path / "m.tflite")
    script.require_integers(path, [])
    found = Counter(kind for kind, _, _ in script.operators(path))
    assert (found["CONV_2D"], found["RELU"]) == (58, 0)
    assert found["HARD_SWISH"] == (55 if act == "hardswish" else 0)
    image = files["litert"].manifest.input
    pixels = np.random.default_rng(0).integers(0, 256, (1, 3, *SIZE)).astype(np.float32) / 255
    with closing(registry.open_session(files["onnx"], SessionOptions("cpu", 1))) as session:
        expected = session.infer({image.name: pixels})
    with closing(registry.open_session(files["litert"], SessionOptions("cpu", 1))) as session:
        given = session.infer({image.name: as_input(pixels, image)})
    for output in files["litert"].manifest.outputs:
        head = (given[output.name].astype(np.float32) - output.zero_point) * output.scale
        difference = np.abs(head.transpose(0, 3, 1, 2) - expected[output.name])
        # Measured: 0.02 to 0.05, as with LeakyReLU; both are 0.2 to 0.26 from the float graph.
        assert difference.mean() < 0.1 * expected[output.name].std()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda o: o["CONV_2D"].pop(), "more operators CONV_2D"),
        (lambda o: o["CONCATENATION"].append([0, 1]), "fewer operators"),
        (lambda o: o["CONV_2D"].reverse(), "has other weights than the model"),
    ],
)
def test_a_file_of_another_model_is_refused(quantizer, floats, tmp_path, change, problem):
    operators = with_float_weights(quantizer, tmp_path)
    change(operators)
    with pytest.raises(ValueError, match=problem):
        script.assigned(floats, operators)


def test_operators_that_stay_in_float_are_named(floats):
    with pytest.raises(ValueError, match=r"stay in float: CONCATENATION \(14\), CONV_2D \(58\)"):
        script.require_integers(floats, [])


def test_full_integer_files_have_no_float_operators():
    pytest.importorskip("ai_edge_litert")
    path = str(committed(litert_file, INT8[1]))
    script.require_integers(path, [])
    found = Counter(kind for kind, _, _ in script.operators(path))
    assert (found["CONV_2D"], found["MAXIMUM"], found["CONCATENATION"]) == (58, 55, 14)
    assert not {"DEQUANTIZE", "LEAKY_RELU", "PRELU", "TRANSPOSE", "CUSTOM"} & {*found}
    assert all(t.type != FLOAT32 for _, i, o in script.operators(path) for t in (*i, *o))
    heads_in_float = str(committed(litert_file, INT8[0]))
    floats = Counter(
        kind for kind, _, outputs in script.operators(heads_in_float) if outputs[0].type == FLOAT32
    )
    assert floats["CONV_2D"] == 3


def test_a_file_has_the_scales_of_its_graph(quantizer):
    """One step of a head is one step of the graph's."""
    pytest.importorskip("ai_edge_litert")
    manifest = registry.load(committed(litert_file, INT8[1])).manifest
    assert manifest.quantization.profile == "u8s8"
    assert manifest.quantization.kept == ()
    assert manifest.quantization.share == 1
    for output in manifest.outputs:
        assert 0 < output.scale < 1
        assert -128 <= output.zero_point <= 127


@pytest.mark.filterwarnings("ignore:.*exported without a proof")
def test_the_detector_feeds_and_decodes_integers():
    """Boxes are those of the float heads, computed from the same integers."""
    pytest.importorskip("ai_edge_litert")
    path = committed(litert_file, INT8[1])
    frame = scenes.scene(5, (100, 130)).image
    detector = Detector(path, conf=0.05, threads=1)
    found = detector(frame)
    assert len(found) > 3
    manifest = detector.manifest
    preprocess = Preprocessor(manifest.input)
    geometry = preprocess(frame)
    fed = preprocess.tensor
    assert fed.dtype == np.int8
    given = detector.session.infer({"images": fed})
    heads = [
        (given[o.name].astype(np.float32) - o.zero_point) * np.float32(o.scale)
        for o in manifest.outputs
    ]
    post = Postprocessor(manifest.levels, manifest.nc, layout="NHWC")
    (expected,) = post.heads(heads, Criteria(conf=0.05))
    edges = geometry.to_source(expected.xyxy)
    inside = (edges[:, 2:] > edges[:, :2]).all(axis=1)  # others are in the border
    np.testing.assert_allclose(found.confidence, expected.score[inside], atol=1e-6)
    np.testing.assert_allclose(found.xyxy, edges[inside], atol=1e-3)


def test_the_selftest_finds_a_machine_that_computes_something_else(monkeypatch):
    pytest.importorskip("ai_edge_litert")
    path = committed(litert_file, INT8[1])
    real = tflite._LiteRtSession._run

    def shifted(session, feeds):
        return real(session, {name: np.roll(array, 1, axis=2) for name, array in feeds.items()})

    monkeypatch.setattr(tflite._LiteRtSession, "_run", shifted)
    with pytest.raises(ParityError, match="differ from the reference"):
        selftest(path)


def test_ranges_of_logits_are_chosen_behind_a_sigmoid(quantizer):
    """Logits of -14 are clipped, which changes no box; the step of the others is smaller."""
    profile, rng = quantizer.profile, np.random.default_rng(0)
    placement = placement_of(quantizer.model, profile)
    histograms = {tensor: Histogram() for tensor in placement.group}
    for tensor, histogram in histograms.items():
        for mean, count in ((-14 if tensor == "head0" else 0, 4000), (0, 1000)):
            values = rng.normal(mean, 1, count).astype(np.float32)
            histogram.add(values, float(values.min()), float(values.max()))
    ranges = ranges_of(quantizer.model, placement, profile, histograms, "mse")
    low, high = ranges["head0"]
    assert -11 < low < -2
    assert high > 2
