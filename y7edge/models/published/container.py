"""Read the two containers that ``torch.save`` writes, without torch.

Zip (torch >= 1.6): records ``NAME/data.pkl``, ``NAME/byteorder`` and, for each storage,
``NAME/data/KEY``, all uncompressed.

Legacy stream: pickles of a magic number, a protocol version, facts about the machine, the value and
the list of storage keys; then for each key its length (int64) and bytes.
"""

from __future__ import annotations

import io
import mmap
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from numpy.typing import NDArray

from y7edge.errors import CheckpointError
from y7edge.models.published.screening import MAX_BYTES
from y7edge.models.published.unpickle import Storage, Tensor, load

MAX_RECORDS = 50_000  # of a zip; yolov7-e6e with optimiser state has about 4000
_ZIP = b"PK\x03\x04"
_ENCRYPTED = 0x1  # bit of a zip record's flags
_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_LENGTH = struct.Struct("<q")
_PICKLES = b"\x80c("  # how pickles start: PROTO, or in protocol 0 GLOBAL and MARK
_TAR = slice(257, 262)  # where a tar archive says "ustar"
_AGAIN = "copy or download it again"


@dataclass(frozen=True)
class Container:
    """An open file: its value, and access to its tensors while it is open."""

    kind: str  # "zip" or "legacy stream"
    value: Any
    _read: Callable[[Storage], bytes]

    def array(self, tensor: Tensor) -> NDArray[Any]:
        """Read a tensor, read-only; only the last storage is cached, so read by storage."""
        return tensor.read(self._read(tensor.storage))


@contextmanager
def opened(path: Path) -> Iterator[Container]:
    """Open a file that ``torch.save`` wrote and read its pickle.

    Raises:
        CheckpointError: no such file, of another format, damaged, or refused as unsafe.
    """
    try:
        stream = path.open("rb")
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be opened ({error.strerror}); expected a .pt checkpoint"
        ) from error
    with stream:
        start = stream.read(len(_ZIP))
        stream.seek(0)
        if not start:
            raise CheckpointError(f"{path}: the file is empty; {_AGAIN}")
        with _zip(path, stream) if start == _ZIP else _legacy(path, stream) as container:
            yield container


@contextmanager
def _zip(path: Path, stream: BinaryIO) -> Iterator[Container]:
    try:
        archive = zipfile.ZipFile(stream)
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: a damaged zip container ({error}); {_AGAIN}") from error
    with archive:
        records = _records(path, archive)

        def content(name: str) -> bytes:
            try:
                return archive.read(records[name])
            except (zipfile.BadZipFile, struct.error, OSError, EOFError, ValueError) as error:
                raise CheckpointError(f"{path}: record {name}: {error}; {_AGAIN}") from error

        if "byteorder" in records and content("byteorder") != b"little":
            raise CheckpointError(
                f"{path}: not of little-endian byte order; save it again on such a machine"
            )
        value, storages = load(io.BytesIO(content("data.pkl")), str(path))
        _check_lengths(path, storages, records)

        @lru_cache(maxsize=1)
        def read(storage: Storage) -> bytes:
            return content(f"data/{storage.key}")

        yield Container("zip", value, read)


