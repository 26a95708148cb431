from __future__ import annotations

import json
import os
import signal
import threading
import time
import warnings
from dataclasses import replace

import numpy as np
import pytest

from tests.fake_model import NAMES, FakeSession, make_manifest
from y7edge.artifact.artifact import Artifact
from y7edge.artifact.manifest import Thresholds
from y7edge.detect.detector import Detector
from y7edge.detect.inference import _placed
from y7edge.detect.postprocess import Boxes
from y7edge.detect.preprocess import letterbox_geometry
from y7edge.errors import (
    ArtifactError,
    ArtifactMissing,
    ConfigError,
    DataError,
    DetectorClosed,
    DeviceError,
    DigestError,
    RuntimeMissing,
)
from y7edge.runtimes import onnxrt, registry
from y7edge.runtimes.base import SessionOptions


def detector_over(batch=1, outputs="heads", **options) -> tuple[Detector, FakeSession]:
    manifest = make_manifest(batch, outputs)
    session = FakeSession(manifest)
    return Detector.from_session(session, manifest, **options), session


def frame_with(*places, size=(128, 192)) -> np.ndarray:
    """Black, with white squares of 16 x 16 at (left, top): cells of a network half as large."""
    frame = np.zeros((*size, 3), np.uint8)
    for left, top in places:
        frame[top : top + 16, left : left + 16] = 255
    return frame


@pytest.mark.parametrize("outputs", ["heads", "decoded"])
@pytest.mark.parametrize("batch", [1, 3, "dynamic"])
def test_boxes_are_in_pixels_of_the_image(batch, outputs):
    detector, _ = detector_over(batch, outputs)
    found = detector(frame_with((32, 64), (160, 0)))
    # The fake's box is 16 x 16 around the cell in the network, twice that in the image.
    expected = {(24, 56, 56, 88), (152, 0, 184, 24)}
    assert {tuple(np.rint(row.xyxy)) for row in found} == expected
    assert found.class_id.tolist() == [1, 1]
    assert found[0].class_name == "washer"
    assert found.image_wh == (192, 128)
    assert found.model_id == "ab" * 8
    assert found.timing.total > 0
    assert len(detector(frame_with())) == 0


class Variant(FakeSession):
    """The fake model with heads as other targets make them."""

    def _run(self, feeds):
        (name,) = feeds
        heads = super()._run({name: feeds[name]})
        for output in self.manifest.outputs:
            if output.activation == "sigmoid":
                heads[output.name] = 1 / (1 + np.exp(-heads[output.name]))
            if output.layout == "NHWC":
                heads[output.name] = heads[output.name].transpose(0, 2, 3, 1)
        return heads


