"""Capture with OpenCV: V4L2 cameras, and RTSP and HTTP streams through FFmpeg.

For machines without GStreamer. OpenCV has no capture time: the time of a frame is its arrival. So
frames that FFmpeg, the driver or the network kept while nothing read are dropped. A thread reads,
because a call of OpenCV may block for longer than a grabber may wait.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
from numpy.typing import NDArray

from y7edge.errors import RuntimeMissing, SourceError, SourceTimeout
from y7edge.sources.address import url
from y7edge.sources.advice import advice
from y7edge.sources.base import Captured, RateLimit
from y7edge.sources.devices import check_device, device, formats_of, is_bayer, usual_codec
from y7edge.sources.launch import RATE, SIZE, TIMEOUT_S, check
from y7edge.sources.options import FLIPS
from y7edge.sources.refusal import refusal_reason

_FFMPEG_OPTIONS = "OPENCV_FFMPEG_CAPTURE_OPTIONS"
_CLOSE_S = 1.0
_CODES = {"mjpeg": "MJPG", "raw": "YUYV"}
# FFmpeg's decoders return a frame after as many further ones as there are further threads.
_THREADS = 2
_GUESS = 25.0  # frames per second, for streams over HTTP that do not state a rate
_REFUSAL_S = 2.0


def grabber(options: Mapping[str, Any]) -> Capture:
    """Open a camera or stream.

    Args:
        options: ``scheme``, ``place`` and ``options`` of ``launch``; ``why``: why it is not
            GStreamer that captures.

    Raises:
        ConfigError: an option is not valid.
        SourceError: the camera or stream cannot be opened.
        RuntimeMissing: OpenCV was built without V4L2 or FFmpeg.
    """
    why = options.get("why", "backend=opencv")
    return Capture(options["scheme"], options["place"], options.get("options", {}), why)


class Capture:
    """An open cv2.VideoCapture; see ``Grabber``. ``grab`` is called by one thread."""

    backend = "opencv"
    live = True

    def __init__(self, scheme: str, place: str, options: Mapping[str, Any], why: str) -> None:
        """Open the camera, and start to read."""
        values = check(scheme, place, options)
        began = time.monotonic()
        self._flip = FLIPS.index(values.get("flip", "none"))
        self._scheme, self._place = scheme, place
        self._size: tuple[int, int] | None = None  # to which images are scaled
        self._limit: RateLimit | None = None
        self._timeout = math.inf
        if scheme == "v4l2":
            self._place = device(place)
            self._capture = _open_device(self._place, values)
            name = f"{self._place} with V4L2"
        else:
            self._capture, plain = _open_stream(scheme, place, values)
            self._place = plain
            self._timeout = values.get("timeout", TIMEOUT_S)
            if "width" in values:
                self._size = values["width"], values["height"]
            self._limit = RateLimit(float(values["rate"])) if "rate" in values else None
            name = f"{plain} with FFmpeg"
        self.detail = f"{name} (not GStreamer: {why})"
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        guessed = scheme in ("http", "https") and rate == _GUESS
        self._rate = rate if 0 < rate < 1000 and not guessed else None
        self._backlog = _Backlog(began, self._rate)
        if self._rate is not None and self._limit is not None:
            self._rate = min(self._rate, self._limit.rate)
        self._changed = threading.Condition()
        self._newest: tuple[NDArray[np.uint8], int] | None = None
        self._due = math.inf  # time.monotonic() at which the newest frame may be returned
        self._skipped = 0
        self._problem: str | None = None
        self._stopped = False
        self._reader = threading.Thread(target=self._read, name="y7edge opencv", daemon=True)
        self._reader.start()

    def grab(self, timeout: float) -> Captured | None:
        """Return the newest frame.

        After opening and after a pause, it waits until frames come no faster than the camera makes
        them: those before are old.

        Raises:
            SourceTimeout: there was no new frame within ``timeout`` seconds.
            SourceError: the camera or stream failed, or ended.
        """
        end = time.monotonic() + timeout
        with self._changed:
            while (now := time.monotonic()) < self._due and not self._problem and not self._stopped:
                if now >= end:
                    raise SourceTimeout(f"no frame within {timeout:g} s")
                self._changed.wait(min(self._due, end) - now)
            if self._newest is None:
                if self._problem is not None:
                    raise SourceError(self._problem)
                return None
            (image, captured), skipped = self._newest, self._skipped
            self._newest, self._skipped, self._due = None, 0, math.inf
        if self._size is not None:
            image = _scaled(image, self._size)
        image = _flipped(image, self._flip)
        height, width = image.shape[:2]
        plane = image.reshape(height, 3 * width)
        return Captured((plane,), (width, height), "bgr", captured, "arrival", skipped, self._rate)

    def close(self) -> None:
        """Stop to read, and close the camera; wait for it at most a second."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._reader.join(_CLOSE_S)

    def _read(self) -> None:
        """Read until the end; keep the newest frame only."""
        problem = "the camera ended the stream, or sent nothing in time"
        try:
            while not self._stopped:
                began = time.monotonic_ns()
                good, image = self._capture.read()
                captured = time.monotonic_ns()
                # After its time-out, FFmpeg may return an old frame that the decoder kept.
                if not good or captured - began > 0.95e9 * self._timeout:
                    break
                if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
                    problem = f"OpenCV returned an image of {image.dtype} {image.shape}"
                    break
                hold = self._backlog.hold(
                    captured / 1e9, self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1e3
                )
                if self._limit is not None and not hold and not self._limit.passes(captured):
                    continue
                with self._changed:
                    self._skipped += self._newest is not None
                    self._newest = np.asarray(image, np.uint8), captured
                    self._due = captured / 1e9 + hold
                    self._changed.notify_all()
        except cv2.error as error:
            problem = f"OpenCV failed: {error}"
        finally:
            self._capture.release()
            with self._changed:
                known = advice(self._scheme, self._place, "read")
                self._problem = f"{problem}: {known}" if known else problem
                self._changed.notify_all()


