"""Frames of sources: what the Detector takes from them, their formats, padded rows."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import cv2
import numpy as np
import pytest

from tests.detect.test_detector import detector_over, frame_with
from tests.fake_model import FakeSession, make_manifest
from y7edge import Detector, Frame, draw
from y7edge.detect.detections import Detections
from y7edge.detect.preprocess import nv12_to_bgr, to_bgr
from y7edge.errors import ConfigError, DataError

WHITE = frame_with((32, 64), (160, 0))
FRAME = Frame(WHITE, timestamp_ns=12, sequence=3, source="cam")


def padded(image: np.ndarray, more: int = 24) -> np.ndarray:
    """The same image with ``more`` bytes after each row."""
    rows, width = image.shape[:2]
    row = width * (image.shape[2] if image.ndim == 3 else 1)
    buffer = np.full((rows, row + more), 255, np.uint8)
    strides = (row + more, *image.strides[1:])
    view = np.lib.stride_tricks.as_strided(buffer, image.shape, strides)
    view[...] = image
    assert not view.flags.c_contiguous
    return view


def to_nv12(image: np.ndarray) -> np.ndarray:
    """Convert BGR to NV12; chroma is that of every second pixel."""
    height, width = image.shape[:2]
    planar = cv2.cvtColor(image, cv2.COLOR_BGR2YUV_I420)
    chroma = planar[height:].reshape(2, height // 2, width // 2)
    pairs = chroma.transpose(1, 2, 0).reshape(height // 2, width)
    return np.concatenate([planar[:height], pairs])


def noise(height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(height)
    coarse = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return np.ascontiguousarray(cv2.resize(coarse, (width, height)))


def equal(found: Detections, expected: Detections) -> None:
    np.testing.assert_array_equal(found.xyxy, expected.xyxy)
    np.testing.assert_array_equal(found.confidence, expected.confidence)
    np.testing.assert_array_equal(found.class_id, expected.class_id)
    assert found.image_wh == expected.image_wh


CALLS = {
    "call": lambda detector, *args, **more: detector(*args, **more),
    "timeout": lambda detector, *args, **more: detector(*args, timeout=30, **more),
    "submit": lambda detector, *args, **more: detector.submit(*args, **more).result(30),
    "detect": lambda detector, *args, **more: asyncio.run(detector.detect(*args, **more)),
    "batch": lambda detector, frame, *args, **more: detector.batch(
        [frame], *args, **{name: [value] for name, value in more.items()}
    )[0],
}


@pytest.fixture(params=CALLS)
def call(request):
    return CALLS[request.param]


def test_time_number_and_source_are_those_of_the_frame(call):
    detector, _ = detector_over("dynamic")
    found = call(detector, FRAME)
    assert (found.timestamp_ns, found.frame_id, found.source) == (12, 3, "cam")
    equal(found, detector(WHITE))
    assert len(found) == 2


def test_arguments_replace_what_the_frame_says(call):
    detector, _ = detector_over("dynamic")
    found = call(detector, FRAME, timestamp_ns=0, frame_id=0, source="")
    assert (found.timestamp_ns, found.frame_id, found.source) == (0, 0, "")
    found = call(detector, FRAME, frame_id=9)
    assert (found.timestamp_ns, found.frame_id, found.source) == (12, 9, "cam")


def test_a_colour_that_contradicts_the_frame_is_refused(call):
    detector, session = detector_over()
    with pytest.raises(ConfigError, match=r"color is 'rgb', but the format of the frame is 'bgr'"):
        call(detector, FRAME, "rgb")
    with pytest.raises(ConfigError, match=r"color is 'bgr', but the format of the frame is 'nv12'"):
        call(detector, Frame(to_nv12(WHITE), "nv12"), "bgr")
    with pytest.raises(ConfigError, match=r"color is 'grey', expected"):
        call(detector, Frame(WHITE, "grey"))
    assert session.batches == []
    equal(call(detector, FRAME, "bgr"), detector(WHITE))


@pytest.mark.parametrize("format", ["bgr", "rgb", "nv12"])
def test_formats_and_padded_rows_in_a_real_engine(artifact_path, format, call):
    with Detector(artifact_path, conf=0.02, threads=1) as detector:
        image = noise(150, 198)
        pixels = {"bgr": image, "rgb": image[..., ::-1].copy(), "nv12": to_nv12(image)}[format]
        expected = detector(nv12_to_bgr(pixels) if format == "nv12" else image)
        assert len(expected) > 5
        assert expected.image_wh == (198, 150)
        equal(call(detector, Frame(pixels, format)), expected)
        equal(call(detector, Frame(padded(pixels), format)), expected)
        equal(call(detector, Frame(padded(pixels, 58), format, stride=None)), expected)


@pytest.mark.parametrize(("target", "package"), [("openvino", "openvino"), ("mnn", "MNN")])
def test_padded_rows_in_other_engines(narrow_tiny, tmp_path, target, package):
    pytest.importorskip(package, reason=f"{package} is not installed")
    from y7edge.export import export
    from y7edge.export.targets import registry

    suffix = registry.get(target).SUFFIX
    artifact = export(narrow_tiny, tmp_path / f"m{suffix}", target=target, imgsz=(96, 128)).path
    with Detector(artifact, conf=0.02, threads=1) as detector:
        image = noise(150, 198)
        frames = [Frame(padded(image)), Frame(padded(to_nv12(image)), "nv12")]
        expected = [detector(image), detector(nv12_to_bgr(to_nv12(image)))]
        for found, one in zip(detector.batch(frames), expected, strict=True):
            assert len(one) > 5
            equal(found, one)


@pytest.mark.parametrize("options", [{"roi": (20, 10, 180, 140)}, {}], ids=["roi", "tiles"])
def test_nv12_frames_are_cut_like_bgr(artifact_path, options):
    tile = None if options else 96
    with Detector(artifact_path, conf=0.02, threads=1, tile=tile) as detector:
        pixels = to_nv12(noise(150, 198))
        expected = detector(nv12_to_bgr(pixels), **options)
        assert len(expected) > 5
        equal(detector(Frame(padded(pixels), "nv12"), **options), expected)


@pytest.mark.parametrize("batch", [1, 3, "dynamic"])
def test_a_batch_may_mix_frames_of_all_formats_and_arrays(batch):
    detector, session = detector_over(batch)
    other = frame_with((64, 64), size=(64, 96))
    other[:] = np.where(other == 255, 255, 16)
    images = [
        FRAME,
        WHITE,
        Frame(to_nv12(WHITE), "nv12", sequence=7, source="csi"),
        Frame(other[..., ::-1], "rgb", sequence=8, timestamp_ns=5),
    ]
    found = detector.batch(images)
    assert sum(session.batches) == {1: 4, 3: 6, "dynamic": 4}[batch]
    assert [one.frame_id for one in found] == [3, None, 7, 8]
    assert [one.source for one in found] == ["cam", None, "csi", None]
    assert [one.timestamp_ns for one in found] == [12, None, None, 5]
    equal(found[0], detector(WHITE))
    equal(found[1], detector(WHITE))
    equal(found[2], detector(nv12_to_bgr(to_nv12(WHITE))))
    equal(found[3], detector(other))
    given = detector.batch(images, frame_id=[None, 1, None, 2], source=list("abcd"))
    assert [one.frame_id for one in given] == [3, 1, 7, 2]
    assert [one.source for one in given] == list("abcd")


def test_channels_of_each_image_of_a_batch_are_in_its_own_order():
    class Eye(FakeSession):
        def _run(self, feeds):
            seen.extend(feeds["images"][:, :, 0, 0].tolist())
            return super()._run(feeds)

    seen: list[list[float]] = []
    manifest = make_manifest("dynamic")
    session = Eye(manifest)
    detector = Detector.from_session(session, manifest)
    blue = np.zeros((64, 96, 3), np.uint8)
    blue[..., 0] = 255
    detector.batch([Frame(blue, "bgr"), Frame(blue, "rgb"), blue, Frame(blue, "rgb")])
    assert session.batches == [4]
    assert seen == [[0, 0, 1], [1, 0, 0], [0, 0, 1], [1, 0, 0]]


@pytest.mark.parametrize(
    ("frame", "problem"),
    [
        (Frame("image.jpg"), "an image must be a numpy array, not str"),
        (Frame(np.zeros((8, 8, 3), np.float32)), "an image must be uint8, not float32"),
        (Frame(np.zeros((7, 8), np.uint8), "nv12"), r"has shape \(7, 8\), expected"),
        (Frame(np.zeros((6, 7), np.uint8), "nv12"), r"has shape \(6, 7\), expected"),
        (Frame(WHITE, source=3), "source is 3, expected a string"),
        (Frame(WHITE, sequence=0.5), "frame_id is 0.5, expected a whole number"),
    ],
)
def test_what_is_not_a_frame(frame, problem):
    detector, _ = detector_over()
    with pytest.raises(DataError, match=problem):
        detector(frame)


# --- images of frames, and drawing ----------------------------------------------------------------


def test_a_frame_becomes_a_bgr_image():
    image = noise(48, 64)
    assert to_bgr(Frame(image)) is image
    np.testing.assert_array_equal(to_bgr(Frame(padded(image))), image)
    rgb = np.ascontiguousarray(image[..., ::-1])
    np.testing.assert_array_equal(to_bgr(Frame(rgb, "rgb")), image)
    np.testing.assert_array_equal(to_bgr(Frame(padded(rgb), "rgb")), image)
    alpha = np.full((48, 64, 1), 7, np.uint8)
    np.testing.assert_array_equal(to_bgr(Frame(np.dstack([image, alpha]))), image)
    np.testing.assert_array_equal(to_bgr(Frame(np.dstack([rgb, alpha]), "rgb")), image)
    grey = np.ascontiguousarray(image[..., 0])
    for shaped in (grey, grey[..., None]):
        np.testing.assert_array_equal(to_bgr(Frame(shaped)), np.repeat(grey[..., None], 3, axis=2))
    nv12 = to_nv12(image)
    np.testing.assert_array_equal(to_bgr(Frame(padded(nv12), "nv12")), nv12_to_bgr(nv12))
    for name in ("rgb", "nv12"):
        assert to_bgr(Frame(rgb if name == "rgb" else nv12, name)).flags.c_contiguous
    with pytest.raises(ConfigError, match="color is 'yuv'"):
        to_bgr(Frame(image, "yuv"))
    with pytest.raises(DataError, match="must be a numpy array"):
        to_bgr(Frame(None))


@pytest.mark.parametrize("format", ["bgr", "rgb", "nv12"])
def test_boxes_are_drawn_on_frames(format):
    image = noise(48, 64)
    pixels = {"bgr": image, "rgb": image[..., ::-1], "nv12": to_nv12(image)}[format]
    before = pixels.copy()
    frame = Frame(pixels, format)
    detections = Detections([[8, 20, 40, 40]], [0.5], [1], (64, 48), ("nut", "screw"))
    expected = draw(to_bgr(frame), detections)
    np.testing.assert_array_equal(draw(frame, detections), expected)
    np.testing.assert_array_equal(draw(frame, detections, color="rgb"), expected[..., ::-1])
    np.testing.assert_array_equal(pixels, before)
    with pytest.raises(DataError, match="frame is 64x48, expected 32x48"):
        draw(frame, replace(detections, image_wh=(32, 48)))
