"""Inputs: data sets with unusual label files, descriptions, lists and images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.attack import mutate
from tests.attack.base import Attack, Make, Place

LINES = {
    "not numbers": "a b c d e",
    "infinite": "0 inf nan 1e999 -inf",
    "hexadecimal": "0 0x1p-1 0.5 0.2 0.2",
    "digits of other scripts": "0 ٠.٥ ０.５ 0.2 0.2",
    "underscores": "0_0 0.5_0 0.5 0.2 0.2",
    "huge class": "99999999999999999999 0.5 0.5 0.2 0.2",
    "class of 5000 digits": "9" * 5000 + " 0.5 0.5 0.2 0.2",
    "class as an exponent": "1e0 0.5 0.5 0.2 0.2\n1e308 0.5 0.5 0.2 0.2",
    "number of 100,000 digits": "0 0." + "5" * 100_000 + " 0.5 0.2 0.2",
    "a line of a million numbers": "0 " + "0.5 " * 1_000_000,
    "two hundred thousand lines": "0 0.5 0.5 0.2 0.2\n" * 200_000,
    "half a million different lines": "\n".join(f"0 0.5 0.5 0.2 0.{i}" for i in range(1, 500_000)),
    "odd counts": "0 0.5\n0 0.5 0.5\n0 0.5 0.5 0.2\n0 0.5 0.5 0.2 0.2 0.1\n0 1 2 3 4 5 6 7 8 9",
    "terminal escapes": "\x1b[2J\x1b]0;x\x07 0.5 0.5 0.2 0.2",
    "zeros": "0 0.5 0.5 0.2 0.2\0\0\0\0",
    "only zeros": "\0" * 4096,
    "byte order marks": "\ufeff\ufeff0 0.5 0.5 0.2 0.2",
    "old line ends": "0 0.5 0.5 0.2 0.2\r1 0.5 0.5 0.1 0.1\r",
    "line separators": "0 0.5 0.5 0.2 0.2\u20280 0.1 0.1 0.1 0.1\x0b\x0c\x1c",
    "signs": "+0 +0.5 -0.5 --1 1e-400",
    "comma": "0,0.5,0.5,0.2,0.2",
    "html": mutate.HTML,
    "formula": f"{mutate.FORMULA} 0.5 0.5 0.2 0.2",
    "a polygon with 100,000 points": "0 " + "0.1 0.2 0.3 0.1 " * 50_000,
    "pixels": "0 1e9 1e9 1e9 1e9\n0 -5 -5 1e-30 1e-30",
    "denormal": "0 5e-324 5e-324 5e-324 5e-324",
    "minus zero": "-0 0.5 0.5 -0.0 0.2",
}
YAML = {
    "alias bomb": "a0: &a0 [x]\n"
    + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 20))
    + "train: images/train\nnames: *a19\n",
    "merge bomb": "a0: &a0 {x: 1}\n"
    + "".join(
        f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}], k{i}: 1}}\n" for i in range(1, 12)
    ),
    "holds itself": "&a train: *a\nnames: [x]\n",
    "names hold themselves": "train: images/train\nnames: &a [*a]\n",
    "merge of itself": "&a\n<<: *a\ntrain: images/train\n",
    "a million classes": "train: images/train\nval: images/val\nnc: 1000000000000\n",
    "huge nc": f"train: images/train\nnc: {'9' * 4000}\nnames: [a]\n",
    "nc of 10,000 digits": f"train: images/train\nnc: {'9' * 10_000}\nnames: [a]\n",
    "nc in sexagesimal": f"train: images/train\nnc: {'9:' * 3000}9\nnames: [a]\n",
    "nc in binary": f"train: images/train\nnc: 0b{'1' * 100_000}\nnames: [a]\n",
    "odd tags": "train: !!timestamp 9999-99-99\nnames: !!bool maybe\n",
    "timestamp": "train: images/train\nnames: [2001-99-99]\n",
    "int tag": "train: images/train\nnc: !!int x\nnames: [a]\n",
    "binary tag": "train: !!binary '===='\nnames: [a]\n",
    "set, pairs, omap": "train: !!set {a, b}\nnames: !!pairs [a: 1]\nnc: !!omap [a: 1]\n",
    "python tags": "train: !!python/object/apply:os.system ['touch y7edge_canary']\nnames: [a]\n",
    "python name": "train: !!python/name:os.system\nnames: [a]\n",
    "python module": "train: !!python/module:y7edge_canary\n",
    "unhashable key": "? [a, b]\n: 1\n? {a: 1}\n: 2\ntrain: images/train\n",
    "deep": "names: " + "[" * 3000 + "]" * 3000 + "\n",
    "very deep": "names: " + "{a: " * 50_000,
    "deep block": "".join("  " * i + f"a{i}:\n" for i in range(1500)),
    "a million entries": "names: [" + "a, " * 300_000 + "]\ntrain: images/train\n",
    "ten megabytes of text": "names: [" + "x" * 10_000_000 + "]\n",
    "control characters": 'train: images/train\nnames: [\'a\x1b[2J\', "b\\x07", "\\ud800"]\n',
    "surrogate escape": 'train: images/train\nval: images/val\nnames: ["\\ud83d\\ude00", b, c]\n',
    "duplicate keys": "train: a\ntrain: b\nnames: [a]\nnames: [b]\n",
    "absolute and parents": "path: /\ntrain: ../../../../etc\nval: /etc\nnames: [a]\n",
    "paths of devices": "train: /dev/zero\nval: /dev/stdin\nnames: [a]\n",
    "paths as numbers": "path: 1\ntrain: [1, null, {a: 1}]\nval: 2.5\nnames: {a: b}\n",
    "path of 5000 letters": f"train: {'a/' * 5000}\nnames: [a]\n",
    "path with a zero": 'train: "a\\0b"\nval: "\\0"\nnames: [a]\n',
    "names by odd keys": "train: images/train\nnames: {1.5: a, null: b, true: c, -1: d, [x]: e}\n",
    "names far apart": "train: images/train\nnames: {0: a, 99999999999: b}\n",
    "keypoints": "train: images/train\nnames: [a]\nkpt_shape: [1000000000, 1000000000]\n",
    "odd keypoints": "train: images/train\nnames: [a]\nkpt_shape: {a: -1}\nlevels: [a, 1e999]\n",
    "levels": "train: images/train\nval: images/val\nnames: [a, b, c]\nlevels: [-1e30, .nan]\n",
    "documents": "train: a\n---\nnames: [a]\n---\n",
    "directives": "%YAML 9.9\n%TAG ! tag:x,2000:\n---\ntrain: a\n",
    "undefined alias": "train: *nothing\n",
    "names in html": f"train: images/train\nval: images/val\nnames: ['{mutate.HTML}', b, c]\n",
    "names as formulas": "train: images/train\nval: images/val\n"
    f'names: ["{mutate.FORMULA}", b, c]\n',
    "names of numbers": "train: images/train\nval: images/val\nnames: [1, 2.5, .nan]\n",
    "names all equal": "train: images/train\nval: images/val\nnames: [a, a, a]\n",
    "empty": "",
    "only a comment": "#",
    "a scalar": "42",
    "a list": "- 1\n- 2\n",
    "not utf-8": "train: \udcff\udcfe\nnames: [\udce9]\n",
    "tabs": "train:\timages/train\n\tnames: [a]\n",
}


def write(path: Path, text: str) -> None:
    path.write_bytes(text.encode("utf-8", "surrogateescape"))


def _line(text: str) -> Make:
    def make(place: Place) -> Path:
        root = place.copy("yolo")
        encoded = text.encode("utf-8", "surrogatepass")
        (root / "labels/train/train0.txt").write_bytes(encoded)
        return root

    return make


def _described(text: str) -> Make:
    def make(place: Place) -> Path:
        root = place.copy("yolo")
        write(root / "data.yaml", text)
        return root if place.rng.random() < 0.5 else root / "data.yaml"

    return make


def _yolo(place: Place) -> Path:
    root = place.copy("yolo")
    files = sorted((root / "labels").rglob("*.txt"))
    for file in place.rng.sample(files, place.rng.choice((1, 2))):
        mutate.file(place.rng, file, mutate.text, mutate.text, mutate.raw)
    return root


def _description(place: Place) -> Path:
    root = place.copy("yolo")
    mutate.file(place.rng, root / "data.yaml", mutate.text, _yaml_tree, _yaml_tree, mutate.raw)
    return root


def _yaml_tree(rng: Any, data: bytes) -> bytes:
    import yaml

    try:
        changed = mutate.tree(rng, yaml.safe_load(data))
    except Exception:  # PyYAML's constructors may raise anything
        return mutate.text(rng, data)
    try:
        return yaml.safe_dump(changed, allow_unicode=True).encode("utf-8", "surrogatepass")
    except (yaml.YAMLError, ValueError, RecursionError):
        return mutate.dumps(changed).encode()


# --- COCO and Pascal VOC --------------------------------------------------------------------------


def _coco_file(place: Place, edit: Callable[[dict[str, Any]], object]) -> Path:
    root = place.copy("coco")
    path = root / "annotations/instances_train.json"
    content = json.loads(path.read_text())
    changed = edit(content)
    path.write_text(mutate.dumps(content if changed is None else changed))
    return root


def _coco(edit: Callable[[dict[str, Any]], object]) -> Make:
    return lambda place: _coco_file(place, edit)


def _coco_text(text: str) -> Make:
    def make(place: Place) -> Path:
        root = place.copy("coco")
        write(root / "annotations/instances_train.json", text)
        return root

    return make


def _each(content: dict[str, Any], kind: str, **values: Any) -> None:
    for entry in content[kind]:
        entry.update(values)


def _coco_json(place: Place) -> Path:
    root = place.copy("coco")
    path = root / "annotations" / place.rng.choice(("instances_train.json", "instances_val.json"))
    mutate.file(place.rng, path, *[mutate.in_json] * 4, mutate.text, mutate.raw)
    return root


COCO: dict[str, Make] = {
    "file_name escapes": _coco(
        lambda c: _each(c, "images", file_name="../../../outside/secret.jpg")
    ),
    "file_name absolute": _coco(lambda c: _each(c, "images", file_name="/etc/passwd")),
    "file_name of a device": _coco(lambda c: _each(c, "images", file_name="/dev/zero")),
    "file_name with a zero": _coco(lambda c: _each(c, "images", file_name="a\0b.jpg")),
    "file_name of 5000 letters": _coco(lambda c: _each(c, "images", file_name="a" * 5000)),
    "file_name a surrogate": _coco(lambda c: _each(c, "images", file_name="\ud800.jpg")),
    "file_name with escapes": _coco(lambda c: _each(c, "images", file_name="\x1b[2J.jpg")),
    "file_name a folder": _coco(lambda c: _each(c, "images", file_name=".")),
    "ids are lists": _coco(lambda c: _each(c, "images", id=[1])),
    "ids are objects": _coco(lambda c: _each(c, "annotations", image_id={"a": 1})),
    "ids are NaN": _coco(lambda c: _each(c, "images", id=float("nan"))),
    "ids are true": _coco(lambda c: _each(c, "annotations", category_id=True)),
    "huge ids": _coco(lambda c: _each(c, "categories", id=10**400)),
    "widths are infinite": _coco(lambda c: _each(c, "images", width=float("inf"), height=1e308)),
    "widths are text": _coco(lambda c: _each(c, "images", width="96", height="x")),
    "boxes are infinite": _coco(lambda c: _each(c, "annotations", bbox=[float("inf")] * 4)),
    "boxes are huge": _coco(lambda c: _each(c, "annotations", bbox=[1e308] * 4)),
    "boxes are integers of 400 digits": _coco(
        lambda c: _each(c, "annotations", bbox=[10**400] * 4)
    ),
    "boxes are objects": _coco(lambda c: _each(c, "annotations", bbox={"x": 1})),
    "outlines are nested": _coco(lambda c: _each(c, "annotations", segmentation=mutate.deep(300))),
    "outlines have odd counts": _coco(lambda c: _each(c, "annotations", segmentation=[[1, 2, 3]])),
    "outlines are huge": _coco(lambda c: _each(c, "annotations", segmentation=[[10**400] * 8])),
    "run lengths": _coco(
        lambda c: _each(c, "annotations", segmentation={"size": [10**9, 10**9], "counts": [10**18]})
    ),
    "compressed run lengths": _coco(
        lambda c: _each(
            c, "annotations", segmentation={"size": [64, 96], "counts": "\x00ÿoo" * 999}
        )
    ),
    "iscrowd is text": _coco(lambda c: _each(c, "annotations", iscrowd="yes")),
    "names are numbers": _coco(lambda c: _each(c, "categories", name=1)),
    "names are HTML": _coco(lambda c: _each(c, "categories", name=mutate.HTML)),
    "names are formulas": _coco(lambda c: _each(c, "categories", name=mutate.FORMULA)),
    "names are surrogates": _coco(lambda c: _each(c, "categories", name="\ud800")),
    "names are escapes": _coco(lambda c: _each(c, "categories", name="\x1b[2J")),
    "names of 100,000 letters": _coco(lambda c: _each(c, "categories", name="x" * 100_000)),
    "supercategories loop": _coco(
        lambda c: _each(c, "categories", supercategory="nut", name="nut")
    ),
    "40,000 categories": _coco(
        lambda c: c.update(categories=[{"id": i, "name": f"n{i}"} for i in range(40_000)])
    ),
    "40,000 equal categories": _coco(
        lambda c: c.update(categories=[{"id": i, "name": "n"} for i in range(40_000)])
    ),
    "40,000 images of one id": _coco(
        lambda c: c.update(
            images=[{**c["images"][0], "file_name": f"{i}.jpg"} for i in range(40_000)]
        )
    ),
    "30,000 objects in an image": _coco(
        lambda c: c.update(
            annotations=[
                {**c["annotations"][0], "id": i, "bbox": [i % 60, i % 40, 9 + i % 13, 9 + i % 11]}
                for i in range(30_000)
            ]
        )
    ),
    "30,000 equal objects": _coco(lambda c: c.update(annotations=c["annotations"][:1] * 30_000)),
    "everything is null": _coco(lambda c: c.update(images=None, annotations=None, categories=None)),
    "everything is an object": _coco(lambda c: c.update(images={}, annotations={}, categories={})),
    "entries are texts": _coco(
        lambda c: c.update(images=["a"], annotations=["b"], categories=["c"])
    ),
    "entries are null": _coco(lambda c: c.update(images=[None], annotations=[None])),
    "a list": _coco(lambda c: [c]),
    "deep lists": _coco_text("[" * 200_000),
    "deep objects": _coco_text('{"images":' * 100_000),
    "deep and closed": _coco_text('{"images":' + "[" * 50_000 + "]" * 50_000 + "}"),
    "number of 10,000 digits": _coco_text(
        '{"images":[],"annotations":[],"x":' + "9" * 10_000 + "}"
    ),
    "nothing": _coco_text(""),
    "zeros": _coco_text("\0" * 1000),
    "not utf-8": _coco_text('{"images": "\udcff"}'),
    "one key 100,000 times": _coco_text("{" + '"images":[],' * 100_000 + '"categories":[]}'),
}


def _voc_text(text: str, name: str = "Annotations/train0.xml") -> Make:
    def make(place: Place) -> Path:
        root = place.copy("voc")
        write(root / name, text)
        return root

    return make


def _voc_edit(old: str, new: str) -> Make:
    def make(place: Place) -> Path:
        root = place.copy("voc")
        for path in (root / "Annotations").glob("*.xml"):
            content = path.read_text(encoding="utf-8")
            write(path, content.replace(old, new))
        return root

    return make


def _voc_xml(place: Place) -> Path:
    root = place.copy("voc")
    file = place.rng.choice(sorted((root / "Annotations").iterdir()))
    mutate.file(place.rng, file, mutate.text, mutate.text, mutate.raw)
    return root


def _objects(count: int, name: str = "nut{}") -> str:
    objects = "".join(
        f"<object><name>{name.format(i % 7)}</name><bndbox><xmin>{i % 50}</xmin>"
        f"<ymin>{i % 30}</ymin>"
        f"<xmax>{60 + i % 30}</xmax><ymax>{40 + i % 20}</ymax></bndbox></object>"
        for i in range(count)
    )
    return (
        "<annotation><filename>train0.jpg</filename><size><width>96</width><height>64</height>"
        f"<depth>3</depth></size>{objects}</annotation>"
    )


_ENTITIES = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 12))
VOC: dict[str, Make] = {
    "a billion laughs": _voc_text(
        f'<!DOCTYPE x [<!ENTITY a0 "ha">{_ENTITIES}]><annotation>&a11;</annotation>'
    ),
    "quadratic entity": _voc_text(
        f'<!DOCTYPE x [<!ENTITY a "{"x" * 100_000}">]><annotation>{"&a;" * 10_000}</annotation>'
    ),
    "external entity": _voc_text(
        '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><annotation><filename>&a;</filename>'
        "</annotation>"
    ),
    "external dtd": _voc_text('<!DOCTYPE x SYSTEM "http://127.0.0.1:1/x.dtd"><annotation/>'),
    "parameter entity": _voc_text(
        '<!DOCTYPE x [<!ENTITY % a SYSTEM "http://127.0.0.1:1/"> %a;]><annotation/>'
    ),
    "20,000 objects": _voc_text(_objects(20_000)),
    "20,000 equal objects": _voc_text(
        _objects(1).replace("</object>", "</object>" + "<object/>" * 20_000)
    ),
    "20,000 classes": _voc_text(
        "".join(
            ["<annotation><filename>train0.jpg</filename>"]
            + [
                f"<object><name>c{i}</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax>"
                "<ymax>9</ymax></bndbox></object>"
                for i in range(20_000)
            ]
            + ["</annotation>"]
        )
    ),
    "deep": _voc_text("<annotation>" + "<a>" * 100_000),
    "deep and closed": _voc_text(
        "<annotation>" + "<a>" * 30_000 + "</a>" * 30_000 + "</annotation>"
    ),
    "deep objects": _voc_text(
        "<annotation>" + "<object>" * 20_000 + "</object>" * 20_000 + "</annotation>"
    ),
    "unknown encoding": _voc_text('<?xml version="1.0" encoding="x-nothing"?><annotation/>'),
    "utf-7": _voc_text('<?xml version="1.0" encoding="utf-7"?><annotation/>'),
    "another root": _voc_text("<html><body/></html>"),
    "no size": _voc_edit("<size>", "<sizes>"),
    "names missing": _voc_edit("<name>nut</name>", ""),
    "names with escapes": _voc_edit("<name>nut</name>", "<name>&#x9b;31m&#x202e;</name>"),
    "names of HTML": _voc_edit("<name>nut</name>", f"<name><![CDATA[{mutate.HTML}]]></name>"),
    "names of formulas": _voc_edit("<name>nut</name>", f"<name>{mutate.FORMULA}</name>"),
    "names of 100,000 letters": _voc_edit("<name>nut</name>", f"<name>{'x' * 100_000}</name>"),
    "names with children": _voc_edit("<name>nut</name>", "<name><b>nut</b></name>"),
    "names on lines": _voc_edit("<name>nut</name>", "<name>n\nu\nt</name>"),
    "widths are infinite": _voc_edit("<width>96", "<width>inf"),
    "widths are text": _voc_edit("<width>96", "<width>ninety-six"),
    "widths have 5000 digits": _voc_edit("<width>96", "<width>" + "9" * 5000),
    "corners are NaN": _voc_edit("<xmin>", "<xmin>nan</xmin><xmin>"),
    "corners are huge": _voc_edit("<xmin>", "<xmin>1e309</xmin><x>"),
    "corners are empty": _voc_edit("<xmin>", "<xmin/><x>"),
    "filename escapes": _voc_edit(
        "<filename>", "<filename>../../../outside/secret.jpg</filename><f>"
    ),
    "filename of a device": _voc_edit("<filename>", "<filename>/dev/zero</filename><f>"),
    "folder escapes": _voc_edit("<folder>", "<folder>../../..</folder><f>"),
    "namespaces": _voc_edit("<annotation>", '<annotation xmlns="urn:x" xmlns:a="urn:y">'),
    "instructions": _voc_edit("<annotation>", "<annotation><?php system('y7edge_canary') ?>"),
    "list of escapes": _voc_text(
        "../../../outside/secret\n/etc/passwd\n", "ImageSets/Main/train.txt"
    ),
    "list of controls": _voc_text("\x1b[2J\n\0\n\udcff\n" + "x" * 5000, "ImageSets/Main/train.txt"),
    "list of a million": _voc_text("train0\n" * 1_000_000, "ImageSets/Main/train.txt"),
    "list in columns": _voc_text("train0 1 2 3\n-1 train1\n", "ImageSets/Main/train.txt"),
    "list is empty": _voc_text("", "ImageSets/Main/train.txt"),
}


# --- readers --------------------------------------------------------------------------------------


def load(path: Path) -> None:
    """Load the data set for training; the samples must be valid."""
    from y7edge.data import dataset

    data = dataset.load(path)
    for samples in data.splits.values():
        for sample in samples:
            boxes = sample.boxes
            assert np.isfinite(boxes).all() and (boxes >= 0).all() and (boxes <= 1).all(), "boxes"
            assert ((sample.class_id >= 0) & (sample.class_id < len(data.names))).all(), "classes"
    assert len(data.digest) == 64


def check(path: Path) -> None:
    """Check the data set and write the page."""
    from y7edge.data.check.examine import examine, record
    from y7edge.data.check.report import write_page

    report = examine(path)
    json.dumps(record(report), default=str)
    made = Path("made")
    made.mkdir()
    write_page(report, made / "page.html")
    page = (made / "page.html").read_text("utf-8", "surrogateescape")
    assert mutate.HTML not in page, "HTML from the data stands in the page"


def fix(path: Path) -> None:
    """Write a cleaned copy."""
    from y7edge.data.check.examine import examine
    from y7edge.data.check.fix import write_copy

    Path("made").mkdir()
    out = Path("made/copy")
    write_copy(examine(path), out)
    changes = out / "changes.csv"
    if changes.exists():
        text = changes.read_text("utf-8", "surrogateescape")
        assert "\n=" not in text and ",=" not in text and ',"=' not in text, "a formula in CSV"


READS = {"load": load, "check": check, "fix": fix}
COMMANDS = (
    "data check {}",
    "data check {} --json",
    "data check {} --fix {out} --save {out}.html",
    "val {material}/model.onnx --data {} --json",
)
ATTACKS = (
    Attack("yolo", 420, {k: _line(v) for k, v in LINES.items()}, _yolo, READS, COMMANDS),
    Attack(
        "description",
        480,
        {k: _described(v) for k, v in YAML.items()},
        _description,
        READS,
        COMMANDS,
    ),
    Attack("coco", 560, COCO, _coco_json, READS, COMMANDS),
    Attack("voc", 480, VOC, _voc_xml, READS, COMMANDS),
)
