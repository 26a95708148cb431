"""Capture with OpenCV, with a cv2.VideoCapture that stands in for a camera."""

import os
import threading
import time

import cv2
import numpy as np
import pytest

from y7edge.errors import RuntimeMissing, SourceError, SourceTimeout
from y7edge.sources import launch as launching
from y7edge.sources import video_capture
from y7edge.sources.options import FLIPS
from y7edge.sources.video_capture import grabber, video_backends


class Camera:
    """A V4L2 camera of 1280x720 and 640x480, MJPG at 30 frames per second."""

    code = "MJPG"
    frames = 10_000
    interval = 0.02

    def __init__(self, path, backend, settings=()):
        assert backend == cv2.CAP_V4L2
        self.path, self.set_first = path, []
        self.values = {cv2.CAP_PROP_FPS: 30.0}
        self.released = threading.Event()
        self.read_frames = 0
        made.append(self)

    def isOpened(self):
        return True

    def set(self, prop, value):
        self.set_first.append(prop)
        if prop == cv2.CAP_PROP_FRAME_WIDTH:
            value = 1280 if value > 640 else 640
        if prop == cv2.CAP_PROP_FRAME_HEIGHT:
            value = 720 if value > 480 else 480
        self.values[prop] = value
        return True

    def get(self, prop):
        if prop == cv2.CAP_PROP_FOURCC:
            return float(cv2.VideoWriter.fourcc(*self.code))
        return float(self.values.get(prop, 0))

    def read(self):
        if self.read_frames == self.frames:
            return False, None
        time.sleep(self.interval)
        self.read_frames += 1
        width, height = self.get(cv2.CAP_PROP_FRAME_WIDTH), self.get(cv2.CAP_PROP_FRAME_HEIGHT)
        return True, np.full((int(height), int(width), 3), self.read_frames % 256, np.uint8)

    def release(self):
        self.released.set()


made = []


@pytest.fixture
def camera(monkeypatch, tmp_path):
    made.clear()
    kind = type("One", (Camera,), {})
    device = tmp_path / "video0"
    device.touch()
    monkeypatch.setattr(video_capture, "device", lambda place: str(device))
    monkeypatch.setattr(cv2, "VideoCapture", kind)
    return kind


def opened(**options):
    return grabber({"scheme": "v4l2", "place": "/dev/video0", "options": options, "why": "test"})


def test_frames_of_a_camera(camera):
    one = opened()
    captured = one.grab(10)
    assert (captured.size, captured.format, captured.clock) == ((1280, 720), "bgr", "arrival")
    assert captured.rate == 30 and captured.planes[0].shape == (720, 3840)
    assert 0 <= time.monotonic_ns() - captured.timestamp_ns < 5e9
    assert one.live and one.backend == "opencv" and one.detail.endswith("(not GStreamer: test)")
    order = made[0].set_first
    assert order[0] == cv2.CAP_PROP_FOURCC  # the sizes of a camera depend on it
    assert made[0].values[cv2.CAP_PROP_BUFFERSIZE] == 1
    one.close()
    one.close()
    assert made[0].released.wait(10)


def test_the_newest_frame_and_the_number_of_the_others(camera):
    one = opened()
    first = one.grab(10)
    number, skipped = int(first.planes[0][0, 0]), first.skipped
    for _ in range(3):
        time.sleep(0.2)
        captured = one.grab(10)
        skipped += captured.skipped + 1
        assert int(captured.planes[0][0, 0]) == (1 + skipped) % 256
    assert number == 1 + first.skipped and skipped > 6
    one.close()


def test_a_camera_that_ends_or_stalls(camera):
    camera.frames = 2
    one = opened()
    with pytest.raises(SourceError, match="the camera ended the stream, or sent nothing in time"):
        for _ in range(3):
            one.grab(10)
    assert made[0].released.is_set()
    camera.frames, camera.interval = 10, 5
    other = opened()
    with pytest.raises(SourceTimeout):
        other.grab(0.1)
    began = time.monotonic()
    other.close()
    assert time.monotonic() - began < 4  # it does not wait for the camera


@pytest.mark.parametrize("code", ["RG10", "BG10", "GB12", "BA81", "pRAA"])
def test_raw_values_of_a_sensor(camera, code):
    camera.code = code
    with pytest.raises(SourceError, match=f"raw values of a sensor .{code}.*csi://0"):
        opened()
    assert made[0].released.is_set()


def test_a_size_that_the_camera_lacks(camera):
    with pytest.raises(SourceError, match="no size 1920x1080, the nearest is 1280x720: v4l2-ctl"):
        opened(width=1920, height=1080)
    assert made[0].released.is_set()
    opened(width=640, height=480).close()


