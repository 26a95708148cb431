"""Frames to label: which are kept, the data set that they make, and its continuation."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from y7edge.cli import main
from y7edge.data import dataset
from y7edge.detect.detections import Detections
from y7edge.errors import ConfigError, DataError, OutputError
from y7edge.frames import Frame
from y7edge.live import hard
from y7edge.live.hard import HardFrames

ROOT = Path(__file__).parents[2]
NAMES = ("nut", 'washer: "flat"', "schraube mit Öse \U0001f529")
SIZE = (128, 96)


def scene(seed, seconds, **changes):
    """A frame of coarse random patches, which differ from those of another seed."""
    patches = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = cv2.resize(patches, SIZE, interpolation=cv2.INTER_NEAREST)
    return Frame(image, timestamp_ns=round(seconds * 1e9), source="camera", **changes)


def found(*scores, boxes=None, class_ids=None, names=NAMES, size=SIZE):
    scores = np.array(scores, np.float32)
    if boxes is None:
        boxes = [(10 + 20 * i, 10, 40 + 20 * i, 60) for i in range(len(scores))]
    ids = np.zeros(len(scores), int) if class_ids is None else class_ids
    return Detections(boxes, scores, ids, size, names)


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def add_all(saver, frames):
    """Add (frame, detections) as fast as the disk allows; return what was saved."""
    saved = []
    for frame, detections in frames:
        wait_for(lambda: saver._background.waiting < hard._WAITING)
        saved.append(saver.add(frame, detections))
    return saved


def listing(folder):
    header, *lines = (folder / "hard.jsonl").read_text("utf-8").splitlines()
    assert json.loads(header) == {"names": list(NAMES)}
    return [json.loads(line) for line in lines]


def consistent(folder):
    """The names of the images; every one has a label and a line, and nothing else is there."""
    images = sorted(path.stem for path in (folder / "images").iterdir())
    assert images == sorted(path.stem for path in (folder / "labels").iterdir())
    assert images == sorted(Path(row["image"]).stem for row in listing(folder))
    return images


@pytest.mark.parametrize(
    ("scores", "is_hard"),
    [
        ((0.9, 0.3), True),  # one object is easy, the other one is not
        ((0.3,), True),
        ((0.9, 0.8), False),
        ((0.9, 0.1), False),
        ((0.5,), False),  # exclusive
        ((), False),
    ],
)
def test_a_frame_is_hard_if_any_score_is_in_the_band(tmp_path, scores, is_hard):
    with HardFrames(tmp_path / "hard", NAMES) as saver:
        assert saver.add(scene(0, 0), found(*scores)) == is_hard
        assert len(saver) == is_hard
    assert (tmp_path / "hard" / "hard.jsonl").exists() == is_hard


def test_the_data_set(tmp_path):
    folder = tmp_path / "hard"
    with HardFrames(folder, NAMES) as saver:
        boxes = [(-10, 10, 64, 58), (100, 0, 300, 96), (0, 0, 32, 24), (130, 10, 140, 20)]
        frame = scene(1, 2.5, sequence=7)
        assert saver.add(frame, found(0.9, 0.4, 0.1, 0.3, boxes=boxes, class_ids=[2, 1, 0, 0]))
    (row,) = listing(folder)
    assert row["scores"] == pytest.approx([0.4, 0.3], abs=1e-6)
    assert row["uncertainty"] == pytest.approx(0.8, abs=1e-6)
    assert (row["timestamp_ns"], row["clock"]) == (2_500_000_000, "arrival")
    assert (row["source"], row["frame_id"]) == ("camera", 7)
    # Clipped to the image; without the score below the band, and the box outside of the image.
    label = (folder / "labels" / "hard-000001.txt").read_text()
    assert label == "2 0.250000 0.354167 0.500000 0.500000\n1 0.890625 0.500000 0.218750 1.000000\n"
    image = cv2.imread(str(folder / "images" / "hard-000001.jpg"))
    assert np.abs(image.astype(float) - frame.image).mean() < 20
    loaded = dataset.load(folder / "data.yaml", splits=("train", "val"))
    assert tuple(loaded.names) == NAMES
    assert loaded.split("train")[0].class_id.tolist() == [2, 1]


def test_data_check_accepts_it(tmp_path, capsys):
    folder = tmp_path / "hard"
    with HardFrames(folder, NAMES) as saver:
        for index in range(12):
            corner = np.random.default_rng(index).uniform(0, 60, (3, 2))
            boxes = np.hstack([corner, corner + 25 + index])
            objects = found(0.9, 0.3, 0.4, boxes=boxes, class_ids=[0, 1, 2])
            add_all(saver, [(scene(index, 2 * index), objects)])
    assert len(consistent(folder)) == 12
    code = main(["data", "check", str(folder / "data.yaml"), "--json"])
    report = json.loads(capsys.readouterr().out)
    assert code == 0, report
    # The user sets val.
    assert {one["check"] for one in report["findings"]} == {"same_splits"}, report["findings"]


def test_nv12_and_rgb_become_bgr(tmp_path):
    rgb = np.zeros((96, 128, 3), np.uint8)
    rgb[:, :, 0] = 250
    luma = np.full((144, 160), 128, np.uint8)
    luma[:96] = 230
    frames = [
        Frame(rgb, format="rgb", timestamp_ns=0),
        Frame(luma[:, :128], format="nv12", timestamp_ns=5_000_000_000),
    ]
    with HardFrames(tmp_path / "hard", NAMES) as saver:
        assert add_all(saver, [(frame, found(0.3)) for frame in frames]) == [True, True]
    first, second = (cv2.imread(str(p)) for p in sorted((tmp_path / "hard/images").iterdir()))
    assert first.mean(axis=(0, 1)) == pytest.approx([0, 0, 250], abs=8)
    assert second.shape == (96, 128, 3)
    assert second.mean() > 200


def test_near_duplicates_are_left_out(tmp_path):
    random = np.random.default_rng(0)
    frames = []
    for second, noise in enumerate((0, 3, 8)):
        one = scene(1, 2 * second)
        noisy = np.clip(one.image + random.normal(0, noise, one.image.shape), 0, 255)
        frames.append((Frame(noisy.astype(np.uint8), timestamp_ns=one.timestamp_ns), found(0.3)))
    moved = found(0.3, boxes=[(70, 40, 120, 90)])
    other_class = found(0.3, class_ids=[1])
    frames += [(scene(1, 8), moved), (scene(1, 10), other_class), (scene(2, 12), found(0.3))]
    frames += [(scene(1, 14), found(0.3, 0.4, boxes=[(10, 10, 40, 60), (70, 40, 120, 90)]))]
    with HardFrames(tmp_path / "hard", NAMES) as saver:
        assert add_all(saver, frames) == [True, False, False, True, True, True, True]


def test_within_the_interval_the_more_uncertain_frame_remains(tmp_path):
    frames = [
        (scene(0, 0.0), found(0.25)),
        (scene(1, 0.3), found(0.28)),  # hardly better
        (scene(2, 0.6), found(0.45)),  # replaces the first
        (scene(3, 0.9), found(0.21)),
        (scene(4, 2.0), found(0.21)),
    ]
    with HardFrames(tmp_path / "hard", NAMES, interval=1.0) as saver:
        assert add_all(saver, frames) == [True, False, True, False, True]
    assert consistent(tmp_path / "hard") == ["hard-000002", "hard-000003"]


def test_of_the_two_nearest_in_time_the_less_uncertain_one_is_removed(tmp_path):
    scored = [(0, 0.45), (10, 0.22), (12, 0.40), (14, 0.21)]
    with HardFrames(tmp_path / "hard", NAMES, limit=2) as saver:
        saved = add_all(saver, [(scene(k, t), found(score)) for k, (t, score) in enumerate(scored)])
    assert saved == [True, True, True, False]
    assert [row["position"] for row in listing(tmp_path / "hard")] == [0, 12]


def test_a_long_drive_is_covered(tmp_path):
    random = np.random.default_rng(0)
    times = np.arange(0, 3600, 6.0)
    frames = ((scene(k, t), found(random.uniform(0.21, 0.49))) for k, t in enumerate(times))
    with HardFrames(tmp_path / "hard", NAMES, limit=10) as saver:
        saved = add_all(saver, frames)
    kept = sorted(row["timestamp_ns"] / 1e9 for row in listing(tmp_path / "hard"))
    assert len(consistent(tmp_path / "hard")) == len(kept) == 10
    assert kept[0] < 600
    assert kept[-1] > 3000
    assert max(np.diff(kept)) < 900
    assert sum(saved) < 200  # writes become rarer: an SD card wears out


def test_time_counts_only_forwards(tmp_path):
    # A restart of the source, and a pause of an hour.
    times = (5000.0, 5001.5, 0.0, 1.5, 3600.0)
    with HardFrames(tmp_path / "hard", NAMES) as saver:
        add_all(saver, [(scene(k, t), found(0.3)) for k, t in enumerate(times)])
    positions = [row["position"] for row in listing(tmp_path / "hard")]
    assert positions == pytest.approx([0, 1.5, 3.0, 63.0])


def test_each_camera_has_its_interval_and_images_of_a_folder_have_none(tmp_path):
    cameras = [
        (Frame(scene(k, 0).image, timestamp_ns=k * 10**8, source="ab"[k % 2]), found(0.3))
        for k in range(6)
    ]
    with HardFrames(tmp_path / "cameras", NAMES) as saver:
        assert add_all(saver, cameras) == [True, True, False, False, False, False]
    both = [
        (Frame(scene(k + n, 0).image, timestamp_ns=start + k * 10**8, source=str(n)), found(0.3))
        for k in range(6)
        for n, start in ((10, 10**15), (20, 10**9))  # of a camera and of a recording
    ]
    with HardFrames(tmp_path / "clocks", NAMES) as saver:
        assert add_all(saver, both) == [True, True] + [False] * 10
        assert saver._position == pytest.approx(0.5)
    images = [(Frame(scene(k, 0).image, source="folder"), found(0.3)) for k in range(6)]
    with HardFrames(tmp_path / "images", NAMES) as saver:
        assert add_all(saver, images) == [True] * 6


def test_a_folder_is_continued(tmp_path):
    folder = tmp_path / "hard"
    for run in range(3):
        with HardFrames(folder, NAMES, limit=5) as saver:
            frames = [(scene(10 * run + k, 3 * k), found(0.3)) for k in range(4)]
            add_all(saver, [(scene(0, 0), found(0.3)), *frames])
            assert len(saver) <= 5
    assert len(consistent(folder)) == 5
    with HardFrames(folder, NAMES, limit=3) as saver:  # a smaller limit
        add_all(saver, [(scene(k, 5 * k), found(0.49)) for k in range(100, 110)])
    assert len(consistent(folder)) == 3
    (folder / "images" / consistent(folder)[0]).with_suffix(".jpg").unlink()
    with HardFrames(folder, NAMES) as saver:
        assert len(saver) == 2


def test_corrected_labels_are_never_removed(tmp_path):
    folder = tmp_path / "hard"
    with HardFrames(folder, NAMES, limit=3) as saver:
        add_all(saver, [(scene(k, 3 * k), found(0.3)) for k in range(3)])
    (folder / "labels" / "hard-000001.txt").write_text("1 0.5 0.5 0.1 0.1\n")
    (folder / "labels" / "hard-000002.txt").unlink()  # an image without objects
    with HardFrames(folder, NAMES, limit=3) as saver:
        add_all(saver, [(scene(k, 3 * k), found(0.45)) for k in range(10, 40)])
    images = {path.name for path in (folder / "images").iterdir()}
    assert {"hard-000001.jpg", "hard-000002.jpg"} <= images
    assert len(images) == 3
    assert "hard-000003.jpg" not in images
    assert (folder / "labels" / "hard-000001.txt").read_text() == "1 0.5 0.5 0.1 0.1\n"


@pytest.mark.parametrize("is_edited", [False, True])
def test_corrected_labels_are_not_replaced_within_the_interval(tmp_path, is_edited):
    folder = tmp_path / "hard"
    with HardFrames(folder, NAMES) as saver:
        assert saver.add(scene(0, 0.0), found(0.25))
    if is_edited:
        (folder / "labels" / "hard-000001.txt").write_text("1 0.5 0.5 0.1 0.1\n")
    with HardFrames(folder, NAMES) as saver:
        assert saver.add(scene(1, 0.1), found(0.45)) is not is_edited
    assert consistent(folder) == ["hard-000001" if is_edited else "hard-000002"]


def test_a_killed_process_leaves_a_data_set(tmp_path):
    folder = tmp_path / "hard"
    code = f"""
