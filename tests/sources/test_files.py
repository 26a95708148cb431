"""Images, videos, folders and patterns as sources."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.sources.videos import read_all, write_video
from y7edge import Frame, open_source
from y7edge.errors import SourceError
from y7edge.sources.files import Files


def number(frame: Frame) -> int | None:
    """The number of a frame in its video; None for a still image."""
    return None if frame.timestamp_ns is None else frame.sequence


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images, a video of three frames, and a file that is neither."""
    for name, value in (("b.png", 20), ("a.jpg", 10)):
        cv2.imwrite(str(tmp_path / name), np.full((24, 32, 3), value, np.uint8))
    write_video(tmp_path / "v.avi", frames=3)
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a.jpg", [("a.jpg", None)]),
        ("", [("a.jpg", None), ("b.png", None), ("v.avi", 0), ("v.avi", 1), ("v.avi", 2)]),
        ("*.png", [("b.png", None)]),
        ("**/[ab].*", [("a.jpg", None), ("b.png", None)]),
        ("v.avi", [("v.avi", 0), ("v.avi", 1), ("v.avi", 2)]),
    ],
    ids=["file", "folder", "pattern", "pattern over folders", "video"],
)
def test_sources(folder: Path, source: str, expected: list[tuple[str, int | None]]) -> None:
    images = read_all(f"{folder}/{source}")
    assert [(Path(str(p.source)).name, number(p)) for p in images] == expected
    assert all(p.image.shape == (24, 32, 3) and p.image.dtype == np.uint8 for p in images)


def test_relative_pattern(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert [p.source for p in read_all("*.jpg")] == ["a.jpg"]


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("nothing.jpg", "found nothing"),
        ("*.gif", "found nothing"),
        ("empty", "a folder of images or videos"),
        ("**x.jpg", "a pattern such as"),
        ("notes.txt", "notes.txt"),
        ("*.txt", "none among 1 entries"),
        ("broken.mp4", "no frame"),
        ("pipe.mp4", "found a pipe"),
        ("pipe.dat", "found a pipe"),
        ("link.jpg", "cannot read the image"),
        ("link.mp4", "cannot be read: No such file"),
    ],
)
def test_unreadable_sources(folder: Path, source: str, problem: str) -> None:
    (folder / "empty").mkdir()
    (folder / "broken.mp4").write_bytes(b"no video")
    for suffix in ("mp4", "dat"):
        os.mkfifo(folder / f"pipe.{suffix}")
    for suffix in ("jpg", "mp4"):
        (folder / f"link.{suffix}").symlink_to("missing")
    with pytest.raises(SourceError, match=problem):
        read_all(folder / source)


def test_other_entries_are_skipped(folder: Path) -> None:
    (folder / "c.jpg").mkdir()
    (folder / "._a.jpg").touch()
    opened = open_source(str(folder))
    assert isinstance(opened, Files)
    assert [path.name for path in opened.paths] == ["a.jpg", "b.png", "v.avi"]
    assert [path.name for path in opened.skipped] == ["._a.jpg", "c.jpg", "notes.txt"]


@pytest.mark.parametrize("name", ["a.ts", "a.WMV", "a.asf", "a.3gp", "a.mpg", "a.m2ts", "a.flv"])
def test_videos_in_a_folder(tmp_path: Path, name: str) -> None:
    write_video(tmp_path / "a.mp4", frames=3, codec="mp4v")
    (tmp_path / "a.mp4").rename(tmp_path / name)
    assert [number(image) for image in read_all(tmp_path)] == [0, 1, 2]


def test_a_video_under_any_name(folder: Path) -> None:
    assert len(read_all((folder / "v.avi").rename(folder / "recording.dat"))) == 3


@pytest.mark.parametrize(("frames", "expected"), [(1, [None]), (4, [0, 1, 2, 3])])
def test_gif(tmp_path: Path, frames: int, expected: list[int | None]) -> None:
    first, *rest = (Image.new("RGB", (32, 24), (60 * n, 0, 0)) for n in range(frames))
    first.save(tmp_path / "a.gif", save_all=True, append_images=rest, duration=[40, 400, 40, 40])
    images = read_all(tmp_path / "a.gif")
    assert [number(image) for image in images] == expected
    assert [round(int(image.image[0, 0, 2]), -1) for image in images] == [0, 60, 120, 180][:frames]


@pytest.mark.parametrize(("suffix", "codec"), [("avi", "MJPG"), ("mkv", "mp4v"), ("flv", "FLV1")])
@pytest.mark.parametrize("fraction", [1, 0.8, 0.5])
def test_truncated_video(tmp_path: Path, suffix: str, codec: str, fraction: float) -> None:
    path = tmp_path / f"a.{suffix}"
    write_video(path, frames=100, codec=codec)
    os.truncate(path, int(path.stat().st_size * fraction))
    frames = []
    with nullcontext() if fraction == 1 else pytest.raises(SourceError) as caught:
        for image in open_source(path):
            frames.append(number(image))
    if caught is None:
        assert frames == list(range(100))
    else:
        assert 100 * fraction - 20 < len(frames) < 100
        assert f"truncated: read {len(frames)} frames, expected 100" in str(caught.value)


def test_a_video_of_too_many_pixels(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("Y7EDGE_MAX_PIXELS", "100")
    with pytest.raises(SourceError, match=r"v\.avi: has 32x24 pixels; at most 100 "):
        read_all(folder / "v.avi")


def test_a_video_whose_name_is_not_utf8(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.mp4"))
    path.write_bytes(b"")
    with pytest.raises(SourceError, match=r"\\udcff.mp4.*rename it"):
        read_all(path)
