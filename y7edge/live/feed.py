"""The newest frames of the sources as JPEG images, for the viewers of the page.

Frames are offered by the thread that detects, which only stores a reference. A frame is scaled and
encoded in a thread of its own, at most once for all viewers, at most ``rate`` times per second, and
only if a viewer is ready for it. Viewers draw the boxes themselves.
"""

from __future__ import annotations

import asyncio
import json
import struct
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import cv2
from numpy.typing import NDArray

from y7edge.detect.detections import Detections
from y7edge.detect.preprocess import to_bgr
from y7edge.errors import ConfigError
from y7edge.frames import Frame
from y7edge.text import one_line

IN_FLIGHT = 2
"""Images that a viewer may have received without having drawn them."""
_LENGTH = struct.Struct(">I")


@dataclass(frozen=True)
class Limits:
    """What the images may cost.

    Attributes:
        width: largest width in pixels; wider frames are scaled down.
        quality: of JPEG, 1 to 100.
        rate: largest number of images per second and source.
        viewers: largest number of viewers.

    Raises:
        ConfigError: a number is out of its range.
    """

    width: int = 960
    quality: int = 80
    rate: float = 15.0
    viewers: int = 8

    def __post_init__(self) -> None:
        ranges = {"width": (64, 8192), "quality": (1, 100), "rate": (0.1, 120), "viewers": (1, 64)}
        for name, (least, most) in ranges.items():
            if not least <= getattr(self, name) <= most:
                raise ConfigError(
                    f"{name} of the page is {getattr(self, name)}, expected {least} to {most}"
                )


@dataclass(eq=False)
class Viewer:
    """What one viewer watches, and what it has.

    Attributes:
        wake: set if there may be something to send.
        source: number of the source that is watched; None: no images.
        in_flight: images that were sent and not yet drawn.
        seen: number of the newest image that was sent.
        waits_since: when it last drew an image, or got one after having drawn all.
        problems: what was wrong with its messages, not sent yet.
    """

    wake: asyncio.Event
    source: int | None = None
    in_flight: int = 0
    seen: int = 0
    waits_since: float = 0.0
    problems: list[str] = field(default_factory=list)

    @property
    def is_ready(self) -> bool:
        """Whether an image may be sent."""
        return self.source is not None and self.in_flight < IN_FLIGHT


@dataclass(frozen=True, eq=False)
class _Shot:
    number: int
    frame: Frame
    detections: Detections


class Feed:
    """The images of one source.

    ``offer`` is called by the thread that detects, everything else in the event loop.

    Args:
        index: number of the source.
        limits: size and rate of the images.
        encoder: the thread that encodes.
    """

    def __init__(self, index: int, limits: Limits, encoder: ThreadPoolExecutor) -> None:
        self._index, self._limits, self._encoder = index, limits, encoder
        self._loop = asyncio.get_running_loop()
        self._newest: _Shot | None = None
        self._fresh = asyncio.Event()
        self._wanted = False
        self._count = 0
        self.viewers: set[Viewer] = set()
        self.packet: tuple[int, bytes] | None = None
        """Number and message of the newest encoded image."""
        self.encoded = 0
        """Images that were encoded until now."""

    def offer(self, frame: Frame, detections: Detections) -> None:
        """Make a frame the newest one."""
        self._count += 1
        self._newest = _Shot(self._count, frame, detections)
        if self._wanted:
            with suppress(RuntimeError):  # the loop was closed in the meantime
                self._loop.call_soon_threadsafe(self._fresh.set)

    def update(self) -> None:
        """Encode the newest frame if a viewer is ready; call this if viewers have changed."""
        self._wanted = bool(self.viewers)
        if any(viewer.is_ready for viewer in self.viewers):
            self._fresh.set()

    async def run(self) -> None:
        """Encode frames until the task is cancelled."""
        while True:
            await self._fresh.wait()
            self._fresh.clear()
            shot = self._newest
            if shot is None or not any(viewer.is_ready for viewer in self.viewers):
                continue
            if self.packet is None or shot.number > self.packet[0]:
                began = self._loop.time()
                packet = await self._loop.run_in_executor(self._encoder, self._encode, shot)
                self.encoded += 1
                self.packet = shot.number, packet
                for viewer in self.viewers:
                    viewer.wake.set()
                # Frames of this time are skipped, the next one is the newest.
                await asyncio.sleep(max(0.0, 1 / self._limits.rate - (self._loop.time() - began)))
            else:
                for viewer in self.viewers:
                    viewer.wake.set()

    def _encode(self, shot: _Shot) -> bytes:
        header = {
            "type": "image",
            "source": self._index,
            "frame": shot.detections.frame_id,
            "model_id": shot.detections.model_id,
            "size": list(shot.detections.image_wh),
            "boxes": _boxes(shot.detections),
        }
        try:
            image = _jpeg(to_bgr(shot.frame), self._limits)
        except Exception as error:  # shown on the page, which goes on with the next frame
            header["problem"], image = (
                f"the image cannot be encoded: {one_line(str(error), 200)}",
                b"",
            )
        text = json.dumps(header, separators=(",", ":")).encode()
        return _LENGTH.pack(len(text)) + text + image


def _boxes(found: Detections) -> list[list[Any]]:
    """Return left, top, right, bottom, confidence, class id, tracker id or None of each box."""
    ids: list[int | None] = [None] * len(found)
    if found.tracker_id is not None:  # -1: not tracked yet
        ids = [one if one >= 0 else None for one in found.tracker_id.tolist()]
    rows = zip(
        found.xyxy.tolist(), found.confidence.tolist(), found.class_id.tolist(), ids, strict=True
    )
    return [[*(round(v, 1) for v in box), round(conf, 3), kind, i] for box, conf, kind, i in rows]


def _jpeg(image: NDArray[Any], limits: Limits) -> bytes:
    height, width = image.shape[:2]
    if width > limits.width:
        size = limits.width, max(1, round(height * limits.width / width))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    encoded, content = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, limits.quality])
    if not encoded:
        raise cv2.error("imencode failed")
    return bytes(content)
