"""The contract of all runtimes; a new runtime is tested automatically."""

from __future__ import annotations

import multiprocessing
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.runtimes.conftest import ABSENT, PROVABLE
from y7edge import Detector
from y7edge.artifact.artifact import Artifact
from y7edge.detect.selftest import as_input, selftest
from y7edge.errors import (
    ArtifactError,
    ArtifactMissing,
    ConfigError,
    DetectorClosed,
    DeviceError,
    DigestError,
    Y7EdgeError,
)
from y7edge.export.targets import registry as targets
from y7edge.runtimes import registry
from y7edge.runtimes.base import Session, SessionOptions


@pytest.fixture
def session(made):
    opened = registry.open_session(made.artifact, SessionOptions(made.device, 1), made.backend)
    yield opened
    opened.close()


def images(artifact: Artifact, batch: int = 1) -> np.ndarray:
    image = artifact.manifest.input
    shape = (batch, 3, image.height, image.width)
    return as_input(np.random.default_rng(0).random(shape, dtype=np.float32), image)


def test_engines_that_are_not_installed():
    """The tests of this file and of tests/export leave them out."""
    if ABSENT:
        packages = [f"{name} needs {', '.join(absent)}" for name, absent in ABSENT.items()]
        pytest.skip(f"not tested, because not installed: {'; '.join(packages)}")


# --- the module ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", registry.names())
def test_members(name):
    runtime = registry.get(name)
    assert runtime.FORMATS and all(f.startswith(".") and f == f.lower() for f in runtime.FORMATS)
    assert set(runtime.TARGETS) <= set(targets.names())
    assert all(requirement.startswith("y7edge[") for requirement in runtime.NEEDS.values())
    assert "auto" not in runtime.DEVICES
    assert 0 < runtime.DEVIATION <= 1e-3
    for function in ("load_engine", "files", "read_manifest", "write_manifest"):
        assert callable(getattr(runtime, function))
    for function in ("payload_digest", "open", "versions", "available_devices"):
        assert callable(getattr(runtime, function))
    main = Path("folder") / f"robot{runtime.FORMATS[0]}"
    assert runtime.files(main)[0] == main
    assert all(file.parent == main.parent for file in runtime.files(main))
    assert all(file.name.startswith("robot.") for file in runtime.files(main))
    assert registry.name_of(runtime) == name
    assert name.lower() not in map(str.lower, runtime.NEEDS), (
        "a module must not carry the name of its engine"
    )


@pytest.mark.parametrize("name", registry.names())
@pytest.mark.parametrize(
    "content", [b"", b"\0" * 100, b"garbage, not a model " * 50, b"\xff" * 1000], ids=repr
)
def test_garbage_is_refused_in_one_line(name, content, tmp_path):
    runtime = registry.get(name)
    files = runtime.files(tmp_path / f"model{runtime.FORMATS[0]}")
    for file in files:
        file.write_bytes(content)
    with pytest.raises(ArtifactError, match="model") as caught:
        runtime.read_manifest(files[0])
    assert "\n" not in str(caught.value)
    try:
        digest = runtime.payload_digest(files)  # an opaque format cannot tell garbage
    except ArtifactError as error:
        assert "model" in str(error)
    else:
        assert re.fullmatch("[0-9a-f]{64}", digest)


@pytest.mark.parametrize("name", registry.names())
def test_a_folder_in_place_of_a_file_is_refused(name, tmp_path):
    runtime = registry.get(name)
    path = tmp_path / f"folder{runtime.FORMATS[0]}"
    path.mkdir()
    with pytest.raises(ArtifactError, match="folder"):
        registry.load(path, name)


# --- files ---------------------------------------------------------------------------------------


def test_all_files_are_known(made):
    assert set(made.artifact.path.parent.iterdir()) == set(made.artifact.files)
    assert made.runtime.files(made.artifact.path) == made.artifact.files
    assert registry.load(made.artifact.path) == made.artifact
    assert made.artifact.size == sum(file.stat().st_size for file in made.artifact.files)


def test_the_manifest_is_read_and_written_without_changing_the_payload(made, tmp_path):
    copy = made.copy(tmp_path)
    made.runtime.write_manifest(copy)  # a committed artifact may lack the newest fields
    before = [file.read_bytes() for file in copy.files]
    made.runtime.write_manifest(copy)
    assert [file.read_bytes() for file in copy.files] == before
    names = ("a<b>&\"c'", "ö 日本", "washer")
    changed = replace(copy, manifest=replace(copy.manifest, names=names))
    made.runtime.write_manifest(changed)
    assert made.runtime.read_manifest(copy.path) == changed.manifest
    assert made.runtime.payload_digest(copy.files) == copy.manifest.payload_digest
    assert Detector(copy.path, made.backend).names == names


