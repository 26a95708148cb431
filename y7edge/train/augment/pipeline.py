"""Augment a training image.

The steps and their order are those of the published YOLOv7 training (arXiv 2207.02696): mosaic and
copy-paste, a random view with colour jitter, mixup, paste-in. All images that are combined are
mirrored alike. The result is reproducible from the state of the generator. Differences from the
published code:

* Labels match pixels exactly. The published labels are half a pixel off
  (`y7edge.train.augment.view`).
* One image can have objects with polygons and objects with only a box.
* All hues are shifted by the same amount, and colours are not rounded to 8-bit HSV
  (`y7edge.train.augment.colour`).
* The two images of a mixup get the same colour jitter before blending. The published code applies
  colour jitter after blending.
* Paste-in cuts objects from at most four other images, and is skipped if the image has no polygons.
  The published code searches mosaics until it has thirty objects.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from y7edge.train.augment.colour import Jitter
from y7edge.train.augment.labelled import ImageSet, LabelledImage, bgr_view, scratch
from y7edge.train.augment.mixing import copy_paste, mixup, paste_in
from y7edge.train.augment.mosaic import Area, Layout, Tile, four, nine, paint, single
from y7edge.train.augment.settings import Augmentation
from y7edge.train.augment.view import Mirror, draw_view, render

_PASTED_FROM = 4  # images that paste-in may decode


def augmented(
    images: ImageSet,
    index: int,
    size: int,
    settings: Augmentation,
    rng: Generator,
    *,
    shape: tuple[int, int] | None = None,
    planes: NDArray[np.uint8] | None = None,
) -> LabelledImage:
    """Augment image ``index`` of a set; other images of the set may be joined with it.

    The longer side of every image of the set is ``size`` pixels. The result is a square of this
    size. For rectangular batches, ``shape`` sets the result's (height, width); then there is no
    mosaic. The pixels are written to ``planes``, uint8 RGB (3, height, width), or to a new array;
    the image of the result is a BGR view of these pixels. Images out of view are not read.
    """
    canvas = shape or (size, size)
    if planes is None:
        planes = np.empty((3, *canvas), np.uint8)
    appearance = _Appearance(settings, Jitter.draw(settings, rng), Mirror.draw(settings, rng))
    if shape is None and rng.random() < settings.mosaic:
        labelled = _mosaic(images, index, size, appearance, rng, planes)
        if rng.random() < settings.mixup:
            other = int(rng.integers(len(images)))
            second = scratch("second image", *planes.shape)
            labelled = mixup(labelled, _mosaic(images, other, size, appearance, rng, second), rng)
    else:
        view = draw_view(canvas, canvas, settings, rng)
        labelled = render(
            single(images[index], *canvas), view, appearance.jitter, appearance.mirror, planes
        )
    if rng.random() < settings.paste_in and any(line is not None for line in labelled.polygons):
        numbers = rng.integers(len(images), size=_PASTED_FROM).tolist()
        sources = (appearance.mirror.apply(images[number]) for number in numbers)
        labelled = paste_in(labelled, sources, rng)
    image = bgr_view(planes)
    if not np.may_share_memory(labelled.image, image):  # mixup and paste-in return new arrays
        np.copyto(image, labelled.image)
        labelled = replace(labelled, image=image)
    return labelled


class _Appearance(NamedTuple):
    """Settings and random values that are the same for both images of a mixup."""

    settings: Augmentation
    jitter: Jitter
    mirror: Mirror


def _mosaic(
    images: ImageSet,
    index: int,
    size: int,
    appearance: _Appearance,
    rng: Generator,
    planes: NDArray[np.uint8],
) -> LabelledImage:
    """Return a random view of a mosaic of four or nine images."""
    settings = appearance.settings
    canvas = (2 * size, 2 * size)
    view = draw_view(canvas, (size, size), settings, rng)
    # Copy-paste needs all images: a mirrored copy can be in view when its original is not.
    visible = Area(0, 0, *canvas) if settings.copy_paste else view.visible()
    join, others = (nine, 8) if rng.random() < settings.mosaic9 else (four, 3)
    numbers = [index, *rng.integers(len(images), size=others).tolist()]
    layout = join(images, numbers, size, rng, visible)
    if settings.copy_paste:
        tiles = tuple(layout.tiles)
        layout = Layout(tiles, *canvas)
        if any(tile.labelled.polygons for tile in tiles):
            whole = copy_paste(paint(layout), settings.copy_paste, rng)
            layout = Layout((Tile(whole, 0, 0, (0, 0, *canvas)),), *canvas)
    return render(layout, view, appearance.jitter, appearance.mirror, planes)
