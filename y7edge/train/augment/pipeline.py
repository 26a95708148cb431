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
from y7edge.train.augment.view import Mirror, View, draw_view, render

_PASTED_FROM = 4  # images that paste-in may decode


class Appearance(NamedTuple):
    """Colour jitter and mirror of one training image."""

    jitter: Jitter = Jitter()
    mirror: Mirror = Mirror()

    @classmethod
    def draw(cls, settings: Augmentation, rng: Generator) -> Appearance:
        """Draw both at random."""
        return cls(Jitter.draw(settings, rng), Mirror.draw(settings, rng))

    def numbers(self) -> tuple[float, ...]:
        """Return factors of hue, saturation, brightness, and whether mirrored (y, x) as 0 or 1."""
        return (*self.jitter.factors, *map(float, self.mirror))

    def apply(self, planes: NDArray[np.uint8]) -> None:
        """Change colours of RGB planes (3, h, w) and mirror them, in place."""
        self.jitter.apply(bgr_view(planes).copy(), planes, self.mirror.code)


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
    if planes is None:
        planes = np.empty((3, *(shape or (size, size))), np.uint8)
    return _Steps(images, size, settings, rng, planes).run(index, shape, later=False)[0]


def augmented_in_part(
    images: ImageSet,
    index: int,
    size: int,
    settings: Augmentation,
    rng: Generator,
    *,
    shape: tuple[int, int] | None = None,
    planes: NDArray[np.uint8],
) -> tuple[LabelledImage, Appearance]:
    """Augment an image like ``augmented``, but leave its colours to the training device.

    Returns:
        The image, with labels that are mirrored already, and the appearance that the pixels still
        need (``y7edge.train.augment.on_device``). Images that were mixed, or whose hue is shifted
        by tables, already have their appearance, and need none.
    """
    return _Steps(images, size, settings, rng, planes).run(index, shape, later=True)


class _Steps:
    """The steps for one image. Random values are drawn in the same order for both functions."""

    def __init__(
        self,
        images: ImageSet,
        size: int,
        settings: Augmentation,
        rng: Generator,
        planes: NDArray[np.uint8],
    ) -> None:
        self.images, self.size, self.settings, self.rng = images, size, settings, rng
        self.planes = planes
        self.appearance = Appearance.draw(settings, rng)
        self.later = False  # whether the pixels still lack their appearance

    def run(
        self, index: int, shape: tuple[int, int] | None, *, later: bool
    ) -> tuple[LabelledImage, Appearance]:
        """Return the image, and the appearance that it lacks."""
        settings, rng, planes = self.settings, self.rng, self.planes
        self.later = later and self.appearance.jitter.linear
        if shape is None and rng.random() < settings.mosaic:
            labelled = self._mosaic(index, planes)
            if rng.random() < settings.mixup:
                self._complete()
                other = int(rng.integers(len(self.images)))
                second = scratch("second image", *planes.shape)
                labelled = mixup(labelled, self._mosaic(other, second), rng)
        else:
            canvas = shape or (self.size, self.size)
            view = draw_view(canvas, canvas, settings, rng)
            labelled = self._render(single(self.images[index], *canvas), view, planes)
        outlined = any(line is not None for line in labelled.polygons)
        if rng.random() < settings.paste_in and outlined:
            self._complete()
            numbers = rng.integers(len(self.images), size=_PASTED_FROM).tolist()
            mirror = self.appearance.mirror
            labelled = paste_in(labelled, (mirror.apply(self.images[n]) for n in numbers), rng)
        image = bgr_view(planes)
        if not np.may_share_memory(labelled.image, image):  # mixup and paste-in return new arrays
            np.copyto(image, labelled.image)
            labelled = replace(labelled, image=image)
        return labelled, self.appearance if self.later else Appearance()

    def _complete(self) -> None:
        """Give the pixels their appearance, because they are about to be mixed with others."""
        if self.later:
            self.appearance.apply(self.planes)
            self.later = False

    def _render(self, layout: Layout, view: View, planes: NDArray[np.uint8]) -> LabelledImage:
        jitter = None if self.later else self.appearance.jitter
        return render(layout, view, jitter, self.appearance.mirror, planes)

    def _mosaic(self, index: int, planes: NDArray[np.uint8]) -> LabelledImage:
        """Return a random view of a mosaic of four or nine images."""
        settings, rng, size = self.settings, self.rng, self.size
        canvas = (2 * size, 2 * size)
        view = draw_view(canvas, (size, size), settings, rng)
        # Copy-paste needs all images: a mirrored copy can be in view when its original is not.
        visible = Area(0, 0, *canvas) if settings.copy_paste else view.visible()
        join, others = (nine, 8) if rng.random() < settings.mosaic9 else (four, 3)
        numbers = [index, *rng.integers(len(self.images), size=others).tolist()]
        layout = join(self.images, numbers, size, rng, visible)
        if settings.copy_paste:
            tiles = tuple(layout.tiles)
            layout = Layout(tiles, *canvas)
            if any(tile.labelled.polygons for tile in tiles):
                whole = copy_paste(paint(layout), settings.copy_paste, rng)
                layout = Layout((Tile(whole, 0, 0, (0, 0, *canvas)),), *canvas)
        return self._render(layout, view, planes)
