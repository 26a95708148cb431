"""Detections of one image: numpy arrays, with the image's capture time and source.

``xyxy``, ``confidence``, ``class_id`` and ``tracker_id`` are named as in the package supervision.
"""

from __future__ import annotations

import difflib
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, replace
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from y7edge.errors import ConfigError, DataError, needing

_ORIGIN = ("timestamp_ns", "frame_id", "source")

_DTYPES: dict[str, type[np.generic]] = {
    "xyxy": np.float32,
    "confidence": np.float32,
    "class_id": np.int32,
    "tracker_id": np.int32,
}


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds spent on one image, by stage; ``infer`` is the time of all batches it is in."""

    wait: float = 0.0  # waiting for calls by other threads
    pre: float = 0.0  # letterboxing into the network's input
    infer: float = 0.0  # inside the engine
    post: float = 0.0  # decoding and NMS

    @property
    def total(self) -> float:
        """The sum of all stages."""
        return self.wait + self.pre + self.infer + self.post


@dataclass(frozen=True, slots=True)
class Detection:
    """One detected object: corners in pixels of the source image, confidence 0..1, class."""

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
    def area(self) -> float:
        """Area in square pixels."""
        return (self.right - self.left) * (self.bottom - self.top)

    @property
    def center(self) -> tuple[float, float]:
        """The centre (x, y) in pixels."""
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2


@dataclass(frozen=True, eq=False)
class Detections:
    """The objects detected in one image, in descending order of confidence.

    The constructor copies arrays. ``detections[mask]`` and ``filter`` return new objects.

    Attributes:
        xyxy: (N, 4) float32, left, top, right, bottom in pixels of the source image.
        confidence: (N,) float32, 0..1.
        class_id: (N,) int32, index into ``names``.
        image_wh: (width, height) of the source image.
        names: class names; empty if unknown.
        tracker_id: (N,) int32 from a tracker, -1 for objects without a track; or None.
        timestamp_ns: capture time in nanoseconds, measured by the clock of the source, or None.
        frame_id: number of the frame in its source, or None.
        source: path or URI, or None.
        timing: time spent in each stage, or None.
        model_id: first 16 digits of the artifact's payload digest, or None.
    """

    xyxy: NDArray[np.float32]
    confidence: NDArray[np.float32]
    class_id: NDArray[np.int32]
    image_wh: tuple[int, int]
    names: tuple[str, ...] = ()
    _: KW_ONLY
    tracker_id: NDArray[np.int32] | None = None
    timestamp_ns: int | None = None
    frame_id: int | None = None
    source: str | None = None
    timing: Timing | None = None
    model_id: str | None = None

    def __post_init__(self) -> None:
        for name, dtype in _DTYPES.items():
            if (values := getattr(self, name)) is not None:
                object.__setattr__(self, name, _owned(name, values, dtype))
        if not self.xyxy.size:  # [] becomes an array without columns
            object.__setattr__(self, "xyxy", self.xyxy.reshape(0, 4))
        object.__setattr__(self, "names", tuple(self.names))
        for name in ("timestamp_ns", "frame_id"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, _whole(name, value))
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
        if len(self.image_wh) != 2 or min(self.image_wh) < 1:
            raise DataError(f"image_wh is {self.image_wh}, expected (width, height) in pixels")
        if not isinstance(self.source, str | None):
            raise DataError(f"source is {self.source!r}, expected a string or None")

    @classmethod
    def empty(cls, image_wh: tuple[int, int], names: Iterable[str] = ()) -> Detections:
        """Return an empty result for an image of ``image_wh`` (width, height)."""
        nothing = np.empty(0, np.float32)
        return cls(nothing, nothing, np.empty(0, np.int32), image_wh, tuple(names))

    def __len__(self) -> int:
        return len(self.xyxy)

    def __iter__(self) -> Iterator[Detection]:
        return (self[index] for index in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> Detection: ...
    @overload
    def __getitem__(self, index: slice | ArrayLike) -> Detections: ...

    def __getitem__(self, index: Any) -> Detection | Detections:
        """Return a ``Detection`` for an integer, else ``Detections`` of a slice, mask or indices.

        Raises:
            DataError: the length of the mask is wrong, or an index in an array is out of range.
        """
        if isinstance(index, (int, np.integer)) and not isinstance(index, bool):
            return self._row(int(index))
        chosen = index if isinstance(index, slice) else np.asarray(index)
        if isinstance(chosen, np.ndarray) and chosen.size == 0:
            chosen = chosen.astype(np.intp)  # [] becomes an array of floats
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
        # IndexError is not wrapped, because Python's sequence protocol requires it.
        left, top, right, bottom = self.xyxy[index].tolist()
        confidence, class_id = float(self.confidence[index]), int(self.class_id[index])
        name = self.names[class_id] if self.names else str(class_id)
        tracker_id = None if self.tracker_id is None else int(self.tracker_id[index])
        return Detection(left, top, right, bottom, confidence, class_id, name, tracker_id)

    def filter(
        self, confidence: float | None = None, classes: str | Iterable[int | str] | None = None
    ) -> Detections:
        """Select detections with a greater confidence, and of ``classes`` (see ``class_ids``).

        Raises:
            ConfigError: a class is not in the model.
        """
        mask = np.ones(len(self), np.bool_)
        if confidence is not None:
            mask = self.confidence > np.float32(confidence)
        if classes is not None:
            mask &= np.isin(self.class_id, class_ids(classes, self.names))
        return self[mask]

    @property
    def xywh(self) -> NDArray[np.float32]:
        """Boxes (N, 4) left, top, width, height in pixels, as in COCO."""
        boxes = self.xyxy.copy()
        boxes[:, 2:] -= boxes[:, :2]
        return boxes

    @property
    def xyxyn(self) -> NDArray[np.float32]:
        """Boxes (N, 4) as corners in normalized coordinates, 0..1."""
        return np.divide(self.xyxy, np.array(self.image_wh * 2, np.float32), dtype=np.float32)

    @property
    def area(self) -> NDArray[np.float32]:
        """Areas (N,) in square pixels."""
        sides = self.xyxy[:, 2:] - self.xyxy[:, :2]
        return sides[:, 0] * sides[:, 1]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for ``json.dumps``, without unset fields (except ``source``)."""
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
        record: dict[str, Any] = {
            "source": self.source,
            "image_size": list(self.image_wh),
            "detections": rows,
        }
        for name in ("timestamp_ns", "frame_id", "model_id"):
            if (value := getattr(self, name)) is not None:
                record[name] = value
        if self.timing is not None:
            record["timing"] = {key: round(ms, 3) for key, ms in asdict(self.timing).items()}
        return record

    def to_supervision(self) -> Any:
        """Return a ``supervision.Detections`` for annotators, zones and trackers of that package.

        Its ``xyxy``, ``confidence``, ``class_id`` and ``tracker_id`` are the arrays of this object,
        not copies. ``data["class_name"]`` has the class names, or the ids as text if the names are
        unknown. ``metadata`` has those of ``timestamp_ns``, ``frame_id`` and ``source`` that are
        set.

        Raises:
            RuntimeMissing: the package supervision is not installed.
        """
        with needing("supervision", "tracking", "to_supervision"):
            import supervision
        names = [row.class_name for row in self]
        origin = {name: getattr(self, name) for name in _ORIGIN}
        return supervision.Detections(
            xyxy=self.xyxy,
            confidence=self.confidence,
            class_id=self.class_id,
            tracker_id=self.tracker_id,
            data={"class_name": np.array(names, np.str_)},
            metadata={name: value for name, value in origin.items() if value is not None},
        )

    @classmethod
    def from_supervision(
        cls, found: Any, image_wh: tuple[int, int], names: Iterable[str] = ()
    ) -> Detections:
        """Return the detections that a ``supervision.Detections`` contains, best first.

        Arrays are copied; masks and ``data`` are not used. ``metadata`` may have ``timestamp_ns``,
        ``frame_id`` and ``source``. If there is no confidence, it is 1.

        Args:
            found: the object.
            image_wh: (width, height) of its image in pixels.
            names: class names by id; empty if unknown.

        Raises:
            DataError: it has no class ids, or other values that ``Detections`` refuses.
        """
        confidence = found.confidence
        if confidence is None:
            confidence = np.ones(len(found.xyxy), np.float32)
        if found.class_id is None and len(found.xyxy):
            raise DataError("the supervision.Detections has no class_id: set it, for example to 0")
        result = cls(
            found.xyxy,
            confidence,
            [] if found.class_id is None else found.class_id,
            image_wh,
            tuple(names),
            tracker_id=found.tracker_id,
            **{name: found.metadata.get(name) for name in _ORIGIN},
        )
        return result[np.argsort(-result.confidence, kind="stable")]