def test_a_manifest_in_a_cut_file_is_refused(made, tmp_path):
    copy = made.copy(tmp_path)
    file = copy.files[made.manifest_file]
    whole = file.read_bytes()
    for length in (1, 5, 100, len(whole) // 2, len(whole) - 10):
        file.write_bytes(whole[:length])
        with pytest.raises(ArtifactError, match=copy.path.name):
            made.runtime.read_manifest(copy.path)


@pytest.mark.parametrize("word", ["anchors", "conf", "iou", "stride"])
def test_a_manifest_changed_by_one_byte_does_not_open(made, tmp_path, word):
    copy = made.copy(tmp_path)
    file = copy.files[made.manifest_file]
    raw = bytearray(file.read_bytes())
    position = next(i for i in range(raw.rindex(word.encode()), len(raw)) if raw[i] in b"123456789")
    raw[position] ^= 1
    file.write_bytes(raw)
    with pytest.raises(DigestError, match="changed after it was proved"):
        registry.load(copy.path)


def test_each_file_changed_or_cut_is_noticed(made, tmp_path):
    copy = made.copy(tmp_path)
    for file in copy.files:
        whole = file.read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 3] ^= 0x10
        for damaged in (flipped, whole[: len(whole) // 2], whole[:-1], b""):
            file.write_bytes(damaged)
            with pytest.raises(Y7EdgeError, match=copy.path.stem) as caught:
                selftest(copy.path)
            assert "\n" not in str(caught.value)
        file.write_bytes(whole)
    assert selftest(copy.path)


def test_a_missing_side_file_is_named(made, tmp_path):
    copy = made.copy(tmp_path)
    for file in copy.side_files:
        kept = file.read_bytes()
        file.unlink()
        with pytest.raises(ArtifactMissing, match=rf"{file.name}.*copy .* together") as caught:
            Detector(copy.path)
        named = str(caught.value).partition(", copy ")[2]
        assert all(one.name in named for one in copy.files)
        assert isinstance(caught.value, FileNotFoundError)
        file.write_bytes(kept)
    with pytest.raises(ArtifactMissing, match="there is no file"):
        Detector(copy.path.with_stem("none"))


def test_files_of_two_artifacts_do_not_open_together(made, make, tmp_path):
    other = make(made.artifact.manifest.target, precision="fp16")
    copy = made.copy(tmp_path)
    for index, file in enumerate(copy.files):
        if len(copy.files) == 1 or index == made.manifest_file:
            continue
        kept, foreign = file.read_bytes(), other.artifact.files[index].read_bytes()
        if foreign == kept:
            continue
        file.write_bytes(foreign)
        with pytest.raises(DigestError, match="do not belong together"):
            Detector(copy.path)
        file.write_bytes(kept)
    assert Detector(copy.path)


def test_the_payload_is_checked_when_asked(made, tmp_path):
    copy = made.copy(tmp_path)
    file = copy.files[made.weights_file]
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1  # within weights: the engine would open it
    file.write_bytes(raw)
    with pytest.raises(DigestError):
        registry.open_session(copy, SessionOptions(check_payload=True))


def test_pipes_and_devices_are_refused_at_once(made, tmp_path):
    copy = made.copy(tmp_path)
    for file in copy.files:
        kept = file.read_bytes()
        file.unlink()
        os.mkfifo(file)
        with pytest.raises(ArtifactError, match="expected a regular file, found a"):
            selftest(copy.path)
        file.unlink()
        file.symlink_to("/dev/zero")
        with pytest.raises(ArtifactError, match="expected a regular file, found a"):
            selftest(copy.path)
        file.unlink()
        file.write_bytes(kept)


def test_an_opened_model_does_not_depend_on_its_files(made, tmp_path):
    copy = made.copy(tmp_path)
    session = registry.open_session(copy, SessionOptions(made.device, 1))
    expected = session.infer({"images": images(copy)})
    for file in copy.files:  # overwritten in place, as by cp, then cut off
        with file.open("r+b") as stream:
            stream.write(b"\1" * file.stat().st_size)
            stream.flush()
            found = session.infer({"images": images(copy)})
            stream.truncate(10)
        for name, array in session.infer({"images": images(copy)}).items():
            np.testing.assert_array_equal(array, expected[name])
            np.testing.assert_array_equal(found[name], expected[name])


# --- the session ---------------------------------------------------------------------------------


def test_session_matches_the_manifest(made, session):
    assert isinstance(session, Session)
    manifest = made.artifact.manifest
    assert [spec.name for spec in session.inputs] == [manifest.input.name]
    assert [spec.name for spec in session.outputs] == [output.name for output in manifest.outputs]
    results = session.infer({"images": images(made.artifact)})
    assert list(results) == [output.name for output in manifest.outputs]
    for output in manifest.outputs:
        assert results[output.name].shape == output.shape
        assert results[output.name].dtype == output.dtype
    assert session.device.partition(":")[0] == made.device.partition(":")[0]
    assert session.arithmetic.startswith("float32 (")
    assert session.versions == made.runtime.versions() != {}


def test_results_are_not_overwritten_by_the_next_call(made, session):
    first = session.infer({"images": images(made.artifact)})
    kept = {name: array.copy() for name, array in first.items()}
    session.infer({"images": np.zeros_like(images(made.artifact))})
    for name, array in first.items():
        np.testing.assert_array_equal(array, kept[name])
        assert array.flags.writeable


def test_the_engines_own_api_computes_the_same(made, session):
    """What the benchmark compares with: the same engine, input and outputs."""
    feeds = {"images": images(made.artifact)}
    bare = session.bare(feeds)
    if bare is None:
        pytest.skip(f"{made.backend} has no function for the benchmark")
    found = [np.asarray(array).ravel() for array in bare()]
    for array in session.infer(feeds).values():
        assert any(np.array_equal(array.ravel(), one) for one in found)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda x: {"images": [1]}, "images is a list, expected a numpy array of float32"),
        (lambda x: {}, "takes images; got nothing"),
        (lambda x: {"images": x, "more": x}, "takes images"),
        (lambda x: {"frames": x}, "got frames"),
        (lambda x: {"images": x[:, :2]}, r"float32 \(1, 2, .*\), expected float32 \(1, .*\)"),
        (lambda x: {"images": x[0]}, "expected"),
        (lambda x: {"images": np.concatenate([x, x])}, "expected"),
        (lambda x: {"images": x.astype(np.float64)}, "images is float64"),
    ],
)
def test_wrong_feeds_are_named(made, session, change, problem):
    with pytest.raises(ConfigError, match=problem):
        session.infer(change(images(made.artifact)))


