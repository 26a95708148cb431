"""Recordings of frames: what is on the disk, also after a kill and on a full disk."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.sources.videos import read_all
from y7edge import Frame, open_source
from y7edge.errors import ConfigError, OutputError
from y7edge.live import frame_recorder
from y7edge.live.frame_recorder import FrameRecorder
from y7edge.sources.replay import INDEX


def frame(number: int, **changed: Any) -> Frame:
    image = np.random.default_rng(number).integers(0, 256, (24, 32, 3), np.uint8)
    values: dict[str, Any] = {
        "timestamp_ns": 1_000_000 * number,
        "clock": "driver",
        "sequence": 2 * number,
        "source": "v4l2:///dev/video0",
        "rate": 30.0,
    }
    return Frame(**({"image": image} | values | changed))


def record(folder: Path, frames: list[Frame], quality: int | None = None) -> FrameRecorder:
    with FrameRecorder(folder, quality) as recorder:
        for one in frames:
            while not recorder.add(one):
                time.sleep(0.005)
    return recorder


def test_what_was_recorded_is_replayed(tmp_path: Path) -> None:
    given = [frame(number) for number in range(20)]
    recorder = record(tmp_path / "r", given)
    assert recorder.frames == 20
    found = read_all(f"replay://{tmp_path}/r")
    for one, other in zip(given, found, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        assert other.clock == "recorded"
        for name in ("timestamp_ns", "sequence", "source", "rate"):
            assert getattr(one, name) == getattr(other, name)
    lines = [json.loads(line) for line in (tmp_path / "r" / INDEX).read_text().splitlines()]
    assert lines[3] == {
        "file": "00000003.png",
        "timestamp_ns": 3_000_000,
        "clock": "driver",
        "sequence": 6,
        "format": "bgr",
        "source": "v4l2:///dev/video0",
        "rate": 30.0,
    }


def test_jpeg_is_smaller_and_close(tmp_path: Path) -> None:
    smooth = cv2.resize(frame(0).image[:4, :4], (640, 480))
    given = frame(0, image=np.asarray(smooth, np.uint8))
    for quality in (None, 95, 40):
        record(tmp_path / str(quality), [given], quality)
    sizes = [sum(p.stat().st_size for p in (tmp_path / q).iterdir()) for q in ("None", "95", "40")]
    assert sizes[0] > sizes[1] > sizes[2]
    (found,) = read_all(f"replay://{tmp_path}/95")
    assert np.abs(found.image.astype(int) - smooth).max() < 30


@pytest.mark.parametrize("layout", ["rgb", "nv12", "padded nv12", "grey", "bgra"])
def test_other_formats_are_converted(tmp_path: Path, layout: str) -> None:
    colour = np.full((24, 32, 3), (200, 90, 30), np.uint8)
    if layout == "rgb":
        given = frame(0, image=colour[..., ::-1].copy(), format="rgb")
    elif layout.endswith("nv12"):
        i420 = cv2.cvtColor(colour, cv2.COLOR_BGR2YUV_I420)
        nv12 = np.zeros((36, 48 if "padded" in layout else 32), np.uint8)
        nv12[:24, :32] = i420[:24]
        chroma = i420[24:].reshape(2, -1)
        nv12[24:, 0:32:2], nv12[24:, 1:32:2] = (plane.reshape(12, 16) for plane in chroma)
        given = frame(0, image=nv12[:, :32], format="nv12")
    elif layout == "grey":
        colour[:] = 77
        given = frame(0, image=colour[..., 0].copy())
    else:
        given = frame(0, image=np.dstack([colour, np.zeros((24, 32), np.uint8)]))
    record(tmp_path, [given])
    (found,) = read_all(f"replay://{tmp_path}")
    assert found.format == "bgr"
    assert np.abs(found.image.astype(int) - colour).max() <= 4
    assert json.loads((tmp_path / INDEX).read_text())["format"] == given.format


def test_a_frame_is_copied(tmp_path: Path) -> None:
    given = frame(1)
    expected = given.image.copy()
    with FrameRecorder(tmp_path, None) as recorder:
        recorder.add(given)
        given.image[:] = 0
    np.testing.assert_array_equal(read_all(f"replay://{tmp_path}")[0].image, expected)


def test_frames_without_a_time_or_a_source(tmp_path: Path) -> None:
    record(tmp_path, [frame(0, timestamp_ns=None, source=None), frame(1, source="\x1b\n" * 2000)])
    first, second = read_all(f"replay://{tmp_path}")
    assert first.timestamp_ns is not None
    assert first.source == "unknown"
    assert second.source is not None
    assert len(second.source) == 1024


def test_a_slow_disk_drops_frames_and_nobody_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    encode = cv2.imencode

    def slow(*arguments: Any) -> Any:
        release.wait(60)
        return encode(*arguments)

    monkeypatch.setattr(cv2, "imencode", slow)
    with FrameRecorder(tmp_path) as recorder:
        started = time.monotonic()
        taken = [recorder.add(frame(number)) for number in range(100)]
        took = time.monotonic() - started
        release.set()
    assert took < 30
    assert 8 <= sum(taken) <= 9
    assert (recorder.frames, recorder.dropped) == (sum(taken), 100 - sum(taken))
    assert len(read_all(f"replay://{tmp_path}")) == sum(taken)


def test_a_recording_is_continued(tmp_path: Path) -> None:
    record(tmp_path, [frame(0), frame(1)])
    with (tmp_path / INDEX).open("ab") as index:
        index.write(b'{"file": "000' + b"\0" * 70_000)  # a power failure
    (tmp_path / "00000007.png").write_bytes(b"without a line")
    record(tmp_path, [frame(2)])
    assert [f.sequence for f in read_all(f"replay://{tmp_path}")] == [0, 2, 4]
    assert (tmp_path / "00000008.png").exists()


def test_only_an_incomplete_line_is_left(tmp_path: Path) -> None:
    (tmp_path / INDEX).write_bytes(b"x" * 200_000)
    record(tmp_path, [frame(2)])
    assert [f.sequence for f in read_all(f"replay://{tmp_path}")] == [4]


@pytest.mark.parametrize("kind", ["other files", "file", "index is a link", "in use", "no access"])
def test_folders_that_are_refused(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "r"
    problem = {
        "other files": r"expected an empty folder, or a recording with frames\.jsonl; found 1 entr",
        "file": "a file exists there",
        "index is a link": "a link exists there",
        "in use": "another process or thread is recording into it",
        "no access": "cannot write a recording",
    }[kind]
    if kind == "file":
        folder.touch()
    elif kind == "no access":
        folder = Path("/proc/y7edge")
    else:
        folder.mkdir()
    if kind == "other files":
        (folder / "thesis.txt").touch()
    elif kind == "index is a link":
        (folder / INDEX).symlink_to("/etc/passwd")
    if kind == "in use":
        with FrameRecorder(folder), pytest.raises(OutputError, match=problem):
            FrameRecorder(folder)
        return
    with pytest.raises(OutputError, match=problem):
        FrameRecorder(folder)
    assert not (folder.is_dir() and (folder / "00000000.jpg").exists())


def test_quality_is_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="quality is 0, expected 1 to 100, or None for PNG"):
        FrameRecorder(tmp_path, 0)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let writing fail as on a full disk, for files of more than ``size`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_an_index_that_does_not_fit_has_whole_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frame_recorder, "_SYNC_SECONDS", 0)
    recorder = FrameRecorder(tmp_path, None)
    with largest_file(3000):
        end = time.monotonic() + 60
        while recorder.problem is None and time.monotonic() < end:
            recorder.add(frame(0))
            time.sleep(0.002)
        with pytest.raises(OutputError, match=r"recording to .*: the file is larger than the"):
            recorder.close()
    recorder.close()  # raised once
    assert not recorder.add(frame(1))
    content = (tmp_path / INDEX).read_bytes()
    assert content.endswith(b"\n")
    assert len(read_all(f"replay://{tmp_path}")) == content.count(b"\n") == recorder.frames > 0


def test_an_image_that_does_not_fit_has_no_line(tmp_path: Path) -> None:
    recorder = FrameRecorder(tmp_path, None)
    large = np.random.default_rng(0).integers(0, 256, (99, 99, 3), np.uint8)
    with largest_file(4000):
        assert recorder.add(frame(0))
        assert recorder.add(frame(1, image=large))
        with pytest.raises(OutputError, match=r"recording to .*: the file is larger than the"):
            recorder.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000000.png", INDEX]
    assert len(read_all(f"replay://{tmp_path}")) == recorder.frames == 1


KILLED = """
import sys, time
import numpy as np
from y7edge import Frame
from y7edge.live.frame_recorder import FrameRecorder

