"""Files and recordings that are played in real time."""

from __future__ import annotations

import gc
import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.sources.videos import write_video
from y7edge import Frame, SourceSkipped, SourceTimeout, open_source
from y7edge.errors import ConfigError, SourceError
from y7edge.sources import pacing
from y7edge.sources.base import Source, Status
from y7edge.sources.pacing import Paced

IMAGE = np.zeros((4, 4, 3), np.uint8)


class Listed(Source):
    """Returns or raises what a list contains."""

    name, live = "listed", False

    def __init__(self, found: Sequence[Frame | Exception]) -> None:
        self._found, self.closed, self.taken = iter(found), False, 0

    def read(self, timeout: float | None = None) -> Frame | None:
        self.taken += 1
        found = next(self._found, None)
        if isinstance(found, Exception):
            raise found
        return found

    @property
    def status(self) -> Status:
        return Status("running", "y7edge", "list")

    def close(self) -> None:
        self.closed = True


def frames(*ms: int, clock: str = "recorded") -> list[Frame]:
    return [
        Frame(IMAGE, timestamp_ns=1_000_000 * t, clock=clock, sequence=n, source="camera")  # type: ignore[arg-type]
        for n, t in enumerate(ms)
    ]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    gc.collect()
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if not [t for t in threading.enumerate() if t.name.startswith("y7edge listed")]:
            return
        time.sleep(0.01)
    pytest.fail("a thread of a paced source is still running")


@pytest.mark.parametrize(("options", "factor"), [({}, 1.0), ({"speed": 4.0}, 4), ({"rate": 50}, 0)])
def test_frames_come_at_their_times(options: dict[str, float], factor: float) -> None:
    source = Listed(frames(5000, 5040, 5100, 5300, 5320))
    with Paced(source, **options) as paced:
        started, come = time.monotonic(), {}
        while (frame := paced.read()) is not None:
            come[frame.sequence] = time.monotonic() - started
    expected = [t / factor for t in (0, 0.04, 0.1, 0.3, 0.32)] if factor else np.arange(5) / 50
    # A busy machine delays frames, and drops some, but none comes before its time.
    assert all(at > expected[number] - 1e-3 for number, at in come.items())
    assert max(come) == 4
    assert source.closed


def test_a_slow_reader_gets_the_newest_frame() -> None:
    with Paced(Listed(frames(*range(0, 400, 2)))) as paced:
        seen = []
        while (frame := paced.read()) is not None:
            seen.append(frame)
            time.sleep(0.05)
        status = paced.status
    assert len(seen) < 100
    assert seen[-1].sequence == 199  # the last one is not dropped
    assert status.state == "ended"
    assert status.frames == 200 == status.dropped + len(seen)
    assert seen[-1].dropped == status.dropped
    assert all(a.sequence < b.sequence for a, b in itertools.pairwise(seen))


def test_times_of_recordings_are_kept_and_files_get_new_ones() -> None:
    with Paced(Listed(frames(7, 60_000))) as paced:
        frame = paced.read()
        assert frame is not None
        assert (frame.clock, frame.timestamp_ns) == ("recorded", 7_000_000)
    with Paced(Listed(frames(7, 8, clock="media")), rate=0.02) as paced:
        frame = paced.read()
        assert frame is not None
        assert (frame.clock, frame.rate) == ("arrival", 0.02)
        age = frame.age_ns(time.monotonic_ns())
        assert age is not None
        assert 0 <= age < 5e9


@pytest.mark.parametrize("ms", [(9000, 10, 30), (0, 0, 0)])
def test_times_that_go_back(ms: tuple[int, ...]) -> None:
    """As in a recording that continues after a restart of the machine."""
    with Paced(Listed(frames(*ms))) as paced:
        started = time.monotonic()
        assert [frame.sequence for frame in paced][-1] == 2
        assert time.monotonic() - started < 5


def test_errors_are_raised_in_the_thread_of_the_reader() -> None:
    found = [*frames(0, 10), SourceSkipped("bad"), *frames(20)]
    with Paced(Listed(found)) as paced:
        seen = []
        while True:
            try:
                frame = paced.read(30)
            except SourceSkipped as error:
                seen.append(str(error))
                continue
            if frame is None:
                break
            seen.append("frame")
    assert seen.count("bad") == 1
    assert seen[-1] == "frame"


def test_every_file_that_is_skipped_is_reported() -> None:
    """Also if they follow each other faster than they are read."""
    source = Listed([SourceSkipped("1"), *frames(0), SourceSkipped("3"), SourceError("lost")])
    with Paced(source) as paced:
        with pytest.raises(SourceSkipped, match="1"):
            paced.read(30)
        while source.taken < 4:
            time.sleep(0.001)
        with pytest.raises(SourceSkipped, match="3"):
            paced.read(30)
        assert paced.read(30) is not None
        for _ in range(2):
            with pytest.raises(SourceError, match="lost"):
                paced.read(30)


@pytest.mark.parametrize("later", [10**18, 1 << 62])
def test_a_recording_that_was_continued_much_later(
    later: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pacing, "_LONGEST", 0.05)
    last = replace(frames(0)[0], timestamp_ns=later, sequence=1)
    with Paced(Listed([*frames(0), last]), speed=0.1) as paced:
        started = time.monotonic()
        assert [frame.sequence for frame in paced][-1] == 1
        assert 0.49 < time.monotonic() - started < 20


def test_an_unexpected_error_ends_the_source() -> None:
    with Paced(Listed([ConfigError("wrong"), *frames(1)])) as paced:
        for _ in range(2):
            with pytest.raises(ConfigError, match="wrong"):
                paced.read(30)
        paced.close()
        assert paced.read(30) is None


def test_a_time_out_is_no_end() -> None:
    with Paced(Listed(frames(0, 60_000))) as paced:
        assert paced.read(30) is not None
        with pytest.raises(SourceTimeout, match=r"listed: there was no frame within 0\.05 s"):
            paced.read(0.05)
        assert paced.status.state == "running"
        started = time.monotonic()
        paced.close()
        assert time.monotonic() - started < 5
        assert paced.read() is None
        assert paced.status.state == "closed"


def test_close_wakes_the_reader() -> None:
    paced = Paced(Listed(frames(0, 60_000)))
    assert paced.read(30) is not None
    reader = threading.Thread(target=paced.read)
    reader.start()
    paced.close()
    reader.join(30)
    assert not reader.is_alive()


def test_nothing_is_played_before_the_first_read() -> None:
    source = Listed(frames(0, 1, 2))
    with Paced(source) as paced:
        time.sleep(0.05)
        assert source.taken == 0
        frame = paced.read(30)
        assert frame is not None
        assert paced.status.frames >= 1


def test_a_source_that_is_forgotten_is_closed() -> None:
    source = Listed(frames(0, 60_000))
    paced = Paced(source)
    assert paced.read(30) is not None
    del paced
    gc.collect()
    assert source.closed


def test_a_video_in_real_time(tmp_path: Path) -> None:
    write_video(tmp_path / "v.avi", frames=4, rate=20.0)
    with open_source(tmp_path / "v.avi", realtime=1) as source:
        assert source.live
        started = time.monotonic()
        assert [frame.sequence for frame in source][-1] == 3
        assert time.monotonic() - started > 0.13
    (tmp_path / "a.png").touch()
    with pytest.raises(ConfigError, match="images have no times"):
        open_source(tmp_path / "a.png", realtime=1)