@pytest.mark.parametrize("activation", ["logit", "sigmoid"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_head_layouts_and_activations(activation, layout):
    manifest = make_manifest()
    outputs = tuple(
        replace(
            output,
            activation=activation,
            layout=layout,
            shape=output.shape if layout == "NCHW" else (1, *output.shape[2:], output.shape[1]),
        )
        for output in manifest.outputs
    )
    changed = replace(manifest, outputs=outputs)
    expected = Detector.from_session(FakeSession(manifest), manifest)(
        frame_with((32, 64), (160, 0))
    )
    found = Detector.from_session(Variant(changed), changed)(frame_with((32, 64), (160, 0)))
    np.testing.assert_allclose(found.xyxy, expected.xyxy, atol=1e-3)
    np.testing.assert_allclose(found.confidence, expected.confidence, atol=1e-5)


@pytest.mark.parametrize("outputs", ["heads", "decoded"])
@pytest.mark.parametrize(
    ("batch", "calls"), [(1, [1] * 5), (3, [3, 3]), (8, [8]), ("dynamic", [5])]
)
def test_batch_equals_single_calls(batch, calls, outputs):
    detector, session = detector_over(batch, outputs)
    frames = [
        frame_with((32, 64)),
        frame_with((0, 0), (64, 64), size=(200, 100)),
        frame_with(),
        frame_with((16, 16), size=(64, 96)),
        frame_with((80, 80)),
    ]
    together = detector.batch(frames)
    assert session.batches == calls
    assert isinstance(together, list)
    for frame, found in zip(frames, together, strict=True):
        alone = detector(frame)
        np.testing.assert_array_equal(found.xyxy, alone.xyxy)
        np.testing.assert_array_equal(found.confidence, alone.confidence)
        assert found.image_wh == alone.image_wh


def test_time_frame_and_source_reach_the_result():
    detector, _ = detector_over("dynamic")
    found = detector(frame_with((32, 64)), timestamp_ns=12, frame_id=3, source="cam")
    assert (found.timestamp_ns, found.frame_id, found.source) == (12, 3, "cam")
    plain = detector(frame_with((32, 64)))
    assert (plain.timestamp_ns, plain.frame_id, plain.source) == (None, None, None)


@pytest.mark.parametrize("batch", [1, 3, "dynamic"])
def test_each_image_of_a_batch_has_its_own_time_frame_and_source(batch):
    detector, _ = detector_over(batch)
    many = detector.batch(
        [frame_with()] * 20,
        timestamp_ns=range(20),
        frame_id=[*range(19), None],
        source=["a", "b"] * 10,
    )
    assert [found.timestamp_ns for found in many] == list(range(20))
    assert [found.frame_id for found in many] == [*range(19), None]
    assert [found.source for found in many] == ["a", "b"] * 10


@pytest.mark.parametrize(
    "values",
    [{"source": "ab"}, {"timestamp_ns": 5}, {"frame_id": [1]}, {"frame_id": [1, 2, 3]}],
    ids=["string", "number", "short", "long"],
)
def test_a_batch_takes_one_value_for_each_image(values):
    detector, session = detector_over()
    name = next(iter(values))
    with pytest.raises(DataError, match=f"{name} is .*, expected a list of 2, one per image"):
        detector.batch([frame_with()] * 2, **values)
    assert session.batches == []


def test_boxes_in_the_letterbox_border_are_dropped():
    geometry = letterbox_geometry((48, 96), (96, 96))  # 24 rows of border above and below
    corners = np.float32([[10, 0, 40, 24], [10, 10, 40, 40], [0, 72, 96, 96]])
    scores, ids = np.float32([0.9, 0.8, 0.7]), np.int32([0, 1, 2])
    found = _placed(Boxes(corners, scores, ids), geometry)
    assert found.xyxy.tolist() == [[10, 0, 40, 16]]
    assert found.score.tolist() == [np.float32(0.8)]
    assert found.class_id.tolist() == [1]


def test_batch_sizes():
    detector, session = detector_over("dynamic")
    assert detector.batch([]) == []
    assert len(detector.batch([frame_with()])) == 1
    assert len(detector.batch([frame_with()] * 35)) == 35
    assert session.batches == [1, 16, 16, 3]
    for wrong in (frame_with(), np.stack([frame_with()] * 2), "frames", iter([frame_with()])):
        with pytest.raises(DataError):
            detector.batch(wrong)


def test_results_do_not_change_with_later_calls():
    detector, _ = detector_over()
    first = detector(frame_with((32, 64)))
    before = first.xyxy.copy()
    detector(frame_with((96, 32)))
    np.testing.assert_array_equal(first.xyxy, before)


def test_colour_order_reaches_the_network():
    class Eye(FakeSession):
        def infer(self, feeds):
            self.seen = feeds["images"][0, :, 0, 0].tolist()
            return super().infer(feeds)

    manifest = make_manifest()
    session = Eye(manifest)
    detector = Detector.from_session(session, manifest)
    red = np.zeros((64, 96, 3), np.uint8)
    red[..., 2] = 255
    detector(red)
    assert session.seen == [1, 0, 0]
    detector(red, color="rgb")
    assert session.seen == [0, 0, 1]


def test_thresholds_come_from_the_manifest_unless_given():
    manifest = make_manifest()
    info = Detector.from_session(FakeSession(manifest), manifest).info
    assert (info["conf"], info["iou"], info["max_det"]) == (0.25, 0.45, 300)
    manifest = make_manifest(thresholds=Thresholds(conf=0.1, iou=0.2, max_det=1))
    detector = Detector.from_session(FakeSession(manifest), manifest)
    assert (detector.info["conf"], detector.info["iou"], detector.info["max_det"]) == (0.1, 0.2, 1)
    assert len(detector(frame_with((32, 64), (160, 0)))) == 1
    detector = Detector.from_session(FakeSession(manifest), manifest, max_det=2)
    assert len(detector(frame_with((32, 64), (160, 0)))) == 2
    info = Detector.from_session(FakeSession(manifest), manifest, conf=0.5, iou=0.0).info
    assert (info["conf"], info["iou"]) == (0.5, 0.0)
    assert len(detector_over(conf=0.99)[0](frame_with((32, 64)))) == 0


def test_numpy_numbers_are_numbers_and_info_is_json():
    manifest = make_manifest()
    detector = Detector.from_session(
        FakeSession(manifest),
        manifest,
        conf={np.int64(1): np.float32(0.5), "nut": np.float64(0.75)},
        iou=np.float32(0.5),
        max_det=np.int64(7),
    )
    info = json.loads(json.dumps(detector.info))
    assert info["class_conf"] == [0.75, 0.5, 0.25]
    assert (info["conf"], info["iou"], info["max_det"]) == (0.25, 0.5, 7)
    one = Detector.from_session(FakeSession(manifest), manifest, conf=np.float32(0.5))
    assert json.loads(json.dumps(one.info))["conf"] == 0.5
    assert type(SessionOptions(threads=np.int64(1)).thread_count) is int
    with pytest.raises(ConfigError, match="conf: expected a finite number"):
        Detector.from_session(FakeSession(manifest), manifest, conf={1: np.float32("nan")})


@pytest.mark.parametrize(
    ("classes", "kept"),
    [(None, 1), ([1], 1), (["washer"], 1), ([0, "screw"], 0), ("washer", 1), ((np.int64(1),), 1)],
)
def test_classes_by_id_or_name(classes, kept):
    detector, _ = detector_over(classes=classes)
    assert len(detector(frame_with((32, 64)))) == kept


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conf": 1.5}, r"conf is 1\.5, expected a number from 0 to 1"),
        ({"iou": -1}, "iou is -1"),
        ({"max_det": 0}, "max_det is 0"),
        ({"classes": ["wosher"]}, "no class 'wosher'; did you mean 'washer'"),
        ({"classes": [3]}, "no class 3; expected an id from 0 to 2"),
        ({"classes": [-1]}, "no class -1"),
        ({"classes": [1.0]}, r"expected a name or an id, found 1\.0"),
        ({"classes": [True]}, "expected a name or an id, found True"),
    ],
)
def test_options_that_cannot_be_used(options, message):
    with pytest.raises(ConfigError, match=message):
        detector_over(**options)


