import cv2
import numpy as np
import pytest

from y7edge.data.dataset import load
from y7edge.errors import DataError

SIZE = "<size><width>200</width><height>100</height><depth>3</depth></size>"


def obj(name, *corners):
    tags = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    box = "".join(f"<{tag}>{value}</{tag}>" for tag, value in tags)
    return f"<object><name>{name}</name><bndbox>{box}</bndbox></object>"


def write(root, stem, body, images="images", annotations="annotations"):
    for name in (images, annotations):
        (root / name).mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(root / images / f"{stem}.png"), np.zeros((100, 200, 3), np.uint8))
    (root / annotations / f"{stem}.xml").write_text(f"<annotation>{body}</annotation>")


@pytest.fixture
def folder(tmp_path):
    write(tmp_path, "a", SIZE + obj("wasp", 20, 10, 60, 30) + obj("bee", 0, 0, 100, 50))
    write(tmp_path, "b", SIZE)
    (tmp_path / "train.txt").write_text("a\nb\n")
    (tmp_path / "val.txt").write_text("b\n")
    return tmp_path


def test_reads_boxes_names_and_splits(folder):
    data = load(folder)
    assert data.names == ("bee", "wasp")
    assert [sample.path.name for sample in data.split("train")] == ["a.png", "b.png"]
    assert len(data.split("val")[0].boxes) == 0
    first = data.split("train")[0]
    assert first.class_id.tolist() == [1, 0]
    np.testing.assert_allclose(first.boxes, [[0.2, 0.2, 0.2, 0.2], [0.25, 0.25, 0.5, 0.5]])


def test_names_do_not_depend_on_splits(folder):
    assert load(folder, splits=["val"]).names == ("bee", "wasp")


def test_classes_txt_orders_classes(folder):
    (folder / "classes.txt").write_text("wasp\nbumble bee\nbee\n")
    data = load(folder)
    assert data.names == ("wasp", "bumble bee", "bee")
    assert data.split("train")[0].class_id.tolist() == [0, 2]


def test_challenge_layout(tmp_path):
    write(tmp_path, "a", SIZE + obj("bee", 0, 0, 20, 10), "JPEGImages", "Annotations")
    (tmp_path / "ImageSets/Main").mkdir(parents=True)
    (tmp_path / "ImageSets/Main/val.txt").write_text("a  1\n")
    data = load(tmp_path)
    assert len(data.split("val")[0].boxes) == 1


@pytest.mark.parametrize(
    "size", ["", "<size><width>0</width><height>0</height></size>"], ids=["none", "zero"]
)
def test_missing_size_is_read_from_image(folder, size):
    write(folder, "a", size + obj("bee", 0, 0, 100, 50))
    np.testing.assert_allclose(load(folder).split("train")[0].boxes, [[0.25, 0.25, 0.5, 0.5]])


@pytest.mark.parametrize(
    ("stated", "expected", "warning"),
    [
        ((400, 200), [0.05, 0.1, 0.1, 0.1], "images scaled after they were labelled"),
        ((100, 200), [0.1, 0.2, 0.2, 0.2], "images whose size differs from their annotation"),
        (("nan", "inf"), [0.1, 0.2, 0.2, 0.2], None),
    ],
)
def test_stated_sizes_are_checked(folder, stated, expected, warning):
    size = "<size><width>{}</width><height>{}</height></size>".format(*stated)
    write(folder, "a", size + obj("bee", 0, 10, 40, 30))
    data = load(folder)
    np.testing.assert_allclose(data.split("train")[0].boxes, [expected], rtol=1e-6)
    assert data.split("train")[0].size == (200, 100)
    assert [line.split(",")[0] for line in data.warnings] == ([warning] if warning else [])
    assert not warning or "a.xml" in data.warnings[0]


def test_difficult_objects_are_kept(folder):
    item = obj("bee", 0, 10, 40, 30).replace("<bndbox>", "<difficult>1</difficult><bndbox>")
    write(folder, "a", SIZE + item)
    assert len(load(folder).split("train")[0].boxes) == 1


