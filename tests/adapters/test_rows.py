"""Rows of detections in .jsonl, .csv and .parquet files."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from y7edge.adapters import rows as module
from y7edge.adapters.rows import COLUMNS, RowWriter, rows
from y7edge.detect.detections import Detections
from y7edge.errors import ConfigError, DataError, OutputError, RuntimeMissing

HOSTILE = ("=cmd|' /C calc'!A0", 'a,"b"', "line\r\nbreak \u202e", " -1+1", "Öse", "\udcff")
FORMATS = (".jsonl", ".csv", ".parquet")


def detections(count=6, **changes):
    boxes = np.arange(4 * count, dtype=np.float32).reshape(-1, 4) + 0.12345
    return Detections(
        boxes,
        np.linspace(0.9, 0.3, count),
        np.arange(count) % len(HOSTILE),
        (640, 480),
        HOSTILE,
        **{"timestamp_ns": 1 << 40, "frame_id": 5, "source": "a\udc80,b", **changes},
    )


def read(path):
    """The rows of a file, with the text as it is there."""
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as stream:
            return list(csv.DictReader(stream))
    return pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()


@pytest.fixture(params=FORMATS)
def path(request, tmp_path):
    if request.param == ".parquet":
        pytest.importorskip("pyarrow", reason="the package pyarrow is not installed")
    return tmp_path / "new" / f"rows{request.param}"


def test_the_columns_are_stable():
    found = rows(detections(tracker_id=[3, 4, 5, 6, 7, -1], model_id="ab"))
    assert [list(row) for row in found] == [list(COLUMNS)] * 6
    assert list(COLUMNS)[:3] == ["source", "timestamp_ns", "frame_id"]
    assert list(COLUMNS)[3:5] == ["image_width", "image_height"]
    assert list(COLUMNS)[5:10] == ["left", "top", "right", "bottom", "confidence"]
    assert list(COLUMNS)[10:] == ["class_id", "class_name", "tracker_id", "model_id"]
    assert found[1] == {
        "source": "a\udc80,b",
        "timestamp_ns": 1 << 40,
        "frame_id": 5,
        "image_width": 640,
        "image_height": 480,
        "left": 4.123,
        "top": 5.123,
        "right": 6.123,
        "bottom": 7.123,
        "confidence": 0.78,
        "class_id": 1,
        "class_name": HOSTILE[1],
        "tracker_id": 4,
        "model_id": "ab",
    }
    assert rows(Detections.empty((9, 9))) == []
    assert rows(Detections([(0, 0, 1, 1)], [1], [3], (9, 9)))[0]["source"] is None


def test_what_is_written_is_read(path):
    with RowWriter(path) as writer:
        for _ in range(3):
            writer.add(detections())
            writer.add(Detections.empty((640, 480)))
    found = read(path)
    assert len(found) == 18
    assert list(found[0]) == list(COLUMNS)
    for row, expected in zip(found[:6], rows(detections()), strict=True):
        assert float(row["left"]) == pytest.approx(expected["left"])
        assert float(row["confidence"]) == pytest.approx(expected["confidence"])
        assert int(row["timestamp_ns"]) == 1 << 40
        assert row["tracker_id"] in (None, "")
    names = [row["class_name"] for row in found[:6]]
    if path.suffix == ".csv":
        assert names == [
            "'=cmd|' /C calc'!A0",
            'a,"b"',
            r"line\r\nbreak \u202e",
            "' -1+1",
            "Öse",
            r"\udcff",
        ]
        assert path.read_bytes().count(b"\n") == 19
    else:
        assert names[:5] == list(HOSTILE[:5])
    assert list(path.parent.iterdir()) == [path]


def test_no_detections_make_a_valid_file(path):
    with RowWriter(path) as writer:
        writer.add(Detections.empty((9, 9)))
    assert read(path) == []


def test_a_file_is_replaced_only_at_the_end(path):
    path.parent.mkdir()
    path.write_bytes(b"before")
    with pytest.raises(KeyError), RowWriter(path) as writer:
        writer.add(detections())
        raise KeyError
    assert path.read_bytes() == b"before"
    writer = RowWriter(path)
    writer.add(detections())
    assert path.read_bytes() == b"before"
    writer.close()
    writer.close()
    assert len(read(path)) == 6
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(OutputError, match="after the file was closed"):
        writer.add(detections())


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_rows_are_appended(tmp_path, suffix):
    path = tmp_path / f"rows{suffix}"
    for _ in range(3):
        with RowWriter(path, append=True) as writer:
            writer.add(detections(2))
            assert read(path)
    assert len(read(path)) == 6
    whole = path.read_bytes()
    # A power failure cuts the file anywhere: only whole rows remain, and the header.
    for end in (len(whole) - 1, len(whole) - 30, len(whole) // 2, 5, 0):
        path.write_bytes(whole[:end])
        with RowWriter(path, append=True) as writer:
            writer.add(detections(1))
        found = read(path)
        assert len(found) == max(whole[:end].count(b"\n") - (suffix == ".csv"), 0) + 1
        assert {int(row["frame_id"]) for row in found} == {5}


def test_the_last_row_is_found_in_a_long_file(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 7)
    path = tmp_path / "rows.jsonl"
    with RowWriter(path) as writer:
        writer.add(detections(3))
    whole = path.read_bytes()
    for cut in range(1, 60):
        path.write_bytes(whole[:-cut])
        RowWriter(path, append=True).close()
        assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:2])


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
@pytest.mark.parametrize("content", [b"a,b\n1,2\n", b'{"mine": 1}', b"\xff\x00"])
def test_files_of_others_are_not_appended_to(tmp_path, suffix, content):
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(content)
    with pytest.raises(OutputError, match="its columns are not those of y7edge"):
        RowWriter(path, append=True)
    assert path.read_bytes() == content


def test_a_killed_process_leaves_whole_rows(tmp_path):
    path = tmp_path / "rows.csv"
    code = f"""
