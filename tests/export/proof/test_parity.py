"""The proof: passed, failed and inconclusive."""

from __future__ import annotations

import os
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from tests import tampering
from y7edge.artifact.reports import (
    CandidateDifference,
    ImageSource,
    Measured,
    Peak,
    ProbeResult,
    TensorDifference,
    Tolerance,
)
from y7edge.detect.selftest import selftest
from y7edge.errors import ArtifactError, ConfigError, DataError, DigestError, ParityError
from y7edge.export.pipeline import export
from y7edge.export.proof import images, parity
from y7edge.export.proof import reference as references
from y7edge.export.proof.images import ProofImages, gather
from y7edge.export.proof.reference import Reference
from y7edge.export.proof.verify import verify
from y7edge.models.spec import Spec
from y7edge.nn.random_weights import random_weights
from y7edge.runtimes import onnxrt, registry

SIZE = (96, 128)


@pytest.fixture(scope="module")
def artifact(artifact_path):
    return registry.load(artifact_path)


@pytest.fixture(scope="module")
def shown(artifact):
    return gather(None, {}, artifact.manifest.input)


# --- the proof -----------------------------------------------------------------------------------


def test_proof_records_the_comparison(artifact_path, narrow_tiny):
    report = verify(artifact_path, narrow_tiny)
    measured = report.measured
    assert (report.status, report.problems) == ("passed", ())
    assert (measured.pictures.count, measured.pictures.source) == (8, "synthetic scenes")
    assert report.origin.source_digest == narrow_tiny.digest
    assert set(measured.outputs) == {"head0", "head1", "head2"}
    for output in measured.outputs.values():
        assert 0 < output.deviation < 1e-5
        assert output.cosine > 0.99999
    assert measured.candidates.count >= 100
    assert measured.candidates.score_spread > 0.2
    assert "not folded" in measured.reference
    assert measured.arithmetic == "float32 (ONNX Runtime, cpu)"
    assert measured.tolerance.deviation == 1e-4


def test_the_tolerance_is_the_runtimes_own(artifact_path, narrow_tiny, monkeypatch):
    monkeypatch.setattr(onnxrt, "DEVIATION", 1e-9)
    with pytest.raises(ParityError, match=r"head0 deviates .* tolerance 1e-09") as caught:
        verify(artifact_path, narrow_tiny, backend="onnxrt", threads=1)
    assert caught.value.report.measured.tolerance.deviation == 1e-9


def test_verify_takes_a_backend(artifact_path, narrow_tiny, shown):
    report = verify(artifact_path, narrow_tiny, backend="onnxrt", device="cpu", threads=1)
    assert report.measured.engine == "onnxrt"
    with pytest.raises(ConfigError, match="no backend 'abacus'"):
        verify(artifact_path, narrow_tiny, backend="abacus")
    artifact, images = (
        registry.load(artifact_path),
        ProofImages(shown.frames[:1], shown.inputs[:1], "one"),
    )
    with pytest.raises(ConfigError, match="threads is 0"):
        parity.prove(artifact, Reference(narrow_tiny), images, threads=0)


def test_every_changed_convolution_fails_without_digests(
    artifact_path, narrow_tiny, shown, tmp_path
):
    reference = Reference(narrow_tiny)
    convolutions = tampering.convolutions_of(artifact_path)
    assert len(convolutions) == 58
    for name in convolutions:
        path = tampering.scale_weight(artifact_path, tmp_path / "m.onnx", name)
        report = parity.prove(
            registry.load(path), reference, ProofImages(shown.frames[:2], shown.inputs[:2], "two")
        )
        assert report.status == "failed", name
        assert max(o.deviation for o in report.measured.outputs.values()) > 10 * 1e-4, name
        with pytest.raises(ParityError, match="it differs from its model"):
            parity.require_passed(report, "it")


def test_verify_ignores_digests_only_if_asked_to(artifact_path, narrow_tiny, tmp_path):
    name = tampering.convolutions_of(artifact_path)[30]
    path = tampering.scale_weight(artifact_path, tmp_path / "m.onnx", name)
    with pytest.raises(DigestError, match="payload digest"):
        verify(path, narrow_tiny)
    with pytest.raises(ParityError, match="head0 deviates") as caught:
        verify(path, narrow_tiny, ignore_digests=True)
    assert caught.value.report.status == "failed"
    same = tampering.scale_weight(artifact_path, tmp_path / "m.onnx", name, 1.0)
    assert verify(same, narrow_tiny, ignore_digests=True).origin.payload_digest is None


