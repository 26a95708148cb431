from __future__ import annotations

import re

import cv2
import numpy as np
import pytest

from tests.detect.ops_cases import arrays, table
from y7edge.artifact.manifest import InputInfo
from y7edge.detect.preprocess import (
    Preprocessor,
    check_frame,
    letterbox_geometry,
    nv12_to_bgr,
    unletterbox,
)
from y7edge.errors import ConfigError, DataError

LETTERBOX = table()["letterbox"]
RNG = np.random.default_rng(0)
FRAME = RNG.integers(0, 256, (50, 80, 3), dtype=np.uint8)


def preprocessor(height: int, width: int, **changes) -> Preprocessor:
    return Preprocessor(InputInfo("images", 1, height, width, **changes))


def pixels(tensor: np.ndarray) -> np.ndarray:
    """A (3, H, W) RGB tensor as an (H, W, 3) BGR image."""
    return np.rint(tensor * 255).astype(np.uint8)[::-1].transpose(1, 2, 0)


def test_geometry_equals_the_published_one():
    rows = [(i, row) for i, row in enumerate(LETTERBOX["rows"]) if row[2] == "fixed"]
    assert len(rows) == 48
    for index, (image, target, _, resized_wh, padding, output, _, _) in rows:
        geometry = letterbox_geometry(
            tuple(image), target if isinstance(target, int) else tuple(target)
        )
        if index in LETTERBOX["rows_where_a_resized_side_is_zero"]:
            assert min(geometry.resized_hw) == 1, index  # the published code fails there
            continue
        assert geometry.resized_hw == tuple(resized_wh[::-1] if resized_wh else image), index
        assert [geometry.top, geometry.bottom, geometry.left, geometry.right] == padding, index
        assert geometry.output_hw == tuple(output), index


@pytest.mark.parametrize(("size", "name"), [(96, "out_fixed_96"), (64, "out_auto_64")])
def test_pixels_equal_the_published_ones(size, name):
    preprocess = preprocessor(size, size)
    preprocess(arrays()["letterbox/image_u8"])
    np.testing.assert_array_equal(pixels(preprocess.tensor[0]), arrays()[f"letterbox/{name}"])


@pytest.mark.parametrize("case", table()["scale_coords"]["cases"], ids=lambda case: case["k"])
def test_mapping_back_equals_the_published_one(case):
    prefix, image_hw = f"scale_coords/{case['k']}", tuple(case["orig_hw"])
    boxes = arrays()[f"{prefix}/in"]
    given = unletterbox(boxes, (case["ratio"][0],) * 2, tuple(case["pad"]), image_hw)
    np.testing.assert_allclose(given, arrays()[f"{prefix}/out_with_ratio_pad"], atol=1e-5)
    (net_height, net_width), (height, width) = case["net_hw"], image_hw
    gain = min(net_height / height, net_width / width)
    padding = ((net_width - gain * width) / 2, (net_height - gain * height) / 2)
    computed = unletterbox(boxes, (gain, gain), padding, image_hw)
    np.testing.assert_allclose(computed, arrays()[f"{prefix}/out_computed"], atol=1e-5)


@pytest.mark.parametrize(
    "image_hw", [(427, 640), (100, 37), (333, 500), (1, 640), (640, 1), (720, 1280), (96, 96)]
)
def test_boxes_are_mapped_back(image_hw):
    # The whole image is white: where it lies in the input is seen, not computed.
    preprocess = preprocessor(96, 96)
    geometry = preprocess(np.full((*image_hw, 3), 255, np.uint8))
    rows, columns = np.nonzero(preprocess.tensor[0, 0] == 1)
    seen = np.array([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]], np.float32)
    np.testing.assert_allclose(
        geometry.to_source(seen), [[0, 0, image_hw[1], image_hw[0]]], rtol=1e-6
    )


def test_boxes_are_clipped_to_the_image():
    geometry = letterbox_geometry((50, 80), (96, 96))
    beyond = geometry.to_source(np.array([[-9, -9, 999, 999]], np.float32))
    np.testing.assert_array_equal(beyond, [[0, 0, 80, 50]])


def test_values_are_the_nearest_float32_of_pixel_over_255():
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    preprocess = preprocessor(16, 16)
    preprocess(ramp)
    np.testing.assert_array_equal(
        preprocess.tensor[0, 1], (ramp / 255).astype(np.float32), strict=True
    )


