"""Detections and diagnostics as messages of ROS 2, and detection behind the newest image.

Neither rclpy nor a package of messages is imported: the program gives the modules of messages. The
fields of a message decide what is filled in, not the name of a distribution.
``examples/ros2_node`` is a node that uses this module.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, wait
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from y7edge.adapters.ros2_images import ENCODINGS, stamp_ns, to_frame
from y7edge.adapters.tracking import Tracker
from y7edge.detect.ages import Ages
from y7edge.detect.detections import Detection, Detections, Timing
from y7edge.detect.detector import Detector
from y7edge.detect.submission import MAX_QUEUE, FrameQueue
from y7edge.errors import ConfigError, FrameDropped, Y7EdgeError

__all__ = ["ENCODINGS", "Ros2Detector", "stamp_ns", "to_detection_array", "to_frame"]

_log = logging.getLogger(__name__)
_CLOSE_SECONDS = 5.0  # how long ``close`` waits for the running image


def to_detection_array(
    detections: Detections, header: Any, messages: Any, *, numbers: bool = False
) -> Any:
    """Return detections as a ``vision_msgs/Detection2DArray``, best first.

    The messages of Noetic, Foxy, Galactic, and Humble and later have different fields; all are
    filled in. Boxes are in pixels of the image. An object without a track has an empty ``id``.

    Args:
        detections: of one image.
        header: of the message of the image; it becomes that of the array and of each detection.
        messages: the module ``vision_msgs.msg``, or an object that has Detection2DArray,
            Detection2D and ObjectHypothesisWithPose: functions that return messages with default
            values.
        numbers: whether ``class_id`` is the number of a class as text instead of its name.
            Noetic's messages have numbers only.
    """
    message = messages.Detection2DArray()
    message.header = header
    best_first = detections[np.argsort(-detections.confidence, kind="stable")]
    message.detections = [_detection(found, header, messages, numbers) for found in best_first]
    return message


def _detection(found: Detection, header: Any, messages: Any, numbers: bool) -> Any:
    message, hypothesis = messages.Detection2D(), messages.ObjectHypothesisWithPose()
    message.header = header
    centre = message.bbox.center
    # Humble has its own Pose2D with a position; before, it was that of geometry_msgs.
    point = centre.position if hasattr(centre, "position") else centre
    point.x, point.y = map(float, found.center)
    message.bbox.size_x = float(found.right - found.left)
    message.bbox.size_y = float(found.bottom - found.top)
    class_id = str(found.class_id) if numbers else found.class_name
    if hasattr(hypothesis, "hypothesis"):  # Galactic and later
        hypothesis.hypothesis.class_id = class_id
        hypothesis.hypothesis.score = float(found.confidence)
    else:
        hypothesis.id = class_id if isinstance(hypothesis.id, str) else found.class_id
        hypothesis.score = float(found.confidence)
    message.results = [hypothesis]
    if found.tracker_id is not None and found.tracker_id >= 0:
        if hasattr(message, "id"):  # Galactic and later
            message.id = str(found.tracker_id)
        elif hasattr(message, "tracking_id"):  # Foxy
            message.is_tracking, message.tracking_id = True, str(found.tracker_id)
    return message


@dataclass
class _Period:
    """What has happened since the last diagnostics."""

    start: float  # of time.monotonic()
    results: int = 0
    errors: int = 0
    ages: Ages = field(default_factory=lambda: Ages(1024))
    timing: Timing | None = None  # of the newest result
    objects: int = 0  # in the newest result


@dataclass
class _State:
    """What has happened since the start."""

    received: int = 0
    results: int = 0
    dropped: int = 0
    errors: int = 0
    last_error: str = ""
    last_image: float | None = None  # of time.monotonic()
    running_since: float | None = None


class Ros2Detector:
    """Detect in the newest image of a topic, and publish the results.

    ``put`` is the callback of a subscription. It never blocks: images are run in one background
    thread, which calls ``publish``. If more than ``queue`` images wait, the oldest is dropped and
    counted. Errors do not end the thread; they are counted, reported to ``on_error`` and in the
    diagnostics.

    Args:
        detector: it is closed by ``close``; nothing else may use it.
        make: makes a result message of ``Detections`` and the header of the image, for example
            ``partial(to_detection_array, messages=vision_msgs.msg)``.
        publish: sends a result message, such as the method of an rclpy publisher. It is called in
            the background thread.
        topic: name of the images' topic, for errors and as the ``source`` of detections.
        encoding: used instead of that of the images; None: that of the images.
        tracker: assigns ``tracker_id``; None: no tracking.
        queue: number of images that wait, 1 or more. With 1, the newest image is always next.
        now_ns: time in the clock of the stamps, in nanoseconds, for the ages of results.
        on_error: called with a line of text for each image that failed.
        silence: seconds without an image, or in the engine, after which the diagnostics warn.

    Raises:
        ConfigError: ``encoding`` is unknown, or ``queue`` is out of range.
    """

    def __init__(
        self,
        detector: Detector,
        make: Callable[[Detections, Any], Any],
        publish: Callable[[Any], object],
        *,
        topic: str = "image",
        encoding: str | None = None,
        tracker: Tracker | None = None,
        queue: int = 1,
        now_ns: Callable[[], int] = time.time_ns,
        on_error: Callable[[str], object] | None = None,
        silence: float = 2.0,
    ) -> None:
        if encoding is not None and encoding not in ENCODINGS:
            raise ConfigError(f"encoding is {encoding!r}, expected one of {', '.join(ENCODINGS)}")
        if not 1 <= queue <= MAX_QUEUE:
            raise ConfigError(f"queue is {queue}, expected 1 to {MAX_QUEUE}")
        self._detector, self._make, self._publish = detector, make, publish
        self._topic, self._encoding, self._tracker = topic, encoding, tracker
        self._now_ns, self._on_error, self._silence = now_ns, on_error, silence
        self._info = detector.info
        self._queue: FrameQueue[None] = FrameQueue(queue)
        self._lock = threading.Lock()  # of all below
        self._pending: set[Future[None]] = set()
        self._closed = False
        self._state = _State()
        self._period = _Period(time.monotonic())

    @property
    def topic(self) -> str:
        """The topic of the images."""
        return self._topic

    def put(self, message: Any) -> None:
        """Take a ``sensor_msgs/Image`` or ``CompressedImage``; return at once.

        Raises:
            DetectorClosed: ``close`` was called.
        """
        future: Future[None] = Future()
        with self._lock:
            number = self._state.received
            self._state.received += 1
            self._state.last_image = time.monotonic()
            self._pending.add(future)
        future.add_done_callback(self._done)
        try:
            self._queue.put(lambda: self._run(message, number), "oldest", future=future)
        except BaseException:
            future.cancel()
            raise

    def configure(self, **options: Any) -> None:
        """Use other thresholds from the next image on; the model stays open.

        Args:
            options: conf, iou, max_det, classes and agnostic, as for ``Detector``; those that are
                not given get the default of the artifact. Tiles stay as they are.

        Raises:
            ConfigError: a value is out of range, or the model has no such class; nothing changes.
            DetectorClosed: ``close`` was called.
        """
        detector = self._detector
        tile, overlap = detector.tiling.tile, detector.tiling.overlap
        changed = Detector.from_session(
            detector.session, detector.manifest, tile=tile, overlap=overlap, **options
        )
        # The background thread is the only one that runs a detector, so that two detectors of one
        # session never run at the same time.
        self._detector, self._info = changed, changed.info

    def close(self) -> None:
        """Drop the images that wait, wait for the running one, and close the detector.

        Can be called twice. No message is published after it.
        """
        self._closed = True
        self._queue.close()
        with self._lock:
            pending = set(self._pending)  # the running image: those that waited are done
        wait(pending, _CLOSE_SECONDS)
        self._detector.close()

    def diagnostics(self, messages: Any, stamp: Any) -> Any:
        """Return a ``diagnostic_msgs/DiagnosticArray`` with one status; call it once per second.

        Rate, ages and errors are those since the last call. The level is ERROR if all images since
        then have failed; WARN if some have failed, if there was no image for ``silence`` seconds,
        or if one has been in the engine for longer than that.

        Args:
            messages: the module ``diagnostic_msgs.msg``, or an object that has DiagnosticArray,
                DiagnosticStatus and KeyValue: functions that return messages with default values.
            stamp: the time now, a ``builtin_interfaces/Time``.
        """
        now = time.monotonic()
        with self._lock:
            period, self._period = self._period, _Period(now)
            level, text = self._assess(period, now)
            values = self._values(period, now)
        entry = messages.DiagnosticStatus()
        entry.level = getattr(entry, level)  # a byte or an integer, depending on the library
        entry.name, entry.message = f"y7edge: {self._topic}", text
        entry.hardware_id = str(self._info.get("device", ""))
        entry.values = [_key_value(messages.KeyValue(), key, text) for key, text in values.items()]
        message = messages.DiagnosticArray()
        message.header.stamp, message.status = stamp, [entry]
        return message

    def _run(self, message: Any, number: int) -> None:
        """Detect in one image; called in the background thread."""
        with self._lock:
            self._state.running_since = time.monotonic()
        try:
            frame = to_frame(message, self._topic, encoding=self._encoding, sequence=number)
            detections = self._detector(frame)
            if self._tracker is not None:
                detections = self._tracker.update(detections)
            result = self._make(detections, message.header)
            if self._closed:
                return
            self._publish(result)
        finally:
            with self._lock:
                self._state.running_since = None
        with self._lock:
            self._state.results += 1
            self._period.results += 1
            self._period.timing, self._period.objects = detections.timing, len(detections)
            if frame.timestamp_ns is not None:
                self._period.ages.add(self._now_ns() - frame.timestamp_ns)

    def _done(self, future: Future[None]) -> None:
        """Count the end of an image; called in the thread that caused it."""
        try:
            error = future.exception()
        except CancelledError:
            error = FrameDropped("closed")
        with self._lock:
            self._pending.discard(future)
            if error is None:
                return
            if isinstance(error, FrameDropped):
                self._state.dropped += 1
                return
            known = isinstance(error, Y7EdgeError)
            text = str(error) if known else f"{self._topic}: {type(error).__name__}: {error}"
            self._state.errors += 1
            self._period.errors += 1
            self._state.last_error = text
        if not known:
            _log.error("%s", text, exc_info=error)
        if self._on_error is not None:
            self._on_error(text)

    def _assess(self, period: _Period, now: float) -> tuple[str, str]:
        """Return the level and the message of the diagnostics."""
        state = self._state
        if period.errors and not period.results:
            return "ERROR", state.last_error
        if period.errors:
            return "WARN", f"{period.errors} images failed: {state.last_error}"
        if state.last_image is None:
            return "WARN", f"no image on {self._topic} yet: is its publisher running?"
        if (silent := now - state.last_image) > self._silence:
            return "WARN", f"no image on {self._topic} for {silent:.1f} s"
        since = state.running_since
        if since is not None and now - since > self._silence:
            return "WARN", f"an image has been in the engine for {now - since:.1f} s"
        return "OK", f"{self._rate(period, now):.1f} results/s"

    @staticmethod
    def _rate(period: _Period, now: float) -> float:
        return period.results / max(now - period.start, 1e-3)

    def _values(self, period: _Period, now: float) -> dict[str, str]:
        """Return the key-value pairs of the diagnostics."""
        state, info = self._state, self._info
        values: dict[str, Any] = {
            **{name: info[name] for name in ("model", "model_id", "precision", "parity")},
            **{name: info.get(name, "") for name in ("backend", "device", "conf")},
            "received": state.received,
            "results": state.results,
            "dropped": state.dropped,
            "errors": state.errors,
            "last_error": state.last_error,
            "rate_hz": f"{self._rate(period, now):.2f}",
        }
        ages = period.ages.summary()
        for name in ("p50_ms", "p95_ms", "max_ms"):
            values[f"age_{name}"] = f"{ages[name]:.1f}" if name in ages else ""
        for name in ("pre", "infer", "post"):
            timing = period.timing
            values[f"{name}_ms"] = "" if timing is None else f"{getattr(timing, name):.2f}"
        values["objects"] = period.objects if period.results else ""
        return {key: str(value) for key, value in values.items()}


def _key_value(message: Any, key: str, value: str) -> Any:
    message.key, message.value = key, value
    return message
