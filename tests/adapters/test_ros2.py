"""Detections and diagnostics as messages of four distributions, serialised by rosbags."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.blocking import BLOCKER
from tests.fake_model import FakeSession, make_manifest
from y7edge.adapters.ros2 import Ros2Detector, to_detection_array
from y7edge.data.synthetic.scenes import scene
from y7edge.detect.detections import Detections, Timing
from y7edge.detect.detector import Detector
from y7edge.errors import ConfigError, DetectorClosed, DeviceError

try:
    from rosbags.typesys import Stores, get_types_from_msg, get_typestore
except ImportError:
    rosbags = None
else:
    rosbags = True
    DISTRIBUTIONS = {
        "noetic": Stores.ROS1_NOETIC,
        "foxy": Stores.ROS2_FOXY,
        "galactic": Stores.ROS2_GALACTIC,
        "humble": Stores.ROS2_HUMBLE,
    }
needs_rosbags = pytest.mark.skipif(not rosbags, reason="the package rosbags is not installed")

MODEL = Path(__file__).parents[1] / "reference" / "schema1.onnx"
VISION = Path(__file__).parents[1] / "examples" / "ros2" / "vision_msgs" / "msg"
WITH_POSE = "geometry_msgs/PoseWithCovariance pose\n"
BOX = "geometry_msgs/Pose2D center\nfloat64 size_x\nfloat64 size_y\n"
DETECTION = "std_msgs/Header header\nObjectHypothesisWithPose[] results\nBoundingBox2D bbox\n"
ARRAY = "std_msgs/Header header\nDetection2D[] detections\n"
EARLIER = {  # fields before Humble: https://github.com/ros-perception/vision_msgs
    "noetic": {
        "ObjectHypothesisWithPose": "int64 id\nfloat64 score\n" + WITH_POSE,
        "BoundingBox2D": BOX,
        "Detection2D": DETECTION + "sensor_msgs/Image source_img\n",
        "Detection2DArray": ARRAY,
    },
    "foxy": {
        "ObjectHypothesisWithPose": "string id\nfloat64 score\n" + WITH_POSE,
        "BoundingBox2D": BOX,
        "Detection2D": DETECTION
        + "sensor_msgs/Image source_img\nbool is_tracking\nstring tracking_id\n",
        "Detection2DArray": ARRAY,
    },
    "galactic": {
        "ObjectHypothesis": "string class_id\nfloat64 score\n",
        "ObjectHypothesisWithPose": "ObjectHypothesis hypothesis\n" + WITH_POSE,
        "BoundingBox2D": BOX,
        "Detection2D": DETECTION + "string id\n",
        "Detection2DArray": ARRAY,
    },
}


class Messages:
    """The messages of a distribution; those that ``rosbags`` reads have no default values."""

    def __init__(self, distribution):
        self.store = get_typestore(DISTRIBUTIONS[distribution])
        self.ros1 = distribution == "noetic"
        texts = EARLIER.get(distribution)
        if texts is None:
            texts = {path.stem: path.read_text() for path in VISION.glob("*.msg")}
        types = {}
        for name, text in texts.items():
            types |= get_types_from_msg(text, f"vision_msgs/msg/{name}")
        self.store.register(types)

    def package(self, name):
        """Stands for a module such as vision_msgs.msg."""
        start = f"{name}/msg/"
        return SimpleNamespace(
            **{
                one.removeprefix(start): partial(self.new, one)
                for one in self.store.types
                if one.startswith(start)
            }
        )

    def new(self, name):
        return self.store.types[name](
            **{field: self._default(*kind) for field, kind in self.store.fielddefs[name][1]}
        )

    def _default(self, node, kind):
        if node.name == "BASE":
            return {"string": "", "bool": False}.get(kind[0], 0.0 if "float" in kind[0] else 0)
        if node.name == "NAME":
            return self.new(kind)
        (inner, inner_kind), length = kind
        if inner.name == "BASE" and inner_kind[0] != "string":
            return np.zeros(length, inner_kind[0])
        return [self._default(inner, inner_kind) for _ in range(length)]

    def header(self, seconds=1_700_000_000, nanoseconds=123_456_789, frame_id="camera_optical"):
        header = self.new("std_msgs/msg/Header")
        header.stamp.sec, header.stamp.nanosec, header.frame_id = seconds, nanoseconds, frame_id
        return header

    def again(self, message):
        """Serialise a message, and read it."""
        name = message.__msgtype__
        if self.ros1:
            return self.store.deserialize_ros1(self.store.serialize_ros1(message, name), name)
        return self.store.deserialize_cdr(self.store.serialize_cdr(message, name), name)


@pytest.fixture(params=["noetic", "foxy", "galactic", "humble"])
def messages(request):
    if not rosbags:
        pytest.skip("the package rosbags is not installed")
    return Messages(request.param)


@pytest.fixture
def humble():
    return Messages("humble")


def detections(tracker_id=(7, -1, 3), confidence=(0.3, 0.9, 0.6)):
    boxes = [[10, 20, 30.5, 60], [0.25, 0, 5, 7], [600, 400, 639.75, 480]]
    names = ("nut", "schraube mit Öse", "7")
    return Detections(boxes, confidence, [0, 1, 2], (640, 480), names, tracker_id=tracker_id)


def kind_of(result):
    """Class and score of a result, as all distributions name them."""
    hypothesis = getattr(result, "hypothesis", result)
    return getattr(hypothesis, "class_id", getattr(hypothesis, "id", None)), hypothesis.score


def test_exact_values(messages):
    header = messages.header()
    sent = to_detection_array(detections(), header, messages.package("vision_msgs"))
    found = messages.again(sent)
    assert found.header == header
    assert [one.header for one in found.detections] == [header] * 3
    # Best first: the rows 1, 2, 0.
    expected = [(1, 2.625, 3.5, 4.75, 7), (2, 619.875, 440, 39.75, 80), (0, 20.25, 40, 20.5, 40)]
    for one, (row, x, y, width, height) in zip(found.detections, expected, strict=True):
        centre = getattr(one.bbox.center, "position", one.bbox.center)
        assert (centre.x, centre.y, one.bbox.center.theta) == (x, y, 0)
        assert (one.bbox.size_x, one.bbox.size_y) == (width, height)
        (result,) = one.results
        name = detections().names[row] if not messages.ros1 else row
        assert kind_of(result) == (name, float(detections().confidence[row]))
        assert not np.any(result.pose.covariance)
    ids = [getattr(one, "id", getattr(one, "tracking_id", None)) for one in found.detections]
    assert ids == ([None] * 3 if messages.ros1 else ["", "3", "7"])
    if hasattr(found.detections[0], "is_tracking"):
        assert [one.is_tracking for one in found.detections] == [False, True, True]


def test_numbers_and_no_tracker(messages):
    package = messages.package("vision_msgs")
    sent = to_detection_array(detections(None), messages.header(), package, numbers=True)
    found = messages.again(sent)
    expected = [1, 2, 0] if messages.ros1 else ["1", "2", "0"]
    assert [kind_of(one.results[0])[0] for one in found.detections] == expected
    assert not any(getattr(one, "id", "") for one in found.detections)


def test_no_detections(messages):
    header = messages.header()
    nothing = Detections.empty((640, 480))
    found = messages.again(to_detection_array(nothing, header, messages.package("vision_msgs")))
    assert (found.header, list(found.detections)) == (header, [])


def test_without_names(messages):
    unnamed = Detections([[0, 0, 4, 4]], [0.5], [12], (640, 480))
    found = to_detection_array(unnamed, messages.header(), messages.package("vision_msgs"))
    assert kind_of(found.detections[0].results[0])[0] == (12 if messages.ros1 else "12")


# --- detection behind the newest image ---


def time_of(number):
    return SimpleNamespace(sec=100 + number, nanosec=7)


def message(number, pixels=None, encoding="bgr8"):
    """An image with a number in its stamp."""
    pixels = np.zeros((8, 8, 3), np.uint8) if pixels is None else pixels
    return SimpleNamespace(
        header=SimpleNamespace(stamp=time_of(number), frame_id=f"frame {number}"),
        height=pixels.shape[0],
        width=pixels.shape[1],
        encoding=encoding,
        is_bigendian=0,
        step=pixels.shape[1] * 3,
        data=pixels.tobytes(),
    )


class Engine:
    """Stands for a Detector; each image waits until the test lets it go."""

    def __init__(self, info):
        self.info, self.started, self.go = info, threading.Semaphore(0), threading.Semaphore(0)
        self.closed, self.fail, self.frames = False, None, []

    def __call__(self, frame):
        self.started.release()
        assert self.go.acquire(timeout=60)
        self.frames.append(frame)
        if self.fail is not None:
            raise self.fail
        origin = {"timestamp_ns": frame.timestamp_ns, "source": frame.source}
        return Detections([[0, 0, 4, 2]], [0.5], [0], (8, 8), timing=Timing(0, 1, 2, 3), **origin)

    def close(self):
        self.closed = True


INFO = {"model": "m", "model_id": "d", "precision": "fp32", "parity": "passed", "device": "cpu"}
STATUS = SimpleNamespace(
    DiagnosticStatus=lambda: SimpleNamespace(OK=b"\0", WARN=b"\1", ERROR=b"\2"),
    KeyValue=SimpleNamespace,
    DiagnosticArray=lambda: SimpleNamespace(header=SimpleNamespace()),
)


class Running:
    """A Ros2Detector with an engine under control, and what it has published."""

    def __init__(self, engine, **options):
        self.published, self.errors, self.engine = [], [], engine
        self.arrived = threading.Semaphore(0)
        self.node = Ros2Detector(
            engine,
            lambda found, header: (header, found),
            self.publish,
            topic="/cam",
            on_error=self.on_error,
            **options,
        )

    def publish(self, result):
        self.published.append(result)
        self.arrived.release()

    def on_error(self, text):
        self.errors.append(text)
        self.arrived.release()

    def put(self, number, **options):
        self.node.put(message(number, **options))

    def started(self):
        assert self.engine.started.acquire(timeout=60)

    def finish(self):
        """Let the running image finish, and wait for its result or error."""
        self.engine.go.release()
        assert self.arrived.acquire(timeout=60)

    @property
    def seconds(self):
        return [header.stamp.sec - 100 for header, _ in self.published]

    def status(self):
        """Level, message and values of the diagnostics, after counts have settled."""
        for _ in range(500):
            with self.node._lock:
                if not (self.node._pending and self.node._state.running_since is None):
                    break
            time.sleep(0.01)
        sent = self.node.diagnostics(STATUS, time_of(9))
        assert sent.header.stamp == time_of(9)
        (one,) = sent.status
        assert (one.name, one.hardware_id) == ("y7edge: /cam", "cpu")
        return one.level[0], one.message, {pair.key: pair.value for pair in one.values}


@pytest.fixture
def running():
    made = []

    def start(**options):
        made.append(Running(Engine(INFO), **options))
        return made[-1]

    yield start
    for one in made:
        one.engine.go.release(1000)
        one.node.close()


def test_the_newest_image_is_next(running):
    one = running(now_ns=lambda: 104_250_000_007)
    one.put(0)
    one.started()
    for number in (1, 2, 3, 4):
        one.put(number)  # does not block: the engine is busy
    one.finish()
    one.started()
    one.finish()
    assert one.seconds == [0, 4]
    assert one.published[1][0].frame_id == "frame 4"
    frame = one.engine.frames[1]
    assert (frame.timestamp_ns, frame.source, frame.sequence) == (104_000_000_007, "/cam", 4)
    level, text, values = one.status()
    assert (level, text[-9:]) == (0, "results/s")
    counts = [values[name] for name in ("received", "results", "dropped", "errors")]
    assert counts == ["5", "2", "3", "0"]
    assert (values["age_max_ms"], values["infer_ms"], values["objects"]) == ("4250.0", "2.00", "1")
    assert [values[name] for name in ("model", "model_id", "parity")] == ["m", "d", "passed"]


def test_a_longer_queue_keeps_the_order(running):
    one = running(queue=2)
    for number in range(5):
        one.put(number)
        if not number:
            one.started()
    for _ in range(3):
        one.finish()
    assert one.seconds == [0, 3, 4]


def test_an_image_that_fails_does_not_stop_the_next(running):
    one = running()
    one.put(0, encoding="64FC4")
    assert one.arrived.acquire(timeout=60)
    text = "/cam: the encoding '64FC4' is not supported"
    assert one.errors[0].startswith(text)
    level, shown, values = one.status()
    assert (level, values["errors"], values["received"]) == (2, "1", "1")
    assert shown.startswith(text)
    assert values["last_error"].startswith(text)
    one.engine.fail = DeviceError("the engine is gone")
    one.put(1)
    one.finish()
    one.engine.fail = None
    one.put(2)
    one.finish()
    assert one.errors[1:] == ["the engine is gone"]
    assert one.status()[:2] == (1, "1 images failed: the engine is gone")
    assert one.seconds == [2]


def test_an_unexpected_error_is_logged(running, caplog):
    one = running()
    one.engine.fail = ZeroDivisionError("by zero")
    one.put(0)
    one.finish()
    assert one.errors == ["/cam: ZeroDivisionError: by zero"]
    assert "Traceback" in caplog.text


def test_silence(running):
    one = running(silence=0.0)
    level, text, values = one.status()
    assert (level, text) == (1, "no image on /cam yet: is its publisher running?")
    assert values["age_p50_ms"] == ""
    one.put(0)
    one.started()
    time.sleep(0.02)
    one.node._state.last_image += 60  # as if images still arrived
    level, text, _ = one.status()
    assert level == 1
    assert text.startswith("an image has been in the engine for 0.0")
    one.node._state.last_image -= 60
    assert one.status()[1].startswith("no image on /cam for 0.0")
    one.finish()


def test_close_waits_and_drops(running):
    one = running()
    one.put(0)
    one.started()
    one.put(1)
    closing = threading.Thread(target=one.node.close)
    closing.start()
    time.sleep(0.05)
    assert not one.engine.closed  # the running image comes first
    one.engine.go.release()
    closing.join(60)
    assert one.engine.closed
    assert one.published == []  # its publisher may be gone
    with pytest.raises(DetectorClosed):
        one.put(2)
    one.node.close()


@pytest.mark.parametrize("options", [{"queue": 0}, {"queue": 1025}, {"encoding": "rgb"}])
def test_invalid_options(running, options):
    with pytest.raises(ConfigError, match="expected"):
        running(**options)


@needs_rosbags
def test_with_a_model(humble):
    """A real Detector: the boxes of a scene, other thresholds while it runs, and diagnostics."""
    picture = scene(3).image
    results, arrived = [], threading.Semaphore(0)
    vision = humble.package("vision_msgs")
    node = Ros2Detector(
        Detector(MODEL),
        partial(to_detection_array, messages=vision),
        lambda result: (results.append(result), arrived.release()),
    )

    def scores():
        one = message(len(results), picture)
        one.header = humble.header(5, len(results))
        node.put(one)
        assert arrived.acquire(timeout=60)
        assert results[-1].header == one.header
        return [kind_of(found.results[0])[1] for found in humble.again(results[-1]).detections]

    with Detector(MODEL) as detector:
        expected = detector(picture)
        assert len(expected) >= 2
        assert scores() == expected.confidence.tolist()
        middle = float(np.median(expected.confidence))
        node.configure(conf=middle)
        assert scores() == [score for score in expected.confidence if score > np.float32(middle)]
        node.configure(classes=[expected[0].class_name], max_det=1)
        assert scores() == [expected[0].confidence]
        with pytest.raises(ConfigError, match="conf"):
            node.configure(conf=1.5)
        with pytest.raises(ConfigError, match="no class 'cat'"):
            node.configure(classes=["cat"])
        assert scores() == [expected[0].confidence]  # nothing has changed
    sent = node.diagnostics(humble.package("diagnostic_msgs"), humble.header().stamp)
    (status,) = humble.again(sent).status
    values = {pair.key: pair.value for pair in status.values}
    assert (status.level, values["results"], values["backend"]) == (0, "4", "onnxrt")
    node.close()
    with pytest.raises(DetectorClosed):
        node.configure(conf=0.5)


def test_other_thresholds_do_not_change_tiles():
    manifest, arrived = make_manifest(), threading.Semaphore(0)
    session = FakeSession(manifest)
    node = Ros2Detector(
        Detector.from_session(session, manifest, tile=32, overlap=0.5),
        lambda found, _: found,
        lambda _: arrived.release(),
    )
    for number in range(2):
        node.put(message(number, np.zeros((64, 96, 3), np.uint8)))
        assert arrived.acquire(timeout=60)
        node.configure(conf=0.6)
    node.close()
    assert len(session.batches) == 2 * 16  # the image, and 3 x 5 tiles


def test_neither_ros_nor_torch_is_imported():
    absent = ["rclpy", "sensor_msgs", "vision_msgs", "diagnostic_msgs", "torch", "onnx", "trackers"]
    code = BLOCKER.format(blocked=absent) + "import y7edge.adapters.ros2"
    subprocess.run([sys.executable, "-c", code], check=True)
