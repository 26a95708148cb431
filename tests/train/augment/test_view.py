from dataclasses import replace

import cv2
import numpy as np
import pytest

from tests.train.augment.coded import coded_set
from y7edge.train.augment.colour import Jitter
from y7edge.train.augment.labelled import LabelledImage, clip_polygon, moved
from y7edge.train.augment.mosaic import Area, Layout, Tile, four, nine, paint, single
from y7edge.train.augment.settings import Augmentation
from y7edge.train.augment.view import Mirror, View, draw_view, render

EVERYTHING = Area(-np.inf, -np.inf, np.inf, np.inf)


def kept(layout):
    """Return the layout with tiles that can be iterated repeatedly."""
    return replace(layout, tiles=tuple(layout.tiles))


def smooth_set(rng, size, count):
    """Images without sharp edges, on which half a pixel makes a small difference."""
    images = []
    for index in range(count):
        short = int(rng.integers(size // 2, size))
        height, width = (size, short) if index % 2 else (short, size)
        image = cv2.resize(rng.integers(0, 256, (5, 5, 3), np.uint8), (width, height))
        boxes = rng.uniform(0, 0.5, (6, 2))
        boxes = np.hstack((boxes, boxes + rng.uniform(0.1, 0.5, (6, 2)))) * ((width, height) * 2)
        images.append(LabelledImage(image, boxes, 6 * index + np.arange(6)))
    return images


@pytest.mark.parametrize("join", [four, nine])
def test_tiles_put_together_equal_a_warped_canvas(join):
    size, numbers = 160, list(range(9 if join is nine else 4))
    for seed in range(8):
        images = smooth_set(np.random.default_rng(seed), size, 9)
        rng = np.random.default_rng(seed)
        view = draw_view((2 * size,) * 2, (size, size), Augmentation(scale=0.5), rng)
        state = rng.bit_generator.state
        result = render(join(images, numbers, size, rng, view.visible()), view, Jitter())

        rng.bit_generator.state = state
        layout = kept(join(images, numbers, size, rng, EVERYTHING))
        slow = canvas_view(layout, view)
        apart = np.abs(result.image.astype(int) - slow.image).max(axis=2)
        # Seams may differ by a pixel; elsewhere by half a pixel, or by one when enlarged.
        assert np.median(apart) <= 3
        assert (apart > 12).mean() < 0.04
        common = np.intersect1d(result.class_id, slow.class_id)
        assert len(common) > 0.9 * len(slow.class_id)
        for class_id in common:
            np.testing.assert_allclose(
                result.boxes[result.class_id == class_id],
                slow.boxes[slow.class_id == class_id],
                atol=2,
            )


def canvas_view(layout, view):
    """Warp the whole canvas, as published; labels are bounding boxes."""
    canvas = paint(layout)
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    matrix = np.linalg.inv(half) @ view.matrix @ half
    image = cv2.warpAffine(
        canvas.image, matrix[:2], (view.width, view.height), borderValue=(114,) * 3
    )
    boxes = canvas.boxes * np.tile(np.diag(view.matrix)[:2], 2) + np.tile(view.matrix[:2, 2], 2)
    boxes = np.hstack(
        (np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:]))
    )
    boxes = boxes.clip(0, view.width)
    sides = boxes[:, 2:] - boxes[:, :2]
    fraction = sides.prod(axis=1) / ((canvas.boxes[:, 2:] - canvas.boxes[:, :2]) * view.scale).prod(
        axis=1
    )
    keep = (
        (sides > 2).all(axis=1)
        & (sides.max(axis=1) / sides.min(axis=1).clip(1e-9) < 20)
        & (fraction > 0.1)
    )
    return LabelledImage(image, boxes[keep], canvas.class_id[keep])


def test_boxes_follow_pixels_with_subpixel_accuracy():
    # The centroid of a bright box is the centre of its label. A warp that ignores OpenCV's pixel
    # centres has an error of up to 0.3.
    image = np.full((64, 64, 3), 114, np.uint8)
    image[24:34, 20:36] = 254
    image = cv2.GaussianBlur(image, (0, 0), 3)  # without aliasing when shrunk
    layout = kept(
        single(LabelledImage(image, np.array([[20.0, 24, 36, 34]]), np.array([0])), 64, 64)
    )
    for seed, degrees in [(seed, degrees) for seed in range(8) for degrees in (0.0, 1e-6)]:
        chosen = Augmentation(scale=0.5, translate=0.1, degrees=degrees)
        view = draw_view((64, 64), (64, 64), chosen, np.random.default_rng(seed))
        assert view.upright == (degrees == 0)
        result = render(layout, view, Jitter())
        profile = result.image[:, :, 0] - 114.0
        weight = profile.sum()
        x = (profile.sum(axis=0) * (np.arange(64) + 0.5)).sum() / weight
        y = (profile.sum(axis=1) * (np.arange(64) + 0.5)).sum() / weight
        centre = (result.boxes[0, :2] + result.boxes[0, 2:]) / 2
        np.testing.assert_allclose((x, y), centre, atol=0.06)


