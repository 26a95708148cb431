"""Images, videos, folders and patterns as sources."""

from __future__ import annotations

import os
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.fake_model import FakeSession, make_manifest
from tests.sources.videos import read_all, write_video
from y7edge import Detector, Frame, open_source
from y7edge.artifact.manifest import InputInfo
from y7edge.errors import ConfigError, SourceError, SourceSkipped
from y7edge.sources.files import Files, read_ahead

VIDEO = cv2.VideoCapture


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
        ("nothing.jpg", "no file or folder of this name"),
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


def test_frames_of_a_video_have_their_times(tmp_path: Path) -> None:
    write_video(tmp_path / "v.avi", frames=4, rate=10.0)
    frames = read_all(tmp_path / "v.avi")
    assert [frame.timestamp_ns for frame in frames] == [0, 100_000_000, 200_000_000, 300_000_000]
    assert {frame.clock for frame in frames} == {"media"}
    assert {(frame.rate, frame.source) for frame in frames} == {(10.0, str(tmp_path / "v.avi"))}
    assert frames[0].age_ns(time.monotonic_ns()) is None


def test_frames_of_an_animation_have_their_times(tmp_path: Path) -> None:
    first, *rest = (Image.new("RGB", (32, 24), (60 * n, 0, 0)) for n in range(3))
    first.save(tmp_path / "a.gif", save_all=True, append_images=rest, duration=[40, 400, 40])
    times = [frame.timestamp_ns for frame in read_all(tmp_path / "a.gif")]
    assert times == [0, 40_000_000, 440_000_000]


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        ([0, 0, 0], [0, 100, 200]),  # a container without times
        ([0, 100, 50, 70], [0, 100, 200, 300]),
        ([0, 100, 50, 170, 220], [0, 100, 200, 300, 400]),
        ([0, float("nan"), 200], [0, 100, 200]),
    ],
)
def test_times_never_go_back(
    positions: list[float],
    expected: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_video(tmp_path / "v.avi", frames=len(positions), rate=10.0)
    given = iter(positions)

    class Video:
        def __init__(self, path: str) -> None:
            self._video = VIDEO(path)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._video, name)

        def get(self, key: int) -> float:
            return next(given) if key == cv2.CAP_PROP_POS_MSEC else float(self._video.get(key))

    monkeypatch.setattr(cv2, "VideoCapture", Video)
    times = [frame.timestamp_ns for frame in Files("v", [tmp_path / "v.avi"])]
    assert times == [1_000_000 * ms for ms in expected]


