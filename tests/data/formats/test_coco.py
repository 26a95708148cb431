import json
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from y7edge.data.dataset import load
from y7edge.data.formats import coco
from y7edge.data.formats.coco_names import COCO_IDS, COCO_NAMES
from y7edge.data.formats.records import Scan
from y7edge.errors import DataError

# Unsorted ids with gaps; classes are sorted by id.
CATEGORIES = [{"id": 90, "name": "wasp"}, {"id": 3, "name": "bee"}, {"id": 17, "name": "fly"}]
NAMES = ("bee", "fly", "wasp")
NAN = float("nan")


def image(number, name, **size):
    return {"id": number, "file_name": name, **(size or {"width": 200, "height": 100})}


def box(number, image_id, category, *bbox, **more):
    return {"id": number, "image_id": image_id, "category_id": category, "bbox": list(bbox), **more}


def write(path, images, annotations, categories=CATEGORIES, folder=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))
    for entry in images:
        if folder is not None:
            place = folder / entry["file_name"]
            place.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(place), np.zeros((100, 200, 3), np.uint8))
    return path


def one(tmp_path, *annotations, **more):
    """Load one image of 200 x 100 pixels with these annotations."""
    path = tmp_path / "train.json"
    write(path, [image(7, "a.png")], list(annotations), folder=tmp_path / "images", **more)
    return load(path)


def first(data, split="train"):
    return data.split(split)[0]


def lines(data):
    return [warning.split(" (")[0] for warning in data.warnings]


# ---- layouts


@pytest.mark.parametrize(
    ("files", "folder"),
    [
        ("annotations/instances_{}2017.json", "{}2017"),
        ("annotations/instances_{}2017.json", "images/{}2017"),
        ("annotations/instances_{}2017.json", "images"),
        ("annotations/{}.json", "{}"),
        ("{}.json", "images/{}"),
        ("{}.json", "images"),
        ("{}.json", "."),
        ("my-{}-set.json", "{}"),
        ("{}/_annotations.coco.json", "{}"),
    ],
)
def test_layouts(tmp_path, files, folder):
    for split, entry in (("train", "a.png"), ("val", "b.png")):
        write(
            tmp_path / files.format(split),
            [image(1, entry)],
            [box(1, 1, 17, 20, 10, 40, 20)],
            folder=tmp_path / folder.format(split),
        )
    data = load(tmp_path)
    assert data.names == NAMES
    assert list(data.splits) == ["train", "val"]
    assert first(data, "val").path == tmp_path / folder.format("val") / "b.png"
    assert first(data, "val").class_id.tolist() == [1]
    assert data.warnings == ()
    assert list(load(tmp_path, ["val"]).splits) == ["val"]
    with pytest.raises(DataError, match="COCO annotations for the split 'test', found train, val"):
        load(tmp_path, ["test"])


def test_roboflow_s_valid_is_val(tmp_path):
    path = tmp_path / "valid/_annotations.coco.json"
    write(path, [image(0, "a.jpg")], [], folder=tmp_path / "valid")
    assert list(load(tmp_path).splits) == ["val"]


def test_other_annotation_kinds_are_skipped(tmp_path):
    write(tmp_path / "annotations/instances_val2017.json", [image(1, "a.png")], [])
    for kind in ("captions", "person_keypoints", "panoptic", "stuff"):
        (tmp_path / f"annotations/{kind}_val2017.json").write_text("[]")
    (tmp_path / "val2017").mkdir()
    cv2.imwrite(str(tmp_path / "val2017/a.png"), np.zeros((100, 200, 3), np.uint8))
    assert len(load(tmp_path).split("val")) == 1


def test_yaml_file_of_another_tool(tmp_path):
    path = tmp_path / "train/_annotations.coco.json"
    write(path, [image(0, "a.jpg")], [], folder=tmp_path / "train")
    (tmp_path / "dvc.yaml").write_text("stages:\n  train:\n    cmd: true\n")
    assert list(load(tmp_path).splits) == ["train"]