@pytest.mark.parametrize("word", [b'"anchors":[[', b'"names":["n', b'"payload_digest":"'])
def test_verify_refuses_a_changed_manifest(artifact_path, narrow_tiny, tmp_path, word):
    position = artifact_path.read_bytes().rindex(word) + len(word)
    with pytest.raises(DigestError, match="manifest"):
        verify(tampering.flip(artifact_path, tmp_path / "m.onnx", position, 1), narrow_tiny)


def test_verify_refuses_a_flipped_byte_of_graph_and_weights(artifact_path, narrow_tiny, tmp_path):
    size = artifact_path.stat().st_size
    for position in (0, 5, 40, 200, size // 3, size // 2):
        with pytest.raises(DigestError):
            verify(tampering.flip(artifact_path, tmp_path / "m.onnx", position), narrow_tiny)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda m: {"names": m.names[::-1]}, "class names"),
        (lambda m: {"levels": tuple(replace(v, anchors=v.anchors[::-1]) for v in m.levels)}, "anc"),
        (lambda m: {"input": replace(m.input, color="bgr")}, "input"),
        (lambda m: {"input": replace(m.input, scale=1.0)}, "input"),
        (lambda m: {"thresholds": replace(m.thresholds, conf=0.999)}, "thresholds"),
        (lambda m: {"thresholds": replace(m.thresholds, max_det=1)}, "thresholds"),
    ],
)
def test_forged_manifest_is_compared_with_the_checkpoint(
    artifact, artifact_path, narrow_tiny, tmp_path, change, what
):
    path = tampering.rewrite(artifact_path, tmp_path / "m.onnx", **change(artifact.manifest))
    with pytest.raises(ParityError, match=f"differ in {what}"):
        verify(path, narrow_tiny)


def test_probes_that_allow_more_than_the_proof_does_are_refused(
    artifact, artifact_path, narrow_tiny, tmp_path
):
    loose = tuple(replace(probe, tolerance=0.9) for probe in artifact.manifest.probes)
    path = tampering.rewrite(artifact_path, tmp_path / "m.onnx", probes=loose)
    with pytest.raises(ParityError, match=r"probe0-batch1 is 0\.9, maximum 0\.0001"):
        verify(path, narrow_tiny)


def test_probes_without_samples_of_an_output_are_refused(artifact, artifact_path, tmp_path):
    fewer = tuple(replace(p, samples=p.samples[:1]) for p in artifact.manifest.probes)
    path = tampering.rewrite(artifact_path, tmp_path / "m.onnx", probes=fewer)
    with pytest.raises(ArtifactError, match="expected one set of samples for each output"):
        selftest(path)


def test_another_checkpoint_is_named(artifact_path, narrow_tiny):
    other = random_weights(narrow_tiny.spec, seed=1)
    with pytest.raises(ParityError, match="exported from another checkpoint"):
        verify(artifact_path, other)
    with pytest.raises(ParityError, match="deviates"):
        verify(artifact_path, other, ignore_digests=True)
    fewer = random_weights(replace(narrow_tiny.spec, nc=2))
    with pytest.raises(ParityError, match=r"differ in number of classes: found 3, expected 2"):
        verify(artifact_path, fewer, ignore_digests=True)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("factor", [1e-3, 0])
def test_equal_scores_are_inconclusive(narrow_tiny, tmp_path, factor, precision):
    arrays = dict(narrow_tiny.arrays)
    head = narrow_tiny.spec.head.index
    for level in range(3):
        for kind in ("weight", "bias"):
            key = f"rows.{head}.lead.{level}.{kind}"
            arrays[key] = arrays[key] * np.float32(factor)
    dull = replace(narrow_tiny, arrays=arrays)
    with pytest.raises(ParityError, match=r"inconclusive.*--images") as caught:
        export(dull, tmp_path / "m.onnx", imgsz=SIZE, precision=precision)
    assert caught.value.report.status == "inconclusive"
    assert caught.value.report.measured.candidates.score_spread < 0.2
    assert list(tmp_path.iterdir()) == []