def test_views_are_accepted_and_inputs_left_alone(made, session):
    x = images(made.artifact)
    expected = session.infer({"images": x})
    np.testing.assert_array_equal(x, images(made.artifact))
    for view in (np.asfortranarray(x), x[:, :, ::-1].copy()[:, :, ::-1]):
        found = session.infer({"images": view})
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array)


def test_a_failure_of_the_engine_is_wrapped_once(made, session, monkeypatch):
    def fail(_):
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(session, "_run", fail)
    with pytest.raises(DeviceError, match=r"narrow.* failed in .*first line second line") as caught:
        session.infer({"images": images(made.artifact)})
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_closing_twice_is_allowed_and_ends_it(made):
    session = registry.open_session(made.artifact)
    session.close()
    session.close()
    with pytest.raises(DetectorClosed, match="closed"):
        session.infer({"images": images(made.artifact)})


@pytest.mark.parametrize("batch", [{"batch": 2}, {"dynamic": True}], ids=str)
@pytest.mark.parametrize("name", PROVABLE)
def test_batches(make, name, batch):
    if ("dynamic" if batch.get("dynamic") else "N") not in targets.get(name).BATCHES:
        with pytest.raises(ConfigError, match=f"target {name} has no batch size"):
            make(name, **batch)
        return
    made = make(name, **batch)
    with Detector(made.artifact.path, device=made.device) as detector:
        frames = [np.full((50, 70, 3), value, np.uint8) for value in (0, 90, 200)]
        together = detector.batch(frames)
        for found, frame in zip(together, frames, strict=True):
            assert found.xyxy.shape == detector(frame).xyxy.shape


# --- devices and threads -------------------------------------------------------------------------


UNKNOWN = (None, "tpu", "cpu:0", "cuda:", "cuda:x", "", "auto:1", "CPU", "cpu\n")


@pytest.mark.parametrize("device", UNKNOWN, ids=repr)
def test_unknown_device_is_a_config_error(made, device):
    with pytest.raises(ConfigError, match=r"device.* expected (auto|text)"):
        registry.open_session(made.artifact, SessionOptions(device))


