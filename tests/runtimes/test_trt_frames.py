"""Images that a TensorRT session pre-processes and whose candidates it selects on its GPU.

The kernels are those of the package, compiled for the CPU; the reference is numpy.
"""

from __future__ import annotations

import ctypes
import gc
import warnings

import numpy as np
import pytest

from tests.fake_model import make_manifest
from tests.runtimes.cuda_on_cpu.machine import Machine as Compiled
from tests.runtimes.cuda_on_cpu.machine import needs_compiler
from tests.runtimes.fake_cuda import Machine
from tests.runtimes.test_trt import JETSONS, build, equipped
from y7edge.detect.detector import Detector
from y7edge.errors import DataError, DetectorClosed, DeviceError
from y7edge.frames import Frame
from y7edge.runtimes import _cuda_frames
from y7edge.runtimes._cuda_kernels import Launch, Selection

pytestmark = needs_compiler


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    return Compiled(tmp_path_factory.mktemp("kernels"))


@pytest.fixture
def machine(monkeypatch, compiled):
    made = Machine(launch=lambda *launch: compiled.run(Launch(*launch)))
    made.install(monkeypatch)
    yield made
    gc.collect()
    assert made.left() == []


class Array:
    """An array of another library in the memory of the GPU."""

    def __init__(self, machine, pixels, **entries):
        whole = pixels if pixels.base is None or pixels.flags.c_contiguous else pixels.base
        self.machine, self.address = machine, machine.allocate(whole.nbytes, "an array")
        ctypes.memmove(self.address, np.ascontiguousarray(whole).ctypes.data, whole.nbytes)
        self.__cuda_array_interface__ = {
            "shape": pixels.shape,
            "typestr": pixels.dtype.str,
            "strides": pixels.strides,
            "data": (self.address, True),
            "version": 3,
            **entries,
        }

    def free(self):
        del self.machine.alive[self.address], self.machine.memory[self.address]


