"""Images from files, folders, patterns and videos, and drawn ones into a folder."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from y7edge.cli.images import Album, SourceImage, open_source
from y7edge.errors import OutputError, SourceError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images, a video of three frames, and a file that is neither."""
    for name, value in (("b.png", 20), ("a.jpg", 10)):
        cv2.imwrite(str(tmp_path / name), np.full((24, 32, 3), value, np.uint8))
    _write_video(tmp_path / "v.avi", frames=3)
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def _write_video(path: Path, frames: int) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (32, 24))
    assert writer.isOpened()
    for index in range(frames):
        writer.write(np.full((24, 32, 3), 60 * index, np.uint8))
    writer.release()


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
    pictures = list(open_source(f"{folder}/{source}"))
    assert [(p.source.name, p.frame) for p in pictures] == expected
    assert all(p.image.shape == (24, 32, 3) and p.image.dtype == np.uint8 for p in pictures)


def test_relative_pattern(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert [p.source for p in open_source("*.jpg")] == [Path("a.jpg")]


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("nothing.jpg", "found nothing"),
        ("*.gif", "found nothing"),
        ("empty", "a folder of images or videos"),
        ("**x.jpg", "a pattern such as"),
        ("notes.txt", "notes.txt"),
        ("broken.mp4", "no frame"),
    ],
)
def test_unreadable_sources(folder: Path, source: str, problem: str) -> None:
    (folder / "empty").mkdir()
    (folder / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(SourceError, match=problem):
        list(open_source(str(folder / source)))


def test_album_keeps_names_apart(tmp_path: Path) -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    with Album(tmp_path / "out") as album:
        album.add(SourceImage(Path("left/a.png"), image), image)
        album.add(SourceImage(Path("right/a.png"), image + 9), image + 9)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a-2.png", "a.png"]
    assert cv2.imread(str(tmp_path / "out" / "a-2.png")).max() == 9


@pytest.mark.parametrize("frame", [None, 0])
def test_album_never_overwrites_what_is_read(folder: Path, frame: int | None) -> None:
    source = folder / ("a.jpg" if frame is None else "v.mp4")
    (folder / "v.avi").rename(folder / "v.mp4")
    before = source.read_bytes()
    image = np.zeros((24, 32, 3), np.uint8)
    with pytest.raises(OutputError, match="another folder"), Album(folder) as album:
        album.add(SourceImage(source, image, frame), image)
    assert source.read_bytes() == before


def test_album_writes_a_video(tmp_path: Path) -> None:
    with Album(tmp_path) as album:
        for index in range(4):
            image = np.full((24, 32, 3), 50 * index, np.uint8)
            album.add(SourceImage(Path("v.avi"), image, index), image)
    assert [p.name for p in tmp_path.iterdir()] == ["v.mp4"]
    assert len(list(open_source(str(tmp_path / "v.mp4")))) == 4


def test_album_leaves_no_half_video(tmp_path: Path) -> None:
    image = np.zeros((24, 32, 3), np.uint8)
    with pytest.raises(RuntimeError), Album(tmp_path) as album:
        album.add(SourceImage(Path("v.avi"), image, 0), image)
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_album_refuses_a_kind_that_cannot_be_written(tmp_path: Path) -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    with Album(tmp_path) as album, pytest.raises(OutputError):
        album.add(SourceImage(Path("a.unknown"), image), image)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_album_in_a_place_that_is_no_folder(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(OutputError, match=r"file.*: cannot write the images: "),
        Album(tmp_path / place),
    ):
        pytest.fail("entered")
