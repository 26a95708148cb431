"""What the user of a camera sees when the device, its driver or the capture process fails."""

from __future__ import annotations

import gc
import logging
import os
import resource
import sys
import threading
import time
from itertools import pairwise

import pytest

from tests.sources.processes import children, descriptors, watchers
from y7edge.errors import RuntimeMissing, SourceError, SourceTimeout
from y7edge.sources import child, supervisor
from y7edge.sources.capture import Camera


def frames_until(source, condition, seconds=30.0):
    """Read until a condition holds; return the frames and the texts of the time-outs."""
    frames, texts, end = [], [], time.monotonic() + seconds
    while not condition(frames):
        assert time.monotonic() < end, source.status
        try:
            frames.append(source.read(0.05))
        except SourceTimeout as error:
            texts.append(str(error))
    return frames, texts


def check_counts(source, frames):
    """Frames of all connections are numbered on, and none is lost."""
    for shown, frame in enumerate(frames, 1):
        assert frame.sequence + 1 == shown + frame.dropped
        assert frame.dropped >= 0
    numbers = [frame.sequence for frame in frames]
    assert numbers == sorted(set(numbers))
    status = source.status
    assert status.frames == len(frames) + status.dropped > frames[-1].sequence


# --- the device ----------------------------------------------------------------------------------


def test_a_stalled_camera_is_noticed_after_a_second_and_opened_again(camera, caplog):
    caplog.set_level(logging.INFO, "y7edge.sources")
    with camera(fps=50, fault="stall", after=10) as source:
        frames, texts = frames_until(source, lambda frames: len(frames) >= 12)
        status = source.status
        check_counts(source, frames)
    gaps = [b.timestamp_ns - a.timestamp_ns for a, b in pairwise(frames)]
    # A second of silence, then 0.5 s (at least 0.375) in which it may recover.
    assert 1.3e9 < max(gaps) < 8e9
    assert status.reconnects == 1 and status.state == "running"
    assert status.problem.startswith("no frame for 1.")
    assert any("the source is stalled: no frame for 1." in text for text in texts)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 3, lines
    assert lines[0].startswith("test://pattern: opened by y7edge: pattern 640x480 bgr 50 fps")
    assert lines[1].startswith("test://pattern: no frame for 1.") and "opening it again" in lines[1]
    assert lines[2].startswith("test://pattern: running again after ")


def test_three_intervals_of_a_slow_camera_are_not_a_stall(camera):
    """At 0.8 frames per second, the watchdog allows 3.75 s."""
    with camera(fps=0.8) as source:
        frames = [source.read(20) for _ in range(3)]
        status = source.status
    assert status.reconnects == 0 and status.problem is None
    assert frames[2].timestamp_ns - frames[0].timestamp_ns > 2e9


def test_the_interval_is_measured_if_the_device_does_not_state_it(camera, grabbers):
    with camera("numbered", live=True, pause_s=1.1, count=3) as source:
        frames = [source.read(20) for _ in range(3)]
        assert source.status.reconnects == 0 and source.status.rate is None
    assert [frame.sequence for frame in frames] == [0, 1, 2]


def test_a_camera_that_recovers_is_not_opened_again(camera, grabbers, monkeypatch):
    monkeypatch.setattr(supervisor, "_FIRST_DELAY_S", 20.0)
    with camera("numbered", live=True, rate=50, count=60, hiccup_s=1.6) as source:
        _, texts = frames_until(source, lambda frames: len(frames) >= 20)
        assert any("the source is stalled" in text for text in texts)
        assert source.status.reconnects == 0 and source.status.state == "running"


def test_the_duration_of_a_stall_is_not_an_interval():
    """Or the next stall would be noticed late, and the camera reported as slow."""
    one, now = supervisor._Connection(None, stated=30.0, opened=100.0, last=100.0), 100.0
    for made in range(1, 301):
        now += 1 / 30 if made != 150 else 6.0
        one.stalled = made == 150
        if one.stalled:
            one.resume()
        one.count(made, now)
        assert one.slowness(now) is None
    assert one.limit(10.0, live=True) == 1.0


