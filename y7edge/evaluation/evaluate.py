"""Compute the mean average precision of detectors with any engine, without torch.

The definition is COCO's (101 recall points, IoU 0.50 to 0.95 in steps of 0.05), computed by
faster-coco-eval, with up to 300 boxes per image instead of COCO's 100.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from y7edge.data.dataset import Dataset, Sample
from y7edge.data.images import read_image
from y7edge.detect.detections import Detections
from y7edge.errors import ConfigError, DataError
from y7edge.evaluation.average_precision import COUNTS, averages
from y7edge.evaluation.confusion import CONF, Confusion, confusion
from y7edge.evaluation.curves import THRESHOLDS, Curves, curves
from y7edge.evaluation.tables import Table, Tables
from y7edge.models.checkpoint import default_names

PROTOCOL = (
    "square letterbox, multi-label, confidence 0.001, NMS IoU 0.65, 300 boxes per image, "
    "COCO average precision by faster-coco-eval"
)

Predict = Callable[[NDArray[np.uint8]], Detections]
"""Function that detects in a BGR uint8 image (H, W, 3) as described by ``PROTOCOL``."""


@dataclass(frozen=True, slots=True)
class ClassMetrics:
    """Metrics of one class.

    Precision, recall and F1 are at IoU 0.5 and the threshold ``Metrics.conf``. All metrics are None
    for a class without labels; precision is also None if no detection is above the threshold.
    """

    name: str
    ap50: float | None  # average precision at IoU 0.5
    ap50_95: float | None  # average precision, mean over IoU 0.5 to 0.95
    labels: int  # number of labels
    precision: float | None = None
    recall: float | None = None
    f1: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Metrics:
    """The result of an evaluation; means are over the classes that have labels.

    ``ar1``, ``ar10``, ... are the average recall of the best 1, 10, ... boxes per class and image.
    ``*_small`` are for objects up to 32 x 32 pixels of the source image, ``*_large`` for those from
    96 x 96, at 300 boxes; None if there are no objects of that size.
    """

    map50: float
    map50_95: float
    map75: float
    per_class: tuple[ClassMetrics, ...]
    images: int
    labels: int
    protocol: str = PROTOCOL
    map_small: float | None = None
    map_medium: float | None = None
    map_large: float | None = None
    ar1: float | None = None
    ar10: float | None = None
    ar100: float | None = None
    ar300: float | None = None
    ar_small: float | None = None
    ar_medium: float | None = None
    ar_large: float | None = None
    conf: float | None = None  # threshold of the best mean F1; None if F1 is 0
    precision: float | None = None  # mean at that threshold, like recall and F1
    recall: float | None = None
    f1: float | None = None
    confusion: Confusion | None = None
    curves: Curves | None = None

    def class_rows(self) -> list[tuple[Any, ...]]:
        """Return a row for each class, then one for all classes.

        A row is name, labels, AP@0.5, AP@0.5:0.95, precision, recall, F1.
        """
        scores = (self.map50, self.map50_95, self.precision, self.recall, self.f1)
        rows = [
            (c.name, c.labels, c.ap50, c.ap50_95, c.precision, c.recall, c.f1)
            for c in self.per_class
        ]
        return [*rows, ("all", self.labels, *scores)]

    def size_rows(self) -> list[tuple[str, float | None, float | None]]:
        """Return rows of name, mAP@0.5:0.95, average recall: of all objects, then of each size."""
        sizes = [(s, getattr(self, f"map_{s}"), getattr(self, f"ar_{s}")) for s in _BY_SIZE]
        return [("all", self.map50_95, self.ar300), *sizes]

    def to_dict(self) -> dict[str, Any]:
        """Return values for JSON, without the curves."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "curves"}
        plain["per_class"] = [asdict(item) for item in self.per_class]
        plain["confusion"] = self.confusion.to_dict() if self.confusion else None
        return plain


def evaluate(
    predict: Predict,
    samples: Sequence[Sample],
    names: Sequence[str],
    progress: Callable[[int, int], None] | None = None,
) -> Metrics:
    """Detect in all images and compare with their labels.

    ``names`` are the classes of the data set. ``progress`` is called after each image with the
    number of evaluated images and the number of all images.

    Raises:
        DataError: an image cannot be read, or there are no labels.
        ConfigError: the detector has more classes than the data set.
        RuntimeMissing: faster-coco-eval is not installed.
    """
    return metrics_of(collect(predict, samples, names, progress), names)


def collect(
    predict: Predict,
    samples: Sequence[Sample],
    names: Sequence[str],
    progress: Callable[[int, int], None] | None = None,
) -> Tables:
    """Detect in all images, and return labels and detections; arguments as for ``evaluate``."""
    truth, found = [np.empty((0, 7))], [np.empty((0, 7))]
    for index, sample in enumerate(samples):
        image = read_image(sample.path, sample.levels)
        truth.append(_truth_rows(index, sample, image.shape[0], image.shape[1]))
        found.append(_found_rows(index, predict(image), len(names)))
        if progress is not None:
            progress(index + 1, len(samples))
    return Tables(np.concatenate(truth), np.concatenate(found), len(samples))


