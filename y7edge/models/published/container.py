"""Read the two containers that ``torch.save`` writes, without torch.

Zip (torch >= 1.6): uncompressed records ``NAME/data.pkl``, ``NAME/byteorder`` and, for each
storage, ``NAME/data/KEY``.

Legacy stream (torch < 1.6): five pickles (magic number, protocol version, byte order and type sizes
of the machine, saved value, list of storage keys). The storages follow, in the order of the list:
for each, the number of elements (int64) and the bytes.
"""

from __future__ import annotations

import io
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from numpy.typing import NDArray

from y7edge.errors import CheckpointError
from y7edge.models import checkpoint
from y7edge.models.published.screening import MAX_BYTES
from y7edge.models.published.unpickle import Storage, Tensor, load

MAX_RECORDS = 50_000  # of a zip; yolov7-e6e with optimiser state has about 4000
_ZIP = b"PK\x03\x04"
_MAX_DIRECTORY = 8 << 20  # bytes of a zip's directory; an entry has about 100
_MAX_STREAM = 2 << 30  # bytes of a legacy stream, which is kept in memory
_ENCRYPTED = 0x1  # bit of a zip record's flags
_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_PREAMBLE = 1000  # maximum opcodes of each pickle before the value; usually about 20
_LENGTH = struct.Struct("<q")
_PICKLES = b"\x80c("  # possible first bytes of a pickle: PROTO or, in protocol 0, GLOBAL or MARK
_TAR = slice(257, 262)  # position of "ustar" in a tar archive
_AGAIN = "copy or download it again"
_BYTE_ORDER = "byte order is not little-endian; save the file again on a little-endian machine"


@dataclass(frozen=True)
class Container:
    """The content of an open file; tensors can be read until the file is closed."""

    kind: str  # "zip" or "legacy stream"
    value: Any
    _read: Callable[[Storage], bytes]

    def array(self, tensor: Tensor) -> NDArray[Any]:
        """Return a tensor as a read-only array.

        Only the last storage is cached, so read the tensors of one storage one after the other.
        """
        return tensor.read(self._read(tensor.storage))


@contextmanager
def opened(path: Path) -> Iterator[Container]:
    """Open a file written by ``torch.save``, and load its pickle.

    Raises:
        CheckpointError: the file is missing, damaged, unsafe, or has another format.
    """
    with checkpoint.opened(path) as stream:
        start = stream.read(len(_ZIP))
        stream.seek(0)
        if not start:
            raise CheckpointError(f"{path}: the file is empty; {_AGAIN}")
        with _zip(path, stream) if start == _ZIP else _legacy(path, stream) as container:
            yield container


class _Bounded:
    """A stream that raises BadZipFile for reads of more than ``most`` bytes.

    zipfile reads the directory of a zip in one call, with a size that is stored in the file.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self.most = stream, _MAX_DIRECTORY
        self.seek, self.tell, self.seekable = stream.seek, stream.tell, stream.seekable

    def read(self, size: int = -1) -> bytes:
        """Read from the stream; raise BadZipFile for more than ``most`` bytes."""
        if size > self.most:
            raise zipfile.BadZipFile(f"a directory of {size} bytes, expected at most {self.most}")
        return self._stream.read(size)


@contextmanager
def _zip(path: Path, stream: BinaryIO) -> Iterator[Container]:
    bounded = _Bounded(stream)
    try:
        archive = zipfile.ZipFile(bounded)
        bounded.most = sys.maxsize
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
            raise CheckpointError(f"{path}: {_BYTE_ORDER}")
        value, storages = load(io.BytesIO(content("data.pkl")), str(path))
        _check_lengths(path, storages, records)

        @lru_cache(maxsize=1)
        def read(storage: Storage) -> bytes:
            return content(f"data/{storage.key}")

        yield Container("zip", value, read)


def _records(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Check the records of an archive; return them by their names inside the common folder."""
    found = archive.infolist()
    if len(found) > MAX_RECORDS:
        raise CheckpointError(f"{path}: {len(found)} records, expected at most {MAX_RECORDS}")
    records: dict[str, zipfile.ZipInfo] = {}
    for info in found:
        name = info.filename.partition("/")[2]
        _check_record(path, info, found[0].filename.partition("/")[0])
        if name in records:
            raise CheckpointError(f"{path}: duplicate record {name!r}; {_AGAIN}")
        records[name] = info
    # Records that overlap could each be as large as the whole file.
    size = path.stat().st_size
    if (claimed := sum(info.file_size for info in found)) > size:
        raise CheckpointError(
            f"{path}: its records have {claimed} bytes in a file of {size}; {_AGAIN}"
        )
    if "constants.pkl" in records:
        raise CheckpointError(
            f"{path}: a traced TorchScript model, such as traced_model.pt of the published tools, "
            "not a checkpoint; use the .pt file from which it was traced"
        )
    if "data.pkl" not in records:
        raise CheckpointError(f"{path}: a zip archive without data.pkl; expected a .pt checkpoint")
    if records["data.pkl"].file_size > MAX_BYTES:
        raise CheckpointError(f"{path}: its data.pkl is larger than {MAX_BYTES} bytes")
    return records