def test_classes_of_one_name_are_all_found():
    manifest = make_manifest(names=("0", "part", "part"))
    for classes, expected in (("part", (1, 2)), (["0"], (0,)), (["2"], (2,))):
        info = Detector.from_session(FakeSession(manifest), manifest, classes=classes).info
        assert info["classes"] == expected


def quantised(dtype="int8", scale=0.1, zero_point=-20, role="head"):
    """The fake's manifest with outputs of another type."""
    manifest = make_manifest(outputs="heads" if role == "head" else "decoded")
    changes = {"dtype": dtype, "scale": scale, "zero_point": zero_point}
    outputs = tuple(replace(output, **changes) for output in manifest.outputs)
    return replace(manifest, outputs=outputs)


def test_integer_heads_are_dequantised():
    class Integers(FakeSession):
        def _run(self, feeds):
            heads = super()._run(feeds)
            return {name: np.int8(np.rint(head / 0.1) - 20) for name, head in heads.items()}

    manifest = quantised()
    found = Detector.from_session(Integers(manifest), manifest)(frame_with((32, 64)))
    expected = detector_over()[0](frame_with((32, 64)))
    assert found.class_id.tolist() == expected.class_id.tolist() == [1]
    np.testing.assert_array_equal(found.xyxy, expected.xyxy)
    np.testing.assert_allclose(found.confidence, expected.confidence, rtol=1e-6)


@pytest.mark.parametrize(
    "outputs",
    [{"scale": None}, {"dtype": "float32"}, {"role": "boxes"}],
    ids=["integers without scale", "scale of floats", "integer boxes"],
)
def test_outputs_that_cannot_be_decoded_are_refused_at_open(outputs):
    manifest = quantised(**outputs)
    with pytest.raises(ArtifactError, match=r"output (head0|boxes) .*: export it again"):
        Detector.from_session(FakeSession(manifest), manifest)


