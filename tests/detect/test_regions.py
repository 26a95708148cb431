"""Regions of interest, tiles, thresholds by class, and values that an engine must not return."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from tests.detect.test_detector import detector_over, frame_with
from tests.fake_model import LEVELS, FakeSession, make_manifest
from y7edge.detect.detector import Detector
from y7edge.detect.regions import Tiling, regions
from y7edge.errors import ConfigError, DataError, DeviceError

SIZE = (64, 96)  # of the fake's input: an image of this size is not scaled


def boxes(found):
    return {tuple(map(int, np.rint(row.xyxy))) for row in found}


def test_region_of_interest_gives_boxes_in_pixels_of_the_image():
    detector, session = detector_over()
    frame = np.zeros((300, 400, 3), np.uint8)
    frame[208:216, 304:312] = 255
    found = detector(frame, roi=(288, 192, 288 + SIZE[1], 192 + SIZE[0]), frame_id=3)
    assert boxes(found) == {(300, 204, 316, 220)}
    assert found.image_wh == (400, 300)
    assert found.frame_id == 3
    assert len(session.batches) == 1
    assert not len(detector(frame, roi=(0, 0, 96, 64)))
    assert boxes(detector.submit(frame, roi=(288, 192, 384, 256)).result(30)) == boxes(found)
    assert [boxes(one) for one in detector.batch([frame] * 2, roi=(288, 192, 384, 256))] == [
        boxes(found)
    ] * 2


def test_region_beyond_the_border_is_clipped():
    detector, _ = detector_over()
    frame = frame_with((32, 32))
    whole = boxes(detector(frame))
    assert boxes(detector(frame, roi=(-50, -50, 10**6, 10**6))) == whole


@pytest.mark.parametrize(
    "roi",
    [
        *[(5, 5, 5, 9), (400, 0, 500, 9), (9, 0, 3, 9), (0, 0, 5), "0123", (0.5, 0, 5, 5), 7],
        (0, 0, [5], 5),
    ],
)
def test_regions_without_a_pixel_are_refused(roi):
    with pytest.raises(DataError, match="roi"):
        detector_over()[0](np.zeros((100, 100, 3), np.uint8), roi=roi)


@pytest.mark.parametrize("shape", [(480, 640), (97, 1000), (96, 97), (200, 64)])
@pytest.mark.parametrize("overlap", [0, 0.2, 0.9])
def test_tiles_cover_the_image_and_overlap(shape, overlap):
    image = np.zeros(shape, np.uint8)
    whole, *tiles = regions(image, None, Tiling(96, overlap))
    assert whole.pixels.shape == shape
    seen = np.zeros(shape, int)
    for tile in tiles:
        height, width = tile.pixels.shape
        assert (height, width) == (min(96, shape[0]), min(96, shape[1]))
        seen[tile.top : tile.top + height, tile.left : tile.left + width] += 1
    assert seen.min() >= 1
    lefts = sorted({tile.left for tile in tiles})
    assert all(96 - (b - a) >= round(96 * overlap) for a, b in itertools.pairwise(lefts))


def test_an_image_of_one_tile_is_run_once():
    assert len(regions(np.zeros((96, 96, 3), np.uint8), None, Tiling(96))) == 1


@pytest.mark.parametrize("batch", [1, 4, "dynamic"])
def test_small_objects_are_found_in_tiles(batch):
    """Squares of 8 pixels are less than a cell of the whole image, and a cell of a tile."""
    frame = np.zeros((256, 384, 3), np.uint8)
    for left, top in ((0, 0), (88, 56), (376, 248), (192, 128)):
        frame[top : top + 8, left : left + 8] = 255
    plain, _ = detector_over(batch)
    assert not len(plain(frame))
    clock = itertools.count(0, 10**6).__next__  # 1 ms between two calls
    tiled, session = detector_over(batch, tile=64, overlap=0, clock=clock)
    found = tiled(frame)
    # The fake's boxes of 16 pixels, clipped to their tiles.
    expected = {(0, 0, 12, 12), (84, 52, 100, 64), (372, 244, 384, 256), (192, 128, 204, 140)}
    assert boxes(found) == expected
    assert max(session.batches) == {1: 1, 4: 4, "dynamic": 16}[batch]
    assert found.image_wh == (384, 256)
    assert found.timing.infer == len(session.batches), "each batch is counted once"


def test_an_object_in_two_tiles_is_returned_once():
    frame = np.zeros((64, 144, 3), np.uint8)
    frame[24:32, 72:80] = 255  # complete in both tiles
    tiled, _ = detector_over(tile=96, overlap=0.5)
    found = tiled(frame)
    assert len(found) == 1
    separate = Detector.from_session(
        FakeSession(make_manifest()), make_manifest(), tile=96, overlap=0.5, iou=1.0
    )(frame)
    assert len(separate) == 2, "without suppression both tiles return it"


def test_the_whole_image_is_run_beside_the_tiles():
    frame = np.zeros((256, 384, 3), np.uint8)
    frame[96:128, 160:192] = 255  # one cell of the whole image, scaled by four
    tiled, _ = detector_over(tile=96)
    widths = [round(row.right - row.left) for row in tiled(frame)]
    assert max(widths) == 64


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"tile": 0}, "tile is 0"),
        ({"tile": 10**6}, "tile is 1000000"),
        ({"overlap": 1.0}, "overlap is 1.0"),
        ({"overlap": -0.1}, "overlap is -0.1"),
    ],
)
def test_tiles_that_cannot_be_cut(options, problem):
    with pytest.raises(ConfigError, match=problem):
        detector_over(**options)


def test_too_many_tiles_are_refused():
    with pytest.raises(DataError, match="expected at most 4096"):
        detector_over(tile=32, overlap=0.9)[0](np.zeros((1000, 1000), np.uint8))


# --- thresholds by class -------------------------------------------------------------------------


class TwoClasses(FakeSession):
    """Class 1 with score 0.82 in the left half, class 2 with 0.82 in the right half."""

    def _run(self, feeds):
        heads = super()._run(feeds)
        fine = heads["head0"]
        middle = fine.shape[-1] // 2
        fine[:, 6:] = -9
        fine[:, 6, :, :middle] = fine[:, 7, :, middle:] = 2
        return heads


@pytest.mark.parametrize(
    ("conf", "expected"),
    [
        ({"washer": 0.9}, [2]),
        ({2: 0.9}, [1]),
        ({"washer": 0.9, 2: 0.9}, []),
        ({"nut": 0.99}, [1, 2]),
        ({}, [1, 2]),
        (0.5, [1, 2]),
    ],
)
def test_thresholds_by_class(conf, expected):
    manifest = make_manifest()
    detector = Detector.from_session(TwoClasses(manifest), manifest, conf=conf)
    assert sorted(detector(frame_with((32, 64), (160, 0))).class_id.tolist()) == expected


@pytest.mark.parametrize(
    "conf", [{"tree": 0.5}, {7: 0.5}, {"nut": 2.0}, {"nut": -1.0}, {"nut": 0.3, 0: 0.5}]
)
def test_thresholds_that_cannot_be_used(conf):
    with pytest.raises(ConfigError, match=r"tree|7|conf is|one threshold"):
        detector_over(conf=conf)


# --- what an engine must not return --------------------------------------------------------------


class Broken(FakeSession):
    def __init__(self, manifest, change):
        super().__init__(manifest)
        self.change = change

    def _run(self, feeds):
        results = super()._run(feeds)
        self.change(results)
        return results


def _nan(results):
    for array in results.values():
        array[:, 4 if array.ndim == 4 else 5, 2:3] = np.nan


def _flat(results):
    name = next(iter(results))
    results[name] = results[name].reshape(-1)


def _double(results):
    name = next(iter(results))
    results[name] = results[name].astype(np.float64)


@pytest.mark.parametrize("outputs", ["heads", "decoded"])
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (_flat, "nothing returned float32 .* expected float32"),
        (_double, "nothing returned float64 .* expected float32"),
        (lambda results: results.popitem(), "nothing returned nothing for output"),
    ],
    ids=["shape", "dtype", "missing"],
)
def test_wrong_outputs_are_device_errors(outputs, change, problem):
    manifest = make_manifest(outputs=outputs)
    detector = Detector.from_session(Broken(manifest, change), manifest)
    with pytest.raises(DeviceError, match=problem):
        detector(frame_with((32, 64)))


@pytest.mark.parametrize("outputs", ["heads", "decoded"])
@pytest.mark.parametrize("count", [1, 3])
def test_results_for_another_number_of_images_are_device_errors(outputs, count):
    def change(results):
        results.update({name: array[[0] * count] for name, array in results.items()})

    manifest = make_manifest("dynamic", outputs)
    detector = Detector.from_session(Broken(manifest, change), manifest)
    with pytest.raises(DeviceError, match=rf"returned float32 \({count}, .* expected float32 \(2,"):
        detector.batch([frame_with((32, 64))] * 2)


@pytest.mark.parametrize("outputs", ["heads", "decoded"])
def test_nan_is_a_device_error(outputs):
    """Post-processing selects no NaN: without the error, objects would be missed silently."""
    assert len(LEVELS) == 2
    manifest = make_manifest(outputs=outputs)

    def change(results):
        if outputs == "heads":
            results["head1"][0, 4, 1, 1] = np.nan
        else:
            results["scores"][0, 7] = np.nan

    detector = Detector.from_session(Broken(manifest, change), manifest)
    with pytest.raises(DeviceError, match=r"returned NaN in (head1|scores)"):
        detector(frame_with((32, 64)))
    trained = replace(manifest, parity={"status": "source"})  # a checkpoint
    detector = Detector.from_session(Broken(trained, change), trained)
    with pytest.raises(DeviceError, match=r"NaN in (head1|scores): its training has diverged"):
        detector(frame_with((32, 64)))