def class_ids(classes: str | Iterable[int | str], names: Sequence[str]) -> tuple[int, ...]:
    """Convert class names and ids to ids in ascending order.

    A string selects all classes with that name. If no class has it, a string such as "7" is an id.
    ``names``: the class names by id; empty if unknown.

    Raises:
        ConfigError: a class does not exist, or is not a string or an integer.
    """
    if not isinstance(classes, Iterable):
        raise ConfigError(f"classes: expected a name or a list of names and ids, found {classes!r}")
    given = [classes] if isinstance(classes, str) else list(classes)
    return tuple(sorted({found for item in given for found in _ids_of(item, names)}))


def _ids_of(item: int | str, names: Sequence[str]) -> list[int]:
    if isinstance(item, str):
        if found := [index for index, name in enumerate(names) if name == item]:
            return found
        if not (item.isascii() and item.isdecimal() and len(item) < 10):
            if {part.strip() for part in item.split(",")} <= set(names):
                raise ConfigError(
                    f"the model has no class {item!r}: give each class on its own, such as "
                    "--class A --class B, or a list of names"
                )
            near = difflib.get_close_matches(item, names, n=1, cutoff=0.0)
            hint = f"did you mean {near[0]!r}?" if near else "its class names are unknown"
            raise ConfigError(f"the model has no class {item!r}; {hint}")
        item = int(item)
    if isinstance(item, bool) or not isinstance(item, (int, np.integer)):
        raise ConfigError(f"classes: expected a name or an id, found {item!r}")
    if item < 0 or (names and item >= len(names)):
        last = f" to {len(names) - 1}" if names else ""
        raise ConfigError(f"the model has no class {item}; expected an id from 0{last}")
    return [int(item)]


def _whole(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise DataError(f"{name} is {value!r}, expected a whole number or None") from None


def _owned(name: str, values: Any, dtype: type[np.generic]) -> NDArray[Any]:
    """Return a C-contiguous copy of ``values`` as ``dtype``; raise DataError if impossible."""
    try:
        array = np.asarray(values)
        if np.issubdtype(dtype, np.integer) and array.size and array.dtype.kind not in "iu":
            raise DataError(f"{name} has dtype {array.dtype}, expected integers")
        return array.astype(dtype, order="C", copy=True)
    except DataError:
        raise
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} cannot be read as {dtype.__name__}: {error}") from error