from tests.live.test_hard import *
saver = HardFrames({str(folder)!r}, NAMES, limit=20, interval=0)
add_all(saver, ((scene(k, k), found(0.3)) for k in range(100_000)))
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    number = lambda: max((p.stem for p in folder.glob("images/hard-*.jpg")), default="")  # noqa: E731
    wait_for(lambda: number() >= "hard-000040" or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    process.wait()
    labels = {path.stem for path in (folder / "labels").glob("hard-*.txt")}
    assert {path.stem for path in (folder / "images").glob("hard-*.jpg")} <= labels
    with HardFrames(folder, NAMES, limit=20) as saver:
        before = len(saver)
        assert 19 <= before <= 20
        assert saver.add(scene(1_000_000, 0), found(0.3)) in (True, False)


def test_disk_faults_are_reported_once(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, os.strerror(28))

    saver = HardFrames(tmp_path / "hard", NAMES)
    assert saver.add(scene(0, 0), found(0.3))
    wait_for(lambda: (tmp_path / "hard" / "hard.jsonl").exists())
    monkeypatch.setattr(hard, "atomic_write", full)
    assert saver.add(scene(1, 5), found(0.3))
    wait_for(lambda: saver.problem)
    assert "the disk is full: free some space" in saver.problem
    assert not saver.add(scene(2, 10), found(0.3))
    with pytest.raises(OutputError, match="the disk is full"):
        saver.close()
    saver.close()
    assert [row["image"] for row in listing(tmp_path / "hard")] == ["images/hard-000001.jpg"]


def test_a_busy_disk_does_not_stop_detection(tmp_path, monkeypatch):
    import threading

    release = threading.Event()
    monkeypatch.setattr(HardFrames, "_write", lambda *_: release.wait(60))
    saver = HardFrames(tmp_path / "hard", NAMES)
    saved = [saver.add(scene(k, 2 * k), found(0.3)) for k in range(20)]
    assert sum(saved) in (hard._WAITING, hard._WAITING + 1)
    assert len(saver) == sum(saved)
    release.set()
    saver.close()


def test_other_folders_are_refused(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "data.yaml").write_text("train: images\n")
    with pytest.raises(ConfigError, match=r"has other content, and no hard.jsonl"):
        HardFrames(tmp_path / "set", NAMES)
    with HardFrames(tmp_path / "hard", NAMES) as saver:
        saver.add(scene(0, 0), found(0.3))
        with pytest.raises(OutputError, match="are already saved there: use another folder"):
            HardFrames(tmp_path / "hard", NAMES)
    with pytest.raises(ConfigError, match="this model has nut, bolt: use another folder"):
        HardFrames(tmp_path / "hard", ("nut", "bolt"))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="cannot write hard frames"):
        HardFrames(tmp_path / "file" / "hard", NAMES)