def test_two_files_for_a_split(tmp_path):
    for year in (2014, 2017):
        write(tmp_path / f"annotations/instances_val{year}.json", [], [])
    with pytest.raises(DataError, match=r"one file for the split 'val', found instances_val2014"):
        load(tmp_path)


def test_single_file_is_requested_split(tmp_path):
    path = write(tmp_path / "things.json", [image(1, "a.png")], [], folder=tmp_path / "images")
    assert list(load(path).splits) == ["train"]
    assert list(load(path, ["test"]).splits) == ["test"]
    with pytest.raises(DataError, match=r"\(train, val\), found a single file"):
        load(path, ["train", "val"])
    renamed = path.rename(tmp_path / "things_validation.json")
    assert list(load(renamed).splits) == ["val"]


def test_splits_must_agree_on_categories(tmp_path):
    write(tmp_path / "train.json", [image(1, "a.png")], [], folder=tmp_path)
    other = [{"id": 1, "name": "bee"}]
    write(tmp_path / "val.json", [image(1, "a.png")], [], other, folder=tmp_path)
    with pytest.raises(DataError, match=r"val\.json: expected the categories of the other splits"):
        load(tmp_path)
    # The ids may differ if the names are equal.
    other = [{"id": number, "name": name} for number, name in enumerate(NAMES)]
    write(tmp_path / "val.json", [image(1, "a.png")], [box(1, 1, 2, 1, 1, 9, 9)], other)
    assert first(load(tmp_path), "val").class_id.tolist() == [2]


# ---- boxes and classes


def test_box_format(tmp_path):
    data = one(tmp_path, box(1, 7, 90, 20, 10, 40, 20), box(2, 7, 3, 0.5, 0.25, 99.5, 49.75))
    expected = [[0.2, 0.2, 0.2, 0.2], [0.25125, 0.25125, 0.4975, 0.4975]]
    np.testing.assert_allclose(first(data).boxes, expected, rtol=1e-6)
    assert first(data).class_id.tolist() == [2, 0]
    assert first(data).size == (200, 100)
    assert first(data).polygons == ()


def test_published_ids():
    text = "1-11, 13-25, 27, 28, 31-44, 46-65, 67, 70, 72-82, 84-90"
    spans = [[int(end) for end in span.split("-")] for span in text.split(", ")]
    assert list(COCO_IDS) == [n for span in spans for n in range(span[0], span[-1] + 1)]
    assert len(COCO_IDS) == len(COCO_NAMES) == len(set(COCO_NAMES)) == 80
    known = {1: "person", 13: "stop sign", 44: "bottle", 67: "dining table", 90: "toothbrush"}
    assert {number: COCO_NAMES[COCO_IDS.index(number)] for number in known} == known


def test_published_categories(tmp_path):
    categories = [{"id": n, "name": t} for n, t in zip(COCO_IDS, COCO_NAMES, strict=True)]
    annotations = [box(n, 7, n, n, 1, 5, 5) for n in reversed(COCO_IDS)]
    data = one(tmp_path, *annotations, categories=categories[::-1])
    assert data.names == COCO_NAMES
    assert first(data).class_id.tolist() == list(range(79, -1, -1))


@given(st.sets(st.integers(-(10**30), 10**30), min_size=1, max_size=30), st.randoms())
def test_classes_are_sorted_by_id(ids, random):
    categories = [{"id": number, "name": str(number)} for number in ids]
    random.shuffle(categories)
    classes, names = _classes(categories)
    assert [classes[number] for number in sorted(ids)] == list(range(len(ids)))
    assert names == tuple(map(str, sorted(ids)))


def _classes(categories):
    scan = Scan(Path("a.json"), Path(), "coco")
    classes = coco._Reader(scan, "train", Path("a.json")).categories(categories)
    assert not scan.problems
    return classes, tuple(scan.names)


