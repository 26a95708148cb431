"""Capture with GStreamer: a pipeline that ends in an appsink, read through PyGObject.

A live pipeline keeps the newest frame only. The time of a frame is the time stamp of its buffer,
which live sources take from GStreamer's system clock: CLOCK_MONOTONIC
(https://gstreamer.freedesktop.org/documentation/application-development/advanced/clocks.html).
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from y7edge.errors import RuntimeMissing, SourceError, SourceTimeout
from y7edge.frames import Clock, Format
from y7edge.sources.address import without_credentials
from y7edge.sources.advice import advice
from y7edge.sources.base import Captured, RateLimit
from y7edge.sources.buffers import MappedBuffer, Passed, check_addresses, sensor_time
from y7edge.sources.devices import check_device, device, formats_of, usual_codec
from y7edge.sources.launch import (
    ELEMENTS,
    JETSON,
    NEWEST,
    OPENCV,
    SINK,
    SOURCE,
    TIMEOUT_S,
    gstreamer_problem,
    install,
    launch,
)
from y7edge.sources.options import check_options

_SECOND_NS = 1_000_000_000
_POLL_NS = 50_000_000  # an error on the bus does not wake try-pull-sample
_CLOSE_NS = 1_000_000_000  # for the end of the stream to reach the sink
_START_S = 10.0  # for a file to be recognised
_ANSWER_S = TIMEOUT_S + 3.0  # for the first frame, or the error of a stream that times out
_FILE_BUFFERS = 4  # frames that are decoded ahead of the reader
_CLOCKS_NS = 20_000_000  # GStreamer's clock and ours, read one after the other
_FULL_RANGE = 1  # GST_VIDEO_COLOR_RANGE_0_255, which has no valid name in Python
_AHEAD_NS = 50_000_000  # by how much the jitter buffer may estimate a time too late
_FORMATS: Mapping[str, tuple[Format, int]] = {
    "NV12": ("nv12", 1),  # bytes of a luma value or pixel
    "BGR": ("bgr", 3),
    "RGB": ("rgb", 3),
}


def grabber(options: Mapping[str, Any]) -> Pipeline:
    """Start the pipeline of a camera or stream.

    Args:
        options: ``scheme``, ``place`` and ``options`` of ``launch``.

    Raises:
        ConfigError: an option is not valid.
        SourceError: the pipeline cannot be built or started.
        RuntimeMissing: GStreamer or an element is not installed.
    """
    scheme = options["scheme"]
    try:
        return Pipeline(scheme, options["place"], options.get("options", {}))
    except RuntimeMissing as missing:
        raise RuntimeMissing(f"{missing}{_or_opencv(scheme)}") from missing


class Pipeline:
    """A running pipeline; see ``Grabber``. One thread uses it."""

    backend = "gstreamer"

    def __init__(self, scheme: str, place: str, options: Mapping[str, Any]) -> None:
        """Build and start the pipeline."""
        self._gst, self._video = load()
        self._scheme = scheme
        self._place = device(place) if scheme == "v4l2" else without_credentials(place)
        if scheme == "v4l2":
            options = _with_codec(self._place, options)
        plan = launch(scheme, place, options, has)
        self.detail = without_credentials(plan.text)
        self._limit = None if plan.limit is None else RateLimit(plan.limit)
        self._pipeline = self._parse(plan.text)
        self._bus = self._pipeline.get_bus()
        self._sink = self._find_sink()
        self._problem: SourceError | RuntimeMissing | None = None
        self._missing: str | None = None
        self._mapped: MappedBuffer | None = None
        self._caps: Any = None
        self._info: Any = None
        self._entered, self._sensor = Passed(), Passed()
        self._last = -1
        for name, value in plan.secrets.items():
            self._pipeline.get_by_name(SOURCE).set_property(name, value)
        self.live = plan.live is True
        self._clock_is_ours = self._use_system_clock()
        self._watch()
        try:
            self.live = self._start(plan.live)
        except BaseException:
            self.close()
            raise

    def grab(self, timeout: float) -> Captured | None:
        """Return the next frame; its planes are valid until the next call.

        Raises:
            SourceTimeout: there was no frame within ``timeout`` seconds.
            SourceError: the pipeline failed, or a live one ended.
            RuntimeMissing: a decoder is not installed.
        """
        self._release()
        if self._pipeline is None:
            return None
        deadline = time.monotonic_ns() + round(timeout * 1e9)
        while True:
            left = deadline - time.monotonic_ns()
            sample = self._sink.emit("try-pull-sample", max(0, min(left, _POLL_NS)))
            self._read_bus()
            # What a file contained before the fault is still returned.
            if sample is not None and not (self.live and self._problem):
                return self._captured(sample)
            if self._problem is not None:
                raise self._problem
            if self._sink.get_property("eos"):
                if not self.live:
                    return None
                raise self._error("the camera ended the stream")
            if left <= 0:
                raise SourceTimeout(f"no frame within {timeout:g} s")

    def close(self) -> None:
        """Send the end of the stream, wait for it at most a second, and stop the pipeline.

        A client of Argus that does not end its stream leaves the daemon with an open session.
        """
        self._release()
        pipeline, self._pipeline = self._pipeline, None
        if pipeline is None:
            return
        kinds = self._gst.MessageType
        self._sink.set_property("wait-on-eos", False)  # nobody reads the frames that are left
        over = self._problem is not None or self._sink.get_property("eos")
        # The event would wait for a file's decoder, which waits for the reader.
        if self.live and not over and pipeline.send_event(self._gst.Event.new_eos()):
            self._bus.timed_pop_filtered(_CLOSE_NS, kinds.EOS | kinds.ERROR)
        pipeline.set_state(self._gst.State.NULL)
        pipeline.get_state(5 * _SECOND_NS)

    def _parse(self, text: str) -> Any:
        from gi.repository import GLib

        try:
            pipeline = self._gst.parse_launch(text)
        except GLib.Error as error:
            found = without_credentials(error.message)
            raise SourceError(f"not a pipeline of GStreamer: {found}: {self.detail}") from error
        if not isinstance(pipeline, self._gst.Bin):  # one element without a "!"
            raise SourceError(f"a pipeline needs a source and a sink: {self.detail}")
        return pipeline

    def _find_sink(self) -> Any:
        """Return the appsink, ours or that of a gst:// pipeline."""
        sink = self._pipeline.get_by_name(SINK)
        if sink is None:
            sinks = _elements(self._pipeline.iterate_sinks(), self._gst)
            found = [one for one in sinks if one.get_factory().get_name() == "appsink"]
            if len(found) != 1:
                raise SourceError(
                    f"a pipeline needs one appsink, found {len(found)}: {self.detail}"
                )
            sink = found[0]
            if sink.get_property("caps") is None:
                names = ", ".join(_FORMATS)
                caps = self._gst.Caps.from_string(f"video/x-raw, format=(string){{{names}}}")
                sink.set_property("caps", caps)
        sink.set_property("sync", False)
        sink.set_property("enable-last-sample", False)  # it keeps one more buffer of a small pool
        return sink

    def _use_system_clock(self) -> bool:
        """Use CLOCK_MONOTONIC, not the clock of a sound card; return whether it is ours."""
        clock = self._gst.SystemClock.obtain()
        self._pipeline.use_clock(clock)
        return abs(int(clock.get_time()) - time.monotonic_ns()) < _CLOCKS_NS

    def _watch(self) -> None:
        """Count the frames before the first element that drops some; read the sensor's times."""
        buffers = self._gst.PadProbeType.BUFFER
        entry = self._pipeline.get_by_name(NEWEST) or self._sink
        entry.get_static_pad("sink").add_probe(buffers, self._on_entry)
        if self._scheme == "csi":
            source = self._pipeline.get_by_name(SOURCE).get_static_pad("src")
            source.add_probe(buffers, self._on_sensor)

    def _on_entry(self, _: Any, info: Any) -> Any:
        pts = info.get_buffer().pts
        timed = pts != self._gst.CLOCK_TIME_NONE
        if self._limit and not self._limit.passes(pts if timed else time.monotonic_ns()):
            return self._gst.PadProbeReturn.DROP
        self._entered.add(pts, self._entered.count)
        return self._gst.PadProbeReturn.OK

    def _on_sensor(self, _: Any, info: Any) -> Any:
        buffer = info.get_buffer()
        captured = sensor_time(buffer)
        if captured is not None:
            self._sensor.add(buffer.pts, captured)
        return self._gst.PadProbeReturn.OK

    def _start(self, live: bool | None) -> bool:
        """Start the pipeline; return whether it is live, that is, has no frame while paused."""
        results = self._gst.StateChangeReturn
        self._keep_all(live is None)
        deadline = time.monotonic() + _START_S
        result = self._pipeline.set_state(self._gst.State.PAUSED)
        while live is None and result == results.ASYNC:
            result = self._pipeline.get_state(_POLL_NS)[0]
            self._read_bus()
            if self._problem is not None:
                raise self._problem
            if time.monotonic() > deadline:
                raise SourceTimeout(f"no frame within {_START_S:g} s: {self.detail}")
        live = result == results.NO_PREROLL if live is None else live
        self._keep_all(not live)
        if result != results.FAILURE:
            result = self._pipeline.set_state(self._gst.State.PLAYING)
        if result == results.FAILURE:
            self._read_bus(_SECOND_NS)  # the error may come later than the state
            raise self._problem or self._error("the pipeline does not start")
        if live:
            self._wait_for_first_frame()
        return live

    def _wait_for_first_frame(self) -> None:
        """Wait until the device or server has answered: network streams connect in a thread."""
        deadline = time.monotonic() + _ANSWER_S
        while not self._entered.count and not self._sink.get_property("eos"):
            self._read_bus(_POLL_NS)
            if self._problem is not None:
                raise self._problem
            if time.monotonic() > deadline:
                return  # a camera may be slow: grab raises SourceTimeout

    def _keep_all(self, all_frames: bool) -> None:
        """Keep all frames, as of a file, or the newest one."""
        self._sink.set_property("max-buffers", _FILE_BUFFERS if all_frames else 1)
        self._sink.set_property("drop", not all_frames)
        if queue := self._pipeline.get_by_name(NEWEST):
            # PyGObject of JetPack 6 takes numbers only: 0 is no, 2 is downstream.
            queue.set_property("leaky", 0 if all_frames else 2)

    def _read_bus(self, wait_ns: int = 0) -> None:
        """Keep the first error, and discard all other messages, which would fill the memory."""
        kinds = self._gst.MessageType
        while message := self._bus.timed_pop_filtered(wait_ns, kinds.ERROR | kinds.ELEMENT):
            wait_ns = 0
            if message.type == kinds.ERROR:
                error, debug = message.parse_error()
                detail = (debug or "").strip().rpartition("\n")[2].rpartition(":  ")[2]
                name = message.src.get_name() if message.src is not None else SOURCE
                text = "" if name == SOURCE else f"{name}: "
                text += error.message + (f" ({detail})" if detail else "")
                self._problem = self._problem or self._error(text)
            elif message.has_name("missing-plugin"):
                self._missing = message.get_structure().get_string("name")

    def _error(self, text: str) -> SourceError | RuntimeMissing:
        """Return a fault in one line, with what to do about it."""
        if self._missing:
            return RuntimeMissing(
                f"GStreamer has no {self._missing}: sudo apt install gstreamer1.0-libav "
                "gstreamer1.0-plugins-bad"
            )
        text = without_credentials(text)
        known = advice(self._scheme, self._place, text)
        return SourceError(f"{text}: {known}" if known else text)

    def _captured(self, sample: Any) -> Captured:
        buffer = sample.get_buffer()
        info = self._video_info(sample.get_caps())
        # The crop of GstVideoCropMeta is not applied: elements that need it convert it themselves,
        # unless downstream says that it supports it, which appsink does not.
        meta = self._video.buffer_get_video_meta(buffer)
        strides, offsets = (meta.stride, meta.offset) if meta else (info.stride, info.offset)
        kind, pixel = _FORMATS[info.finfo.name]
        sides = [(info.height, info.width * pixel)]
        if kind == "nv12":
            sides.append((info.height // 2, info.width))
        self._mapped = MappedBuffer(buffer)
        planes = tuple(
            self._mapped.plane(offset, stride, *side)
            for offset, stride, side in zip(offsets, strides, sides, strict=False)
        )
        if kind == "nv12" and int(info.colorimetry.range) == _FULL_RANGE:
            planes = tuple(_limited(plane, chroma=bool(n)) for n, plane in enumerate(planes))
        captured, clock = self._time(sample, buffer)
        number = self._entered.find(buffer.pts)
        number = max(self._last + 1, self._last + 1 if number is None else number)
        skipped = number - self._last - 1 if self.live else 0
        self._last = number
        rate = info.fps_n / info.fps_d if info.fps_n > 0 and info.fps_d > 0 else None
        if rate is not None and self._limit is not None:
            rate = min(rate, self._limit.rate)
        size = (info.width, info.height)
        return Captured(planes, size, kind, captured, clock, skipped, rate)

    def _video_info(self, caps: Any) -> Any:
        """Return the format of a frame; it is computed again when it changes."""
        if self._caps is not None and caps.is_equal(self._caps):
            return self._info
        info = self._video.VideoInfo.new_from_caps(caps)
        name = info.finfo.name if info is not None else caps.to_string()[:200]
        if name not in _FORMATS:
            raise SourceError(
                f"the pipeline ends in {name}, expected {', '.join(_FORMATS)} in host memory: end "
                'it with "videoconvert ! video/x-raw, format=BGR"'
            )
        if name == "NV12" and (info.width % 2 or info.height % 2):
            raise SourceError(
                f"NV12 of {info.width}x{info.height} is not supported, expected even sides: add "
                "the option format=bgr"
            )
        self._caps, self._info = caps, info
        return info

    def _time(self, sample: Any, buffer: Any) -> tuple[int, Clock]:
        """Return the capture time of a frame, and of which clock it is."""
        now, pts = time.monotonic_ns(), buffer.pts
        if pts == self._gst.CLOCK_TIME_NONE:
            return now, "arrival" if self.live else "media"
        if not self.live:
            return pts, "media"
        if (sensor := self._sensor.find(pts)) is not None:
            return sensor, "sensor"
        running = sample.get_segment().to_running_time(self._gst.Format.TIME, pts)
        captured = self._pipeline.get_base_time() + running
        if not self._clock_is_ours or not 0 < captured <= now + _AHEAD_NS:
            return now, "arrival"
        captured = min(captured, now)
        # nvarguscamerasrc stamps a buffer when it leaves the element.
        return captured, "arrival" if self._scheme == "csi" else "driver"

    def _release(self) -> None:
        if self._mapped is not None:
            self._mapped.release()
            self._mapped = None


def _or_opencv(scheme: str) -> str:
    return ", or add backend=opencv" if scheme in OPENCV else ""


def load() -> tuple[Any, Any]:
    """Import and initialise GStreamer; return the modules Gst and GstVideo.

    Raises:
        RuntimeMissing: GStreamer or PyGObject is not installed, or cannot be initialised.
    """
    problem = gstreamer_problem()
    if problem is not None:
        raise RuntimeMissing(f"GStreamer is not usable: {problem}")
    # PyGObject makes the symbols of libgstreamer global, and those of its libunwind: C++ libraries
    # that are loaded later would find them before those of GCC, and abort at their exceptions.
    with suppress(OSError):  # a system without this library of GCC
        ctypes.CDLL("libgcc_s.so.1", mode=ctypes.RTLD_GLOBAL)
    from gi.repository import GLib, Gst, GstVideo

    try:
        Gst.init_check(None)
    except GLib.Error as error:
        raise RuntimeMissing(f"GStreamer cannot be initialised: {error.message}") from error
    check_addresses(Gst.Buffer.new())
    return Gst, GstVideo


def has(element: str, element_property: str | None = None) -> bool:
    """Return whether GStreamer has an element, and the element a property; see ``launch.Has``."""
    gst, _ = load()
    factory = gst.ElementFactory.find(element)
    if factory is None or element_property is None:
        return factory is not None
    made = factory.create(None)
    return made is not None and made.find_property(element_property) is not None


def _with_codec(path: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the options of a V4L2 camera with the codec that it has, unless one is named."""
    check_device(path)
    values = check_options("v4l2", options)
    size = (values.get("width", 0), values.get("height", 0))
    codec = usual_codec(path, formats_of(path), size)
    return options if codec is None or "codec" in values else {**options, "codec": codec}


def describe() -> dict[str, Any]:
    """Return what is installed, for ``y7edge check``.

    ``version``; ``missing``: elements of cameras and streams that are not installed, and the
    commands that install them; ``jetson``: elements of a Jetson that are installed.

    Raises:
        RuntimeMissing: GStreamer is not usable.
    """
    gst, _ = load()
    return {
        "version": ".".join(map(str, tuple(gst.version())[:3])),
        "missing": {name: install(name) for name in ELEMENTS if not has(name)},
        "jetson": [name for name in JETSON if has(name)],
    }


def _elements(iterator: Any, gst: Any) -> list[Any]:
    found: list[Any] = []
    while True:
        result, element = iterator.next()
        if result != gst.IteratorResult.OK:
            return found
        found.append(element)


def _limited(plane: NDArray[np.uint8], *, chroma: bool) -> NDArray[np.uint8]:
    """Convert a plane of full range, as in JPEG, to limited range, which NV12 means elsewhere."""
    import cv2

    values = np.arange(256)
    table = 128 + (values - 128) * (224 / 255) if chroma else 16 + values * (219 / 255)
    return np.asarray(cv2.LUT(plane, np.round(table).astype(np.uint8)), np.uint8)