def test_an_input_that_cannot_be_written_is_refused_at_open():
    manifest = make_manifest()
    manifest = replace(manifest, input=replace(manifest.input, dtype="int16"))
    with pytest.raises(ConfigError, match="input is int16 NCHW"):
        Detector.from_session(FakeSession(manifest), manifest)


def test_an_input_of_bytes_gets_bytes():
    class Bytes(FakeSession):
        def infer(self, feeds):
            images = feeds["images"]
            assert images.dtype == np.uint8
            self.inputs = (replace(self.inputs[0], dtype="float32"),)
            return super().infer({"images": (images / 255).astype(np.float32)})

    manifest = make_manifest(batch="dynamic")
    manifest = replace(manifest, input=replace(manifest.input, dtype="uint8", scale=1.0))
    detector = Detector.from_session(Bytes(manifest), manifest)
    assert [len(found) for found in detector.batch([frame_with((32, 64)), frame_with()])] == [1, 0]


def test_evaluation_ignores_the_thresholds():
    detector, _ = detector_over(conf=0.99, classes=[0])
    frame = frame_with((32, 64))
    assert len(detector(frame)) == 0
    assert 1 in detector.detect_for_evaluation(frame).class_id


@pytest.mark.parametrize(
    "frame",
    [None, "a.jpg", frame_with().astype(np.float32), np.empty((0, 5, 3), np.uint8)],
    ids=["None", "path", "float", "empty"],
)
def test_detector_is_usable_after_a_bad_image(frame):
    detector, _ = detector_over()
    with pytest.raises(DataError):
        detector(frame)
    with pytest.raises(DataError):
        detector.batch([frame_with(), frame])
    assert len(detector(frame_with((32, 64)))) == 1


def test_detector_is_usable_after_an_engine_failure():
    detector, session = detector_over()
    session.fail = True
    with pytest.raises(DeviceError, match="the engine failed"):
        detector(frame_with())
    session.fail = False
    assert len(detector(frame_with((32, 64)))) == 1


def test_after_close_every_call_is_a_typed_error():
    detector, session = detector_over()
    with detector as same:
        assert same is detector
        detector.warmup(2)
        assert session.batches == [1, 1]
    detector.close()
    assert session.closed == 1
    for call in (
        lambda: detector(frame_with()),
        lambda: detector.batch([frame_with()]),
        lambda: detector.detect_for_evaluation(frame_with()),
        lambda: detector.info,
        detector.warmup,
    ):
        with pytest.raises(DetectorClosed, match="the detector was closed: open a new one"):
            call()
    assert detector.names == NAMES


def test_calls_from_many_threads_are_serialised():
    class Watched(FakeSession):
        inside = 0

        def infer(self, feeds):
            Watched.inside += 1
            assert Watched.inside == 1
            result = super().infer({"images": feeds["images"].copy()})
            Watched.inside -= 1
            return result

    manifest = make_manifest()
    detector = Detector.from_session(Watched(manifest), manifest)
    wrong = []

    def work(column):
        frame = frame_with((32 * column, 64))
        for _ in range(30):
            found = detector(frame)
            if len(found) != 1 or abs(found[0].center[0] - 32 * column - 8) > 4.1:
                wrong.append((column, found.xyxy))

    threads = [threading.Thread(target=work, args=(column,)) for column in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_waiting_time_is_reported():
    detector, _ = detector_over()
    with detector._lock:
        results = []
        thread = threading.Thread(target=lambda: results.append(detector(frame_with())))
        thread.start()
        thread.join(0.05)
        assert not results
    thread.join()
    assert results[0].timing.wait > 20


def test_a_real_artifact(artifact_path, narrow_tiny):
    frame = np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8)
    with Detector(artifact_path, conf=0.05, threads=1) as detector:
        found = detector(frame)
        assert detector.names == narrow_tiny.names
        assert detector.info["imgsz"] == [96, 128]
    assert len(found) > 0
    with Detector(artifact_path, conf=0.05, imgsz=(96, 128)) as detector:
        np.testing.assert_array_equal(detector.batch([frame, frame])[1].xyxy, found.xyxy)
    with pytest.raises(ConfigError, match=r"fixed .* 96x128, found 64x64"):
        Detector(artifact_path, imgsz=64)
    with pytest.raises(ConfigError, match="no class 'nit'; did you mean 'nut'"):
        Detector(artifact_path, classes=["nit"])