def test_dropped_boxes_are_counted(tmp_path):
    data = one(
        tmp_path,
        box(1, 7, 3, 20, 10, 0, 20),
        box(2, 7, 3, 25, 10, -5, 20),
        box(3, 7, 3, 220, 10, 5, 20),
        box(4, 7, 3, 190, 10, 50, 20),
        box(5, 7, 3, 190, 10, 50, 20),
    )
    assert len(first(data).boxes) == 2
    np.testing.assert_allclose(first(data).boxes[0], [0.1125, 0.2, 0.025, 0.2], rtol=1e-6)
    assert lines(data) == [
        "boxes without area, dropped: 1",
        "boxes with exchanged corners, put in order: 1",
        "boxes outside the image, dropped: 1",
        "boxes sticking out of the image, clipped: 2",
        "repeated boxes, kept once: 1",
    ]
    assert "a.png" in data.warnings[0]


def test_images_without_annotations_are_background(tmp_path):
    data = one(tmp_path)
    assert first(data).boxes.shape == (0, 4)
    assert data.warnings == ()


def test_crowds_are_separate(tmp_path):
    rle = {"size": [100, 200], "counts": [5, 10, 19985]}
    data = one(
        tmp_path,
        box(1, 7, 17, 100, 50, 300, 50, iscrowd=1, segmentation=rle),
        box(2, 7, 3, 20, 10, 40, 20, iscrowd=0),
        box(3, 7, 3, 20, 10, 0, 20, iscrowd=1),
    )
    assert first(data).class_id.tolist() == [0]
    np.testing.assert_allclose(first(data).crowd, [[1, 0.75, 0.75, 0.5, 0.5]])
    assert lines(data) == ["crowd regions, not used for training: 2"]
    assert data.single_class().split("train")[0].crowd[:, 0].tolist() == [0]


# ---- outlines

SQUARE = [20, 10, 60, 10, 60, 30, 20, 30]


def test_outlines_match_boxes(tmp_path):
    data = one(
        tmp_path,
        box(1, 7, 3, 20, 10, 0, 20, segmentation=[SQUARE]),  # dropped
        box(2, 7, 3, 100, 10, 40, 20),
        box(3, 7, 3, 20, 10, 40, 20, segmentation=[SQUARE]),
    )
    plain, outlined = first(data).polygons
    assert plain is None
    assert outlined.dtype == np.float32
    np.testing.assert_allclose(outlined, [[0.1, 0.1], [0.3, 0.1], [0.3, 0.3], [0.1, 0.3]])


@pytest.mark.parametrize(
    ("segmentation", "warning"),
    [
        ([], None),
        ({"size": [100, 200], "counts": "abc"}, None),
        ([[]], None),
        ([[20, 10, 60, 30]], None),
        ("x", None),
        ([[20, 10, 60, 10, 60]], "outlines that are not lists of points, left out: 1"),
        ([["a"] * 8], "outlines that are not lists of points, left out: 1"),
        ([[[20, 10], [60]]], "outlines that are not lists of points, left out: 1"),
        (
            [[20, 10, float("nan"), 10, 60, 30]],
            "outlines that do not match their box, left out: 1",
        ),
        ([[10**400] * 8], "outlines that are not lists of points, left out: 1"),
        ([[value / 10 for value in SQUARE]], "outlines that do not match their box, left out: 1"),
    ],
)
def test_invalid_outlines_keep_box(tmp_path, segmentation, warning):
    data = one(tmp_path, box(1, 7, 3, 20, 10, 40, 20, segmentation=segmentation))
    assert len(first(data).boxes) == 1
    assert first(data).polygons == ()
    assert lines(data) == ([warning] if warning else [])


def filled(parts):
    mask = np.zeros((64, 64), np.uint8)
    points = [np.round(np.asarray(part) * 64).astype(np.int32) for part in parts]
    cv2.fillPoly(mask, points, 1)
    return mask