def test_a_device_is_never_replaced_by_another(made):
    """What this machine lacks is a DeviceError, what it has is where the session runs."""
    for device in made.runtime.DEVICES:
        asked = device.replace(":N", ":7")
        try:
            session = registry.open_session(made.artifact, SessionOptions(asked))
        except DeviceError as error:
            assert asked in str(error)
        else:
            assert session.device.partition(":")[0] == asked.partition(":")[0]
            session.close()


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True, 10**11])
def test_threads_are_counted_from_one(threads):
    with pytest.raises(ConfigError, match="threads"):
        SessionOptions(threads=threads)


def _opened(made, threads: int) -> str:
    """The beginning of a script: a session that has run once, and its feeds."""
    return (
        "import time\n"
        "import numpy as np\n"
        "from y7edge.runtimes import registry\n"
        "from y7edge.runtimes.base import SessionOptions\n"
        f"artifact = registry.load({str(made.artifact.path)!r})\n"
        f"session = registry.open_session(artifact, SessionOptions({made.device!r}, {threads}))\n"
        "feeds = {'images': np.zeros(artifact.manifest.input.shape, np.float32)}\n"
        "session.infer(feeds)\n"
    )


def test_one_thread_is_one_thread(made):
    """By the processor time of the whole process, which a busy machine does not lengthen."""
    script = _opened(made, threads=1) + (
        "wall, cpu = time.perf_counter(), time.process_time()\n"
        "while time.perf_counter() - wall < 1: session.infer(feeds)\n"
        "print((time.process_time() - cpu) / (time.perf_counter() - wall))\n"
    )
    assert float(_run(script)) < 1.3


def test_threads_default_to_the_usable_cores(made, monkeypatch):
    if made.device != "cpu":
        pytest.skip(f"{made.backend} does not use the CPU")
    monkeypatch.setattr("y7edge.runtimes.base.usable_cores", lambda: 2)
    with Detector(made.artifact.path, device="cpu") as detector:
        assert detector.info["threads"] == 2
    with Detector(made.artifact.path, device="cpu", threads=1) as detector:
        assert detector.info["threads"] == 1


@pytest.mark.parametrize("before", ["", "import torch\n"], ids=["alone", "after torch"])
def test_a_session_that_waits_leaves_the_processors_free(made, before):
    """Threads that spin between calls take processors from everything else on a robot.

    The symbols of torch's OpenMP library, whose threads spin, are visible to all engines.
    """
    script = (
        before
        + _opened(made, threads=2)
        + (
            "spent = 0.0\n"
            "for _ in range(20):\n"
            "    session.infer(feeds)\n"
            "    started = time.process_time()\n"
            "    time.sleep(0.02)\n"
            "    spent += time.process_time() - started\n"
            "print(spent / 20)\n"
        )
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    assert float(_run(script, environment)) < 0.002


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity on this system")
def test_a_session_does_not_bind_its_caller_to_a_processor(made):
    """Engines that do so put all sessions on the same processor."""
    session = registry.open_session(made.artifact, SessionOptions(made.device, 1))
    over, seen = threading.Event(), set()

    def use():
        while not over.is_set():
            session.infer({"images": images(made.artifact)})

    worker = threading.Thread(target=use)
    worker.start()
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        seen.add(frozenset(os.sched_getaffinity(worker.native_id)))
    over.set()
    worker.join()
    session.close()
    assert seen == {frozenset(os.sched_getaffinity(0))}


def test_signals_arrive_after_sessions_were_closed(made):
    """Engines that set an alternate signal stack must leave a valid one behind."""
    script = (
        "import gc, signal\n"
        "from y7edge.runtimes import registry\n"
        "from y7edge.runtimes.base import SessionOptions\n"
        f"artifact = registry.load({str(made.artifact.path)!r})\n"
        f"options = SessionOptions({made.device!r}, 1)\n"
        "sessions = [registry.open_session(artifact, options) for _ in range(3)]\n"
        "while sessions:\n"
        "    sessions.pop(0).close()\n"
        "    gc.collect()\n"
        "signal.signal(signal.SIGINT, lambda *_: print('arrived'))\n"
        "signal.raise_signal(signal.SIGINT)\n"
    )
    assert _run(script).strip() == "arrived"


def test_two_sessions_in_two_threads(made):
    expected = registry.open_session(made.artifact, SessionOptions(made.device, 1))
    wanted = expected.infer({"images": images(made.artifact)})
    results, errors = [], []

    def work():
        try:
            session = registry.open_session(made.artifact, SessionOptions(made.device, 1))
            results.extend(session.infer({"images": images(made.artifact)}) for _ in range(5))
            session.close()
        except BaseException as error:
            errors.append(error)

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert not errors
    assert len(results) == 10
    for found in results:
        for name, array in wanted.items():
            np.testing.assert_allclose(found[name], array, atol=1e-4)


def _in_child(path, backend, device, queue):
    try:
        session = registry.open_session(registry.load(path), SessionOptions(device, 1), backend)
        found = session.infer({"images": images(registry.load(path))})
        queue.put({name: float(array.sum()) for name, array in found.items()})
    except BaseException as error:
        queue.put(repr(error))


def _used_in_child(session, artifact, queue):
    try:
        session.infer({"images": images(artifact)})
        queue.put("it ran")
    except BaseException as error:
        queue.put(repr(error))
    session.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_forked_child_neither_hangs_nor_crashes(made, threads):
    session = registry.open_session(
        made.artifact, SessionOptions(made.device, threads), made.backend
    )
    session.infer({"images": images(made.artifact)})
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_used_in_child, args=(session, made.artifact, queue))
    child.start()
    answer = queue.get(timeout=60)
    child.join(60)
    assert child.exitcode == 0
    assert "DeviceError" in answer
    assert "another process" in answer
    session.infer({"images": images(made.artifact)})
    session.close()


