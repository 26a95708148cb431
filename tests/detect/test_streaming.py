"""``Detector.stream``: newest frames of cameras, every frame of files, several sources, ages."""

from __future__ import annotations

import gc
import logging
import os
import threading
import time
import weakref
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from tests.detect.test_detector import detector_over, frame_with
from tests.fake_model import FakeSession, make_manifest
from y7edge import Detector, Frame
from y7edge.detect.ages import Ages
from y7edge.detect.streaming import Stream
from y7edge.errors import (
    ConfigError,
    DataError,
    DetectorClosed,
    DeviceError,
    SourceError,
    SourceSkipped,
    SourceTimeout,
)
from y7edge.sources import uri
from y7edge.sources.base import Source, Status

WHITE = frame_with((32, 64))


class Fake(Source):
    """A source that counts what is done with it."""

    live = False

    def __init__(self, name="film", frames=3, fails: Exception | None = None, start=0) -> None:
        self.name, self.left, self.fails = name, frames, fails
        self.next, self.start = 0, start
        self.closed = 0
        self.threads: set[int] = set()
        self.gone = threading.Event()

    def read(self, timeout=None):
        self.threads.add(threading.get_ident())
        if self.closed:
            return None
        if not self.left:
            if self.fails is not None:
                raise self.fails
            return None
        self.left -= 1
        return self.made()

    def made(self) -> Frame:
        number, self.next = self.next, self.next + 1
        time_ns = self.start + number
        return Frame(WHITE, timestamp_ns=time_ns, sequence=number, source=self.name)

    @property
    def status(self):
        state = "closed" if self.closed else "running"
        return Status(state, "y7edge", self.name, frames=self.next)

    def close(self):
        self.closed += 1
        self.gone.set()


class Camera(Fake):
    """Makes a frame at every tick of its rate, and has only the newest one."""

    live = True

    def __init__(self, name="cam", rate=30.0, **options) -> None:
        super().__init__(name, **{"frames": 1 << 30, **options})
        self.rate, self.started = rate, time.monotonic_ns()
        self.dropped = 0

    def read(self, timeout=None):
        until = None if timeout is None else time.monotonic() + timeout
        self.threads.add(threading.get_ident())
        while not self.closed:
            if not self.left:
                return super().read()
            newest = int((time.monotonic_ns() - self.started) * self.rate / 1e9)
            if newest >= self.next:
                self.dropped += newest - self.next
                self.next = newest + 1
                self.left -= 1
                captured = self.started + int(newest * 1e9 / self.rate)
                return Frame(
                    WHITE.copy(),
                    timestamp_ns=captured,
                    sequence=newest,
                    dropped=self.dropped,
                    source=self.name,
                )
            if until is not None and time.monotonic() > until:
                raise SourceTimeout(f"{self.name}: no frame")
            time.sleep(0.001)
        return None

    @property
    def status(self):
        return replace(super().status, dropped=self.dropped)


class Stalled(Fake):
    """Never has a frame."""

    live = True

    def read(self, timeout=None):
        if not self.gone.wait(timeout):
            raise SourceTimeout(f"{self.name}: no frame")


class Sleeping(FakeSession):
    """An engine that takes a fixed time, and that can be seen."""

    seconds = 0.02

    def _run(self, feeds):
        time.sleep(self.seconds)
        return super()._run(feeds)


def sleeping(batch=1, seconds=0.02, **options) -> tuple[Detector, Sleeping]:
    manifest = make_manifest(batch)
    session = Sleeping(manifest)
    session.seconds = seconds
    return Detector.from_session(session, manifest, **options), session


def wait_until(condition):
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)


@pytest.fixture
def opened(monkeypatch):
    """Sources that ``open_source`` opens, by URI; the options that it was called with."""
    made: dict[str, Source] = {}
    calls: list[tuple] = []

    def open_source(address, **options):
        calls.append((address, options))
        if address == "missing":
            raise SourceError("missing: there is no such camera")
        source = made.get(str(address)) or Fake(str(address))
        made[str(address)] = source
        return source

    monkeypatch.setattr(uri, "open_source", open_source)
    return made, calls