def test_channel_order():
    preprocess = preprocessor(32, 32)
    blue = np.zeros((32, 32, 3), np.uint8)
    blue[..., 0] = 255
    preprocess(blue, "bgr")
    assert preprocess.tensor[0, :, 0, 0].tolist() == [0, 0, 1]
    preprocess(blue, "rgb")
    assert preprocess.tensor[0, :, 0, 0].tolist() == [1, 0, 0]
    wants_bgr = preprocessor(32, 32, color="bgr")
    wants_bgr(blue, "bgr")
    assert wants_bgr.tensor[0, :, 0, 0].tolist() == [1, 0, 0]
    with pytest.raises(ConfigError, match="color is 'bggr'"):
        preprocess(blue, "bggr")


@pytest.mark.parametrize("sizes", [[(50, 80)] * 3, [(50, 80), (80, 50), (30, 30), (50, 80)]])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_reused_buffers_give_what_new_ones_give(sizes, channels):
    reused = preprocessor(64, 96)
    for height, width in sizes:
        frame = RNG.integers(0, 256, (height, width, channels), dtype=np.uint8)
        fresh, out = preprocessor(64, 96), np.full((3, 64, 96), np.nan, np.float32)
        assert reused(frame) == fresh(frame) == reused(frame, out=out)
        np.testing.assert_array_equal(reused.tensor, fresh.tensor)
        np.testing.assert_array_equal(out, fresh.tensor[0])


@pytest.mark.parametrize("size", [(64, 96), (96, 64), (50, 80)], ids=["rows", "columns", "none"])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("color", ["bgr", "rgb"])
def test_layouts_and_dtypes_hold_the_same_pixels(size, channels, color):
    frame = RNG.integers(0, 256, (50, 80, channels), dtype=np.uint8)
    reference = preprocessor(*size)
    reference(frame, color)
    for layout, axes in (("NCHW", (0, 1, 2, 3)), ("NHWC", (0, 2, 3, 1))):
        expected = reference.tensor.transpose(axes)
        for dtype, scale, zero in (
            ("float32", 1 / 255, 0),
            ("float16", 1 / 255, 0),
            ("uint8", 1.0, 0),
            ("int8", 1.0, -128),
        ):
            other = preprocessor(*size, layout=layout, dtype=dtype, scale=scale, zero_point=zero)
            out = np.zeros(expected.shape[1:], dtype)
            other(frame, color)
            other(frame, color, out)
            values = np.rint(expected * 255) + zero if scale == 1 else expected
            np.testing.assert_array_equal(other.tensor, values.astype(dtype), strict=True)
            np.testing.assert_array_equal(out, other.tensor[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "NC/32HW"}, "is float32 NC/32HW, expected float32, float16, uint8, int8 and"),
        ({"dtype": "int16"}, "input is int16 NCHW, expected"),
        ({"dtype": "uint8"}, r"input is uint8 with scale .*0\.0039.*, expected \(1.0, 0\)"),
        ({"dtype": "int8", "scale": 1.0}, r"int8 with .*\(1.0, 0\), expected \(1.0, -128\)"),
        ({"zero_point": 1}, r"input is float32 with .*, expected \(0\.0039.*, 0\)"),
    ],
)
def test_unsupported_inputs_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        preprocessor(64, 96, **options)


def test_own_tensor_survives_a_batch_in_between():
    preprocess, out = preprocessor(64, 96), np.empty((3, 64, 96), np.float32)
    preprocess(FRAME)
    before = preprocess.tensor.copy()
    preprocess(FRAME[:10], out=out)
    preprocess(FRAME)
    np.testing.assert_array_equal(preprocess.tensor, before)


@pytest.mark.parametrize(
    "frame",
    [
        FRAME[::-1, ::-1],
        FRAME[5:45, 7:70],
        np.asfortranarray(FRAME),
        np.broadcast_to(FRAME[:1], (40, 80, 3)),
        FRAME[:1, :1],
        RNG.integers(0, 256, (20000, 3, 3), dtype=np.uint8),
        RNG.integers(0, 256, (3, 40000, 3), dtype=np.uint8),
    ],
    ids=["flipped", "crop", "Fortran", "broadcast", "1x1", "20000x3", "3x40000"],
)
def test_unusual_valid_images(frame):
    preprocess = preprocessor(64, 96)
    geometry = preprocess(frame)
    expected = cv2.resize(
        frame.copy(order="C"), geometry.resized_hw[::-1], interpolation=cv2.INTER_LINEAR
    )
    inner = pixels(preprocess.tensor[0])[
        geometry.top : 64 - geometry.bottom, geometry.left : 96 - geometry.right
    ]
    np.testing.assert_array_equal(inner, expected)


def test_read_only_image_is_accepted():
    frame = FRAME.copy()
    frame.flags.writeable = False
    preprocess = preprocessor(64, 96)
    preprocess(frame)
    np.testing.assert_array_equal(frame, FRAME)


