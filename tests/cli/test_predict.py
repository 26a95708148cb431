"""predict on videos, recordings and image sequences, with a model that finds white squares."""

from __future__ import annotations

import csv
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.fake_model import FakeSession, make_manifest
from tests.sources.videos import write_video
from y7edge import Detections, Detector, Frame
from y7edge.artifact.manifest import InputInfo, Manifest
from y7edge.cli import main
from y7edge.live.frame_recorder import FrameRecorder

Predict = Callable[..., tuple[list[dict[str, Any]], list[str]]]


def use(monkeypatch: pytest.MonkeyPatch, manifest: Manifest) -> None:
    """Let predict use the fake model."""
    monkeypatch.setattr(
        "y7edge.cli.predict.open_detector",
        lambda *_, **__: Detector.from_session(FakeSession(manifest), manifest),
    )


@pytest.fixture
def predict(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Predict:
    """Run predict; give the objects that it prints, and the lines on standard error."""
    use(monkeypatch, make_manifest())

    def run(source: object, *words: object, exits: int = 0) -> Any:
        code = main(["predict", "model.onnx", str(source), "--json", *map(str, words)])
        printed = capsys.readouterr()
        assert code == exits, printed.err
        return list(map(json.loads, printed.out.splitlines())), printed.err.splitlines()

    return run


def scene(*columns: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """An image with a white square for each column of cells."""
    image = np.zeros((64, 96, 3), np.uint8)
    for column in columns:
        image[16:24, 8 * column : 8 * column + 8] = 255
    return image


def lossless_video(path: Path, scenes: list[tuple[int, ...]]) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"FFV1"), 10.0, (96, 64))
    assert writer.isOpened()
    for columns in scenes:
        writer.write(scene(*columns))
    writer.release()
    return path


def test_frames_of_a_video_have_number_and_time(tmp_path: Path, predict: Predict) -> None:
    path = lossless_video(tmp_path / "v.mkv", [(1,), (1, 5), ()])
    records, _ = predict(path)
    assert [record["frame_id"] for record in records] == [0, 1, 2]
    assert [record["timestamp_ns"] for record in records] == [0, 100_000_000, 200_000_000]
    assert [len(record["detections"]) for record in records] == [1, 2, 0]
    assert {record["source"] for record in records} == {str(path)}
    cv2.imwrite(str(tmp_path / "a.png"), scene(1))
    ((record,), _) = predict(tmp_path / "a.png")
    assert not {"frame_id", "timestamp_ns"} & set(record)


def test_options_of_the_source(tmp_path: Path, predict: Predict) -> None:
    lossless_video(tmp_path / "v.mkv", [(1,), (2,)])
    records, _ = predict(f"{tmp_path}/v.mkv?loop=1")
    assert [record["frame_id"] for record in records] == [0, 1, 2, 3]
    _, errors = predict(f"{tmp_path}/v.mkv?lop=1", exits=1)
    assert errors == [f"error: {tmp_path}/v.mkv: unknown option 'lop', did you mean 'loop'?"]


def test_a_damaged_file_that_is_read_twice_is_one_file(tmp_path: Path, predict: Predict) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), scene(1))
    (tmp_path / "b.png").write_bytes(b"no image")
    records, errors = predict(f"{tmp_path}?loop=1", exits=1)
    assert len(records) == 2
    assert [line.endswith("1 of 2 files could not be read completely") for line in errors] == [
        *(False, False, True)
    ]


@pytest.mark.parametrize(
    "source",
    [
        *("csi://0", "0", "/dev/video0", "rtsp://user:s3cr3t@127.0.0.1:1/x", "rtp://@:1234"),
        *("http://127.0.0.1:1/x", "gst://videotestsrc", "{}/v.avi?realtime=1", "{}/v.avi?rate=99"),
        "test://pattern",
    ],
)
def test_live_sources_are_refused(
    tmp_path: Path, source: str, predict: Predict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "v.avi", frames=2)
    records, errors = predict(source.format(tmp_path), exits=1)
    assert not records
    assert len(errors) == 1
    assert errors[0].endswith(" is a live source: use `y7edge live MODEL SOURCE`")
    assert "s3cr3t" not in errors[0]