def _records(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Return records by name inside the archive's one folder, with declared sizes validated."""
    found = archive.infolist()
    if len(found) > MAX_RECORDS:
        raise CheckpointError(f"{path}: {len(found)} records, expected at most {MAX_RECORDS}")
    records: dict[str, zipfile.ZipInfo] = {}
    for info in found:
        name = info.filename.partition("/")[2]
        _check_record(path, info, found[0].filename.partition("/")[0])
        if name in records:
            raise CheckpointError(f"{path}: record {name!r} is there twice; {_AGAIN}")
        records[name] = info
    # Overlapping records could each declare the size of the whole file.
    size = path.stat().st_size
    if (claimed := sum(info.file_size for info in found)) > size:
        raise CheckpointError(
            f"{path}: its records claim {claimed} bytes in a file of {size}; {_AGAIN}"
        )
    if "constants.pkl" in records:
        raise CheckpointError(
            f"{path}: a traced TorchScript model (the published tools write traced_model.pt), "
            "not a checkpoint; take the .pt file that it was traced from"
        )
    if "data.pkl" not in records:
        raise CheckpointError(f"{path}: a zip archive without data.pkl, torch.save writes one")
    if records["data.pkl"].file_size > MAX_BYTES:
        raise CheckpointError(f"{path}: its data.pkl is larger than {MAX_BYTES} bytes")
    return records


def _check_record(path: Path, info: zipfile.ZipInfo, folder: str) -> None:
    parts = info.filename.split("/")
    strange = {"", ".", ".."} & set(parts) or "\\" in info.filename or ":" in info.filename
    if strange or len(parts) < 2 or parts[0] != folder:
        raise CheckpointError(
            f"{path}: record {info.filename[:80]!r}, expected all of them in one folder; "
            "torch.save did not write this file"
        )
    stored = info.compress_type == zipfile.ZIP_STORED and info.compress_size == info.file_size
    if not stored or info.flag_bits & _ENCRYPTED:
        raise CheckpointError(
            f"{path}: record {info.filename[:80]!r} is compressed or encrypted; torch.save stores "
            "records as they are: save the checkpoint again with it"
        )


def _check_lengths(
    path: Path, storages: Mapping[str, Storage], records: Mapping[str, zipfile.ZipInfo]
) -> None:
    for key, storage in storages.items():
        record = records.get(f"data/{key}")
        found = None if record is None else record.file_size
        if found != storage.nbytes:
            raise CheckpointError(
                f"{path}: storage {key} has {found or 'no'} bytes, its pickle says "
                f"{storage.nbytes}; {_AGAIN}"
            )


@contextmanager
def _legacy(path: Path, stream: BinaryIO) -> Iterator[Container]:
    with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        _check_preamble(path, mapped)
        value, storages = load(mapped, str(path))
        keys, _ = load(mapped, str(path))
        listed = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
        if not listed or sorted(keys) != sorted(storages):
            raise CheckpointError(f"{path}: its list of storages is not that of its pickle")
        places = _places(path, mapped, [storages[key] for key in keys])

        @lru_cache(maxsize=1)
        def read(storage: Storage) -> bytes:
            return mapped[places[storage.key]]

        yield Container("legacy stream", value, read)


def _check_preamble(path: Path, mapped: mmap.mmap) -> None:
    """Check the three pickles in front of the value."""
    other = (
        f"{path}: neither of the formats of torch.save (a zip container, or a stream that starts "
        "with its magic number); expected a .pt checkpoint"
    )
    if mapped[0] not in _PICKLES or mapped[_TAR] == b"ustar":
        raise CheckpointError(other)
    # Loading it also reports what a bare pickle would call.
    magic, _ = load(mapped, str(path))
    if magic != _MAGIC:
        raise CheckpointError(other)
    protocol, _ = load(mapped, str(path))
    machine, _ = load(mapped, str(path))
    if protocol != _PROTOCOL or not isinstance(machine, dict):
        raise CheckpointError(f"{path}: a stream of an unknown version; save it with a newer torch")
    if machine.get("little_endian") is not True:
        raise CheckpointError(
            f"{path}: not of little-endian byte order; save it again on such a machine"
        )


def _places(path: Path, mapped: mmap.mmap, storages: list[Storage]) -> dict[str, slice]:
    """Return where each storage's bytes are; they follow each other from the current position."""
    places: dict[str, slice] = {}
    for storage in storages:
        field = mapped.read(_LENGTH.size)
        start = mapped.tell()
        if len(field) < _LENGTH.size or start + storage.nbytes > len(mapped):
            raise CheckpointError(f"{path}: cut short inside of storage {storage.key}; {_AGAIN}")
        if (length := _LENGTH.unpack(field)[0]) != storage.length:
            raise CheckpointError(
                f"{path}: storage {storage.key} has {length} elements, its pickle says "
                f"{storage.length}; {_AGAIN}"
            )
        places[storage.key] = slice(start, start + storage.nbytes)
        mapped.seek(start + storage.nbytes)
    return places