def test_grey_and_alpha_are_converted():
    preprocess = preprocessor(64, 96)
    grey = FRAME[..., 0]
    preprocess(np.repeat(grey[..., None], 3, 2))
    expected = preprocess.tensor.copy()
    for frame in (grey, grey[..., None]):
        preprocess(frame)
        np.testing.assert_array_equal(preprocess.tensor, expected)
    preprocess(FRAME)
    expected = preprocess.tensor.copy()
    alpha = np.dstack([FRAME, RNG.integers(0, 256, FRAME.shape[:2], dtype=np.uint8)])
    preprocess(alpha)
    np.testing.assert_array_equal(preprocess.tensor, expected)
    preprocess(alpha[..., [2, 1, 0, 3]], "rgb")
    np.testing.assert_array_equal(preprocess.tensor, expected)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (None, "numpy array, not NoneType"),
        ([[1, 2, 3]], "numpy array, not list"),
        ("a.jpg", "numpy array, not str"),
        (FRAME.astype(np.float32) / 255, r"not float32: use \(frame \* 255\)\.astype"),
        (FRAME.astype(np.uint16), r"not uint16: use frame\.astype\(np\.uint8\)"),
        (FRAME > 3, "not bool"),
        (FRAME[:0], r"must not be empty; got shape \(0, 80, 3\)"),
        (FRAME[:, :0], "must not be empty"),
        (FRAME[..., :2], r"got \(50, 80, 2\)"),
        (FRAME[None], r"got \(1, 50, 80, 3\): pass one image at a time"),
        (FRAME.transpose(2, 0, 1), r"got \(3, 50, 80\): move the channels .*transpose\(1, 2, 0\)"),
        (FRAME[0, 0], r"got \(3,\)"),
    ],
)
def test_invalid_images_are_refused(frame, message):
    with pytest.raises(DataError, match=message) as caught:
        check_frame(frame)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("scale", [1 / 255, 1.0, 0.017])
def test_half_precision_input_is_the_rounded_quotient(layout, scale):
    frame = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    process = preprocessor(32, 16, layout=layout, dtype="float16", scale=scale)
    process(frame)
    tensor = process.tensor[0] if layout == "NCHW" else process.tensor[0].transpose(2, 0, 1)
    expected = (frame[..., 0] / np.float32(1 / scale)).astype(np.float16)
    np.testing.assert_array_equal(tensor[:, 8:24], np.stack([expected] * 3))


def test_nv12_is_converted_by_bt601_with_limited_range():
    # Luma and chroma (Cb, Cr) of the colour bars of ITU-R BT.601 at 100 %, and their BGR colours.
    bars = {
        (16, 128, 128): (0, 0, 0),
        (235, 128, 128): (255, 255, 255),
        (81, 90, 240): (0, 0, 255),
        (145, 54, 34): (0, 255, 0),
        (41, 240, 110): (255, 0, 0),
        (210, 16, 146): (0, 255, 255),
    }
    for (luma, cb, cr), bgr in bars.items():
        frame = np.full((9, 4), luma, np.uint8)
        frame[6:] = (cb, cr) * 2
        image = nv12_to_bgr(frame)
        assert image.shape == (6, 4, 3)
        assert np.abs(image.astype(int) - bgr).max() <= 2, bgr


def test_nv12_with_padded_rows():
    frame = RNG.integers(0, 256, (6, 1280), dtype=np.uint8)
    expected = nv12_to_bgr(np.ascontiguousarray(frame[:, :1278]))
    np.testing.assert_array_equal(nv12_to_bgr(frame, 1278), expected)
    np.testing.assert_array_equal(nv12_to_bgr(frame[:, :1278]), expected)
    # OpenCV converts an unpadded frame of one array.
    np.testing.assert_array_equal(cv2.cvtColor(frame, cv2.COLOR_YUV2BGR_NV12), nv12_to_bgr(frame))


@pytest.mark.parametrize(
    ("frame", "width"),
    [
        (np.zeros((6, 4, 1), np.uint8), None),
        (np.zeros((6, 4), np.float32), None),
        ([[0, 0]] * 3, None),
        (np.zeros((4, 4), np.uint8), None),
        (np.zeros((0, 4), np.uint8), None),
        (np.zeros((6, 5), np.uint8), None),
        (np.zeros((6, 4), np.uint8), 6),
        (np.zeros((6, 4), np.uint8), 0),
    ],
)
def test_invalid_nv12_is_refused(frame, width):
    with pytest.raises(DataError, match="NV12 image"):
        nv12_to_bgr(frame, width)


@pytest.mark.parametrize(
    ("given", "advice"),
    [(None, "cv2.imread returns None"), ("a.jpg", "cv2.imread"), ([[0]], "batch()")],
)
def test_advice_about_what_is_not_an_image(given, advice):
    with pytest.raises(DataError, match=re.escape(advice)):
        check_frame(given)
