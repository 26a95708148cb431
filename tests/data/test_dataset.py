import hashlib
import logging
import struct
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from y7edge.data.dataset import load
from y7edge.data.formats.yolo import label_path
from y7edge.errors import DataError, RuntimeMissing


class Folder:
    """Builder of a data set with ``images/train`` and ``labels/train``."""

    def __init__(self, root):
        self.root = root

    def image(self, name, label=None, split="train"):
        path = self.root / "images" / split / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.zeros((20, 30, 3), np.uint8))
        if label is not None:
            text = self.root / "labels" / split / f"{path.stem}.txt"
            text.parent.mkdir(parents=True, exist_ok=True)
            text.write_text(label)
        return path

    def describe(self, text="train: images/train\nnames: [cat, dog]\n", name="data.yaml"):
        path = self.root / name
        path.write_text(text)
        return path

    def train(self, *labels):
        """Load one image per label text; the boxes and classes of the first, and warnings."""
        for index, label in enumerate(labels):
            self.image(f"{index}.png", label)
        data = load(self.describe())
        sample = data.split("train")[0]
        return sample.boxes, sample.class_id.tolist(), data.warnings


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def stems(data, split="train"):
    return [sample.path.stem for sample in data.split(split)]


# ---- data.yaml


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("names: [cat, dog]", ("cat", "dog")),
        ("names: {0: cat, 1: dog}", ("cat", "dog")),
        ("names:\n  1: dog\n  0: cat", ("cat", "dog")),
        ("names:\n  '0': cat\n  '1': dog", ("cat", "dog")),
        ("nc: 2\nnames: [1, 2]", ("1", "2")),
        ("names: [off, 007, 1.0, ~]", ("off", "007", "1.0", "~")),
        ("nc: 3", ("0", "1", "2")),
    ],
)
def test_valid_names(folder, names, expected):
    folder.image("a.png", "")
    assert load(folder.describe(f"train: images/train\n{names}\n")).names == expected


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("names: {1: cat, 2: dog}", r"numbered from 0 without gaps, found \[1, 2\]"),
        ("names: {a: cat}", "names numbered from 0"),
        ("names: [cat]\nnc: 2", "expected 2 names .nc., found 1"),
        ("names: cat", "expected names as a list or a mapping"),
        ("names: [[cat, dog]]", "expected names as a list or a mapping"),
        ("nc: two", "nc to be a positive whole number, found 'two'"),
        ("nc: true", "nc to be a positive whole number, found 'true'"),
        ("other: 1", "expected names as a list or a mapping from 0, found None"),
    ],
)
def test_invalid_names(folder, names, message):
    folder.image("a.png", "")
    with pytest.raises(DataError, match=message):
        load(folder.describe(f"train: images/train\n{names}\n"))


def test_folder_is_searched_recursively(folder):
    for name in ("b.png", "deeper/c.JPG", "a.png", "._a.png", "readme.png.txt"):
        folder.image(name, "") if not name.endswith("txt") else None
    assert stems(load(folder.describe())) == ["a", "b", "c"]


@pytest.mark.parametrize("entry", ["images/list.txt", "list.txt"])
def test_list_file_paths_are_relative_to_list_or_root(folder, entry):
    folder.image("a.png", "0 .5 .5 .2 .2")
    folder.image("b.png", "")
    lines = {"list.txt": "./images/train/b.png\n\nimages/train/a.png\n"}
    lines["images/list.txt"] = "train/b.png\n./train/a.png\n"
    (folder.root / entry).write_text(lines[entry])
    data = load(folder.describe(f"train: {entry}\nnc: 1\n"))
    assert stems(data) == ["b", "a"]
    assert [len(sample.boxes) for sample in data.split("train")] == [0, 1]


@pytest.mark.parametrize(
    "text",
    [
        "train: images\\train\nval: .\\images\\val\\",
        "path: .\\\ntrain: 'images/train '\nval: list.TXT",
    ],
)
def test_windows_paths(folder, text):
    folder.image("a.png", "")
    folder.image("b.png", "", split="val")
    (folder.root / "list.TXT").write_bytes(b"\xef\xbb\xbfimages\\val\\b.png \r\n\r\n")
    data = load(folder.describe(f"{text}\nnc: 1\n"))
    assert (stems(data), stems(data, "val")) == (["a"], ["b"])