def _check_record(path: Path, info: zipfile.ZipInfo, folder: str) -> None:
    parts = info.filename.split("/")
    strange = {"", ".", ".."} & set(parts) or "\\" in info.filename or ":" in info.filename
    if strange or len(parts) < 2 or parts[0] != folder:
        raise CheckpointError(
            f"{path}: record {info.filename[:80]!r}, expected all records in one folder; "
            "torch.save did not write this file"
        )
    stored = info.compress_type == zipfile.ZIP_STORED and info.compress_size == info.file_size
    if not stored or info.flag_bits & _ENCRYPTED:
        raise CheckpointError(
            f"{path}: record {info.filename[:80]!r} is compressed or encrypted, expected an "
            "uncompressed one; save the checkpoint again with torch.save"
        )


def _check_lengths(
    path: Path, storages: Mapping[str, Storage], records: Mapping[str, zipfile.ZipInfo]
) -> None:
    for key, storage in storages.items():
        record = records.get(f"data/{key}")
        found = None if record is None else record.file_size
        if found != storage.nbytes:
            raise CheckpointError(
                f"{path}: storage {key} has {found or 'no'} bytes, expected {storage.nbytes} "
                f"according to its pickle; {_AGAIN}"
            )


@contextmanager
def _legacy(path: Path, stream: BinaryIO) -> Iterator[Container]:
    start = stream.read(1 << 16)
    _check_preamble(path, io.BytesIO(start), start)
    stream.seek(0)
    # Not memory-mapped: if another program truncated the file, the process would be killed.
    content = stream.read(_MAX_STREAM + 1)
    if len(content) > _MAX_STREAM:
        raise CheckpointError(
            f"{path}: a stream of more than {_MAX_STREAM} bytes; save it again with torch "
            "1.6 or newer"
        )
    pickles = io.BytesIO(content)
    _check_preamble(path, pickles, content)  # again, to advance ``pickles``
    value, storages = load(pickles, str(path))
    keys, _ = load(pickles, str(path), 3 * MAX_RECORDS)
    listed = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not listed or sorted(keys) != sorted(storages):
        raise CheckpointError(f"{path}: its list of storages does not match its pickle; {_AGAIN}")
    places = _places(path, content, pickles.tell(), [storages[key] for key in keys])

    @lru_cache(maxsize=1)
    def read(storage: Storage) -> bytes:
        return content[places[storage.key]]

    yield Container("legacy stream", value, read)


def _check_preamble(path: Path, pickles: io.BytesIO, content: bytes) -> None:
    """Load and check the three pickles before the value."""
    other = f"{path}: not a file of torch.save; expected a .pt checkpoint"
    if content[0] not in _PICKLES or content[_TAR] == b"ustar":
        raise CheckpointError(other)
    # If the file is a bare pickle, ``load`` reports the function that the pickle would call.
    magic, _ = load(pickles, str(path), _PREAMBLE)
    if magic != _MAGIC:
        raise CheckpointError(other)
    protocol, _ = load(pickles, str(path), _PREAMBLE)
    machine, _ = load(pickles, str(path), _PREAMBLE)
    if protocol != _PROTOCOL or not isinstance(machine, dict):
        raise CheckpointError(f"{path}: a stream of an unknown version; save it with a newer torch")
    if machine.get("little_endian") is not True:
        raise CheckpointError(f"{path}: {_BYTE_ORDER}")


def _places(path: Path, content: bytes, at: int, storages: list[Storage]) -> dict[str, slice]:
    """Return the position of each storage's bytes; storages are consecutive from ``at`` on."""
    places: dict[str, slice] = {}
    for storage in storages:
        start = at + _LENGTH.size
        at = start + storage.nbytes
        if at > len(content):
            raise CheckpointError(f"{path}: truncated inside storage {storage.key}; {_AGAIN}")
        if (length := _LENGTH.unpack_from(content, start - _LENGTH.size)[0]) != storage.length:
            raise CheckpointError(
                f"{path}: storage {storage.key} has {length} elements, expected {storage.length} "
                f"according to its pickle; {_AGAIN}"
            )
        places[storage.key] = slice(start, at)
    return places
