"""int8 artifacts: calibration, the gate on the mAP, fallback, probes; graphs that someone broke."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests import tampering
from tests.blocking import BLOCKER
from y7edge.artifact.artifact import Artifact
from y7edge.artifact.reports import ParityReport
from y7edge.cli import main
from y7edge.data.synthetic import scenes
from y7edge.detect.selftest import RECIPE_8BIT, selftest
from y7edge.errors import CheckpointError, ConfigError, DataError, ExportError, ParityError
from y7edge.export import fallback, qat
from y7edge.export.calibration import choose_images
from y7edge.export.conversion import build
from y7edge.export.fallback import Options
from y7edge.export.pipeline import export
from y7edge.export.proof import accuracy, probes
from y7edge.export.proof.accuracy import Baseline
from y7edge.export.proof.diff import diff
from y7edge.export.proof.verify import verify
from y7edge.export.quantization import METHOD, Quantizer
from y7edge.export.targets import registry as targets
from y7edge.models import registry as models
from y7edge.models import weights
from y7edge.models.scaling import scale
from y7edge.nn.random_weights import random_weights
from y7edge.runtimes import onnxrt, registry
from y7edge.runtimes.base import missing

FILE = Path(__file__).parents[1] / "reference" / "demo.safetensors"
CHECKPOINT = weights.load(FILE)
SIZE, COUNT, DROP = 160, 12, 0.1
OPTIONS = {"imgsz": SIZE, "precision": "int8", "calib_images": COUNT, "simplify": False}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Twelve scenes to calibrate, and eight to evaluate; the checkpoint knows none of them."""
    return scenes.generate(tmp_path_factory.mktemp("data"), train=COUNT, val=8, seed=7)


@pytest.fixture(scope="module")
def baseline(data):
    return Baseline(CHECKPOINT, data)


@pytest.fixture(scope="module")
def made(baseline, tmp_path_factory):
    """An int8 artifact for ONNX Runtime; not to be changed."""
    path = tmp_path_factory.mktemp("int8") / "m.onnx"
    return export(CHECKPOINT, path, data=baseline, max_map_drop=DROP, **OPTIONS)


@pytest.fixture(scope="module")
def symmetric(baseline, tmp_path_factory):
    """The same in profile s8s8, in which tensors of a concatenation share a scale."""
    path = tmp_path_factory.mktemp("s8s8") / "m.onnx"
    return export(CHECKPOINT, path, data=baseline, max_map_drop=DROP, profile="s8s8", **OPTIONS)


def convolutions_in_float(path):
    graph = onnx.load(path).graph
    written = {name: node.op_type for node in graph.node for name in node.output}
    return {
        node.name
        for node in graph.node
        if node.op_type == "Conv" and written.get(node.input[1]) != "DequantizeLinear"
    }


def test_the_manifest_says_how_it_was_quantised(made, data):
    manifest, found = made.manifest, made.manifest.quantization
    assert (manifest.precision, manifest.opset) == ("int8", 17)
    calibration = choose_images(data, CHECKPOINT.names, count=COUNT)
    assert (found.calibration, found.images) == (calibration.digest, calibration.names)
    assert len(found.images) == COUNT and all("train" in name for name in found.images)
    assert (found.profile, found.ranges) == (targets.get("onnx").PROFILES[0], METHOD)
    assert set(found.kept) == convolutions_in_float(made.path)
    assert len(found.kept) == 3 and 0.95 < found.share < 1
    report = ParityReport.from_dict(manifest.parity)
    assert (report.status, report.accuracy.limit) == ("passed", DROP)
    assert report.accuracy.drop <= DROP
    assert [step.kept for step in report.fallback] == [()]
    assert report.fallback[0].drop == report.accuracy.drop
    assert registry.load(made.path).manifest == manifest


def test_outputs_and_candidates_are_reported_without_limits(made):
    measured = ParityReport.from_dict(made.manifest.parity).measured
    assert (measured.tolerance.cosine, measured.tolerance.deviation) == (None, None)
    assert all(0.9 < output.cosine < 1 for output in measured.outputs.values())
    assert 0.5 < measured.candidates.iou < 0.999
    assert measured.detections.boxes > 0
    assert measured.detections.unmatched == 0


def test_probes_are_samples_of_its_own_outputs(made):
    for threads in (1, 2):
        for probe in selftest(made.path, threads=threads).probes:
            assert probe.deviation < 1e-6
    for probe in made.manifest.probes:
        assert probe.recipe == RECIPE_8BIT
        assert probes.INT8_LEAST < probe.tolerance <= probes.INT8_MOST


