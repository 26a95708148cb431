"""Save frames on which the detector is uncertain, as a data set to label and train on.

This is uncertainty sampling (Settles, Active Learning Literature Survey, 2009). The uncertainty of
a detection is the margin of its score, 1 - |2 score - 1|. That of a frame is the maximum of its
detections, one of the aggregations of Brust et al. (Active Learning for Deep Object Detection,
VISAPP 2019). The best score of the frame is not used, because it is that of its easiest object.

The folder has ``images/``, ``labels/`` with the detections as proposed labels, ``data.yaml``, and
``hard.jsonl`` with the names, and with the scores and the capture time of each image. Files are
written in an order that leaves no image without its label if the process is killed.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from y7edge.boxes import centred, intersections
from y7edge.detect.detections import Detections
from y7edge.detect.preprocess import to_bgr
from y7edge.errors import ConfigError, DataError, OutputError
from y7edge.files import atomic_write, locked, read_regular, reason, write_text, writing
from y7edge.frames import Frame
from y7edge.live.background import Background
from y7edge.live.recording import utc_ns

_HIGHEST = 5000  # limit: each new frame is compared with all images
_WAITING = 4  # images that may wait for the disk
_THUMBNAIL = 8  # pixels per side
_SIMILAR = 4.0  # mean difference of thumbnails in grey levels of 255
_SAME_BOX = 0.5  # IoU
_BETTER = 0.1  # uncertainty that a frame needs above that of its predecessor, to replace it
_LONGEST = 60.0  # seconds that a pause counts at most
_SOURCES = 256  # whose last times are remembered; each video of a folder is a source
_MOST = 64 << 20  # bytes of hard.jsonl
_CLOSING = 30.0  # seconds
_QUALITY = 95  # of JPEG
_IMAGE = re.compile(r"images/hard-(\d{6,12})\.jpg")


@dataclass(eq=False)
class _Kept:
    """A line of hard.jsonl."""

    image: str  # path in the folder
    uncertainty: float
    position: float  # seconds of observation before the image
    scores: list[float]  # of the detections in the band
    boxes: list[list[float]]  # (n, 4) of these detections, as fractions of the image
    class_ids: list[int]  # (n,)
    thumbnail: str  # hexadecimal
    label: str  # digest of the proposed labels
    source: str | None = None
    timestamp_ns: int | None = None
    clock: str | None = None
    utc_ns: int | None = None
    frame_id: int | None = None
    pixels: NDArray[np.float32] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not _IMAGE.fullmatch(self.image) or np.shape(self.boxes) != (len(self.class_ids), 4):
            raise ValueError(f"{self.image[:80]!r} is not an image of a listing")
        if not math.isfinite(self.position + self.uncertainty):
            raise ValueError("expected finite numbers")
        if len(self.thumbnail) != 2 * _THUMBNAIL**2:
            raise ValueError(f"expected {_THUMBNAIL**2} pixels")
        grey = np.frombuffer(bytes.fromhex(self.thumbnail), np.uint8)
        self.pixels = grey.astype(np.float32)

    def line(self) -> str:
        record = {k: v for k, v in asdict(self).items() if k != "pixels" and v is not None}
        return json.dumps(record, ensure_ascii=False) + "\n"

    @property
    def label_path(self) -> Path:
        return Path("labels", Path(self.image).with_suffix(".txt").name)


@dataclass(frozen=True, eq=False)
class _Job:
    kept: _Kept
    image: NDArray[np.uint8]
    label: str
    removed: list[_Kept]
    listing: str


class HardFrames(AbstractContextManager["HardFrames"]):
    """Keep at most ``limit`` frames that have a detection with a score in ``band``.

    They are spread over the time of observation: of two frames within the interval, the clearly
    more uncertain one is kept, and if there are more than ``limit`` frames, the less uncertain of
    the two nearest in time is removed. Frames that show the same objects at the same places in the
    same scene are left out. Images whose label file was changed are never removed.

    A new object continues a folder. ``add`` compares, and a thread writes. The Detector must return
    detections with scores from ``band[0]`` on: open it with ``conf=band[0]``. One thread may add.

    Args:
        folder: for the data set; created if missing.
        names: class names of the model.
        band: scores between these, both exclusive.
        limit: maximum number of images.
        interval: minimum time between two images of a source in seconds.

    Raises:
        ConfigError: a value is out of range, or the folder has other content or class names.
        OutputError: the folder cannot be read or written, or another process writes to it.
    """

    def __init__(
        self,
        folder: Path | str,
        names: Sequence[str],
        band: tuple[float, float] = (0.2, 0.5),
        limit: int = 200,
        *,
        interval: float = 1.0,
    ) -> None:
        low, high = band
        if not 0 <= low < high <= 1:
            raise ConfigError(f"band is {band}, expected 0 <= low < high <= 1")
        if not 1 <= limit <= _HIGHEST:
            raise ConfigError(f"limit is {limit}, expected 1 to {_HIGHEST} images")
        if not 0 <= interval <= 86_400:
            raise ConfigError(f"interval is {interval}, expected 0 to 86400 seconds")
        if not names:
            raise ConfigError("names is empty, expected the class names of the model")
        self._folder, self._names = Path(folder), tuple(names)
        self._band, self._limit, self._interval = band, limit, interval
        self._clocks: dict[str | None, tuple[int, float]] = {}  # last timestamp and position
        with writing("hard frames", self._folder), ExitStack() as stack:
            self._folder.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(locked(self._folder, wait=False))
            except BlockingIOError as error:
                raise OutputError(
                    f"{self._folder}: hard frames are already saved there: use another folder"
                ) from error
            self._kept = self._read()
            # Seconds of observation before the current frame; largest position until now.
            self._position = self._latest = max((one.position for one in self._kept), default=0.0)
            names_there = (f"images/{path.name}" for path in self._folder.glob("images/hard-*"))
            numbers = (_IMAGE.fullmatch(name) for name in names_there)
            self._number = max((int(match[1]) for match in numbers if match), default=0)
            self._background = Background(
                f"hard frames in {self._folder}", self._write, stack.pop_all().close, _WAITING
            )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._kept)

    @property
    def problem(self) -> str | None:
        """Why saving has stopped, in one line; None if it has not."""
        return self._background.problem

    def add(self, frame: Frame, detections: Detections) -> bool:
        """Consider a frame; return True if it is saved. Call it for every frame.

        Raises:
            DataError: the detections are not of this frame, or of other classes.
        """
        self._advance(frame)
        scores = detections.confidence
        hard = detections[(scores > self._band[0]) & (scores < self._band[1])]
        if not len(hard) or self.problem is not None:
            return False
        self._check(frame, detections)
        uncertainty = float((1 - np.abs(2 * hard.confidence - 1)).max())
        replaced = self._within_interval(frame.source)
        if replaced and not self._is_replaceable(replaced, uncertainty):
            return False
        image = to_bgr(frame)
        kept = self._described(frame, image, hard, uncertainty)
        if any(_is_duplicate(kept, other) for other in self._kept if other is not replaced):
            return False
        removed = [replaced] if replaced else []
        remaining = [other for other in self._kept if other is not replaced]
        while len(remaining) >= self._limit:
            surplus = self._surplus(remaining, kept)
            if surplus is None or surplus is kept:
                return False
            remaining.remove(surplus)
            removed.append(surplus)
        label = _label(detections[scores > self._band[0]])
        kept.label = _digest(label)
        listing = self._header() + "".join(other.line() for other in [*remaining, kept])
        copied = image.copy() if np.shares_memory(image, frame.image) else image
        if not self._background.put(_Job(kept, copied, label, removed, listing)):
            return False
        self._number += 1
        self._kept = [*remaining, kept]
        return True

    def close(self) -> None:
        """Write what is queued; can be called twice.

        Raises:
            OutputError: saving has failed; raised once.
        """
        self._background.close(_CLOSING)

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- selection --------------------------------------------------------------------------------

    def _advance(self, frame: Frame) -> None:
        """Add the time since the last frame of this source to its time of observation.

        Frames without a timestamp are images of a folder, each of which is considered.
        """
        now_ns = frame.timestamp_ns
        if now_ns is None:
            self._position = self._latest + self._interval
        else:
            # The clocks of a camera and of a recording differ.
            last_ns, position = self._clocks.pop(frame.source, (now_ns, self._latest))
            self._position = position + min(max((now_ns - last_ns) / 1e9, 0.0), _LONGEST)
            self._clocks[frame.source] = now_ns, self._position
            if len(self._clocks) > _SOURCES:
                del self._clocks[next(iter(self._clocks))]
        self._latest = max(self._latest, self._position)

    def _check(self, frame: Frame, detections: Detections) -> None:
        if frame.size != tuple(detections.image_wh):
            raise DataError(
                f"the frame has {frame.size} pixels, the image of its detections "
                f"{tuple(detections.image_wh)}: give the detections of this frame"
            )
        if detections.names not in ((), self._names) or detections.class_id.max() >= len(
            self._names
        ):
            raise DataError(
                f"the detections are of other classes than {', '.join(self._names)[:200]}: use one "
                "HardFrames for each model"
            )

    def _within_interval(self, source: str | None) -> _Kept | None:
        """Return the last image of a source if it is less than the interval ago."""
        of_source = [kept for kept in self._kept if kept.source == source]
        last = max(of_source, key=lambda kept: kept.position, default=None)
        is_near = last is not None and self._position - last.position < self._interval
        return last if is_near else None

    def _is_replaceable(self, kept: _Kept, uncertainty: float) -> bool:
        return uncertainty > kept.uncertainty + _BETTER and not self._is_edited(kept)

    def _surplus(self, others: list[_Kept], new: _Kept) -> _Kept | None:
        """Return the less uncertain one of the two images that are nearest in time."""
        ordered = sorted([*others, new], key=lambda kept: kept.position)
        pairs = sorted(
            itertools.pairwise(ordered), key=lambda pair: pair[1].position - pair[0].position
        )
        for pair in pairs:
            for kept in sorted(pair, key=lambda kept: kept.uncertainty):
                if kept is new or not self._is_edited(kept):
                    return kept
        return None

    def _is_edited(self, kept: _Kept) -> bool:
        """Return whether somebody changed or removed the labels of an image."""
        try:
            content = (self._folder / kept.label_path).read_bytes()
        except OSError:  # an image that is not written yet has no label either
            return (self._folder / kept.image).exists()
        return _digest(content.decode(errors="replace")) != kept.label

    def _described(
        self, frame: Frame, image: NDArray[np.uint8], hard: Detections, uncertainty: float
    ) -> _Kept:
        small = cv2.resize(image, (_THUMBNAIL, _THUMBNAIL), interpolation=cv2.INTER_AREA)
        return _Kept(
            image=f"images/hard-{self._number + 1:06d}.jpg",
            uncertainty=round(uncertainty, 6),
            position=round(self._position, 3),
            scores=[round(score, 6) for score in hard.confidence.tolist()],
            boxes=np.round(hard.xyxyn.astype(np.float64), 5).tolist(),
            class_ids=hard.class_id.tolist(),
            thumbnail=cv2.cvtColor(small, cv2.COLOR_BGR2GRAY).tobytes().hex(),
            label="",
            source=frame.source,
            timestamp_ns=frame.timestamp_ns,
            clock=None if frame.timestamp_ns is None else frame.clock,
            utc_ns=utc_ns(frame),
            frame_id=frame.sequence,
        )

    # --- files ------------------------------------------------------------------------------------

    def _header(self) -> str:
        return json.dumps({"names": self._names}, ensure_ascii=False) + "\n"

    def _read(self) -> list[_Kept]:
        """Return the images of a folder that an earlier object wrote; none for a new folder."""
        listing = self._folder / "hard.jsonl"
        try:
            text = read_regular(listing, _MOST).decode()
        except FileNotFoundError:
            if any(not path.name.startswith(".") for path in self._folder.iterdir()):
                raise ConfigError(
                    f"{self._folder} has other content, and no hard.jsonl: expected a new folder"
                ) from None
            return []
        except UnicodeDecodeError as error:
            raise ConfigError(f"{listing}: expected UTF-8: move the folder away") from error
        first, *lines = text.removesuffix("\n").split("\n")  # names may contain U+2028
        try:
            names = tuple(json.loads(first)["names"])
            kept = [_Kept(**json.loads(line)) for line in lines]
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(
                f"{listing} is damaged ({reason(error)}): move the folder away"
            ) from error
        if names != self._names:
            raise ConfigError(
                f"{self._folder} has frames of classes {', '.join(map(str, names))[:200]}, this "
                f"model has {', '.join(self._names)[:200]}: use another folder"
            )
        return [one for one in kept if (self._folder / one.image).is_file()]

    def _write(self, job: _Job) -> None:
        with writing("hard frames", self._folder):
            description = self._folder / "data.yaml"
            if not description.exists():
                write_text(description, _description(self._names))
            write_text(self._folder / job.kept.label_path, job.label)
            encoded = cv2.imencode(".jpg", job.image, (cv2.IMWRITE_JPEG_QUALITY, _QUALITY))[1]
            with atomic_write(self._folder / job.kept.image) as temporary:
                temporary.write_bytes(encoded.tobytes())
            write_text(self._folder / "hard.jsonl", job.listing)
            for old in job.removed:
                (self._folder / old.image).unlink(missing_ok=True)
                (self._folder / old.label_path).unlink(missing_ok=True)


def _is_duplicate(new: _Kept, old: _Kept) -> bool:
    """Return whether the scene is the same, and has each uncertain object of ``new``."""
    if np.abs(new.pixels - old.pixels).mean() >= _SIMILAR:
        return False
    boxes, others = np.array(new.boxes), np.array(old.boxes)
    shared = intersections(boxes, others)
    union = _areas(boxes)[:, None] + _areas(others) - shared
    same = shared > _SAME_BOX * union
    same &= np.array(new.class_ids)[:, None] == np.array(old.class_ids)
    return bool(same.any(axis=1).all())


def _areas(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _label(detections: Detections) -> str:
    """Return the lines of a YOLO label file; boxes are clipped to the image."""
    boxes = centred(np.clip(detections.xyxyn.astype(np.float64), 0, 1))
    return "".join(
        f"{class_id} {x:.6f} {y:.6f} {width:.6f} {height:.6f}\n"
        for class_id, (x, y, width, height) in zip(detections.class_id, boxes, strict=True)
        if width > 0 and height > 0
    )


def _digest(label: str) -> str:
    return hashlib.sha256(label.encode()).hexdigest()[:16]


def _description(names: Sequence[str]) -> str:
    # Quoted text of JSON is also YAML.
    quoted = [json.dumps(name, ensure_ascii=False) for name in names]
    lines = "".join(f"  {index}: {name}\n" for index, name in enumerate(quoted))
    return (
        "# Frames on which the detector was uncertain. The labels are its own: correct them.\n"
        "# To measure a model, set val to the images on which the last one was measured.\n"
        f"train: images\nval: images\nnames:\n{lines}"
    )