def same_classes(
    known: Sequence[str], dataset: Dataset, warn: Callable[[str], None] | None = None
) -> Dataset:
    """Renumber the classes of a data set to a model's class indices, matched by name.

    Classes are matched by index if the model or the data set has no class names, or if both have
    only one class. ``known`` are the model's class names. ``warn`` is called with each warning, a
    single line.

    Raises:
        DataError: the numbers of classes differ, and no name is common, so the mAP would be 0.
    """
    known, labelled, tell = tuple(known), dataset.names, warn or (lambda _: None)
    if len(known) != len(labelled) and not set(known) & set(labelled):
        raise DataError(
            f"{dataset.source} has {len(labelled)} classes, the model {len(known)}: evaluate the "
            "model on a data set with the classes that it was trained for"
        )
    nameless = len(known) == 1 or default_names(len(known)) in (known, labelled)
    if nameless and len(known) == len(labelled) and sorted(known) != sorted(labelled):
        pair = next(p for p in zip(known, labelled, strict=True) if p[0] != p[1])
        tell(f"warning: class {pair[0]!r} of the model is {pair[1]!r} in {dataset.source}")
        return dataset
    renamed = dataset.renamed(known)
    if other := sorted(set(known) ^ set(labelled)):
        tell(f"warning: only the model or {dataset.source} has the classes {reprlib.repr(other)}")
    return renamed


def _truth_rows(index: int, sample: Sample, height: int, width: int) -> Table:
    """Return the labels and crowd regions of an image in pixels."""
    boxes = np.vstack((sample.boxes, sample.crowd[:, 1:])).astype(np.float64)
    boxes *= (width, height, width, height)
    boxes[:, :2] -= boxes[:, 2:] / 2
    class_id = np.concatenate((sample.class_id, sample.crowd[:, 0]))
    crowd = np.repeat((0, 1), (len(sample.boxes), len(sample.crowd)))
    return np.column_stack((np.full(len(boxes), index), class_id, boxes, crowd))


def _found_rows(index: int, detections: Detections, classes: int) -> Table:
    class_id = detections.class_id
    if len(class_id) and class_id.max() >= classes:
        raise ConfigError(
            f"the detector returned class {class_id.max()}, the data set has {classes} classes; "
            "evaluate on a data set with the classes that the model was trained for"
        )
    boxes = detections.xyxy.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    return np.column_stack((np.full(len(boxes), index), boxes, detections.confidence, class_id))


def metrics_of(tables: Tables, names: Sequence[str]) -> Metrics:
    """Compute metrics from labels and detections; errors as for ``evaluate``."""
    objects = tables.truth[tables.truth[:, 6] == 0, 1].astype(int)
    labels = np.bincount(objects, minlength=len(names))
    if not labels.any():
        raise DataError(f"expected labels to compare with, found none in {tables.images} images")
    average = averages(tables, len(names))
    precision = average.precision[..., 0].mean(axis=1)  # (IoU, class)
    mean = precision[:, labels > 0].mean(axis=1)
    drawn = curves(tables, len(names), average.precision[0, :, :, 0])
    best = drawn.best
    conf = None if best is None else float(THRESHOLDS[best])
    further: dict[str, Any] = {
        **{f"map_{size}": average.mean_precision(size) for size in _BY_SIZE},
        **{f"ar{count}": average.mean_recall(count) for count in COUNTS},
        **{f"ar_{size}": average.mean_recall(size=size) for size in _BY_SIZE},
        **{name: _at(drawn.mean(name), best) for name in _CURVES},
    }
    return Metrics(
        map50=float(mean[0]),
        map50_95=float(mean.mean()),
        map75=float(mean[5]),
        per_class=_per_class(names, labels, precision, drawn),
        images=tables.images,
        labels=int(labels.sum()),
        confusion=confusion(tables, names, CONF if conf is None else conf),
        curves=drawn,
        conf=conf,
        **further,
    )


_CURVES = ("precision", "recall", "f1")
_BY_SIZE = ("small", "medium", "large")


def _per_class(
    names: Sequence[str], labels: NDArray[np.intp], precision: Table, drawn: Curves
) -> tuple[ClassMetrics, ...]:
    return tuple(
        ClassMetrics(
            name,
            float(precision[0, index]) if labels[index] else None,
            float(precision[:, index].mean()) if labels[index] else None,
            int(labels[index]),
            **{curve: _at(getattr(drawn, curve)[index], drawn.best) for curve in _CURVES},
        )
        for index, name in enumerate(names)
    )


def _at(curve: NDArray[np.float64], index: int | None) -> float | None:
    return None if index is None or np.isnan(curve[index]) else float(curve[index])