def window(boxes, scale=1.0, polygons=(), degrees=0.0):
    image = np.zeros((100, 100, 3), np.uint8)
    labelled = LabelledImage(image, np.array(boxes, float), np.arange(len(boxes)), polygons)
    angle = np.radians(degrees)
    matrix = np.diag((scale, scale, 1.0))
    matrix[:2, :2] = scale * np.array(
        [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
    )
    layout = Layout((Tile(labelled, 0, 0, (0, 0, 100, 100)),), 100, 100)
    return render(layout, View(matrix, 100, 100, scale), Jitter())


def test_remnants_are_dropped():
    boxes = [
        (10, 10, 40, 40),
        (96.5, 10, 100, 40),  # enlarged: outside
        (48, 10, 80, 40),  # less than a tenth left
        (46, 10, 80, 40),  # an eighth left
        (20, 20, 21, 35),  # two pixels wide
        (20, 20, 21.3, 35),
        (10, 30, 49, 31.9),  # too thin: 20.5 to 1
        (10, 30, 49, 32.1),
    ]
    assert window(boxes, scale=2.0).class_id.tolist() == [0, 3, 5, 7]


def test_smaller_remnants_of_outlined_objects_are_kept():
    # An outlined object does not change the filter of others.
    box = (45.0, 10, 145, 40)
    square = np.array([(45.0, 10), (145, 10), (145, 40), (45, 40)])
    assert window([box, box], scale=2.0, polygons=(square, None)).class_id.tolist() == [0]
    assert window([box, box], scale=2.0, polygons=(None, square)).class_id.tolist() == [1]


def test_scaling_does_not_drop_objects():
    # Scaling by half leaves a quarter of the area of every box, which drops none.
    for scale in np.linspace(0.15, 1.0, 20):
        assert window([(40, 40, 60, 60)], scale=scale).class_id.tolist() == [0]


@pytest.mark.parametrize("degrees", [0.0, 30.0])
def test_polygons_are_clipped_to_the_image(degrees):
    angles = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    circle = np.column_stack((np.cos(angles), np.sin(angles))) * 30 + (30, 60)
    result = window([(0, 30, 60, 90)], scale=1.5, polygons=(circle,), degrees=degrees)
    line = result.polygons[0]
    assert line.min() >= 0
    assert line.max() <= 100
    np.testing.assert_allclose(result.boxes[0], (*line.min(axis=0), *line.max(axis=0)))
    mask = np.zeros((100, 100), np.uint8)
    cv2.fillPoly(mask, [np.rint((line - 0.5) * 16).astype(np.int32)], 1, shift=4)
    y, x = np.mgrid[:100, :100] + 0.5
    turn = np.radians(degrees)
    back_x = (np.cos(turn) * x - np.sin(turn) * y) / 1.5
    back_y = (np.sin(turn) * x + np.cos(turn) * y) / 1.5
    inside = (back_x - 30) ** 2 + (back_y - 60) ** 2 < 30**2
    assert (inside != mask.astype(bool)).mean() < 0.02


def test_clipping_concave_polygons():
    comb = np.array([(0.0, 0), (10, 0), (10, 10), (8, 10), (8, 2), (2, 2), (2, 10), (0, 10)])
    cut = clip_polygon(comb, (0, 5), (10, 20))
    assert sorted(map(tuple, cut.tolist())) == sorted(
        [(10, 5), (10, 10), (8, 10), (8, 5), (2, 5), (2, 10), (0, 10), (0, 5)]
    )
    assert clip_polygon(comb, (3, 3), (7, 9)).shape[1] == 2
    assert len(clip_polygon(comb, (20, 20), (30, 30))) == 0
    assert clip_polygon(comb, (0, 0), (10, 10)) is comb


def test_four_tiles_meet_in_one_point():
    tiles = [
        LabelledImage(np.full((64, 64, 3), n, np.uint8), np.empty((0, 4)), np.empty(0, int))
        for n in (1, 2, 3, 4)
    ]
    canvas = paint(four(tiles, [0, 1, 2, 3], 64, np.random.default_rng(5), EVERYTHING)).image
    assert canvas.shape == (128, 128, 3)
    places = [np.argwhere(canvas[:, :, 0] == n) for n in (1, 2, 3, 4)]
    meet = places[0].max(axis=0) + 1
    assert ((meet >= 32) & (meet <= 96)).all()
    assert (places[1].min(axis=0) == (max(meet[0] - 64, 0), meet[1])).all()
    assert (places[2].min(axis=0) == (meet[0], max(meet[1] - 64, 0))).all()
    assert (places[3].min(axis=0) == meet).all()


def test_nine_tiles_touch_and_do_not_overlap():
    rng = np.random.default_rng(0)
    tiles = [
        LabelledImage(
            np.full((*rng.integers(30, 65, 2), 3), n, np.uint8), np.empty((0, 4)), np.empty(0, int)
        )
        for n in range(1, 10)
    ]
    for seed in range(20):
        layout = kept(nine(tiles, list(range(9)), 64, np.random.default_rng(seed), EVERYTHING))
        canvas = paint(layout).image[:, :, 0]
        areas = [(canvas == tile.labelled.image[0, 0, 0]).sum() for tile in layout.tiles]
        parts = [np.diff(np.reshape(tile.part, (2, 2)), axis=0).prod() for tile in layout.tiles]
        assert areas == parts  # nothing painted over
        first = next(tile for tile in layout.tiles if tile.labelled is tiles[0])
        height, width = tiles[0].image.shape[:2]
        for tile in layout.tiles[1:]:
            rows, columns = tile.labelled.image.shape[:2]
            # Along one side of the middle one, or beyond a corner of it.
            assert (
                tile.left in (first.left + width, first.left - columns)
                or tile.top in (first.top + height, first.top - rows)
                or tile.left >= first.left + width
                or tile.top >= first.top + height
                or tile.left + columns <= first.left
            )


@pytest.mark.parametrize("join", [four, nine])
def test_invisible_images_have_no_effect(join):
    images = coded_set(np.random.default_rng(0), 112, 9)
    numbers = list(range(9 if join is nine else 4))
    for seed in range(20):
        rng = np.random.default_rng(seed)
        view = draw_view((224, 224), (112, 112), Augmentation(scale=0.9), rng)
        state = rng.bit_generator.state
        culled = render(join(images, numbers, 112, rng, view.visible()), view, Jitter())
        rng.bit_generator.state = state
        full = render(join(images, numbers, 112, rng, EVERYTHING), view, Jitter())
        assert (culled.image == full.image).all()
        np.testing.assert_array_equal(culled.boxes, full.boxes)


def test_perspective_never_reaches_the_horizon():
    for seed in range(50):
        chosen = Augmentation(perspective=0.01, degrees=45, scale=0.5)
        view = draw_view((1280, 1280), (640, 640), chosen, np.random.default_rng(seed))
        corners = np.array([(0, 0, 1), (1280, 0, 1), (0, 1280, 1), (1280, 1280, 1)])
        assert (corners @ view.matrix.T)[:, 2].min() > 0.09


@pytest.mark.parametrize(("vertical", "horizontal"), [(True, False), (False, True), (True, True)])
def test_mirroring_twice_is_the_identity(vertical, horizontal):
    labelled = coded_set(np.random.default_rng(1), 112, 1, outlined=True)[0]
    mirror = Mirror(vertical=vertical, horizontal=horizontal)
    once = mirror.apply(labelled)
    rows, columns = (slice(None, None, -1 if flipped else 1) for flipped in (vertical, horizontal))
    assert (once.image == labelled.image[rows, columns]).all()
    assert (once.boxes != labelled.boxes).any()
    twice = mirror.apply(once)
    assert (twice.image == labelled.image).all()
    np.testing.assert_allclose(twice.boxes, labelled.boxes)
    np.testing.assert_allclose(twice.polygons[0], labelled.polygons[0])
    assert Mirror().apply(labelled) is labelled
    assert moved(labelled, labelled.image).boxes.tolist() == labelled.boxes.tolist()


@pytest.mark.parametrize("join", [four, nine])
def test_tile_at_a_point_is_found_without_its_neighbours(join):
    numbers = list(range(9 if join is nine else 4))
    for seed in range(30):
        rng = np.random.default_rng(seed)
        tiles = [
            LabelledImage(
                np.full((*rng.integers(20, 65, 2), 3), n, np.uint8), np.empty((0, 4)), numbers[:0]
            )
            for n in range(1, 10)
        ]
        full = paint_labelless(join(tiles, numbers, 64, np.random.default_rng(seed), EVERYTHING))
        for x, y in rng.integers(0, 128, (20, 2)):
            visible = Area(x, y, x + 1, y + 1)
            part = paint_labelless(join(tiles, numbers, 64, np.random.default_rng(seed), visible))
            assert part[y, x] == full[y, x]


def paint_labelless(layout):
    canvas = np.full((layout.height, layout.width), 114, np.uint8)
    for tile in layout.tiles:
        x1, y1, x2, y2 = np.array(tile.part) + (tile.left, tile.top) * 2
        canvas[y1:y2, x1:x2] = tile.labelled.image[0, 0, 0]
    return canvas