class _Backlog:
    """Tells old frames, which something kept while nothing read, from new ones.

    Old frames come faster than the camera made them. A frame is new if no other one follows within
    a large part of a frame interval; until there is such a frame, each is held for that time.

    Args:
        began: when the opening began, in seconds of ``time.monotonic()``.
        rate: frames per second that the source states.
    """

    _PART, _LONGEST_S = 0.75, 0.1  # of an interval, for which a frame is held
    _PAUSE_S, _INTERVALS = 0.25, 3  # a longer gap between frames may have made others old
    _LONGEST_BEHIND_S = 2.0  # for which frames are held

    def __init__(self, began: float, rate: float | None) -> None:
        self._began, self._first, self._frames = began, began, 0
        self._interval = 1 / (rate or _GUESS)
        self._last = math.inf  # no gap before the first frame
        self._position = 0.0
        self._behind = True

    def hold(self, now: float, position: float) -> float:
        """Return for how long to wait for a newer frame, in seconds.

        Args:
            now: when the frame came, in seconds of ``time.monotonic()``.
            position: time of the frame in the stream, in seconds; not used if it does not advance.
        """
        gap = now - self._last
        if 0 < position - self._position < 10:
            self._interval = position - self._position
        hold = min(self._PART * self._interval, self._LONGEST_S)
        if gap > max(self._PAUSE_S, self._INTERVALS * self._interval):
            self._began, self._frames, self._behind = self._last, 0, True
        elif gap >= hold:
            self._behind = False
        if not self._frames:
            self._first = now
        self._last, self._position = now, position
        self._frames += 1
        # As many frames as the camera can have made since. A camera may be faster than it states,
        # and over HTTP, FFmpeg counts 25 frames per second: then no frame would ever seem new.
        since = now - self._began
        if self._frames * self._interval > since or now - self._first > self._LONGEST_BEHIND_S:
            self._behind = False
        return hold if self._behind else 0.0


def video_backends() -> dict[str, bool]:
    """Return which of OpenCV's libraries for video are built in: FFMPEG, GStreamer, v4l/v4l2.

    ``cv2.videoio_registry`` lists backends that are not built in.
    """
    names = ("FFMPEG", "GStreamer", "v4l/v4l2")
    text = cv2.getBuildInformation()
    return {name: bool(re.search(rf"^\s*{name}:\s*YES", text, re.MULTILINE)) for name in names}