# --- one source -----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3, "dynamic"])
def test_every_frame_of_a_file(batch):
    detector, _ = detector_over(batch)
    film = Fake(frames=5)
    results = list(detector.stream(film))
    assert [frame.sequence for frame, _ in results] == list(range(5))
    for frame, found in results:
        assert (found.timestamp_ns, found.frame_id) == (frame.timestamp_ns, frame.sequence)
        assert found.source == "film"
        np.testing.assert_array_equal(found.xyxy, detector(WHITE).xyxy)
    assert film.threads == {threading.get_ident()}


def test_images_of_the_program_are_numbered():
    detector, _ = detector_over()
    rgb = Frame(WHITE[..., ::-1], "rgb", timestamp_ns=4, sequence=8, source="mine")
    frames = [WHITE, rgb, WHITE]
    with detector.stream(image for image in frames) as stream:
        results = list(stream)
        assert stream.names == ("images",)
        assert stream.status["images"].frames == 3
        assert stream.status["images"].state == "ended"
    assert [frame.sequence for frame, _ in results] == [0, 8, 2]
    assert [found.frame_id for _, found in results] == [0, 8, 2]
    assert [found.timestamp_ns for _, found in results] == [None, 4, None]
    assert [found.source for _, found in results] == ["images", "mine", "images"]
    assert [len(found) for _, found in results] == [1, 1, 1]
    assert [len(found) for _, found in detector.stream([WHITE, frame_with()])] == [1, 0]


def test_a_region_of_interest():
    detector, _ = detector_over()
    ((_, found),) = detector.stream([WHITE], roi=(0, 0, 192, 32))
    assert len(found) == 0
    ((_, found),) = detector.stream([WHITE], roi=(0, 48, 192, 112))
    assert found.image_wh == (192, 128)
    assert len(found) == len(detector(WHITE, roi=(0, 48, 192, 112)))


def test_a_camera_gives_its_newest_frame_and_the_time_of_the_program_counts():
    detector, _ = sleeping(seconds=0.02)
    camera = Camera(rate=200)
    ages = []
    with detector.stream(camera) as stream:
        for frame, found in stream:
            age = frame.age_ns(time.monotonic_ns())
            ages.append(age)
            assert found.frame_id == frame.sequence
            time.sleep(0.05)  # ten frames
            if len(ages) == 12:
                break
        summary = stream.ages["cam"].summary()
        assert not camera.closed
        status = stream.status["cam"]
    assert camera.threads == {threading.get_ident()}  # a camera has the newest frame itself
    assert not camera.closed  # it was opened by the caller
    assert summary["count"] == 12
    # A frame waits at most for one interval, then for the engine, not for the 50 ms of the program.
    assert summary["p50_ms"] < 60
    assert summary["p50_ms"] >= 20
    assert status.dropped >= 11 * 8
    assert status.frames - status.dropped == 12


@pytest.mark.parametrize("how", ["end", "break", "error", "engine", "with", "close", "forget"])
def test_sources_that_the_stream_opened_are_closed(opened, how):
    made, calls = opened
    detector, session = detector_over()
    if how == "end":
        assert len(list(detector.stream("film", width=640))) == 3
    elif how == "break":
        for _ in detector.stream("film", width=640):
            assert not made["film"].closed
            break
    elif how == "error":
        with pytest.raises(ZeroDivisionError):
            for _ in detector.stream("film", width=640):
                raise ZeroDivisionError
        gc.collect()  # the traceback had the iterator
    elif how == "engine":
        session.fail = True
        stream = detector.stream("film", width=640)
        with pytest.raises(DeviceError, match="the engine failed"):
            next(stream)
        assert list(stream) == []
    elif how == "with":
        with detector.stream("film", width=640):
            assert not made["film"].closed
    elif how == "close":
        stream = detector.stream("film", width=640)
        next(stream)
        stream.close()
        stream.close()
        assert list(stream) == []
        assert stream.status["film"].state == "closed"
    else:
        detector.stream("film", width=640)
        gc.collect()
    assert made["film"].closed
    assert calls == [("film", {"width": 640})]


def test_an_open_source_stays_open():
    detector, _ = detector_over()
    film, films = Fake(), [Fake("a"), Fake("b")]
    assert len(list(detector.stream(film))) == 3
    assert len(list(detector.stream(films))) == 6
    assert [one.closed for one in (film, *films)] == [0, 0, 0]


