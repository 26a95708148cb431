import threading
import time

import numpy as np
import pytest

from y7edge.data.synthetic.conveyor import Conveyor
from y7edge.errors import SourceError, SourceTimeout
from y7edge.sources.scenes import Scenes, Settings, grabber, settings_of


def image_of(captured):
    width, height = captured.size
    return captured.planes[0].reshape(height, width, 3)


def test_live_frames_are_those_of_their_time():
    scenes = grabber({"fps": 50, "width": 160, "height": 120, "speed": 1})
    belt = Conveyor(0, (120, 160))
    assert scenes.live
    sequence = -1
    stamps = []
    for _ in range(10):
        captured = scenes.grab(5)
        sequence += 1 + captured.skipped
        stamps.append((sequence, captured.timestamp_ns))
        assert captured.clock == "sensor"
        assert captured.rate == 50
        assert (image_of(captured) == belt.view(round(sequence * 160 / 50)).image).all()
    now = time.monotonic_ns()
    # Each stamp is the frame's time, whenever it was read: 20 ms apart, and not in the future.
    (first, start), (last, end) = stamps[0], stamps[-1]
    assert end - start == pytest.approx((last - first) * 20e6, abs=2)
    assert end <= now
    assert last >= 9


def test_late_reader_gets_newest_frame():
    scenes = grabber({"fps": 100, "width": 96, "height": 96})
    first = scenes.grab(5)
    time.sleep(0.25)
    second = scenes.grab(5)
    assert second.skipped >= 20
    assert second.timestamp_ns - first.timestamp_ns == (second.skipped + 1) * 10_000_000
    assert time.monotonic_ns() >= second.timestamp_ns


def test_no_frame_is_due_in_time():
    scenes = grabber({"fps": 0.1, "width": 96, "height": 96})
    scenes.grab(5)
    with pytest.raises(SourceTimeout, match=r"no frame within 0\.05 s"):
        scenes.grab(0.05)


def test_close_ends_a_waiting_grab():
    scenes = grabber({"fps": 0.1, "width": 96, "height": 96})
    scenes.grab(5)
    threading.Timer(0.1, scenes.close).start()
    start = time.monotonic()
    assert scenes.grab(60) is None
    assert time.monotonic() - start < 8  # the next frame is due after 10


def test_video_of_scenes_returns_every_frame_and_ends():
    scenes = grabber({"frames": "5", "fps": "10", "width": "160", "height": "120", "seed": "7"})
    assert not scenes.live
    belt = Conveyor(7, (120, 160))
    for sequence in range(5):
        captured = scenes.grab(1)
        assert (captured.skipped, captured.clock) == (0, "media")
        assert captured.timestamp_ns == sequence * 100_000_000
        moved = round(sequence * 0.25 * 160 / 10)
        np.testing.assert_array_equal(image_of(captured), belt.view(moved).image)
    assert scenes.grab(1) is None


def test_frames_are_cheap():
    scenes = Scenes(Settings(frames=300))
    start = time.thread_time()
    while scenes.grab(1) is not None:
        pass
    assert time.thread_time() - start < 1  # 10 s of video at 640x480


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fsp": 30}, "has no option 'fsp': expected fps, width, height, seed, speed, frames"),
        ({"fps": "fast"}, "fps is 'fast', expected a number from 0.1 to 1000"),
        ({"fps": 0}, "fps is '0', expected a number"),
        ({"fps": "nan"}, "fps is 'nan', expected a number"),
        ({"width": "640.5"}, "width is '640.5', expected a whole number from 96 to 4096"),
        ({"width": 95}, "width is '95', expected"),
        ({"height": 1441}, "height is '1441', expected a whole number from 96 to 1440"),
        ({"seed": -1}, "seed is '-1', expected a whole number from 0 to 4294967295"),
        ({"seed": 1.5}, "seed is '1.5'"),
        ({"speed": True}, "speed is 'True', expected a number from 0 to 10"),
        ({"frames": None}, "frames is 'None', expected a whole number from 0 to 1000000000"),
        ({"seed": "9" * 9999}, "seed is '9999999999"),
        ({"fps": [30]}, "fps is '\\[30\\]'"),
    ],
)
def test_invalid_options(options, message):
    with pytest.raises(SourceError, match=message):
        settings_of(options)


@pytest.mark.parametrize("fault", ["stall", "hang", "crash", "end", "error"])
def test_faults_while_there_are_objects(fault):
    scenes = grabber({"frames": 9, "fault": fault, "after": "2"})
    assert [scenes.grab(1).timestamp_ns for _ in range(2)] == [0, round(1e9 / 30)]
    if fault == "end":
        assert scenes.grab(1) is None
    elif fault in ("stall", "error"):
        with pytest.raises(SourceTimeout if fault == "stall" else SourceError, match=fault):
            scenes.grab(0.01)


def test_faults_that_change_images_are_of_the_pattern():
    with pytest.raises(SourceError, match="fault is 'resize', expected one of stall, hang"):
        grabber({"fault": "resize"})
    with pytest.raises(SourceError, match="fault=error"):
        grabber({"fault": "error", "after": -1})