@pytest.mark.parametrize(
    "change",
    [
        {"image": "../../victim.jpg"},
        {"image": "images/hard-000001.jpg\n"},
        {"image": 7},
        {"boxes": [[0, 1]]},
        {"position": float("nan")},
        {"position": "x"},
        {"thumbnail": "zz"},
        {"thumbnail": "00"},
        {"more": 1},
        None,
    ],
)
def test_a_damaged_listing_is_refused(tmp_path, change):
    folder = tmp_path / "hard"
    with HardFrames(folder, NAMES) as saver:
        saver.add(scene(0, 0), found(0.3))
    header, line = (folder / "hard.jsonl").read_text("utf-8").splitlines()
    line = line[:-5] if change is None else json.dumps({**json.loads(line), **change})
    (folder / "hard.jsonl").write_text(f"{header}\n{line}\n", "utf-8")
    with pytest.raises(ConfigError, match=r"hard.jsonl is damaged .*: move the folder away"):
        HardFrames(folder, NAMES)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"band": (0.5, 0.2)}, "band is"),
        ({"band": (float("nan"), 0.2)}, "band is"),
        ({"limit": 0}, "limit is"),
        ({"interval": -1}, "interval is"),
        ({"names": ()}, "names is empty"),
    ],
)
def test_values_out_of_range(tmp_path, options, words):
    with pytest.raises(ConfigError, match=f"{re.escape(words)}.*, expected"):
        HardFrames(tmp_path / "hard", **{"names": NAMES, **options})
    assert not (tmp_path / "hard").exists()


def test_detections_of_something_else(tmp_path):
    with HardFrames(tmp_path / "hard", NAMES) as saver:
        with pytest.raises(DataError, match="give the detections of this frame"):
            saver.add(scene(0, 0), found(0.3, size=(64, 64)))
        with pytest.raises(DataError, match="of other classes than nut"):
            saver.add(scene(0, 0), found(0.3, names=("nut",)))
        with pytest.raises(DataError, match="of other classes than nut"):
            saver.add(scene(0, 0), found(0.3, names=(), class_ids=[9]))
        assert saver.add(scene(0, 0), found(0.3, names=()))


@pytest.mark.parametrize("name", ["a\u2028b.png", "a\x85b.png", "a\nb.png", "\udce9.png"])
def test_odd_names_of_sources(tmp_path, name):
    for count in (1, 2):
        with HardFrames(tmp_path / "hard", NAMES) as saver:
            assert saver.add(Frame(scene(count, 0).image, source=name), found(0.3))
            assert len(saver) == count