def test_reading_continues_after_a_bad_file(folder: Path) -> None:
    (folder / "a2.jpg").write_bytes(b"no image")
    os.truncate(folder / "v.avi", (folder / "v.avi").stat().st_size * 4 // 5)
    found: list[str] = []
    with open_source(folder) as source:
        for _ in range(20):
            try:
                frame = source.read()
            except SourceSkipped as error:
                found.append(f"error {error}"[len("error ") + len(str(folder)) + 1 :][:6])
                assert source.status.state == "running"
                assert source.status.problem == str(error)
                continue
            if frame is None:
                break
            found.append(Path(str(frame.source)).name)
        assert source.status.state == "ended"
        assert source.read() is None
    assert found[:3] == ["a.jpg", "a2.jpg", "b.png"]
    assert found[-1] == "v.avi:"  # truncated, reported after its frames
    assert set(found[3:-1]) == {"v.avi"}


def test_a_single_bad_file_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no image")
    with open_source(tmp_path / "a.jpg") as source:
        with pytest.raises(SourceError) as caught:
            source.read()
        assert not isinstance(caught.value, SourceSkipped)
        assert source.status.state == "failed"
        assert source.read() is None


@pytest.mark.parametrize("several", [False, True])
def test_detection_continues_after_a_bad_file(
    folder: Path, several: bool, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "a2.jpg").write_bytes(b"no image")
    manifest = make_manifest()
    uris = [str(folder), f"{folder}/*.png"] if several else str(folder)
    with Detector.from_session(FakeSession(manifest), manifest) as detector:
        found = [str(detections.source) for _, detections in detector.stream(uris)]
    expected = ["a.jpg", "b.png", *["v.avi"] * 3, *["b.png"] * several]
    assert sorted(Path(source).name for source in found) == sorted(expected)
    assert "a2.jpg" in caplog.text


@pytest.mark.parametrize(("options", "white"), [("", 1), ("?rate=50", 1), ("?levels=0-9000", 0)])
def test_a_stream_uses_the_levels_of_the_model(tmp_path: Path, options: str, white: int) -> None:
    image = np.full((64, 96), 1000, np.uint16)
    image[16:24, 8:16] = 2000
    cv2.imwrite(str(tmp_path / "a.png"), image)
    manifest = make_manifest(input=InputInfo("images", 1, 64, 96, levels=(1000, 2000)))
    with Detector.from_session(FakeSession(manifest), manifest) as detector:
        ((frame, found),) = detector.stream(f"{tmp_path}/a.png{options}")
    assert len(found) == white
    assert frame.image.dtype == np.uint8


def test_status_and_progress(folder: Path) -> None:
    source = open_source(folder)
    assert isinstance(source, Files)
    assert (source.status.state, source.status.frames, source.progress) == ("running", 0, 0)
    seen = [source.progress for _ in source]
    assert seen == pytest.approx([1 / 3, 2 / 3, 7 / 9, 8 / 9, 1])
    assert source.status.frames == 5
    assert (source.status.state, source.status.backend) == ("ended", "opencv")
    source.close()
    source.close()
    assert source.status.state == "closed"
    assert source.read() is None


@pytest.mark.parametrize(("loop", "rounds"), [(0, 1), (1, 2), (2, 3)])
def test_loop(folder: Path, loop: int, rounds: int) -> None:
    with open_source(folder, loop=loop) as source:
        frames = list(source)
    assert len(frames) == 5 * rounds
    video = [frame for frame in frames if str(frame.source).endswith(".avi")]
    assert [frame.sequence for frame in video] == list(range(3 * rounds))
    assert [frame.timestamp_ns for frame in video] == [n * 100_000_000 for n in range(3 * rounds)]
    still = [frame for frame in frames if str(frame.source).endswith(".png")]
    assert [(f.sequence, f.timestamp_ns) for f in still] == [(n, None) for n in range(rounds)]


def test_an_endless_loop(folder: Path) -> None:
    with open_source(f"{folder}/b.png?loop=-1") as source:
        assert [frame.sequence for _, frame in zip(range(50), source, strict=False)][-1] == 49


def test_an_endless_loop_ends_if_nothing_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no image")
    with open_source(tmp_path, loop=-1) as source:
        with pytest.raises(SourceError, match=r"a\.jpg"):
            source.read()
        assert source.read() is None


def test_levels(tmp_path: Path) -> None:
    deep = np.full((8, 8, 3), 3000, np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), deep)
    assert open_source(tmp_path / "a.png").read().image[0, 0, 0] == 3000 // 257  # type: ignore[union-attr]
    (frame,) = read_all(f"{tmp_path}/a.png?levels=2000-4000")
    assert frame.image[0, 0, 0] == 128


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"levels": "5-5"}, "option levels is '5-5', expected LOW-HIGH"),
        ({"levels": "0-70000"}, "option levels"),
        ({"levels": 3}, "option levels"),
        ({"loop": "x"}, "option loop"),
        ({"loop": -2}, "option loop"),
        ({"width": 3}, "unknown option 'width'"),
        ({"lop": 3}, "did you mean 'loop'"),
        ({"realtime": 2}, "option realtime"),
        ({"rate": 0}, "option rate"),
    ],
)
def test_options_that_are_refused(folder: Path, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        open_source(folder, **options)


def test_close_while_a_file_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, release = threading.Event(), threading.Event()

    def slow(path: Path, levels: object) -> np.ndarray[Any, Any]:
        reading.set()
        release.wait(30)
        return np.zeros((8, 8, 3), np.uint8)

    monkeypatch.setattr("y7edge.sources.files.read_image", slow)
    source = open_source(folder / "a.jpg")
    reader = threading.Thread(target=source.read)
    reader.start()
    assert reading.wait(30)
    started = time.monotonic()
    source.close()
    took = time.monotonic() - started
    release.set()
    reader.join(30)
    assert not reader.is_alive()
    assert took < 5  # and not as long as the file takes
    assert source.status.state == "closed"
    assert source.read() is None


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (32, 24)).save(tmp_path / "a.jpg", exif=exif)
    assert read_all(tmp_path / "a.jpg")[0].size == (24, 32)


def test_the_address_of_a_camera_without_its_scheme() -> None:
    with pytest.raises(SourceError, match="starts with rtsp://"):
        open_source("127.0.0.1:8554/belt")


def test_files_are_read_ahead_in_their_order(folder: Path) -> None:
    (folder / "c.png").write_bytes(b"no image")
    names = [str(folder / name) for name in ("v.avi", "c.png", "a.jpg", "gone.jpg", "b.png")] * 3
    found: list[tuple[str, int, bool]] = []
    for path, frames in read_ahead(names):
        count, is_read = 0, True
        try:
            for frame in frames:
                assert frame.source == path
                assert number(frame) == (count if path.endswith("avi") else None)
                count += 1
        except SourceError as error:
            assert str(error).startswith(path)
            is_read = False
        found.append((path, count, is_read))
    expected = [(3, True), (0, False), (1, True), (0, False), (1, True)] * 3
    assert found == [(name, *one) for name, one in zip(names, expected, strict=True)]
    assert list(read_ahead([])) == []


def test_reading_ahead_holds_few_frames(folder: Path) -> None:
    taken = 0

    def names() -> Any:
        nonlocal taken
        for _ in range(100):
            taken += 1
            yield str(folder / ("a.jpg", "v.avi")[taken % 2])

    files = read_ahead(names(), threads=2)
    for count in range(1, 20):
        next(files)
        assert taken <= count + 3
    files.close()
    assert taken < 25
    assert not [t for t in threading.enumerate() if t.name.startswith("y7edge-read")]


def test_levels_apply_to_files_that_are_read_ahead(folder: Path) -> None:
    cv2.imwrite(str(folder / "deep.png"), np.full((8, 8), 2048, np.uint16))
    ((_, frames),) = list(read_ahead([str(folder / "deep.png")], (0, 4096)))
    assert int(next(frames).image[0, 0, 0]) == 128


def test_the_paths_of_a_folder_are_a_sequence(folder: Path) -> None:
    opened = open_source(str(folder))
    assert isinstance(opened, Files)
    assert list(opened.paths) == [opened.paths[0], *opened.paths[1:]]
    assert folder / "b.png" in opened.paths
    assert opened.paths[-1] == folder / "v.avi"
