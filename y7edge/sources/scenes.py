"""``test://scenes``: a camera above a conveyor belt with trays of small parts, without a camera.

The parts are those of the demo (``make demo``): nuts, washers, screws and brackets. The labels of
every frame are known: ``Conveyor(seed, (height, width)).view(settings.moved(sequence))``.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from y7edge.data.synthetic.conveyor import LARGEST_SIDE, Conveyor
from y7edge.data.synthetic.scenes import SMALLEST_SIDE
from y7edge.errors import SourceError, SourceTimeout
from y7edge.sources.base import Captured
from y7edge.sources.pattern import Fault, fail, read_fault

_RANGES: dict[str, tuple[float, float]] = {
    "fps": (0.1, 1000),
    "width": (SMALLEST_SIDE, LARGEST_SIDE),
    "height": (SMALLEST_SIDE, 1440),  # the whole belt is drawn first, and is in memory
    "seed": (0, 2**32 - 1),
    "speed": (0, 10),
    "frames": (0, 10**9),
}
_FAULTS = ("stall", "hang", "crash", "end", "error")  # those that change no images


@dataclass(frozen=True)
class Settings:
    """Options of ``test://scenes``.

    Attributes:
        fps: frames per second.
        width: of a frame in pixels.
        height: of a frame in pixels.
        seed: of the random numbers; other seeds make other trays.
        speed: of the belt, in widths of a frame per second.
        frames: 0: a live camera, which runs until it is closed, and drops frames that are not read
            in time. Otherwise the frames of a video, which are all returned, as fast as they are
            read.
    """

    fps: float = 30.0
    width: int = 640
    height: int = 480
    seed: int = 0
    speed: float = 0.25
    frames: int = 0

    def moved(self, sequence: int) -> int:
        """Return how far the belt has moved in a frame, in pixels."""
        return round(sequence * self.speed * self.width / self.fps)


def settings_of(options: Mapping[str, Any]) -> Settings:
    """Read options, numbers or strings.

    Raises:
        SourceError: an option does not exist, or its value is invalid.
    """
    known: dict[str, type[int] | type[float]] = {
        name: type(value) for name, value in asdict(Settings()).items()
    }
    values: dict[str, Any] = {}
    for name, value in options.items():
        if name not in known:
            raise SourceError(
                f"test://scenes has no option {str(name)!r}: expected "
                f"{', '.join((*known, 'fault', 'after'))}"
            )
        low, high = _RANGES[name]
        kind = "a whole number" if known[name] is int else "a number"
        try:
            if isinstance(value, bool) or len(str(value)) > 32:
                raise ValueError
            number = known[name](value)
            if not (math.isfinite(number) and low <= number <= high):
                raise ValueError
            if not isinstance(value, str) and number != value:
                raise ValueError  # 1.5 frames
        except (TypeError, ValueError, OverflowError):
            raise SourceError(
                f"test://scenes: {name} is {str(value)[:40]!r}, expected {kind} from {low:g} to "
                f"{high:.10g}"
            ) from None
        values[name] = number
    return Settings(**values)


def grabber(options: Mapping[str, Any]) -> Scenes:
    """Draw the belt, and start the camera above it.

    Args:
        options: those of ``Settings``; and ``fault`` and ``after`` of ``test://pattern``, with the
            faults that do not change images.

    Raises:
        SourceError: an option is invalid, or the fault happens while it is opened.
    """
    fault, after = read_fault(options, _FAULTS)
    settings = {name: options[name] for name in options if name not in ("fault", "after")}
    scenes = Scenes(settings_of(settings), fault, after)
    if after < 0:
        fail(fault)
    return scenes


class Scenes:
    """The grabber of ``test://scenes``; see ``y7edge.sources.base.Grabber``."""

    backend = "y7edge"

    def __init__(self, settings: Settings, fault: Fault | None = None, after: int = 0) -> None:
        self._fault, self._after = fault, after
        self.live = settings.frames == 0
        self.detail = (
            f"synthetic trays, {settings.width}x{settings.height} at {settings.fps:g} fps, seed "
            f"{settings.seed}"
        )
        self._settings = settings
        self._belt = Conveyor(settings.seed, (settings.height, settings.width))
        self._closed = threading.Event()
        self._next = 0
        self._start_ns = time.monotonic_ns()

    def grab(self, timeout: float) -> Captured | None:
        """Return the next frame when it is due; if that is past, the newest one.

        Raises:
            SourceTimeout: no frame is due within ``timeout`` seconds.
        """
        sequence = self._next
        if self._fault is not None and sequence >= self._after >= 0:
            if self._fault == "end":
                return None
            fail(self._fault)
            self._closed.wait(timeout)
            raise SourceTimeout("test://scenes stalls (fault=stall)")
        if self.live:
            wait = (self._due_ns(sequence) - time.monotonic_ns()) / 1e9
            if wait > timeout:
                self._closed.wait(timeout)
                raise SourceTimeout(f"test://scenes had no frame within {timeout:g} s")
            if wait > 0:
                self._closed.wait(wait)
            passed_ns = time.monotonic_ns() - self._start_ns
            sequence = max(sequence, int(passed_ns * self._settings.fps / 1e9))
        elif sequence >= self._settings.frames:
            return None
        if self._closed.is_set():
            return None
        skipped = sequence - self._next
        self._next = sequence + 1
        image = self._belt.view(self._settings.moved(sequence)).image
        height, width = image.shape[:2]
        return Captured(
            planes=(image.reshape(height, width * 3),),
            size=(width, height),
            format="bgr",
            timestamp_ns=self._due_ns(sequence),
            clock="sensor" if self.live else "media",
            skipped=skipped,
            rate=self._settings.fps,
        )

    def _due_ns(self, sequence: int) -> int:
        since = round(sequence * 1e9 / self._settings.fps)
        return self._start_ns + since if self.live else since

    def close(self) -> None:
        """Stop; a call of ``grab`` in another thread returns."""
        self._closed.set()