def test_nan_outputs_are_inconclusive(narrow_tiny, tmp_path):
    arrays = dict(narrow_tiny.arrays)
    for row in (0, 1):
        arrays[f"rows.{row}.bn.weight"] = arrays[f"rows.{row}.bn.weight"] * np.float32(1e30)
    with pytest.raises(ParityError, match="inconclusive, head0 of the checkpoint is NaN"):
        export(replace(narrow_tiny, arrays=arrays), tmp_path / "m.onnx", imgsz=SIZE)
    assert list(tmp_path.iterdir()) == []


# --- fp16 ----------------------------------------------------------------------------------------


def test_fp16_is_compared_by_cosine_and_range(narrow_tiny, tmp_path):
    artifact = export(narrow_tiny, tmp_path / "m.onnx", imgsz=SIZE, precision="fp16")
    report = artifact.manifest.parity
    assert report["tolerance"]["deviation"] is None
    assert report["tolerance"]["peak"] == 65504 / 2
    assert 1e-5 < max(o["deviation"] for o in report["outputs"].values()) < 0.01
    assert "float16" in report["arithmetic"]
    assert artifact.manifest.outputs[0].dtype == "float16"


def test_activations_beyond_half_of_the_range_are_refused(narrow_tiny, tmp_path):
    # One row grows beyond the format and its only reader shrinks it again (a leaky ReLU commutes
    # with positive factors): the heads stay what they were.
    spec, arrays = narrow_tiny.spec, dict(narrow_tiny.arrays)
    readers = {row.index: [r for r in spec.rows if row.index in r.inputs] for row in spec.rows}
    row = next(row for row in spec.rows if [r.block for r in readers[row.index]] == ["conv"])
    for key, factor in (
        (f"rows.{row.index}.bn.weight", 40_000),
        (f"rows.{row.index}.bn.bias", 40_000),
        (f"rows.{readers[row.index][0].index}.conv.weight", 1 / 40_000),
    ):
        arrays[key] = arrays[key] * np.float32(factor)
    grown = replace(narrow_tiny, arrays=arrays)
    export(grown, tmp_path / "full.onnx", imgsz=SIZE)
    with pytest.raises(ParityError, match=rf"activation of rows\.{row.index} reaches.*use fp32"):
        export(grown, tmp_path / "half.onnx", imgsz=SIZE, precision="fp16")


@pytest.mark.parametrize(
    ("precision", "deviation", "limit"),
    [
        ("fp32", 1e-4, (1e-4, None, 0.999, 1e-3, None)),
        ("fp32", 1e-3, (1e-3, None, 0.999, 1e-3, None)),
        ("fp16", 1e-4, (None, 0.9995, 0.95, 0.02, 32752.0)),
        ("bf16", 1e-3, (None, 0.9995, 0.95, 0.02, pytest.approx(1.69e38, rel=0.01))),
    ],
)
def test_tolerances_are_those_of_the_design(precision, deviation, limit):
    t = parity.tolerance(precision, deviation)
    assert (t.deviation, t.cosine, t.iou, t.score, t.peak) == limit


@pytest.mark.parametrize(
    ("place", "value", "problem"),
    [
        (("head0", "deviation"), 2e-4, "head0 deviates by 0.0002"),
        (("head0", "deviation"), float("nan"), "head0 deviates"),
        (("head0", "cosine"), 0.999, "head0 has cosine"),
        (("head0", "cosine"), float("nan"), "head0 has cosine"),
        (("candidates", "iou"), 0.9, "IoU"),
        (("candidates", "score_difference"), 0.03, "score differs"),
        (("candidates", "score_difference"), float("nan"), "score differs"),
        (("activations", "peak"), 1e5, "activation of rows.3"),
        (("activations", "peak"), float("nan"), "activation of rows.3"),
        (("probes", "passed"), False, "p deviates"),
        (("candidates", "score_spread"), 0.1, "spread"),
    ],
)
def test_each_limit_is_a_limit(place, value, problem):
    good = {
        "head0": TensorDifference(1e-4, 0.9995),
        "candidates": CandidateDifference(100, 0.95, 0.02, 0.2),
        "activations": Peak(65504 / 2, "rows.3"),
        "probes": ProbeResult("p", 1, {"head0": 0.0}, 0.0, 0.02, passed=True),
    }
    assert parity._verdict(measured(**good)) == ("passed", ())
    part, field = place
    status, problems = parity._verdict(
        measured(**good | {part: replace(good[part], **{field: value})})
    )
    assert status == ("inconclusive" if "spread" in problem else "failed")
    (found,) = problems
    assert problem in found