def test_a_camera_slower_than_it_states_is_reported(camera, caplog, monkeypatch):
    monkeypatch.setattr(supervisor, "_WINDOW_S", 0.6)
    with camera(fps=40, fault="slow", after=1) as source:
        frames_until(source, lambda _: source.status.problem)
        assert source.status.state == "running" and source.status.reconnects == 0
        assert source.status.problem.endswith("frames per second, but the source states 40")
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ("crash", "the capture process was killed by SIGSEGV"),
        ("end", "the stream ended"),
        ("error", "the device reports an error (fault=error)"),
    ],
)
def test_a_device_that_fails_is_opened_again(camera, quick, fault, problem, caplog):
    with camera(fps=50, fault=fault, after=5) as source:
        frames, texts = frames_until(source, lambda _: source.status.reconnects >= 2)
        check_counts(source, frames)
        assert source.status.problem == problem
    assert any(f"the source is reconnecting: {problem}" in text for text in texts)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"test://pattern: {problem}; opening it again in 0." in caplog.text


def test_incomplete_frames_are_dropped_and_counted(camera, quick, caplog):
    with camera(fps=50, fault="corrupt", after=5) as source:
        frames, _ = frames_until(source, lambda frames: len(frames) >= 8)
        assert all(frame.image.shape == (480, 640, 3) for frame in frames)
        check_counts(source, frames)
        status = source.status
    assert status.dropped > 20 and status.reconnects == 1
    assert status.problem.startswith("no frame for 1.")
    assert "a frame is incomplete: its bgr planes have the shapes [(240, 1920)]" in status.problem
    assert len([r for r in caplog.records if r.levelname == "WARNING"]) == 2


def test_another_resolution_is_another_size_of_frames(camera):
    with camera(fps=50, fault="resize", after=3, width=640, height=480) as source:
        frames, _ = frames_until(source, lambda frames: frames and frames[-1].size != (640, 480))
        assert frames[-1].size == (320, 240) and frames[-1].image.shape == (240, 320, 3)
        check_counts(source, frames)
        assert source.status.reconnects == 0


def test_the_number_of_attempts_is_limited(camera, quick, caplog):
    with camera(fps=50, fault="error", after=2, retries=2) as source:
        with pytest.raises(SourceError) as failed:
            frames_until(source, lambda _: False)
        assert str(failed.value) == (
            "test://pattern: the device reports an error (fault=error); gave up after opening it "
            "again 2 times"
        )
        with pytest.raises(SourceError, match="gave up"):
            source.read()
        assert source.status.state == "failed"
    assert source.read() is None
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR"]


def test_the_limit_can_be_none_at_all(camera):
    source = camera(fps=50, fault="end", after=2, retries=0)
    with pytest.raises(SourceError, match=r"^test://pattern: the stream ended$"):
        frames_until(source, lambda _: False)


def test_attempts_count_anew_after_healthy_frames(camera, quick, monkeypatch):
    monkeypatch.setattr(supervisor, "_HEALTHY_S", 0.05)
    with camera(fps=100, fault="error", after=20, retries=1) as source:
        frames_until(source, lambda _: source.status.reconnects >= 3)


def test_a_stall_after_healthy_frames_is_the_first_of_a_series(camera, monkeypatch, caplog):
    """It is reported, and the delay is that of a first attempt."""
    monkeypatch.setattr(supervisor, "_HEALTHY_S", 0.05)
    with camera(fps=100, fault="stall", after=20) as source:
        frames_until(source, lambda _: source.status.reconnects >= 2)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert all("; opening it again in 0." in record.getMessage() for record in caplog.records)