def _open_device(path: str, values: Mapping[str, Any]) -> cv2.VideoCapture:
    check_device(path)
    if not video_backends()["v4l/v4l2"]:
        raise RuntimeMissing("this OpenCV is built without V4L2: install GStreamer instead")
    found = usual_codec(path, formats_of(path), (values.get("width", 0), values.get("height", 0)))
    code = _CODES[values.get("codec") or ("raw" if found == "raw" else "mjpeg")]
    width, height = values.get("width", SIZE[0]), values.get("height", SIZE[1])
    wanted = [
        (cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*code)),
        (cv2.CAP_PROP_FRAME_WIDTH, width),
        (cv2.CAP_PROP_FRAME_HEIGHT, height),
        (cv2.CAP_PROP_FPS, round(values.get("rate", RATE))),
        (cv2.CAP_PROP_BUFFERSIZE, 1),
    ]
    capture = cv2.VideoCapture(path, cv2.CAP_V4L2)
    if not capture.isOpened():
        raise SourceError(f"{path} cannot be opened: {advice('v4l2', path, 'busy')}")
    for prop, value in wanted:  # V4L2 chooses the nearest; a format that is missing is not set
        capture.set(prop, value)
    number = int(capture.get(cv2.CAP_PROP_FOURCC)) & 0xFFFFFFFF
    code = number.to_bytes(4, "little").decode("latin-1")
    if is_bayer(code):
        capture.release()
        raise SourceError(
            f"{path} sends the raw values of a sensor ({code}), which are no image: open the "
            "camera of a Jetson as csi://0"
        )
    size = tuple(round(capture.get(prop)) for prop, _ in wanted[1:3])
    asked = (values.get("width", size[0]), values.get("height", size[1]))
    if asked != size:
        capture.release()
        raise SourceError(
            f"{path} has no size {asked[0]}x{asked[1]}, the nearest is {size[0]}x{size[1]}: "
            f"v4l2-ctl -d {path} --list-formats-ext"
        )
    return capture


def _open_stream(
    scheme: str, place: str, values: Mapping[str, Any]
) -> tuple[cv2.VideoCapture, str]:
    if not video_backends()["FFMPEG"]:
        raise RuntimeMissing("this OpenCV is built without FFmpeg: install GStreamer instead")
    plain, secrets = url(scheme, place)
    user = ":".join(quote(secret, safe="") for secret in secrets.values())
    whole = plain.replace("://", f"://{user}@", 1) if secrets else plain
    milliseconds = round(1000 * values.get("timeout", TIMEOUT_S))
    settings = [
        *(cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, milliseconds),
        *(cv2.CAP_PROP_READ_TIMEOUT_MSEC, milliseconds),
        *(cv2.CAP_PROP_N_THREADS, _THREADS),
    ]
    # Otherwise, FFmpeg reads 20 frames to find the rate. The codec is still probed.
    ffmpeg = {"fpsprobesize": "0"}
    transport = values.get("transport", "tcp")
    if transport != "auto" and scheme == "rtsp":
        ffmpeg["rtsp_transport"] = transport
    with _environment(_FFMPEG_OPTIONS, "|".join(f"{k};{v}" for k, v in ffmpeg.items())):
        capture = cv2.VideoCapture(whole, cv2.CAP_FFMPEG, settings)
    if not capture.isOpened():
        capture.release()
        why = refusal_reason(plain, _REFUSAL_S, with_password=bool(secrets))
        raise SourceError(f"the {scheme} stream cannot be opened: {why}")
    return capture, plain


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Set a variable of the environment, which is the only way to pass options to FFmpeg."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _scaled(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    smaller = size[0] * size[1] < image.shape[0] * image.shape[1]
    method = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, size, interpolation=method), np.uint8)


def _flipped(image: NDArray[np.uint8], flip: int) -> NDArray[np.uint8]:
    """Flip an image; ``flip`` is an index of ``FLIPS``."""
    name = FLIPS[flip]
    if name.endswith("-diagonal"):
        image = np.asarray(cv2.transpose(image), np.uint8)
    codes = {"upper-right-diagonal": -1, "rotate-180": -1, "horizontal": 1, "vertical": 0}
    if name in codes:
        return np.asarray(cv2.flip(image, codes[name]), np.uint8)
    if name in ("clockwise", "counterclockwise"):
        way = cv2.ROTATE_90_CLOCKWISE if name == "clockwise" else cv2.ROTATE_90_COUNTERCLOCKWISE
        return np.asarray(cv2.rotate(image, way), np.uint8)
    return np.ascontiguousarray(image)
