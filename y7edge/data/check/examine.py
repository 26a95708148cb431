"""Run ``data check``: read a data set, decode its images, run every check."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from y7edge.data.check import classes as check_classes
from y7edge.data.check import files, images, labels
from y7edge.data.check import splits as check_splits
from y7edge.data.check.classes import per_class
from y7edge.data.check.decoding import Progress, inspect_all
from y7edge.data.check.registry import Check
from y7edge.data.dataset import open_scan, read_scan
from y7edge.data.formats.records import KINDS, SEVERITIES, Problem, Scan
from y7edge.errors import DataError

CHECKS: tuple[Check, ...] = (
    *files.CHECKS,
    *images.CHECKS,
    *labels.CHECKS,
    *check_classes.CHECKS,
    *check_splits.CHECKS,
)

# Checks whose findings in one file are merged into one.
_OF_FILES = {"pixels", "twice", "separators", "keypoints"}
TITLES = {name: kind.title for name, kind in KINDS.items()} | {c.name: c.title for c in CHECKS}


@dataclass(frozen=True, slots=True)
class Report:
    """Findings and statistics of a data set."""

    scan: Scan
    findings: tuple[Problem, ...]  # errors first; within a severity, those of the parser first
    summary: Mapping[str, Any]  # counts by split, and sizes of boxes

    def count(self, severity: str) -> int:
        """Return the number of findings of a severity."""
        return sum(finding.severity == severity for finding in self.findings)

    def by_check(self) -> dict[tuple[str, str], list[Problem]]:
        """Return the findings grouped by check and severity, in order."""
        groups: dict[tuple[str, str], list[Problem]] = {}
        for finding in self.findings:
            groups.setdefault((finding.check, finding.severity), []).append(finding)
        return groups


def examine(
    path: Path | str,
    *,
    imgsz: int = 640,
    val: float | None = None,
    progress: Progress | None = None,
) -> Report:
    """Run all checks on a data set.

    Args:
        path: As for `open_scan`.
        imgsz: Side of the network's input in pixels, to find boxes that are too small for it.
        val: Check the data set as if this fraction of the images in train were in val, see
            `y7edge.data.check.splits.split_off`.
        progress: Called with the number of images done and their total.

    Raises:
        DataError: No images were found, or ``val`` is given and there is a split val already.
        RuntimeMissing: Pillow or PyYAML is not installed.
    """
    scan = open_scan(path)
    scan.imgsz = imgsz
    read_scan(scan)
    if not scan.entries:
        reasons = "; ".join(p.message for p in scan.problems if p.effect == "refused")
        raise DataError(f"{scan.source}: expected images, found none: {reasons or 'no splits'}")
    facts = inspect_all(dict.fromkeys(entry.path for entry in scan.entries), progress)
    for entry in scan.entries:
        entry.facts = facts[entry.path]
    if val is not None:
        check_splits.split_off(scan, val)
    damaged = {path for path, fact in facts.items() if fact.fault}
    # Skip problems that other checks report: damaged images, data sets without any label file.
    known = {"missing_label": {p for p in facts if not any(e.labelled for e in scan.entries)}}
    known["header"] = damaged
    # Pascal VOC without lists: all images are in train, and a check reports that val is missing.
    known["splits"] = {p.file for p in scan.problems if p.check == "splits" and p.fix}
    problems = (p for p in scan.problems if p.file not in known.get(p.check, ()))
    found = [*_findings(problems), *(f for check in CHECKS for f in check.findings(scan))]
    found.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    return Report(scan, tuple(found), summarise(scan))


def _findings(problems: Iterable[Problem]) -> list[Problem]:
    """Return the parser's problems as findings; those of ``_OF_FILES`` are merged by file."""
    groups: dict[object, list[Problem]] = {}
    for problem in problems:
        whole = problem.check in _OF_FILES
        key = (problem.check, problem.file, problem.image) if whole else id(problem)
        groups.setdefault(key, []).append(problem)
    return [
        first
        if not rest
        else replace(first, message=f"{len(rest) + 1} labels, for example: {first.message}")
        for first, *rest in groups.values()
    ]


def summarise(scan: Scan) -> dict[str, Any]:
    """Count images and labels by split and class; compute quantiles of box sides."""
    splits = {}
    for split in dict.fromkeys(scan.split_names):
        entries = scan.in_split(split)
        splits[split] = {
            "images": len(entries),
            "labels": sum(len(entry.labels) for entry in entries),
            "background": sum(not entry.labels for entry in entries),
        }
    classes = [
        {"class": index, "name": scan.name_of(index), **{s: counts[s] for s in splits}}
        for index, counts in per_class(scan).items()
    ]
    sizes = Counter(entry.size for entry in scan.entries if entry.size)
    return {
        "layout": scan.layout,
        "splits": splits,
        "classes": classes,
        "image_sizes": [
            {"size": f"{width}x{height}", "images": count}
            for (width, height), count in sizes.most_common(5)
        ],
        "box_sides": _quantiles(scan),
    }


def _quantiles(scan: Scan) -> dict[str, list[float]]:
    """Return the 0, 5, 50, 95 and 100 % quantiles of box sides, in pixels of the network input."""
    sides = []
    for entry, label in scan.labels():
        size = entry.size
        if label.fault == "" and label.box is not None and size is not None:
            gain = scan.imgsz / max(size)
            x1, y1, x2, y2 = label.box
            sides.append(((x2 - x1) * size[0] * gain, (y2 - y1) * size[1] * gain))
    if not sides:
        return {}
    found_sides = np.quantile(np.array(sides), (0.0, 0.05, 0.5, 0.95, 1.0), axis=0).round(1)
    return {"width": found_sides[:, 0].tolist(), "height": found_sides[:, 1].tolist()}


def record(report: Report) -> dict[str, Any]:
    """Return the report as plain values, for JSON."""
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
                "effect": finding.effect,
                "file": finding.file,
                "line": finding.line or None,
                "image": finding.image,
                "message": finding.message,
                "fix": finding.fix or None,
            }
            for finding in report.findings
        ],
    }
