"""Detections of many files in a folder of part files, which a killed run continues.

A folder of results has

- ``part-00000.jsonl`` or ``part-00000.parquet`` and so on, with the rows of consecutive files,
- ``_run.json``: what the results depend on, such as the model and the thresholds,
- ``_files.jsonl``: the files in their order, one JSON string per line,
- ``_parts.jsonl``: one line for each part. A part counts once its line is there.

Readers of data sets such as pyarrow ignore names that start with ``_``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

from y7edge.adapters.rows import RowWriter, cut_last_line, load_pyarrow
from y7edge.detect.detections import Detections
from y7edge.errors import ConfigError, DeviceError, OutputError, SourceError
from y7edge.files import atomic_write, locked, read_regular, reason, require_regular, writing
from y7edge.frames import Frame
from y7edge.sources.files import Opened

FORMATS = ("jsonl", "parquet")
_SCHEMA = 1
_MOST = 1 << 24  # bytes of a description; it has the names of the classes
_RUN, _FILES, _PARTS = "_run.json", "_files.jsonl", "_parts.jsonl"
_PART = re.compile(rf"part-(\d{{5,}})\.({'|'.join(FORMATS)})")
_WAY_OUT = "choose another folder"


@dataclass(frozen=True)
class Counts:
    """Numbers of files, frames, detections, and files that could not be read completely."""

    files: int = 0
    frames: int = 0
    detections: int = 0
    failed: int = 0

    def __add__(self, other: Counts) -> Counts:
        pairs = zip(asdict(self).values(), asdict(other).values(), strict=True)
        return Counts(*(a + b for a, b in pairs))


@dataclass(frozen=True)
class _Part:
    """A line of ``_parts.jsonl``: a part has the files ``first`` to ``first + counts.files - 1``.

    ``names``: SHA-256 of their lines in ``_files.jsonl``. ``size``: bytes of the part.
    """

    name: str
    first: int
    counts: Counts
    size: int
    names: str

    @classmethod
    def parse(cls, line: bytes) -> _Part:
        """Parse a line; raise ValueError if it is damaged."""
        found = json.loads(line)
        counts = {name: found[name] for name in asdict(Counts())}
        numbers = [found["first"], found["bytes"], *counts.values()]
        if any(type(number) is not int or number < 0 for number in numbers):
            raise ValueError("expected numbers from 0")
        if counts["files"] == 0:
            raise ValueError("expected at least one file")
        return cls(found["part"], found["first"], Counts(**counts), found["bytes"], found["sha256"])

    def line(self) -> bytes:
        """Return the line."""
        start = {"part": self.name, "first": self.first, **asdict(self.counts)}
        return json.dumps({**start, "bytes": self.size, "sha256": self.names}).encode() + b"\n"


class Results(AbstractContextManager["Results"]):
    """The results of many files in a folder: those of earlier runs, and those to be added.

    The process may be killed at any time. What counts is written: the next run with ``resume``
    processes the files of the part that was incomplete, and those that follow. No file is in two
    parts. The rows are those of ``RowWriter`` with ``every_frame``.

    Files that were not there in an earlier run are appended to its list. Those that were removed
    stay in it: their results remain, or they cannot be read.

    Attributes:
        earlier: counts of earlier runs, without those of ``redone``.
        counts: counts of all runs.
        added: number of files that earlier runs did not have; 0 for a new folder.
        redone: names of parts that are missing; their files are processed again.

    Args:
        folder: the folder; created if it does not exist.
        paths: the files, without duplicates, in a reproducible order.
        settings: JSON values that the results depend on. If they are not those of the earlier run,
            the folder is refused.
        about: JSON values that are recorded, but not compared.
        format: "jsonl", or "parquet", which needs the package pyarrow.
        part: number of frames after which a part ends; a file is never divided.
        resume: continue the results in the folder, if there are any.

    Raises:
        ConfigError: there are results and ``resume`` is False, or they have other settings.
        OutputError: the folder cannot be written, has other files, is used by another process, or
            a file in it was damaged.
        RuntimeMissing: pyarrow is not installed.
    """

    def __init__(
        self,
        folder: Path | str,
        paths: Iterable[Path],
        settings: Mapping[str, Any],
        about: Mapping[str, Any] | None = None,
        *,
        format: str = "jsonl",
        part: int = 1000,
        resume: bool = False,
    ) -> None:
        self._folder, self._format, self._part_size = Path(folder), format, part
        if format not in FORMATS or part < 1:
            raise ConfigError(f"format is {format!r}, part is {part}: expected one of {FORMATS}, 1")
        if format == "parquet":
            load_pyarrow()
        self.added, self.redone = 0, list[str]()
        self._partial = False  # whether there are rows of a file that is not complete
        settings = {**settings, "format": format}
        self._stack = ExitStack()
        with writing("the results", self._folder), ExitStack() as stack:
            self._journal = self._lock(stack)
            if os.fstat(self._journal.fileno()).st_size:
                if not resume:
                    raise ConfigError(f"{self._folder}: has results: add --resume, or {_WAY_OUT}")
                self._compare(settings)
            self._parts = self._read_parts()
            self._require_parts()
            if self._parts:
                self._names = self._read_names()
                self._append(paths)
            else:
                self._names = [str(path) for path in paths]
                self._write_names()
                self._write_run(settings, about or {})
            self._stack = stack.pop_all()
        there = (part.counts for part in self._parts.values() if part.name not in self.redone)
        self.earlier = self.counts = sum(there, Counts())

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def __len__(self) -> int:
        """The number of files, those of earlier runs included."""
        return len(self._names)

    # --- opening a folder -------------------------------------------------------------------------

    def _lock(self, stack: ExitStack) -> BinaryIO:
        """Open ``_parts.jsonl`` and lock it against other processes."""
        self._folder.mkdir(parents=True, exist_ok=True)
        own = {_RUN, _FILES, _PARTS}
        present = set(os.listdir(self._folder))  # noqa: PTH208 - names only
        is_ours = not own.isdisjoint(present)  # other programs also write files part-00000.parquet
        for name in sorted(present - own):
            if not name.startswith(".") and not (is_ours and _PART.fullmatch(name)):
                raise OutputError(
                    f"{self._folder}: has other files, such as {name}: {_WAY_OUT}, for results only"
                )
        path = self._folder / _PARTS
        if os.path.lexists(path):
            require_regular(path)
        stream = stack.enter_context(path.open("ab", buffering=0))
        try:
            stack.enter_context(locked(path, wait=False))
        except BlockingIOError:
            raise OutputError(
                f"{self._folder}: another process writes results there: wait until it ends, or "
                f"{_WAY_OUT}"
            ) from None
        cut_last_line(stream, path)  # of a process that was killed while it wrote the line
        return stream

    def _read_parts(self) -> dict[str, _Part]:
        """Read ``_parts.jsonl``; a later line of a part replaces an earlier one."""
        parts: dict[str, _Part] = {}
        end = 0
        for number, line in enumerate(_lines(self._folder / _PARTS), 1):
            try:
                part = _Part.parse(line)
                if before := parts.get(part.name):  # written again
                    expected = before.name, before.first, before.counts.files
                else:
                    expected = self._part_name(len(parts)), end, part.counts.files
                if (part.name, part.first, part.counts.files) != expected:
                    raise ValueError("expected {}, file {}, {} files".format(*expected))
            except (ValueError, KeyError, TypeError) as error:
                raise self._damaged(_PARTS, f"line {number}: {reason(error)}") from error
            parts[part.name] = part
            end = max(end, part.first + part.counts.files)
        return parts

    def _require_parts(self) -> None:
        """Check that parts are as they were written; one that is missing is made again."""
        following = self._part_name(len(self._parts))
        sizes = {
            entry.name: entry.stat().st_size
            for entry in os.scandir(self._folder)
            if _PART.fullmatch(entry.name)
        }
        for name in sorted(sizes.keys() - self._parts.keys() - {following}):
            # A killed process leaves one complete part without a line; it is written again.
            raise self._damaged(_PARTS, f"{name} has no line in it")
        for part in self._parts.values():
            size = sizes.get(part.name)
            if size is None:
                self.redone.append(part.name)
            elif size != part.size:
                raise OutputError(
                    f"{self._folder / part.name}: has {size:,} bytes, {part.size:,} were written: "
                    "restore it, or remove it and its files are processed again"
                )

    def _damaged(self, name: str, words: str) -> OutputError:
        return OutputError(
            f"{self._folder / name}: was changed or damaged: {words}: restore it, or {_WAY_OUT}"
        )

    def _compare(self, settings: Mapping[str, Any]) -> None:
        """Require that the earlier run had the same settings."""
        try:
            found = json.loads(read_regular(self._folder / _RUN, _MOST))
            schema, before = found["schema"], dict(found["settings"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(_RUN, reason(error)) from error
        now = json.loads(json.dumps(settings))
        if schema != _SCHEMA:
            raise ConfigError(f"{self._folder}: results of another version, schema {schema!r:.20}")
        for name in sorted(before.keys() | now.keys()):
            if before.get(name) != now.get(name):
                values = [json.dumps(one.get(name))[:100] for one in (before, now)]
                raise ConfigError(
                    f"{self._folder}: results with {name} {values[0]}, not {values[1]}: "
                    f"use the same model, source and options, or {_WAY_OUT}"
                )

    def _read_names(self) -> list[str]:
        names: list[str] = []
        done = sorted(self._parts.values(), key=lambda part: part.first)
        lines = _lines(self._folder / _FILES)
        try:
            for part in done:
                own = list(islice(lines, part.counts.files))
                if hashlib.sha256(b"\n".join(own)).hexdigest() != part.names:
                    raise ValueError(f"the files of {part.name} are others")
                names += map(_name, own)
            names += map(_name, lines)
        except (OSError, ValueError) as error:
            raise self._damaged(_FILES, reason(error)) from error
        return names

    def _append(self, paths: Iterable[Path]) -> None:
        """Append new files to the list of the earlier run."""
        known = set(self._names)
        if len(known) < len(self._names):
            raise self._damaged(_FILES, "a file is listed twice")
        added = [name for name in map(str, paths) if name not in known]
        if added:
            self._names += added
            self.added = len(added)
            self._write_names()

    def _write_names(self) -> None:
        with atomic_write(self._folder / _FILES) as temporary, temporary.open("wb") as stream:
            for name in self._names:
                stream.write(json.dumps(name).encode() + b"\n")

    def _write_run(self, settings: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        record = {"schema": _SCHEMA, "settings": settings, "about": about}
        with atomic_write(self._folder / _RUN) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n", "ascii")

    # --- writing ----------------------------------------------------------------------------------

    def pending(self) -> Iterator[str]:
        """Yield the files that have no results yet, in the order in which ``fill`` takes them."""
        spans = [range(first, end) for _, first, end in self._slots()]
        return (self._names[index] for index in chain.from_iterable(spans))

    def _slots(self) -> Iterator[tuple[int, int, int]]:
        """Yield the number of a part, its first file and the file after its last one.

        After the parts that are missing, one slot is for all files that follow.
        """
        for number, part in enumerate(self._parts.values()):
            if part.name in self.redone:
                yield number, part.first, part.first + part.counts.files
        end = sum(part.counts.files for part in self._parts.values())
        yield len(self._parts), end, len(self._names)

    def fill(
        self,
        files: Iterator[Opened],
        detect: Callable[[Frame], Detections],
        on_file: Callable[[SourceError | None], None] = lambda _: None,
    ) -> None:
        """Write the results of files.

        After an interruption and an error of the engine, the files that are complete are written
        first, unless a frame of the next file is in the part already.

        Args:
            files: those of ``pending``, opened; see ``read_ahead``.
            detect: detects objects in a frame.
            on_file: called after each file, with the error if it cannot be read completely.

        Raises:
            OutputError: the results cannot be written.
            DeviceError: the engine failed.
        """
        for number, first, end in list(self._slots()):
            is_redone = number < len(self._parts)
            most = sys.maxsize if is_redone else self._part_size
            while first < end:
                part = self._fill_part(number, first, end, most, files, detect, on_file)
                first, number = first + part.counts.files, number + 1

    def _fill_part(
        self,
        number: int,
        first: int,
        end: int,
        most: int,
        files: Iterator[Opened],
        detect: Callable[[Frame], Detections],
        on_file: Callable[[SourceError | None], None],
    ) -> _Part:
        """Write a part of at most ``most`` frames, and its line."""
        name = self._part_name(number)
        counts = Counts()
        stop: BaseException | None = None
        with RowWriter(self._folder / name, every_frame=True) as writer:
            try:
                while counts.frames + counts.failed < most and first + counts.files < end:
                    of_file, problem = self._fill_file(writer, *next(files), detect)
                    counts += of_file
                    self._partial = False
                    on_file(problem)
            except (KeyboardInterrupt, DeviceError) as error:
                may_be_short = most < sys.maxsize
                if self._partial or not counts.files or not may_be_short:
                    raise
                stop = error
        part = self._record(name, first, counts)
        if stop is not None:
            raise stop
        return part

    def _fill_file(
        self,
        writer: RowWriter,
        path: str,
        frames: Iterator[Frame],
        detect: Callable[[Frame], Detections],
    ) -> tuple[Counts, SourceError | None]:
        """Write the rows of a file; return its counts, and its error."""
        counts = Counts(files=1)
        try:
            for frame in frames:
                found = detect(frame)
                self._partial = True
                writer.add(found)
                counts += Counts(frames=1, detections=len(found))
        except SourceError as error:
            self._partial = True
            writer.add_error(path, str(error))
            return counts + Counts(failed=1), error
        return counts, None

    def _record(self, name: str, first: int, counts: Counts) -> _Part:
        """Append the line of a part that was written."""
        lines = (json.dumps(one).encode() for one in self._names[first : first + counts.files])
        digest = hashlib.sha256(b"\n".join(lines)).hexdigest()
        with writing("the results", self._folder):
            size = (self._folder / name).stat().st_size
            part = _Part(name, first, counts, size, digest)
            line = part.line()
            if self._journal.write(line) != len(line):
                raise OutputError(f"{self._folder / _PARTS}: cannot write all of a line")
            os.fsync(self._journal.fileno())
        self._parts[name] = part
        self.counts += counts
        return part

    def _part_name(self, number: int) -> str:
        return f"part-{number:05d}.{self._format}"


def in_shard(path: Path, number: int, of: int) -> bool:
    """Return whether a file belongs to share ``number``, from 1, of ``of`` shares.

    It depends on the name of the file only, not on the other files and the folder.
    """
    digest = hashlib.blake2b(os.fsencode(path.name), digest_size=8).digest()
    return int.from_bytes(digest, "big") % of == number - 1


def _lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file, without line breaks."""
    require_regular(path)
    with path.open("rb") as stream:
        for line in stream:
            yield line.rstrip(b"\n")


def _name(line: bytes) -> str:
    """Return the file name of a line; raise ValueError if it is damaged."""
    name = json.loads(line)
    if not isinstance(name, str) or json.dumps(name).encode() != line:
        raise ValueError(f"expected a file name, found {line[:40]!r}")
    return name
