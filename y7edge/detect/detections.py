"""What a detector found in one picture: numpy arrays, and when and where the picture came from.

Field names and shapes are those of supervision's ``Detections`` (``xyxy``, ``confidence``,
``class_id``, ``tracker_id``), so that code written for one reads the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from y7edge.errors import ConfigError, DataError


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds spent on one picture, stage by stage; pictures of one batch share ``infer``."""

    wait: float = 0.0  # for the lock, while another call was being served
    pre: float = 0.0  # letterbox into the network's input
    infer: float = 0.0  # inside the engine
    post: float = 0.0  # decoding and suppression

    @property
    def total(self) -> float:
        """Sum of the stages."""
        return self.wait + self.pre + self.infer + self.post


@dataclass(frozen=True, slots=True)
class Detection:
    """One object: corners in pixels of the source picture, confidence 0..1 and class."""

    left: float
    top: float
    right: float
    bottom: float
    confidence: float
    class_id: int
    class_name: str
    tracker_id: int | None = None

    @property
    def xyxy(self) -> tuple[float, float, float, float]:
        """(left, top, right, bottom)."""
        return self.left, self.top, self.right, self.bottom

    @property
    def width(self) -> float:
        """Right minus left, in pixels."""
        return self.right - self.left

    @property
    def height(self) -> float:
        """Bottom minus top, in pixels."""
        return self.bottom - self.top

    @property
    def area(self) -> float:
        """Square pixels."""
        return self.width * self.height

    @property
    def center(self) -> tuple[float, float]:
        """(x, y) of the middle, in pixels."""
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2