recorder = FrameRecorder(sys.argv[1])
for number in range(10**6):
    recorder.add(Frame(np.zeros((48, 64, 3), np.uint8), timestamp_ns=number, sequence=number))
    time.sleep(0.002)
    if number % 50 == 0:
        print(recorder.frames, flush=True)
"""


def test_a_recorder_that_is_killed_leaves_a_recording(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) > 100:
                break
        process.kill()
    frames = read_all(f"replay://{tmp_path}")
    assert len(frames) >= int(line)
    assert [frame.sequence for frame in frames] == sorted(frame.sequence for frame in frames)
    FrameRecorder(tmp_path).close()  # the lock is gone


def test_lines_follow_their_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power failure at any moment leaves no line whose image is not on the disk."""
    synced, sync = [], os.fsync

    def fsync(file: int) -> None:
        sync(file)
        name = Path(f"/proc/self/fd/{file}").readlink().name
        synced.append((name, (tmp_path / "r" / INDEX).read_text().count("\n")))

    monkeypatch.setattr(os, "fsync", fsync)
    record(tmp_path / "r", [frame(number) for number in range(3)])
    assert synced == [*((f"0000000{n}.png", 0) for n in range(3)), (INDEX, 3)]


def test_no_file_stays_open(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    record(tmp_path, [frame(number) for number in range(100)])
    with open_source(f"replay://{tmp_path}") as source:
        source.read()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