def test_list_of_folders(folder):
    folder.image("a.png", "", split="one")
    folder.image("b.png", "", split="two")
    text = "train: [images/two, images/one]\nval: images/one\ntest:\nnc: 1\n"
    data = load(folder.describe(text))
    assert stems(data) == ["b", "a"]
    assert stems(data, "val") == ["a"]
    assert set(data.splits) == {"train", "val"}


@pytest.mark.parametrize(
    "text",
    [
        "path: data\ntrain: images/train",
        "path: ./data/images\ntrain: train",
        "train: data/images/train",
        "train: ../data/images/train",
        "path: ../moved/away\ntrain: data/images/train",
        "path: {root}\ntrain: images/train",
        "train: {root}/images/train",
    ],
)
def test_path_candidates(tmp_path, text):
    inner = Folder(tmp_path / "data")
    inner.image("a.png", "0 .5 .5 .2 .2")
    text = text.format(root=inner.root)
    data = load(Folder(tmp_path).describe(f"{text}\nnc: 1\n", name="my.yaml"))
    assert [len(sample.boxes) for sample in data.split("train")] == [1]


@pytest.mark.parametrize("line", ["data/images/train/a.png", r".\data\images\train\a.png"])
def test_cvat_lists(folder, line):
    # CVAT's archives begin with images/ and labels/, its list files with data/images/.
    folder.image("a.png", "0 .5 .5 .2 .2")
    (folder.root / "train.txt").write_text(f"{line}\n")
    data = load(folder.describe("train: train.txt\nnc: 1\n"))
    assert [len(sample.boxes) for sample in data.split("train")] == [1]


def test_working_directory_is_last(folder, monkeypatch, tmp_path_factory):
    folder.image("a.png", "0 .5 .5 .2 .2")
    elsewhere = Folder(tmp_path_factory.mktemp("elsewhere"))
    monkeypatch.chdir(folder.root)
    data = load(elsewhere.describe("train: ./images/train\nnc: 1\n"))
    assert [len(sample.boxes) for sample in data.split("train")] == [1]


def test_folder_with_data_yaml(folder):
    folder.image("a.png", "")
    folder.describe()
    folder.describe("nonsense", name="other.yaml")
    assert load(folder.root).source == folder.root / "data.yaml"


@pytest.mark.parametrize("text", ["train: images/train\nnc: 1", "{train: images/train, nc: 1}"])
def test_yaml_file_with_other_name(folder, text):
    folder.image("a.png", "")
    found = folder.describe(text, name="tray.yaml")
    assert load(folder.root).source == found
    found.write_text("version: 2\nbuild: {train: yes}\n")  # some other tool's
    with pytest.raises(DataError, match=r"expected a data\.yaml, or folders"):
        load(folder.root)


def test_missing_test_split_is_optional(folder):
    folder.image("a.png", "")
    path = folder.describe("train: images/train\ntest: images/test\nnc: 1\n")
    data = load(path)
    assert set(data.splits) == {"train"}
    assert "missing test split" in data.warnings[0]
    with pytest.raises(DataError, match="expected a folder or a list file 'images/test'"):
        load(path, splits=["test"])


def test_only_requested_splits_are_read(folder):
    folder.image("a.png", "")
    folder.image("b.png", "broken", split="val")
    path = folder.describe("train: images/train\nval: images/val\nnc: 1\n")
    assert set(load(path, splits=["train"]).splits) == {"train"}
    with pytest.raises(DataError, match=r"b\.txt:1"):
        load(path, splits=["val"])
    with pytest.raises(DataError, match="expected an entry 'test', found train, val"):
        load(path, splits=["test"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: images/nothing\nnc: 1", "expected a folder or a list file 'images/nothing'"),
        ("train: labels\nnc: 1", "expected images in 'labels', found none"),
        ("train: lost.txt\nnc: 1", r"lost\.txt:2: expected the path of an image"),
        ("nc: 1", "expected an entry 'train' or 'val', found neither"),
        ("- a\n- b", "expected a mapping with train, val and names, found a list"),
        ("a: [", "not YAML"),
        ("[" * 5000, "not YAML"),
        ("nc: 1\nday: 2024-13-45", "expected an entry 'train' or 'val', found neither"),
        (f"train: {'x' * 5000}\nnc: 1", "expected a folder or a list file 'xxx"),
        ("!!python/object/apply:os.system ['true']", "the tag .* is not supported"),
    ],
)
def test_invalid_descriptions(folder, text, message):
    folder.image("a.png", "")
    (folder.root / "lost.txt").write_text("images/train/a.png\nimages/train/x.png\n")
    with pytest.raises(DataError, match=message) as caught:
        load(folder.describe(text))
    assert str(folder.root) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_data_set(tmp_path):
    with pytest.raises(DataError, match="found nothing there"):
        load(tmp_path / "missing")
    with pytest.raises(DataError, match=r"expected a data\.yaml"):
        load("/dev/null")
    with pytest.raises(DataError, match=r"expected a data\.yaml, or folders images/"):
        load(tmp_path)