def test_a_spawned_process_opens_its_own(made, session):
    expected = session.infer({"images": images(made.artifact)})
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = context.Process(
        target=_in_child, args=(made.artifact.path, made.backend, made.device, queue)
    )
    child.start()
    answer = queue.get(timeout=120)
    child.join(60)
    assert set(answer) == set(expected)
    for name, array in expected.items():
        assert answer[name] == pytest.approx(float(array.sum()), rel=1e-3)


# --- quiet: no network, nothing in the home directory ---------------------------------------------

# Sockets of families other than the machine's own are refused and noted, look-ups too.
QUIET = """
import os, socket, sys
noted = []
def refuse(*arguments, **_):
    noted.append(arguments)
    raise OSError("no network here")
class Refused(socket.socket):
    def __init__(self, family=-1, *rest, **more):
        if family != getattr(socket, "AF_UNIX", None):
            refuse("socket", family)
        super().__init__(family, *rest, **more)
socket.socket = Refused
socket.getaddrinfo = socket.gethostbyname = socket.create_connection = refuse
"""


def test_no_network_and_nothing_in_the_home_directory(made, artifact_path, tmp_path):
    """Nor anything on standard output: importing, running, testing and building are silent."""
    script = QUIET + (
        "from y7edge import Detector\n"
        "from y7edge.detect.selftest import selftest\n"
        f"Detector({str(made.artifact.path)!r}).warmup()\n"
        f"selftest({str(made.artifact.path)!r})\n"
        "from pathlib import Path\n"
        "from tempfile import TemporaryDirectory\n"
        "from y7edge.export.targets import registry as targets\n"
        "from y7edge.export.targets.base import BuildRequest\n"
        "from y7edge.runtimes import registry\n"
        f"found = registry.load({str(made.artifact.path)!r}).manifest\n"
        "target = targets.get(found.target)\n"
        "if not target.NEEDS_CHECKPOINT:\n"
        "    with TemporaryDirectory() as place:\n"
        f"        request = BuildRequest(Path({str(artifact_path)!r}), None, found, Path(place),"
        " 'm' + target.SUFFIX)\n"
        "        target.build(request)\n"
        "print(noted)\n"
    )
    # In tests and on CI engines keep quiet by themselves: the child must not look like either.
    hints = ("CI", "PYTEST_CURRENT_TEST", "PYTEST_VERSION", "ORT_DISABLE_TELEMETRY", "TF_BUILD")
    environment = {k: v for k, v in os.environ.items() if k not in hints and "GITHUB" not in k}
    home, temporary = tmp_path / "home", tmp_path / "tmp"
    for folder in (home, temporary):
        folder.mkdir()
    places = {"HOME": str(home), "TMPDIR": str(temporary), "XDG_CACHE_HOME": str(home / "cache")}
    assert _run(script, {**environment, **places}).strip() == "[]"
    assert not list(home.iterdir())
    assert not list(temporary.iterdir())


def _run(script: str, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