def lively(images):
    """Return heads whose values all depend on the pixels, with many candidates."""
    heads = {}
    for level, side in enumerate((8, 16)):
        count, _, height, width = images.shape
        cells = images.reshape(count, 3, height // side, side, width // side, side)
        red, green, blue = np.moveaxis(cells.mean(axis=(3, 5)), 1, 0)
        grey = (red + green + blue) / 3
        fields = (red, green, blue, grey, 2 * cells[:, 1, :, 0, :, 0], red, green, blue)
        heads[f"head{level}"] = np.stack([6 * field - 3 for field in fields], axis=1)
    return heads


def image(height=64, width=96, channels=3, seed=0):
    """White cells on noise."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 250, (height, width, channels), np.uint8)
    for row, column in rng.integers(0, (height // 8, width // 8), (6, 2)):
        pixels[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 255
    return pixels if channels > 1 else pixels[:, :, 0]


def pair(machine, artifact, **options):
    """The same engine with pre-processing on the GPU, and by numpy."""
    if artifact.manifest.outputs[0].role == "head":
        machine.network = lively
    fast = Detector(artifact.path, **options)
    slow = Detector(artifact.path, provider_options={"kernels": False}, **options)
    assert fast.info["frames"] == "cuda:0"
    assert slow.session.on_device is None
    return fast, slow


def assert_equal(found, expected):
    assert len(found)
    assert found.image_wh == expected.image_wh
    np.testing.assert_allclose(found.xyxy, expected.xyxy, rtol=0, atol=1e-3)
    np.testing.assert_allclose(found.confidence, expected.confidence, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(found.class_id, expected.class_id)


SHAPES = [(64, 96, 3), (64, 96, 1), (64, 96, 4), (128, 192, 3), (61, 50, 3), (320, 640, 4)]


@pytest.mark.parametrize("kind", JETSONS)
def test_images_in_host_memory(machine, monkeypatch, tmp_path, kind):
    equipped(machine, monkeypatch, **JETSONS[kind])
    fast, slow = pair(machine, build(tmp_path, machine=machine))
    with fast, slow:
        for seed, shape in enumerate(SHAPES):
            for color in ("bgr", "rgb"):
                pixels = image(*shape, seed=seed)
                assert_equal(fast(pixels, color), slow(pixels, color))
        view = image(80, 120)[8:72, 12:108]
        assert_equal(fast(view), slow(view))
        fast.warmup()


def test_an_integrated_gpu_reads_an_image_where_the_cpu_wrote_it(machine, monkeypatch, tmp_path):
    """The network's tensors, which are read often, are in memory of the GPU."""
    copies = {}
    for kind, equipment in JETSONS.items():
        equipped(machine, monkeypatch, **{"integrated": False, **equipment})
        with Detector(build(tmp_path, kind, machine=machine).path) as detector:
            detector(image())
            machine.calls.clear()
            detector(image(seed=1))
            copies[kind] = [call for call in machine.calls if call.startswith("memcpy")]
            kinds = list(machine.alive.values())
            mapped = kinds.count("mapped memory")
            assert (kind, mapped) in (("PC", 0), ("Orin", 2), ("Nano", 1))
    to, back = "memcpy_htod_async", "memcpy_dtoh_async"
    assert copies == {"PC": [to, back], "Orin": [], "Nano": [back]}


def test_images_on_the_gpu(machine, tmp_path):
    fast, slow = pair(machine, build(tmp_path, machine=machine), conf=0.1)
    with fast, slow:
        for shape in SHAPES:
            padded = np.zeros((shape[0], shape[1] + 8, shape[2]), np.uint8)
            padded[:, : shape[1]] = image(*shape).reshape(shape)
            pixels = padded[:, : shape[1]]
            array = Array(machine, pixels)
            machine.calls.clear()
            found = fast(array, "rgb")
            # Nothing but the table of the letterbox is copied to the GPU.
            assert machine.calls.count("memcpy_htod_async") <= 1
            assert_equal(found, slow(np.ascontiguousarray(pixels), "rgb"))
            array.free()


def test_regions_and_tiles_of_an_image_on_the_gpu(machine, tmp_path):
    artifact = build(tmp_path, machine=machine, manifest=make_manifest("dynamic"))
    pixels = image(128, 192)
    array = Array(machine, pixels)
    for options in ({}, {"tile": 64}):
        fast, slow = pair(machine, artifact, **options)
        with fast, slow:
            for roi in (None, (16, 8, 112, 72)):
                assert_equal(fast(array, roi=roi), slow(pixels, roi=roi))
    array.free()


def test_batches(machine, tmp_path):
    several = [image(seed=1), image(128, 192, seed=2), image(seed=3), image(48, 48), image(seed=4)]
    arrays = [Array(machine, pixels) for pixels in several[:2]]
    for batch in (2, "dynamic"):
        artifact = build(tmp_path, machine=machine, manifest=make_manifest(batch))
        fast, slow = pair(machine, artifact)
        with fast, slow:
            mixed = [*arrays, *several[2:]]
            for found, expected in zip(fast.batch(mixed), slow.batch(several), strict=True):
                assert_equal(found, expected)
            assert_equal(fast(several[0]), slow(several[0]))
    for array in arrays:
        array.free()


def test_nv12(machine, tmp_path):
    fast, slow = pair(machine, build(tmp_path, machine=machine))
    rng = np.random.default_rng(0)
    padded = rng.integers(0, 256, (96, 128), np.uint8)
    padded[8:16, 16:24], padded[68:72, 16:24] = 255, 128
    frame, array = padded[:, :96], Array(machine, padded[:, :96])
    with fast, slow:
        expected = slow(frame, "nv12")
        assert_equal(fast(frame, "nv12"), expected)
        assert_equal(fast(array, "nv12"), expected)
        assert_equal(fast.submit(frame, "nv12").result(30), expected)
        part = (8, 0, 96, 64)
        assert_equal(fast(frame, "nv12", roi=part), slow(frame, "nv12", roi=part))
        with pytest.raises(DataError, match="omit roi and tile"):
            fast(array, "nv12", roi=(8, 0, 96, 64))
    array.free()


def test_a_batch_of_frames_of_all_formats(machine, tmp_path):
    fast, slow = pair(machine, build(tmp_path, machine=machine, manifest=make_manifest("dynamic")))
    pixels, planes = image(64, 96, seed=3), np.full((96, 128), 128, np.uint8)
    planes[8:16, 16:24] = 255
    nv12, rgb = planes[:, :96], pixels[..., ::-1].copy()
    arrays = [Array(machine, nv12), Array(machine, rgb)]
    frames = [Frame(pixels, sequence=5), Frame(nv12, "nv12"), Frame(rgb, "rgb"), pixels]
    on_gpu = [Frame(arrays[0], "nv12"), Frame(arrays[1], "rgb")]
    with fast, slow:
        expected = slow.batch(frames)
        assert [len(one) > 0 for one in expected] == [True] * 4
        for found, one in zip(fast.batch(frames), expected, strict=True):
            assert_equal(found, one)
            assert found.frame_id == one.frame_id
        for found, one in zip(fast.batch(on_gpu), expected[1:3], strict=True):
            assert_equal(found, one)
    for array in arrays:
        array.free()


@pytest.mark.parametrize("outputs", ["heads", "decoded"])
def test_evaluation_and_decoded_outputs(machine, tmp_path, outputs):
    """Several classes per box, and decoded outputs, are selected by numpy."""
    fast, slow = pair(machine, build(tmp_path, machine=machine, manifest=make_manifest(1, outputs)))
    with fast, slow:
        pixels = image()
        assert_equal(fast.detect_for_evaluation(pixels), slow.detect_for_evaluation(pixels))
        assert_equal(fast(pixels), slow(pixels))


def test_thresholds_of_classes(machine, tmp_path):
    artifact = build(tmp_path, machine=machine)
    for options in ({"conf": {"washer": 0.99}}, {"classes": "nut"}, {"max_det": 1}):
        fast, slow = pair(machine, artifact, **options)
        with fast, slow:
            assert_equal(fast(image()), slow(image()))


def test_more_candidates_than_the_first_copy(machine, tmp_path):
    manifest = make_manifest(size=(256, 256))
    fast, slow = pair(
        machine, build(tmp_path, machine=machine, manifest=manifest), max_det=2000, iou=1.0
    )
    white = np.full((256, 256, 3), 255, np.uint8)
    with fast, slow:
        found = fast(white)
        assert len(found) == 1024 + 256
        assert_equal(found, slow(white))


def test_more_candidates_than_the_buffer_has(machine, monkeypatch, tmp_path):
    monkeypatch.setattr(_cuda_frames.kernels, "Selection", lambda m: Selection(m, capacity=3))
    artifact = build(tmp_path, machine=machine, manifest=make_manifest("dynamic"))
    fast, slow = pair(machine, artifact)
    with fast, slow:
        several = [np.full((64, 96, 3), 90, np.uint8), *(image(seed=seed) for seed in range(5))]
        found, expected = fast.batch(several), slow.batch(several)
        assert len(found[0]) == len(expected[0]) == 0
        for one, other in zip(found[1:], expected[1:], strict=True):
            assert_equal(one, other)
        assert len(fast(several[1])) > 3


def test_nan_is_an_error(machine, tmp_path):
    artifact = build(tmp_path, machine=machine)
    healthy = machine.network
    machine.network = lambda images: {k: v * np.float32("nan") for k, v in healthy(images).items()}
    with Detector(artifact.path) as detector, pytest.raises(DeviceError, match="returned NaN"):
        detector(image())


@pytest.mark.parametrize(
    ("entries", "calls"),
    [
        ({"stream": None}, []),
        ({"stream": 1}, ["record", "wait_for_event"]),
        ({"stream": 2}, ["Context.synchronize"]),
        ({"stream": 140001}, ["Context.synchronize"]),
        ({}, ["Context.synchronize"]),  # as of PyTorch
    ],
)
def test_the_stream_that_writes_an_image_is_waited_for(machine, tmp_path, entries, calls):
    array = Array(machine, image(), **entries)
    with Detector(build(tmp_path, machine=machine).path) as detector:
        detector(array)
        waits = {"record", "wait_for_event", "Context.synchronize"}
        assert [call for call in machine.calls if call in waits] == calls
        launched = machine.calls.index("launch letterbox")
        assert all(machine.calls.index(call) < launched for call in calls)
    array.free()


@pytest.mark.parametrize("end", [False, True])
def test_an_address_that_is_not_of_this_gpu(machine, tmp_path, end):
    machine.launch = None
    array = Array(machine, image())
    entries = array.__cuda_array_interface__
    if end:  # more rows than were allocated
        entries["shape"] = (1 << 20, 96, 3)
    else:
        entries["data"] = (64, True)
    with Detector(build(tmp_path, machine=machine).path) as detector:
        with pytest.raises(DataError, match="not in the memory of a GPU, expected cuda:0"):
            detector(array)
        assert "launch letterbox" not in machine.calls
        detector(image())
    array.free()


def test_kernels_that_the_driver_refuses(machine, tmp_path):
    """Then numpy does their work, and ``info`` says why."""
    machine.fail = {"module_from_buffer"}
    with Detector(build(tmp_path, machine=machine).path) as detector:
        assert detector.session.on_device is None
        assert detector.info["frames"].startswith("numpy (the driver refuses the kernels: module_")
        assert len(detector(image())) > 0


def test_memory_grows_with_the_images(machine, tmp_path):
    with Detector(build(tmp_path, machine=machine).path) as detector:
        detector(image())
        for side in (8, 20, 10):
            machine.calls.clear()
            detector(image(8 * side, 8 * side))
            assert machine.calls.count("pagelocked_empty") == (side == 20)


@pytest.mark.parametrize("kind", JETSONS)
def test_memory_is_not_replaced_while_a_failed_call_reads_it(machine, monkeypatch, tmp_path, kind):
    equipped(machine, monkeypatch, **JETSONS[kind])
    artifact = build(tmp_path, machine=machine)
    machine.network = lively
    with Detector(artifact.path) as detector:
        machine.fail = {"cuGraphLaunch"}
        with pytest.raises(DeviceError):
            detector(image())
        machine.fail = set()
        assert len(detector(image(320, 320)))
    assert machine.problems == []


def test_the_table_of_the_letterbox_is_copied_once(machine, tmp_path):
    with Detector(build(tmp_path, machine=machine).path) as detector:
        copies = []
        for shape in ((64, 96), (64, 96), (40, 40), (64, 96)):
            machine.calls.clear()
            detector(image(*shape))
            copies.append(machine.calls.count("memcpy_htod_async"))
    assert copies == [2, 1, 2, 2]


def test_a_closed_session(machine, tmp_path):
    detector = Detector(build(tmp_path, machine=machine).path)
    session = detector.session
    detector.close()
    with pytest.raises(DetectorClosed):
        session.run([], 0.25)


def _use(artifact, frames):
    with Detector(artifact.path) as detector:
        for frame in frames:
            detector(frame)


@pytest.mark.parametrize("kind", JETSONS)
def test_an_error_of_any_call_leaves_nothing_behind(machine, monkeypatch, tmp_path, kind):
    equipped(machine, monkeypatch, **JETSONS[kind])
    artifact = build(tmp_path, machine=machine)
    array = Array(machine, image(), stream=1)
    frames = [image(), image(80, 120), array]
    _use(artifact, frames)
    calls = list(machine.calls)
    ways_out = ("cuStreamBegin", "cuStreamEnd", "cuGraphInst", "cuGraphDestroy", "module_from")
    for number, call in enumerate(calls, start=1):
        equipped(machine, monkeypatch)
        machine.calls.clear()
        machine.fail_at = number
        if call.startswith(ways_out) or calls[number - 2] == "cuStreamBeginCapture":
            _use(artifact, frames[:2])
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                with pytest.raises(DeviceError, match=r"^[^\n]*(injected|CUDA_ERROR)[^\n]*$"):
                    _use(artifact, frames)
        machine.fail_at = None
        if machine.left() != ["an array"]:  # a session that could not be closed
            gc.collect()
        assert machine.left() == ["an array"], f"after an error of call {number}, {call}"
    array.free()