def test_numbers_and_paths_are_opened(opened, tmp_path):
    detector, _ = detector_over()
    for source in (0, "film", tmp_path):
        assert len(list(detector.stream(source))) == 3
    assert [address for address, _ in opened[1]] == [0, "film", tmp_path]


@pytest.mark.parametrize(
    ("source", "options", "problem"),
    [
        (None, {}, "the source is of type NoneType, expected a URI, a path"),
        (True, {}, "the source is of type bool"),
        (1.5, {}, "the source is of type float"),
        (b"cam", {}, "the source is of type bytes"),
        ({"cam": 1}, {}, "the source is of type dict"),
        (WHITE, {}, "type ndarray, .*: call the detector itself for one image"),
        (Frame(WHITE), {}, "type Frame, .*: call the detector itself for one image"),
        ([], {}, "the list of sources is empty"),
        (["film", WHITE], {}, "contains an object of type ndarray"),
        ([WHITE, "film"], {}, "contains an object of type ndarray"),
        (["film", True], {}, "contains an object of type bool"),
        ([Fake()] * 2, {}, "contains an open source twice"),
        (Fake(), {"width": 3}, "width: options are for URIs"),
        ([WHITE], {"width": 3, "fps": 2}, "width, fps: options are for URIs"),
    ],
)
def test_what_is_not_a_source(opened, source, options, problem):
    detector, _ = detector_over()
    with pytest.raises(ConfigError, match=problem):
        detector.stream(source, **options)
    assert opened[1] == []


def test_images_that_are_none():
    detector, _ = detector_over()
    with pytest.raises(DataError, match="an image must be a numpy array, not str"):
        list(detector.stream(iter(["a.jpg"])))
    with pytest.raises(DataError, match="not NoneType"):
        list(detector.stream([WHITE, None]))


def test_a_closed_detector():
    detector, _ = detector_over()
    stream = detector.stream(Fake())
    next(stream)
    detector.close()
    with pytest.raises(DetectorClosed):
        next(stream)


def test_a_source_that_fails_ends_the_stream(opened):
    made, _ = opened
    made["cam"] = Fake("cam", 2, SourceError("cam: unplugged"))
    detector, _ = detector_over()
    stream = detector.stream("cam")
    with pytest.raises(SourceError, match="cam: unplugged"):
        for _ in stream:
            pass
    assert made["cam"].closed
    assert stream.status["cam"].state == "failed"
    assert stream.status["cam"].problem == "cam: unplugged"
    assert list(stream) == []


def test_sources_are_opened_at_once_or_not_at_all(opened):
    made, _ = opened
    detector, _ = detector_over()
    with pytest.raises(SourceError, match="missing: there is no such camera"):
        detector.stream(["a", "missing", "b"])
    assert made["a"].closed
    assert "b" not in made


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("owned", [True, False])
def test_another_thread_may_close_a_stream_that_waits(opened, count, owned):
    made, _ = opened
    detector, _ = detector_over()
    names = ["a", "b"][:count]
    sources = [made.setdefault(name, Stalled(name)) for name in names]
    stream = detector.stream(names if owned else sources)
    timer = threading.Timer(0.2, stream.close)
    timer.start()
    started = time.monotonic()
    assert list(stream) == []
    assert time.monotonic() - started < 10
    timer.join()
    assert [bool(source.closed) for source in sources] == [owned] * count
    assert not [t for t in threading.enumerate() if t.name.startswith("y7edge read")]


def test_frames_are_not_kept():
    detector, _ = detector_over()
    alive = []

    def images():
        for _ in range(20):
            image = WHITE.copy()
            alive.append(weakref.ref(image))
            yield image
            del image

    for _ in detector.stream(images()):
        assert sum(one() is not None for one in alive) <= 2


