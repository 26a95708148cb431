"""Own checkpoints: what is saved is loaded; damaged files and other formats are refused."""

from __future__ import annotations

import json
import struct
import sys
from dataclasses import replace

import numpy as np
import pytest

from y7edge.errors import CheckpointError, RuntimeMissing
from y7edge.models import registry, scale, weights
from y7edge.models.shapes import weight_shapes
from y7edge.models.weights import Checkpoint, default_names, load, save

SMALL = scale(registry.get("yolov7-tiny", nc=3), width=0.25)


def checkpoint(spec=SMALL, seed=0, **changes):
    rng = np.random.default_rng(seed)
    arrays = {}
    for key, shape in weight_shapes(spec).items():
        if key.endswith("num_batches_tracked"):
            arrays[key] = np.array(seed + 5, np.int64)
        elif key.endswith(".anchors"):
            strides = np.array(spec.strides)[:, None, None]
            arrays[key] = (np.array(spec.anchors) / strides).astype(np.float32)
        else:
            arrays[key] = rng.standard_normal(shape).astype(np.float32)
    made = Checkpoint(spec, arrays, ("nut", "washer", "螺丝"), {"metrics": {"map50": 0.5}})
    return replace(made, **changes)


@pytest.fixture
def path(tmp_path):
    save(checkpoint(), tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def split(path):
    """(header, tensor bytes) of a safetensors file."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(path, header, payload):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + payload)


def edit(path, change):
    """Change our own entry of the header, as JSON."""
    header, payload = split(path)
    ours = json.loads(header["__metadata__"]["y7edge"])
    change(ours)
    header["__metadata__"]["y7edge"] = json.dumps(ours)
    join(path, header, payload)


def refused(path, match):
    with pytest.raises(CheckpointError, match=match) as caught:
        load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["training", "deploy", "folded"])
def test_round_trip(tmp_path, form):
    specs = {
        "training": SMALL,
        "deploy": registry.deploy(SMALL),
        "folded": registry.folded(SMALL),
    }
    made = checkpoint(specs[form])
    save(made, tmp_path / "new" / "m.safetensors")
    read = load(tmp_path / "new" / "m.safetensors")
    assert (read.spec, read.names, read.meta) == (made.spec, made.names, made.meta)
    assert read.form == form
    assert read.arrays.keys() == made.arrays.keys()
    for key, array in made.arrays.items():
        assert read.arrays[key].dtype == array.dtype
        assert np.array_equal(read.arrays[key], array)
    assert read.digest == made.digest


def test_saved_bytes_are_deterministic(tmp_path, path):
    made = checkpoint()
    backwards = dict(reversed(made.arrays.items()))
    meta = {"metrics": {"map50": 0.5}}
    save(replace(made, arrays=backwards, meta=meta), tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_float64_is_stored_as_float32(tmp_path):
    made = checkpoint()
    doubles = {k: v.astype(np.float64) if v.ndim else v for k, v in made.arrays.items()}
    save(replace(made, arrays=doubles), tmp_path / "m.safetensors")
    assert load(tmp_path / "m.safetensors").digest == made.digest


@pytest.mark.parametrize(
    "change",
    [
        {"spec": replace(SMALL, activation="silu")},
        {"names": ("nut", "washer", "bolt")},
        {"arrays": checkpoint(seed=1).arrays},
    ],
    ids=["spec", "names", "arrays"],
)
def test_digest_differs_between_models(change):
    assert checkpoint(**change).digest != checkpoint().digest


def test_digest_excludes_metadata():
    assert checkpoint(meta={}).digest == checkpoint().digest


def test_default_names():
    assert default_names(3) == ("0", "1", "2")


def changed_array(key, array):
    return {**checkpoint().arrays, key: array}


KEY = "rows.3.bn.bias"
COUNTER = "rows.0.bn.num_batches_tracked"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"names": ("nut",)}, "1 class names for 3 classes"),
        ({"names": ("nut", "washer", 3)}, "3 class names"),
        ({"arrays": changed_array(KEY, np.zeros(9, np.float32))}, r"bn\.bias has shape \(9,\)"),
        ({"arrays": changed_array(KEY, np.array([np.nan] * 8))}, "NaN or infinity"),
        ({"arrays": changed_array(KEY, np.array([1e300] * 8))}, "NaN or infinity"),
        ({"arrays": changed_array(COUNTER, np.array(1.0))}, "expected int64"),
        ({"arrays": changed_array("rows.99.conv.weight", np.zeros(1))}, "unexpected rows.99"),
        (
            {"arrays": changed_array("rows.77.anchors", np.ones((3, 3, 2)))},
            "expected equal anchors",
        ),
        ({"arrays": {}}, "missing rows.0.conv.weight, .* and 340 more"),
        ({"meta": {"loss": float("nan")}}, "metadata is not valid JSON"),
        ({"meta": {"path": object()}}, "metadata is not valid JSON"),
    ],
)
def test_invalid_checkpoint_is_not_saved(tmp_path, change, match):
    with pytest.raises(CheckpointError, match=match):
        save(checkpoint(**change), tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_failed_save_keeps_the_old_file(path):
    before = path.read_bytes()
    with pytest.raises(CheckpointError):
        save(checkpoint(names=()), path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_missing_file_is_refused(tmp_path):
    refused(tmp_path / "absent.safetensors", "no such file")


@pytest.mark.parametrize("keep", [0, 5, 300, 0.5, 0.9999])
def test_truncated_file_is_refused(path, keep):
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    refused(path, "not a complete safetensors file")


@pytest.mark.parametrize("content", [b"PK\x03\x04" + bytes(99), b"{}", b"\x89PNG" * 9])
def test_other_formats_are_refused(path, content):
    path.write_bytes(content)
    refused(path, "not a complete safetensors file")
    refused(path.rename(path.with_suffix(".onnx")), "expected a checkpoint, a .safetensors or .pt")


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}])
def test_file_of_another_tool_is_refused(path, metadata):
    header, payload = split(path)
    header.pop("__metadata__")
    join(path, header if metadata is None else {"__metadata__": metadata, **header}, payload)
    refused(path, "metadata entry 'y7edge'")


def test_newer_schema_is_refused(path):
    edit(path, lambda ours: ours.update(schema=2))
    refused(path, "schema 2, .* reads up to 1; update y7edge")


@pytest.mark.parametrize(
    "change",
    [
        lambda ours: ours.update(schema=0),
        lambda ours: ours.update(schema="1"),
        lambda ours: ours.pop("spec"),
        lambda ours: ours.pop("digest"),
        lambda ours: ours.update(names="abc"),
        lambda ours: ours.update(meta=[]),
        lambda ours: ours["spec"].pop("rows"),
        lambda ours: ours["spec"]["rows"][0].update(inputs=[5]),
        lambda ours: ours["spec"].update(surplus=1),
    ],
)
def test_damaged_header_is_refused(path, change):
    edit(path, change)
    refused(path, "y7edge header is damaged")


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '"x"', "[" * 100_000])
def test_header_that_is_not_a_json_object_is_refused(path, text):
    header, payload = split(path)
    header["__metadata__"]["y7edge"] = text
    join(path, header, payload)
    refused(path, "y7edge header is damaged")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda ours: ours["names"].reverse(), "was changed after it was written"),
        (lambda ours: ours["spec"].update(activation="silu"), "was changed"),
        (lambda ours: ours["names"].pop(), "2 class names for 3 classes"),
        (lambda ours: ours["spec"].update(nc=4, name="other"), "class names"),
        (lambda ours: ours["spec"]["anchors"][0][0].reverse(), "expected equal anchors"),
    ],
)
def test_changed_header_is_refused(path, change, match):
    edit(path, change)
    refused(path, match)


def test_changed_weight_is_refused(path):
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    path.write_bytes(data)
    refused(path, "was changed|NaN")


def test_wrong_dtype_or_key_is_refused(path):
    header, payload = split(path)
    renamed = {key.replace("rows.3.", "rows.333."): value for key, value in header.items()}
    join(path, renamed, payload)
    refused(path, "missing rows.3.conv.weight.*unexpected rows.333")
    header["rows.0.bn.num_batches_tracked"]["dtype"] = "F64"
    join(path, header, payload)
    refused(path, "num_batches_tracked is float64, expected int64")


def test_full_disk_keeps_the_old_file(path, monkeypatch):
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("y7edge.files.os.fsync", full)
    with pytest.raises(CheckpointError, match="cannot be written: the disk is full"):
        weights.save(load(path), path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_without_safetensors(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(RuntimeMissing, match=r'pip install "y7edge\[export\]"'):
        load(path)


def test_pt_suffix_uses_the_published_reader(tmp_path):
    (tmp_path / "m.PT").write_bytes(b"GIF89a")
    with pytest.raises(CheckpointError, match=r"not a file of torch\.save"):
        weights.load(tmp_path / "m.PT")