def test_delays_double_and_are_limited(monkeypatch):
    one = supervisor.Supervisor("x", "pattern", {}, rate=None, open_timeout=1, retries=1)
    monkeypatch.setattr(supervisor.random, "uniform", lambda low, high: (low + high) / 2)
    delays = []
    for one._attempts in range(7):
        delays.append(one._delay())
    assert delays == [0.5, 1, 2, 4, 8, 10, 10]
    os.close(one._wake_in)
    os.close(one._wake_out)


# --- opening -------------------------------------------------------------------------------------


def test_a_device_that_cannot_be_opened_fails_at_once(camera, caplog):
    with pytest.raises(SourceError, match=r"^test://pattern: the device reports an error"):
        camera(fault="error", after=-1)
    assert not watchers() and not children()
    assert not caplog.records  # the exception says it


def test_the_memory_of_the_process_is_limited(camera, grabbers):
    """To half of the machine's, and a library that leaks or collects a stream does not get more."""
    half = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    with pytest.raises(SourceError, match="MemoryError: Unable to allocate"):
        camera("numbered", live=True, hoards=half + 2**20)
    with camera("numbered", live=True, hoards=half // 2) as source:
        assert source.read(10)


def test_an_option_that_is_wrong_is_named(camera):
    with pytest.raises(SourceError, match=r"^test://pattern: width is 'ten', expected 2 to 16384$"):
        camera(width="ten")


def test_a_device_that_does_not_open_in_time(camera, quick, until):
    begin = time.monotonic()
    with pytest.raises(SourceError, match=r"the device did not open within 0\.5 s: check that"):
        camera(fault="hang", after=-1, open_timeout=0.5)
    assert time.monotonic() - begin < 10
    until(lambda: not watchers() and not children())


def test_a_device_without_any_frame(camera):
    source = camera(fault="stall", after=0, open_timeout=0.5)
    with pytest.raises(
        SourceError, match=r"^test://pattern: no frame within 0\.5 s after the device was opened$"
    ):
        source.read()


def test_a_missing_package_is_named(camera, grabbers):
    with pytest.raises(RuntimeMissing, match="pip install nothing"):
        camera("missing")


def test_what_libraries_print_is_in_the_message_and_no_password(camera, grabbers):
    """GST_ARGUS prints to stdout."""
    printed = "GST_ARGUS: no camera at rtsp://me:s3cret@host/1 user-pw=s3cret \x1b[2J"
    with pytest.raises(SourceError) as failed:
        camera("numbered", prints=printed, exits=3)
    text = str(failed.value)
    assert (
        "the capture process ended with status 3: GST_ARGUS: no camera at rtsp://***@host/1" in text
    )
    assert "s3cret" not in text and "\x1b" not in text
    with pytest.raises(SourceError, match=r"no rtsp://\*\*\*@host/2$"):
        camera("numbered", refuses="no rtsp://me:s3cret@host/2")


def test_a_library_that_prints_a_lot_does_not_stop(camera, grabbers):
    with camera("numbered", live=True, count=10**6, pause_s=0.01, chatter=30_000) as source:
        for _ in range(20):
            source.read(10)


# --- a process that hangs ------------------------------------------------------------------------


def hanging(camera, name):
    """Open a camera that does not return from a call of its driver."""
    source = camera(name=name, fault="hang", after=1)
    source.read(10)
    with pytest.raises(SourceTimeout):
        source.read(0.3)
    return source


def test_close_returns_within_a_second_and_the_process_is_killed_later(
    camera, monkeypatch, until, caplog
):
    monkeypatch.setattr(child, "TERM_S", 1.5)
    monkeypatch.setattr(child, "KILL_S", 2.5)
    name = "csi://0"
    source = hanging(camera, name)
    begin = time.monotonic()
    source.close()
    closed = time.monotonic() - begin
    assert closed < 1.5  # 0.9 on a machine that is not busy
    assert len(children()) == 1 and source.read() is None
    until(lambda: not children() and not watchers())
    assert time.monotonic() - begin > 2.4  # SIGTERM did not end it
    assert source.status.frames == 1 + source.status.dropped
    hint = (
        "the previous capture process did not stop within 2.5 s and was killed; a killed client "
        "leaves nvargus-daemon stuck: sudo systemctl restart nvargus-daemon"
    )
    assert caplog.messages[-1] == f"{name}: {hint}"
    with camera(name=name) as following:
        assert following.status.problem == hint
        assert following.read(10) is not None
    with camera(name=name) as third:
        assert third.status.problem is None


def test_the_next_opening_that_fails_says_that_a_process_was_killed(camera, quick, until):
    name = "/dev/video9"
    hanging(camera, name).close()
    until(lambda: not watchers())
    with pytest.raises(SourceError) as failed:
        camera(name=name, fault="error", after=-1)
    assert str(failed.value) == (
        "/dev/video9: the device reports an error (fault=error); the previous capture process did "
        "not stop within 1.6 s and was killed"
    )


def test_a_csi_camera_that_cannot_be_opened_says_what_may_help(camera, grabbers):
    with pytest.raises(SourceError, match=r"^csi://9: no sensor; a killed client leaves nvargus"):
        camera("numbered", name="csi://9", refuses="no sensor")
    with pytest.raises(SourceError, match=r"^csi://9: restart nvargus-daemon$"):
        camera("numbered", name="csi://9", refuses="restart nvargus-daemon")


def test_a_device_with_one_client_waits_until_the_process_that_hangs_is_gone(camera, quick, until):
    name = "csi://7"
    hanging(camera, name).close()
    assert len(children()) == 1
    with camera(name=name, fps=50) as source:
        assert len(children()) == 1  # the first one is gone
        assert source.read(10) is not None


def test_a_stream_is_opened_again_while_a_process_hangs(camera, monkeypatch, until):
    monkeypatch.setattr(child, "TERM_S", 20.0)
    monkeypatch.setattr(child, "KILL_S", 20.0)
    with camera(name="rtsp://host/1", fps=50, fault="hang", after=5) as source:
        frames_until(source, lambda _: source.status.reconnects)
        assert len(children()) == 2
        monkeypatch.setattr(child, "KILL_S", 0.0)
    until(lambda: not children() and not watchers())


def test_a_grabber_that_takes_long_to_close_gets_its_time(camera, grabbers, quick, until, caplog):
    """SIGTERM ends it, in order, after a time."""
    source = camera("numbered", name="csi://8", live=True, close_s=0.4)
    source.close()
    assert not children() and not caplog.records


def test_the_kernel_ends_a_process_that_blocks_its_interpreter(camera, grabbers, monkeypatch):
    """Neither its main nor its control thread can run, so that it could not notice anything."""
    before = "main(int(sys.argv[1])"
    patched = f"import y7edge.sources.worker as worker; worker._HUNG_S = 2; {before}"
    monkeypatch.setattr(child, "_CODE", child._CODE.replace(before, patched))
    with pytest.raises(SourceError, match="capture process hung in a call that stops all of"):
        camera("numbered", blocks=True, open_timeout=30)


def test_a_limit_of_open_files_is_one_line(camera):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    for more in (0, 2):  # for the pipe of the thread, for the process
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + more, limits[1]))
        try:
            with pytest.raises(SourceError, match="Too many open files"):
                camera()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_many_cameras_that_hang_end_together(camera, quick, until):
    sources = [hanging(camera, f"test://{n}") for n in range(3)]
    for source in sources:
        threading.Thread(target=source.close).start()
    until(lambda: not children() and not watchers())


