"""Mix images and paste objects: mixup, copy-paste and paste-in, as published for YOLOv7.

Copy-paste and paste-in cut objects out along their polygons. They skip objects without a polygon,
because a box also contains background.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from y7edge.boxes import intersections
from y7edge.train.augment.labelled import LabelledImage, Polygon, bgr_view, hull, moved, rgb_planes
from y7edge.train.augment.mosaic import joined

_LARGEST_OVERLAP = 0.30  # a pasted object may hide this fraction of another

# Paste-in
_ENOUGH_CUTOUTS = 30  # no more images are read once there are so many objects to choose from
# Places for objects: the largest side of a place as a fraction of the image's side, and the number
# of tries
_PLACES = ((0.75, 2), (0.5, 4), (0.25, 4), (0.125, 4), (0.0625, 6))  # (side, tries)
_LEFT_OUT = 0.2  # probability of skipping a place
# A place, an object and its mask must be larger than this.
_LEAST_PLACE = 20  # shorter side, pixels
_LEAST_OBJECT = 10  # shorter side, pixels
_LEAST_PIXELS = 20


def mixup(first: LabelledImage, second: LabelledImage, rng: Generator) -> LabelledImage:
    """Blend two images of equal size, and keep the labels of both.

    The weight of the first image is drawn from Beta(8, 8).
    """
    fraction = float(rng.beta(8.0, 8.0))
    planes = rgb_planes(first.image), rgb_planes(second.image)
    flat = [each.reshape(-1, each.shape[-1]) for each in planes]  # (3 h, w)
    blended = cv2.addWeighted(flat[0], fraction, flat[1], 1 - fraction, 0)
    image = np.asarray(blended, np.uint8).reshape(planes[0].shape)
    return joined(bgr_view(image), [first, second])


def copy_paste(labelled: LabelledImage, fraction: float, rng: Generator) -> LabelledImage:
    """Paste mirrored copies of objects into the same image, at mirrored positions.

    ``fraction`` of the objects with a polygon are chosen. A copy is left out if it would hide too
    much of another object.
    """
    outlined = [i for i, line in enumerate(labelled.polygons) if line is not None and len(line) > 2]
    chosen = rng.permutation(outlined)[: round(fraction * len(outlined))].astype(int)
    if not len(chosen):
        return labelled
    width = labelled.image.shape[1]
    mirrored = moved(labelled, labelled.image[:, ::-1], (-1, 1), (width, 0))
    result = replace(labelled, image=labelled.image.copy())
    for index in chosen:
        cutout = _cut_out(mirrored, index)
        box = mirrored.boxes[index]
        if cutout is not None and _is_free(box, result.boxes):
            result = _pasted(result, cutout, cutout.left, cutout.top)
    return result


def paste_in(
    labelled: LabelledImage, sources: Iterable[LabelledImage], rng: Generator
) -> LabelledImage:
    """Cut objects out of other images, and paste some of them at random free places.

    Objects are scaled to fit their places. ``sources`` are read until enough objects are found.
    """
    cutouts: list[_Cutout] = []
    for source in sources:
        found = (_cut_out(source, index) for index in range(len(source.polygons)))
        cutouts += [cutout for cutout in found if cutout is not None]
        if len(cutouts) >= _ENOUGH_CUTOUTS:
            break
    if not cutouts:
        return labelled
    height, width = labelled.image.shape[:2]
    result = replace(labelled, image=labelled.image.copy())
    for largest, times in _PLACES:
        for _ in range(times):
            left_out = rng.random() < _LEFT_OUT
            sides = rng.integers(1, np.maximum((largest * width, largest * height), 2).astype(int))
            corner = np.maximum(rng.integers((width, height)) - sides // 2, 0)
            end = np.minimum(corner + sides, (width, height))
            cutout = cutouts[rng.integers(len(cutouts))]
            place = np.concatenate((corner, end)).astype(float)
            if left_out or min(end - corner) <= _LEAST_PLACE or not _is_free(place, result.boxes):
                continue
            fitted = _resized(cutout, *(int(side) for side in end - corner))
            if min(fitted.mask.shape) > _LEAST_OBJECT and fitted.mask.sum() > _LEAST_PIXELS:
                result = _pasted(result, fitted, int(corner[0]), int(corner[1]))
    return result


class _Cutout(NamedTuple):
    """An object that is cut out of an image."""

    image: NDArray[np.uint8]  # (h, w, 3) BGR
    mask: NDArray[np.bool_]  # (h, w)
    left: int  # position of the top left pixel in the image
    top: int
    class_id: int
    polygon: Polygon  # x, y relative to the corner of the top left pixel


def _cut_out(labelled: LabelledImage, index: int) -> _Cutout | None:
    """Cut out object ``index``; return None if it has no polygon with pixels in the image."""
    line = labelled.polygons[index]
    if line is None or len(line) < 3:
        return None
    height, width = labelled.image.shape[:2]
    box = hull(line)
    left, top = np.maximum(np.floor(box[:2]), 0).astype(int)
    right, bottom = np.minimum(np.ceil(box[2:]), (width, height)).astype(int)
    if left >= right or top >= bottom:
        return None
    polygon = line - (left, top)
    mask = filled(polygon, bottom - top, right - left)
    image = np.ascontiguousarray(labelled.image[top:bottom, left:right])
    class_id = int(labelled.class_id[index])
    return _Cutout(image, mask, int(left), int(top), class_id, polygon)


def filled(polygon: Polygon, height: int, width: int) -> NDArray[np.bool_]:
    """Return the mask (height, width) of the pixels that a polygon covers, including its edge."""
    mask = np.zeros((height, width), np.uint8)
    # Integer coordinates are pixel centres in OpenCV; shift=4: in sixteenths of a pixel.
    points = np.rint((polygon - 0.5) * 16).astype(np.int32)
    cv2.fillPoly(mask, [points], 1, shift=4)
    return mask.astype(bool)


def _resized(cutout: _Cutout, width: int, height: int) -> _Cutout:
    """Fit a cut-out into width x height, keeping its aspect ratio."""
    rows, columns = cutout.mask.shape
    factor = min(width / columns, height / rows)
    size = (max(1, int(columns * factor)), max(1, int(rows * factor)))
    polygon = cutout.polygon * np.divide(size, (columns, rows))
    image = np.asarray(cv2.resize(cutout.image, size, interpolation=cv2.INTER_LINEAR), np.uint8)
    mask = filled(polygon, size[1], size[0])
    return cutout._replace(image=image, mask=mask, polygon=polygon)


def _is_free(box: NDArray[np.float64], others: NDArray[np.float64]) -> bool:
    """Return whether an object may be pasted at ``box`` (4,).

    ``others`` (n, 4) are the boxes of the other objects. The pasted object may hide less than
    ``_LARGEST_OVERLAP`` of each.
    """
    shared = intersections(box[None], others)[0]
    area = (others[:, 2:] - others[:, :2]).prod(axis=1)
    return bool((shared < _LARGEST_OVERLAP * np.maximum(area, 1e-9)).all())


def _pasted(labelled: LabelledImage, cutout: _Cutout, left: int, top: int) -> LabelledImage:
    """Draw a cut-out into ``labelled.image``, in place, and add its label."""
    height, width = cutout.mask.shape
    target = labelled.image[top : top + height, left : left + width]
    target[cutout.mask] = cutout.image[cutout.mask]
    line = cutout.polygon + np.array((left, top))
    added = LabelledImage(labelled.image, hull(line)[None], np.array([cutout.class_id]), (line,))
    return joined(labelled.image, [labelled, added])
