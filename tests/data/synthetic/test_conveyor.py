import numpy as np
import pytest

from y7edge.data.synthetic.conveyor import Conveyor
from y7edge.data.synthetic.scenes import NAMES
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


def test_boxes_fit_the_drawn_parts(belt):
    # A part is the difference between a belt with and without it: here, its box has texture.
    for moved in range(0, belt.length, 37):
        view = belt.view(moved)
        assert (view.boxes[:, :2] >= 0).all()
        assert (view.boxes[:, 2:] <= (220, 160)).all()
        for (x1, y1, x2, y2), whole in zip(view.boxes.round().astype(int), view.whole, strict=True):
            inside = view.image[y1:y2, x1:x2].astype(float)
            assert inside.std() > 8
            assert whole == (x1 > 0 and x2 < 220) or x1 == 0 or x2 == 220


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


def test_parts_do_not_overlap(belt):
    boxes = belt.boxes
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    overlap = np.clip(high - low, 0, None).prod(axis=2)
    np.fill_diagonal(overlap, 0)
    # Boxes of slanted parts may touch; the parts themselves are in cells of their own.
    assert overlap.max() < 0.02 * (boxes[:, 2:] - boxes[:, :2]).prod(axis=1).min()


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