def test_missing_split(folder):
    folder.image("a.png", "")
    with pytest.raises(DataError, match="expected images in split 'val', found train"):
        load(folder.describe()).split("val")


def test_missing_pyyaml(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(RuntimeMissing, match=r'pip install "y7edge\[eval\]"'):
        load(folder.describe())


# ---- paths of label files


def test_labels_beside_images(folder):
    folder.image("a.png").with_suffix(".txt").write_text("1 .5 .5 .2 .2")
    folder.image("b.png", "0 .5 .5 .2 .2").with_suffix(".txt").write_text("1 .5 .5 .2 .2")
    samples = load(folder.describe()).split("train")
    assert [sample.class_id.tolist() for sample in samples] == [[1], [0]]


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("d/images/train/a.jpg", "d/labels/train/a.txt"),
        ("d/train/images/a.b.jpeg", "d/train/labels/a.b.txt"),
        ("images/d/images/a.jpg", "images/d/labels/a.txt"),
        ("images/a.jpg", "labels/a.txt"),
        ("d/Images/train/a.JPG", "d/Labels/train/a.txt"),
        ("d/my-images/a.jpg", "d/my-images/a.txt"),
        ("d/images.jpg", "d/images.txt"),
    ],
)
def test_label_path(tmp_path, image, label):
    assert label_path(tmp_path / image) == tmp_path / label


# ---- label lines


def test_box_is_exact(folder):
    boxes, classes, warnings = folder.train("1 0.5 0.4 0.25 0.125\n\n0.0 1e-1 .2 .05 .06\n")
    assert classes == [1, 0]
    np.testing.assert_allclose(boxes, [[0.5, 0.4, 0.25, 0.125], [0.1, 0.2, 0.05, 0.06]], rtol=1e-6)
    assert boxes.dtype == np.float32
    assert warnings == ()


def test_boxes_and_polygons_in_one_file(folder):
    # The published reader reads all lines of a file as polygons if one line is long.
    triangle = "1 .1 .2 .5 .6 .3 .4"
    pentagon = "0 .1 .1 .3 .1 .4 .3 .2 .5 .1 .3"
    boxes, classes, _ = folder.train(f"1 .5 .5 .2 .4\n{triangle}\n{pentagon}\n")
    assert classes == [1, 1, 0]
    expected = [[0.5, 0.5, 0.2, 0.4], [0.3, 0.4, 0.4, 0.4], [0.25, 0.3, 0.3, 0.4]]
    np.testing.assert_allclose(boxes, expected, rtol=1e-6)


def test_polygons_are_kept(folder):
    lines = [
        "1 .5 .5 .2 .4",
        "0 .1 .1 .3 .1 .2 .1",  # no area: dropped, and its outline with it
        "1 .1 .2 .5 .6 .3 .4",
        "0 .8 .8 1.4 .8 1.4 1.2 .8 1.2",  # sticks out
        "1 .1 .2 .5 .6 .3 .4",  # repeated
        "0 .2 .2 .1 .1",
    ]
    folder.image("a.png", "\n".join(lines))
    (sample,) = load(folder.describe()).split("train")
    plain, triangle, clipped, last = sample.polygons
    assert plain is None
    assert last is None
    assert triangle.dtype == np.float32
    np.testing.assert_allclose(triangle, [[0.1, 0.2], [0.5, 0.6], [0.3, 0.4]], rtol=1e-6)
    np.testing.assert_allclose(clipped, [[0.8, 0.8], [1, 0.8], [1, 1], [0.8, 1]], rtol=1e-6)
    np.testing.assert_allclose(sample.boxes[2], [0.9, 0.9, 0.2, 0.2], rtol=1e-6)


