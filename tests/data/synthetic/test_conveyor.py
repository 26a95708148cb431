import cv2
import numpy as np
import pytest

from y7edge import Detector
from y7edge.boxes import intersections
from y7edge.data.synthetic.conveyor import Conveyor
from y7edge.data.synthetic.scenes import NAMES, _window
from y7edge.errors import ConfigError


@pytest.fixture(scope="module")
def belt():
    return Conveyor(seed=3, size=(160, 220))


def test_same_seed_gives_same_belt(belt):
    again, other = Conveyor(3, (160, 220)), Conveyor(4, (160, 220))
    assert (belt.view(50).image == again.view(50).image).all()
    assert (belt.boxes == again.boxes).all()
    assert belt.boxes.shape != other.boxes.shape or (belt.boxes != other.boxes).any()


def test_frames_move_to_the_right_and_repeat(belt):
    first, later = belt.view(100), belt.view(107)
    assert first.image.shape == (160, 220, 3)
    assert (later.image[:, 7:] == first.image[:, :-7]).all()
    assert (belt.view(100 + 3 * belt.length).image == first.image).all()
    # The frame that contains the end and the start of the belt.
    assert (belt.view(30).image[:, 30:] == belt.view(0).image[:, :-30]).all()
    assert not first.image.flags.writeable


def test_boxes_are_those_of_the_drawn_parts(monkeypatch):
    def paint(canvas, sprite, light):
        here, there = _window(canvas.shape, sprite)
        canvas[here][sprite.alpha[there] > 0.5] = 9e9

    monkeypatch.setattr("y7edge.data.synthetic.conveyor.lay", paint)
    belt = Conveyor(3, (160, 220))
    errors = []
    for moved in range(0, belt.length, 37):
        view = belt.view(moved)
        _, labels = cv2.connectedComponents((view.image.min(axis=2) == 255).astype(np.uint8))
        for box in view.boxes[view.whole]:
            x1, y1, x2, y2 = np.round(box).astype(int)
            part = np.bincount(labels[y1:y2, x1:x2].ravel())[1:].argmax() + 1
            rows, columns = np.nonzero(labels == part)
            drawn = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            errors.append(np.array(drawn) - box)
    assert len(errors) > 50
    assert np.abs(errors).max() < 2.5  # the tips of screws are less than a pixel wide
    assert np.abs(np.median(errors, axis=0)).max() < 0.6


def test_frames_and_boxes_have_the_same_origin(belt):
    gap = 10  # 6 % of the height
    for moved in (0, 13):
        image = belt.view(moved).image
        assert (image[:, moved : moved + gap] == 46).all()  # the belt before the first tray
        assert (image[:, moved + gap] != 46).any()
        view = belt.view(moved)
        first = view.part_id == 0
        moving = belt.boxes[0] + (moved, 0, moved, 0)
        np.testing.assert_allclose(view.boxes[first][0], moving, rtol=1e-6)


def test_a_part_keeps_its_number_while_it_passes_once(belt):
    seen: dict[int, list[tuple[int, float]]] = {}
    for moved in range(0, 2 * belt.length + 400, 5):
        view = belt.view(moved)
        assert len(set(view.part_id)) == len(view.part_id)
        for number, box in zip(view.part_id.tolist(), view.boxes, strict=True):
            seen.setdefault(number, []).append((moved, float(box[2])))
    count = len(belt.class_id)
    assert set(seen) >= set(range(count, 2 * count))  # all parts, in the second lap
    for track in seen.values():
        steps = np.diff([moved for moved, _ in track])
        assert (steps == 5).all()  # not interrupted, and not twice
        assert (np.diff([right for _, right in track]) >= 0).all()


def test_parts_do_not_overlap_and_are_not_cut(belt):
    overlaps = intersections(belt.boxes, belt.boxes)
    np.fill_diagonal(overlaps, 0)
    assert overlaps.max() == 0
    assert (belt.boxes[:, 1] > 0).all()
    assert (belt.boxes[:, 3] < 160).all()


def test_all_classes_are_on_every_belt():
    for seed in range(5):
        assert set(Conveyor(seed, (96, 96)).class_id) == set(range(len(NAMES)))


def test_crossings_are_those_of_the_views(belt):
    line, since, until = 110.0, 40, 40 + belt.length + 333
    sides: dict[int, bool] = {}
    counts = np.zeros(len(NAMES), int)
    for moved in range(since, until + 1):
        view = belt.view(moved)
        middles = (view.boxes[:, 0] + view.boxes[:, 2]) / 2
        for index in np.flatnonzero(view.whole):
            number, beyond = int(view.part_id[index]), bool(middles[index] >= line)
            counts[view.class_id[index]] += beyond and not sides.get(number, True)
            sides[number] = beyond
    assert counts.sum() > len(belt.class_id)
    assert belt.crossings(line, since, until).tolist() == counts.tolist()


@pytest.mark.parametrize("size", [(96, 4096), (300, 96)])
def test_extreme_sizes(size):
    belt = Conveyor(0, size)
    assert belt.length >= 2 * size[1]
    assert belt.view(belt.length // 2).image.shape == (*size, 3)


@pytest.mark.parametrize("size", [(95, 320), (320, 4097)])
def test_size_is_refused(size):
    with pytest.raises(ConfigError, match=f"96 to 4096 pixels .* found {size[1]}x{size[0]}"):
        Conveyor(0, size)


def test_negative_seed_is_refused():
    with pytest.raises(ConfigError, match="a seed of 0 or more, found -1"):
        Conveyor(-1)


def iou(first, second):
    """IoU (N, M) of boxes (N, 4) and (M, 4)."""
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (first, second)]
    shared = intersections(first, second)
    return shared / (areas[0][:, None] + areas[1] - shared)


def test_the_model_of_the_demo_detects_the_parts(parts_model, capsys):
    belt = Conveyor()
    views = missed = wrong = others = boxes = 0
    with Detector(parts_model, conf=0.5, threads=1) as detector:
        for moved in range(0, belt.length, 61):
            view = belt.view(moved)
            found = detector(view.image)
            overlap = iou(found.xyxy, view.boxes)
            boxes += len(found)
            others += int((overlap.max(axis=1, initial=0) < 0.5).sum())
            for index in np.flatnonzero(view.whole):
                views += 1
                best = overlap[:, index].argmax() if len(found) else 0
                if not len(found) or overlap[best, index] < 0.5:
                    missed += 1
                elif found.class_id[best] != view.class_id[index]:
                    wrong += 1
    with capsys.disabled():
        print(f"\n{views} whole parts: {missed} missed, {wrong} named wrongly; {others} of {boxes}")
    assert views > 150
    assert missed + wrong <= 0.03 * views
    assert others <= 0.06 * boxes