def ids(records: list[dict[str, Any]]) -> list[dict[int, int]]:
    """The id of each object by its column."""
    return [
        {int(one["xyxy"][0] + 8) // 8: one["tracker_id"] for one in record["detections"]}
        for record in records
    ]


def test_objects_keep_their_numbers(tmp_path: Path, predict: Predict) -> None:
    pytest.importorskip("trackers", reason="tracking needs the package trackers")
    path = lossless_video(tmp_path / "a.mkv", [(1, 8)] * 3 + [(1,)] * 2 + [(1, 8)] * 2)
    lossless_video(tmp_path / "b.mkv", [(1,)] * 3)
    records, _ = predict(path, "--track")
    found = ids(records)
    assert found[0] == {1: -1, 8: -1}
    first, second = found[1][1], found[1][8]
    assert first != second
    assert min(first, second) > 0
    assert found[2] == found[5] == found[6] == found[1]
    assert found[3] == {1: first}
    both, _ = predict(tmp_path, "--track")
    assert ids(both[:7]) == found
    assert ids(both[7:]) == [{1: -1}, {1: 1}, {1: 1}]  # a tracker for each video
    plain, _ = predict(path)
    assert "tracker_id" not in plain[1]["detections"][0]


def test_still_images_are_one_sequence(
    tmp_path: Path, predict: Predict, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("trackers", reason="tracking needs the package trackers")
    for number in range(4):
        cv2.imwrite(str(tmp_path / f"{number}.png"), scene(1))
    records, _ = predict(tmp_path, "--track")
    assert ids(records) == [{1: -1}, {1: 1}, {1: 1}, {1: 1}]
    assert [Path(record["source"]).name for record in records] == [f"{n}.png" for n in range(4)]
    assert main(["predict", "model.onnx", str(tmp_path), "--track"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "0.png: washer (" in lines[0]
    assert "1.png: washer #1 (" in lines[1]


def test_a_recording_is_replayed(tmp_path: Path, predict: Predict) -> None:
    with FrameRecorder(tmp_path / "r", None) as recorder:
        for number in range(3):
            image = scene(*range(1, 2 + 2 * number, 2))
            times = {"timestamp_ns": 5_000_000 + number, "sequence": 4 * number}
            assert recorder.add(Frame(image, **times, source="rtsp://cam/yard", rate=5.0))  # type: ignore[arg-type]
    records, _ = predict(f"replay://{tmp_path}/r", "--save", tmp_path / "out")
    assert [record["frame_id"] for record in records] == [0, 4, 8]
    assert [record["timestamp_ns"] for record in records] == [5_000_000, 5_000_001, 5_000_002]
    assert [len(record["detections"]) for record in records] == [1, 2, 3]
    assert {record["source"] for record in records} == {"rtsp://cam/yard"}
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["yard.mp4"]
    (tmp_path / "r" / "00000001.png").unlink()
    records, errors = predict(f"replay://{tmp_path}/r", exits=1)
    assert len(records) == 2
    assert "line 2 of frames.jsonl" in errors[0]
    assert errors[1].endswith("/r: 1 of 3 files could not be read completely")


def test_sources_whose_names_are_no_file_names_are_saved(tmp_path: Path, predict: Predict) -> None:
    for source in ("csi://0", "/", "..", None, "a/b?c*"):
        with FrameRecorder(tmp_path / "r", None) as recorder:
            assert recorder.add(Frame(scene(1), timestamp_ns=1, source=source))
    predict(f"replay://{tmp_path}/r", "--save", tmp_path / "out")
    saved = {path.name for path in (tmp_path / "out").iterdir()}
    assert saved == {"0.mp4", "frames.mp4", "unknown.mp4", "b?c*.mp4"}


def test_levels_are_those_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = make_manifest(input=InputInfo("images", 1, 64, 96, levels=(1000, 2000)))
    use(monkeypatch, manifest)
    deep = np.where(scene(1) == 255, 2000, 1000).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), deep)
    images = []
    call = Detector.__call__

    def see(detector: Detector, frame: Frame) -> Detections:
        images.append(frame.image)
        return call(detector, frame)

    monkeypatch.setattr(Detector, "__call__", see)
    assert main(["predict", "model.onnx", str(tmp_path / "a.png")]) == 0
    np.testing.assert_array_equal(images[0], scene(1))


PROGRESS = """
import sys
from tests.fake_model import FakeSession, make_manifest
from y7edge import Detector
import y7edge.cli.predict as predict
from y7edge.cli import main

detector = Detector.from_session(FakeSession(make_manifest()), make_manifest())
predict.open_detector = lambda *_, **__: detector
sys.exit(main(["predict", "model.onnx", *sys.argv[1:]]))
"""


def test_progress_on_a_terminal_leaves_the_output_alone(tmp_path: Path) -> None:
    for number in range(3):
        cv2.imwrite(str(tmp_path / f"{number}[red].png"), scene(1))
    (tmp_path / "1a.png").write_bytes(b"no image")
    terminal, end = pty.openpty()
    words = [sys.executable, "-c", PROGRESS, str(tmp_path), "--json"]
    done = subprocess.run(
        words, stdout=subprocess.PIPE, stderr=end, cwd=Path(__file__).parents[2], check=False
    )
    os.close(end)
    shown = os.read(terminal, 100_000).decode()
    os.close(terminal)
    assert done.returncode == 1
    assert len(list(map(json.loads, done.stdout.decode().splitlines()))) == 3
    assert "100%" in shown, shown
    assert "1a.png" in shown


def test_detections_are_written_as_a_table(tmp_path: Path, predict: Predict) -> None:
    path = lossless_video(tmp_path / "v.mkv", [(1,), (1, 5), ()])
    out = tmp_path / "found.csv"
    records, _ = predict(path, "--out", out)
    with out.open(newline="", encoding="utf-8") as stream:
        table = list(csv.DictReader(stream))
    expected = [
        (str(record["frame_id"]), *map(float, one["xyxy"]))
        for record in records
        for one in record["detections"]
    ]
    columns = ("left", "top", "right", "bottom")
    assert [(row["frame_id"], *(float(row[c]) for c in columns)) for row in table] == expected


def test_a_table_of_an_unknown_format_is_refused(tmp_path: Path, predict: Predict) -> None:
    path = lossless_video(tmp_path / "v.mkv", [(1,)])
    _, errors = predict(path, "--out", tmp_path / "found.txt", exits=2)
    assert ".csv" in errors[-1] and not (tmp_path / "found.txt").exists()


def test_a_name_of_a_file_is_refused_as_a_folder(tmp_path: Path, predict: Predict) -> None:
    path = lossless_video(tmp_path / "v.mkv", [(1,)])
    _, errors = predict(path, "--save", tmp_path / "found.mp4", exits=2)
    assert "expected that of a folder" in errors[-1] and not (tmp_path / "found.mp4").exists()
