"""Kernels and sessions on an NVIDIA GPU, with pycuda and cuda-python; without a GPU, all skipped.

TensorRT is that of ``fake_cuda``, but its network runs in torch, on the stream and in the memory of
the session. The reference is numpy.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import threading
from contextlib import nullcontext
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.fake_model import make_manifest
from tests.runtimes import fake_cuda
from tests.runtimes.test_cuda_kernels import INPUTS, head_manifest, post_of, random_heads
from tests.runtimes.test_trt import build
from tests.runtimes.test_trt_frames import SHAPES, assert_equal, image
from y7edge.boxes import MAX_CANDIDATES
from y7edge.data.synthetic import scenes
from y7edge.detect.detector import Detector
from y7edge.detect.postprocess import Criteria
from y7edge.detect.preprocess import Preprocessor, as_image, place
from y7edge.errors import DataError, DeviceError
from y7edge.runtimes import _cuda, _cuda_frames, _trt_engine
from y7edge.runtimes._cuda_kernels import Selection

DEMO = Path(__file__).parents[1] / "reference" / "demo.safetensors"


def missing() -> str:
    """Why the tests cannot run; empty if they can."""
    absent = [name for name in ("pycuda", "cuda", "torch") if find_spec(name) is None]
    if absent:
        return f"{', '.join(absent)} not installed"
    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "NVIDIA's driver is not installed"
    failed = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    return "" if not failed and count.value else "there is no NVIDIA GPU"


pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())


class Torch:
    """What the network needs of torch: tensors on the GPU, and the session's stream."""

    def __init__(self):
        import torch

        self.module, self.made = torch, {}

    def tensor(self, address, shape, dtype):
        """Return the tensor at an address; the same object for the same arguments."""
        key = (address, shape, dtype)
        if key not in self.made:
            interface = {
                **{"shape": shape, "typestr": np.dtype(dtype).str, "data": (address, False)},
                **{"version": 3, "strides": None},
            }
            owner = SimpleNamespace(__cuda_array_interface__=interface)
            self.made[key] = self.module.as_tensor(owner, device="cuda")
        return self.made[key]

    def on(self, handle):
        """Run the following work on a stream."""
        return self.module.cuda.stream(self.module.cuda.ExternalStream(handle))

    def cuda(self, pixels):
        """Return a copy of an array on the GPU."""
        return self.module.from_numpy(np.ascontiguousarray(pixels)).cuda()

    def free(self):
        """Return the bytes that are free on the GPU, without those that torch keeps."""
        self.made.clear()
        gc.collect()
        self.module.cuda.empty_cache()
        return self.module.cuda.mem_get_info()[0]


@pytest.fixture(scope="module")
def torch():
    return Torch()


class Machine(fake_cuda.Machine):
    """TensorRT on the GPU of this machine; ``compute`` is its network, from images to heads."""

    stack = property(lambda self: [1] if _cuda.load_driver().Context.get_current() else [])
    inside = lambda self, address, size: True  # noqa: E731

    def __init__(self, torch):
        gpu = _cuda.open_gpu(0)
        super().__init__(capability=gpu.capability, name=gpu.name, enqueue=self.run)
        self.torch, self.compute = torch, None

    def run(self, handle, places):
        torch = self.torch
        tensors = {name: torch.tensor(*found) for name, found in places.items()}
        images = tensors.pop("images")
        with torch.on(handle), torch.module.inference_mode():
            for target, head in zip(tensors.values(), self.compute(images), strict=True):
                target.copy_(head)


