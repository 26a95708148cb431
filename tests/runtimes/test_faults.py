"""Faults of engines and of their surroundings: a Detector raises an error of ours, or goes on."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from tests.runtimes.conftest import PROVABLE, unavailable
from y7edge import Detector, machine
from y7edge.benchmark.hotpath import OVERHEAD, measure_overhead
from y7edge.errors import DeviceError
from y7edge.export.targets import registry as targets
from y7edge.models import registry as models
from y7edge.runtimes import registry
from y7edge.runtimes.base import SessionOptions

FRAME = np.full((48, 64, 3), 90, np.uint8)


@pytest.fixture
def detector(made):
    with Detector(made.artifact.path, device="cpu", threads=1) as opened:
        yield opened


def change(detector, monkeypatch, function):
    """Replace what the engine returns."""
    session = detector.session
    real = session._run
    monkeypatch.setattr(session, "_run", lambda feeds: function(real(feeds)))


# --- the engine -----------------------------------------------------------------------------------


def test_nan_is_an_error_and_the_next_frame_runs(detector, monkeypatch):
    expected = detector(FRAME)
    with monkeypatch.context() as patch:
        change(detector, patch, lambda out: {k: np.full_like(v, np.nan) for k, v in out.items()})
        with pytest.raises(DeviceError, match="returned NaN"):
            detector(FRAME)
    np.testing.assert_array_equal(detector(FRAME).xyxy, expected.xyxy)


@pytest.mark.parametrize(
    "function",
    [
        lambda out: {},
        lambda out: {k: v[..., :-1] for k, v in out.items()},
        lambda out: {k: v.astype(np.float64) for k, v in out.items()},
        lambda out: {k: v[0] for k, v in out.items()},
    ],
    ids=["nothing", "shape", "dtype", "rank"],
)
def test_a_wrong_output_is_an_error(detector, monkeypatch, function):
    change(detector, monkeypatch, function)
    with pytest.raises(DeviceError, match=r"returned .* for output .*, expected float32"):
        detector(FRAME)


def test_an_exception_is_an_error_and_the_next_frame_runs(detector, monkeypatch):
    def fail(_):
        raise RuntimeError("no more")

    with monkeypatch.context() as patch:
        change(detector, patch, fail)
        with pytest.raises(DeviceError, match="no more"):
            detector(FRAME)
    assert detector(FRAME).image_wh == (64, 48)


def test_a_hang_ends_at_the_timeout(detector, monkeypatch):
    release = threading.Event()

    def wait(out):
        release.wait(30)
        return out

    with monkeypatch.context() as patch:
        change(detector, patch, wait)
        with pytest.raises(DeviceError, match="no result within"):
            detector(FRAME, timeout=0.2)
        release.set()
    assert detector(FRAME, timeout=30).image_wh == (64, 48)


def test_two_detectors_run_at_the_same_time(made, detector):
    expected = detector(FRAME)
    with Detector(made.artifact.path, device="cpu") as other:
        futures = [one.submit(FRAME) for _ in range(5) for one in (detector, other)]
        found = [future.result(60) for future in futures]
    for one in found:
        assert one.xyxy.shape == expected.xyxy.shape
        np.testing.assert_allclose(one.xyxy, expected.xyxy, atol=0.1)


# --- memory and files -----------------------------------------------------------------------------


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no /proc on this system")
@pytest.mark.parametrize(
    "count", [10, pytest.param(1000, marks=pytest.mark.slow)], ids=["10", "1000"]
)
def test_opening_and_closing_leaves_nothing(made, count):
    def use():
        with Detector(made.artifact.path, device="cpu", threads=1) as detector:
            detector(FRAME)

    for _ in range(20):
        use()
    gc.collect()
    files, memory = descriptors(), machine.resident_memory()
    for _ in range(count):
        use()
    gc.collect()
    assert descriptors() <= files
    # A leaked model would be larger: each has 1.5 MB of weights.
    assert machine.resident_memory() - memory < 16 << 20


@pytest.mark.parametrize(
    "count", [300, pytest.param(10_000, marks=pytest.mark.slow)], ids=["300", "10000"]
)
def test_frames_of_changing_sizes_do_not_grow_the_process(detector, count):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, 200 * 200 * 3, np.uint8)

    def use(frames):
        for height, width in rng.integers(1, 200, (frames, 2)):
            detector(pixels[: height * width * 3].reshape(height, width, 3))

    use(100)
    gc.collect()
    memory = machine.resident_memory()
    tracemalloc.start()
    use(50)
    before, _ = tracemalloc.get_traced_memory()
    use(count)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 300_000  # buffers of the last frame, of up to 64 x 96 pixels
    if memory is not None:
        assert machine.resident_memory() - memory < 16 << 20


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="no RLIMIT_AS on this system")
def test_without_memory_a_model_does_not_open_and_the_process_lives(made):
    script = (
        "import resource\n"
        "from pathlib import Path\n"
        "from y7edge.errors import Y7EdgeError\n"
        "from y7edge.runtimes import registry\n"
        "from y7edge.runtimes.base import SessionOptions\n"
        f"path = {str(made.artifact.path)!r}\n"
        "artifact = registry.load(path)\n"
        "registry.find(path).load_engine()\n"
        "registry.find(path).available_devices()\n"
        "pages = int(Path('/proc/self/statm').read_text().split()[0])\n"
        "before = resource.getrlimit(resource.RLIMIT_AS)\n"
        "used = pages * resource.getpagesize()\n"
        "for more in range(0, 12 << 20, 1 << 20):\n"
        "    resource.setrlimit(resource.RLIMIT_AS, (used + more, before[1]))\n"
        "    try:\n"
        "        registry.open_session(artifact, SessionOptions('cpu', 1)).close()\n"
        "    except (Y7EdgeError, MemoryError) as error:\n"
        "        print('\\n>', type(error).__name__)\n"
        "    resource.setrlimit(resource.RLIMIT_AS, before)\n"
        "registry.open_session(artifact, SessionOptions('cpu', 1)).close()\n"
        "print('\\n> opened')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    # MNN prints lines of its own if memory runs out.
    *refused, last = (line[2:] for line in done.stdout.splitlines() if line.startswith("> "))
    assert refused and set(refused) <= {"DeviceError", "MemoryError"}
    assert last == "opened"


# --- cost -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def slow_session(make, tmp_path_factory):
    """Open a model whose runs take many milliseconds: yolov7-tiny at 320 px.

    Without the converter of a target, a committed artifact with a batch of 8 is opened.
    """

    def open_it(name):
        module = targets.get(name)
        if unavailable(module):
            artifact = make(name, batch=8, imgsz=320).artifact
        else:
            from y7edge.export import export
            from y7edge.nn.random_weights import random_weights

            checkpoint = random_weights(models.get("yolov7-tiny"))
            out = tmp_path_factory.mktemp(name) / f"tiny{module.SUFFIX}"
            artifact = export(checkpoint, out, target=name, imgsz=320)
        return artifact, registry.open_session(artifact, SessionOptions("cpu", 1))

    return open_it


@pytest.mark.slow
@pytest.mark.parametrize("name", PROVABLE)
def test_a_session_costs_at_most_3_percent_more_than_the_engines_own_api(slow_session, name):
    artifact, session = slow_session(name)
    image = artifact.manifest.input
    feeds = {image.name: np.random.default_rng(0).random(image.shape, np.float32)}
    bare = session.bare(feeds)
    assert bare is not None
    ratio, engine_ms = measure_overhead(lambda: session.infer(feeds), bare)
    session.close()
    assert engine_ms > 3
    assert ratio <= OVERHEAD


FIXED, DYNAMIC = (
    [name for name in PROVABLE if batch in targets.get(name).BATCHES] for batch in ("N", "dynamic")
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [(name, {"batch": 8}) for name in FIXED] + [(name, {"dynamic": True}) for name in DYNAMIC],
)
def test_a_batch_of_8_is_as_fast_as_the_engines_own(make, name, options):
    made = make(name, **options, imgsz=320)
    image = made.artifact.manifest.input
    shape = (8, *image.shape[1:])
    feeds = {image.name: np.random.default_rng(0).random(shape, np.float32)}
    session = registry.open_session(made.artifact, SessionOptions("cpu", 1))
    bare = session.bare(feeds)
    assert bare is not None
    ratio, _ = measure_overhead(lambda: session.infer(feeds), bare, limit=1 / 0.95)
    session.close()
    assert ratio <= 1 / 0.95


@pytest.mark.parametrize("name", DYNAMIC)
def test_the_engines_own_api_gives_equal_outputs_for_changing_batches(make, name):
    made = make(name, dynamic=True)
    session = registry.open_session(made.artifact, SessionOptions("cpu", 1))
    image = made.artifact.manifest.input
    rng = np.random.default_rng(0)
    feeds = [{image.name: rng.random((n, *image.shape[1:]), np.float32)} for n in (8, 1, 3)]
    own = [session.bare(one) for one in feeds]
    for index in (0, 1, 2, 2, 0, 1):
        found = [np.array(array) for array in own[index]()]
        expected = session.infer(feeds[index])
        for array, spec in zip(found, session.outputs, strict=True):
            np.testing.assert_array_equal(array, expected[spec.name])
    session.close()