@dataclass(frozen=True, eq=False)
class Detections:
    """Objects of one picture, best first as a detector gives them.

    Arrays are copied on construction: a ``Detections`` owns its memory, and no later result writes
    into it. A selection (``detections[mask]``, ``filter``) is a new object.

    Attributes:
        xyxy: (N, 4) float32, left, top, right, bottom in pixels of the source picture.
        confidence: (N,) float32, 0..1.
        class_id: (N,) int32, index into ``names``.
        image_size: (width, height) of the source picture.
        names: class names; empty if unknown.
        tracker_id: (N,) int32 from a tracker, or None.
        timestamp_ns: when the picture was captured, or None if its source does not say.
        frame_id: running number of the picture in its source.
        source: where the picture came from, as the user named it.
        timing: time spent per stage.
        model_id: digest of the artifact that answered.
    """

    xyxy: NDArray[np.float32]
    confidence: NDArray[np.float32]
    class_id: NDArray[np.int32]
    image_size: tuple[int, int]
    names: tuple[str, ...] = ()
    tracker_id: NDArray[np.int32] | None = field(default=None, kw_only=True)
    timestamp_ns: int | None = field(default=None, kw_only=True)
    frame_id: int | None = field(default=None, kw_only=True)
    source: str | None = field(default=None, kw_only=True)
    timing: Timing | None = field(default=None, kw_only=True)
    model_id: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        xyxy = _owned("xyxy", self.xyxy, np.float32)
        # A bare [] is an empty table too, though numpy cannot know of how many columns.
        object.__setattr__(self, "xyxy", xyxy.reshape(0, 4) if xyxy.size == 0 else xyxy)
        object.__setattr__(self, "confidence", _owned("confidence", self.confidence, np.float32))
        object.__setattr__(self, "class_id", _owned("class_id", self.class_id, np.int32))
        object.__setattr__(self, "names", tuple(self.names))
        if self.tracker_id is not None:
            object.__setattr__(self, "tracker_id", _owned("tracker_id", self.tracker_id, np.int32))
        self._validate()

    def _validate(self) -> None:
        if self.xyxy.ndim != 2 or self.xyxy.shape[1] != 4:
            raise DataError(f"xyxy has shape {self.xyxy.shape}, expected (N, 4)")
        for name in ("confidence", "class_id", "tracker_id"):
            array = getattr(self, name)
            if array is not None and array.shape != (len(self),):
                raise DataError(f"{name} has shape {array.shape}, expected ({len(self)},)")
        if not (np.isfinite(self.xyxy).all() and np.isfinite(self.confidence).all()):
            raise DataError("xyxy or confidence has values that are not finite")
        limit = len(self.names) or np.iinfo(np.int32).max
        if len(self) and not 0 <= self.class_id.min() <= self.class_id.max() < limit:
            raise DataError(f"class_id has values outside 0 to {limit - 1}")
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            raise DataError(f"image_size is {self.image_size}, expected (width, height) in pixels")

    @classmethod
    def empty(cls, image_size: tuple[int, int], names: Iterable[str] = ()) -> Detections:
        """Nothing found in a picture of ``image_size`` (width, height)."""
        nothing = np.empty(0, np.float32)
        return cls(nothing.reshape(0, 4), nothing, np.empty(0, np.int32), image_size, tuple(names))

    def __len__(self) -> int:
        return len(self.xyxy)

    def __iter__(self) -> Iterator[Detection]:
        return (self[index] for index in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> Detection: ...
    @overload
    def __getitem__(self, index: slice | ArrayLike) -> Detections: ...

    def __getitem__(self, index: Any) -> Detection | Detections:
        """One row for an integer; a new ``Detections`` for a slice, a mask or an index array.

        Raises:
            DataError: a mask of another length, or an index beyond the last row.
        """
        if isinstance(index, (int, np.integer)) and not isinstance(index, bool):
            return self._row(int(index))
        chosen = index if isinstance(index, slice) else np.asarray(index)
        if isinstance(chosen, np.ndarray) and chosen.size == 0:
            chosen = chosen.astype(np.intp)  # [] is an empty choice; numpy would call it floats
        try:
            return replace(
                self,
                xyxy=self.xyxy[chosen],
                confidence=self.confidence[chosen],
                class_id=self.class_id[chosen],
                tracker_id=None if self.tracker_id is None else self.tracker_id[chosen],
            )
        except IndexError as error:
            raise DataError(f"cannot select from {len(self)} detections: {error}") from error

    def _row(self, index: int) -> Detection:
        # IndexError and not ours: Python's own protocol for sequences relies on it.
        left, top, right, bottom = self.xyxy[index].tolist()
        class_id = int(self.class_id[index])
        return Detection(
            left,
            top,
            right,
            bottom,
            float(self.confidence[index]),
            class_id,
            self.names[class_id] if self.names else str(class_id),
            None if self.tracker_id is None else int(self.tracker_id[index]),
        )

    def filter(
        self, confidence: float = 0.0, classes: Iterable[int | str] | None = None
    ) -> Detections:
        """Those of at least ``confidence`` and of one of ``classes`` (ids or names; None: all).

        Raises:
            ConfigError: a class that the model does not have.
        """
        mask = self.confidence >= np.float32(confidence)
        if classes is not None:
            mask &= np.isin(self.class_id, [self._class_id(item) for item in classes])
        return self[mask]

    def _class_id(self, item: int | str) -> int:
        if not isinstance(item, str):
            return int(item)
        if item not in self.names:
            raise ConfigError(f"no class is named {item!r}; there are: {', '.join(self.names)}")
        return self.names.index(item)

    @property
    def xywh(self) -> NDArray[np.float32]:
        """(N, 4): left, top, width, height in pixels, as COCO has it."""
        boxes = self.xyxy.copy()
        boxes[:, 2:] -= boxes[:, :2]
        return boxes

    @property
    def xyxyn(self) -> NDArray[np.float32]:
        """(N, 4): corners as parts of the picture's width and height, 0..1."""
        return np.divide(self.xyxy, np.array(self.image_size * 2, np.float32), dtype=np.float32)

    @property
    def area(self) -> NDArray[np.float32]:
        """(N,) square pixels."""
        sides = self.xyxy[:, 2:] - self.xyxy[:, :2]
        return sides[:, 0] * sides[:, 1]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, ready for ``json.dumps``; what is unknown is left out."""
        rows = []
        for row in self:
            entry: dict[str, Any] = {
                "xyxy": [round(value, 3) for value in row.xyxy],
                "confidence": round(row.confidence, 6),
                "class_id": row.class_id,
                "class_name": row.class_name,
            }
            if row.tracker_id is not None:
                entry["tracker_id"] = row.tracker_id
            rows.append(entry)
        told: dict[str, Any] = {
            "source": self.source,
            "image_size": list(self.image_size),
            "detections": rows,
        }
        for name in ("timestamp_ns", "frame_id", "model_id"):
            if (value := getattr(self, name)) is not None:
                told[name] = value
        if self.timing is not None:
            told["timing"] = {key: round(ms, 3) for key, ms in asdict(self.timing).items()}
        return told


def _owned(name: str, values: Any, dtype: type[np.generic]) -> NDArray[Any]:
    """A C-contiguous copy of ``values``; DataError if they cannot be ``dtype``."""
    try:
        array = np.asarray(values)
        if np.issubdtype(dtype, np.integer) and array.size and array.dtype.kind not in "iu":
            raise DataError(f"{name} has dtype {array.dtype}, expected integers")
        return array.astype(dtype, order="C", copy=True)
    except (TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{name} cannot be read as {dtype.__name__}: {error}") from error
