"""Reading images from files, folders, patterns and videos, and saving drawn images."""

from __future__ import annotations

import os
import resource
from contextlib import nullcontext
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from y7edge.cli.saving import ImageWriter
from y7edge.errors import OutputError, SourceError
from y7edge.sources.files import InputImage, find_inputs, read_input


def read_all(source: Path | str) -> list[InputImage]:
    return [image for path in find_inputs(str(source))[0] for image in read_input(path)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images, a video of three frames, and a file that is neither."""
    for name, value in (("b.png", 20), ("a.jpg", 10)):
        cv2.imwrite(str(tmp_path / name), np.full((24, 32, 3), value, np.uint8))
    _write_video(tmp_path / "v.avi", frames=3)
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def _write_video(path: Path, frames: int, rate: float = 10.0, codec: str = "MJPG") -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), rate, (32, 24))
    assert writer.isOpened()
    for index in range(frames):
        # Noise, so that a file is frames rather than headers and indices.
        writer.write(np.random.default_rng(index).integers(0, 256, (24, 32, 3), np.uint8))
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
    images = read_all(f"{folder}/{source}")
    assert [(p.source.name, p.frame) for p in images] == expected
    assert all(p.image.shape == (24, 32, 3) and p.image.dtype == np.uint8 for p in images)


def test_relative_pattern(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert [p.source for p in read_all("*.jpg")] == [Path("a.jpg")]


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
    found, others = find_inputs(str(folder))
    assert [path.name for path in found] == ["a.jpg", "b.png", "v.avi"]
    assert [path.name for path in others] == ["._a.jpg", "c.jpg", "notes.txt"]


@pytest.mark.parametrize("name", ["a.ts", "a.WMV", "a.asf", "a.3gp", "a.mpg", "a.m2ts", "a.flv"])
def test_videos_in_a_folder(tmp_path: Path, name: str) -> None:
    _write_video(tmp_path / "a.mp4", frames=3, codec="mp4v")
    (tmp_path / "a.mp4").rename(tmp_path / name)
    assert [image.frame for image in read_all(tmp_path)] == [0, 1, 2]


def test_a_video_under_any_name(folder: Path) -> None:
    assert len(read_all((folder / "v.avi").rename(folder / "recording.dat"))) == 3


@pytest.mark.parametrize(("frames", "expected"), [(1, [None]), (4, [0, 1, 2, 3])])
def test_gif(tmp_path: Path, frames: int, expected: list[int | None]) -> None:
    first, *rest = (Image.new("RGB", (32, 24), (60 * n, 0, 0)) for n in range(frames))
    first.save(tmp_path / "a.gif", save_all=True, append_images=rest, duration=[40, 400, 40, 40])
    images = read_all(tmp_path / "a.gif")
    assert [image.frame for image in images] == expected
    assert [round(int(image.image[0, 0, 2]), -1) for image in images] == [0, 60, 120, 180][:frames]


@pytest.mark.parametrize(("suffix", "codec"), [("avi", "MJPG"), ("mkv", "mp4v"), ("flv", "FLV1")])
@pytest.mark.parametrize("fraction", [1, 0.8, 0.5])
def test_truncated_video(tmp_path: Path, suffix: str, codec: str, fraction: float) -> None:
    path = tmp_path / f"a.{suffix}"
    _write_video(path, frames=100, codec=codec)
    os.truncate(path, int(path.stat().st_size * fraction))
    frames = []
    with nullcontext() if fraction == 1 else pytest.raises(SourceError) as caught:
        for image in read_input(path):
            frames.append(image.frame)
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
    image = np.zeros((24, 32, 3), np.uint8)
    with (
        pytest.raises(OutputError, match=r"\\udcff.mp4.*rename it"),
        ImageWriter(tmp_path / "out") as writer,
    ):
        writer.add(InputImage(path, image, 0), image)


def test_writer_keeps_names_apart(tmp_path: Path) -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    with ImageWriter(tmp_path / "out") as writer:
        writer.add(InputImage(Path("left/a.png"), image), image)
        writer.add(InputImage(Path("right/a.png"), image + 9), image + 9)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a-2.png", "a.png"]
    assert cv2.imread(str(tmp_path / "out" / "a-2.png")).max() == 9


@pytest.mark.parametrize("frame", [None, 0])
def test_writer_never_overwrites_what_is_read(folder: Path, frame: int | None) -> None:
    source = folder / ("a.jpg" if frame is None else "v.mp4")
    (folder / "v.avi").rename(folder / "v.mp4")
    before = source.read_bytes()
    image = np.zeros((24, 32, 3), np.uint8)
    with pytest.raises(OutputError, match="another folder"), ImageWriter(folder) as writer:
        writer.add(InputImage(source, image, frame), image)
    assert source.read_bytes() == before


def test_writer_writes_a_video(tmp_path: Path) -> None:
    with ImageWriter(tmp_path) as writer:
        for index in range(4):
            image = np.full((24, 32, 3), 50 * index, np.uint8)
            writer.add(InputImage(Path("v.avi"), image, index), image)
    assert [p.name for p in tmp_path.iterdir()] == ["v.mp4"]
    assert len(read_all(tmp_path / "v.mp4")) == 4


@pytest.mark.parametrize("rate", [0.5, 10, 29.97, 60, 240])
def test_writer_keeps_the_frame_rate(tmp_path: Path, rate: float) -> None:
    _write_video(tmp_path / "v.avi", frames=7, rate=rate)
    with ImageWriter(tmp_path / "out") as writer:
        for image in read_all(tmp_path / "v.avi"):
            writer.add(image, image.image)
    saved = read_all(tmp_path / "out" / "v.mp4")
    assert [image.frame for image in saved] == list(range(7))
    assert saved[0].rate == pytest.approx(rate, rel=1e-3)


def test_writer_keeps_frames_of_another_size(tmp_path: Path) -> None:
    with ImageWriter(tmp_path) as writer:
        for index, height in enumerate((24, 48, 24)):
            image = np.zeros((height, 32, 3), np.uint8)
            writer.add(InputImage(Path("v.avi"), image, index), image)
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
                writer.add(InputImage(Path("v.avi"), noise, index), noise)
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
        writer.add(InputImage(Path(name), image), image)
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
        writer.add(InputImage(Path("a.webp"), image), image)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_writer_leaves_no_partial_video(tmp_path: Path) -> None:
    image = np.zeros((24, 32, 3), np.uint8)
    with pytest.raises(RuntimeError), ImageWriter(tmp_path) as writer:
        writer.add(InputImage(Path("v.avi"), image, 0), image)
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
