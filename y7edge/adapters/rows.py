"""Detections as rows of a table, and writers of .jsonl, .csv and .parquet files.

The columns are those of ``COLUMNS``, one row per detection. A frame without detections has no row.
In tables of *every frame* it has one, in which the columns of a detection are None, a source that
cannot be read has one too, and the column ``ERROR`` follows the others.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, BinaryIO

from y7edge.detect.detections import Detections
from y7edge.errors import ConfigError, DataError, OutputError, needing
from y7edge.files import atomic_write, open_regular, require_replaceable, writing
from y7edge.text import cell

Row = dict[str, Any]

COLUMNS = {
    "source": "string",
    "timestamp_ns": "int64",
    "frame_id": "int64",
    "image_width": "int32",
    "image_height": "int32",
    "left": "float",
    "top": "float",
    "right": "float",
    "bottom": "float",
    "confidence": "float",
    "class_id": "int32",
    "class_name": "string",
    "tracker_id": "int32",
    "model_id": "string",
}
"""Names and Arrow types of the columns, in their order; "float" is float32."""

ERROR = "error"
"""Name of the last column of tables of every frame, a string: why a source cannot be read."""
_EVERY_FRAME = {**COLUMNS, ERROR: "string"}

_JSON_START = b'{"source": '  # of each line
_GROUP = 50_000  # rows of a row group of a Parquet file
_CHUNK = 1 << 16  # bytes that are read at once from the end of a file


def rows(detections: Detections) -> list[Row]:
    """Return a dict of ``COLUMNS`` for each detection; unknown values are None.

    Boxes are in pixels of the image, rounded to 3 decimals, confidences to 6, as in
    ``Detections.to_dict``.
    """
    frame = _of_frame(detections)
    return [
        {
            **frame,
            **{
                name: round(value, 3)
                for name, value in zip(("left", "top", "right", "bottom"), one.xyxy, strict=True)
            },
            "confidence": round(one.confidence, 6),
            "class_id": one.class_id,
            "class_name": one.class_name,
            "tracker_id": one.tracker_id,
        }
        for one in detections
    ]


def frame_rows(detections: Detections) -> list[Row]:
    """Return the rows of a frame for tables of every frame: at least one."""
    return [{**row, ERROR: None} for row in rows(detections) or [_of_frame(detections)]]


def error_row(source: str, message: str) -> Row:
    """Return the row of a source that cannot be read, for tables of every frame."""
    return {**dict.fromkeys(COLUMNS), "source": source, ERROR: message}


def arrow_table(found: list[Row], *, every_frame: bool = False) -> Any:
    """Return rows as a pyarrow.Table; bytes of file names that are not UTF-8 are escaped.

    Raises:
        RuntimeMissing: pyarrow is not installed.
    """
    plain = [{name: _utf8(value) for name, value in row.items()} for row in found]
    return load_pyarrow().Table.from_pylist(plain, _schema(every_frame))


def _schema(every_frame: bool) -> Any:
    pyarrow = load_pyarrow()
    columns = _EVERY_FRAME if every_frame else COLUMNS
    return pyarrow.schema([(name, pyarrow.type_for_alias(kind)) for name, kind in columns.items()])


def _of_frame(detections: Detections) -> Row:
    """Return a row in which only the columns of the frame and the model are known."""
    return {
        **dict.fromkeys(COLUMNS),
        "source": detections.source,
        "timestamp_ns": detections.timestamp_ns,
        "frame_id": detections.frame_id,
        "image_width": int(detections.image_wh[0]),
        "image_height": int(detections.image_wh[1]),
        "model_id": detections.model_id,
    }


class RowWriter(AbstractContextManager["RowWriter"]):
    """Write the rows of detections to a file; its suffix is the format.

    ``.jsonl`` is JSON Lines in UTF-8. ``.csv`` follows RFC 4180, with a header; in text, control
    characters are escaped, and a text that a spreadsheet would read as a formula starts with an
    apostrophe. ``.parquet`` needs the package pyarrow.

    By default, the file appears when the writer is closed, and replaces an older one; if the
    ``with`` statement raises an exception, the destination is unchanged. With ``append``, rows are
    added to an existing file as they come, for runs without an end. Each frame is written by one
    call, so a killed process leaves whole rows. If a power failure cut the last row, the next
    writer removes the rest of it. Parquet files cannot be appended to: their index is at the end.

    Args:
        path: the file.
        append: add to an existing .jsonl or .csv file.
        every_frame: write a table of every frame; see ``add_error``.

    Raises:
        ConfigError: the suffix is unknown, or a Parquet file is to be appended to.
        OutputError: the file cannot be written, or has other columns.
        RuntimeMissing: pyarrow is not installed.
    """

    def __init__(
        self, path: Path | str, *, append: bool = False, every_frame: bool = False
    ) -> None:
        self._path = Path(path)
        self._every_frame = every_frame
        self._columns = _EVERY_FRAME if every_frame else COLUMNS
        self._stack = ExitStack()
        suffix = self._path.suffix.lower()
        if suffix not in (".jsonl", ".csv", ".parquet"):
            raise ConfigError(
                f"{self._path}: expected a name that ends in .jsonl, .csv or .parquet"
            )
        if suffix == ".parquet" and append:
            raise ConfigError(
                f"{self._path}: a Parquet file cannot be appended to: write a new file, or .jsonl"
            )
        self._write: Callable[[list[Row]], None]
        with writing("the rows", self._path), ExitStack() as stack:
            if suffix == ".parquet":
                self._write = self._parquet(stack)
            else:
                self._write = self._text(stack, suffix, append)
            self._stack = stack.pop_all()

    def add(self, detections: Detections) -> None:
        """Write the rows of a frame.

        Raises:
            OutputError: they cannot be written.
            DataError: a number is too large for its column in a Parquet file.
        """
        if found := frame_rows(detections) if self._every_frame else rows(detections):
            with writing("the rows", self._path):
                self._write(found)

    def add_error(self, source: str, message: str) -> None:
        """Write the row of a source that cannot be read; only with ``every_frame``.

        Raises:
            OutputError: it cannot be written.
        """
        with writing("the rows", self._path):
            self._write([error_row(source, message)])

    def close(self) -> None:
        """Finish the file; can be called twice.

        Raises:
            OutputError: the file cannot be written.
        """
        self.__exit__(None, None, None)

    def __exit__(self, *error: Any) -> None:
        self._write = self._closed
        with writing("the rows", self._path):
            self._stack.__exit__(*error)

    def _closed(self, _: list[Row]) -> None:
        raise OutputError(f"{self._path}: rows were added after the file was closed")

    def _text(self, stack: ExitStack, suffix: str, append: bool) -> Callable[[list[Row]], None]:
        encode = _csv if suffix == ".csv" else _json
        header = _csv_line(self._columns) if suffix == ".csv" else b""
        start = header or _JSON_START
        if append:
            require_replaceable(self._path, folder=False)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._path.exists():
                self._check_start(start)
            stream = stack.enter_context(self._path.open("ab", buffering=0))
            stack.callback(os.fsync, stream.fileno())
            cut_last_line(stream, self._path)
            is_new = not os.fstat(stream.fileno()).st_size
        else:
            temporary = stack.enter_context(atomic_write(self._path))
            stream = stack.enter_context(temporary.open("wb", buffering=0))
            is_new = True
        if is_new:
            _write_all(stream, header)
        return lambda found: _write_all(stream, encode(found))

    def _check_start(self, expected: bytes) -> None:
        with open_regular(self._path) as stream:
            found = stream.read(len(expected))
        # A power failure may have cut the first line.
        if not expected.startswith(found):
            raise OutputError(
                f"{self._path}: its columns are not those of y7edge: write to another file"
            )

    def _parquet(self, stack: ExitStack) -> Callable[[list[Row]], None]:
        pyarrow = load_pyarrow()
        temporary = stack.enter_context(atomic_write(self._path))
        schema = _schema(self._every_frame)
        file = stack.enter_context(pyarrow.parquet.ParquetWriter(str(temporary), schema))
        waiting: list[Row] = []

        def flush() -> None:
            if waiting:
                file.write_table(arrow_table(waiting, every_frame=self._every_frame))
                waiting.clear()

        def write(found: list[Row]) -> None:
            for row in found:
                for name in ("timestamp_ns", "frame_id"):
                    if row[name] is not None and not -(1 << 63) <= row[name] < 1 << 63:
                        raise DataError(f"{name} is {row[name]}, which is more than 64 bits")
            waiting.extend(found)
            if len(waiting) >= _GROUP:
                flush()

        stack.push(lambda kind, *_: flush() if kind is None else None)
        return write


def load_pyarrow() -> Any:
    """Import pyarrow, with its module ``parquet``, or raise RuntimeMissing."""
    with needing("pyarrow", "parquet", "writing Parquet files"):
        import pyarrow
        import pyarrow.parquet
    return pyarrow


def _json(found: list[Row]) -> bytes:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found)
    # Lone surrogates of file names become escapes of JSON.
    return lines.encode("utf-8", "backslashreplace")


def _csv(found: list[Row]) -> bytes:
    return b"".join(_csv_line(row.values()) for row in found)


def _csv_line(values: Any) -> bytes:
    line = io.StringIO()
    csv.writer(line).writerow([cell(v) if isinstance(v, str) else v for v in values])
    return line.getvalue().encode()


def _utf8(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return value.encode("utf-8", "backslashreplace").decode()


def _write_all(stream: BinaryIO, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[stream.write(view) :]


def cut_last_line(stream: BinaryIO, path: Path) -> None:
    """Remove what follows the last line break of a file."""
    end = os.fstat(stream.fileno()).st_size
    with path.open("rb") as content:
        for start in range(max(end - 1, 0) // _CHUNK * _CHUNK, -1, -_CHUNK):
            content.seek(start)
            found = content.read(min(_CHUNK, end - start)).rfind(b"\n")
            if found >= 0:
                end = start + found + 1
                break
        else:
            end = 0
    if end < os.fstat(stream.fileno()).st_size:
        os.ftruncate(stream.fileno(), end)
