"""Damaged and hostile files in the two containers of torch.save are refused."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zipfile

import pytest
import torch

from tests.models.published import hostile_files as hostile
from tests.models.published import published_files as published
from y7edge.errors import CheckpointError
from y7edge.models.published import container, official
from y7edge.models.published.container import opened

PLAIN = hostile.program(hostile.mapping(weight=hostile.tensor()))
BOTH = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])


def refused(path, match):
    with pytest.raises(CheckpointError, match=match) as caught:
        official.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@BOTH
def test_tensor_round_trip(tmp_path, legacy):
    base = torch.arange(24, dtype=torch.float64)
    values = {
        "whole": base.view(2, 3, 4),
        "turned": base.view(4, 6).t(),
        "part": base[5:9],
        "half": torch.tensor([1.5, -2.0]).half(),
        "scalar": torch.tensor(9),
        "parameter": torch.nn.Parameter(torch.tensor([0.25])),
        "empty": torch.zeros(0, 3),
    }
    path = published.write(tmp_path / "m.pt", values, legacy=legacy)
    with opened(path) as file:
        assert file.kind == ("legacy stream" if legacy else "zip")
        for name, tensor in values.items():
            array = file.array(file.value[name])
            expected = tensor.detach().numpy()
            assert array.dtype == expected.dtype and array.shape == expected.shape
            assert (array == expected).all(), name


@BOTH
@pytest.mark.parametrize("keep", [0.05, 0.5, 0.999])
def test_truncated_file_is_refused(tmp_path, legacy, keep):
    state = {"model.0.conv.weight": torch.rand(300, 7)}
    path = published.write(tmp_path / "m.pt", state, legacy=legacy)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    refused(path, "damaged|truncated")


def test_flipped_bit_is_detected(tmp_path):
    path = published.write(tmp_path / "m.pt", {"w": torch.full((1000,), 2.0)})
    data = bytearray(path.read_bytes())
    data[data.find(struct.pack("<4f", 2, 2, 2, 2)) + 1] ^= 1
    path.write_bytes(data)
    with opened(path) as file, pytest.raises(CheckpointError, match="Bad CRC-32"):
        file.array(file.value["w"])


@pytest.mark.parametrize(
    "content",
    [b"GIF89a" + bytes(300), b"\x89PNG\r\n", pickle.dumps(7), b"\x08\x08\x12\x07pytorch"],
    ids=["gif", "png", "pickle", "onnx"],
)
def test_other_formats_are_refused(tmp_path, content):
    (tmp_path / "m.pt").write_bytes(content)
    refused(tmp_path / "m.pt", "not a file of torch.save")


def test_tar_archive_is_refused(tmp_path):
    with tarfile.open(tmp_path / "m.pt", "w") as archive:
        archive.addfile(tarfile.TarInfo("pickle"), io.BytesIO())
    refused(tmp_path / "m.pt", "not a file of torch.save")


def test_missing_and_empty_files_are_refused(tmp_path):
    refused(tmp_path / "absent.pt", "no such file")
    refused(tmp_path, "found a folder")
    (tmp_path / "m.pt").touch()
    refused(tmp_path / "m.pt", "is empty")


def test_traced_model_is_refused(tmp_path):
    path = hostile.write_zip(tmp_path / "m.pt", PLAIN, {"constants.pkl": b"", "data/0": bytes(16)})
    refused(path, "a traced TorchScript model")


@pytest.mark.parametrize(
    ("records", "match"),
    [
        ({}, "storage 0 has no bytes, expected 16"),
        ({"data/0": bytes(15)}, "storage 0 has 15 bytes"),
        ({"data/0": bytes(17)}, "storage 0 has 17 bytes"),
        ({"data/0": bytes(16), "byteorder": b"big"}, "byte order is not little-endian"),
        ({"data/0": bytes(16), "../../evil": b""}, "expected all records in one folder"),
        ({"data/0": bytes(16), "x\\y": b""}, "expected all records in one folder"),
        ({"data/0": bytes(16), "/etc/passwd": b""}, "expected all records in one folder"),
    ],
)
def test_invalid_records_are_refused(tmp_path, records, match):
    refused(hostile.write_zip(tmp_path / "m.pt", PLAIN, records), match)


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (["archive/version"], "without data.pkl"),
        (["data.pkl"], "in one folder"),
        (["a/data.pkl", "b/data/0"], "in one folder"),
        (["/a/data.pkl"], "in one folder"),
        ([], "damaged zip|not a file"),
    ],
)
def test_invalid_record_names_are_refused(tmp_path, names, match):
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        for name in names:
            archive.writestr(name, PLAIN)
    refused(tmp_path / "m.pt", match)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicate_record_is_refused(tmp_path):
    path = hostile.write_zip(tmp_path / "m.pt", PLAIN)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data/0", bytes(16))
    refused(path, "duplicate record")


def test_compressed_record_is_refused(tmp_path):
    source = hostile.storage("0", 2**22)
    data = hostile.program(hostile.tensor(source, shape=(2**22,)))
    records = {"data/0": bytes(2**24)}
    path = hostile.write_zip(tmp_path / "bomb.pt", data, records, compress=True)
    assert path.stat().st_size < 2**17
    refused(path, "is compressed or encrypted")


def test_overlapping_entries_are_refused(tmp_path):
    path = hostile.write_zip(
        tmp_path / "bomb.pt", PLAIN, {f"data/{i}": bytes(999) for i in range(9)}
    )
    data = bytearray(path.read_bytes())
    start = data.find(b"PK\x01\x02")
    while (start := data.find(b"PK\x01\x02", start + 1)) > 0:
        data[start + 20 : start + 28] = struct.pack("<II", 9000, 9000)
    path.write_bytes(data)
    refused(path, "have [0-9]+ bytes in a file of")


@pytest.mark.parametrize(
    ("limit", "match"), [("MAX_RECORDS", "3 records"), ("MAX_BYTES", "larger")]
)
def test_zip_limits(tmp_path, monkeypatch, limit, match):
    monkeypatch.setattr(container, limit, 2)
    refused(hostile.write_zip(tmp_path / "m.pt", PLAIN), match)


@pytest.mark.parametrize(
    ("keys", "storages", "match"),
    [
        (["1"], None, "list of storages"),
        ([], None, "list of storages"),
        (["0", "0"], None, "list of storages"),
        ([["0"]], None, "list of storages"),
        ("0", None, "list of storages"),
        (["0"], struct.pack("<q", 2**40) + bytes(16), "has 1099511627776 elements"),
        (["0"], struct.pack("<q", -1) + bytes(16), "has -1 elements"),
        (["0"], struct.pack("<q", 4) + bytes(15), "truncated inside storage 0"),
        (["0"], b"\x04", "truncated inside storage 0"),
    ],
)
def test_invalid_storages_of_a_stream_are_refused(tmp_path, keys, storages, match):
    listed = pickle.dumps(keys, protocol=2)
    refused(hostile.write_legacy(tmp_path / "m.pt", PLAIN, listed, storages), match)


@pytest.mark.parametrize(
    ("preamble", "match"),
    [
        ((hostile.MAGIC, 1000, {"little_endian": True}), "unknown version"),
        ((hostile.MAGIC, 1001, []), "unknown version"),
        ((hostile.MAGIC, 1001, {"little_endian": False}), "byte order"),
        ((hostile.MAGIC + 1, 1001, {"little_endian": True}), "not a file of torch.save"),
    ],
)
def test_invalid_preamble_is_refused(tmp_path, preamble, match):
    start = b"".join(pickle.dumps(value, protocol=2) for value in preamble)
    (tmp_path / "m.pt").write_bytes(start + PLAIN)
    refused(tmp_path / "m.pt", match)