def measured(head0, candidates, activations, probes):
    return Measured(
        reference="training form",
        pictures=ImageSource(8, "scenes"),
        batches=(1,),
        outputs={"head0": head0},
        candidates=candidates,
        probes=(probes,),
        activations=activations,
        tolerance=Tolerance(1e-4, 0.9995, 0.95, 0.02, 65504 / 2, 0.02),
        engine="onnxrt",
        device="cpu",
        arithmetic="float32",
        versions={},
    )


# --- images ------------------------------------------------------------------------------------


def test_user_images_come_first(artifact, narrow_tiny, tmp_path):
    import cv2

    for i in range(11):
        cv2.imwrite(str(tmp_path / f"{i:02}.png"), np.full((40, 60, 3), 20 * i, np.uint8))
    (tmp_path / "notes.txt").write_text("no image")
    found = gather(tmp_path, narrow_tiny.meta, artifact.manifest.input)
    assert len(found.inputs) == 8
    assert found.source == str(tmp_path)
    assert found.inputs[0].shape == (1, 3, *SIZE)
    assert found.inputs[0].dtype == np.float32
    greys = [round(float(x[0, 0, 48, 64]) * 255 / 20) for x in found.inputs]
    assert greys == [0, 1, 2, 4, 5, 6, 8, 9]
    few = gather([tmp_path / "03.png"], {}, artifact.manifest.input)
    assert len(few.inputs) == 1
    with pytest.raises(DataError, match=r"notes\.txt"):
        gather(tmp_path / "notes.txt", {}, artifact.manifest.input)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images found"):
        gather(tmp_path / "empty", {}, artifact.manifest.input)


def test_recorded_data_set_comes_second(artifact, tmp_path):
    from y7edge.data.synthetic import scenes

    recorded = scenes.generate(tmp_path / "data", train=3, val=2)
    meta = {"data": {"path": str(recorded)}}
    found = gather(None, meta, artifact.manifest.input)
    assert (len(found.inputs), found.source) == (2, f"data set {recorded}")
    gone = gather(None, {"data": {"path": str(tmp_path / "gone")}}, artifact.manifest.input)
    assert gone.source.startswith("synthetic scenes (the recorded data set")
    assert len(gone.inputs) == images.COUNT


def test_images_of_the_evaluation_and_of_the_calibration(artifact, tmp_path):
    import cv2

    for name in ("given", "val", "calib"):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / "a.png"), np.zeros((40, 60, 3), np.uint8))
    image, gone = artifact.manifest.input, {"data": {"path": str(tmp_path / "gone")}}
    val, calib = (("split val", [tmp_path / "val/a.png"]), ("calib", [tmp_path / "calib/a.png"]))
    both = {"evaluated": val, "calibrated": calib}
    assert gather(tmp_path / "given", gone, image, **both).source == str(tmp_path / "given")
    found = gather(None, gone, image, **both)
    assert (found.source, len(found.inputs)) == ("split val", 1)
    assert gather(None, gone, image, calibrated=calib).source == "calib"
    assert "pass --data DATA or --images FOLDER" in gather(None, gone, image).source


def test_scenes_are_the_same_every_time(artifact, shown):
    again = gather(None, {}, artifact.manifest.input)
    assert all(np.array_equal(a, b) for a, b in zip(shown.inputs, again.inputs, strict=True))
    assert not np.array_equal(shown.inputs[0], shown.inputs[1])


# --- the reference -------------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch):
    """How often the reference model really ran."""
    runs = []
    real = references._run
    monkeypatch.setattr(references, "_run", lambda *given: runs.append(1) or real(*given))
    return runs


