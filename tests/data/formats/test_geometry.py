"""Stated sizes of pixel labels, and boxes of rotated images."""

from __future__ import annotations

from pathlib import Path

import pytest

from y7edge.data.formats import geometry
from y7edge.data.formats.records import Entry, Label, Scan
from y7edge.data.headers import Frame


def placed(
    stated: tuple[float, float] | None,
    box: tuple[float, ...] = (2, 2, 8, 6),
    frame: Frame | None = Frame((24, 10), (24, 10)),  # noqa: B008
) -> Scan:
    """Return a VOC scan of one image with one box in pixels."""
    label = Label(Path("a.xml"), 1, "bee", "bee", 0, tuple(map(float, box)), "corners")
    entry = Entry(Path("a.png"), ["train"], Path("a.xml"), labels=[label], stated=stated)
    entry.frame = frame
    scan = Scan(Path("set"), Path("set"), "voc", names=["bee"], entries=[entry])
    geometry.place(scan)
    return scan


def found(scan: Scan) -> list[tuple[str, str]]:
    return [(problem.check, problem.effect) for problem in scan.problems]


@pytest.mark.parametrize(
    ("stated", "frame", "problems"),
    [
        (None, (24, 10), []),
        ((24.0, 10.0), (24, 10), []),
        ((48.0, 20.0), (48, 20), [("rescaled", "changed")]),
        ((77.0, 32.0), (77, 32), [("rescaled", "changed")]),
        ((10.0, 24.0), (24, 10), [("size", "changed")]),
        ((640.0, 480.0), (24, 10), [("size", "changed")]),
        ((0.0, 0.0), (24, 10), [("size", "advice")]),
    ],
)
def test_stated_size_is_used_if_proportions_match(
    stated: tuple[float, float] | None, frame: tuple[int, int], problems: list[tuple[str, str]]
) -> None:
    scan = placed(stated)
    wide, high = frame
    assert scan.entries[0].labels[0].box == (2 / wide, 2 / high, 8 / wide, 6 / high)
    assert found(scan) == problems


def test_boxes_outside_both_sizes_are_refused() -> None:
    scan = placed((640.0, 480.0), (200, 100, 300, 200))
    assert ("size", "refused") in found(scan)


def test_stated_size_is_used_if_header_is_damaged() -> None:
    assert placed((30.0, 20.0), frame=None).entries[0].labels[0].box == (2 / 30, 0.1, 8 / 30, 0.3)


@pytest.mark.parametrize("stated", [None, (24.0, 10.0), (10.0, 24.0)])
@pytest.mark.parametrize(
    ("box", "effects"),
    [((2, 2, 8, 6), []), ((1, 11, 8, 20), []), ((11, 1, 20, 8), [("rotation", "changed")])],
)
def test_boxes_show_frame_of_rotated_image(
    stated: tuple[float, float] | None, box: tuple[float, ...], effects: list[tuple[str, str]]
) -> None:
    """Use an image of 24 x 10 pixels, upright 10 x 24 (EXIF orientation 6, clockwise)."""
    scan = placed(stated, box, Frame((10, 24), (24, 10), 6))
    assert found(scan) == effects
    x1, y1, x2, y2 = box
    expected = (x1 / 10, y1 / 24, x2 / 10, y2 / 24)
    if effects:
        expected = (1 - y2 / 10, x1 / 24, 1 - y1 / 10, x2 / 24)
    assert scan.entries[0].labels[0].box == pytest.approx(expected)


def test_contradictory_rotated_images_are_refused() -> None:
    scan = placed(None, (1, 11, 8, 20), Frame((10, 24), (24, 10), 6))
    other = placed(None, (11, 1, 20, 8), Frame((10, 24), (24, 10), 6))
    scan.entries += other.entries
    scan.problems.clear()
    geometry.place(scan)
    assert [effect for check, effect in found(scan) if check == "rotation"] == ["refused"] * 2