def test_unusable_boxes_are_dropped_and_counted(folder):
    boxes = obj("bee", 5, 5, 5, 20) + obj("bee", 250, 5, 260, 20) + obj("bee", 190, 5, 260, 20)
    write(folder, "a", SIZE + boxes)
    data = load(folder)
    assert len(data.split("train")[0].boxes) == 1
    assert [warning.split(" (")[0] for warning in data.warnings] == [
        "boxes without area, dropped: 1",
        "boxes outside the image, dropped: 1",
        "boxes sticking out of the image, clipped: 1",
    ]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            SIZE + obj("bee", 1, 2, "x", 4),
            r"a\.xml:1: object 1: expected xmin, ymin, xmax, ymax as numbers, found 'bee 1 2 x 4'",
        ),
        (SIZE + obj("bee", 1, "nan", 3, 4), "expected finite numbers, found 'bee 1 nan 3 4'"),
        (
            SIZE + "<object><name>bee</name></object>",
            "xmin, ymin, xmax, ymax as numbers, found 'bee - - - -'",
        ),
        (SIZE + obj("bee", 1, 2, 3, 4) + obj(" ", 1, 2, 3, 4), "one of the classes bee, found ''"),
        ("<broken>", "expected a well-formed XML annotation"),
    ],
)
def test_invalid_annotations(folder, body, message):
    write(folder, "a", body)
    with pytest.raises(DataError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b'<!DOCTYPE a [<!ENTITY b "bee">]><annotation><c>&b;</c></annotation>',
            r"a\.xml: refused: it defines",
        ),
        (b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>', r"a\.xml: refused: it defines"),
        (
            "<!DOCTYPE a []><annotation/>".encode("utf-16"),
            r"a\.xml: expected text in UTF-8, found UTF-16",
        ),
    ],
    ids=["entity", "external", "utf-16"],
)
def test_entities_are_refused(folder, content, message):
    (folder / "annotations/a.xml").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load(folder)


def test_invalid_list_entries(folder):
    (folder / "val.txt").write_text("b\nmissing\n")
    with pytest.raises(DataError, match=r"val\.txt:2: expected the stem .* found 'missing'"):
        load(folder)
    with pytest.raises(DataError, match=r"test\.txt: expected a list"):
        load(folder, splits=["test"])
    (folder / "val.txt").unlink()
    (folder / "train.txt").unlink()
    with pytest.raises(DataError, match=r"expected train\.txt or val\.txt, found neither"):
        load(folder)


def test_class_missing_in_classes_txt(folder):
    (folder / "classes.txt").write_text("bee\n")
    with pytest.raises(
        DataError, match=r"a\.xml:1: object 1: expected one of the classes bee, found 'wasp'"
    ):
        load(folder)


@pytest.fixture
def exported(tmp_path):
    """Make a folder for each split, with images and annotations side by side."""
    write(tmp_path, "a", SIZE + obj("wasp", 20, 10, 60, 30), "train", "train")
    write(tmp_path, "b", SIZE, "train", "train")
    write(tmp_path, "a", SIZE + obj("bee", 0, 0, 100, 50), "valid", "valid")
    return tmp_path


def test_split_folders(exported):
    data = load(exported)
    assert data.names == ("bee", "wasp")
    assert [sample.path.name for sample in data.split("train")] == ["a.png", "b.png"]
    assert [len(sample.boxes) for sample in data.split("train")] == [1, 0]
    (sample,) = data.split("val")  # of the same name as another split's
    assert sample.path == exported / "valid" / "a.png"
    assert sample.class_id.tolist() == [0]
    np.testing.assert_allclose(sample.boxes, [[0.25, 0.25, 0.5, 0.5]])
    assert load(exported, splits=["val"]).names == data.names


def test_invalid_split_folders(exported):
    with pytest.raises(DataError, match=r"expected a folder test with .*, found train, val$"):
        load(exported, splits=["train", "test"])
    (exported / "train" / "b.xml").unlink()
    with pytest.raises(DataError, match=r"train/b\.png: expected b\.xml, found none"):
        load(exported)


def test_usual_split_folder_is_preferred(exported):
    write(exported, "c", SIZE, "val", "val")
    assert [sample.path.name for sample in load(exported).split("val")] == ["c.png"]


def test_split_folders_are_searched_recursively(exported):
    write(exported, "c", SIZE + obj("bee", 0, 0, 9, 9), "train/more", "train/more")
    write(exported, "d", SIZE + obj("bee", 0, 0, 9, 9), "elsewhere", "elsewhere")
    write(exported, "e", SIZE, "train/.ipynb_checkpoints", "train/.ipynb_checkpoints")
    (exported / "train" / "link").symlink_to(exported / "elsewhere")
    (exported / "train" / "loop").symlink_to(exported / "train")
    data = load(exported)
    assert [sample.path.name for sample in data.split("train")] == [f"{x}.png" for x in "abdc"]
    assert "skipped: 1" in data.warnings[0]


def test_stems_with_spaces(folder):
    write(folder, "my photo", SIZE)
    (folder / "val.txt").rename(folder / "valid.txt")
    (folder / "train.txt").write_text("my photo\na  1\n")
    data = load(folder)
    assert [sample.path.name for sample in data.split("train")] == ["my photo.png", "a.png"]
    assert [sample.path.name for sample in data.split("val")] == ["b.png"]


@pytest.mark.parametrize("form", ["folder", "exported"])
def test_macos_files_are_skipped(form, request):
    root = request.getfixturevalue(form)
    expected = {name: len(samples) for name, samples in load(root).splits.items()}
    for path in [*root.rglob("*.png"), *root.rglob("*.xml")]:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7")
    assert {name: len(samples) for name, samples in load(root).splits.items()} == expected