def test_parts_are_joined_by_bridges_without_area():
    rng = np.random.default_rng(0)
    for count in (2, 3, 5):
        corners = rng.permutation([(x, y) for x in (4, 20, 36, 52) for y in (4, 20, 36, 52)])
        square = np.array([[0, 0], [8, 0], [8, 8], [0, 8]])
        parts = [(square + corner) / 64 for corner in corners[:count]]
        whole = coco.join(parts)
        # Area by the shoelace formula: bridges walked in both directions add nothing.
        x, y = whole.T
        area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
        assert area == pytest.approx(count * (8 / 64) ** 2)
        points = np.concatenate(parts)
        np.testing.assert_array_equal((whole.min(0), whole.max(0)), (points.min(0), points.max(0)))
        # OpenCV also fills the bridges, one pixel wide.
        extra = (filled([whole]) > filled(parts)).astype(np.uint8)
        assert cv2.erode(extra, np.ones((3, 3), np.uint8)).sum() == 0
        assert (filled([whole]) >= filled(parts)).all()


def test_extent_of_several_parts(tmp_path):
    parts = [[20, 10, 30, 10, 30, 30, 20, 30], [50, 10, 60, 10, 60, 30, 50, 30]]
    data = one(tmp_path, box(1, 7, 3, 20, 10, 40, 20, segmentation=parts))
    (outline,) = first(data).polygons
    np.testing.assert_allclose((*outline.min(0), *outline.max(0)), (0.1, 0.1, 0.3, 0.3), rtol=1e-6)


# ---- images


@pytest.mark.parametrize(
    ("size", "warning"),
    [
        ({"width": 400, "height": 200}, "images scaled after they were labelled"),
        ({"width": 100, "height": 200}, "images whose size differs from their annotation"),
        ({"width": None}, None),
        ({"width": 0, "height": 0}, None),
        ({"width": "200", "height": 100}, "numbers written as text"),
        ({"width": float("nan"), "height": 1e999}, None),
    ],
)
def test_stated_sizes_are_checked(tmp_path, size, warning):
    images = [image(7, "a.png", **size)]
    path = write(tmp_path / "a.json", images, [box(1, 7, 3, 20, 10, 40, 20)], folder=tmp_path)
    data = load(path)
    scale = 0.5 if warning and "scaled" in warning else 1
    np.testing.assert_allclose(first(data).boxes, np.full((1, 4), 0.2 * scale), rtol=1e-6)
    assert first(data).size == (200, 100)
    assert [line.split(",")[0] for line in lines(data)] == ([warning] if warning else [])


def test_images_in_subfolders(tmp_path):
    path = write(
        tmp_path / "train.json",
        [image(1, "one/a.png"), image(2, "two\\a.png"), image(3, "./two/../three/a.png")],
        [box(1, 2, 3, 20, 10, 40, 20)],
    )
    for name in ("one", "two", "three"):
        (tmp_path / "images" / name).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "images" / name / "a.png"), np.zeros((100, 200, 3), np.uint8))
    samples = load(path).split("train")
    found = [(sample.path.parent.name, len(sample.boxes)) for sample in samples]
    assert found == [("one", 0), ("two", 1), ("three", 0)]


@pytest.mark.parametrize(
    "name",
    ["../a.png", "x/../../a.png", "/etc/a.png", "..", "", ".", "C:\\a.png", "\\\\host\\a", "a\0b"],
)
def test_names_outside_folder_are_refused(tmp_path, name):
    path = write(tmp_path / "train.json", [image(5, name)], [])
    with pytest.raises(DataError, match=r"train\.json: image 5: expected a file name inside"):
        load(path)


def test_image_listed_twice(tmp_path):
    images = [image(1, "a.png"), image(2, "./a.png"), image(1, "a.png")]
    annotations = [box(1, 1, 3, 20, 10, 40, 20), box(2, 2, 17, 20, 10, 40, 20)]
    path = write(tmp_path / "a.json", images, annotations, folder=tmp_path)
    data = load(path)
    assert [sample.class_id.tolist() for sample in data.split("train")] == [[0, 1]]
    assert lines(data) == ["images listed twice, kept once: 2"]


def test_missing_images_are_counted(tmp_path):
    path = write(tmp_path / "a.json", [image(1, "a.png")], [], folder=tmp_path / "images")
    write(path, [image(1, "a.png"), image(2, "b.png"), image(3, "x" * 5000)], [])
    data = load(path)
    assert len(data.split("train")) == 1
    assert lines(data) == ["listed images that do not exist, left out: 2"]
    (tmp_path / "images/a.png").unlink()
    with pytest.raises(DataError, match="expected its images, found none of them in"):
        load(path)