@pytest.mark.parametrize("name", FLIPS)
def test_flips_are_those_of_gstreamer(camera, name):
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    expected = {
        **{"none": image, "rotate-180": image[::-1, ::-1], "vertical": image[::-1]},
        **{"horizontal": image[:, ::-1], "clockwise": np.rot90(image, -1)},
        **{"counterclockwise": np.rot90(image), "upper-left-diagonal": image.swapaxes(0, 1)},
        "upper-right-diagonal": image[::-1, ::-1].swapaxes(0, 1),
    }[name]
    found = video_capture._flipped(image, FLIPS.index(name))
    assert found.flags.c_contiguous and (found == expected).all()
    gi = pytest.importorskip("gi", reason="PyGObject is not installed")
    assert gi
    from y7edge.sources.appsink import has

    if launching.gstreamer_problem() or not (has("videoflip") and has("appsrc")):
        pytest.skip("GStreamer has no videoflip")
    assert (_flipped_by_gstreamer(image, FLIPS.index(name)) == expected).all()


def _flipped_by_gstreamer(image, flip):
    from y7edge.sources.appsink import load

    gst, _ = load()
    large = image.repeat(4, 0).repeat(4, 1)  # rows of a multiple of 4 bytes
    height, width = large.shape[:2]
    pipeline = gst.parse_launch(
        f"appsrc name=in caps=video/x-raw,format=BGR,width={width},height={height},"
        f"framerate=1/1 ! videoflip video-direction={launching._DIRECTIONS[flip]} ! "
        "appsink name=out sync=false"
    )
    pipeline.get_by_name("in").emit("push-buffer", gst.Buffer.new_wrapped(large.tobytes()))
    pipeline.set_state(gst.State.PLAYING)
    sample = pipeline.get_by_name("out").emit("try-pull-sample", 20 * gst.SECOND)
    buffer = sample.get_buffer()
    pixels = np.frombuffer(buffer.extract_dup(0, buffer.get_size()), np.uint8)
    pipeline.set_state(gst.State.NULL)
    size = (width, height) if flip % 2 else (height, width)
    return pixels.reshape(*size, 3)[::4, ::4]


def test_a_device_that_is_missing():
    with pytest.raises(SourceError, match="/dev/video987 does not exist, found "):
        grabber({"scheme": "v4l2", "place": "987", "options": {}})


def test_what_opencv_was_built_with(monkeypatch):
    text = "  Video I/O:\n    FFMPEG:  YES\n    GStreamer:   NO\n    v4l/v4l2:  YES (linux)\n"
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: text)
    assert video_backends() == {"FFMPEG": True, "GStreamer": False, "v4l/v4l2": True}
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: text.replace("YES", "NO"))
    for scheme, place in (("rtsp", "h/x"), ("v4l2", "/dev/null")):
        with pytest.raises(RuntimeMissing, match="this OpenCV is built without"):
            grabber({"scheme": scheme, "place": place, "options": {}})


def test_options_of_ffmpeg_are_set_for_one_call(monkeypatch):
    seen = {}

    def refuse(url, backend, settings):
        seen.update(url=url, options=os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"], settings=settings)
        raise SourceError("stop")

    monkeypatch.setattr(cv2, "VideoCapture", refuse)
    monkeypatch.setenv("OPENCV_FFMPEG_CAPTURE_OPTIONS", "mine;1")
    with pytest.raises(SourceError, match="stop"):
        grabber({"scheme": "rtsp", "place": "u:p%40@h/x", "options": {"timeout": 2}})
    assert (
        seen["options"] == "fpsprobesize;0|rtsp_transport;tcp"
        and seen["url"] == "rtsp://u:p%40@h/x"
    )
    assert seen["settings"] == [
        *(cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, 2000, cv2.CAP_PROP_READ_TIMEOUT_MSEC, 2000),
        *(cv2.CAP_PROP_N_THREADS, 2),
    ]
    assert os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] == "mine;1"


def held(arrivals, positions, began=0.0, rate=15):
    backlog = video_capture._Backlog(began, rate)
    return [backlog.hold(now, at) for now, at in zip(arrivals, positions, strict=True)]


def test_frames_that_come_faster_than_the_camera_makes_them_are_old():
    # What FFmpeg delivers after 1.9 s of opening: 27 frames in 13 ms, then one every 67 ms.
    arrivals = [10 + 0.0005 * n for n in range(27)] + [10.013 + n / 15 for n in range(1, 20)]
    positions = [n / 15 for n in range(46)]
    holds = held(arrivals, positions, began=8.1)
    assert all(0.04 < hold < 0.06 for hold in holds[:27]) and not any(holds[27:])
    # The process is paused for a second.
    arrivals += [12.3 + 0.0005 * n for n in range(14)] + [12.307 + n / 15 for n in range(1, 5)]
    positions += [(46 + n) / 15 for n in range(18)]
    holds = held(arrivals, positions, began=8.1)[46:]
    assert all(0.04 < hold < 0.06 for hold in holds[:13]) and not any(holds[14:])


@pytest.mark.parametrize("rate", [0.2, 1, 10, 24, 35, 60, 120])
def test_rates_that_differ_from_the_stated_one(rate):
    """Motion JPEG over HTTP: FFmpeg's positions are those of 25 frames per second."""
    arrivals = [5 + n / rate for n in range(400)]
    holds = held(arrivals, [0.04 * n for n in range(400)], began=4.5, rate=None)
    late = [now for now, hold in zip(arrivals, holds, strict=True) if hold > 1 / rate]
    assert all(now < 7.1 for now in late) and max(holds) <= 0.1
    assert rate < 10 or not any(holds[100:])
