"""``Detector.swap``: the model is exchanged as a whole, or not at all."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest

from tests.detect.test_detector import frame_with
from tests.fake_model import NAMES, FakeSession, make_manifest
from y7edge.artifact.manifest import Thresholds
from y7edge.detect import opening
from y7edge.detect.detector import Detector
from y7edge.detect.model import OpenModel
from y7edge.errors import (
    ArtifactMissing,
    ConfigError,
    DetectorClosed,
    DeviceError,
    DigestError,
    ParityError,
)

FRAME = frame_with((32, 64), (160, 0))
OTHER = ("bolt", "gear", "cap")
WAIT = 30


class Models:
    """Models by name, which ``Detector.swap`` opens."""

    def __init__(self):
        self.manifests, self.sessions = {}, {}
        self.opening, self.go = threading.Event(), threading.Event()
        self.go.set()

    def add(self, name, digest, **changes):
        changes = {"parity": {"status": "source"}, "names": OTHER, **changes}
        self.manifests[name] = make_manifest(payload_digest=digest * 32, **changes)

    def open(self, source, backend, options, imgsz, names):
        self.options = options
        self.opening.set()
        assert self.go.wait(WAIT)
        manifest = self.manifests[str(source)]
        self.sessions[str(source)] = session = FakeSession(manifest)
        return session, manifest


@pytest.fixture
def models(monkeypatch):
    made = Models()
    made.add("new", "cd", size=(128, 192))
    made.add("decoded", "ef", outputs="decoded", batch=4)
    monkeypatch.setattr(opening, "open_model", made.open)
    return made


def old(**options):
    manifest = make_manifest()
    session = FakeSession(manifest)
    return Detector.from_session(session, manifest, **options), session


@pytest.mark.parametrize("name", ["new", "decoded"])
def test_size_classes_and_outputs_may_differ(models, name):
    detector, session = old(conf=0.3)
    with detector:
        before = detector(FRAME)
        detector.swap(name)
        after = detector(FRAME)
        assert (before.model_id, after.model_id) == (
            "ab" * 8,
            {"new": "cd", "decoded": "ef"}[name] * 8,
        )
        assert (before.names, after.names) == (NAMES, OTHER)
        assert detector.names == OTHER
        assert detector.info["model_id"] == after.model_id
        assert session.closed == 1
        assert len(after) > 0
        np.testing.assert_allclose(after.image_wh, before.image_wh)
        assert models.sessions[name].closed == 0
        assert models.options.check_payload is True
    assert models.sessions[name].closed == 1


def test_options_of_the_user_stay_and_others_follow_the_manifest(models):
    models.add("strict", "12", thresholds=Thresholds(conf=0.9, iou=0.5, max_det=2), names=NAMES)
    detector, _ = old(max_det=7, classes=iter(["washer"]))
    assert (detector.info["conf"], detector.info["max_det"]) == (0.25, 7)
    detector.swap("strict")
    info = detector.info
    assert (info["conf"], info["iou"], info["max_det"], info["classes"]) == (0.9, 0.5, 7, (1,))


@pytest.mark.parametrize(
    ("name", "options", "error", "text"),
    [
        ("unproved", {}, ParityError, "has no probes"),
        ("levels", {}, ConfigError, "levels"),
        ("new", {"classes": ["washer"]}, ConfigError, "no class 'washer'"),
        ("missing", {}, KeyError, "missing"),
    ],
)
def test_after_an_error_the_old_model_stays(models, name, options, error, text):
    models.add("unproved", "34", parity={"status": "passed"})
    image = replace(make_manifest().input, levels=(0, 4095))
    models.add("levels", "56", input=image)
    detector, session = old(**options)
    with pytest.raises(error, match=text):
        detector.swap(name)
    assert detector(FRAME).model_id == "ab" * 8
    assert session.closed == 0
    assert all(one.closed == 1 for one in models.sessions.values())
    models.add("good", "78", names=NAMES)
    detector.swap("good")  # a failed swap does not block the next one
    assert detector(FRAME).model_id == "78" * 8


def test_an_engine_that_fails_in_the_warm_up(models, monkeypatch):
    monkeypatch.setattr(FakeSession, "_run", lambda *_: 1 / 0)
    detector, session = old()
    with pytest.raises(DeviceError, match="failed in nothing"):
        detector.swap("new")
    assert (models.sessions["new"].closed, session.closed) == (1, 0)


def test_the_caller_can_refuse_a_model(models):
    def check(manifest):
        if manifest.names != NAMES:
            raise ConfigError("other classes")

    detector, _ = old()
    with pytest.raises(ConfigError, match="other classes"):
        detector.swap("new", check=check)
    assert detector(FRAME).names == NAMES


@pytest.mark.filterwarnings("error")
def test_a_warning_that_is_an_error(models):
    models.add("unverified", "90", parity={"status": "unverified"})
    detector, session = old()
    with pytest.raises(UserWarning, match="without a proof"):
        detector.swap("unverified")
    assert detector(FRAME).model_id == "ab" * 8
    assert (models.sessions["unverified"].closed, session.closed) == (1, 0)


def test_images_prepared_for_the_old_model_are_prepared_again(models, monkeypatch):
    """An exchange between the pre-processing and the engine does not mix the two."""
    detector, _ = old()
    original, swapped = OpenModel.prepare, []

    def prepare(self, *arguments):
        prepared = original(self, *arguments)
        if not swapped:
            swapped.append(True)
            detector.swap("new")
        return prepared

    monkeypatch.setattr(OpenModel, "prepare", prepare)
    found = detector(FRAME)
    assert (found.model_id, found.names) == ("cd" * 8, OTHER)
    assert {tuple(np.rint(row.xyxy)) for row in found} == {
        tuple(np.rint(row.xyxy)) for row in detector(FRAME)
    }


def test_detection_goes_on_while_a_model_is_opened(models):
    detector, _ = old()
    models.go.clear()
    thread = threading.Thread(target=detector.swap, args=("new",))
    thread.start()
    assert models.opening.wait(WAIT)
    assert detector(FRAME).model_id == "ab" * 8
    with pytest.raises(DeviceError, match="exchanged by another thread"):
        detector.swap("new")
    waiting = detector.submit(FRAME)
    assert waiting.result(WAIT).model_id == "ab" * 8
    models.go.set()
    thread.join(WAIT)
    assert detector.submit(FRAME).result(WAIT).model_id == "cd" * 8


def test_close_while_a_model_is_opened(models):
    detector, session = old()
    models.go.clear()
    errors = []

    def swap():
        try:
            detector.swap("new")
        except DetectorClosed as error:
            errors.append(error)

    thread = threading.Thread(target=swap)
    thread.start()
    assert models.opening.wait(WAIT)
    detector.close()
    models.go.set()
    thread.join(WAIT)
    assert len(errors) == 1
    assert (models.sessions["new"].closed, session.closed) == (1, 1)
    with pytest.raises(DetectorClosed):
        detector.swap("new")


def test_results_of_threads_are_of_one_model(models):
    models.add("old", "ab", names=NAMES)
    detector, _ = old(queue=8)
    pairs, errors, stop = set(), [], threading.Event()

    def work():
        try:
            while not stop.is_set():
                found = detector(FRAME)
                pairs.add((found.model_id, found.names))
                found = detector.submit(FRAME).result(WAIT)
                pairs.add((found.model_id, found.names))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(10):
        detector.swap("new")
        detector.swap("old")
    stop.set()
    for thread in threads:
        thread.join(WAIT)
    assert not errors
    assert pairs <= {("ab" * 8, NAMES), ("cd" * 8, OTHER)}


def test_a_stream_goes_on(models):
    detector, _ = old()
    seen = []
    with detector.stream(iter([FRAME] * 4)) as stream:
        for number, (_, found) in enumerate(stream):
            seen.append(found.model_id[:2])
            assert stream.health().model["model_id"] == found.model_id
            if number == 1:
                detector.swap("decoded")
    assert seen == ["ab", "ab", "ef", "ef"]


def test_a_real_artifact(artifact_path, tmp_path):
    copied = tmp_path / "copied.onnx"
    with Detector(artifact_path, threads=1) as detector:
        model_id = detector(FRAME).model_id
        with pytest.raises(ArtifactMissing):
            detector.swap(copied)
        content = artifact_path.read_bytes()
        middle = len(content) // 2
        copied.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        with pytest.raises(DigestError):
            detector.swap(copied)
        before = detector.session
        copied.write_bytes(content)
        detector.swap(copied)
        assert detector.session is not before
        assert detector(FRAME).model_id == model_id
        with pytest.raises(DetectorClosed):
            before.infer({})
