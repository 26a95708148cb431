"""The whole of augmentation: from a set of pictures to one that the network trains on.

The published recipe of YOLOv7 (arXiv 2207.02696), in its order: mosaic and copy-paste, a random
view in random colours, mixup, paste-in, all mirrored alike. Everything random comes from a
generator handed in: the same state of it gives the same picture. Differences from the published
code, all of them small:

* Labels lie on pixels exactly: no half pixel between the two (`y7edge.train.augment.view`).
* Polygons and boxes can be mixed: each label is moved as what it is.
* Hue is turned alike for all colours, and colours are not rounded to HSV
  (`y7edge.train.augment.colour`).
* The two pictures of a mixup get the same colour jitter before they are blended, not after.
* Paste-in takes objects of at most four further pictures, and none if the picture's own are without
  polygons, where the published code looks through mosaics until it has thirty objects.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from y7edge.train.augment.colour import Jitter
from y7edge.train.augment.labelled import Picture, Pictures, bgr_view
from y7edge.train.augment.mixing import copy_paste, mixup, paste_in
from y7edge.train.augment.mosaic import Area, Layout, Tile, four, nine, paint, single
from y7edge.train.augment.scratch import scratch
from y7edge.train.augment.settings import Augmentation
from y7edge.train.augment.view import Mirror, draw_view, show

_PASTED_FROM = 4  # further pictures that paste-in may decode


def augmented(
    pictures: Pictures,
    index: int,
    size: int,
    settings: Augmentation,
    rng: Generator,
    *,
    shape: tuple[int, int] | None = None,
    planes: NDArray[np.uint8] | None = None,
) -> Picture:
    """One picture of the set, changed at random, perhaps joined with others of it.

    Args:
        pictures: The set; those that do not show in the result are not asked for.
        index: Which picture to begin with.
        size: S, the side of the result, and the longer side of the set's pictures.
        settings: How strongly pictures are changed.
        rng: Where all randomness comes from.
        shape: Height and width of the result, for batches of rectangles: mosaics, which are square,
            are left out then.
        planes: uint8 (3, height, width), RGB: where the result is written, such as its place in a
            batch; None makes new ones. The result's image is a view of them.
    """
    canvas = shape or (size, size)
    if planes is None:
        planes = np.empty((3, *canvas), np.uint8)
    look = _Look(settings, Jitter.draw(settings, rng), Mirror.draw(settings, rng))
    if shape is None and rng.random() < settings.mosaic:
        picture = _mosaic(pictures, index, size, look, rng, planes)
        if rng.random() < settings.mixup:
            other = int(rng.integers(len(pictures)))
            second = scratch("second picture", *planes.shape)
            picture = mixup(picture, _mosaic(pictures, other, size, look, rng, second), rng)
    else:
        view = draw_view(canvas, canvas, settings, rng)
        picture = show(single(pictures[index], *canvas), view, look.jitter, look.mirror, planes)
    if rng.random() < settings.paste_in and any(line is not None for line in picture.polygons):
        numbers = rng.integers(len(pictures), size=_PASTED_FROM).tolist()
        sources = (look.mirror.apply(pictures[number]) for number in numbers)
        picture = paste_in(picture, sources, rng)
    image = bgr_view(planes)
    if not np.may_share_memory(picture.image, image):  # mixed with others
        np.copyto(image, picture.image)
        picture = replace(picture, image=image)
    return picture


class _Look(NamedTuple):
    """What both pictures of a mixup have in common."""

    settings: Augmentation
    jitter: Jitter
    mirror: Mirror


def _mosaic(
    pictures: Pictures,
    index: int,
    size: int,
    look: _Look,
    rng: Generator,
    planes: NDArray[np.uint8],
) -> Picture:
    """A random view of a mosaic of four or nine."""
    settings = look.settings
    canvas = (2 * size, 2 * size)
    view = draw_view(canvas, (size, size), settings, rng)
    # A copy pasted on the other side of the canvas can show where its original does not.
    seen = Area(0, 0, *canvas) if settings.copy_paste else view.seen()
    join, others = (nine, 8) if rng.random() < settings.mosaic9 else (four, 3)
    numbers = [index, *rng.integers(len(pictures), size=others).tolist()]
    layout = join(pictures, numbers, size, rng, seen)
    if settings.copy_paste:
        tiles = tuple(layout.tiles)
        layout = Layout(tiles, *canvas)
        if any(tile.picture.polygons for tile in tiles):
            whole = copy_paste(paint(layout), settings.copy_paste, rng)
            layout = Layout((Tile(whole, 0, 0, (0, 0, *canvas)),), *canvas)
    return show(layout, view, look.jitter, look.mirror, planes)
