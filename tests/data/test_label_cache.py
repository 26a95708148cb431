import logging
import multiprocessing
import os
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from y7edge.data import dataset, label_cache
from y7edge.data.dataset import load
from y7edge.errors import DataError

IMAGE = cv2.imencode(".png", np.zeros((20, 30, 3), np.uint8))[1].tobytes()
SQUARE = ".1 .1 .3 .1 .3 .3 .1 .3"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Use an empty cache, and cache data sets of any size."""
    monkeypatch.setenv("Y7EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(label_cache, "_WORTH_KEEPING", 1)
    label_cache._warn_once.cache_clear()
    return tmp_path / "cache" / "labels"


@pytest.fixture
def folder(tmp_path):
    """Make a data set with boxes, outlines, missing labels, repairs, and an image in two splits."""
    root = tmp_path / "data"
    labels = {
        "a": "0 .5 .5 .2 .2\n1 .5 .5 0 .2",
        "b": f"1 {SQUARE}\n0 .5 .5 .2 .4\n0 .9 .5 .9 .4",
        "c": f"0 {SQUARE} .2 .4",
        "d": "",
        "e": None,
    }
    for kind in ("images", "labels"):
        (root / kind).mkdir(parents=True)
    for name, text in labels.items():
        (root / f"images/{name}.png").write_bytes(IMAGE)
        if text is not None:
            (root / f"labels/{name}.txt").write_text(text)
    (root / "images/d.png").write_bytes(b"damaged")
    (root / "val.txt").write_text("images/e.png\nimages/b.png\n")
    (root / "data.yaml").write_text("train: images\nval: val.txt\nnames: [cat, dog]\n")
    return root


@pytest.fixture
def reads(monkeypatch):
    """Count the images that are read, not taken from the cache."""
    count = []
    made = dataset.sample_of
    monkeypatch.setattr(dataset, "sample_of", lambda *args: count.append(1) or made(*args))
    return count


def contents(data):
    """Return all contents of a data set for comparison."""
    return (
        data.names,
        data.warnings,
        data.category_ids,
        data.digest,
        [
            (
                split,
                sample.path,
                sample.size,
                sample.image_id,
                sample.boxes.tolist(),
                sample.class_id.tolist(),
                [None if outline is None else outline.tolist() for outline in sample.polygons],
                sample.crowd.tolist(),
                [array.dtype.str for array in (sample.boxes, sample.class_id, sample.crowd)],
            )
            for split, samples in data.splits.items()
            for sample in samples
        ],
    )


def test_cached_data_equal_read_data(folder, reads, cache):
    made = load(folder)
    assert len(reads) == 5
    assert len(made.warnings) == 4
    recalled = load(folder)
    assert len(reads) == 5
    assert contents(recalled) == contents(made)
    assert [type(one.path) for one in recalled.split("train")] == [type(folder)] * 5
    # An image in two splits is still one sample.
    assert recalled.split("val")[1] is recalled.split("train")[1]
    assert len(list(cache.iterdir())) == 1


def test_coco_with_crowds_is_cached(tmp_path, monkeypatch):
    from y7edge.data.formats import coco

    (tmp_path / "a.png").write_bytes(IMAGE)
    entry = '{"image_id": 1, "category_id": 1, "bbox": [3, 4, 6, 8], "iscrowd": %d}'
    annotations = f"[{entry % 0}, {entry % 1}]"
    text = '{"categories": [{"id": 1, "name": "a"}], "images": [%s], "annotations": %s}'
    listed = '{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}'
    path = tmp_path / "train.json"
    path.write_text(text % (listed, annotations))
    data = load(path)
    assert (data.category_ids, data.split("train")[0].image_id) == ({"train": (1,)}, 1)
    made = contents(data)
    parses = []
    parse = coco._parse
    monkeypatch.setattr(coco, "_parse", lambda *args: parses.append(1) or parse(*args))
    assert contents(load(path)) == made
    assert not parses
    # Add the image that was missing.
    (tmp_path / "b.png").write_bytes(IMAGE)
    assert len(load(path).split("train")) == 2
    assert parses


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "labels/a.txt").write_text("1 .5 .5 .2 .2\n1 .5 .5 0 .2"),
        lambda root: (root / "labels/a.txt").unlink(),
        lambda root: (root / "labels/e.txt").write_text("1 .5 .5 .2 .2"),
        lambda root: (root / "images/e.txt").write_text("1 .5 .5 .2 .2"),
        lambda root: (root / "images/f.png").write_bytes(IMAGE),
        lambda root: (root / "images/d.png").write_bytes(IMAGE),
        lambda root: (root / "val.txt").write_text("images/b.png\nimages/e.png\n"),
        lambda root: (root / "data.yaml").write_text("train: images\nval: val.txt\nnc: 2\n"),
    ],
    ids=[
        "edited-same-size",
        "removed",
        "new-label",
        "new-label-beside",
        "new-image",
        "repaired-image",
        "other-order",
        "other-names",
    ],
)
def test_changes_are_detected(folder, change, tmp_path, monkeypatch):
    before = contents(load(folder))
    time.sleep(0.02)  # two ticks of the coarsest file system clock
    change(folder)
    seen = contents(load(folder))
    assert seen != before
    monkeypatch.setenv("Y7EDGE_CACHE", str(tmp_path / "another"))
    assert contents(load(folder)) == seen


def test_edit_with_same_size_and_mtime_is_detected(folder):
    load(folder)
    path = folder / "labels/a.txt"
    before = path.stat()
    time.sleep(0.02)
    path.write_text(path.read_text().replace("0 .5", "1 .5", 1))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert load(folder).split("train")[0].class_id.tolist() == [1]


def test_new_label_error_is_raised(folder):
    load(folder)
    (folder / "labels/a.txt").write_text("9 .5 .5 .2 .2")
    with pytest.raises(DataError, match=r"a\.txt:1: expected a class from 0 to 1"):
        load(folder)


def test_each_choice_of_splits_has_own_file(folder, cache):
    assert set(load(folder, ["val"]).splits) == {"val"}
    assert set(load(folder).splits) == {"train", "val"}
    assert set(load(folder, ["val"]).splits) == {"val"}
    assert len(list(cache.iterdir())) == 2


def test_relative_paths_depend_on_working_directory(folder, tmp_path, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    (folder / "labels").rename(tmp_path / "labels-of-the-other")
    other.joinpath("images").symlink_to(folder / "images")
    (tmp_path / "labels-of-the-other").rename(other / "labels")
    for name in ("data.yaml", "val.txt"):
        (other / name).write_bytes((folder / name).read_bytes())
    monkeypatch.chdir(folder)
    assert sum(len(one.boxes) for one in load("data.yaml").split("train")) == 0
    monkeypatch.chdir(other)
    samples = load("data.yaml").split("train")
    assert sum(len(one.boxes) for one in samples) == 5
    assert samples[0].path == Path("images/a.png")


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"nonsense",
        lambda content: content[: len(content) // 2],
        lambda content: content[:300] + bytes([content[300] ^ 1]) + content[301:],
    ],
    ids=["empty", "nonsense", "cut", "one-bit"],
)
def test_damaged_file_is_replaced(folder, damage, reads, cache):
    made = contents(load(folder))
    (path,) = cache.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert contents(load(folder)) == made
    assert len(reads) == 10
    assert contents(load(folder)) == made
    assert len(reads) == 10


def test_pickled_objects_are_not_loaded(folder, cache):
    made = contents(load(folder))
    (path,) = cache.iterdir()
    with np.load(path) as archive:
        arrays = dict(archive)

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(cache / "trapped"),)

    np.savez(path, **{**arrays, "boxes": np.array([Trap()], object)}, allow_pickle=True)
    assert contents(load(folder)) == made
    assert not (cache / "trapped").exists()


def test_older_version_is_replaced(folder, monkeypatch, reads):
    load(folder)
    monkeypatch.setattr(label_cache, "_VERSION", label_cache._VERSION + 1)
    load(folder)
    assert len(reads) == 10


def test_small_sets_are_not_cached(folder, monkeypatch, cache):
    monkeypatch.setattr(label_cache, "_WORTH_KEEPING", 6)
    load(folder)
    assert not cache.exists()


def test_unwritable_cache_warns_once(folder, monkeypatch, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("Y7EDGE_CACHE", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        first, second = load(folder), load(folder)
    assert contents(first) == contents(second)
    notes = [r.getMessage() for r in caplog.records if "are not cached" in r.message]
    assert len(notes) == 1
    assert str(tmp_path / "file") in notes[0]


def _load_often(folder, start, results):
    label_cache._WORTH_KEEPING = 1
    start.wait()
    for _ in range(10):
        data = load(folder)
        for path in (label_cache.cache_folder("labels")).glob("*.npz"):
            path.unlink(missing_ok=True)
        results.put(data.digest)


def test_two_processes_write_at_once(folder, cache):
    expected = load(folder).digest
    context = multiprocessing.get_context("fork")
    start, results = context.Barrier(2), context.Queue()
    workers = [context.Process(target=_load_often, args=(folder, start, results)) for _ in range(2)]
    for worker in workers:
        worker.start()
    digests = [results.get(timeout=60) for _ in range(20)]
    for worker in workers:
        worker.join(timeout=60)
        assert worker.exitcode == 0
    assert set(digests) == {expected}
    assert load(folder).digest == expected
    assert [path.suffix for path in cache.iterdir()] == [".npz"]
    assert not [path for path in cache.iterdir() if path.name.startswith(".")]