@pytest.fixture
def machine(monkeypatch, torch):
    made = Machine(torch)
    tensorrt = fake_cuda._tensorrt(made)
    tensorrt.__spec__ = ModuleSpec("tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt)
    _trt_engine.logger.cache_clear()
    made.compute = lively
    yield made
    gc.collect()
    assert not made.alive
    assert not made.problems


def lively(images):
    """The network of ``test_trt_frames``, in torch."""
    heads = []
    count, _, height, width = images.shape
    for side in (8, 16):
        cells = images.reshape(count, 3, height // side, side, width // side, side)
        red, green, blue = cells.mean(dim=(3, 5)).unbind(1)
        corner = 2 * cells[:, 1, :, 0, :, 0]
        fields = (red, green, blue, (red + green + blue) / 3, corner, red, green, blue)
        heads.append(images.new_empty((count, 8, height // side, width // side)))
        for index, field in enumerate(fields):
            heads[-1][:, index] = 6 * field - 3
    return heads


def pair(machine, artifact, **options):
    """The same engine with pre-processing on the GPU, and by numpy."""
    fast = Detector(artifact.path, **options)
    slow = Detector(artifact.path, provider_options={"kernels": False}, **options)
    assert fast.info["frames"] == "cuda:0"
    assert slow.session.on_device is None
    return fast, slow


# --- kernels -------------------------------------------------------------------------------------


class Kernels:
    """``FrameKernels`` with the tensors of a session, but without a network."""

    def __init__(self, manifest, images=1):
        self.gpu = _cuda.open_gpu(0)
        self.manifest, self.memory = manifest, _cuda.Memory(self.gpu)
        with self.gpu.current():
            self.memory.open_stream()
            ports = (manifest.input, *manifest.outputs)
            self.buffers = [
                self.memory.buffer((images, *port.shape[1:]), port.dtype, output=number > 0)
                for number, port in enumerate(ports)
            ]
            self.frames = _cuda_frames.FrameKernels(self.gpu, self.memory, manifest, self.buffers)

    def letterbox(self, pixels, color):
        """Return the network's input for an image in host memory or on the GPU."""
        network, buffer = self.manifest.input, self.buffers[0]
        placed, _ = place(*as_image(pixels, color, network, host=False, cut=False), network)
        with self.gpu.current():
            buffer.host.fill(77)
            buffer.upload(self.memory)
            self.frames.letterbox([placed])
            buffer.download(self.memory)
            self.memory.stream.synchronize()
        return buffer.host[0]

    def select(self, heads, conf, count):
        """Return what is selected from heads."""
        with self.gpu.current():
            for buffer, head in zip(self.buffers[1:], heads, strict=True):
                buffer.host[:] = head
                buffer.upload(self.memory)
            return self.frames.select(conf, count)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with self.gpu.current():
            self.memory.free()


@pytest.mark.parametrize("network", INPUTS, ids=lambda n: f"{n.layout} {n.color} {n.dtype}")
@pytest.mark.parametrize("where", ["host", "gpu"])
def test_letterbox_equals_numpy(torch, network, where):
    rng = np.random.default_rng(INPUTS.index(network))
    manifest = make_manifest(size=(network.height, network.width), input=network)
    preprocess = Preprocessor(network)
    with Kernels(manifest) as kernels:
        for number in range(24):
            height, width = (int(side) for side in rng.integers(2, 260, 2))
            if number < 4:
                height, width = ((64, 96), (128, 192), (32, 48), (2, 250))[number]
            channels, color = (1, 3, 4)[number % 3], ("bgr", "rgb")[number // 3 % 2]
            pixels = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
            if number % 4 == 3:
                color = "nv12"
                rows, columns = height + height % 2, width + width % 2
                pixels = rng.integers(0, 256, (rows * 3 // 2, columns), dtype=np.uint8)
            host = as_image(pixels, color, network, host=True, cut=False)
            preprocess(*host)
            if where == "gpu":
                padded = np.zeros((len(pixels), pixels.shape[1] + 5, *pixels.shape[2:]), np.uint8)
                padded[:, : pixels.shape[1]] = pixels
                pixels = torch.cuda(padded)[:, : pixels.shape[1]]
            found = kernels.letterbox(pixels, color)
            np.testing.assert_array_equal(found, preprocess.tensor[0])


@pytest.mark.parametrize("distinct", [None, 5], ids=["", "ties"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("activation", ["logit", "sigmoid"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "uint8"])
def test_selection_equals_numpy(dtype, activation, layout, distinct):
    rng = np.random.default_rng(3)
    for nc, conf in ((1, 0.6), (4, 0.25), (80, 0.3), (4, 1.0)):
        manifest = head_manifest(nc, dtype=dtype, activation=activation, layout=layout)
        heads = random_heads(manifest, rng, distinct)
        criteria = Criteria(conf=conf, max_det=MAX_CANDIDATES)
        with Kernels(manifest, images=2) as kernels:
            found = kernels.select(heads, conf, 2)
        if layout == "NHWC":
            heads = [np.moveaxis(head, -1, 1) for head in heads]
        for index, (xyxy, score, class_id) in enumerate(found):
            expected = post_of(manifest).candidates([head[index] for head in heads], criteria)
            np.testing.assert_array_equal(class_id, expected.class_id)
            np.testing.assert_allclose(score, expected.score, rtol=1e-6)
            np.testing.assert_allclose(xyxy, expected.xyxy, rtol=1e-5, atol=1e-4)
        assert conf == 1.0 or sum(len(one[1]) for one in found) > 50


def test_not_a_number_and_a_full_buffer(monkeypatch):
    manifest = head_manifest(batch=1)
    heads = random_heads(manifest, np.random.default_rng(7))
    with Kernels(manifest) as kernels:
        count = len(kernels.select(heads, 0.25, 1)[0][1])
        heads[0].reshape(3, 9, -1)[1, 4, 7] = np.nan
        with pytest.raises(DeviceError, match="NaN in 1 values of objectness"):
            kernels.select(heads, 0.25, 1)
    heads[0][np.isnan(heads[0])] = -9
    made = _cuda_frames.kernels.Selection
    for room in (count, count - 2):
        monkeypatch.setattr(_cuda_frames.kernels, "Selection", lambda m, n=room: made(m, n))
        with Kernels(manifest) as kernels:
            found = kernels.select(heads, 0.25, 1)
        assert (found is None) == (room < count - 1), room
    assert made is Selection


# --- sessions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2, "dynamic"])
@pytest.mark.parametrize("options", [{}, {"cuda_graph": False}], ids=str)
def test_images_in_host_memory(machine, tmp_path, batch, options):
    artifact = build(tmp_path, machine=machine, manifest=make_manifest(batch))
    fast, slow = (
        Detector(artifact.path, provider_options={**options, "kernels": kernels})
        for kernels in (True, False)
    )
    with fast, slow:
        graph = batch != "dynamic" and not options
        assert (fast.info["execution"] == "CUDA graph") == graph, fast.info
        for seed, shape in enumerate(SHAPES):
            pixels = image(*shape, seed=seed)
            assert_equal(fast(pixels), slow(pixels))
        several = [image(seed=seed) for seed in range(5)]
        for found, pixels in zip(fast.batch(several), several, strict=True):
            assert_equal(found, slow(pixels))
        assert_equal(fast.detect_for_evaluation(several[0]), slow.detect_for_evaluation(several[0]))


def test_images_of_torch_and_cupy(machine, torch, tmp_path):
    libraries = [torch.cuda]
    if find_spec("cupy"):
        import cupy

        libraries.append(cupy.asarray)
    fast, slow = pair(machine, build(tmp_path, machine=machine), conf=0.1)
    with fast, slow:
        for shape in SHAPES:
            pixels = image(*shape)
            for to_gpu in libraries:
                assert_equal(fast(to_gpu(pixels), "rgb"), slow(pixels, "rgb"))
        pixels = image(128, 192)
        array, part = torch.cuda(pixels), (16, 8, 112, 72)
        assert _cuda.device_of(array.data_ptr()) == 0
        assert _cuda.device_of(pixels.ctypes.data) is None
        assert_equal(fast(array, roi=part), slow(pixels, roi=part))
        bad = SimpleNamespace(
            __cuda_array_interface__={
                **{"shape": (64, 96, 3), "typestr": "|u1", "data": (4096, False), "version": 3},
                "stream": None,
            }
        )
        with pytest.raises(DataError, match="not in the memory of a GPU"):
            fast(bad)
        assert_equal(fast(pixels), slow(pixels))


@pytest.mark.parametrize("stream", ["default", "own"])
def test_a_frame_that_is_still_being_written(machine, torch, tmp_path, stream):
    """The session waits for the work that writes the image."""
    fast, slow = pair(machine, build(tmp_path, machine=machine))
    pixels, module = image(seed=5), torch.module
    frame, source = torch.cuda(np.zeros_like(pixels)), torch.cuda(pixels)
    busy = module.ones((4096, 4096), device="cuda")
    other = module.cuda.Stream() if stream == "own" else None
    with fast, slow:
        expected = slow(pixels)
        for _ in range(3):
            frame.zero_()
            module.cuda.synchronize()
            with module.cuda.stream(other) if other else nullcontext():
                for _ in range(40):
                    busy = busy @ busy * 1e-4
                frame.copy_(source)
            assert_equal(fast(frame), expected)


def test_a_detector_in_threads(machine, torch, tmp_path):
    fast, slow = pair(machine, build(tmp_path, machine=machine))
    problems = []

    def use(seed):
        try:
            for number in range(10):
                pixels = image(seed=seed + number)
                assert_equal(fast(pixels), slow(pixels))
        except BaseException as error:
            problems.append(error)

    with fast, slow:
        threads = [threading.Thread(target=use, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not problems, problems


def test_closed_sessions_leave_no_memory(machine, torch, tmp_path):
    """Other programs may use the GPU too, but not more and more."""
    manifest = make_manifest(8, size=(640, 640))
    artifact, least = build(tmp_path, machine=machine, manifest=manifest), 39 << 20
    with Detector(artifact.path) as detector:
        detector(image(320, 320))
    before = torch.free()
    for _ in range(20):
        with Detector(artifact.path) as detector:
            detector(image(320, 320))
    assert before - torch.free() < 10 * least


def test_a_forked_process_is_refused(machine, tmp_path):
    artifact = build(tmp_path, machine=machine)
    with Detector(artifact.path) as detector:
        detector(image())
        child = os.fork()
        if not child:
            code = 1
            try:
                Detector(artifact.path)
            except DeviceError as error:
                code = 7 if "spawn" in str(error) else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert len(detector(image()))


@pytest.mark.parametrize("graph", [True, False])
def test_a_trained_model_finds_the_same_objects(machine, torch, tmp_path, graph):
    """The convolutions run in cuDNN, inside the CUDA graph of the session."""
    from y7edge.export import export
    from y7edge.models import weights
    from y7edge.nn.build import from_checkpoint

    checkpoint = weights.load(DEMO)
    artifact = export(checkpoint, tmp_path / "demo.onnx", imgsz=160)
    model = from_checkpoint(checkpoint).cuda()
    torch.module.backends.cudnn.allow_tf32 = False
    machine.compute = model.heads
    built = build(tmp_path, machine=machine, manifest=artifact.manifest)
    options = {"cuda_graph": graph}
    total = 0
    with (
        Detector(artifact.path, conf=0.1) as reference,
        Detector(built.path, conf=0.1, provider_options=options) as detector,
    ):
        assert (detector.info["execution"] == "CUDA graph") == graph, detector.info
        for seed in range(20):
            pixels = scenes.scene(seed, (240, 318)).image
            found, expected = detector(pixels), reference(pixels)
            assert len(found) == len(expected)
            np.testing.assert_array_equal(found.class_id, expected.class_id)
            np.testing.assert_allclose(found.confidence, expected.confidence, atol=2e-4)
            np.testing.assert_allclose(found.xyxy, expected.xyxy, atol=0.02)
            assert_equal(detector(torch.cuda(pixels)), found)
            total += len(expected)
    assert total > 60