def test_frames_of_several_sources_are_not_kept():
    """Also while a source waits for its next frame."""

    class Waiting(Fake):
        live = True

        def made(self):
            if self.next and not self.gone.wait(0.01):
                self.left += 1
                raise SourceTimeout("the next frame comes later")
            image = WHITE.copy()
            alive.append(weakref.ref(image))
            return replace(super().made(), image=image)

    detector, _ = detector_over()
    alive: list[weakref.ref] = []
    with detector.stream([Waiting("a"), Waiting("b")]) as stream:
        for _ in range(2):
            next(stream)
        wait_until(lambda: not any(one() is not None for one in alive))


# --- several sources ------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2, "dynamic"])
def test_every_frame_of_several_files(batch):
    detector, session = detector_over(batch)
    films = [Fake("a", 7), Fake("b", 4), Fake("c", 1)]
    stream = detector.stream(films)
    results = list(stream)
    for film, count in zip(films, (7, 4, 1), strict=True):
        numbers = [frame.sequence for frame, _ in results if frame.source == film.name]
        assert numbers == list(range(count))
        assert stream.status[film.name].state == "ended"
        assert stream.status[film.name].dropped == 0
    for frame, found in results:
        assert (found.source, found.frame_id) == (frame.source, frame.sequence)
    assert threading.get_ident() not in set.union(*(film.threads for film in films))
    assert max(session.batches) <= {1: 1, 2: 2, "dynamic": 3}[batch]


def test_frames_that_are_ready_are_one_batch_in_the_order_of_capture():
    class Gate(Fake):
        """Waits with its only frame for the others."""

        def read(self, timeout=None):
            if self.left:
                barrier.wait(30)
            return super().read(timeout)

    barrier = threading.Barrier(4)
    detector, session = detector_over("dynamic")
    held = threading.Event()
    original = session._run
    session._run = lambda feeds: (held.wait(30), original(feeds))[1]
    first = Fake("first", 1)
    others = [Gate(name, 1, start=start) for name, start in (("a", 30), ("b", 10), ("c", 20))]
    stream = detector.stream([first, *others])
    numbers = []
    thread = threading.Thread(target=lambda: numbers.extend(stream))
    thread.start()
    wait_until(lambda: first.next and stream._reader._turns[-1].name == "first")  # it is run
    barrier.wait(30)
    wait_until(lambda: all(one.frame is not None for one in stream._inputs[1:]))
    held.set()
    thread.join(30)
    assert session.batches == [1, 3]
    assert [found.source for _, found in numbers] == ["first", "b", "c", "a"]
    assert [frame.source for frame, _ in numbers] == ["first", "b", "c", "a"]


@pytest.mark.parametrize("batch", [1, "dynamic"])
def test_a_slow_camera_does_not_starve_beside_a_fast_one(batch):
    detector, _ = sleeping(batch, seconds=0.03)
    fast, slow = Camera("fast", rate=120), Camera("slow", rate=5)
    counts: Counter[str] = Counter()
    started = time.monotonic()
    with detector.stream([fast, slow]) as stream:
        for frame, _ in stream:
            counts[frame.source] += 1
            if time.monotonic() - started > 2.5:
                break
        status, ages = stream.status, stream.ages
        slow_age = ages["slow"].summary()
    assert status["slow"].dropped <= 2
    assert counts["slow"] >= 8
    assert counts["fast"] >= 20
    # Its frame waits for the frame that runs, then for the engine.
    assert slow_age["p50_ms"] < 30 + 30 * (2 if batch == "dynamic" else 1) + 30
    fast_status = status["fast"]
    assert fast_status.dropped > 100
    left = fast_status.frames - fast_status.dropped - counts["fast"]
    assert left in (0, 1, 2)  # read, and not taken yet


def test_equal_cameras_get_equal_turns():
    detector, _ = sleeping(seconds=0.005)
    cameras = [Camera(f"cam{number}", rate=400) for number in range(3)]
    counts: Counter[str] = Counter()
    with detector.stream(cameras) as stream:
        for frame, _ in stream:
            counts[frame.source] += 1
            if sum(counts.values()) == 90:
                break
    assert min(counts.values()) >= 25


