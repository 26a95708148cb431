"""diff with graphs that have NMS, and with ONNX files of other exporters."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.export.proof.test_diff import CHECKPOINT, FAULTS, FILE, SIZE
from tests.tampering import convolutions_of, rewrite, scale_weight
from y7edge.artifact.manifest import LevelInfo
from y7edge.cli import main
from y7edge.errors import ConfigError, GateError
from y7edge.export.pipeline import export
from y7edge.export.proof import sides
from y7edge.export.proof.diff import diff
from y7edge.export.targets import registry as targets
from y7edge.runtimes import onnxrt
from y7edge.runtimes.base import missing

NAMES = list(CHECKPOINT.names)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Path]:
    """Artifacts of one checkpoint, and a file of another exporter with fixed thresholds."""
    folder = tmp_path_factory.mktemp("final")
    options = {
        "heads": {},
        "decoded": {"outputs": "decoded"},
        "nms": {"outputs": "nms"},
        "fp16": {"outputs": "nms", "precision": "fp16"},
        "three": {"outputs": "nms", "batch": 3},
    }
    found = {
        name: export(CHECKPOINT, folder / f"{name}.onnx", imgsz=SIZE, **more).path
        for name, more in options.items()
    }
    return {**found, "foreign": as_foreign(found["nms"], folder / "foreign.onnx")}


def as_foreign(source, path, edit=lambda *_: None):
    """Copy a graph with NMS without its manifest; its thresholds become constants."""
    model = onnx.load(source)
    edit(model, onnxrt.read_manifest(source))
    del model.graph.input[1:], model.metadata_props[:]
    onnx.save(model, path)
    return path


def quiet(*arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return diff(*arguments, **options)


@pytest.mark.parametrize("other", ["heads", "decoded", "nms", "fp16", "three", "checkpoint"])
def test_a_graph_with_nms_equals_every_other_form(made, other):
    path = FILE if other == "checkpoint" else made[other]
    for pair in ((made["nms"], path), (path, made["nms"])):
        report = diff(*pair)
        assert report.status in ("equal", "close" if other == "fp16" else "equal")
        which = {"nms": "A and B", "fp16": "A and B", "three": "A and B"}.get(other)
        which = which or ("A" if pair[0] == made["nms"] else "B")
        skipped, boxes = report.stages[1:3], report.stages[3]
        assert [(s.name, s.status) for s in skipped] == [
            ("heads", "skipped"),
            ("decoded", "skipped"),
        ]
        assert {s.at for s in skipped} == {f"not available in an nms artifact ({which})"}
        assert boxes.name == "detections"
        assert boxes.measured["boxes"] > 0


def another_engine(made):
    if missing(targets.get("openvino").NEEDS):
        pytest.skip("openvino is not installed")
    return export(CHECKPOINT, made["nms"].with_name("m.xml"), target="openvino", imgsz=SIZE).path


def test_a_graph_with_nms_against_another_engine(made):
    assert diff(another_engine(made), made["nms"]).status == "equal"


@pytest.mark.parametrize("other", ["heads", "decoded", "nms"])
@pytest.mark.parametrize(
    ("edit", "cause"),
    [
        (FAULTS.swap_channels, "colour order"),
        (FAULTS.align_left, "letterbox"),
        (
            lambda model, _: FAULTS.set_weight(
                model, "rows.0.conv.weight", lambda w: w * np.float32(255)
            ),
            "scale",
        ),
        (FAULTS.scale_weight, "unknown"),
    ],
)
def test_faults_planted_before_the_nms(made, other, edit, cause, tmp_path):
    bad = FAULTS.edited(made["nms"], tmp_path / "bad.onnx", edit)
    for pair in ((made[other], bad), (bad, made[other])):
        report = diff(*pair)
        assert (report.status, report.first, report.cause.name) == ("differs", "detections", cause)
        with pytest.raises(GateError, match=cause):
            report.require_equal()
    if cause == "unknown" and other == "nms":
        report = diff(made[other], bad, layers=True)
        assert report.cause.name == "changed weights"
        assert report.first_row == f"/row{convolutions_of(bad)[29].split('.')[1]}"


def test_a_fault_in_the_nms_itself(made, tmp_path):
    def steeper(model, _):
        for node in model.graph.node:
            node.input[:] = ["other" if name == "iou" else name for name in node.input]
        power = numpy_helper.from_array(np.array(16, np.float32), "sixteen")
        model.graph.initializer.append(power)
        model.graph.node.insert(0, helper.make_node("Pow", ["iou", "sixteen"], ["other"]))

    bad = FAULTS.edited(made["nms"], tmp_path / "bad.onnx", steeper)
    for pair, letter in (((made["heads"], bad), "B"), ((bad, made["heads"]), "A")):
        report = diff(*pair)
        assert (report.status, report.cause.name) == ("differs", "suppression")
        assert report.cause.text.endswith(f"in the graph of {letter} keeps")
    assert diff(made["nms"], bad).cause.name == "suppression"
    assert diff(bad, made["nms"]).cause.name == "suppression"


def test_settings_of_the_manifest(made, tmp_path):
    manifest = onnxrt.read_manifest(made["nms"])
    levels = list(manifest.levels)
    levels[1] = LevelInfo(levels[1].stride, tuple((w * 1.5, h) for w, h in levels[1].anchors))
    bad = rewrite(made["heads"], tmp_path / "anchors.onnx", levels=tuple(levels))
    for pair in ((bad, made["nms"]), (made["nms"], bad)):
        report = diff(*pair)
        assert (report.status, report.cause.name) == ("differs", "anchors")
    for changes, cause in (
        ({"thresholds": replace(manifest.thresholds, conf=0.6)}, "thresholds"),
        ({"names": ("cog", *manifest.names[1:])}, "class names"),
    ):
        report = diff(made["heads"], rewrite(made["nms"], tmp_path / "m.onnx", **changes))
        assert (report.first, report.cause.name) == ("detections", cause)


def test_sigmoid_of_the_other_model(made, tmp_path):
    twice = FAULTS.edited(made["heads"], tmp_path / "twice.onnx", FAULTS.add_sigmoid)
    assert diff(made["nms"], twice).cause.name == "sigmoid"


def test_outputs_that_are_nan_or_of_other_classes(made, narrow_tiny, tmp_path):
    name = convolutions_of(made["heads"])[-1]
    bad = scale_weight(made["heads"], tmp_path / "nan.onnx", name, np.float32("nan"), seal=True)
    report = diff(made["nms"], bad)
    assert (report.status, report.first, report.cause.name) == ("differs", "detections", "NaN")
    other = export(narrow_tiny, tmp_path / "other.onnx", imgsz=SIZE, outputs="nms").path
    report = diff(made["heads"], other)
    assert (report.first, report.cause.name) == ("detections", "number of classes")


def test_a_changed_file_with_nms(made, tmp_path):
    name = convolutions_of(made["nms"])[9]
    bad = scale_weight(made["nms"], tmp_path / "bad.onnx", name, 1.5)
    assert diff(made["heads"], bad).cause.name == "changed files"


# --- files of other exporters ---------------------------------------------------------------------


@pytest.mark.parametrize("other", ["heads", "decoded", "nms", "foreign"])
def test_a_file_of_another_exporter_is_equal(made, other):
    for pair in ((made["foreign"], made[other]), (made[other], made["foreign"])):
        report = quiet(*pair, names=NAMES)
        assert (report.status, report.cause) == ("equal", None)
        assert report.stages[-1].measured["boxes"] > 0


def test_faults_in_a_file_of_another_exporter(made, tmp_path):
    bad = as_foreign(made["nms"], tmp_path / "bgr.onnx", FAULTS.swap_channels)
    for pair in ((made["heads"], bad), (bad, made["heads"])):
        report = quiet(*pair, names=NAMES)
        assert (report.status, report.cause.name) == ("differs", "colour order")
    weight = as_foreign(made["nms"], tmp_path / "weight.onnx", FAULTS.scale_weight)
    # Not "other checkpoint": the checkpoint of such a file is not known.
    assert quiet(made["heads"], weight, names=NAMES).cause.name == "unknown"

    def stricter(model, _):
        for tensor in model.graph.initializer:
            if tensor.name == "conf":
                tensor.CopyFrom(numpy_helper.from_array(np.array(0.8, np.float32), "conf"))

    strict = as_foreign(made["nms"], tmp_path / "strict.onnx", stricter)
    for pair, letter in (((made["heads"], strict), "B"), ((strict, made["nms"]), "A")):
        report = quiet(*pair, names=NAMES)
        assert (report.status, report.cause.name) == ("differs", "thresholds")
        assert f"{letter} was made by another exporter" in report.cause.text


def test_names_are_for_files_of_other_exporters(made, capsys):
    report = quiet(made["heads"], made["foreign"], names=["x", *NAMES[1:]])
    assert (report.first, report.cause.name) == ("detections", "class names")
    with pytest.raises(ConfigError, match="have their own: omit names"):
        diff(made["heads"], made["nms"], names=NAMES)
    with pytest.raises(ConfigError, match="omit --layers"):
        quiet(made["heads"], made["foreign"], names=NAMES, layers=True)
    words = ["diff", str(made["nms"]), str(made["foreign"]), "--names", ",".join(NAMES)]
    assert main([*words, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["stages"][1]["at"] == "not available in an nms artifact (A and B)"
    assert main(["diff", *[str(made["foreign"])] * 2, "--names", "a,b"]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "expected 0 to 1: name all classes of the model with --names" in line
    assert main([*words[:3], "--names", "a,b"]) in (1, 4)
    assert "internal error" not in capsys.readouterr().err


def test_rows_of_numbers_that_are_not_finite():
    rows = np.zeros((2, 7), np.float32)
    assert np.isfinite(sides._of_rows(rows, 3, "m").scores).all()
    rows[1, 5] = np.nan
    assert np.isnan(sides._of_rows(rows, 3, "m").scores).all()
    rows[:, 0] = 1  # of another image of the batch
    assert len(sides._of_rows(rows, 3, "m").scores) == 0