# --- a process that is not to be trusted ---------------------------------------------------------

FAKE = """
import json, os, socket, sys, time
control = socket.socket(fileno=int(sys.argv[1]))
control.recv(4096)
def send(line, *descriptors):
    line = line if isinstance(line, bytes) else json.dumps(line).encode()
    socket.send_fds(control, [line + b"\\n"], descriptors)
"""
HOSTILE = [
    "send(b'not json')",
    "send(b'\\xff\\xfe')",
    "send([1, 2])",
    "send({})",
    "send({'opened': ['a', 'b']})",
    "send({'opened': ['a', 'b', 1]})",
    "send({'opened': [1, 'b', True]})",
    "send({'frame': 1, 'end': True})",
    "send({'frame': -1})",
    "send({'frame': 1e9})",
    "send({'frame': True})",
    "send({'frame': 1 << 70})",
    "send({'rate': 'fast'})",
    "send(b'{\"rate\": NaN}')",
    "send({'memory': 1000})",
    "send({'memory': 1000}, 0)",
    "send({'memory': -1}, os.memfd_create('x'))",
    "fd = os.memfd_create('x'); os.ftruncate(fd, 1 << 20); send({'memory': 1000}, fd)",
    "send({'failed': 'x'})",
    "send({'else': 'x'})",
    "send(b'[' * 60000)",
    "control.sendall(b'x' * 500000)",
    "send(b'{\"frame\": ' + b'1' * 5000 + b'}')",
]


