"""Saving images and videos with drawn boxes."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.sources.videos import read_all, write_video
from y7edge.cli.saving import ImageWriter
from y7edge.errors import OutputError
from y7edge.frames import Frame


def test_writer_keeps_names_apart(tmp_path: Path) -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    with ImageWriter(tmp_path / "out") as writer:
        writer.add(Frame(image, source="left/a.png"), image)
        writer.add(Frame(image + 9, source="right/a.png"), image + 9)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a-2.png", "a.png"]
    assert cv2.imread(str(tmp_path / "out" / "a-2.png")).max() == 9


@pytest.mark.parametrize("frame", [None, 0])
def test_writer_never_overwrites_what_is_read(tmp_path: Path, frame: int | None) -> None:
    source = tmp_path / ("a.jpg" if frame is None else "v.mp4")
    source.write_bytes(b"the only copy")
    before = source.read_bytes()
    image = np.zeros((24, 32, 3), np.uint8)
    with pytest.raises(OutputError, match="another folder"), ImageWriter(tmp_path) as writer:
        writer.add(Frame(image, timestamp_ns=frame, source=str(source)), image)
    assert source.read_bytes() == before


def test_writer_writes_a_video(tmp_path: Path) -> None:
    with ImageWriter(tmp_path) as writer:
        for index in range(4):
            image = np.full((24, 32, 3), 50 * index, np.uint8)
            writer.add(Frame(image, timestamp_ns=index, source="v.avi"), image)
    assert [p.name for p in tmp_path.iterdir()] == ["v.mp4"]
    assert len(read_all(tmp_path / "v.mp4")) == 4


@pytest.mark.parametrize("rate", [0.5, 10, 29.97, 60, 240])
def test_writer_keeps_the_frame_rate(tmp_path: Path, rate: float) -> None:
    write_video(tmp_path / "v.avi", frames=7, rate=rate)
    with ImageWriter(tmp_path / "out") as writer:
        for image in read_all(tmp_path / "v.avi"):
            writer.add(image, image.image)
    saved = read_all(tmp_path / "out" / "v.mp4")
    assert [frame.sequence for frame in saved] == list(range(7))
    assert saved[0].rate == pytest.approx(rate, rel=1e-3)


def test_writer_keeps_frames_of_another_size(tmp_path: Path) -> None:
    with ImageWriter(tmp_path) as writer:
        for index, height in enumerate((24, 48, 24)):
            image = np.zeros((height, 32, 3), np.uint8)
            writer.add(Frame(image, timestamp_ns=index, source="v.avi"), image)
    saved = read_all(tmp_path / "v.mp4")
    assert [image.image.shape for image in saved] == [(24, 32, 3)] * 3
    assert saved[0].rate == 25


@pytest.mark.parametrize("limit", [0, 40, 100_000])
def test_writer_replaces_no_video_on_a_full_disk(tmp_path: Path, limit: int) -> None:
    (tmp_path / "v.mp4").write_bytes(b"older")
    noise = np.random.default_rng(0).integers(0, 255, (240, 320, 3), np.uint8)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(OutputError, match=r"v\.mp4"), ImageWriter(tmp_path) as writer:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
            for index in range(30):
                writer.add(Frame(noise, timestamp_ns=index, source="v.avi"), noise)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["v.mp4"]
    assert (tmp_path / "v.mp4").read_bytes() == b"older"


@pytest.mark.parametrize(
    ("name", "saved"),
    [
        ("a.pgm", "a.png"),
        ("a.mpo", "a.jpg"),
        ("a.jfif", "a.jpg"),
        ("a.gif", "a.png"),
        ("a.unknown", "a.png"),
        ("a", "a.png"),
        ("a.JPG", "a.JPG"),
        ("a.tif", "a.tif"),
    ],
)
def test_writer_chooses_a_suffix_that_holds_the_image(
    tmp_path: Path, name: str, saved: str
) -> None:
    image = np.full((8, 8, 3), (200, 100, 50), np.uint8)
    with ImageWriter(tmp_path) as writer:
        writer.add(Frame(image, source=name), image)
    assert [path.name for path in tmp_path.iterdir()] == [saved]
    read = cv2.imread(str(tmp_path / saved)).astype(int)
    assert abs(read - image).max() <= 4


@pytest.mark.parametrize("mode", ["I;16", "P", "1", "RGBA", "LA"])
def test_writer_saves_images_of_every_mode(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (8, 6)).save(tmp_path / "a.png")
    with ImageWriter(tmp_path / "out") as writer:
        for image in read_all(tmp_path / "a.png"):
            writer.add(image, image.image)
    assert cv2.imread(str(tmp_path / "out" / "a.png")).shape == (6, 8, 3)


def test_writer_saves_what_is_too_large_for_its_format(tmp_path: Path) -> None:
    image = np.zeros((1, 16_384, 3), np.uint8)
    with ImageWriter(tmp_path) as writer:
        writer.add(Frame(image, source="a.webp"), image)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_writer_leaves_no_partial_video(tmp_path: Path) -> None:
    image = np.zeros((24, 32, 3), np.uint8)
    with pytest.raises(RuntimeError), ImageWriter(tmp_path) as writer:
        writer.add(Frame(image, timestamp_ns=0, source="v.avi"), image)
        raise RuntimeError
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_writer_needs_a_folder(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(OutputError, match=r"file.*: cannot write the images: "),
        ImageWriter(tmp_path / place),
    ):
        pytest.fail("entered")


def test_writer_refuses_a_video_whose_name_is_not_utf8(tmp_path: Path) -> None:
    path = os.fsdecode(b"\xff.avi")
    image = np.zeros((24, 32, 3), np.uint8)
    with (
        pytest.raises(OutputError, match=r"\\udcff.mp4.*rename it"),
        ImageWriter(tmp_path) as writer,
    ):
        writer.add(Frame(image, timestamp_ns=0, source=path), image)
