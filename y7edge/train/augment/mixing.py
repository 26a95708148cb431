"""Objects and pictures mixed into others: mixup, copy-paste and paste-in, as published for YOLOv7.

Copy-paste and paste-in cut objects out along their polygons; objects with boxes only are left where
they are, since a box would bring its surroundings along. Without polygons both do nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from y7edge.boxes import intersections
from y7edge.train.augment.labelled import Picture, Polygon, bgr_view, hull, moved, rgb_planes
from y7edge.train.augment.mosaic import joined

# Objects are pasted where less than this share of every object that is there would be hidden.
_LARGEST_OVERLAP = 0.30

# Paste-in: cut-outs to choose from at most, the places that it tries (largest side as a share of
# the picture's, how often), the probability of leaving one out, and the least sides in pixels of a
# place and of an object in it, and the least pixels of the object.
_ENOUGH_CUTOUTS = 30
_PLACES = ((0.75, 2), (0.5, 4), (0.25, 4), (0.125, 4), (0.0625, 6))
_LEFT_OUT = 0.2
_LEAST_PLACE = 20
_LEAST_OBJECT = 10
_LEAST_PIXELS = 20


def mixup(first: Picture, second: Picture, rng: Generator) -> Picture:
    """Blend two pictures of one size; the labels of both stay, with full weight.

    The first one's share is drawn from Beta(8, 8): mostly 0.3 to 0.7.
    """
    share = float(rng.beta(8.0, 8.0))
    planes = rgb_planes(first.image), rgb_planes(second.image)
    flat = [each.reshape(-1, each.shape[-1]) for each in planes]  # to OpenCV, a grey picture
    blended = cv2.addWeighted(flat[0], share, flat[1], 1 - share, 0)
    image = np.asarray(blended, np.uint8).reshape(planes[0].shape)
    return joined(bgr_view(image), [first, second])


def copy_paste(picture: Picture, share: float, rng: Generator) -> Picture:
    """Paste mirrored copies of outlined objects to the mirrored places.

    Args:
        picture: A mosaic's whole canvas.
        share: Of the objects with polygons, those that are tried.
        rng: Chooses them.
    """
    outlined = [index for index, line in enumerate(picture.polygons) if _has_area(line)]
    chosen = rng.permutation(outlined)[: round(share * len(outlined))].astype(int)
    if not len(chosen):
        return picture
    width = picture.image.shape[1]
    mirrored = moved(picture, picture.image[:, ::-1], (-1, 1), (width, 0))
    made = Picture(picture.image.copy(), picture.boxes, picture.class_id, picture.polygons)
    for index in chosen:
        cutout = _cut_out(mirrored, index)
        box = mirrored.boxes[index]
        if cutout is not None and _is_free(box, made.boxes):
            made = _pasted(made, cutout, cutout.left, cutout.top)
    return made


def paste_in(picture: Picture, sources: Iterable[Picture], rng: Generator) -> Picture:
    """Paste objects cut out of other pictures, each fitted into a random free place.

    Args:
        picture: What to paste into.
        sources: Pictures to take from, no more of them than it takes to have enough.
        rng: Chooses objects and places.
    """
    cutouts: list[_Cutout] = []
    for source in sources:
        found = (_cut_out(source, index) for index in range(len(source.polygons)))
        cutouts += [cutout for cutout in found if cutout is not None]
        if len(cutouts) >= _ENOUGH_CUTOUTS:
            break
    if not cutouts:
        return picture
    height, width = picture.image.shape[:2]
    made = Picture(picture.image.copy(), picture.boxes, picture.class_id, picture.polygons)
    for largest, times in _PLACES:
        for _ in range(times):
            left_out = rng.random() < _LEFT_OUT
            sides = rng.integers(1, np.maximum((largest * width, largest * height), 2).astype(int))
            corner = np.maximum(rng.integers((width, height)) - sides // 2, 0)
            end = np.minimum(corner + sides, (width, height))
            cutout = cutouts[rng.integers(len(cutouts))]
            place = np.concatenate((corner, end)).astype(float)
            if left_out or min(end - corner) <= _LEAST_PLACE or not _is_free(place, made.boxes):
                continue
            fitted = _resized(cutout, *(int(side) for side in end - corner))
            if min(fitted.mask.shape) > _LEAST_OBJECT and fitted.mask.sum() > _LEAST_PIXELS:
                made = _pasted(made, fitted, int(corner[0]), int(corner[1]))
    return made


class _Cutout(NamedTuple):
    """An object's pixels (h, w, 3) with its mask (h, w), and where its top left pixel was."""

    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    left: int
    top: int
    class_id: int
    polygon: Polygon  # x, y from the top left pixel's corner


def _has_area(line: Polygon | None) -> bool:
    return line is not None and len(line) >= 3


def _cut_out(picture: Picture, index: int) -> _Cutout | None:
    line = picture.polygons[index]
    if line is None or not _has_area(line):
        return None
    height, width = picture.image.shape[:2]
    box = hull(line)
    left, top = np.maximum(np.floor(box[:2]), 0).astype(int)
    right, bottom = np.minimum(np.ceil(box[2:]), (width, height)).astype(int)
    if left >= right or top >= bottom:
        return None
    polygon = line - (left, top)
    mask = filled(polygon, bottom - top, right - left)
    image = np.ascontiguousarray(picture.image[top:bottom, left:right])
    class_id = int(picture.class_id[index])
    return _Cutout(image, mask, int(left), int(top), class_id, polygon)


def filled(polygon: Polygon, height: int, width: int) -> NDArray[np.bool_]:
    """The pixels (height, width) of a polygon, those on its edge included."""
    mask = np.zeros((height, width), np.uint8)
    # OpenCV counts from pixel centres, here in sixteenths.
    points = np.rint((polygon - 0.5) * 16).astype(np.int32)
    cv2.fillPoly(mask, [points], 1, shift=4)
    return mask.astype(bool)


def _resized(cutout: _Cutout, width: int, height: int) -> _Cutout:
    """Fitted into width x height, keeping its proportions."""
    rows, columns = cutout.mask.shape
    factor = min(width / columns, height / rows)
    size = (max(1, int(columns * factor)), max(1, int(rows * factor)))
    polygon = cutout.polygon * np.divide(size, (columns, rows))
    image = np.asarray(cv2.resize(cutout.image, size, interpolation=cv2.INTER_LINEAR), np.uint8)
    mask = filled(polygon, size[1], size[0])
    return cutout._replace(image=image, mask=mask, polygon=polygon)


def _is_free(box: NDArray[np.float64], others: NDArray[np.float64]) -> bool:
    shared = intersections(box[None], others)[0]
    area = (others[:, 2:] - others[:, :2]).prod(axis=1)
    return bool((shared < _LARGEST_OVERLAP * np.maximum(area, 1e-9)).all())


def _pasted(picture: Picture, cutout: _Cutout, left: int, top: int) -> Picture:
    """With one more object, drawn into the picture's own image."""
    height, width = cutout.mask.shape
    target = picture.image[top : top + height, left : left + width]
    target[cutout.mask] = cutout.image[cutout.mask]
    line = cutout.polygon + np.array((left, top))
    added = Picture(picture.image, hull(line)[None], np.array([cutout.class_id]), (line,))
    return joined(picture.image, [picture, added])