@pytest.mark.parametrize("action", HOSTILE)
def test_an_invalid_message_ends_the_process(camera, monkeypatch, action):
    monkeypatch.setattr(child, "_CODE", FAKE + f"\n{action}\ntime.sleep(60)")
    monkeypatch.setattr(child, "TERM_S", 0.0)
    gc.collect()
    before = descriptors()
    with pytest.raises(SourceError, match=r"^test://pattern: the capture process sent an invalid"):
        camera()
    assert descriptors() == before and not children()


def test_text_of_the_process_is_one_printable_line(camera, monkeypatch):
    action = "send({'failed': ['OSError', 'a\\n\\x1b[31m' + 'b' * 9000]})"
    monkeypatch.setattr(child, "_CODE", FAKE + f"\n{action}\ntime.sleep(60)")
    monkeypatch.setattr(child, "TERM_S", 0.0)
    with pytest.raises(SourceError) as failed:
        camera()
    assert len(str(failed.value)) < 1100 and str(failed.value).isprintable()


SPOILED = (
    FAKE
    + """
sys.path[:] = sys.argv[3:]
import numpy as np
from y7edge.sources import ring
from y7edge.sources.base import Captured
send({"opened": ["y7edge", "", True]})
writer = ring.Writer(300)
send({"memory": 300}, writer.descriptor)
frame = Captured((np.zeros((10, 30), np.uint8),), (10, 10), "bgr", 1, "driver")
writer.write(frame, 1)
send({"frame": 1})
time.sleep(1)
ring._HEADER.pack_into(writer._memory, 4096 * 2, 2, 0, 4000, 4000, 0, 0, 0.0)
send({"frame": 2})
time.sleep(60)
"""
)


def test_an_invalid_frame_is_not_read(camera, monkeypatch):
    monkeypatch.setattr(child, "_CODE", SPOILED)
    monkeypatch.setattr(child, "TERM_S", 0.0)
    with camera(retries=0) as source:
        assert source.read(10).image.shape == (10, 10, 3)
        with pytest.raises(SourceError, match="wrote an invalid frame: a frame of 4000x4000"):
            source.read(10)


def test_a_number_without_a_frame_does_not_keep_the_reader_busy(camera, monkeypatch):
    code = SPOILED.partition("time.sleep(1)")[0] + 'send({"frame": 9})\ntime.sleep(60)'
    monkeypatch.setattr(child, "_CODE", code)
    monkeypatch.setattr(child, "TERM_S", 0.0)
    with camera(rate=1) as source:
        source.read(10)
        begin = time.process_time()
        with pytest.raises(SourceTimeout):
            source.read(1.0)
        assert time.process_time() - begin < 0.5


def test_an_interpreter_that_cannot_be_started(camera, monkeypatch):
    monkeypatch.setattr(child.spawn, "get_executable", lambda: b"/no/python")
    with pytest.raises(SourceError, match="cannot be started with /no/python: "):
        camera()
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(SourceError, match=r"multiprocessing\.set_executable"):
        Camera("test://pattern", "pattern", {})
