"""The thresholds of a Detector: its options, with the manifest's defaults."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from y7edge.artifact.manifest import Manifest
from y7edge.detect.detections import class_ids
from y7edge.detect.postprocess import EVALUATION, Criteria
from y7edge.errors import ConfigError

Conf = float | Mapping[int | str, float]
"""One confidence threshold, or thresholds by class name or id."""


def criteria_for(
    manifest: Manifest,
    conf: Conf | None,
    iou: float | None,
    max_det: int | None,
    classes: str | Iterable[int | str] | None,
    agnostic: bool,
) -> Criteria:
    """Return the criteria for the options of a Detector; None is the manifest's default.

    Raises:
        ConfigError: an option is out of range, or the graph does not support it.
    """
    defaults = manifest.thresholds
    least, by_class = _class_thresholds(conf, manifest)
    criteria = Criteria(
        conf=least,
        class_conf=by_class,
        iou=defaults.iou if iou is None else float(iou),
        max_det=defaults.max_det if max_det is None else int(max_det),
        classes=None if classes is None else class_ids(classes, manifest.names),
        agnostic=agnostic,
    )
    _require_supported(manifest, criteria, changed=iou is not None)
    return criteria


def _class_thresholds(
    conf: Conf | None, manifest: Manifest
) -> tuple[float, tuple[float, ...] | None]:
    """Return the least confidence threshold, and the thresholds by class id if there are several.

    ``conf``: None for the manifest's default, which also applies to classes not in a mapping.
    """
    if not isinstance(conf, Mapping):
        return manifest.thresholds.conf if conf is None else float(conf), None
    given: dict[int, float] = {}
    for name, value in conf.items():
        for index in class_ids([name], manifest.names):
            if given.setdefault(index, value) != value:
                raise ConfigError(
                    f"conf: expected one threshold for class {manifest.names[index]!r}, "
                    f"found {given[index]} and {value}"
                )
    by_class = [float(given.get(i, manifest.thresholds.conf)) for i in range(manifest.nc)]
    return min(by_class), tuple(by_class)


def _require_supported(manifest: Manifest, criteria: Criteria, *, changed: bool) -> None:
    """Raise ConfigError for options that a graph with NMS does not support.

    ``changed``: whether the user set the IoU threshold.
    """
    if manifest.outputs[0].role != "detections":
        return
    way_out = "use an artifact with outputs heads or decoded"
    if criteria.agnostic:
        raise ConfigError(
            f"agnostic is True, but the graph of {manifest.model} suppresses boxes within each "
            f"class: {way_out}"
        )
    if changed and not manifest.threshold_inputs:
        raise ConfigError(
            f"iou is {criteria.iou}, but NMS is part of the graph of {manifest.model}, which has "
            f"no input for it: omit iou, or {way_out}"
        )


def require_candidates(manifest: Manifest) -> None:
    """Raise ConfigError if a model cannot be evaluated, because NMS is part of its graph."""
    if manifest.outputs[0].role == "detections":
        raise ConfigError(
            f"{manifest.model} returns boxes after NMS, each with its best class only; mAP needs "
            f"every class of every box above confidence {EVALUATION.conf}: evaluate the "
            "checkpoint, or an artifact with outputs heads or decoded"
        )
