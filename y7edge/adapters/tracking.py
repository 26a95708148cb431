"""Track objects: the same number for the same object in all frames of a source.

The method is ByteTrack (Zhang et al., ECCV 2022) from the package trackers: a Kalman filter
predicts the box of each track, and boxes are assigned by IoU, first those of high confidence, then
the others. The filter is advanced by the time between the captures of two frames, not by the number
of frames, so that dropped frames and changing rates do not end tracks.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from y7edge.detect.detections import Detections
from y7edge.errors import ConfigError, DataError, needing

# ByteTrack's filter was tuned at this number of frames per second. It is the filter's unit of time
# for all sources, so that ids depend on capture times only. With a unit of 10 or 5 per second, fast
# objects lose their ids if frames are dropped.
_RATE = 30.0
_SAME = 1e-6  # seconds between frames of equal time, which the package would warn about
_EARLIER = 16  # names of sources that are remembered, to notice that two are mixed
# IoU with the predicted box from which a weak detection continues a track, or that of the tracker
# if it is larger. With less, false detections continue the tracks of objects that have left.
_WEAK_IOU = 0.5
_ALL = -1  # key of the tracks of all classes


class Tracker:
    """Assign tracker ids to the detections of one source, frame by frame.

    Ids start at 1 and are not used again. An object gets its id in the second frame in a row in
    which it is detected; until then, and if no track fits, its ``tracker_id`` is -1. A track ends
    if its object was not detected for ``lost`` seconds. All tracks end if the source restarts, that
    is, if a frame is older than the one before it.

    Time is ``Detections.timestamp_ns``; if it is None, ``frame_id`` / ``rate``; if that is None
    too, ``1 / rate`` seconds per call. Memory is bounded by the number of objects of the last
    ``lost`` seconds. Trackers are independent of each other, but one is not thread-safe.

    Args:
        rate: frames per second, for frames without a timestamp; None: 30.
        lost: seconds after which a track without detections ends; None: 1, or the time of 3 frames
            if ``rate`` is lower than 3.
        start: confidence from which a detection starts a track, and is assigned first. Detections
            with a lower confidence only continue tracks.
        iou: IoU with the predicted box from which a detection continues a track; for those with a
            confidence lower than ``start``, at least 0.5.
        agnostic: let detections of another class continue a track. By default, each class has its
            own tracks, as in NMS.

    Raises:
        ConfigError: a value is out of range.
        RuntimeMissing: the package trackers is not installed.
    """

    def __init__(
        self,
        rate: float | None = None,
        *,
        lost: float | None = None,
        start: float = 0.5,
        iou: float = 0.1,
        agnostic: bool = False,
    ) -> None:
        self._rate = _RATE if rate is None else _number("rate", rate, 0.01, 10_000)
        self._lost = max(1.0, 3 / self._rate) if lost is None else _number("lost", lost, 0, 3600)
        self._start = _number("start", start, 0, 1)
        self._iou = _number("iou", iou, 0, 1)
        self._agnostic = agnostic
        with needing("trackers", "tracking", "tracking"):
            import supervision
            import trackers
            from trackers.utils.iou import IoU
        self._overlap = _overlap_of(IoU)
        self._detections: Any = supervision.Detections
        self._byte_track: Any = trackers.ByteTrackTracker
        self._now = 0.0  # seconds
        self._last: tuple[int | None, int | None] | None = None  # timestamp_ns, frame_id
        self._names: tuple[str, ...] | None = None
        self._sources: deque[str | None] = deque(maxlen=_EARLIER)
        self._tracks: dict[int, Any] = {}  # by class
        self._ids: dict[tuple[int, int], int] = {}  # by class and the id of its tracker
        self._next = 1

    def reset(self) -> None:
        """End all tracks; ids are not used again."""
        self._tracks.clear()
        self._ids.clear()
        self._last = None

    def update(self, detections: Detections) -> Detections:
        """Return the detections of the next frame with ``tracker_id`` set; nothing else changes.

        Call it for every frame, also for those without detections.

        Args:
            detections: of one frame. Their order does not matter.

        Raises:
            DataError: frames of several sources are mixed.
        """
        self._check_source(detections)
        elapsed = self._elapsed(detections)
        renamed, self._names = self._names not in (None, detections.names), detections.names
        if renamed or elapsed is None or elapsed > self._lost:
            self.reset()
            elapsed = 1 / self._rate
        self._last = detections.timestamp_ns, detections.frame_id
        self._now += max(elapsed, _SAME)
        ids = np.full(len(detections), -1, np.int32)
        kinds = detections.class_id if not self._agnostic else np.full(len(ids), _ALL)
        # The order of boxes decides between equal costs and about new ids.
        order = np.lexsort((*detections.xyxy.T, -detections.confidence, detections.class_id))
        for kind in sorted({*self._tracks, *kinds.tolist()}):
            rows = order[kinds[order] == kind]
            ids[rows] = self._assign(kind, detections, rows)
        return replace(detections, tracker_id=ids)

    def _check_source(self, detections: Detections) -> None:
        """Raise DataError if a source returns after frames of another one."""
        previous = self._sources[-1] if self._sources else None
        if self._sources and detections.source == previous:
            return
        if detections.source in self._sources:
            raise DataError(
                f"frames of {previous} and {detections.source} are mixed: a Tracker is for one "
                "source, use one for each"
            )
        self._sources.append(detections.source)

    def _elapsed(self, detections: Detections) -> float | None:
        """Return the seconds since the last frame; None if the source has restarted."""
        if self._last is None:
            return 0.0
        last_ns, last_frame = self._last
        frames = None
        if detections.frame_id is not None and last_frame is not None:
            frames = detections.frame_id - last_frame
        if detections.timestamp_ns is not None and last_ns is not None:
            seconds = (detections.timestamp_ns - last_ns) / 1e9
            if seconds < 0 and frames is not None and frames > 0 and -seconds <= self._lost:
                return 0.0  # a newer frame: its clock is not exact
        else:
            seconds = (frames or 1) / self._rate
        return seconds if seconds >= 0 else None

    def _assign(
        self, kind: int, detections: Detections, rows: NDArray[np.intp]
    ) -> NDArray[np.int32]:
        """Return the ids of the detections ``rows``, which are all of the same kind."""
        tracker = self._tracks.get(kind)
        if tracker is None:
            tracker = self._tracks[kind] = self._byte_track(
                lost_track_buffer=max(round(self._lost * _RATE), 1),
                frame_rate=_RATE,
                track_activation_threshold=self._start,
                high_conf_det_threshold=self._start,
                minimum_iou_threshold=self._iou,
                iou=self._overlap,
            )
        given = self._detections(
            xyxy=detections.xyxy[rows].astype(np.float64),
            confidence=detections.confidence[rows],
            data={"row": np.arange(len(rows))},
        )
        self._overlap.weak = given.xyxy[given.confidence < self._start]
        found = tracker.update(given, timestamp=self._now)
        ids = np.full(len(rows), -1, np.int32)
        for row, inner in zip(found.data.get("row", ()), found.tracker_id, strict=True):
            if inner >= 0:
                ids[row] = self._outer(kind, int(inner))
        alive = {track.tracker_id for track in tracker.tracks}
        for key in [key for key in self._ids if key[0] == kind and key[1] not in alive]:
            del self._ids[key]
        if not tracker.tracks:
            del self._tracks[kind]
        return ids

    def _outer(self, kind: int, inner: int) -> int:
        if (kind, inner) not in self._ids:
            self._ids[kind, inner] = self._next
            self._next += 1
        return self._ids[kind, inner]


def _overlap_of(base: Any) -> Any:
    """Return a measure of overlap for ByteTrack, with a higher limit for weak detections.

    ``base``: the class IoU of the package.
    """

    class Overlap(base):  # type: ignore[misc]
        weak: NDArray[np.float64] = np.empty((0, 4))

        def _compute(
            self, boxes_1: NDArray[np.float64], boxes_2: NDArray[np.float64]
        ) -> NDArray[np.float64]:
            """Return the IoU of tracks (N, 4) and detections (M, 4); ByteTrack asks twice."""
            iou: NDArray[np.float64] = super()._compute(boxes_1, boxes_2)
            if np.array_equal(boxes_2, self.weak):
                iou[iou < _WEAK_IOU] = 0
            return iou

    return Overlap()


def _number(name: str, value: float, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ConfigError(f"{name} is {value!r}, expected a number from {low} to {high}")
    if not low <= value <= high:
        raise ConfigError(f"{name} is {value}, expected a number from {low} to {high}")
    return float(value)