def test_checkpoint_and_artifact_agree(artifact_path, narrow_tiny, tmp_path):
    from y7edge.models import weights

    weights.save(narrow_tiny, tmp_path / "narrow.safetensors")
    frame = np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8)
    options = {"conf": 0.05, "threads": 1, "imgsz": (96, 128)}
    with (
        Detector(tmp_path / "narrow.safetensors", **options) as torch_detector,
        Detector(artifact_path, **options) as detector,
    ):
        expected, found = torch_detector(frame), detector(frame)
    np.testing.assert_array_equal(found.class_id, expected.class_id)
    np.testing.assert_allclose(found.confidence, expected.confidence, atol=1e-3)
    np.testing.assert_allclose(found.xyxy, expected.xyxy, atol=0.1)


def test_a_changed_manifest_is_refused(artifact_path, tmp_path):
    content = artifact_path.read_bytes()
    assert content.count(b'"washer"') == 1
    changed = tmp_path / "changed.onnx"
    changed.write_bytes(content.replace(b'"washer"', b'"wisher"'))
    with pytest.raises(DigestError, match="was changed after it was proved"):
        Detector(changed)


def test_files_and_names_that_do_not_exist(tmp_path):
    for kind in (ArtifactMissing, FileNotFoundError):
        with pytest.raises(kind, match=r"there is no file .*none\.onnx"):
            Detector(tmp_path / "none.onnx")
    with pytest.raises(ConfigError, match="yolov7-tiny"):
        Detector("yolov7-tyni")


def test_checkpoint_without_torch_names_the_extra(monkeypatch):
    def missing(name):
        raise ImportError("No module named 'torch'", name="torch")

    monkeypatch.setattr("y7edge.detect.opening.import_module", missing)
    with pytest.raises(RuntimeMissing, match=r'needs torch: pip install "y7edge\[export\]"'):
        Detector("yolov7-tiny")


def open_faked(monkeypatch, tmp_path, **changes):
    """A Detector on an .onnx path whose manifest and session are the fake's."""
    manifest = make_manifest(**changes)
    session = FakeSession(manifest)
    path = tmp_path / "fake.onnx"
    path.touch()
    monkeypatch.setattr(onnxrt, "read_manifest", lambda path: manifest)
    monkeypatch.setattr(registry, "open_session", lambda *arguments: session)
    return path, session


def test_an_unverified_artifact_warns_once(monkeypatch, tmp_path):
    path, _ = open_faked(
        monkeypatch, tmp_path, parity={"status": "unverified", "reason": "no such engine here"}
    )
    with pytest.warns(UserWarning, match=r"without a proof .*\(no such engine here\)") as caught:
        detector = Detector(path)
        detector(frame_with())
        detector(frame_with())
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_a_proved_artifact_does_not_warn(monkeypatch, tmp_path):
    path, _ = open_faked(monkeypatch, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Detector(path)(frame_with())


def test_session_is_closed_if_options_are_invalid(monkeypatch, tmp_path):
    path, session = open_faked(monkeypatch, tmp_path)
    with pytest.raises(ConfigError):
        Detector(path, conf=2)
    assert session.closed == 1


def test_options_reach_the_engine(monkeypatch, tmp_path):
    path, session = open_faked(monkeypatch, tmp_path)
    asked = []

    def open_session(*arguments):
        asked.append(arguments)
        return session

    monkeypatch.setattr(registry, "open_session", open_session)
    Detector(path, "onnxrt", "cuda:1", threads=2, provider_options={"a": 1})
    artifact, options, backend = asked[0]
    assert isinstance(artifact, Artifact)
    assert (options.device, options.threads, options.provider_options) == ("cuda:1", 2, {"a": 1})
    assert backend == "onnxrt"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_forked_child_raises_while_the_lock_is_held():
    detector, _ = detector_over()
    with detector._lock:
        child = os.fork()
        if child == 0:
            try:
                detector.close()
                detector(frame_with())
            except DeviceError as error:
                os._exit(0 if "another process" in str(error) else 2)
            os._exit(3)
        started = time.monotonic()
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            if time.monotonic() - started > 20:
                os.kill(child, signal.SIGKILL)
            time.sleep(0.01)
    assert status == 0
    assert len(detector(frame_with())) == 0
