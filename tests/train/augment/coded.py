"""Images whose objects have distinct colours, to check that labels follow pixels."""

from __future__ import annotations

import cv2
import numpy as np

from y7edge.train.augment.labelled import LabelledImage

# Far from the padding's grey, and from one another.
CODES = np.array([code for code in np.ndindex(4, 4, 4) if set(code) & {0, 3}]) * 85


class Counting(list):
    """A set of images that counts how often they are read."""

    asked = 0

    def __getitem__(self, index):
        self.asked += 1
        return super().__getitem__(index)


def coded_image(rng, height, width, first=0, outlined=False, side=24, background=114):
    """Up to four objects in a 2x2 grid, each in the colour of its class: boxes, or ellipses."""
    image = np.full((height, width, 3), background, np.uint8)
    boxes, classes, polygons = [], [], []
    for index in range(4):
        if rng.random() < 0.2:
            continue
        left, top = (index % 2) * width // 2, (index // 2) * height // 2
        x1, y1 = (
            left + rng.integers(4, width // 2 - side - 7),
            top + rng.integers(4, height // 2 - side - 7),
        )
        x2, y2 = (x1 + rng.integers(side - 4, side + 4), y1 + rng.integers(side - 4, side + 4))
        colour = CODES[first + index].tolist()
        classes.append(first + index)
        if outlined:
            centre, radii = np.array((x1 + x2, y1 + y2)) / 2, np.array((x2 - x1, y2 - y1)) / 2
            angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
            line = centre + radii * np.column_stack((np.cos(angles), np.sin(angles)))
            y, x = np.ogrid[0.5:height, 0.5:width]
            inside = ((x - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2 <= 1
            image[inside] = colour
            polygons.append(line)
            boxes.append((*line.min(axis=0), *line.max(axis=0)))
        else:
            image[y1:y2, x1:x2] = colour
            boxes.append((x1, y1, x2, y2))
    return LabelledImage(
        image, np.array(boxes, float).reshape(-1, 4), np.array(classes, int), tuple(polygons)
    )


def coded_set(rng, size, count, outlined=False, **options):
    """Images of the set, no two with a class in common, of different proportions."""
    images = []
    for index in range(count):
        short = int(rng.integers(round(0.7 * size), size + 1))
        shape = (size, short) if index % 2 else (short, size)
        images.append(coded_image(rng, *shape, 4 * index, outlined, **options))
    return images


def coloured(image, class_id):
    """Mask of pixels of about the colour of a class."""
    low, high = CODES[class_id] - 40, CODES[class_id] + 40
    return cv2.inRange(image, low.astype(float), high.astype(float)) > 0


def places(mask):
    """Boxes (n, 4) of a mask's connected parts, without specks.

    Thin parts are left out, too: where an object is blended into grey by interpolation, the border
    may have the colour of another class.
    """
    stats = cv2.connectedComponentsWithStats(mask.astype(np.uint8))[2][1:]
    x, y, width, height, area = stats.T
    x, y, width, height, _ = stats[(area >= 4) & (2 * area >= width * height)].T
    return np.column_stack((x, y, x + width, y + height))


def check_labels_follow_pixels(labelled, classes, tolerance, largest=28 * 1.6):
    """Assert that labels and patches of their colour coincide.

    ``largest`` is the side of the largest object of which a remnant may be without a label.
    """
    for class_id in set(classes):
        boxes = labelled.boxes[labelled.class_id == class_id]
        found = places(coloured(labelled.image, class_id))
        apart = np.abs(boxes[:, None] - found).max(axis=2)
        clear = (boxes[:, 2:] - boxes[:, :2]).min(axis=1) > 3  # smaller remnants may be too faint
        near = apart.min(axis=1, initial=np.inf) <= tolerance
        assert near[clear].all(), (class_id, boxes, found)
        for place in found[apart.min(axis=0, initial=np.inf) > tolerance]:
            sides = place[2:] - place[:2]
            assert sides.min() <= 4 or sides.prod() < 0.13 * largest**2, (class_id, boxes, place)


def classes_of(images):
    return [class_id for labelled in images for class_id in labelled.class_id.tolist()]
