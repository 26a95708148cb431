"""The export: its artifacts, and no files after a failure."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace

import cv2
import numpy as np
import onnx
import pytest

import y7edge.export
from tests.runtimes.conftest import PROVABLE, skip_unless_built_here
from y7edge import files
from y7edge.artifact.description import kind_of_outputs
from y7edge.detect.detector import Detector
from y7edge.detect.selftest import RECIPE, RECIPE_8BIT, selftest
from y7edge.errors import ConfigError, DeviceError, ExportError, ParityError, RuntimeMissing
from y7edge.export import delivery, pipeline
from y7edge.export.folding import fold_checkpoint
from y7edge.export.graph import build as graph
from y7edge.export.graph import rewrites
from y7edge.export.pipeline import export
from y7edge.export.proof import parity
from y7edge.export.proof.verify import verify
from y7edge.export.targets import registry as targets
from y7edge.models import registry as models
from y7edge.models import weights
from y7edge.models.scaling import scale
from y7edge.models.shapes import parameters
from y7edge.nn.random_weights import random_weights
from y7edge.runtimes import base, onnxrt, registry

SIZE = (64, 96)


def available(name):
    """The target of this name; the test is skipped if what it needs is not installed."""
    target = targets.get(name)
    skip_unless_built_here(target)
    return target


@pytest.mark.parametrize("outputs", ["heads", "decoded"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("batch", [{}, {"batch": 3}, {"dynamic": True}], ids=str)
def test_every_kind_is_proved_and_verified(narrow_tiny, tmp_path, outputs, precision, batch):
    path = tmp_path / "deep" / "folder" / "m.onnx"
    options = {"outputs": outputs, "precision": precision, "imgsz": SIZE, **batch}
    made = export(narrow_tiny, path, **options)
    manifest = registry.load(path).manifest
    assert manifest == made.manifest
    assert made.path == path
    assert manifest.parity["status"] == "passed"
    assert "simplified" in manifest.parity["simplifier"]
    assert manifest.parity["batches"] == ([1, 3] if "dynamic" in batch else [batch.get("batch", 1)])
    assert verify(path, narrow_tiny).status == "passed"
    assert selftest(path).status == "passed"
    assert [p.name for p in path.parent.iterdir()] == ["m.onnx"]


FRAME = np.random.default_rng(0).integers(0, 256, (50, 91, 3), dtype=np.uint8)


def found_by(path, frame=FRAME):
    with Detector(path, threads=1, conf=0.05) as detector:
        return detector(frame)


@pytest.mark.parametrize(
    ("outputs", "batch"), [("heads", {}), ("decoded", {"dynamic": True})], ids=str
)
def test_uint8_input_gives_the_same_boxes(narrow_tiny, tmp_path, outputs, batch):
    options = {"outputs": outputs, "imgsz": SIZE, **batch}
    plain = export(narrow_tiny, tmp_path / "f.onnx", **options)
    made = export(narrow_tiny, tmp_path / "u.onnx", input="uint8", **options)
    image = made.manifest.input
    assert (image.name, image.dtype, image.layout, image.scale) == ("images", "uint8", "NHWC", 1)
    assert image.shape[1:] == (*SIZE, 3)
    assert replace(image, dtype="float32", layout="NCHW", scale=1 / 255) == plain.manifest.input
    assert made.manifest.parity["status"] == "passed"
    assert {p.recipe for p in made.manifest.probes} == {RECIPE_8BIT}
    assert {p.recipe for p in plain.manifest.probes} == {RECIPE}
    assert selftest(made.path).status == "passed"
    assert verify(made.path, narrow_tiny).status == "passed"
    expected, found = found_by(plain.path), found_by(made.path)
    assert len(found) > 0
    np.testing.assert_array_equal(found.xyxy, expected.xyxy)
    np.testing.assert_array_equal(found.confidence, expected.confidence)


def test_heads_sigmoid_is_described_and_gives_the_same_boxes(narrow_tiny, tmp_path):
    plain = export(narrow_tiny, tmp_path / "l.onnx", imgsz=SIZE)
    made = export(narrow_tiny, tmp_path / "s.onnx", imgsz=SIZE, outputs="heads-sigmoid")
    assert [o.activation for o in made.manifest.outputs] == ["sigmoid"] * 3
    kinds = [kind_of_outputs(one.manifest) for one in (plain, made)]
    assert kinds == ["heads", "heads-sigmoid"]
    values = [v for p in made.manifest.probes for s in p.samples for v in s.values]
    assert min(values) > 0 and 0.9 < max(values) < 1
    assert selftest(made.path).status == "passed"
    assert verify(made.path, narrow_tiny).status == "passed"
    expected, found = found_by(plain.path), found_by(made.path)
    assert len(found) > 0
    np.testing.assert_allclose(found.xyxy, expected.xyxy, atol=0.01)
    np.testing.assert_array_equal(found.class_id, expected.class_id)


def test_a_sigmoid_that_the_manifest_does_not_state_is_detected(narrow_tiny, tmp_path, monkeypatch):
    real = pipeline.build.build_graph

    def build(checkpoint, **options):
        return real(checkpoint, **{**options, "outputs": "heads-sigmoid"})

    monkeypatch.setattr(pipeline.build, "build_graph", build)
    with pytest.raises(ParityError, match="head0 deviates"):
        export(narrow_tiny, tmp_path / "m.onnx", imgsz=SIZE)
    assert list(tmp_path.iterdir()) == []


def test_rewrites_are_recorded_and_proved(narrow_tiny, tmp_path):
    plain = export(narrow_tiny, tmp_path / "p.onnx", imgsz=SIZE)
    names = ["resize-per-axis", "pool3x3", "leaky-max"]
    made = export(narrow_tiny, tmp_path / "m.onnx", imgsz=SIZE, rewrites=names)
    assert made.manifest.tools["rewrites"] == "pool3x3, leaky-max, resize-per-axis"
    assert "rewrites" not in plain.manifest.tools
    assert made.manifest.payload_digest != plain.manifest.payload_digest
    assert verify(made.path, narrow_tiny).status == "passed"
    expected, found = found_by(plain.path), found_by(made.path)
    np.testing.assert_array_equal(found.xyxy, expected.xyxy)


@pytest.mark.parametrize("rewrite", ["reorg-conv6", "reorg-conv7"])
def test_merged_reorg_is_proved(tmp_path, rewrite):
    checkpoint = random_weights(scale(models.get("yolov7-w6", nc=2), width=0.125))
    made = export(checkpoint, tmp_path / "m.onnx", imgsz=(64, 192), rewrites=[rewrite])
    assert made.manifest.tools["rewrites"] == rewrite
    deviations = [one["deviation"] for one in made.manifest.parity["outputs"].values()]
    assert max(deviations) < 2e-5


def test_a_wrong_rewrite_is_detected(tmp_path, monkeypatch):
    checkpoint = random_weights(scale(models.get("yolov7-w6", nc=2), width=0.125))
    monkeypatch.setattr(rewrites, "REORG_PARTS", ((0, 0), (0, 1), (1, 0), (1, 1)))
    with pytest.raises(ParityError, match="deviates"):
        export(checkpoint, tmp_path / "m.onnx", imgsz=(64, 128), rewrites=["reorg-conv6"])
    assert list(tmp_path.iterdir()) == []


def test_a_targets_own_rewrites_apply_if_they_can(narrow_tiny, tmp_path, monkeypatch):
    defaults = ("reorg-conv7", "leaky-max")
    monkeypatch.setattr(targets.get("onnx"), "REWRITES", defaults)
    made = export(narrow_tiny, tmp_path / "m.onnx", imgsz=SIZE)
    assert made.manifest.tools["rewrites"] == "leaky-max"
    made = export(narrow_tiny, tmp_path / "m.onnx", imgsz=SIZE, rewrites=["pool3x3"])
    assert made.manifest.tools["rewrites"] == "pool3x3, leaky-max"


def test_rewrites_of_float_graphs_are_left_out_in_int8(tmp_path, monkeypatch):
    checkpoint = random_weights(scale(models.get("yolov7-tiny-silu", nc=2), width=0.25))
    monkeypatch.setattr(targets.get("onnx"), "REWRITES", ("silu-tanh", "pool3x3"))
    made = export(checkpoint, tmp_path / "m.onnx", imgsz=SIZE)
    assert made.manifest.tools["rewrites"] == "pool3x3, silu-tanh"
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((64, 96, 3), np.uint8))
    options = {"precision": "int8", "calib": tmp_path, "unverified": "random weights"}
    made = export(checkpoint, tmp_path / "i.onnx", imgsz=SIZE, **options)
    assert made.manifest.tools["rewrites"] == "pool3x3"
    with pytest.raises(ConfigError, match="silu-tanh is for float graphs: omit it"):
        export(checkpoint, tmp_path / "j.onnx", imgsz=SIZE, rewrites=["silu-tanh"], **options)


def test_manifest_content(narrow_tiny, tmp_path):
    meta = {**narrow_tiny.meta, "licence": "CC0-1.0", "thresholds": {"conf": 0.4}}
    checkpoint = replace(narrow_tiny, meta=meta)
    manifest = export(checkpoint, tmp_path / "m.onnx", imgsz=SIZE, outputs="decoded").manifest
    assert manifest.names == narrow_tiny.names
    assert manifest.strides == narrow_tiny.spec.strides
    assert [level.anchors for level in manifest.levels] == list(narrow_tiny.spec.anchors)
    assert (manifest.input.height, manifest.input.width) == SIZE
    assert (manifest.input.color, manifest.input.letterbox.pad) == ("rgb", 114)
    assert [(o.name, o.role, o.dtype) for o in manifest.outputs] == [
        ("boxes", "boxes", "float32"),
        ("scores", "scores", "float32"),
    ]
    assert (manifest.thresholds.conf, manifest.thresholds.iou) == (0.4, 0.45)
    assert (manifest.licence, manifest.opset, manifest.target) == ("CC0-1.0", 17, "onnx")
    assert manifest.source.digest == checkpoint.digest
    assert manifest.source.form == "training"
    assert manifest.source.parameters == parameters(fold_checkpoint(checkpoint).spec)
    assert {"y7edge", "onnx", "onnxsim"} <= set(manifest.tools)


def test_the_payload_is_the_same_bytes_every_time(narrow_tiny, artifact_path, tmp_path):
    again = export(narrow_tiny, tmp_path / "again.onnx", imgsz=(96, 128))
    first = registry.load(artifact_path).manifest
    assert again.manifest.payload_digest == first.payload_digest
    payload = [onnxrt._modelproto.without_metadata(p) for p in (artifact_path, again.path)]
    assert payload[0] == payload[1]
    assert again.manifest.probes == first.probes
    assert onnx.load(artifact_path).ir_version == 8


def test_size_comes_from_training_unless_asked_for(narrow_tiny, tmp_path):
    checkpoint = replace(narrow_tiny, meta={"imgsz": [64, 96]})
    image = export(checkpoint, tmp_path / "m.onnx").manifest.input
    assert (image.height, image.width) == (64, 96)
    image = export(checkpoint, tmp_path / "m.onnx", imgsz=96).manifest.input
    assert (image.height, image.width) == (96, 96)


@pytest.mark.parametrize("form", ["deploy", "folded"])
def test_other_forms_are_exported_too(narrow_tiny, tmp_path, form):
    if form == "folded":
        checkpoint = fold_checkpoint(narrow_tiny)
    else:
        spec = scale(models.get("yolov7", nc=2, form="deploy"), width=0.125)
        checkpoint = random_weights(spec)
    made = export(checkpoint, tmp_path / "m.onnx", imgsz=64)
    assert made.manifest.source.form == form
    assert form in made.manifest.parity["reference"]


def test_one_class_and_four_levels(tmp_path):
    checkpoint = random_weights(scale(models.get("yolov7-w6", nc=1), width=0.125))
    made = export(checkpoint, tmp_path / "m.onnx", imgsz=(64, 128), outputs="decoded")
    assert made.manifest.strides == (8, 16, 32, 64)
    assert made.manifest.outputs[1].shape[2] == 1


def test_a_saved_checkpoint_gives_the_same_artifact(narrow_tiny, artifact_path, tmp_path):
    weights.save(narrow_tiny, tmp_path / "c.safetensors")
    assert verify(artifact_path, weights.load(tmp_path / "c.safetensors")).status == "passed"


def test_progress_is_reported(narrow_tiny, tmp_path):
    lines = []
    export(narrow_tiny, tmp_path / "m.onnx", imgsz=SIZE, progress=lines.append)
    text = "\n".join(lines)
    for part in ("fold", "graph", "reference", "synthetic scenes", "onnxrt", "m.onnx"):
        assert part in text


def test_the_package_offers_its_functions():
    assert y7edge.export.export is export
    assert y7edge.export.verify is verify
    assert set(y7edge.export.__all__) <= set(dir(y7edge.export))
    with pytest.raises(AttributeError, match="nothing"):
        _ = y7edge.export.nothing


# --- what cannot be ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"target": "abacus"}, "no target 'abacus'; choose from "),
        ({"outputs": "boxes"}, "no outputs 'boxes'; choose from heads, heads-sigmoid, decoded"),
        ({"input": "float16"}, "no input 'float16'; choose from float32, uint8"),
        ({"rewrites": ["pool5"]}, "no rewrite 'pool5'; choose from pool3x3"),
        ({"rewrites": ["reorg-conv6"]}, "has no space-to-depth before a 3x3 convolution"),
        ({"rewrites": "pool3x3"}, "rewrites: expected a list"),
        ({"precision": "int4"}, "no precision 'int4'; choose from fp32, fp16, int8"),
        ({"imgsz": 100}, "100x100, expected multiples of 32.*nearest that fits is 96x96"),
        ({"imgsz": (0, 64)}, "nearest that fits is 32x64"),
        ({"imgsz": (64, 65)}, "64x65"),
        ({"imgsz": 0}, "0x0, expected multiples"),
        ({"imgsz": "640"}, "imgsz: expected a whole number or a list of 2"),
        ({"batch": 0}, "batch is 0"),
        ({"batch": 2, "dynamic": True}, "batch is 2, but the batch size is to be dynamic"),
        ({"imgsz": -64}, "-64x-64"),
        ({"imgsz": (64, 64, 64)}, "imgsz: expected a whole number or a list of 2"),
        ({"out": "m.engine"}, r"target onnx writes \.onnx files; got .*m\.engine: use m\.onnx"),
        ({"out": "m"}, r"target onnx writes \.onnx files"),
        ({"options": {"fast": "1"}}, "no option 'fast'; it has no options"),
        ({"unverified": "because"}, "are proved by runtime onnxrt: omit --unverified"),
    ],
)
def test_invalid_options_are_refused_before_the_work(narrow_tiny, tmp_path, options, problem):
    out = tmp_path / options.pop("out", "m.onnx")
    with pytest.raises(ConfigError, match=problem):
        export(narrow_tiny, out, **{"imgsz": SIZE, **options})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["file/m.onnx", "file/folder/m.onnx"])
def test_unwritable_destination_is_refused_before_the_work(narrow_tiny, tmp_path, place):
    (tmp_path / "file").write_text("not a folder")
    lines = []
    with pytest.raises(ConfigError, match="file is not a writable folder"):
        export(narrow_tiny, tmp_path / place, imgsz=SIZE, progress=lines.append)
    assert lines == []


def test_a_full_disk_is_an_export_error(narrow_tiny, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(ExportError, match=r"cannot write .*m\.onnx: the disk is full"):
        export(narrow_tiny, tmp_path / "m.onnx", imgsz=SIZE)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(narrow_tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(base, "find_spec", lambda name: None)
    with pytest.raises(RuntimeMissing, match=r'onnxsim.*"y7edge\[export\]"'):
        export(narrow_tiny, tmp_path / "m.onnx", imgsz=SIZE)


@pytest.mark.parametrize("package", ["onnx", "torch"])
def test_missing_extra_is_named(package):
    script = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "import y7edge.export\n"
        "from y7edge.errors import RuntimeMissing\n"
        "try:\n"
        "    y7edge.export.export, y7edge.export.verify\n"
        "    from y7edge.export.proof.reference import Reference\n"
        "    Reference(None)\n"
        "except RuntimeMissing as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert f"needs {package}, which is not installed" in done.stdout
    assert "y7edge[export]" in done.stdout


# --- nothing at the destination ------------------------------------------------------------------


def miswritten(monkeypatch):
    """Make the writer forget half of one bias, as a bug would."""
    real = graph.build_graph

    def build(checkpoint, **options):
        arrays = dict(checkpoint.arrays)
        arrays["rows.3.conv.bias"] = arrays["rows.3.conv.bias"] * np.float32(0.5)
        return real(replace(checkpoint, arrays=arrays), **options)

    monkeypatch.setattr(pipeline.build, "build_graph", build)


def test_failed_proof_has_a_report_and_no_file(narrow_tiny, tmp_path, monkeypatch):
    miswritten(monkeypatch)
    with pytest.raises(ParityError, match=r"nothing was written to .*m\.onnx") as caught:
        export(narrow_tiny, tmp_path / "m.onnx", imgsz=SIZE)
    assert caught.value.exit_code == 4
    assert caught.value.report.measured.outputs["head0"].deviation > 1e-4
    assert list(tmp_path.iterdir()) == []


def test_failed_export_keeps_the_older_file(narrow_tiny, tmp_path, monkeypatch):
    path = export(narrow_tiny, tmp_path / "m.onnx", imgsz=(96, 64)).path
    older = path.read_bytes()
    miswritten(monkeypatch)
    with pytest.raises(ParityError):
        export(narrow_tiny, path, imgsz=SIZE)
    assert path.read_bytes() == older
    monkeypatch.undo()
    export(narrow_tiny, path, imgsz=SIZE)
    assert registry.load(path).manifest.parity["status"] == "passed"
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize("step", ["build", "prove", "write_manifest", "replace_files"])
@pytest.mark.parametrize("name", PROVABLE)
def test_failure_in_any_step_leaves_no_file(narrow_tiny, tmp_path, monkeypatch, name, step):
    target = available(name)

    def fail(*_, **__):
        raise DeviceError("broke")

    runtime = registry.get(target.RUNTIME)
    owners = {"build": target, "prove": parity, "write_manifest": runtime}
    monkeypatch.setattr(owners.get(step, delivery), step, fail)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    with pytest.raises(DeviceError, match="broke"):
        export(narrow_tiny, tmp_path / "out" / f"m{target.SUFFIX}", target=name, imgsz=SIZE)
    assert not list((tmp_path / "out").glob("**/*"))
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.parametrize("name", PROVABLE)
@pytest.mark.parametrize("word", ["graph", "reference", "float32"])
def test_a_killed_export_leaves_nothing(narrow_tiny, tmp_path, name, word):
    target = available(name)
    weights.save(narrow_tiny, tmp_path / "c.safetensors")
    out = tmp_path / "out"
    out.mkdir()
    script = (
        "import sys, time\n"
        "from y7edge.export import export\n"
        "from y7edge.models.weights import load\n"
        "def tell(line):\n"
        "    print(line, flush=True)\n"
        f"    if {word!r} in line: time.sleep(60)\n"
        f"export(load({str(tmp_path / 'c.safetensors')!r}), "
        f"{str(out / ('m' + target.SUFFIX))!r}, target={name!r}, imgsz={SIZE}, progress=tell)\n"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    deadline = time.monotonic() + 60
    for line in process.stdout:
        if word in line:
            break
        assert time.monotonic() < deadline
    process.kill()
    process.wait()
    process.stdout.close()
    assert list(out.iterdir()) == []