# ---- files that cannot be


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        (box(4, 8, 3, 1, 2, 3, 4), "annotation 4: expected the id of an image .* found 8"),
        (
            box(4, 7, 1, 1, 2, 3, 4),
            "annotation 4: expected category_id to be the id of one .* found 1",
        ),
        (box(4, 7, [3], 1, 2, 3, 4), r"annotation 4: expected category_id .* found \[3\]"),
        (box("z\n", "q" * 500, 3), r"annotation 'z\\n': expected the id .* found 'qqqq"),
        (box(4, 7, 3, 1, 2, 3), r"annotation 4: expected bbox as four .* found \[1, 2, 3\]"),
        (box(4, 7, 3, 1, 2, 3, float("nan")), "annotation 4: expected bbox as four .* nan"),
        (box(4, 7, 3, 1, 2, 3, float("inf")), "annotation 4: expected bbox as four .* inf"),
        (box(4, 7, 3, 1, 2, 3, 10**400), "annotation 4: expected bbox as four finite numbers"),
        (box(4, 7, 3, 1, 2, 3, "4x"), "annotation 4: expected bbox as four finite numbers"),
        ({"image_id": 7, "category_id": 3}, "annotation number 0: expected bbox .* found None"),
        ({}, "annotation number 0: expected the id of an image"),
    ],
)
def test_invalid_annotations(tmp_path, annotation, message):
    with pytest.raises(DataError, match=message) as caught:
        one(tmp_path, annotation)
    assert str(tmp_path / "train.json") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot read it"),
        (b"{", "cannot read it"),
        (b"[" * 100_000, "cannot read it"),
        (b'{"images": [' + b"9" * 10_000 + b"]}", "cannot read it|found 999"),
        (b"\xff\xfe{\0}\0", "UTF-8, found UTF-16"),
        (b"[]", "with a list 'images', found none"),
        (b'{"images": 3}', "with a list 'images', found none"),
        (b'{"images": [3]}', "expected objects in the list 'images', found 3"),
        (b'{"images": [null]}', "expected objects in the list 'images', found None"),
        (b'{"images": [], "annotations": {}}', "with a list 'annotations', found none"),
        (b'{"images": [], "annotations": []}', "with a list 'categories', found none"),
    ],
)
def test_invalid_files(tmp_path, content, message):
    path = tmp_path / "train.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: expected ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("images", "categories", "message"),
    [
        ([], [], "expected categories, found none"),
        ([], [{"id": "x", "name": "a"}], "whole number as id and a name, found 'x' and 'a'"),
        ([], [{"id": 1}], "whole number as id and a name, found 1 and None"),
        ([], [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], "category id once, found 1 again"),
        ([{"file_name": "a.png"}], CATEGORIES, "expected images with an id, found None"),
        ([{"id": 1}], CATEGORIES, "image 1: expected a file name .* found None"),
        (
            [image(1, "a.png"), image(1, "b.png")],
            CATEGORIES,
            "each image id once, found 1 for 'a.png' and 'b.png'",
        ),
    ],
)
def test_invalid_lists(tmp_path, images, categories, message):
    path = write(tmp_path / "train.json", images, [], categories)
    with pytest.raises(DataError, match=message):
        load(path)


def test_time_is_linear(tmp_path):
    """Check that 40 times as many annotations take far less than 1600 times as long."""

    def seconds(count):
        annotations = [
            box(n, 7, 3, n % 150, 10, 40 + n / count, 20, segmentation=[SQUARE] * 3)
            for n in range(count)
        ]
        path = write(tmp_path / "train.json", [image(7, "a.png")], annotations, folder=tmp_path)
        start = time.process_time()
        assert len(first(load(path)).boxes) == count
        return time.process_time() - start

    seconds(100)
    assert seconds(4000) < 200 * max(seconds(100), 2e-3)
