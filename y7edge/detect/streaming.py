"""Detect in the frames of one or several sources, always in the newest frame of a camera.

Detection runs in the thread of the caller, between two results: a program that takes long for one
result gets fewer, but never older ones. One source is read in the same thread. Several sources are
read by one thread each, which waits for a frame while the detector runs. When it is free, a frame
of a camera is replaced by a newer one, if there is one. So frames are copied as often as the
detector runs, not as often as cameras make them. The source that was served last is asked last, so
none of them starves.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from y7edge.detect.ages import Ages, Pace
from y7edge.detect.detections import Detections
from y7edge.detect.health import SILENCE_S, Health, SourceHealth
from y7edge.detect.model import OpenModel
from y7edge.detect.submission import check_timeout
from y7edge.errors import ConfigError, SourceError, SourceSkipped, SourceTimeout, Y7EdgeError
from y7edge.frames import Frame
from y7edge.sources.base import Source, Status
from y7edge.text import one_line

_POLL = 0.25  # seconds between two looks whether the stream was closed
_JOIN = 1.5  # seconds that `close` waits for all threads together

_log = logging.getLogger(__name__)

One = str | int | Path | Source
Streamed = One | Sequence[One] | Iterable[Frame | NDArray[np.uint8]]
"""A source of ``Detector.stream``, several of them, or images."""


class Stream:
    """Frames of sources with their detections: ``for frame, detections in stream``.

    Can be used as a context manager. One thread iterates; ``ages``, ``status`` and ``close`` may be
    used by any thread. A stream that is no longer referenced is closed.

    Args:
        source: what ``Detector.stream`` takes.
        options: options of the sources that are opened here.
        detect: detects in a list of frames.
        model: returns the model that ``detect`` uses, which may change.
        wait: seconds to wait for a frame; None: as long as no source has ended or failed.
        levels: of the model, for files of 16-bit images.

    Raises:
        ConfigError: ``source`` is not a source, or there is nothing to apply ``options`` to.
        SourceError: a source cannot be opened.
    """

    def __init__(
        self,
        source: object,
        options: Mapping[str, Any],
        detect: Callable[[Sequence[Frame]], list[Detections]],
        model: Callable[[], OpenModel],
        wait: float | None = None,
        levels: tuple[int, int] | None = None,
    ) -> None:
        from y7edge.sources.files import use_levels

        self._inputs = _opened(source, options)
        for one in self._inputs:
            use_levels(one.source, levels)
        self._detect, self._model = detect, model
        self._wait = None if wait is None else check_timeout(wait, "wait")
        self._results: deque[tuple[str, Frame, Detections]] = deque()
        self._current: str | None = None
        self._ages = {one.name: Ages() for one in self._inputs}
        self._pace = {one.name: Pace() for one in self._inputs}
        self._error: BaseException | None = None
        self._began = time.monotonic()
        single = len(self._inputs) == 1
        self._reader: _Single | _Several = (
            _Single(self._inputs[0]) if single else _Several(self._inputs)
        )
        # Without a reference to the stream, which could not be collected then.
        self._close = weakref.finalize(self, _close, self._reader, os.getpid())

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> tuple[Frame, Detections]:
        """Detect in the newest frame, or in those of several sources; return the next result.

        Raises:
            SourceTimeout: there was no frame within ``wait``; the next call waits again.
            SourceError: a single source failed; of several, one failed and all others have ended.
            DetectorClosed, DeviceError, DataError: as for a call of the detector.
        """
        try:
            if not self._results:
                self._fill()
            if self._results and self._close.alive:
                self._current, frame, detections = self._results.popleft()
                self._pace[self._current].add()
                return frame, detections
        except SourceTimeout:  # the stream is as it was
            raise
        except BaseException as error:
            self._error = error
            self.close()
            raise
        self.close()
        raise StopIteration

    def _fill(self) -> None:
        """Detect in the frames that are ready, and measure their ages."""
        taken = self._reader.take(self._model().inference.batch, self._wait)
        if not taken:
            return
        found = self._detect([frame for _, frame in taken])
        now = time.monotonic_ns()
        for (name, frame), detections in zip(taken, found, strict=True):
            if (age := frame.age_ns(now)) is not None:
                self._ages[name].add(age)
            self._results.append((name, frame, detections))

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop, and close the sources that the stream has opened; can be called twice."""
        self._close()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the sources, all different: a second "cam" is called "cam (2)"."""
        return tuple(one.name for one in self._inputs)

    @property
    def current(self) -> str | None:
        """The name of the source of the newest result; None before the first.

        Of cameras, it is ``frame.source``. Frames of folders have the names of their files instead,
        and those of recordings the name of the camera.
        """
        return self._current

    @property
    def ages(self) -> Mapping[str, Ages]:
        """The ages of frames by source: the time from capture until the result was there.

        There are none for sources whose capture times are not of ``time.monotonic_ns()``: files.
        """
        return MappingProxyType(self._ages)

    @property
    def pace(self) -> Mapping[str, Pace]:
        """When results were returned, by source."""
        return MappingProxyType(self._pace)

    def health(self, silence: float = SILENCE_S) -> Health:
        """Return whether detection continues, for the health check of a program that runs for long.

        The stream is healthy if each source has ended as files do, or had a result within
        ``silence`` seconds. A program that does not ask for the next result is not healthy either.
        """
        status = self.status
        sources = tuple(
            SourceHealth.of(name, status[name], self._pace[name], self._ages[name], silence)
            for name in self.names
        )
        young = time.monotonic() - self._began <= silence
        error = None if self._error is None else one_line(str(self._error))
        return Health.of(self._model(), sources, young=young, error=error)

    @property
    def status(self) -> Mapping[str, Status]:
        """The state of each source by name; "dropped" includes frames that only the stream saw."""
        return {one.name: one.status for one in self._inputs}


@dataclass(eq=False)
class _Input:
    """A source of the stream, and its frame that waits for the detector."""

    name: str
    source: Source
    owned: bool  # opened by the stream, which closes it
    frame: Frame | None = None
    dropped: int = 0  # by the stream, in addition to those that the source dropped
    ended: bool = False
    error: Y7EdgeError | None = None

    def read(self, stopped: Callable[[], bool], wait: float | None = None) -> Frame | None:
        """Return the next frame; None at the end, or once ``stopped`` returns True.

        Raises:
            SourceTimeout: there was no frame within ``wait`` seconds.
        """
        end = math.inf if wait is None else time.monotonic() + wait
        while not stopped():
            try:
                frame = self.source.read(max(0.0, min(_POLL, end - time.monotonic())))
            except SourceTimeout:
                if time.monotonic() >= end:
                    raise SourceTimeout(_no_frame(self.name, self.status, wait)) from None
                continue
            except SourceSkipped as error:
                _log.warning("%s", error)  # the next frame follows
                continue
            return None if frame is None else self._labelled(frame)
        return None

    def _labelled(self, frame: Frame) -> Frame:
        """Return the frame with the name that the source has in the stream."""
        own = frame.source in (None, self.source.name)  # frames of a folder have names of files
        return replace(frame, source=self.name) if own and frame.source != self.name else frame

    def refresh(self) -> None:
        """Replace the frame that waits by a newer one of a camera."""
        try:
            newer = self.source.read(0) if self.source.live else None
        except SourceSkipped as error:
            _log.warning("%s", error)
            return
        except Y7EdgeError:  # there is none; an error is raised again by the next `read`
            return
        if newer is not None:
            self.frame = self._labelled(newer)
            self.dropped += 1

    def take(self) -> tuple[str, Frame]:
        """Return the frame that waits, and forget it."""
        assert self.frame is not None
        frame, self.frame = self.frame, None
        if self.dropped:
            frame = replace(frame, dropped=frame.dropped + self.dropped)
        return self.name, frame

    def close(self) -> None:
        """Close the source if the stream has opened it."""
        if self.owned:
            self.source.close()

    @property
    def status(self) -> Status:
        """The state of the source, also after it was closed because it ended or failed."""
        status = self.source.status
        status = replace(status, dropped=status.dropped + self.dropped)
        if self.error is not None:
            return replace(status, state="failed", problem=str(self.error))
        return replace(status, state="ended") if self.ended else status


def _no_frame(name: str, status: Status, wait: float | None) -> str:
    why = f" ({status.problem})" if status.problem and status.state != "running" else ""
    return f"{name}: there was no frame within {wait:g} s{why}"


class _Single:
    """Reads one source in the thread of the caller."""

    def __init__(self, only: _Input) -> None:
        self._only = only
        self._closed = threading.Event()

    def take(self, most: int, wait: float | None) -> list[tuple[str, Frame]]:
        """Return the next frame and the name of its source; nothing at the end."""
        only = self._only
        try:
            only.frame = only.read(self._closed.is_set, wait)
        except SourceTimeout:
            raise
        except Y7EdgeError as error:
            only.error = error
            raise
        if only.frame is None:
            only.ended = not self._closed.is_set()
            return []
        return [only.take()]

    def close(self) -> None:
        """Stop, and close the source."""
        self._closed.set()
        self._only.close()


class _Several:
    """Reads several sources by one thread each."""

    def __init__(self, inputs: Sequence[_Input]) -> None:
        self._turns = deque(inputs)  # the one that was served last is at the end
        self._changed = threading.Condition()
        self._closed = False
        self._fault: Exception | None = None  # that is no failure of a source, but of the program
        self._threads = [
            threading.Thread(
                target=self._serve, args=(one,), name=f"y7edge read {one.name}", daemon=True
            )
            for one in inputs
        ]
        for thread in self._threads:
            thread.start()

    def take(self, most: int, wait: float | None) -> list[tuple[str, Frame]]:
        """Wait for frames; return at most ``most`` with the names of their sources.

        Frames of different sources are in the order of their capture, if that is known. The list is
        empty at the end.

        Raises:
            SourceTimeout: there was no frame of any source within ``wait`` seconds.
        """
        end = None if wait is None else time.monotonic() + wait
        with self._changed:
            while not (ready := [one for one in self._turns if one.frame is not None]):
                if self._closed or self._is_over():
                    return []
                left = None if end is None else end - time.monotonic()
                if left is not None and left <= 0:
                    names = ", ".join(one.name for one in self._turns if not one.ended)
                    raise SourceTimeout(f"{names}: there was no frame within {wait:g} s")
                self._changed.wait(left)
            if self._fault is not None:
                raise self._fault
            chosen = ready[:most]
            for one in chosen:
                self._turns.remove(one)
                self._turns.append(one)
        for one in chosen:  # its thread does not read while a frame waits
            one.refresh()
        with self._changed:
            taken = [one.take() for one in chosen]
            self._changed.notify_all()
        if all(frame.age_ns(0) is not None for _, frame in taken):  # times of one clock
            taken.sort(key=lambda pair: pair[1].timestamp_ns or 0)
        return taken

    def _is_over(self) -> bool:
        """Return whether all sources ended; raise the error if one of them failed."""
        if self._fault is not None:
            raise self._fault
        if not all(one.ended for one in self._turns):
            return False
        errors = [one.error for one in self._turns if one.error is not None]
        if len(errors) > 1:
            text = "; ".join(map(str, errors))
            raise SourceError(f"{len(errors)} sources failed: {text}") from errors[0]
        if errors:
            raise errors[0]
        return True

    def _serve(self, one: _Input) -> None:
        """Read a source until it ends or fails, or the stream is closed; close it."""
        try:
            while self._wants(one) and (frame := one.read(lambda: self._closed)) is not None:
                with self._changed:
                    one.frame = frame
                    self._changed.notify_all()
                del frame  # or it would be kept until the next one is there
        except Y7EdgeError as error:
            one.error = error
        except Exception as error:  # raised again by `take`
            self._fault = error
        one.close()
        with self._changed:
            one.ended = not self._closed
            others = sum(not other.ended for other in self._turns)
            self._changed.notify_all()
        if one.error is not None and others and not self._closed:
            _log.warning("%s failed; continuing with %d others: %s", one.name, others, one.error)

    def _wants(self, one: _Input) -> bool:
        """Wait until no frame of a source waits; return False if the stream was closed."""
        with self._changed:
            self._changed.wait_for(lambda: one.frame is None or self._closed)
            return not self._closed

    def close(self) -> None:
        """Stop the threads, which close their sources."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        until = time.monotonic() + _JOIN
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, until - time.monotonic()))
        for one in self._turns:  # those of threads that still wait for a frame
            one.close()