def test_newest_frames_of_several_cameras_and_the_number_of_dropped_ones():
    detector, _ = sleeping(seconds=0.04)
    cameras = [Camera("a", rate=200), Camera("b", rate=200)]
    with detector.stream(cameras) as stream:
        seen = {"a": 0, "b": 0}
        for frame, _ in stream:
            seen[frame.source] += 1
            # Every earlier frame was returned, or dropped by the camera or by the stream.
            assert frame.dropped + seen[frame.source] == frame.sequence + 1
            if seen["a"] > 10:
                break
    # A frame waits for the next one, 5 ms, and for the engine. The oldest one is 85 ms older.
    assert stream.ages["a"].summary()["p50_ms"] < 90


def test_a_source_that_fails_does_not_stop_the_others(opened, caplog):
    made, _ = opened
    made["bad"] = Fake("bad", 1, SourceError("bad: unplugged"))
    made["good"] = Camera("good", rate=100, frames=20)
    detector, _ = detector_over()
    stream = detector.stream(["bad", "good"])
    counts: Counter[str] = Counter()
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(SourceError, match=r"^bad: unplugged$"),
    ):
        for frame, _ in stream:
            counts[frame.source] += 1
    replaced = stream.status["good"].dropped - made["good"].dropped  # by newer ones, if busy
    assert counts == {"bad": 1, "good": 20 - replaced}
    assert caplog.messages == ["bad failed; continuing with 1 others: bad: unplugged"]
    assert {name: status.state for name, status in stream.status.items()} == {
        "bad": "failed",
        "good": "ended",
    }
    assert stream.status["bad"].problem == "bad: unplugged"
    assert made["bad"].closed
    assert made["good"].closed


def test_if_all_sources_fail_the_stream_fails(caplog):
    detector, _ = detector_over()
    sources = [Fake(name, 2, SourceError(f"{name}: unplugged")) for name in "ab"]
    stream = detector.stream(sources)
    results = []
    with pytest.raises(SourceError, match=r"2 sources failed: [ab]: unplugged; [ab]: unplugged"):
        results.extend(stream)
    assert len(caplog.messages) <= 1
    assert list(stream) == []


def test_an_error_of_the_program_in_a_source_is_raised_at_once():
    detector, _ = detector_over()
    sources = [Camera("cam", rate=100), Fake("mine", 2, KeyError("a bug"))]
    with pytest.raises(KeyError, match="a bug"):
        for _ in detector.stream(sources):
            pass
    assert not [t for t in threading.enumerate() if t.name.startswith("y7edge read")]


def test_names_are_different():
    detector, _ = detector_over()
    stream = detector.stream([Fake("cam"), Fake("cam"), Fake("other"), Fake("cam")])
    assert stream.names == ("cam", "cam (2)", "other", "cam (3)")
    assert tuple(stream.ages) == tuple(stream.status) == stream.names
    counts = Counter((frame.source, found.source) for frame, found in stream)
    assert counts == dict.fromkeys(((name, name) for name in stream.names), 3)


def test_frames_of_a_folder_keep_the_names_of_their_files():
    class Folder(Fake):
        def made(self):
            return replace(super().made(), source=f"{self.name}/{self.next}.jpg")

    detector, _ = detector_over()
    stream = detector.stream([Folder("x", 2), Folder("x", 1)])
    assert stream.current is None
    found = sorted((stream.current, found.source) for _, found in stream)
    assert found == [("x", "x/1.jpg"), ("x", "x/2.jpg"), ("x (2)", "x/1.jpg")]


@pytest.mark.parametrize("count", [1, 2])
def test_a_file_that_is_skipped_is_reported(count, caplog):
    """Also if the newest frame is asked for while another one waits for the detector."""

    class Played(Camera):
        damaged = 2

        def read(self, timeout=None):
            if self.damaged and ((self.next and timeout == 0) or count == 1):
                self.damaged -= 1
                raise SourceSkipped(f"{self.name}: 3.png is damaged")
            return super().read(timeout)

    detector, _ = detector_over()
    sources = [Played("film", rate=100, frames=5), Fake("other", 3)]
    frames = [frame for frame, _ in detector.stream(sources[:count]) if frame.source == "film"]
    assert frames
    assert caplog.messages == ["film: 3.png is damaged"] * 2


