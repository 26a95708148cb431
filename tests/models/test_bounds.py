"""Types and bounds of a checkpoint's header are checked before memory is allocated."""

from __future__ import annotations

import json
import struct
import time
from dataclasses import replace

import pytest
import safetensors.numpy

from tests.models.test_weights import SMALL, checkpoint, edit, join, split
from y7edge.artifact import bounds
from y7edge.artifact.description import describe
from y7edge.errors import CheckpointError, ConfigError
from y7edge.models import registry, shapes
from y7edge.models.spec import Row
from y7edge.models.weights import load, save

ROWS = [row.block for row in SMALL.rows]
CONV, POOL, WINDOW, CONCAT = 0, ROWS.index("maxpool"), 28, ROWS.index("concat")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "m.safetensors"
    save(checkpoint(), path)
    return path.read_bytes()


@pytest.fixture
def path(tmp_path, good):
    (tmp_path / "m.safetensors").write_bytes(good)
    return tmp_path / "m.safetensors"


def refused(path):
    """The message of the CheckpointError, raised at once."""
    started = time.process_time()
    with pytest.raises(CheckpointError) as caught:
        load(path)
    assert time.process_time() - started < 3
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def test_largest_published_models_are_far_below_the_bounds():
    for name in registry.names():
        spec = registry.get(name)
        shapes.require_affordable(spec, 1920, 1920)
        assert 5 * len(spec.rows) / 2 < bounds.MAX_ROWS
        assert 5 * shapes.parameters(spec) < bounds.MAX_PARAMETERS
        assert 5 * max(row.out for row in spec.rows) < bounds.MAX_CHANNELS
    with pytest.raises(ConfigError, match=r"values in memory at once.*smaller --imgsz"):
        shapes.require_affordable(registry.get("yolov7-e6e"), 4096, 4096)


@pytest.mark.parametrize("size", [(2176, 3840), (2560, 2560), (2560, 4096)], ids=str)
def test_requested_sizes_have_a_higher_limit(size):
    for name in registry.names():
        shapes.require_affordable(registry.get(name), *size, asked=True)
    with pytest.raises(ConfigError, match="values in memory at once"):
        shapes.require_affordable(registry.get("yolov7-d6"), 3840, 3840, asked=True)


@pytest.mark.parametrize("entry", ["kernel", "stride", "out", "stage", "index", "inputs", "block",
                                   "role", "identity"])  # fmt: skip
@pytest.mark.parametrize(
    "value", [None, True, -1, 0, 7, 1024, 10**9, 10**30, 1.5, 1e300, "x", [], [[1]], {}, [10**9]]
)
def test_row_with_an_invalid_value_is_refused(path, good, entry, value):
    for index in (CONV, POOL, CONCAT, len(ROWS) - 1):
        row = SMALL.to_dict()["rows"][index]
        if row[entry] == value and type(row[entry]) is type(value):
            continue
        edit(path, lambda ours, i=index: ours["spec"]["rows"][i].update({entry: value}))
        refused(path)
        path.write_bytes(good)


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("imgsz", 16384), ("imgsz", 10**30), ("imgsz", 0), ("imgsz", "640"), ("imgsz", 1.5),
        ("nc", 10**9), ("nc", True), ("nc", "3"), ("nc", 0),
        ("strides", [8, 16]), ("strides", [0, 8, 16]), ("strides", [32, 16, 8]),
        ("strides", [-8, 16, 32]), ("strides", ["8", 16, 32]), ("strides", []),
        ("anchors", []), ("anchors", [[], [], []]), ("anchors", [[[1, 1, 1]]] * 3),
        ("anchors", [[[1, 1e9]]] * 3), ("anchors", [[[0, 1]]] * 3),
        ("anchors", [[[1, 1]] * 65] * 3),
        ("anchors", [[["1", 1]]] * 3), ("rows", []), ("rows", [[]]), ("rows", {}), ("rows", None),
        ("name", "n" * 257), ("name", "a\nb"), ("name", 3), ("form", "fused"), ("form", []),
        ("activation", "relu"), ("activation", {}),
    ],
)  # fmt: skip
def test_spec_with_an_invalid_value_is_refused(path, entry, value):
    edit(path, lambda ours: ours["spec"].update({entry: value}))
    refused(path)


@pytest.mark.parametrize(
    "meta",
    [
        {"imgsz": 16384}, {"imgsz": [16384, 16384]}, {"imgsz": [64]}, {"imgsz": [64, 64, 64]},
        {"imgsz": -64}, {"imgsz": "64"}, {"imgsz": 64.5}, {"imgsz": True}, {"imgsz": 10**30},
        {"imgsz": 1}, {"epoch": "3"}, {"epoch": [3]}, {"licence": 3}, {"licence": ["a"]},
        {"thresholds": 3}, {"thresholds": [1]}, {"data": "path"}, {"data": [1]},
    ],
    ids=repr,
)  # fmt: skip
def test_metadata_with_an_invalid_value_is_refused(path, meta):
    edit(path, lambda ours: ours.update(meta=meta))
    assert "meta" in refused(path) or "imgsz" in str(meta)


def test_deeply_nested_metadata_is_refused(path):
    nested: dict = {}
    for _ in range(200):
        nested = {"a": nested}
    edit(path, lambda ours: ours.update(meta=nested))
    assert "nested more than" in refused(path)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "9" * 5000])
def test_non_json_numbers_are_refused(path, number):
    edit(path, lambda ours: ours["meta"].update(value="HERE"))
    header, payload = split(path)
    text = header["__metadata__"]["y7edge"].replace('"HERE"', number)
    header["__metadata__"]["y7edge"] = text
    join(path, header, payload)
    assert "header is damaged" in refused(path)


