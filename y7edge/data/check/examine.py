"""The examination of a data set: scan, decode, run every check."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from y7edge.data.check import classes as check_classes
from y7edge.data.check import files, images, labels
from y7edge.data.check import splits as check_splits
from y7edge.data.check.box_format import settle
from y7edge.data.check.classes import per_class
from y7edge.data.check.decoding import Progress, inspect_all
from y7edge.data.check.geometry import grade
from y7edge.data.check.registry import SEVERITIES, Check, Finding
from y7edge.data.check.scan_coco import find_files, scan_coco
from y7edge.data.check.scan_voc import scan_voc
from y7edge.data.check.scan_yolo import scan_description, scan_folder, scan_list
from y7edge.data.formats import voc, yolo
from y7edge.data.formats.records import Scan
from y7edge.data.sample import is_image
from y7edge.errors import DataError

CHECKS: tuple[Check, ...] = (
    *files.CHECKS,
    *images.CHECKS,
    *labels.CHECKS,
    *check_classes.CHECKS,
    *check_splits.CHECKS,
)


@dataclass(frozen=True, slots=True)
class Report:
    """What was found.

    Attributes:
        scan: The data set as its files have it.
        findings: Errors first, then warnings, then infos; in the order of the checks.
        summary: Counts of pictures, labels and classes by split, and sizes of boxes.
    """

    scan: Scan
    findings: tuple[Finding, ...]
    summary: Mapping[str, Any]

    def count(self, severity: str) -> int:
        """How many findings of a severity there are."""
        return sum(finding.severity == severity for finding in self.findings)

    def by_check(self) -> dict[tuple[str, str], list[Finding]]:
        """Findings by check and severity, in order."""
        groups: dict[tuple[str, str], list[Finding]] = {}
        for finding in self.findings:
            groups.setdefault((finding.check, finding.severity), []).append(finding)
        return groups


def scan_data(path: Path | str) -> Scan:
    """Scan a data set of any layout, without looking into pictures.

    Args:
        path: A ``data.yaml``, a COCO JSON file, a list of pictures, or a folder with one of these,
            with Pascal VOC annotations, or with pictures and YOLO labels.

    Raises:
        DataError: Nothing there that can be read.
        RuntimeMissing: A ``data.yaml`` needs PyYAML.
    """
    source = Path(path)
    if source.is_file():
        if is_image(source):
            raise DataError(f"{source}: is a picture; name the data.yaml, or the folder")
        if source.suffix.lower() == ".json":
            return scan_coco(source)
        return scan_list(source) if source.suffix.lower() == ".txt" else scan_description(source)
    if not source.is_dir():
        raise DataError(f"{source}: expected a data.yaml or a data folder, found nothing there")
    if (found := yolo.find(source)) is not None:
        return scan_description(found)
    if voc.is_voc(source):
        return scan_voc(source)
    return scan_coco(source) if find_files(source) else scan_folder(source)


def examine(path: Path | str, *, imgsz: int = 640, progress: Progress | None = None) -> Report:
    """Look at everything.

    Args:
        path: As for `scan_data`.
        imgsz: Side of the network's input: what counts as a small box depends on it.
        progress: Told of pictures done, and of all.

    Raises:
        DataError: Nothing there that can be read.
        RuntimeMissing: Pillow or PyYAML is not installed.
    """
    scan = scan_data(path)
    scan.imgsz = imgsz
    for file, facts in inspect_all(scan.pictures, progress).items():
        scan.pictures[file].facts = facts
    settle(scan)
    found = [finding for check in CHECKS for finding in check.findings(scan)]
    found.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    return Report(scan, tuple(found), summarise(scan))


def summarise(scan: Scan) -> dict[str, Any]:
    """Counts by split and class, and quantiles of the sides of boxes in input pixels."""
    splits = {}
    for split in dict.fromkeys(scan.split_names):
        pictures = scan.in_split(split)
        splits[split] = {
            "pictures": len(pictures),
            "labels": sum(len(picture.labels) for picture in pictures),
            "background": sum(not picture.labels for picture in pictures),
        }
    classes = [
        {"class": index, "name": scan.name_of(index), **{s: counts[s] for s in splits}}
        for index, counts in per_class(scan).items()
    ]
    sizes = Counter(p.facts.size for p in scan.pictures.values() if p.facts.size)
    return {
        "layout": scan.layout,
        "splits": splits,
        "classes": classes,
        "picture_sizes": [
            {"size": f"{width}x{height}", "pictures": count}
            for (width, height), count in sizes.most_common(5)
        ],
        "box_sides": _quantiles(scan),
    }


def _quantiles(scan: Scan) -> dict[str, list[float]]:
    """Least, 5 %, median, 95 % and largest width and height, in pixels of the network's input."""
    sides = []
    for picture, label in scan.labels():
        found, size = grade(label, picture), picture.facts.size
        if found.fault == "" and found.box is not None and size is not None:
            gain = scan.imgsz / max(size)
            x1, y1, x2, y2 = found.box
            sides.append(((x2 - x1) * size[0] * gain, (y2 - y1) * size[1] * gain))
    if not sides:
        return {}
    found_sides = np.quantile(np.array(sides), (0.0, 0.05, 0.5, 0.95, 1.0), axis=0).round(1)
    return {"width": found_sides[:, 0].tolist(), "height": found_sides[:, 1].tolist()}


def record(report: Report) -> dict[str, Any]:
    """The report as plain values, for JSON."""
    return {
        "data": report.scan.source,
        "imgsz": report.scan.imgsz,
        "errors": report.count("error"),
        "warnings": report.count("warning"),
        "infos": report.count("info"),
        "summary": dict(report.summary),
        "findings": [
            {
                "check": finding.check,
                "severity": finding.severity,
                "file": finding.file,
                "line": finding.line or None,
                "picture": finding.picture,
                "message": finding.message,
                "fix": finding.fix or None,
            }
            for finding in report.findings
        ],
    }