COORDINATE = st.integers(-50, 150).map(lambda value: value / 100)
# A box within the first pixel of the image is refused as one divided by its size twice.
BOX = st.tuples(*[COORDINATE] * 4).filter(lambda box: max(map(abs, box)) > 0.02)
OUTLINE = st.lists(COORDINATE, min_size=6, max_size=14).map(lambda v: v[: len(v) // 2 * 2])


@given(st.lists(st.tuples(st.integers(0, 3), st.one_of(BOX, OUTLINE)), max_size=8))
def test_boxes_outlines_and_classes_stay_together(rows):
    """Check that clipping, dropping and merging keep box, class and outline of a line together."""
    lines = [" ".join(map(str, (class_id, *values))) for class_id, values in rows]
    with tempfile.TemporaryDirectory() as name:
        folder = Folder(Path(name))
        folder.image("a.png", "\n".join(lines))
        try:
            data = load(folder.describe("train: images/train\nnc: 4"))
        except DataError as error:  # random outlines may look like boxes with keypoints
            assume("extra columns" not in str(error))
            raise
    (sample,) = data.split("train")
    expected = {}
    for class_id, values in rows:
        if len(values) == 4:
            (x, y, w, h), points = values, None
            w, h = abs(w), abs(h)
            corners = np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
            if w == 0 or h == 0:
                continue
        else:
            whole = np.reshape(values, (-1, 2))
            points = np.clip(whole, 0, 1)
            corners = np.array([*whole.min(0), *whole.max(0)])
        corners = np.clip(corners, 0, 1)
        if (corners[2:] - corners[:2] > 1e-6).all():
            expected.setdefault((class_id, *corners), points)
    found = sample.polygons or [None] * len(sample.boxes)
    assert len(sample.boxes) == len(sample.class_id) == len(found) == len(expected)
    for (class_id, *corners), points, box, number, outline in zip(
        expected, expected.values(), sample.boxes, sample.class_id, found, strict=True
    ):
        assert number == class_id
        np.testing.assert_allclose(
            [*(box[:2] - box[2:] / 2), *(box[:2] + box[2:] / 2)], corners, atol=1e-6
        )
        assert (outline is None) == (points is None)
        if points is not None:
            np.testing.assert_allclose(outline, points, atol=1e-6)


@pytest.mark.parametrize("label", [None, "", "\n  \n"], ids=["missing", "empty", "blank"])
def test_missing_labels_mean_background(folder, label):
    boxes, classes, warnings = folder.train(label)
    assert boxes.shape == (0, 4)
    assert classes == []
    assert any("without a label file" in warning for warning in warnings) == (label is None)


@pytest.mark.parametrize(
    ("line", "kept", "warning"),
    [
        ("0 .5 .5 0 .2", None, "boxes without area, dropped: 1"),
        ("0 .5 .5 .2 -.2", [0.5, 0.5, 0.2, 0.2], "boxes with exchanged corners, put in order"),
        ("0 1.3 .5 .2 .2", None, "boxes outside the image, dropped: 1"),
        ("0 -.1 .5 .2 .2", None, "boxes outside the image, dropped: 1"),
        ("0 .95 .5 .2 .2", [0.925, 0.5, 0.15, 0.2], "boxes sticking out of the image"),
        ("0 .5 .5 2 .2", [0.5, 0.5, 1.0, 0.2], "boxes sticking out of the image"),
        ("0 .9 .5 .2002 .2", [0.89995, 0.5, 0.2001, 0.2], None),
    ],
    ids=["no-width", "negative", "right-of-it", "left-of-it", "sticks-out", "wide", "rounded"],
)
def test_repairs_are_counted(folder, line, kept, warning):
    boxes, classes, warnings = folder.train(f"1 .5 .5 .1 .1\n{line}\n")
    assert classes == ([1] if kept is None else [1, 0])
    if kept is not None:
        np.testing.assert_allclose(boxes[1], kept, rtol=1e-5)
    assert len(warnings) == (warning is not None)
    if warning:
        assert warning in warnings[0]


def test_repeated_lines_are_kept_once(folder):
    text = "1 .5 .5 .2 .2\n0 .3 .3 .1 .1\n1 .5 .5 .2 .2\n0 .5 .5 .2 .2\n1 .50 .5 .2 .2\n"
    _, classes, warnings = folder.train(text)
    assert classes == [1, 0, 0]
    assert warnings[0].startswith("repeated boxes, kept once: 2 (first in ")


def test_warnings_are_counted_and_logged(folder, caplog):
    with caplog.at_level(logging.WARNING):
        _, _, warnings = folder.train("0 .5 .5 0 .2", "0 .5 .5 0 .2\n1 .5 .5 .1 0")
    assert len(warnings) == 1
    assert "dropped: 3 (first in" in warnings[0]
    assert "0.txt" in warnings[0]
    assert [record.getMessage() for record in caplog.records] == [
        f"{folder.root / 'data.yaml'}: {warnings[0]}"
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 .5 .5 .2", "found 4 numbers"),
        ("0 .5 .5 .2 .2 .9", "found 6 numbers"),
        ("0 .5 .5 .2 .2 .9 .9 .9", "found 8 numbers"),
        ("cat .5 .5 .2 .2", r"expected numbers, found 'cat \.5"),
        ("0 .5 nan .2 .2", "expected finite numbers"),
        ("0 .5 .5 inf .2", "expected finite numbers"),
        ("2 .5 .5 .2 .2", "expected a class from 0 to 1, found 2"),
        ("-1 .5 .5 .2 .2", "expected a class from 0 to 1, found -1"),
        ("0.5 .5 .5 .2 .2", "expected a class from 0 to 1, found 0.5"),
        ("0 320 240 50 60", "expected fractions of the image's size .* found 320"),
    ],
)
def test_invalid_lines(folder, line, message):
    folder.image("a.png", f"0 .5 .5 .1 .1\n\n{line}\n")
    with pytest.raises(DataError, match=message) as caught:
        load(folder.describe())
    assert str(caught.value).startswith(f"{folder.root / 'labels' / 'train' / 'a.txt'}:3: ")
    assert "\n" not in str(caught.value)


def test_binary_labels(folder):
    folder.image("a.png", "")
    (folder.root / "labels/train/a.txt").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(DataError, match=r"a\.txt: expected text in UTF-8, found UTF-16"):
        load(folder.describe())


# ---- sizes of images


def test_sizes_are_read_from_headers(folder, monkeypatch):
    folder.image("a.png", "")
    folder.image("b.png", "").write_bytes(b"damaged")
    data = load(folder.describe())
    assert [sample.size for sample in data.split("train")] == [(30, 20), None]
    assert data.warnings[0].startswith("images without a readable header, size unknown: 1")
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert [s.size for s in load(folder.describe()).split("train")] == [(30, 20), None]


# ---- one class


def test_single_class_merges_equal_boxes(folder):
    folder.image("a.png", "1 .5 .5 .2 .2\n0 .1 .1 .3 .1 .2 .3\n0 .5 .5 .2 .2\n1 .2 .2 .1 .1")
    data = load(folder.describe())
    single = data.single_class()
    (sample,) = single.split("train")
    assert single.names == ("object",)
    assert sample.class_id.tolist() == [0, 0, 0]
    assert sample.class_id.dtype == np.int32
    np.testing.assert_allclose(sample.boxes[:, 0], [0.5, 0.2, 0.2])
    assert [outline is None for outline in sample.polygons] == [True, False, True]
    assert sample.size == (30, 20)
    assert data.split("train")[0].class_id.tolist() == [1, 0, 0, 1]
    assert single.digest != data.digest


# ---- digest


def test_digest_depends_on_data_not_folder(tmp_path):
    def digest(place, label="0 .5 .5 .2 .2", names="[cat, dog]", size=20):
        made = Folder(tmp_path / place)
        path = made.image("a.png", label)
        cv2.imwrite(str(path), np.zeros((size, 30, 3), np.uint8))
        return load(made.describe(f"train: images/train\nnames: {names}\n")).digest

    same = digest("a")
    assert len(same) == 64
    assert digest("b") == same
    assert digest("c", label="0 .5 .5 .2 .21") != same
    assert digest("d", label="1 .5 .5 .2 .2") != same
    assert digest("e", names="[cat, cow]") != same
    assert digest("f", size=90) != same
    hull = digest("g", label="0 .4 .4 .6 .4 .6 .6 .4 .6")
    assert digest("h", label="0 .4 .4 .6 .4 .6 .6") != hull != same


def test_digest_is_stable(folder):
    path = folder.image("a.png", "1 .5 .5 .25 .5\n0 .25 .25 .5 .5")
    path.write_bytes(bytes(100))
    expected = hashlib.sha256(b"('cat', 'dog')\ntrain\ta.png\t100\t")
    expected.update(struct.pack("<2i", 1, 0))
    expected.update(struct.pack("<8f", 0.5, 0.5, 0.25, 0.5, 0.25, 0.25, 0.5, 0.5))
    assert load(folder.describe()).digest == expected.hexdigest()
