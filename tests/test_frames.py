"""Images on a GPU, as other libraries describe them."""

from __future__ import annotations

import numpy as np
import pytest

from tests.fake_model import FakeSession, make_manifest
from y7edge.detect.detector import Detector
from y7edge.detect.preprocess import place
from y7edge.errors import DataError
from y7edge.frames import CudaFrame, cuda_frame


class OnGpu:
    """An array of another library; ``changes`` to the interface, None: without the entry."""

    def __init__(self, shape=(20, 30, 3), address=1 << 20, strides=None, **changes):
        interface = {
            "shape": shape,
            "typestr": "|u1",
            "data": (address, False),
            "strides": strides,
            "version": 3,
            **changes,
        }
        self.__cuda_array_interface__ = {k: v for k, v in interface.items() if v != "absent"}
        self.shape = shape


def test_what_is_not_on_a_gpu_is_none():
    for thing in (np.zeros((3, 3, 3), np.uint8), None, "frame", [1], 3):
        assert cuda_frame(thing) is None


def test_an_image():
    frame = OnGpu()
    found = cuda_frame(frame)
    assert (found.shape, found.address, found.stride) == ((20, 30, 3), 1 << 20, 90)
    assert found.owner is frame
    assert found.stream == -1  # the interface does not name one
    assert found.nbytes == 20 * 90


@pytest.mark.parametrize(("stream", "found"), [(None, None), (1, 1), (2, 2), (140001, 140001)])
def test_streams(stream, found):
    assert cuda_frame(OnGpu(stream=stream)).stream == found


def test_padded_rows_and_grey_images():
    padded = cuda_frame(OnGpu(strides=(128, 3, 1)))
    assert (padded.stride, padded.nbytes) == (128, 19 * 128 + 90)
    assert cuda_frame(OnGpu(shape=(20, 30))).stride == 30
    assert cuda_frame(OnGpu(shape=(20, 30), strides=(32, 1))).stride == 32
    assert cuda_frame(OnGpu(shape=(20, 30, 4))).stride == 120
    assert cuda_frame(OnGpu(shape=(20, 30, 1))).stride == 30


def test_a_part_is_that_of_numpy():
    pixels = np.zeros((20, 32, 3), np.uint8)[:, :30]
    frame = cuda_frame(OnGpu(pixels.shape, pixels.ctypes.data, pixels.strides))
    part, expected = frame[4:9, 3:1000], pixels[4:9, 3:1000]
    assert part.shape == expected.shape
    assert part.address == expected.ctypes.data
    assert part.stride == expected.strides[0]
    assert part.owner is frame.owner


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"typestr": "<f4"}, "must be uint8 without a mask, found '<f4'"),
        ({"typestr": "|i1"}, "must be uint8"),
        ({"mask": object()}, "without a mask"),
        ({"shape": (3, 20, 30)}, r"must have shape .* got \(3, 20, 30\): permute"),
        ({"shape": (1, 20, 30, 3)}, "one image at a time"),
        ({"shape": (0, 30, 3)}, "expected 1 to"),
        ({"shape": (1 << 16, 1 << 16, 3)}, "expected 1 to"),
        ({"address": 0}, "expected 1 to"),
        ({"shape": (1 << 32, 1 << 32)}, "expected 1 to"),  # 0 bytes in 64 bits
        ({"address": -4096}, "expected an address of 64 bits"),
        ({"address": (1 << 64) + 4096}, "expected an address of 64 bits"),
        ({"address": (1 << 63) - 20 * 90 + 1}, "expected an address of 64 bits"),
        ({"strides": (1 << 62, 3, 1)}, "expected an address of 64 bits"),
        ({"strides": (90, 1, 30)}, r"has strides \(90, 1, 30\), expected contiguous rows"),
        ({"strides": (60, 3, 1)}, "expected contiguous rows"),
        ({"strides": (-90, 3, 1)}, "expected contiguous rows"),
        ({"strides": (90, 1)}, "expected contiguous rows"),
        ({"data": "absent"}, "is not valid"),
        ({"data": None}, "is not valid"),
        ({"shape": "abc"}, "is not valid"),
        ({"stream": "x"}, "is not valid"),
        ({"strides": 7}, "is not valid"),
    ],
)
def test_what_is_not_an_image(changes, problem):
    with pytest.raises(DataError, match=problem) as caught:
        cuda_frame(OnGpu(**changes))
    assert "\n" not in str(caught.value)


class NotAnArray:
    dtype, shape = np.dtype(np.uint8), (96, 96)


@pytest.mark.parametrize(
    ("frame", "problem"),
    [
        (NotAnArray(), "must be a uint8 array, not NotAnArray"),
        (np.zeros((6, 8), np.int8), "must be a uint8 array, not int8"),
        (np.broadcast_to(np.uint8(1), (3 << 16, 1 << 16)), "more than 1073741824 values"),
    ],
)
def test_what_is_not_an_nv12_image_for_a_session_on_a_gpu(frame, problem):
    with pytest.raises(DataError, match=problem):
        place(frame, "nv12", make_manifest().input)


def test_an_interface_that_is_no_dictionary():
    frame = OnGpu()
    frame.__cuda_array_interface__ = 3
    with pytest.raises(DataError, match="is not valid"):
        cuda_frame(frame)


@pytest.mark.parametrize("call", ["call", "batch", "roi", "submit", "nv12"])
def test_a_session_on_the_cpu_refuses_it(call):
    detector = Detector.from_session(FakeSession(make_manifest()), make_manifest())
    calls = {
        "call": lambda: detector(OnGpu()),
        "batch": lambda: detector.batch([OnGpu()]),
        "roi": lambda: detector(OnGpu(), roi=(0, 0, 8, 8)),
        "submit": lambda: detector.submit(OnGpu()).result(30),
        "nv12": lambda: detector(OnGpu(shape=(30, 20)), "nv12"),
    }
    with pytest.raises(DataError, match=r"in the memory of a GPU .*needs a session that pre-proc"):
        calls[call]()


def test_nv12_on_the_cpu_is_converted(monkeypatch):
    """The result is that of the BGR image, in pixels of the image."""
    rng = np.random.default_rng(0)
    padded = rng.integers(0, 256, (96, 100), np.uint8)
    padded[8:16, 16:24], padded[68:72, 16:24] = 255, 128
    frame = padded[:, :96]
    from y7edge.detect.preprocess import nv12_to_bgr

    detector = Detector.from_session(FakeSession(make_manifest()), make_manifest())
    found, expected = detector(frame, "nv12"), detector(nv12_to_bgr(np.ascontiguousarray(frame)))
    assert found.image_wh == expected.image_wh == (96, 64)
    assert len(found) == 1
    np.testing.assert_array_equal(found.xyxy, expected.xyxy)
    np.testing.assert_array_equal(
        detector(frame, "nv12", roi=(8, 0, 96, 64)).xyxy,
        detector(nv12_to_bgr(frame), roi=(8, 0, 96, 64)).xyxy,
    )
    assert isinstance(cuda_frame(OnGpu()), CudaFrame)


@pytest.mark.parametrize("shape", [(95, 96), (96, 95), (96, 96, 3), (0, 96)])
def test_what_is_not_nv12(shape):
    detector = Detector.from_session(FakeSession(make_manifest()), make_manifest())
    with pytest.raises(DataError, match="NV12"):
        detector(np.zeros(shape, np.uint8), "nv12")
    with pytest.raises(DataError, match="NV12"):
        detector.submit(np.zeros(shape, np.uint8), "nv12")
