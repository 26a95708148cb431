"""Read images from a file, a folder, a pattern or a video."""

from __future__ import annotations

import math
import os
import re
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from y7edge.data.headers import too_large
from y7edge.data.images import read_image
from y7edge.data.sample import is_image
from y7edge.errors import ConfigError, DataError, SourceError, SourceSkipped, Y7EdgeError
from y7edge.files import is_folder, is_utf8, open_regular, reason
from y7edge.frames import Frame
from y7edge.sources.address import Address
from y7edge.sources.base import Source, State, Status
from y7edge.sources.pacing import Paced
from y7edge.text import printable

# Suffixes of video formats that OpenCV reads with FFmpeg.
_VIDEO_SUFFIXES = {
    *(".264", ".265", ".3g2", ".3gp", ".amv", ".apng", ".asf", ".av1", ".avi", ".divx", ".dv"),
    *(".f4v", ".flv", ".gif", ".h264", ".h265", ".hevc", ".ivf", ".m1v", ".m2t", ".m2ts", ".m2v"),
    *(".m4v", ".mj2", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mts"),
    *(".mxf", ".nut", ".obu", ".ogm", ".ogv", ".qt", ".rmvb", ".ts", ".vob", ".webm", ".wmv"),
    *(".wtv", ".y4m"),
}
_HIGHEST_RATE = 1000  # frames/s; MPEG-TS files without a frame rate report their clock of 90,000
_DEFAULT_RATE = 25.0  # frames per second, as FFmpeg assumes for streams without times
_CLOSE_SECONDS = 0.5  # how long ``close`` waits for a file that is being read
Opened = tuple[str, Iterator[Frame]]
"""The path of a file, and its frames."""
_LEVELS = re.compile(r"(\d{1,5})-(\d{1,5})")


def open_files(address: Address) -> Source:
    """Open an image, a video, a folder or a pattern.

    Options:
        levels: LOW-HIGH, the 16-bit values that become 0 and 255; default: those of the model in
            ``predict`` and ``Detector.stream``, else 0-65535.
        loop: how often to read the files again; -1: without end.
        realtime: 1: frames come at the times of the video, as from a camera, and those that are not
            read in time are dropped.
        rate: the same, with this number of frames per second.

    Raises:
        SourceError: there is no image or video, or the folder cannot be read.
        ConfigError: an option is invalid.
    """
    options = dict(address.options)
    given = options.pop("levels", None)
    levels = None if given is None else _levels_of(address.name, str(given))
    # "levels" is only here to be suggested.
    known = {"loop": (-1, 1_000_000), "realtime": (0, 1), "rate": (0.01, 1000.0), "levels": (0, 0)}
    numbers = replace(address, options=options).numbers(**known)
    paths, skipped = _find(address.place)
    files = Files(address.name, paths, skipped, levels=levels, loop=int(numbers.get("loop", 0)))
    if rate := numbers.get("rate"):
        return Paced(files, rate=rate)
    if not numbers.get("realtime"):
        return files
    if all(map(is_image, paths)):
        raise ConfigError(f"{address.name}: images have no times: instead of realtime, set rate")
    return Paced(files)


def use_levels(source: Source, levels: tuple[int, int] | None) -> None:
    """Scale the 16-bit images of files by the levels of a model, unless the user chose others."""
    files = source.source if isinstance(source, Paced) else source
    if isinstance(files, Files) and files.levels is None:
        files.levels = levels


def _levels_of(name: str, text: str) -> tuple[int, int]:
    found = _LEVELS.fullmatch(text)
    low, high = map(int, found.groups()) if found else (0, 0)
    if not low < high <= 65535:
        raise ConfigError(
            f"{name}: option levels is {text[:64]!r}, expected LOW-HIGH, two values of 16-bit "
            "images, such as 0-4095"
        )
    return low, high


class Files(Source):
    """Images and videos, one after the other.

    The timestamp of a frame of a video is its position in nanoseconds; a still image has none.
    ``source`` of a frame is the path of its file, and ``sequence`` its number in the file.

    A file that cannot be read does not end the source: ``read`` raises SourceSkipped, and the next
    call continues with the next file. The frames of a truncated video are returned before the
    error. A call waits for the disk, whatever its ``timeout`` is.

    Attributes:
        paths: the files.
        skipped: entries of the folder that are not images or videos by name.
        levels: (lowest, highest) value of 16-bit images; this range is scaled to 8 bits. None: the
            whole range of 16 bits.

    Args:
        name: name of the source.
        paths: the files, at least one.
        skipped: for the attribute.
        levels: for the attribute, which may be set later.
        loop: how often to read the files again; -1: without end. ``sequence`` and the timestamps
            of a file continue.
    """

    live = False

    def __init__(
        self,
        name: str,
        paths: Sequence[Path],
        skipped: Sequence[Path] = (),
        *,
        levels: tuple[int, int] | None = None,
        loop: int = 0,
    ) -> None:
        self.name = name
        self.paths, self.skipped = paths, tuple(skipped)
        self.levels, self._rounds_left = levels, loop
        self._lock = threading.Lock()  # held while a file is read
        self._state: State = "running"
        self._index = self._frames = self._frames_before = 0
        self._video: _Video | None = None
        self._last: Frame | None = None  # of the file that is being read
        self._ends: dict[Path, tuple[int, int]] = {}  # next sequence and time of files, if looped
        self._problem: str | None = None

    def read(self, timeout: float | None = None) -> Frame | None:
        """Return the next image, or None after the last.

        Raises:
            SourceSkipped: a file cannot be decoded, or has fewer frames than its header states; the
                next call continues with the next file.
            SourceError: the same, and it is the only file.
        """
        with self._lock:
            try:
                frame = self._next() if self._state == "running" else None
                self._frames += frame is not None
                if frame is None and self._state == "running":
                    self._state = "ended"
            except SourceError as error:
                self._problem = str(error)
                self._leave()
                if len(self.paths) > 1:
                    raise SourceSkipped(str(error)) from error
                self._state = "failed"
                raise
            finally:
                if self._state == "closed":
                    self._leave()
            return frame

    def _next(self) -> Frame | None:
        while self._video is not None or self._index < len(self.paths) or self._rewind():
            path = self.paths[self._index]
            if self._video is None:
                if (image := self._still(path)) is not None:
                    frame = self._continued(Frame(image, clock="media", source=str(path)))
                    self._leave()
                    return frame
                self._video = _Video(path)
            if (found := self._video.read()) is not None:
                return self._continued(found)
            self._leave()
        return None

    def _still(self, path: Path) -> NDArray[np.uint8] | None:
        """Return the image of a file; None if the file may be a video."""
        if _is_video(path):
            return None
        try:
            return read_image(path, self.levels)
        except DataError as error:
            if is_image(path):
                raise SourceError(str(error)) from error
            return None

    def _continued(self, frame: Frame) -> Frame:
        """Continue the numbers and times of the previous round."""
        sequence, time = self._ends.get(self.paths[self._index], (0, 0))
        if sequence:
            at = None if frame.timestamp_ns is None else frame.timestamp_ns + time
            frame = replace(frame, sequence=frame.sequence + sequence, timestamp_ns=at)
        self._last = frame
        return frame

    def _leave(self) -> None:
        """Close the current file; the next one follows."""
        if self._last is not None and self._rounds_left:
            interval = round(1e9 / (self._last.rate or _DEFAULT_RATE))
            time = (self._last.timestamp_ns or 0) + interval
            self._ends[self.paths[self._index]] = self._last.sequence + 1, time
        if self._video is not None:
            self._video.close()
        self._video, self._last, self._index = None, None, self._index + 1

    def _rewind(self) -> bool:
        """Start the next round; return False if there is none, or no file could be read."""
        if not self._rounds_left or self._frames == self._frames_before:
            return False
        self._rounds_left -= self._rounds_left > 0
        self._index, self._frames_before = 0, self._frames
        return True

    @property
    def loops(self) -> bool:
        """Whether the files are read again after the last one."""
        return self._rounds_left != 0

    @property
    def progress(self) -> float:
        """Fraction of the files, or of a video's frames, that were read: 0 to 1."""
        video = self._video
        return min((self._index + (video.progress if video else 0.0)) / len(self.paths), 1.0)

    @property
    def status(self) -> Status:
        """What the source is doing; ``detail`` is the file that is being read."""
        video = self._video
        return Status(
            self._state,
            "opencv",
            printable(str(self.paths[min(self._index, len(self.paths) - 1)])),
            self._frames,
            problem=self._problem,
            rate=video.rate if video else None,
        )

    def close(self) -> None:
        """Close the current file, or have it closed after the call of ``read`` that uses it."""
        self._state = "closed"
        if self._lock.acquire(timeout=_CLOSE_SECONDS):
            try:
                if self._video is not None:
                    self._leave()
            finally:
                self._lock.release()


def read_ahead(
    paths: Iterable[str], levels: tuple[int, int] | None = None, threads: int = 2
) -> Generator[Opened, None, None]:
    """Yield each file with its frames; the first frames of the next files are read in threads.

    The iterator of a file raises SourceError if the file cannot be read completely.

    Args:
        paths: images and videos.
        levels: (lowest, highest) value of 16-bit images, as for ``Files``.
        threads: number of threads, which hold twice as many frames.
    """

    def start(path: str) -> tuple[Files, Frame | SourceError | None]:
        source = Files(path, [Path(path)], levels=levels)
        try:
            return source, source.read()
        except SourceError as error:
            return source, error

    waiting: deque[tuple[str, Future[tuple[Files, Frame | SourceError | None]]]] = deque()
    with ThreadPoolExecutor(threads, "y7edge-read") as pool:
        try:
            remaining = iter(paths)
            while True:
                for path in islice(remaining, 2 * threads - len(waiting)):
                    waiting.append((path, pool.submit(start, path)))
                if not waiting:
                    return
                path, future = waiting.popleft()
                yield path, _frames(*future.result())
        finally:
            for _, future in waiting:
                if not future.cancel():
                    future.result()[0].close()


def _frames(source: Files, first: Frame | SourceError | None) -> Iterator[Frame]:
    """Yield the first frame and those that follow, or raise the error."""
    with source:
        if isinstance(first, SourceError):
            raise first
        while first is not None:
            yield first
            first = source.read()


class _Video:
    """A video or an animated GIF, decoded by OpenCV."""

    def __init__(self, path: Path) -> None:
        import cv2

        self._path = path
        try:
            open_regular(path).close()
        except OSError as error:
            raise SourceError(f"{path}: cannot be read: {reason(error)}") from error
        self._video = cv2.VideoCapture(utf8_path(path, SourceError))
        self._expected = self._video.get(cv2.CAP_PROP_FRAME_COUNT)
        self._stated = self._video.get(cv2.CAP_PROP_FPS)
        self.rate = self._stated if 0 < self._stated <= _HIGHEST_RATE else None
        sides = [cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT]
        if words := too_large(*(int(self._video.get(side)) for side in sides)):
            self._video.release()
            raise SourceError(f"{path}: {words}")
        self._is_still = path.suffix.lower() == ".gif" and self._expected == 1
        self._count, self._seconds, self._time = 0, 0.0, -1

    def read(self) -> Frame | None:
        """Return the next frame, or None after the last.

        Raises:
            SourceError: there is no frame, or the video is truncated.
        """
        import cv2

        is_frame, image = self._video.read()
        if not is_frame:
            self._check_end()
            return None
        self._seconds = self._video.get(cv2.CAP_PROP_POS_MSEC) / 1000
        self._time = self._position()
        frame = Frame(
            np.asarray(image, np.uint8),
            timestamp_ns=None if self._is_still else self._time,
            clock="media",
            sequence=self._count,
            source=str(self._path),
            rate=self.rate,
        )
        self._count += 1
        return frame

    def _position(self) -> int:
        """Return the time of the frame; some containers have no times, or times that go back."""
        time = round(1e9 * self._seconds) if math.isfinite(self._seconds) else 0
        return time if time > self._time else self._time + round(1e9 / (self.rate or _DEFAULT_RATE))

    def _check_end(self) -> None:
        if not self._count:
            kind = "a video" if _is_video(self._path) else "an image or a video"
            raise SourceError(f"{self._path}: expected {kind} that OpenCV decodes, found no frame")
        # Some containers state only a duration, from which OpenCV estimates the number of frames.
        # Therefore a video is truncated only if the time of its last frame is too early as well.
        # This time is 0 if the container has no times.
        is_early = self._seconds * self._stated < self._expected - 2.5
        is_early = is_early and (self._seconds > 0 or self._count == 1)
        if is_early and self._count < self._expected - 1:
            count = f"read {self._count} frames, expected {self._expected:.0f}"
            raise SourceError(f"{self._path}: truncated: {count}")

    @property
    def progress(self) -> float:
        """Fraction of the frames that were read, as far as the container states their number."""
        return min(self._count / self._expected, 1.0) if self._expected > 0 else 0.0

    def close(self) -> None:
        """Close the file."""
        self._video.release()


def _find(source: str) -> tuple[Sequence[Path], list[Path]]:
    """List the images and videos of ``source``, sorted by name, and the entries that are skipped.

    A folder or a pattern selects files by suffix, and skips the others. A path of one file is
    returned whatever its suffix is.

    Raises:
        SourceError: There is no image or video, or the folder cannot be read.
    """
    path = Path(source)
    expected = "an image, a video, a folder or a pattern such as 'images/*.jpg'"
    try:
        if is_folder(path):
            return _list_folder(source, path)
        if os.path.lexists(path):
            return [path], []
        root = Path(path.anchor)
        entries = list(root.glob(str(path.relative_to(root))))
    except OSError as error:
        raise SourceError(f"{source}: cannot be read: {reason(error)}") from error
    except ValueError as error:  # an invalid pattern, such as a**
        raise SourceError(f"{source}: expected {expected}: {error}") from error
    folders = set(filter(is_folder, entries))
    found = {entry for entry in entries if is_image(entry) or _is_video(entry)} - folders
    others = sorted(set(entries) - found - folders)
    if not found:
        raise _nothing_found(source, path, expected, others)
    return sorted(found), others


def _list_folder(source: str, folder: Path) -> tuple[Sequence[Path], list[Path]]:
    """Do what `_find` does for a folder, with little memory and time for each file."""
    found: list[str] = []
    others: list[Path] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                path = Path(entry.path)
                if (is_image(path) or _is_video(path)) and not _is_folder(entry):
                    found.append(str(path))
                else:
                    others.append(path)
    except OSError as error:
        raise SourceError(f"{source}: cannot be read: {reason(error)}") from error
    if not found:
        raise _nothing_found(source, folder, "a folder of images or videos", others)
    found.sort()
    return _Paths(found), sorted(others)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that cannot be followed
        return False


class _Paths(Sequence[Path]):
    """Paths that are kept as text, because a Path needs five times as much memory."""

    def __init__(self, names: list[str]) -> None:
        self._names = names

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> _Paths: ...
    def __getitem__(self, index: int | slice) -> Path | _Paths:
        if isinstance(index, slice):
            return _Paths(self._names[index])
        return Path(self._names[index])


def _nothing_found(source: str, path: Path, expected: str, others: list[Path]) -> SourceError:
    what = f"none among {len(others)} entries" if others else "nothing"
    if not (others or is_folder(path) or re.search(r"[*?[]", source)):
        what = "no file or folder of this name"
    if re.match(r"[\w.-]+:\d+(/|$)", source):
        what += "; the address of a network camera starts with rtsp:// or http://"
    return SourceError(f"{source}: expected {expected}, found {what}")


def utf8_path(path: Path, error: type[Y7EdgeError]) -> str:
    """Return an absolute path for OpenCV's video classes, which crash if a path is not UTF-8.

    Raises an exception of the class ``error`` if the path is not UTF-8.
    """
    # FFmpeg would interpret the text before a colon in a relative path as a protocol.
    absolute = str(path.absolute())
    if not is_utf8(absolute):
        raise error(f"{absolute!a}: OpenCV cannot open a video of this name: rename it")
    return absolute


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in _VIDEO_SUFFIXES and not path.name.startswith(".")
