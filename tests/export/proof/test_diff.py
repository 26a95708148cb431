"""diff: planted faults are found at the right stage, with the right cause."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.blocking import BLOCKER
from tests.fake_model import FakeSession, make_manifest
from tests.tampering import convolutions_of, rewrite, scale_weight
from y7edge.artifact.manifest import LevelInfo
from y7edge.errors import ConfigError, GateError
from y7edge.export.folding import fold_checkpoint
from y7edge.export.pipeline import export
from y7edge.export.proof import parity
from y7edge.export.proof.causes import Case, of_outputs
from y7edge.export.proof.diff import _stages, diff
from y7edge.export.proof.sides import Limits, Opened, prepared
from y7edge.export.targets import registry as targets
from y7edge.models import weights
from y7edge.runtimes import onnxrt
from y7edge.runtimes.base import missing

ROOT = Path(__file__).parents[3]
FILE = ROOT / "tests" / "reference" / "demo.safetensors"
CHECKPOINT = weights.load(FILE)
SIZE = 160


def _script():
    path = ROOT / "examples" / "research" / "planted_faults.py"
    spec = importlib.util.spec_from_file_location("planted_faults", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["planted_faults"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


FAULTS = _script()


@pytest.fixture(scope="module", autouse=True)
def without_data(tmp_path_factory):
    """Prove with synthetic scenes, not with the data set that `make demo` may have written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("empty"))
        yield


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Export the trained checkpoint once for each target and set of options."""
    made = {}

    def once(target="onnx", **options):
        module = targets.get(target)
        if absent := missing(module.NEEDS):
            pytest.skip(f"target {target}: {', '.join(absent)} is not installed")
        key = (target, *sorted(options.items()))
        if key not in made:
            out = tmp_path_factory.mktemp(target) / f"good{module.SUFFIX}"
            options = {"imgsz": SIZE, **options}
            made[key] = export(CHECKPOINT, out, target=target, **options).path
        return made[key]

    return once


@pytest.fixture(scope="module")
def good(make):
    return make()


@pytest.mark.parametrize("name", FAULTS.FAULTS)
def test_planted_faults(name, good, tmp_path):
    fault = FAULTS.FAULTS[name]
    if name == "bf16" and missing(targets.get("openvino").NEEDS):
        pytest.skip("openvino is not installed")
    bad = fault.plant(CHECKPOINT, good, tmp_path)
    report = diff(good, bad, layers=bool(fault.options))
    assert report.cause.name == fault.cause
    assert report.first == fault.stage
    assert report.status == ("differs" if fault.code else "close")
    if name == "weight":
        changed = convolutions_of(good)
        row = changed[len(changed) // 2].split(".")[1]
        assert report.first_row == f"/row{row}"
        assert f"rows.{row}.conv.weight differs by 0.1 " in report.cause.text
    if fault.code:
        with pytest.raises(GateError, match=fault.cause):
            report.require_equal()


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("onnx", {"outputs": "decoded"}),
        ("onnx", {"dynamic": True}),
        ("onnx", {"batch": 3}),
        ("openvino", {}),
        ("ncnn", {}),
        ("onnx", {"precision": "fp16"}),
    ],
    ids=str,
)
def test_proved_artifacts_are_equal(target, options, good, make):
    for pair in ((good, make(target, **options)), (make(target, **options), good)):
        report = diff(*pair)
        half = "precision" in options
        assert report.status == ("close" if half else "equal")
        assert (report.cause and report.cause.name) == ("precision" if half else None)
        report.require_equal()


def test_checkpoints_and_their_rows(good, tmp_path):
    folded = tmp_path / "folded.safetensors"
    weights.save(fold_checkpoint(CHECKPOINT), folded)
    for a, b in ((FILE, good), (folded, good), (FILE, folded)):
        report = diff(a, b, layers=True, imgsz=SIZE)
        assert (report.status, report.cause, report.first_row) == ("equal", None, None)
        assert len(report.rows) == len(fold_checkpoint(CHECKPOINT).spec.rows) - 1
        boxes = report.stages[-1].measured["boxes"]
        assert boxes == diff(good, good).stages[-1].measured["boxes"] > 0


def test_a_changed_weight_of_a_checkpoint(good, tmp_path):
    key = "rows.5.conv.weight"
    arrays = {**CHECKPOINT.arrays, key: CHECKPOINT.arrays[key] * np.float32(1.2)}
    # BatchNorm's mean too, so that the folded weights of the row change, and not only the bias.
    weights.save(replace(CHECKPOINT, arrays=arrays), tmp_path / "other.safetensors")
    report = diff(tmp_path / "other.safetensors", good, layers=True)
    assert report.status == "differs"
    assert report.first_row == "/row5"
    assert report.cause.name == "changed weights"
    assert "rows.5." in report.cause.text
    assert diff(tmp_path / "other.safetensors", good).cause.name == "other checkpoint"


def test_a_changed_file(good, tmp_path):
    bad = scale_weight(good, tmp_path / "bad.onnx", convolutions_of(good)[9], 1.5)
    assert diff(good, bad).cause.name == "changed files"
    sealed = scale_weight(good, tmp_path / "seal.onnx", convolutions_of(good)[9], 1.5, seal=True)
    assert diff(good, sealed).cause.name == "unknown"


def test_mixed_up_files(make, tmp_path):
    path = make("openvino")
    arrays = {key: a * np.float32(1.01) for key, a in CHECKPOINT.arrays.items() if "bias" in key}
    other = replace(CHECKPOINT, arrays={**CHECKPOINT.arrays, **arrays})
    mixed = export(other, tmp_path / "mixed.xml", target="openvino", imgsz=SIZE).path
    mixed.with_suffix(".bin").write_bytes(path.with_suffix(".bin").read_bytes())
    broken = diff(make(), mixed)
    assert broken.status == "equal"  # the graph is the same, the weights are those of the first
    path = mixed.with_suffix(".bin")
    path.write_bytes(path.read_bytes()[:-4096] + bytes(4096))
    broken = diff(make(), mixed)
    assert (broken.status, broken.cause.name) == ("differs", "changed files")
    assert "mixed up" in broken.cause.text


def multiplied(factor):
    def edit(model, manifest):
        FAULTS.set_weight(model, "rows.0.conv.weight", lambda w: w * np.float32(factor))

    return edit


@pytest.mark.parametrize(
    ("factor", "words"), [(1 / 255, "applied twice in B"), (255, "missing in B")]
)
def test_a_wrong_scale_in_the_graph(factor, words, good, tmp_path):
    bad = FAULTS.edited(good, tmp_path / "bad.onnx", multiplied(factor))
    report = diff(good, bad)
    assert (report.first, report.cause.name) == ("head0", "scale")
    assert words in report.cause.text


def test_wrong_values_declared_in_the_manifest(good, tmp_path):
    image = onnxrt.read_manifest(good).input
    for changes, cause, words in (
        ({"scale": 1.0}, "scale", "scales 0.003922 and 1"),
        ({"color": "bgr"}, "colour order", "declare rgb and bgr"),
    ):
        bad = rewrite(good, tmp_path / "bad.onnx", input=replace(image, **changes))
        report = diff(good, bad)
        assert (report.first, report.cause.name) == ("input", cause)
        assert words in report.cause.text


def test_an_input_that_the_graph_makes_up_for_is_equal(good, tmp_path):
    image = onnxrt.read_manifest(good).input
    changed = replace(image, color="bgr")
    same = FAULTS.edited(good, tmp_path / "bgr.onnx", FAULTS.swap_channels, input=changed)
    assert diff(good, same).status == "equal"


def test_another_input_size(good, make):
    report = diff(good, make(imgsz=(128, 160)))
    assert (report.first, report.cause.name) == ("input", "input size")
    assert "160x160 and 128x160" in report.cause.text


def test_sigmoid_not_applied_or_applied_in_decoding(good, make, tmp_path):
    outputs = [replace(o, activation="sigmoid") for o in onnxrt.read_manifest(good).outputs]
    bare = rewrite(good, tmp_path / "bare.onnx", outputs=tuple(outputs))
    report = diff(good, bare)
    assert (report.first, report.cause.name) == ("head0", "sigmoid")
    assert "not at all" in report.cause.text
    right = FAULTS.edited(good, tmp_path / "right.onnx", FAULTS.add_sigmoid, outputs=tuple(outputs))
    assert diff(good, right).status == "equal"
    twice = FAULTS.edited(good, tmp_path / "twice.onnx", FAULTS.add_sigmoid)
    report = diff(make(outputs="decoded"), twice)
    assert (report.first, report.cause.name) == ("decoded", "sigmoid")
    assert "B are probabilities" in report.cause.text
    assert "A are probabilities" in diff(twice, good).cause.text


def test_anchors_thresholds_and_names(good, make, tmp_path):
    manifest = onnxrt.read_manifest(good)
    levels = list(manifest.levels)
    levels[1] = LevelInfo(levels[1].stride, tuple((w * 1.5, h) for w, h in levels[1].anchors))
    for source, decoded in ((good, False), (make(outputs="decoded"), True)):
        bad = rewrite(source, tmp_path / "anchors.onnx", levels=tuple(levels))
        report = diff(good, bad)
        # Boxes that the graph decodes do not depend on the anchors of the manifest.
        assert report.status == ("equal" if decoded else "differs")
        if not decoded:
            assert (report.first, report.cause.name) == ("decoded", "anchors")
    higher = replace(manifest.thresholds, conf=0.6)
    report = diff(good, rewrite(good, tmp_path / "conf.onnx", thresholds=higher))
    assert (report.first, report.cause.name) == ("detections", "thresholds")
    assert "conf 0.25 and 0.6" in report.cause.text
    half = rewrite(make(precision="fp16"), tmp_path / "half.onnx", thresholds=higher)
    report = diff(good, half)
    assert (report.status, report.first, report.cause.name) == (
        "differs",
        "detections",
        "thresholds",
    )
    names = ("cog", *manifest.names[1:])
    report = diff(good, rewrite(good, tmp_path / "names.onnx", names=names))
    assert (report.first, report.cause.name) == ("detections", "class names")
    assert "'cog'" in report.cause.text
    # Files of other exporters often have no names; then they are numbers.
    numbers = tuple(map(str, range(manifest.nc)))
    assert diff(good, rewrite(good, tmp_path / "numbers.onnx", names=numbers)).status == "equal"


def permuted(orders):
    """Reorder anchors and fields in the weights of the head."""

    def edit(model, manifest):
        for tensor in list(model.graph.initializer):
            if ".lead." not in tensor.name:
                continue

            def reorder(values):
                count = len(manifest.levels[0].anchors)
                fields = values.reshape(count, 5 + manifest.nc, *values.shape[1:])
                anchors, places = orders(count, manifest.nc)
                return fields[list(anchors)][:, list(places)].reshape(values.shape)

            FAULTS.set_weight(model, tensor.name, reorder)

    return edit


def test_reordered_classes_and_anchors(good, tmp_path):
    names = onnxrt.read_manifest(good).names
    nc = len(names)
    turned = permuted(lambda count, nc: (range(count), [*range(5), *range(5 + nc)[:4:-1]]))
    bad = FAULTS.edited(good, tmp_path / "classes.onnx", turned, names=names[::-1])
    report = diff(good, bad)
    assert (report.first, report.cause.name) == ("head0", "class order")
    swapped = permuted(lambda count, nc: ([1, 0, 2], range(5 + nc)))
    report = diff(good, FAULTS.edited(good, tmp_path / "anchors.onnx", swapped))
    assert (report.first, report.cause.name) == ("head0", "anchor order")
    assert "(1, 0, 2)" in report.cause.text
    assert nc > 2


def test_another_number_of_classes(good, narrow_tiny, tmp_path):
    other = export(narrow_tiny, tmp_path / "other.onnx", imgsz=SIZE).path
    report = diff(good, other)
    assert (report.first, report.cause.name) == ("head0", "number of classes")


def test_outputs_that_are_nan(good, tmp_path):
    name = convolutions_of(good)[-1]
    bad = scale_weight(good, tmp_path / "nan.onnx", name, np.float32("nan"), seal=True)
    report = diff(good, bad)
    assert (report.status, report.cause.name) == ("differs", "NaN")


def test_weights_that_were_rounded_silently(good, tmp_path):
    def rounded(model, _):
        for tensor in list(model.graph.initializer):
            if tensor.name.endswith((".weight", ".bias")):
                FAULTS.set_weight(
                    model,
                    tensor.name,
                    lambda w: (w.view(np.uint32) & 0xFFFF0000).view(np.float32),
                )

    report = diff(good, FAULTS.edited(good, tmp_path / "low.onnx", rounded), layers=True)
    assert (report.status, report.cause.name) == ("differs", "precision")
    assert "of B of bfloat16" in report.cause.text.replace("those ", "")


class Bytes(FakeSession):
    """A model with an 8-bit NHWC input, which the graph converts to 0..1."""

    def _run(self, feeds):
        (pixels,) = feeds.values()
        assert pixels.dtype == self.inputs[0].dtype
        grey = pixels.transpose(0, 3, 1, 2).astype(np.float32) + 128 * (pixels.dtype == np.int8)
        return super()._run({"images": grey / np.float32(255)})


@pytest.mark.parametrize(("dtype", "zero"), [("uint8", 0), ("int8", -128)])
def test_inputs_of_bytes_and_floats_are_compared_as_pixels(dtype, zero):
    manifest = make_manifest()
    changed = replace(manifest.input, dtype=dtype, layout="NHWC", scale=1.0, zero_point=zero)
    sides = [
        Opened(name, kind(described), described)
        for name, kind, described in (
            ("a", FakeSession, manifest),
            ("b", Bytes, replace(manifest, input=changed)),
        )
    ]
    frame = np.zeros((64, 96, 3), np.uint8)
    frame[8:16, 24:40] = 255
    limits = Limits(*[parity.tolerance("fp32", 1e-4)] * 2)
    for a, b in (sides, sides[::-1]):
        stages, cause = _stages(a, b, frame, limits)
        assert [stage.status for stage in stages] == ["equal"] * 5
        assert cause is None
        assert stages[-1].measured["boxes"] > 0


class Rounded(FakeSession):
    """A model whose outputs deviate as much as bf16 permits."""

    def _run(self, feeds):
        return {
            name: head + 0.01 * np.abs(head).max() for name, head in super()._run(feeds).items()
        }


def test_swapped_colours_are_not_the_cause_if_the_heads_agree():
    """Swapping the colours of a grey image has no effect, so A would still agree with B."""
    manifest = make_manifest()
    lower = replace(manifest, precision="bf16")
    a = Opened("a", FakeSession(manifest), manifest)
    b = Opened("b", Rounded(lower), lower)
    frame = np.full((64, 96, 3), 200, np.uint8)
    limits = Limits(parity.tolerance("bf16", 1e-4), parity.tolerance("fp32", 1e-4))
    fed = prepared(frame, manifest.input), prepared(frame, lower.input)
    case = Case(a, b, frame, fed, (a.run(fed[0]), b.run(fed[1])), limits)
    assert of_outputs(case).name == "precision"


class Unsure(FakeSession):
    """An int8 model whose heads are close, and whose objects have half of the score."""

    def _run(self, feeds):
        outputs = super()._run(feeds)
        outputs["head0"][:, 4] = np.minimum(outputs["head0"][:, 4], 0)
        return outputs


def test_candidates_that_differ_although_the_heads_agree():
    manifest = make_manifest()
    lower = replace(manifest, precision="int8")
    a = Opened("a", FakeSession(manifest), manifest)
    b = Opened("b", Unsure(lower), lower)
    frame = np.zeros((64, 96, 3), np.uint8)
    frame[16:32, 16:32] = 255
    limits = Limits(parity.comparable("int8", 1e-4), parity.tolerance("fp32", 1e-4))
    fed = prepared(frame, manifest.input), prepared(frame, lower.input)
    case = Case(a, b, frame, fed, (a.run(fed[0]), b.run(fed[1])), limits)
    assert "but not the candidates: measure the mAP" in of_outputs(case).text


def test_a_size_that_artifacts_do_not_have(good):
    with pytest.raises(ConfigError, match="fixed input size"):
        diff(good, good, imgsz=320)


def test_layers_need_onnx_artifacts(good, make):
    with pytest.raises(ConfigError, match="target openvino"):
        diff(good, make("openvino"), layers=True)


def test_two_artifacts_need_neither_torch_nor_onnx(good, make, tmp_path):
    bad = FAULTS.edited(good, tmp_path / "bad.onnx", FAULTS.swap_channels)
    code = """
from y7edge.export.proof.diff import diff
print(diff(*sys.argv[1:]).cause.name)
"""
    blocked = {"torch", "onnx", "onnxsim", "safetensors", "typer", "rich"}
    done = subprocess.run(
        [sys.executable, "-c", BLOCKER.format(blocked=blocked) + code, str(good), str(bad)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.stdout.strip() == "colour order", done.stderr


def test_the_graph_of_the_artifact_is_not_changed(good, tmp_path):
    before = good.read_bytes()
    diff(good, good, layers=True)
    assert good.read_bytes() == before
    assert len(onnx.load(good).graph.output) == 3
