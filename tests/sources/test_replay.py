"""Recordings that are replayed, complete, damaged and malicious."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sources.videos import read_all
from y7edge import SourceError, SourceSkipped, open_source
from y7edge.errors import ConfigError, DataError
from y7edge.sources.replay import INDEX, entry_of

LINE: dict[str, Any] = {
    "file": "0.png",
    "timestamp_ns": 5,
    "clock": "sensor",
    "sequence": 3,
    "format": "nv12",
    "source": "csi://0",
    "rate": 30.0,
}


def record(folder: Path, count: int, step_ms: int = 40) -> Path:
    folder.mkdir(exist_ok=True)
    with (folder / INDEX).open("w") as index:
        for number in range(count):
            cv2.imwrite(str(folder / f"{number}.png"), np.full((8, 12, 3), number, np.uint8))
            changed = {
                "file": f"{number}.png",
                "timestamp_ns": 7_000_000_000 + 1_000_000 * step_ms * number,
                "sequence": 2 * number,
            }
            index.write(json.dumps(LINE | changed) + "\n")
    return folder


def test_all_frames_in_order_with_their_times(tmp_path: Path) -> None:
    folder = record(tmp_path / "a folder", 4)
    with open_source(f"replay://{folder}") as source:
        assert not source.live
        frames = list(source)
        assert source.status.state == "ended"
        assert source.status.frames == 4
        assert source.read() is None
    assert [frame.image[0, 0, 0] for frame in frames] == [0, 1, 2, 3]
    assert [frame.sequence for frame in frames] == [0, 2, 4, 6]
    assert [frame.timestamp_ns for frame in frames] == [
        7_000_000_000 + 40_000_000 * n for n in range(4)
    ]
    first = frames[0]
    assert (first.clock, first.format, first.source, first.rate, first.dropped) == (
        *("recorded", "bgr", "csi://0"),
        *(30.0, 0),
    )
    assert first.age_ns(time.monotonic_ns()) is None


def test_recorded_times(tmp_path: Path) -> None:
    folder = record(tmp_path, 5, step_ms=60)
    with open_source(f"replay://{folder}?speed=2") as source:
        assert source.live
        started = time.monotonic()
        frames = list(source)
    assert time.monotonic() - started > 4 * 0.06 / 2 - 1e-3
    assert frames[-1].image[0, 0, 0] == 4
    assert frames[-1].timestamp_ns == 7_240_000_000
    with pytest.raises(ConfigError, match=r"option speed is '0', expected a number from 0\.01"):
        open_source(f"replay://{folder}", speed="0")


@pytest.mark.parametrize("end", [b'{"file": "', b"\0" * 10_000, b'{"file"' + b"\0" * 5000])
def test_an_incomplete_last_line_is_ignored(tmp_path: Path, end: bytes) -> None:
    with (record(tmp_path, 3) / INDEX).open("ab") as index:
        index.write(end)
    with pytest.warns(UserWarning, match=r"line 4 of frames\.jsonl is incomplete, and is ignored"):
        assert len(read_all(f"replay://{tmp_path}")) == 3


def test_damaged_frames_are_reported_and_the_others_are_replayed(tmp_path: Path) -> None:
    record(tmp_path, 5)
    (tmp_path / "1.png").unlink()
    os.truncate(tmp_path / "2.png", 0)
    lines = (tmp_path / INDEX).read_text().splitlines()
    lines[3] = "damaged"
    (tmp_path / INDEX).write_text("\n".join(lines) + "\n")
    seen: list[str] = []
    with open_source(f"replay://{tmp_path}") as source:
        while True:
            try:
                frame = source.read()
            except SourceSkipped as error:
                assert source.status.state == "running"
                assert source.status.problem == str(error)
                seen.append(str(error))
                continue
            if frame is None:
                break
            seen.append(str(frame.image[0, 0, 0]))
    assert (seen[0], seen[4]) == ("0", "4")
    for line, error, problem in zip(
        (2, 3, 4), seen[1:4], ("No such", "empty", "JSON"), strict=True
    ):
        assert f"line {line} of frames.jsonl" in error
        assert problem in error


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        *[
            ({"file": name}, "the name of an image in the same folder")
            for name in ("../0.png", "/etc/passwd", "a/0.png", "..", ".", "a\\0.png", "./0.png")
        ],
        *[({"file": v}, "printable") for v in ("\x1b[2J.png", "", None, 3, ["0.png"], "a" * 2000)],
        ({"file": "0.png\u0000"}, "printable"),
        *[({"timestamp_ns": v}, "timestamp_ns is") for v in (-1, 1.5, "5", None, True, 10**30)],
        *[({"sequence": v}, "sequence is") for v in (-1, 1.5, "5", None, [1], 10**30)],
        *[({"clock": v}, "clock is") for v in ("wall", None, 3, ["sensor"], {})],
        *[({"format": v}, "format is") for v in ("BGR", None, 3, [])],
        *[({"source": v}, "source is") for v in ("a\nb", None, "\u202e", "")],
        *[({"rate": v}, "rate is") for v in (0, -1, "30", True, [], 1e9)],
    ],
)
def test_lines_that_are_refused(changed: dict[str, Any], problem: str) -> None:
    assert entry_of(json.dumps(LINE).encode()).sequence == 3
    with pytest.raises(DataError, match=problem):
        entry_of(json.dumps(LINE | changed).encode())


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"[]", b"3", b"null", b"{", b"\xff", b"NaN", b"[" * 4000, b'{"rate": 1e999}'),
        *(b'{"timestamp_ns": ' + b"9" * 4000 + b"}", b'{"file": "\\ud800"}'),
    ],
)
def test_lines_that_are_no_record(line: bytes) -> None:
    with pytest.raises(DataError):
        entry_of(line)


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([*LINE, "other"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=4,
        ),
    )
)
def test_any_record_is_an_entry_or_an_error(changed: dict[str, Any]) -> None:
    try:
        entry = entry_of(json.dumps(LINE | changed).encode())
    except DataError:
        return
    assert "/" not in entry.file
    assert entry.file not in (".", "..")


def test_a_pipe_and_a_device_are_not_opened(tmp_path: Path) -> None:
    record(tmp_path, 1)
    (tmp_path / "0.png").unlink()
    os.mkfifo(tmp_path / "0.png")
    with pytest.raises(SourceError, match="found a pipe"):
        read_all(f"replay://{tmp_path}")


def test_a_line_without_end(tmp_path: Path) -> None:
    record(tmp_path, 1)
    with (tmp_path / INDEX).open("ab") as index:
        index.write(b"x" * 10_000)
    with open_source(f"replay://{tmp_path}") as source:
        assert source.read() is not None
        with pytest.raises(SourceError, match=r"line 2 of frames\.jsonl has more than 4096 bytes"):
            source.read()
        assert source.status.state == "failed"
        assert source.read() is None


@pytest.mark.parametrize("place", ["nothing", "", "folder"])
def test_a_folder_that_is_not_a_recording(tmp_path: Path, place: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(SourceError, match=r"expected a folder with frames\.jsonl"):
        open_source(f"replay://{tmp_path / place if place else ''}")
