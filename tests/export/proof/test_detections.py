"""The proof covers the Detector: an error in any of its steps fails the proof."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.fake_model import LEVELS, FakeSession, make_manifest
from y7edge.artifact.reports import Tolerance
from y7edge.detect import postprocess
from y7edge.detect.preprocess import Geometry, Preprocessor
from y7edge.errors import ParityError
from y7edge.export import pipeline
from y7edge.export.pipeline import export
from y7edge.export.proof.agreement import decode
from y7edge.export.proof.detections import compare_detections
from y7edge.export.proof.images import ProofImages, gather
from y7edge.export.proof.verify import verify
from y7edge.models import weights

CHECKPOINT = weights.load(Path(__file__).parents[2] / "reference" / "demo.safetensors")
FULL = Tolerance(1e-4, None, 0.999, 1e-3, None, 1e-4)
HALF = Tolerance(None, 0.9995, 0.95, 0.02, 1e9, 0.015)


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """Artifacts of a trained checkpoint, by their outputs."""
    folder = tmp_path_factory.mktemp("trained")
    return {
        outputs: export(CHECKPOINT, folder / f"{outputs}.onnx", imgsz=160, outputs=outputs).path
        for outputs in ("heads", "decoded")
    }


@pytest.mark.parametrize("outputs", ["heads", "decoded"])
def test_the_boxes_of_the_detector_are_the_references(exports, outputs):
    found = verify(exports[outputs], CHECKPOINT).measured.detections
    assert (found.images, found.unmatched) == (8, 0)
    assert found.boxes > 20
    assert 0 < found.edge_difference < 1e-5
    assert 0 < found.score_difference < 1e-5


def wrap(monkeypatch, place, name, change):
    """Replace ``place.name`` by ``change`` of what it gives."""
    real = getattr(place, name)
    monkeypatch.setattr(place, name, lambda *a, **k: change(real(*a, **k)))


def shift_origin(geometry):
    return replace(geometry, top=geometry.top + 1)


BROKEN = {
    "class index": lambda m: wrap(
        m, postprocess, "suppress", lambda b: b._replace(class_id=(b.class_id + 1) % 3)
    ),
    "box without its best neighbour": lambda m: wrap(
        m, postprocess, "suppress", lambda b: postprocess.Boxes(*(part[1:] for part in b))
    ),
    "no suppression": lambda m: m.setattr(postprocess, "suppress", lambda boxes, _: boxes),
    "another overlap": lambda m: m.setattr(
        postprocess,
        "suppress",
        lambda boxes, criteria, real=postprocess.suppress: real(boxes, replace(criteria, iou=0.1)),
    ),
    "half a pixel": lambda m: wrap(
        m, postprocess, "suppress", lambda b: b._replace(xyxy=b.xyxy + np.float32(0.5))
    ),
    "score": lambda m: wrap(
        m, postprocess, "suppress", lambda b: b._replace(score=b.score * np.float32(0.99))
    ),
    "letterbox backwards": lambda m: m.setattr(
        Geometry,
        "to_source",
        lambda self, boxes, real=Geometry.to_source: real(shift_origin(self), boxes),
    ),
    "colour order": lambda m: m.setattr(
        Preprocessor,
        "__call__",
        lambda self, frame, color="bgr", out=None, real=Preprocessor.__call__: real(
            self, frame, "rgb", out
        ),
    ),
}


@pytest.mark.parametrize("outputs", ["heads", "decoded"])
@pytest.mark.parametrize("step", BROKEN)
def test_each_step_broken_by_one_line_fails_the_proof(exports, monkeypatch, step, outputs):
    BROKEN[step](monkeypatch)
    with pytest.raises(ParityError, match=r"boxes differ between Detector and reference"):
        verify(exports[outputs], CHECKPOINT)


HEADS_BROKEN = {
    "order of the anchors": lambda p: setattr(p, "_anchors", p._anchors[:, ::-1].copy()),
    "anchors rotated": lambda p: setattr(p, "_anchors", np.roll(p._anchors, 1, axis=1)),
    "width for height": lambda p: setattr(p, "_anchors", p._anchors[[0, 2, 1]]),
    "stride": lambda p: p._anchors.__imul__(np.float32([[1.01], [1], [1]])),
}


def test_anchors_of_the_manifest_that_are_not_the_checkpoints_fail_an_export(monkeypatch, tmp_path):
    real = pipeline.describe

    def draft(*given, **options):
        manifest = real(*given, **options)
        levels = tuple(replace(v, anchors=v.anchors[::-1]) for v in manifest.levels)
        return replace(manifest, levels=levels)

    monkeypatch.setattr(pipeline, "describe", draft)
    with pytest.raises(ParityError, match="boxes differ between Detector"):
        export(CHECKPOINT, tmp_path / "m.onnx", imgsz=160)


@pytest.mark.parametrize("step", HEADS_BROKEN)
def test_wrong_decoding_of_heads_fails_the_proof(exports, monkeypatch, step):
    real = postprocess.Postprocessor.__init__

    def init(self, *given, **options):
        real(self, *given, **options)
        HEADS_BROKEN[step](self)

    monkeypatch.setattr(postprocess.Postprocessor, "__init__", init)
    with pytest.raises(ParityError, match="boxes differ between Detector"):
        verify(exports["heads"], CHECKPOINT)


# --- thresholds, on a session whose outputs are given --------------------------------------------


class Prepared(FakeSession):
    """Return the given heads for any input."""

    def __init__(self, manifest, heads):
        super().__init__(manifest)
        self._heads = heads

    def infer(self, feeds):
        return {f"head{level}": head for level, head in enumerate(self._heads)}


def logit(p):
    return float(np.log(p / (1 - p)))


def heads_with(*objects):
    """Heads (fine, coarse) with objects (row, column, score, class, dx in cells)."""
    fine = np.full((1, 8, 8, 12), -12, np.float32)
    coarse = np.full((1, 8, 4, 6), -12, np.float32)
    fine[:, :4] = coarse[:, :4] = 0
    for row, column, score, class_id, dx in objects:
        fine[0, 0, row, column] = logit((dx + 0.5) / 2 + 0.25)
        fine[0, 4, row, column] = 12
        fine[0, 5 + class_id, row, column] = logit(score)
    return fine, coarse


def compare(reference, artifact, limits=FULL, conf=0.25, height=64, **thresholds):
    manifest = make_manifest()
    changed = replace(manifest.thresholds, **thresholds)
    manifest = replace(manifest, thresholds=changed)
    images = ProofImages((np.zeros((height, 96, 3), np.uint8),), (), "black")
    truth = decode(heads_with(*reference), LEVELS, manifest.nc)
    session = Prepared(manifest, heads_with(*artifact))
    return compare_detections(session, manifest, images, [truth], conf, limits)


ONE = (2, 2, 0.8, 0, 0.0)
# In the next cell, of the same class, 16 pixels wide: IoU 1/3 as they stand, more with dx < 0.
NEXT = (2, 3, 0.7, 0, 0.0)
IOU_45 = (2, 3, 0.7, 0, -0.2414)  # IoU 0.45 to four digits


@pytest.mark.parametrize(
    ("reference", "artifact", "unmatched", "limits"),
    [
        ([ONE], [ONE], 0, FULL),
        ([ONE], [], 1, FULL),
        ([], [ONE], 1, FULL),
        ([ONE], [(2, 2, 0.8, 1, 0.0)], 2, FULL),  # of another class
        ([ONE], [(2, 2, 0.802, 0, 0.0)], 2, FULL),
        ([ONE], [(2, 2, 0.802, 0, 0.0)], 0, HALF),
        ([ONE], [(2, 2, 0.8, 0, 0.01)], 2, FULL),  # 0.08 pixels to the right
        ([ONE], [(2, 2, 0.8, 0, 0.01)], 0, HALF),
        ([ONE, NEXT], [ONE, NEXT], 0, FULL),
        ([ONE, NEXT], [ONE], 1, FULL),
        # At the confidence threshold either is right, a little beyond it is not.
        ([(2, 2, 0.25005, 0, 0.0)], [(2, 2, 0.24995, 0, 0.0)], 0, FULL),
        ([(2, 2, 0.24995, 0, 0.0)], [(2, 2, 0.25005, 0, 0.0)], 0, FULL),
        ([(2, 2, 0.2504, 0, 0.0)], [(2, 2, 0.2499, 0, 0.0)], 1, FULL),
        ([(2, 2, 0.2504, 0, 0.0)], [(2, 2, 0.2499, 0, 0.0)], 0, HALF),
    ],
)
def test_boxes_match_within_the_tolerance(reference, artifact, unmatched, limits):
    found = compare(reference, artifact, limits)
    assert found.unmatched == unmatched
    assert found.boxes == sum(score > 0.25 for _, _, score, *_ in artifact)
    if artifact and not unmatched:
        assert found.score_difference <= limits.score


def test_empty_results_match():
    found = compare([], [])
    assert (found.images, found.boxes, found.unmatched) == (1, 0, 0)


def test_of_two_equal_scores_either_may_suppress_the_other():
    near = (2, 3, 0.8, 0, -0.4)
    a, b = (2, 2, 0.80004, 0, 0.0), (2, 3, 0.79998, 0, -0.4)
    assert compare([a, near], [ONE, b]).unmatched == 0
    assert compare([ONE, near], [(2, 2, 0.79996, 0, 0.0), near]).unmatched == 0
    assert compare([ONE, (2, 3, 0.7, 0, -0.4)], [(2, 3, 0.7, 0, -0.4)]).unmatched == 1


def test_at_the_overlap_threshold_both_are_right():
    for iou in (0.44995, 0.45005):  # the Detector decides one way here and the other there
        assert compare([ONE, IOU_45], [ONE, IOU_45], iou=iou).unmatched == 0
    # Clearly below it both stay, and one of them alone is wrong.
    assert compare([ONE, NEXT], [ONE], iou=0.45).unmatched == 1


def test_boxes_beyond_the_most_that_are_asked_for_are_not_missing():
    many = [(row, column, 0.5 + 0.01 * row, 0, 0.0) for row in (1, 4, 7) for column in (1, 5, 9)]
    assert compare(many, many, max_det=4).boxes == 4
    assert compare(many, many, max_det=4).unmatched == 0
    worst = sorted(many, key=lambda each: each[2])
    assert compare(many, worst[:4], max_det=4).unmatched > 0


def test_boxes_in_the_border_count_for_the_most_that_are_asked_for():
    """They are among the best of NMS, but not returned: an untrained model has hundreds."""
    border = [(0, column, 0.9, 0, 0.0) for column in (1, 9)]
    seen = [(4, column, 0.5 + 0.02 * column, 0, 0.0) for column in (1, 5, 9)]
    found = compare(border + seen, border + seen, height=32, max_det=4)
    assert (found.boxes, found.unmatched) == (2, 0)
    assert compare(border + seen, border + seen[:2], height=32, max_det=4).unmatched > 0
    assert compare(border + seen, border, height=32, max_det=4).unmatched == 3


def test_tied_classes_match():
    heads = [np.copy(h) for h in heads_with(ONE)]
    heads[0][0, 6, 2, 2] = heads[0][0, 5, 2, 2] + np.float32(1e-5)
    manifest = make_manifest()
    images = ProofImages((np.zeros((64, 96, 3), np.uint8),), (), "black")
    truth = decode(heads, LEVELS, manifest.nc)
    for class_id in (0, 1):
        artifact = heads_with((2, 2, 0.8, class_id, 0.0))
        session = Prepared(manifest, artifact)
        found = compare_detections(session, manifest, images, [truth], 0.25, FULL)
        assert found.unmatched == 0


@pytest.mark.parametrize("frame_hw", [(48, 64), (333, 97), (1, 300), (720, 1280)])
def test_the_letterbox_of_the_proof_is_the_detectors_to_the_bit(frame_hw, tmp_path):
    import cv2

    image = make_manifest().input
    frame = np.random.default_rng(0).integers(0, 256, (*frame_hw, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), frame)
    found = gather(tmp_path, {}, image)
    preprocess = Preprocessor(image)
    preprocess(frame)
    np.testing.assert_array_equal(found.frames[0], frame)
    np.testing.assert_array_equal(found.inputs[0], preprocess.tensor)