from tests.adapters.test_rows import RowWriter, detections
writer = RowWriter({str(path)!r}, append=True)
while True:
    writer.add(detections())
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    deadline = time.monotonic() + 60
    while not path.exists() or path.stat().st_size < 50_000:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert path.read_bytes().endswith(b"\r\n")
    assert {len(row) for row in read(path)} == {len(COLUMNS)}


def test_groups_of_a_parquet_file(tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    monkeypatch.setattr(module, "_GROUP", 10)
    path = tmp_path / "rows.parquet"
    with RowWriter(path) as writer:
        for _ in range(5):
            writer.add(detections())
    file = parquet.ParquetFile(path)
    assert file.metadata.num_rows == 30
    assert file.metadata.num_row_groups == 3
    assert {field.name: str(field.type) for field in file.schema_arrow} == COLUMNS
    with pytest.raises(DataError, match="more than 64 bits"), RowWriter(path) as writer:
        writer.add(detections(frame_id=1 << 63))
    assert parquet.ParquetFile(path).metadata.num_rows == 30


def test_names_and_options(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"expected a name that ends in .jsonl, .csv or .parquet"):
        RowWriter(tmp_path / "rows.xlsx")
    with pytest.raises(ConfigError, match="cannot be appended to"):
        RowWriter(tmp_path / "rows.parquet", append=True)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(RuntimeMissing, match=r'pip install "y7edge\[parquet\]"'):
        RowWriter(tmp_path / "rows.parquet")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("append", [False, True])
def test_destinations_that_cannot_be_written(tmp_path, append):
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file").write_bytes(b"")
    for name in ("pipe.csv", "folder.csv", "file/rows.csv"):
        with pytest.raises(OutputError, match="cannot write the rows"):
            RowWriter(tmp_path / name, append=append)


def test_a_full_disk(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    writer = RowWriter(path, append=True)
    writer.add(detections())

    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(module, "_write_all", full)
    with pytest.raises(OutputError, match="the disk is full: free some space"):
        writer.add(detections())
    writer.close()
    assert len(read(path)) == 6