def test_it_is_verified_by_its_map(made, baseline):
    told = []
    assert verify(made.path, CHECKPOINT, progress=told.append).accuracy is None
    assert any("the mAP is not measured" in line for line in told)
    found = verify(made.path, CHECKPOINT, data=baseline, max_map_drop=DROP).accuracy
    before = ParityReport.from_dict(made.manifest.parity).accuracy
    assert (found.artifact, found.reference) == (before.artifact, before.reference)
    baseline._metrics[SIZE, SIZE], whole = (
        replace(baseline.metrics((SIZE, SIZE)), map50_95=0.99),
        baseline.metrics((SIZE, SIZE)),
    )
    try:
        with pytest.raises(ParityError, match=r"is less accurate .* at most 0\.005"):
            verify(made.path, CHECKPOINT, data=baseline)
    finally:
        baseline._metrics[SIZE, SIZE] = whole


def test_the_commands_work(made, data, capsys):
    path, found = str(made.path), ParityReport.from_dict(made.manifest.parity).accuracy
    assert main(["selftest", path]) == 0
    capsys.readouterr()
    assert main(["info", path]) == 0
    printed = capsys.readouterr().out
    assert f"ranges by {METHOD} of {COUNT} images; in float: /row77/lead/0/Conv" in printed
    assert main(["val", path, "--data", str(data), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["map50_95"] == pytest.approx(found.artifact, abs=1e-6)
    assert main(["benchmark", path, "--runs", "2", "--threads", "1"]) == 0
    assert diff(made.path, FILE, imgsz=SIZE).status == "close"


def test_what_is_calibrated_and_evaluated_must_be_given(data, tmp_path):
    out = tmp_path / "m.onnx"

    def refused(problem, **options):
        with pytest.raises(ConfigError, match=problem):
            export(CHECKPOINT, out, **{**OPTIONS, **options})

    refused("accepted by its mAP: give a labelled data set")
    refused("accepted by its mAP", calib=data)
    refused("evaluated on --data: omit --unverified", data=data, unverified="x")
    refused("needs calibration images, .*--calib", unverified="no labels")
    refused("'decoded' are not available in int8", outputs="decoded", data=data)
    assert not list(tmp_path.iterdir())


def test_images_of_the_evaluation_never_calibrate(data, baseline, tmp_path):
    told, gate = [], accuracy.MapGate(baseline, DROP)

    def chosen(folder, gate):
        found = Options(calib=folder).choose(CHECKPOINT, gate, told.append, targets.get("onnx"))
        return len(found.images)

    assert chosen(data.parent / "images" / "train", gate) == COUNT
    for path in baseline.images:
        shutil.copy(path, tmp_path)
    with pytest.raises(DataError, match="all images are images of the evaluation"):
        chosen(tmp_path, gate)
    assert chosen(tmp_path, None) == len(baseline.images) == 8
    assert chosen(None, replace(gate, baseline=Baseline(CHECKPOINT, data, "train"))) == COUNT
    assert told[-1].startswith("warning: images that are evaluated may calibrate")


def test_the_default_limit():
    limit = accuracy.limit_of
    assert limit("int8", None, "data") == accuracy.MAX_INT8_DROP == 0.005
    assert limit("int8", 0.02, "data") == 0.02
    assert limit("int8", None, None) is limit("fp16", None, "data") is None


@pytest.fixture
def staged(monkeypatch):
    """The mAP drops by 0.1 until two layers are in float: rows 1 and 3, after others."""
    needed = {"/row1/Conv", "/row3/Conv"}
    order = ["/row5/Conv", "/row3/Conv", "/row1/Conv", "/row0/Conv", "/row2/Conv"]

    def measure(self, artifact, *_):
        fits = needed <= convolutions_in_float(artifact.path)
        return accuracy.AccuracyDifference("d", "val", 8, 0.6, 0.597 if fits else 0.5, self.limit)

    monkeypatch.setattr(accuracy.MapGate, "measure", measure)
    monkeypatch.setattr("y7edge.export.sensitivity.measure", lambda *_, **__: order)
    monkeypatch.setattr("y7edge.export.sensitivity.order", lambda found: found)
    return needed


def test_layers_go_back_to_float_until_the_drop_is_accepted(baseline, tmp_path, staged):
    told = []
    made = export(CHECKPOINT, tmp_path / "m.onnx", data=baseline, progress=told.append, **OPTIONS)
    report, described = ParityReport.from_dict(made.manifest.parity), made.manifest.quantization
    assert [len(step.kept) for step in report.fallback] == [0, 1, 2, 4, 3]
    assert report.fallback[-1].kept == ("/row5/Conv", "/row3/Conv", "/row1/Conv")
    assert [step.drop for step in report.fallback] == [0.1, 0.1, 0.1, 0.003, 0.003]
    assert set(described.kept) == convolutions_in_float(made.path)
    assert staged < set(described.kept) and "/row0/Conv" not in described.kept
    assert described.share == report.fallback[-1].share < report.fallback[0].share
    assert report.accuracy.limit == 0.005
    assert any("measure the damage of each layer" in line for line in told)
    assert selftest(made.path).status == "passed"


@pytest.mark.slow
def test_a_layer_in_float_is_enough_for_the_demo(tmp_path):
    data = scenes.generate(tmp_path / "data", train=60, val=24, seed=0)
    out, told = tmp_path / "m.onnx", []
    made = export(CHECKPOINT, out, imgsz=SIZE, precision="int8", data=data, progress=told.append)
    report, found = ParityReport.from_dict(made.manifest.parity), made.manifest.quantization
    assert report.accuracy.drop <= report.accuracy.limit == 0.005
    assert found.share >= 0.85
    assert set(found.kept) == convolutions_in_float(out)
    assert selftest(out).status == "passed"
    assert verify(out, CHECKPOINT, data=data).status == "passed"


def test_nothing_is_left_if_even_fallback_does_not_help(data, tmp_path, staged, capsys):
    staged.add("/row77/never")
    out = tmp_path / "m.onnx"
    words = ["export", str(FILE), "--precision", "int8", "--data", str(data), "--out", str(out)]
    words += ["--imgsz", str(SIZE), "--calib-images", "4", "--no-simplify"]
    assert main(words) == 4
    printed = capsys.readouterr().err
    assert "layers went back to float:" in printed
    assert "in this order: /row5/Conv, /row3/Conv, /row1/Conv, /row0/Conv" in printed
    assert printed.splitlines()[-1].startswith("error: nothing was written to")
    assert "drops by 0.1000 or more, expected at most 0.005" in printed
    assert not list(tmp_path.iterdir())


def test_a_model_that_finds_nothing_cannot_be_accepted(data, tmp_path):
    spec = scale(models.get("yolov7-tiny", nc=4), width=0.125)
    blind = replace(random_weights(spec, seed=2), names=CHECKPOINT.names)
    with pytest.raises(ParityError, match=r"inconclusive, the model's mAP.* is 0\.0") as caught:
        export(blind, tmp_path / "m.onnx", data=data, **{**OPTIONS, "calib_images": 2})
    assert caught.value.report.status == "inconclusive"
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def unlabelled(narrow_tiny, data, tmp_path_factory):
    """An int8 artifact of random weights, calibrated with a folder of images."""
    path = tmp_path_factory.mktemp("unlabelled") / "m.onnx"
    options = {**OPTIONS, "imgsz": (64, 96), "dynamic": True, "input": "uint8", "calib_images": 4}
    images = data.parent / "images" / "train"
    return export(narrow_tiny, path, calib=images, unverified="no labels", **options)


def test_an_unverified_artifact_still_has_probes(unlabelled, capsys):
    report = ParityReport.from_dict(unlabelled.manifest.parity)
    assert (report.status, report.reason, report.accuracy) == ("unverified", "no labels", None)
    assert report.measured.batches == (1, 3)
    assert report.measured.detections.unmatched == 0
    assert selftest(unlabelled.path).status == "passed"
    assert main(["info", str(unlabelled.path)]) == 0
    assert "unverified: no labels" in capsys.readouterr().out


def test_ranges_and_drop_of_a_trained_checkpoint_are_used(baseline, made, tmp_path):
    described, model = made.manifest.quantization, onnx.load(made.path)
    names = {t.name.removesuffix("/scale") for t in model.graph.initializer}
    written = {name for node in model.graph.node for name in node.output} | {"images"}
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    ranges = {}
    for name in names & written:
        step, zero = (arrays[f"{name}/{part}"].item() for part in ("scale", "zero_point"))
        ranges[name] = (-zero * step, (255 - zero) * step)
    trained = qat.Trained(
        profile="u8s8",
        method="mse",
        ranges=ranges,
        calibration="c" * 64,
        images=("a.jpg",),
        heads=False,
        source="d" * 64,
        drop=0.004,
    )
    meta = {**CHECKPOINT.meta, qat.KEY: json.loads(json.dumps(asdict(trained)))}
    checkpoint, out = replace(CHECKPOINT, meta=meta), tmp_path / "m.onnx"
    data = Baseline(checkpoint, baseline.data)
    data._metrics = baseline._metrics
    found = export(checkpoint, out, data=data, max_map_drop=DROP, **OPTIONS)
    own = found.manifest.quantization
    assert (own.ranges, own.calibration, own.images) == ("mse", "c" * 64, ("a.jpg",))
    assert (own.corrections, own.kept) == (("training",), described.kept)
    assert found.manifest.parity["accuracy"]["earlier"] == 0.004
    scales = [
        {t.name: numpy_helper.to_array(t) for t in one.graph.initializer if "/scale" in t.name}
        for one in (model, onnx.load(out))
    ]
    assert scales[0].keys() == scales[1].keys() and len(scales[0]) > 100
    for name in names & written:
        np.testing.assert_allclose(*(s[f"{name}/scale"] for s in scales), rtol=0.01)
    told = []

    def gate(drop):
        changed = replace(checkpoint, meta={**meta, qat.KEY: {**meta[qat.KEY], "drop": drop}})
        return accuracy.gate_of(changed, "int8", data, None, told.append)

    assert gate(0.002).earlier == 0.002 and not told
    assert gate(None).earlier == 0 and "for int8 had no labelled images" in told[0]
    with pytest.raises(CheckpointError, match="drop is -2, expected -1 to 1"):
        gate(-2)
    unlabelled = export(checkpoint, out, unverified="x", **{**OPTIONS, "calib_images": None})
    assert unlabelled.manifest.payload_digest == found.manifest.payload_digest
    for options in ({"profile": "s8s8"}, {"ranges": "mse"}):
        with pytest.raises(ConfigError, match="trained for profile u8s8 with its own ranges"):
            export(checkpoint, out, data=data, **{**OPTIONS, **options})


# --- other targets, from the ONNX artifact --------------------------------------------------------


def require_openvino():
    if absent := missing(targets.get("openvino").NEEDS):
        pytest.skip(f"target openvino: {', '.join(absent)} is not installed")


def test_build_adds_what_the_onnx_artifact_lost(made, data, tmp_path, capsys):
    require_openvino()
    out = tmp_path / "m.xml"
    built = build(made.path, out, target="openvino", data=data, max_map_drop=DROP)
    before = ParityReport.from_dict(made.manifest.parity).accuracy
    report = ParityReport.from_dict(built.manifest.parity)
    assert report.accuracy.earlier == before.drop
    assert report.accuracy.reference == before.artifact
    assert report.accuracy.drop == pytest.approx(before.reference - report.accuracy.artifact)
    assert report.measured.reference == "samples of its own outputs in m.onnx"
    assert "int8 in 55 of 58 convolutions" in report.measured.arithmetic
    assert built.manifest.quantization == made.manifest.quantization
    assert [p.samples for p in built.manifest.probes] != [p.samples for p in made.manifest.probes]
    for threads in (1, 2):
        assert all(p.deviation < 1e-6 for p in selftest(out, threads=threads).probes)
    assert main(["build", str(made.path), "--target", "openvino", "--out", str(out)]) == 1
    assert "accepted by its mAP: give a labelled data set" in capsys.readouterr().err


@pytest.mark.slow
def test_build_refuses_what_loses_too_much_in_all(made, data, tmp_path):
    require_openvino()
    recorded = made.manifest.parity
    changed = {**recorded, "accuracy": {**recorded["accuracy"], "artifact": 0.01}}
    path = tampering.rewrite(made.path, tmp_path / "m.onnx", parity=changed)
    baseline = Baseline(registry.load(path), data)
    with pytest.raises(ParityError, match=r"drops by 0\.\d+ on .* expected at most 0\.1;"):
        build(path, tmp_path / "m.xml", target="openvino", data=baseline, max_map_drop=DROP)
    assert not (tmp_path / "m.xml").exists()


def test_an_unverified_artifact_is_built_without_onnx(unlabelled, tmp_path):
    require_openvino()
    out = tmp_path / "m.xml"
    words = ["build", str(unlabelled.path), "--target", "openvino", "--out", str(out), "--json"]
    words += ["--unverified", "no labels here"]
    script = f"from y7edge.cli import main; sys.exit(main({words!r}))"
    blocked = {"torch", "onnx", "onnxsim", "safetensors"}
    done = subprocess.run(
        [sys.executable, "-c", BLOCKER.format(blocked=blocked) + script],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "rules of the quantised graph are not checked" in done.stderr
    found = json.loads(done.stdout)["parity"]
    assert (found["status"], found["reason"]) == ("unverified", "no labels here")
    assert selftest(out).status == "passed"
    with pytest.raises(ConfigError, match=r"status 'unverified', expected .* 'passed'"):
        build(unlabelled.path, tmp_path / "n.xml", target="openvino", data="x")


def test_a_profile_that_the_target_does_not_take_is_refused(made, tmp_path):
    with pytest.raises(ConfigError, match=r"takes int8 graphs of profile s8s8, .* has profile u8"):
        build(made.path, tmp_path / "m.engine", target="tensorrt", unverified="x")


# --- graphs that someone broke --------------------------------------------------------------------


def resealed(model, artifact, path):
    """The artifact with another graph, and digests that fit it."""
    path.write_bytes(model.SerializeToString())
    manifest = replace(artifact.manifest, payload_digest=onnxrt.payload_digest((path,)))
    onnxrt.write_manifest(Artifact(path, manifest))
    return path


def wrong_scale(model, factor, kinds=("QuantizeLinear", "DequantizeLinear")):
    """One concatenation gets a scale that is wrong by a factor."""
    broken = onnx.ModelProto()
    broken.CopyFrom(model)
    name = next(node.output[0] for node in broken.graph.node if node.op_type == "Concat")
    for node in broken.graph.node:
        if node.op_type in kinds and node.input[0] in (name, f"{name}/quantized"):
            old = next(t for t in broken.graph.initializer if t.name == node.input[1])
            value = np.asarray(numpy_helper.to_array(old) * factor, np.float32)
            node.input[1] = f"{name}/wrong"
    broken.graph.initializer.append(numpy_helper.from_array(value, f"{name}/wrong"))
    return broken


def twice(model, activation):
    """The output of the first such node is quantised a second time, with an eighth of its range."""
    broken = onnx.ModelProto()
    broken.CopyFrom(model)
    nodes = broken.graph.node
    at = next(i for i, node in enumerate(nodes) if node.op_type == activation)
    while nodes[at].op_type != "DequantizeLinear":
        at += 1
    scale, zero = nodes[at].input[1:]
    value = next(numpy_helper.to_array(t) for t in broken.graph.initializer if t.name == scale)
    broken.graph.initializer.append(numpy_helper.from_array(np.float32(value / 8), "less"))
    old = nodes[at].output[0]
    for node in nodes:
        node.input[:] = ["again" if name == old else name for name in node.input]
    first = helper.make_node("QuantizeLinear", [old, "less", zero], ["inner"], name="first")
    second = helper.make_node("DequantizeLinear", ["inner", "less", zero], ["again"], name="second")
    nodes.insert(at + 1, second)
    nodes.insert(at + 1, first)
    return broken


BROKEN = {
    "the scale of one concatenation, where it shares a scale": lambda m: wrong_scale(m, 2),
    "only where it is dequantised": lambda m: wrong_scale(m, 2, ("DequantizeLinear",)),
    "quantised twice": lambda m: twice(m, "LeakyRelu"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_verify_refuses_a_broken_graph(symmetric, tmp_path, kind):
    model = BROKEN[kind](onnx.load(symmetric.path))
    path = resealed(model, symmetric, tmp_path / "m.onnx")
    with pytest.raises(ParityError, match="breaks a rule of profile s8s8: ") as caught:
        verify(path, CHECKPOINT)
    assert caught.value.report.status == "failed"
    if kind != next(iter(BROKEN)):  # a range of twice the size only loses one bit
        with pytest.raises(ParityError, match="outputs on this machine differ"):
            selftest(path)


def test_build_refuses_a_broken_graph(made, tmp_path, monkeypatch):
    require_openvino()
    model = wrong_scale(onnx.load(made.path), 2, ("DequantizeLinear",))
    path, out = resealed(model, made, tmp_path / "m.onnx"), tmp_path / "m.xml"
    with pytest.raises(ParityError, match="breaks a rule of profile u8s8"):
        build(path, out, target="openvino", unverified="x")
    monkeypatch.setattr("y7edge.export.conversion.require_rules", lambda _: None)
    with pytest.raises(ParityError, match=r"nothing was written .* deviates by"):
        build(path, out, target="openvino", unverified="x")
    assert not out.exists()


def test_the_export_refuses_a_graph_that_breaks_a_rule(baseline, tmp_path, monkeypatch):
    whole = Quantizer.quantized
    monkeypatch.setattr(Quantizer, "quantized", lambda *a: wrong_scale(whole(*a), 2))
    with pytest.raises(ExportError, match="breaks a rule of profile s8s8"):
        export(CHECKPOINT, tmp_path / "m.onnx", data=baseline, profile="s8s8", **OPTIONS)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["wrong scale", "quantised twice"])
def test_without_rules_the_map_decides(baseline, tmp_path, monkeypatch, kind):
    whole = Quantizer.quantized
    breaks = {
        "wrong scale": lambda m: wrong_scale(m, 2, ("DequantizeLinear",)),
        "quantised twice": lambda m: twice(m, "LeakyRelu"),
    }[kind]
    monkeypatch.setattr(Quantizer, "quantized", lambda *a: breaks(whole(*a)))
    monkeypatch.setattr(fallback, "violations", lambda *_: [])
    monkeypatch.setattr(fallback.Quantized, "order", lambda self: [])
    with pytest.raises(ParityError, match=r"mAP@0.5:0.95 drops by 0\.\d+ or more, expected"):
        export(CHECKPOINT, tmp_path / "m.onnx", data=baseline, max_map_drop=0.05, **OPTIONS)
    assert not list(tmp_path.iterdir())


def test_a_sigmoid_that_is_quantised_twice_is_found(data, tmp_path):
    spec = scale(models.get("yolov7-tiny-silu", nc=4), width=0.25)
    model = replace(random_weights(spec, seed=2), names=CHECKPOINT.names)
    options = {**OPTIONS, "imgsz": 64, "calib_images": 2, "profile": "u8s8"}
    good = export(model, tmp_path / "good.onnx", calib=data, unverified="x", **options)
    path = resealed(twice(onnx.load(good.path), "Sigmoid"), good, tmp_path / "bad.onnx")
    with pytest.raises(ParityError, match="breaks a rule of profile u8s8"):
        verify(path, model)
    with pytest.raises(ParityError, match="outputs on this machine differ"):
        selftest(path)


def test_layers_in_float_that_the_manifest_does_not_name(made, tmp_path):
    described = replace(made.manifest.quantization, kept=made.manifest.quantization.kept[:2])
    path = tampering.rewrite(made.path, tmp_path / "m.onnx", quantization=described)
    with pytest.raises(ParityError, match=r"wrong about /row77/lead/2/Conv"):
        verify(path, CHECKPOINT)


def test_an_int8_artifact_that_does_not_say_how_it_was_quantised(made, tmp_path):
    path = tampering.rewrite(made.path, tmp_path / "m.onnx", quantization=None)
    with pytest.raises(ParityError, match="does not say how it was quantised"):
        verify(path, CHECKPOINT)
    with pytest.raises(ConfigError, match=r"takes int8 graphs of profile .* has profile None"):
        build(path, tmp_path / "m.xml", target="openvino", unverified="x")


def test_a_machine_that_computes_something_else_is_found(made, monkeypatch):
    """Products of 8 bits that saturate, as on CPUs without VNNI, change the largest outputs."""
    whole = onnxrt._OnnxSession._run

    def saturated(self, feeds):
        found = whole(self, feeds)
        return {name: np.clip(v, -0.7 * np.abs(v).max(), None) for name, v in found.items()}

    monkeypatch.setattr(onnxrt._OnnxSession, "_run", saturated)
    with pytest.raises(ParityError, match="outputs on this machine differ"):
        selftest(made.path)


def test_outputs_that_are_not_finite_are_refused(data, tmp_path, monkeypatch):
    whole = onnxrt._OnnxSession._run
    monkeypatch.setattr(
        onnxrt._OnnxSession,
        "_run",
        lambda self, feeds: {name: v * np.nan for name, v in whole(self, feeds).items()},
    )
    with pytest.raises(ParityError, match="is NaN or infinite for probe0-batch1"):
        export(
            CHECKPOINT,
            tmp_path / "m.onnx",
            calib=data,
            unverified="x",
            **{**OPTIONS, "calib_images": 2},
        )
    assert not list(tmp_path.iterdir())