def test_a_stream_that_is_forgotten_stops_its_threads(opened):
    made, _ = opened
    made["a"], made["b"] = Camera("a"), Camera("b")
    detector, _ = detector_over()
    for _ in detector.stream(["a", "b"]):
        break
    gc.collect()
    assert made["a"].closed
    assert made["b"].closed
    assert not [t for t in threading.enumerate() if t.name.startswith("y7edge read")]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
def test_a_forked_child_leaves_the_stream_alone(opened):
    made, _ = opened
    made["a"], made["b"] = Camera("a"), Camera("b")
    detector, _ = detector_over()
    with detector.stream(["a", "b"]) as stream:
        with stream._reader._changed:  # the child inherits a lock that nobody releases there
            child = os.fork()
            if not child:
                stream.close()
                os._exit(made["a"].closed + 10)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 10
        assert len(next(stream)[1]) == 1


# --- ages -----------------------------------------------------------------------------------------


def test_ages_are_those_of_the_results():
    detector, _ = sleeping(seconds=0.02)
    camera = Camera(rate=100, frames=10)
    stream = detector.stream(camera)
    seen = [frame.age_ns(time.monotonic_ns()) / 1e6 for frame, _ in stream]
    summary = stream.ages["cam"].summary()
    assert summary["count"] == len(seen) == 10
    assert 20 <= summary["p50_ms"] <= np.percentile(seen, 50)
    assert summary["max_ms"] <= max(seen)
    assert summary["p50_ms"] <= summary["p95_ms"] <= summary["p99_ms"] <= summary["max_ms"]


def test_frames_of_files_have_no_age():
    detector, _ = detector_over()
    frames = [Frame(WHITE, timestamp_ns=5, clock="media"), Frame(WHITE)]
    stream = detector.stream(frames)
    assert len(list(stream)) == 2
    assert stream.ages["images"].summary() == {"count": 0}
    assert len(stream.ages["images"]) == 0
    with pytest.raises(TypeError):
        stream.ages["images"] = Ages()


def test_percentiles_of_the_newest_ages():
    ages = Ages(window=1000)
    for value in range(1000, 0, -1):
        ages.add(value * 1_000_000)
    assert ages.summary() == pytest.approx(
        {"count": 1000, "p50_ms": 500.5, "p95_ms": 950.05, "p99_ms": 990.01, "max_ms": 1000}
    )
    for _ in range(600):
        ages.add(2_500_000)
    assert len(ages) == 1600
    summary = ages.summary()
    assert (summary["count"], summary["p50_ms"], summary["max_ms"]) == (1600, 2.5, 400)
    few = Ages()
    few.add(1_500_000)
    summary = few.summary()
    assert summary.pop("count") == 1
    assert set(summary.values()) == {1.5}


def test_the_stream_is_a_class_of_the_package():
    detector, _ = detector_over()
    assert isinstance(detector.stream([WHITE]), Stream)


@pytest.mark.parametrize("count", [1, 2])
def test_a_stream_that_may_wait_only_for_some_time(count):
    detector, _ = detector_over()
    cameras = [Interrupted(f"cam {number}") for number in range(count)]
    with detector.stream(cameras if count > 1 else cameras[0], wait=0.2) as stream:
        next(stream)
        for camera in cameras:
            camera.silent.set()
        wait_until_silent(stream)
        started = time.monotonic()
        with pytest.raises(SourceTimeout, match=r"cam 0.*there was no frame within 0.2 s"):
            next(stream)
        assert 0.2 <= time.monotonic() - started < 10
        for camera in cameras:
            camera.silent.clear()
        next(stream)  # the stream was not closed


class Interrupted(Camera):
    """A camera that is silent at times."""

    def __init__(self, name) -> None:
        super().__init__(name)
        self.silent = threading.Event()

    def read(self, timeout=None):
        if self.silent.is_set():
            time.sleep(timeout or 0)
            raise SourceTimeout(f"{self.name}: no frame")
        return super().read(timeout)


def wait_until_silent(stream):
    with pytest.raises(SourceTimeout):
        while True:
            next(stream)


@pytest.mark.parametrize("wait", [0, -1, float("nan"), "1", True])
def test_times_to_wait_are_positive(wait):
    detector, _ = detector_over()
    with pytest.raises(ConfigError, match=r"wait is .*, expected a number of seconds above 0"):
        detector.stream(Camera(), wait=wait)