def _close(reader: _Single | _Several, process: int) -> None:
    if process == os.getpid():  # a forked child has neither the threads nor the sources
        reader.close()


class _Images(Source):
    """Frames or arrays of an iterable, such as a camera that the program reads itself."""

    live = False

    def __init__(self, images: Iterable[object]) -> None:
        self.name = "images"
        self._images = iter(images)
        self._count = 0

    def read(self, timeout: float | None = None) -> Frame | None:
        """Return the next image; an array gets the next number, and has no capture time."""
        try:
            image: Any = next(self._images)
        except StopIteration:
            return None
        frame = image if isinstance(image, Frame) else Frame(image, sequence=self._count)
        self._count += 1
        return frame

    @property
    def status(self) -> Status:
        """The number of images that were read."""
        return Status("running", "y7edge", "images of the program", frames=self._count)

    def close(self) -> None:
        """Do nothing, because the iterable belongs to the program."""


def _opened(given: object, options: Mapping[str, Any]) -> list[_Input]:
    """Open the sources, and give each one a name of its own."""
    from y7edge.sources.uri import open_source

    inputs: list[_Input] = []
    try:
        for item in _sources(given, options):
            owned = not isinstance(item, Source)
            source = open_source(item, **options) if owned else item
            names = {one.name for one in inputs}
            numbered = (f"{source.name} ({number})" for number in itertools.count(2))
            name = next(one for one in itertools.chain([source.name], numbered) if one not in names)
            inputs.append(_Input(name, source, owned))
    except BaseException:
        for one in inputs:
            one.close()
        raise
    return inputs


