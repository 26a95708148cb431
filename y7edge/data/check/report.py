"""Write the report of a data check as one HTML file, with tables and images."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from y7edge import html
from y7edge.data.check.examine import TITLES, Report
from y7edge.data.check.libjpeg import captured_messages
from y7edge.data.check.paths import PAGE_TITLE, in_words, readable
from y7edge.data.formats.records import SEVERITIES, Corners, Entry, Problem
from y7edge.data.images import read_image
from y7edge.errors import DataError
from y7edge.files import write_text, writing
from y7edge.text import printable

_SHOWN = 6  # images per check
_CLASSES = 40  # classes with images
_DRAWN = 2000  # labels drawn on an image
_LISTED = 200  # findings per check
_SIDE = 420  # pixels; longest side of an image
_GREEN, _RED = (80, 200, 80), (40, 40, 230)  # BGR


def write_page(report: Report, path: Path | str) -> None:
    """Write a self-contained page with images of each class, and at most six for each check.

    Raises:
        OutputError: The file cannot be written.
    """
    destination = Path(path)
    text = html.page(PAGE_TITLE, _body(report))
    with writing("the page", destination):
        write_text(destination, text)


def _body(report: Report) -> list[str]:
    scan = report.scan
    labels = sum(len(entry.labels) for entry in scan.entries)
    figures = [(str(len(scan.entries)), "images", True), (str(labels), "labels", True)]
    for severity in SEVERITIES:
        count = report.count(severity)
        figures.append((str(count), f"{severity}s", severity != "error" or not count))
    parts = [
        "<h1>Data check</h1>",
        html.paragraph(printable(str(scan.source)), "lead"),
        html.tiles(figures),
    ]
    groups = report.by_check()
    rows = [(TITLES[n], s, str(len(g)), g[0].fix) for (n, s), g in groups.items()]
    table = html.table(("check", "severity", "findings", "--fix"), rows)
    parts.append(html.section("Findings", table if rows else html.paragraph("No findings.")))
    for (name, level), group in groups.items():
        parts.append(_group(report, f"{TITLES[name]} ({name}, {level})", group))
    parts.append(_summary(report))
    parts.append(_samples(report))
    return parts


def _group(report: Report, title: str, group: list[Problem]) -> str:
    """Return the section of one check: images, and a list of its findings."""
    root = report.scan.root
    figures: list[str] = []
    for finding in group:
        if len(figures) == _SHOWN:
            break
        drawn = _drawn(report, finding.image, finding.box)
        if drawn is not None:
            name = readable(finding.file, root)
            caption = in_words(finding, root)
            other = _drawn(report, finding.other) if finding.other else None
            shown = html.image(drawn, name)
            figures.append(
                html.pair(drawn, other, caption) if other else html.figure(shown, caption)
            )
    lines = [in_words(finding, root) for finding in group[:_LISTED]]
    if len(group) > _LISTED:
        lines.append(f"... and {len(group) - _LISTED} more (--json has all)")
    # Empty figures fill the row, so that a single figure is not enlarged.
    figures += ["<figure></figure>"] * (3 - len(figures)) if figures else []
    return html.section(title, html.grid(figures), html.code("\n".join(lines)))


def _samples(report: Report) -> str:
    """Return the section with two images of each class: the first and the last that have it."""
    found: dict[int, list[Entry]] = {}
    for entry in report.scan.entries:
        for class_id in {label.class_id for label in entry.labels if label.box is not None}:
            if class_id is not None:
                found.setdefault(class_id, []).append(entry)
    figures = []
    for class_id in sorted(found)[:_CLASSES]:
        first, last = found[class_id][0], found[class_id][-1]
        for entry in (first, last)[: 1 if first is last else 2]:
            boxes = [label.box for label in entry.labels if label.class_id == class_id]
            drawn = _drawn(report, entry.path, *boxes[:_DRAWN])
            if drawn is not None:
                name = printable(report.scan.name_of(class_id))
                caption = f"{name}: {readable(entry.path, report.scan.root)}"
                figures.append(html.figure(html.image(drawn, name), caption))
    if not figures:
        return ""
    words = "For each class, the first and the last image that has it. Red: the boxes of the class."
    return html.section("Classes", html.paragraph(words, "soft"), html.grid(figures))


def _drawn(report: Report, path: Path | None, *meant: Corners | None) -> bytes | None:
    """Return a small JPEG of an image with its labels in green and the boxes ``meant`` in red."""
    entry = next((e for e in report.scan.entries if e.path == path), None)
    if path is None or (entry is not None and (entry.facts.fault or entry.size is None)):
        return None
    try:
        with captured_messages():  # they are findings already
            image = read_image(path)
    except DataError:
        return None
    gain = min(1.0, _SIDE / max(image.shape[:2]))
    size = [max(1, round(side * gain)) for side in image.shape[1::-1]]
    small = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    for label in entry.labels[:_DRAWN] if entry is not None else ():
        if label.box is not None:
            _rectangle(small, label.box, _GREEN, 1)
    for box in filter(None, meant):
        _rectangle(small, box, _RED, 2)
        _ring_if_small(small, box)
    encoded = cv2.imencode(".jpg", small, (cv2.IMWRITE_JPEG_QUALITY, 80))[1]
    return bytes(encoded.tobytes())


def _rectangle(
    image: NDArray[np.uint8], box: Corners, colour: tuple[int, int, int], width: int
) -> None:
    """Draw a normalized box in place, with lines of ``width`` pixels."""
    height, wide = image.shape[:2]
    scaled = np.clip(np.array(box) * (wide, height, wide, height), -10, 4 * _SIDE)
    x1, y1, x2, y2 = (round(float(value)) for value in scaled)
    # Move edges beyond the border of the image to its first or last pixel, to make them visible.
    x1, x2 = (min(max(value, 0), wide - 1) for value in (x1, x2))
    y1, y2 = (min(max(value, 0), height - 1) for value in (y1, y2))
    cv2.rectangle(image, (x1, y1), (x2, y2), colour, width)


def _ring_if_small(image: NDArray[np.uint8], box: Corners) -> None:
    """Draw a ring around a normalized box if it is too small to be seen."""
    height, wide = image.shape[:2]
    if max((box[2] - box[0]) * wide, (box[3] - box[1]) * height) < 8:
        x, y = (box[0] + box[2]) / 2 * wide, (box[1] + box[3]) / 2 * height
        middle = (round(min(max(x, 0), wide)), round(min(max(y, 0), height)))
        cv2.circle(image, middle, 14, _RED, 2, cv2.LINE_AA)


def _summary(report: Report) -> str:
    """Return the section with counts by split and class, and quantiles of box sides."""
    summary = report.summary
    splits = list(summary["splits"])
    kinds = ("images", "labels", "background")
    counts = [(s, *(str(summary["splits"][s][kind]) for kind in kinds)) for s in splits]
    classes = [
        (printable(row["name"]), *(str(row[s]) for s in splits)) for row in summary["classes"]
    ]
    sides = [(side, *(f"{v:g}" for v in values)) for side, values in summary["box_sides"].items()]
    head = (f"pixels at {report.scan.imgsz}", "min", "5 %", "median", "95 %", "max")
    return html.section(
        "Contents",
        html.table(("split", "images", "labels", "without labels"), counts),
        html.table(("class", *splits), classes),
        html.table(head, sides) if sides else "",
    )