def test_the_reference_runs_once_for_each_checkpoint_and_input(
    narrow_tiny, shown, tmp_path, counted
):
    first = Reference(narrow_tiny, tmp_path).answer(shown.inputs[0])
    again = Reference(narrow_tiny, tmp_path).answer(shown.inputs[0])
    assert len(counted) == 1
    for a, b in zip(first.heads, again.heads, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (first.peak, first.peak_at) == (again.peak, again.peak_at)
    Reference(narrow_tiny, tmp_path).answer(shown.inputs[1])
    Reference(random_weights(narrow_tiny.spec, seed=1), tmp_path).answer(shown.inputs[0])
    assert len(counted) == 3


@pytest.mark.parametrize("what", ["pipe", "folder", "text", "bomb"])
def test_unreadable_cache_entry_is_replaced(narrow_tiny, shown, tmp_path, what):
    reference = Reference(narrow_tiny, tmp_path)
    expected = reference.answer(shown.inputs[0])
    (path,) = tmp_path.glob("*.npz")
    path.unlink()
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what == "text":
        path.write_text("text")
    else:  # a header that claims 10 TB
        with zipfile.ZipFile(path, "w") as archive:
            shape = b"{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000000,), }"
            header = shape.ljust(117) + b"\n"
            archive.writestr("head0.npy", b"\x93NUMPY\x01\x00" + bytes([118, 0]) + header)
    found = reference.answer(shown.inputs[0])
    for a, b in zip(found.heads, expected.heads, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "other"])
def test_damaged_cache_entry_is_replaced(narrow_tiny, shown, tmp_path, counted, damage):
    reference = Reference(narrow_tiny, tmp_path)
    first = reference.answer(shown.inputs[0])
    (kept,) = tmp_path.glob("*.npz")
    raw = kept.read_bytes()
    if damage == "flip":
        tampering.flip(kept, kept, len(raw) // 2)
    elif damage == "other":
        np.savez(kept, something=np.zeros(3))
    else:
        kept.write_bytes(raw[: len(raw) // 2 if damage == "cut" else 0])
    again = reference.answer(shown.inputs[0])
    assert len(counted) == 2
    np.testing.assert_array_equal(first.heads[0], again.heads[0])


def test_the_cache_stays_bounded_and_may_be_missing(narrow_tiny, shown, tmp_path, monkeypatch):
    monkeypatch.setattr(references, "CACHE_BYTES", 300_000)
    reference = Reference(narrow_tiny, tmp_path)
    for pixels in shown.inputs[:4]:
        reference.answer(pixels)
    sizes = [path.stat().st_size for path in tmp_path.glob("*.npz")]
    assert 0 < sum(sizes) <= 300_000
    (tmp_path / "file").write_text("no folder")
    Reference(narrow_tiny, tmp_path / "file").answer(shown.inputs[0])


def test_the_cache_folder_can_be_chosen(narrow_tiny, shown, tmp_path, monkeypatch):
    monkeypatch.setenv("Y7EDGE_CACHE", str(tmp_path))
    Reference(narrow_tiny).answer(shown.inputs[0])
    assert len(list((tmp_path / "reference").glob("*.npz"))) == 1


def test_the_reference_is_the_training_form_and_agrees_with_the_model(narrow_tiny, shown, tmp_path):
    import torch

    from y7edge.nn.build import from_checkpoint

    assert narrow_tiny.form == "training"
    answer = Reference(narrow_tiny, tmp_path).answer(shown.inputs[0])
    with torch.inference_mode():
        raws = from_checkpoint(narrow_tiny)(torch.from_numpy(shown.inputs[0]))
    for head, raw in zip(answer.heads, raws, strict=True):
        expected = raw.permute(0, 1, 4, 2, 3).flatten(1, 2).numpy()
        np.testing.assert_allclose(head, expected, atol=1e-5)
    assert answer.peak >= max(float(raw.abs().max()) for raw in raws) - 1e-5


def test_peaks_include_sums(tmp_path):
    from y7edge.models import registry as models
    from y7edge.models.scaling import scale

    spec: Spec = scale(models.get("yolov7-e6e", nc=1), width=0.125)
    checkpoint = random_weights(spec)
    index = next(row.index for row in spec.rows if row.block == "sum")
    watched: dict[str, float] = {}
    from y7edge.nn.build import from_checkpoint

    for name, module in from_checkpoint(checkpoint).named_modules():
        if references._watch(name, module, watched):
            watched[name] = 0.0
    assert f"rows.{index}" in watched