def _sources(given: object, options: Mapping[str, Any]) -> list[Any]:
    """Return the URIs and open sources of ``Detector.stream``; images become one source."""
    items = list(given) if isinstance(given, list | tuple) else [given]
    named = [isinstance(i, str | int | Path | Source) and not isinstance(i, bool) for i in items]
    expected = "expected a URI, a path, a number, an open source, a list of these, or images"
    if not any(named):
        is_one = isinstance(given, np.ndarray | Frame)
        if is_one or not isinstance(given, Iterable) or isinstance(given, bytes | Mapping):
            hint = ": call the detector itself for one image" if is_one else ""
            raise ConfigError(f"the source is of type {type(given).__name__}, {expected}{hint}")
        if not items:
            raise ConfigError(f"the list of sources is empty, {expected}")
        items, named = [_Images(given)], [True]
    if not all(named):
        other = type(items[named.index(False)]).__name__
        raise ConfigError(f"the list of sources contains an object of type {other}, {expected}")
    opened = [item for item in items if isinstance(item, Source)]
    if len(set(map(id, opened))) < len(opened):
        raise ConfigError("the list of sources contains an open source twice, expected it once")
    if options and len(opened) == len(items):
        found = ", ".join(options)
        raise ConfigError(f"{found}: options are for URIs, and the sources are open already")
    return items