@pytest.mark.parametrize(
    "names",
    [["a"] * 3_000_000, ["a" * 257, "b", "c"], ["a\x1b[2J", "b", "c"], ["a", "b", 3], "abc"],
    ids=["many", "long", "escape", "number", "text"],
)  # fmt: skip
def test_class_names(path, names):
    edit(path, lambda ours: ours.update(names=names))
    refused(path)


def rows_of(*blocks):
    """Rows behind the image: (block, inputs, out, kernel, stride)."""
    return [Row(i, inputs, block, out, kernel, stride)  # type: ignore[arg-type]
            for i, (block, inputs, out, kernel, stride) in enumerate(blocks)]  # fmt: skip


def doubling(count):
    """Concatenations of each other: 2 ** count channels."""
    blocks, width = [("conv", (-1,), 8, 3, 2), ("conv", (0,), 8, 3, 2), ("conv", (1,), 8, 3, 2)], 8
    for index in range(2, count + 2):
        width *= 2
        blocks.append(("concat", (index, index), width, 1, 1))
    return blocks


def test_rows_with_excessive_memory_or_time_are_refused(path, good):
    down = [("conv", (-1,), 8, 3, 2), ("conv", (0,), 8, 3, 2), ("conv", (1,), 8, 3, 2)]
    same = [("conv", (-1,), 64, 1, 1)]
    for blocks, imgsz, reason in (
        (doubling(40), 64, "channels"),
        ([*down, *[("maxpool", (2,), 8, 10**9, 1)]], 64, "kernel"),
        ([*down, *[("maxpool", (i,), 8, 13, 1) for i in range(2, 900)]], 5000, "values to compute"),
        (
            [*down, *[("maxpool", (i,), 8, 5, 1) for i in range(2, 5000)]],
            64,
            "rows, expected at most",
        ),
        ([*same, *[("conv", (i,), 64, 3, 2) for i in range(3)]], 5792, "in memory at once"),
        (
            [*down, *[("upsample", (i,), 8, 1, 1) for i in range(2, 12)]],
            64,
            "larger than the image",
        ),
        ([*down, *[("maxpool", (i,), 8, 2, 2) for i in range(2, 30)]], 64, "of stride 2048"),
        ([*down, ("sppcspc", (2,), 32768, 1, 1)], 64, "parameters"),
    ):
        rows = rows_of(*blocks)
        rows.append(Row(len(rows), (len(rows) - 1,), "head", 0))
        anchors, strides = [[[8.0, 8.0]]], [8]
        change = {"rows": [row_dict(row) for row in rows], "anchors": anchors, "strides": strides}
        edit(path, lambda ours, c=change, s=imgsz: ours["spec"].update(c, imgsz=s))
        edit(path, lambda ours, s=imgsz: ours.update(meta={"imgsz": s}))
        assert reason in refused(path)
        path.write_bytes(good)


def row_dict(row):
    names = ("index", "inputs", "block", "out", "kernel", "stride", "role", "stage", "identity")
    return {name: getattr(row, name) for name in names}


@pytest.mark.parametrize(
    "imgsz", [(16384, 16384), (8192, 8192), (32, 10**30), (0, 32), (-32, 32), (33, 32)], ids=repr
)
def test_requested_sizes_are_checked(imgsz):
    made = checkpoint()
    with pytest.raises(ConfigError, match="imgsz"):
        describe(made, made.spec, imgsz, tools={})


@pytest.mark.parametrize("batch", [0, -1, 1025, 1024])
def test_excessive_batch_is_refused(batch):
    made = checkpoint()
    with pytest.raises(ConfigError, match=r"batch|images of"):
        describe(made, made.spec, (640, 640), batch=batch, tools={})


def test_a_model_with_too_many_parameters_is_not_built():
    wide = replace(SMALL, rows=tuple(
        replace(row, out=65536) if row.index in (0, 1) else row for row in SMALL.rows
    ))  # fmt: skip
    with pytest.raises(ConfigError, match="parameters, expected at most"):
        shapes.weight_shapes(wide)


# --- the file itself ------------------------------------------------------------------------------


def entries(count):
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    return json.dumps({f"k{i}": entry for i in range(count)}).encode()


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 2**40) + b"{}",
        struct.pack("<Q", 2**64 - 1) + b"{}",
        struct.pack("<Q", len(entries(300_000))) + entries(300_000),
        struct.pack("<Q", 100_000) + b"[" * 100_000,
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 2) + b"\xff\xfe",
        b"",
        b"\0" * 100,
    ],
    ids=["length", "longest", "tensors", "deep", "empty", "list", "bytes", "nothing", "zeros"],
)
def test_headers(tmp_path, content):
    (tmp_path / "m.safetensors").write_bytes(content)
    refused(tmp_path / "m.safetensors")


def test_file_longer_than_its_rows_is_refused(path):
    with path.open("r+b") as stream:
        stream.truncate(1 << 34)
    assert "longer than" in refused(path)


def test_overlapping_tensors_and_wrong_types_are_refused(path):
    header, payload = split(path)
    keys = [key for key in header if key != "__metadata__"]
    for change in (
        {keys[1]: header[keys[0]]},
        {keys[0]: {**header[keys[0]], "dtype": "BF16"}},
        {keys[0]: {**header[keys[0]], "shape": [2**40, 2**40]}},
        {keys[0]: {**header[keys[0]], "data_offsets": [10**12, 0]}},
        {keys[0]: []},
        {keys[0]: None},
    ):
        join(path, {**header, **change}, payload)
        refused(path)


def test_files_are_read_without_mmap(path, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("a mapped file that another program shortens kills the process")

    monkeypatch.setattr(safetensors, "safe_open", fail)
    assert load(path).spec == SMALL
