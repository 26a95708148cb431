"""TensorRT sessions: order of the calls, memory, errors and the life cycle of engine files.

There is no GPU: see ``fake_cuda``. What a real GPU computes is not tested here.
"""

from __future__ import annotations

import gc
import os
import threading
import warnings
from dataclasses import replace

import numpy as np
import pytest

from tests.fake_model import FakeSession, make_manifest
from tests.runtimes import fake_cuda
from tests.runtimes.fake_cuda import Machine
from y7edge.artifact.artifact import Artifact, digest_files, write_sidecar
from y7edge.detect.detector import Detector
from y7edge.errors import (
    ArtifactError,
    ConfigError,
    DetectorClosed,
    DeviceError,
    DigestError,
    RuntimeMissing,
)
from y7edge.runtimes import _cuda, _trt_versions, registry, trt
from y7edge.runtimes.base import SessionOptions, require

HOST = {"kernels": False}  # pre-processing by numpy; test_trt_frames.py has the rest


def build(folder, name="robot", *, machine, manifest=None, plan=None, **engine) -> Artifact:
    """Write an engine file of the fake TensorRT with its manifest."""
    manifest = manifest or make_manifest()
    content = fake_cuda.plan(manifest, **(plan or {}))
    path = folder / f"{name}.engine"
    path.write_bytes(content)
    path.chmod(0o644)
    facts = {
        "tensorrt": machine.version,
        "compute_capability": ".".join(map(str, machine.capability)),
        "device": machine.name,
        "platform": _trt_versions.this_platform(),
        **engine,
    }
    machine.network = fake_cuda.network(manifest)
    manifest = replace(
        manifest, target="tensorrt", payload_digest=digest_files([path]), engine=facts
    )
    write_sidecar(Artifact(path, manifest))
    return registry.load(path)


@pytest.fixture
def machine(monkeypatch):
    """A PC with one GPU; nothing is left when a test ends."""
    made = Machine()
    made.install(monkeypatch)
    yield made
    gc.collect()
    assert made.left() == []


def equipped(machine, monkeypatch, *, graphs=True, **equipment) -> None:
    """Change the machine before it is used."""
    for name, value in equipment.items():
        assert hasattr(machine, name)
        setattr(machine, name, value)
    machine.install(monkeypatch, graphs=graphs)


def opened(artifact, device="auto", **options):
    return registry.open_session(
        artifact, SessionOptions(device, provider_options={**HOST, **options})
    )


def images(count=1, seed=0):
    """Images with white 8 x 8 cells, which the fake network finds."""
    white = np.random.default_rng(seed).random((count, 1, 8, 12)) > 0.8
    return np.kron(white, np.ones((1, 3, 8, 8))).astype(np.float32)


def expected(batch):
    return FakeSession(make_manifest("dynamic"))._run({"images": batch})


def assert_runs(session, batch):
    found = session.infer({"images": batch})
    for name, values in expected(batch).items():
        np.testing.assert_array_equal(found[name], values)
    return found


# --- results -------------------------------------------------------------------------------------

JETSONS = {
    "PC": {},
    "Orin": {"integrated": True, "capability": (8, 7)},
    "Nano": {"integrated": True, "capability": (5, 3)},
}


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("kind", JETSONS)
def test_results_of_each_kind_of_memory(machine, monkeypatch, tmp_path, kind, graphs):
    equipped(machine, monkeypatch, graphs=graphs, **JETSONS[kind])
    with_close = opened(build(tmp_path, machine=machine))
    assert with_close.device == "cuda:0"
    assert with_close.arithmetic == "float32 (TensorRT, cuda:0)"
    assert with_close.versions["tensorrt"] == "10.3.0"
    first = assert_runs(with_close, images(seed=1))
    kept = {name: values.copy() for name, values in first.items()}
    assert_runs(with_close, images(seed=2))
    for name, values in first.items():
        np.testing.assert_array_equal(values, kept[name])
        assert type(values) is np.ndarray
        assert values.flags.writeable
    with_close.close()


def test_memory_of_each_kind_of_gpu(machine, monkeypatch, tmp_path):
    """Copies to and from the GPU in one call."""
    copies = {}
    for kind, equipment in JETSONS.items():
        equipped(machine, monkeypatch, **{"integrated": False, **equipment})
        session = opened(build(tmp_path, kind, machine=machine))
        kinds = sorted(what for what in machine.alive.values() if "memory" in what)
        machine.calls.clear()
        session.infer({"images": images()})
        copies[kind] = (
            machine.calls.count("memcpy_htod_async"),
            machine.calls.count("memcpy_dtoh_async"),
            {what: kinds.count(what) for what in set(kinds)},
        )
        session.close()
    assert copies == {
        "PC": (1, 2, {"pinned memory": 3, "device memory": 3}),
        "Orin": (0, 0, {"mapped memory": 3}),
        # Outputs are copied to ordinary memory, because the CPU reads pinned memory slowly.
        "Nano": (0, 2, {"mapped memory": 1, "device memory": 2}),
    }


def test_a_dla_core_gets_memory_of_the_gpu(machine, monkeypatch, tmp_path):
    equipped(machine, monkeypatch, cores=1, **JETSONS["Orin"])
    session = opened(build(tmp_path, machine=machine, dla=0))
    assert sorted(what for what in machine.alive.values() if "memory" in what) == (
        ["device memory"] * 3 + ["pinned memory"] * 3
    )
    assert_runs(session, images())
    session.close()


@pytest.mark.parametrize("count", [1, 3, 4, 5, 9])
def test_a_dynamic_batch_is_run_in_parts_of_the_profile(machine, tmp_path, count):
    session = opened(build(tmp_path, machine=machine, manifest=make_manifest("dynamic")))
    machine.calls.clear()
    assert_runs(session, images(count))
    assert machine.calls.count("execute_async_v3") == -(-count // 4)
    machine.calls.clear()
    assert_runs(session, images(1, seed=3))
    session.close()


def test_a_fixed_batch(machine, tmp_path):
    session = opened(build(tmp_path, machine=machine, manifest=make_manifest(3)))
    assert_runs(session, images(3))
    session.close()


def test_the_function_for_the_benchmark(machine, tmp_path):
    session = opened(build(tmp_path, machine=machine, manifest=make_manifest("dynamic")))
    run = session.bare({"images": images(2)})
    for array, values in zip(run(), expected(images(2)).values(), strict=True):
        np.testing.assert_array_equal(array, values)
    assert session.bare({"images": images(5)}) is None
    session.close()


# --- CUDA graphs ---------------------------------------------------------------------------------


def test_a_graph_replaces_the_enqueue(machine, tmp_path):
    session = opened(build(tmp_path, machine=machine))
    assert session.info["execution"] == "CUDA graph"
    order = [c for c in machine.calls if c.startswith("cu") or c == "execute_async_v3"]
    assert order == [
        *("cuInit", "execute_async_v3", "cuStreamBeginCapture", "execute_async_v3"),
        *("cuStreamEndCapture", "cuGraphInstantiate", "cuGraphDestroy"),
    ]
    machine.calls.clear()
    assert_runs(session, images())
    assert "execute_async_v3" not in machine.calls
    assert machine.calls.count("cuGraphLaunch") == 1
    session.close()


@pytest.mark.parametrize(
    ("batch", "engine", "device", "options", "graphs", "why"),
    [
        ("dynamic", {}, "auto", {}, True, "the batch is dynamic"),
        (1, {"dla": 0}, "auto", {}, True, "not supported on a DLA core"),
        (1, {}, "auto", {"cuda_graph": False}, True, "cuda_graph is False"),
        (1, {}, "auto", {}, False, "cuda-python is not installed"),
    ],
)
def test_no_graph(machine, monkeypatch, tmp_path, batch, engine, device, options, graphs, why):
    equipped(machine, monkeypatch, graphs=graphs, cores=1)
    artifact = build(tmp_path, machine=machine, manifest=make_manifest(batch), **engine)
    session = opened(artifact, device, **options)
    assert session.info["execution"] == f"enqueue (no CUDA graph: {why})"
    assert_runs(session, images())
    assert not [call for call in machine.calls if call.startswith(("cuStream", "cuGraph"))]
    session.close()


@pytest.mark.parametrize(
    "call", ["cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate"]
)
def test_work_that_cannot_be_captured_is_enqueued(machine, tmp_path, call):
    machine.fail = {call}
    session = opened(build(tmp_path, machine=machine))
    assert session.info["execution"].startswith(f"enqueue (no CUDA graph: {call} failed with CUDA_")
    assert_runs(session, images())
    session.close()


# --- errors --------------------------------------------------------------------------------------


def _use(artifact, batch, **options):
    """Open, run twice and close."""
    session = opened(artifact, **options)
    try:
        assert_runs(session, batch)
        assert_runs(session, batch)
    finally:
        session.close()


FALLBACKS = ("cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate", "cuGraphDestroy")


@pytest.mark.parametrize("kind", JETSONS)
@pytest.mark.parametrize("batch", [1, "dynamic"])
def test_an_error_of_any_call_leaves_nothing_behind(machine, monkeypatch, tmp_path, kind, batch):
    """The error is typed and names its cause, and what was allocated is freed exactly once."""
    equipped(machine, monkeypatch, **JETSONS[kind])
    manifest = make_manifest(batch)
    artifact = build(tmp_path, machine=machine, manifest=manifest, plan={"most": 2})
    count = 1 if batch == 1 else 3  # two parts
    _use(artifact, images(count))
    calls = list(machine.calls)
    assert len(calls) > 40
    for number, call in enumerate(calls, start=1):
        equipped(machine, monkeypatch)
        machine.calls.clear()
        machine.fail_at = number
        captured = calls[number - 2] == "cuStreamBeginCapture"
        if call in FALLBACKS or captured:  # then the session runs without a graph
            _use(artifact, images(count))
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                with pytest.raises(DeviceError, match=r"^[^\n]*(injected|CUDA_ERROR)[^\n]*$"):
                    _use(artifact, images(count))
        machine.fail_at = None
        if machine.left():  # a session that could not be closed
            gc.collect()
        assert machine.left() == [], f"after an error of call {number}, {call}"


def test_a_call_after_an_error_runs(machine, tmp_path):
    session = opened(build(tmp_path, machine=machine, manifest=make_manifest("dynamic")))
    calls = ("memcpy_htod_async", "set_input_shape", "execute_async_v3", "synchronize", "pop")
    for seed, call in enumerate(calls):
        machine.fail = {call}
        with pytest.raises(DeviceError, match="injected"):
            session.infer({"images": images(3)})
        machine.fail = set()
        assert_runs(session, images(3, seed=seed + 1))  # its shape is set again
        assert_runs(session, images(2, seed=4))
    session.close()


def test_the_first_error_is_reported_if_freeing_fails_too(machine, tmp_path):
    """After an illegal address, every call fails."""
    artifact = build(tmp_path, machine=machine)
    machine.fail = {"execute_async_v3", "free device memory", "free pinned memory", "synchronize"}
    with (
        pytest.warns(UserWarning, match=r"calls failed while memory of cuda:0 was freed.*after: "),
        pytest.raises(DeviceError, match=r"cannot run .*robot.engine: execute_async_v3: injected"),
    ):
        opened(artifact)
    machine.fail = set()


def test_errors_while_closing_are_reported_after_everything_was_freed(machine, tmp_path):
    session = opened(build(tmp_path, machine=machine))
    machine.fail = {"free device memory"}
    with pytest.raises(DeviceError, match=r"3 calls failed .*: free device memory failed: inj"):
        session.close()
    assert machine.left() == []
    session.close()
    with pytest.raises(DetectorClosed):
        session.infer({"images": images()})


def test_what_tensorrt_logged_is_in_the_message(machine, tmp_path):
    artifact = build(tmp_path, machine=machine)
    machine.fail = {"deserialize_cuda_engine"}
    with pytest.raises(DeviceError, match=r"engine: deserialize_cuda_engine: injected second"):
        opened(artifact)
    machine.fail = set()


# --- closing, threads, processes -----------------------------------------------------------------


def test_closing_twice_frees_once(machine, tmp_path):
    session = opened(build(tmp_path, machine=machine))
    session.close()
    assert machine.left() == []
    count = len(machine.calls)
    session.close()
    assert len(machine.calls) == count


def test_a_session_that_is_dropped_is_freed(machine, tmp_path):
    session = opened(build(tmp_path, machine=machine))
    del session
    gc.collect()
    assert machine.left() == []


def test_two_sessions_share_the_context_but_no_stream(machine, tmp_path):
    first = opened(build(tmp_path, "first", machine=machine))
    second = opened(build(tmp_path, "second", machine=machine))
    assert machine.calls.count("retain_primary_context") == 1
    assert len(machine.streams) == 2
    first.close()
    assert_runs(second, images())
    second.close()


def test_a_session_is_used_by_any_thread(machine, tmp_path):
    artifact, sessions, problems = build(tmp_path, machine=machine), [], []

    def within_thread(call):
        def run():
            try:
                call()
            except BaseException as error:
                problems.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join(30)

    within_thread(lambda: sessions.append(opened(artifact)))
    (session,) = sessions
    within_thread(lambda: assert_runs(session, images()))
    assert_runs(session, images(seed=2))
    within_thread(session.close)
    assert problems == []
    assert machine.left() == []


def test_sessions_in_several_threads(machine, tmp_path):
    artifact, problems = build(tmp_path, machine=machine), []

    def work(seed):
        try:
            session = opened(artifact)
            for _ in range(20):
                assert_runs(session, images(seed=seed))
            session.close()
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert problems == []


def test_the_context_of_the_caller_stays_current(machine, tmp_path):
    mine = object()
    machine.stack.append(mine)
    session = opened(build(tmp_path, machine=machine))
    assert machine.stack == [mine]
    assert_runs(session, images())
    assert machine.stack == [mine]
    session.close()
    assert machine.stack.pop() is mine


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_uses_no_cuda(machine, tmp_path):
    artifact = build(tmp_path, machine=machine)
    session = opened(artifact)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            count = len(machine.calls)
            for use in (lambda: session.infer({"images": images()}), lambda: opened(artifact)):
                with pytest.raises(DeviceError, match="fork"):
                    use()
            session.close()
            code = 0 if len(machine.calls) == count else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert_runs(session, images())
    session.close()


# --- devices -------------------------------------------------------------------------------------


def test_devices_that_exist_are_found(machine, monkeypatch):
    equipped(machine, monkeypatch, gpus=2, cores=2)
    assert trt.available_devices() == ["cuda:0", "cuda:1", "dla:0", "dla:1"]
    equipped(machine, monkeypatch, gpus=0)
    assert trt.available_devices() == []


@pytest.mark.parametrize(
    ("device", "engine", "problem"),
    [
        ("cuda:1", {}, r"device 'cuda:1' is not available: this machine has cuda:0"),
        ("dla:0", {}, r"device 'dla:0' cannot run .*, which was built for the GPU"),
        ("cuda:0", {"dla": 0}, r"device 'cuda:0' cannot run .*, which was built for a DLA core"),
        ("dla:2", {"dla": 0}, r"device 'dla:2' is not available: this machine has 2 DLA cores"),
    ],
)
def test_a_device_is_never_replaced(machine, monkeypatch, tmp_path, device, engine, problem):
    equipped(machine, monkeypatch, cores=2)
    with pytest.raises(DeviceError, match=problem):
        opened(build(tmp_path, machine=machine, **engine), device)


def test_an_engine_for_one_dla_core_runs_on_another(machine, monkeypatch, tmp_path):
    equipped(machine, monkeypatch, cores=2)
    artifact = build(tmp_path, machine=machine, dla=0)
    for device, used in (("auto", "dla:0"), ("dla:1", "dla:1")):
        session = opened(artifact, device)
        assert session.device == used
        assert machine.core == int(used[-1])
        assert_runs(session, images())
        session.close()


@pytest.mark.parametrize("core", [-1, 8, True, "0", 1.5])
def test_an_impossible_core_is_refused(machine, tmp_path, core):
    with pytest.raises(ArtifactError, match="was built for DLA core"):
        opened(build(tmp_path, machine=machine, dla=core))


@pytest.mark.parametrize("device", ["cpu", "dla", "gpu", "cuda:x", "tensorrt"])
def test_unknown_devices(machine, tmp_path, device):
    with pytest.raises(ConfigError, match="expected auto, cuda, cuda:N or dla:N"):
        opened(build(tmp_path, machine=machine), device)


@pytest.mark.parametrize("options", [{"profile": True}, {"cuda_graph": "off"}, {"kernels": 1}])
def test_unknown_options(machine, tmp_path, options):
    with pytest.raises(ConfigError, match="expected True or False for cuda_graph or kernels"):
        opened(build(tmp_path, machine=machine), **options)


def test_a_missing_driver_is_found_before_tensorrt_is_asked(machine, monkeypatch, tmp_path):
    """TensorRT creates a Runtime even without a driver."""
    artifact = build(tmp_path, machine=machine)

    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(_cuda.ctypes, "CDLL", missing)
    with pytest.raises(RuntimeMissing, match=r"NVIDIA's driver is not installed \(libcuda.so.1"):
        opened(artifact)
    assert machine.calls == []


def test_a_driver_that_does_not_work_is_reported(machine, tmp_path):
    machine.fail = {"cuInit"}
    with pytest.raises(DeviceError, match=r"driver does not work \(cuInit failed: inj.*nvidia"):
        opened(build(tmp_path, machine=machine))
    assert "Runtime" not in machine.calls
    machine.fail = set()


def test_a_machine_without_a_gpu(machine, monkeypatch, tmp_path):
    equipped(machine, monkeypatch, gpus=0)
    with pytest.raises(DeviceError, match="'cuda:0' is not available: this machine has no GPU"):
        opened(build(tmp_path, machine=machine))


# --- the life cycle of engine files --------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "problem"),
    [
        ({"compute_capability": "8.7", "device": "Orin"}, r"built for sm_87 \(Orin.*this is sm_86"),
        ({"tensorrt": "10.16.1.11"}, r"with TensorRT 10.16.1.11, this is .* with TensorRT 10.3.0"),
        ({"platform": "linux aarch64-other"}, "built for .*aarch64-other"),
        ({"tensorrt": None}, "does not say for which TensorRT"),
    ],
)
def test_a_foreign_engine_is_refused_before_tensorrt_reads_it(machine, tmp_path, engine, problem):
    with pytest.raises(DeviceError, match=rf"robot.engine cannot run here: .*{problem}"):
        opened(build(tmp_path, machine=machine, **engine))
    assert "deserialize_cuda_engine" not in machine.calls


@pytest.mark.parametrize("check", [None, True])
def test_a_changed_engine_is_refused_before_tensorrt_reads_it(machine, tmp_path, check):
    artifact = build(tmp_path, machine=machine)
    artifact.path.write_bytes(artifact.path.read_bytes() + b" ")
    options = SessionOptions(check_payload=check)
    with pytest.raises(DigestError, match="changed after it was proved"):
        registry.open_session(artifact, options)
    with pytest.raises(DigestError, match=r"robot.engine was changed after it was proved"):
        trt.open(artifact, options)  # the bytes that TensorRT reads are checked again
    assert "deserialize_cuda_engine" not in machine.calls


def test_the_digest_is_not_checked_if_that_is_asked_for(machine, tmp_path):
    artifact = build(tmp_path, machine=machine)
    artifact.path.write_bytes(artifact.path.read_bytes() + b" ")
    registry.open_session(artifact, SessionOptions(check_payload=False)).close()


@pytest.mark.skipif(os.name == "nt", reason="no mode bits")
@pytest.mark.parametrize("place", ["robot.engine", "robot.engine.json", ""])
def test_a_file_that_everybody_can_change_warns(machine, tmp_path, place):
    folder = tmp_path / "artifacts"
    folder.mkdir()
    artifact = build(folder, machine=machine)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened(artifact).close()
    exposed = folder / place
    exposed.chmod(0o777)
    with pytest.warns(UserWarning, match=rf"machine code.*chmod o-w {exposed}`") as caught:
        opened(artifact).close()
    assert len(caught) == 1


def test_only_version_compatible_engines_may_contain_host_code(machine, tmp_path):
    artifact = build(tmp_path, machine=machine, plan={"host_code": True}, version_compatible=True)
    opened(artifact).close()  # the fake engine compares the permission with its content
    with pytest.raises(ConfigError, match="contains code for the CPU"):
        registry.open_session(artifact, SessionOptions(check_payload=False))


def test_a_newer_version_warns(machine, monkeypatch, tmp_path):
    equipped(machine, monkeypatch, version="99.1.0")
    with pytest.warns(UserWarning, match=r"TensorRT 99.1.0 is newer"):
        opened(build(tmp_path, machine=machine)).close()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"format": "CHW32"}, r"tensor head1 of .* has format CHW32 in DEVICE memory"),
        ({"location": "HOST"}, r"tensor head1 of .* has format LINEAR in HOST memory"),
        ({"dtype": "float16"}, r"has the tensor head1 HALF|has the tensor head1 float16"),
        ({"shape": [1, 8, 4, 7]}, r"has the tensor head1 float32 \(1, 8, 4, 7\), its manifest has"),
        ({"name": "other"}, "has the tensor other"),
        ({"mode": "INPUT"}, "has 2 inputs, but its manifest lists 1|has the tensor head1"),
    ],
)
def test_tensors_that_differ_from_the_manifest(machine, tmp_path, change, problem):
    manifest = make_manifest()
    tensors = fake_cuda.tensors(manifest)
    tensors[-1] |= change
    artifact = build(tmp_path, machine=machine, manifest=manifest, plan={"tensors": tensors})
    with pytest.raises(ArtifactError, match=problem):
        opened(artifact)


@pytest.mark.parametrize("profile", [[2, 4, 4], [1, 1, 0], [1, 4, 1025], [1, 8, 10**9]])
def test_impossible_profiles(machine, tmp_path, profile):
    manifest = make_manifest("dynamic")
    artifact = build(tmp_path, machine=machine, manifest=manifest, plan={"profile": profile})
    with pytest.raises(ArtifactError, match="was built for batches of"):
        opened(artifact)
    assert "mem_alloc" not in machine.calls


# --- installation --------------------------------------------------------------------------------


@pytest.fixture
def jetpack(monkeypatch, tmp_path):
    """Folders as on a Jetson; returns a function that installs tensorrt for a Python."""

    def install(version, place="lib"):
        package = tmp_path / place / version / "dist-packages" / "tensorrt"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("__version__ = '10.3.0'\n")
        return package

    monkeypatch.setattr(trt, "_SYSTEM", tmp_path / "lib")
    monkeypatch.setattr(trt.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(trt, "_site_packages", lambda: tmp_path / "venv")
    return install


def python():
    return f"python3.{os.sys.version_info.minor}"


def test_without_jetpack_nothing_is_misplaced(jetpack, monkeypatch):
    monkeypatch.setattr(trt.jetson, "find", lambda: None)
    assert trt.misplaced() is None


def test_a_jetson_without_tensorrt(jetpack, monkeypatch):
    # The extra of y7edge does not install tensorrt there.
    monkeypatch.setattr(trt.jetson, "find", lambda: object())
    monkeypatch.setattr(trt, "find_spec", lambda name: None)
    assert trt.misplaced() == "run `sudo apt install nvidia-jetpack`, which installs tensorrt"


def test_errors_say_how_to_get_jetpacks_tensorrt(jetpack, monkeypatch, tmp_path):
    jetpack(python())
    monkeypatch.setattr("y7edge.runtimes.base.find_spec", lambda name: None)
    (tmp_path / "a.engine").touch()
    write_sidecar(Artifact(tmp_path / "a.engine", make_manifest(target="tensorrt")))
    with pytest.raises(RuntimeMissing, match=r"opening a.engine .* run `ln -sfn "):
        registry.open_session(Artifact(tmp_path / "a.engine", make_manifest(target="tensorrt")))
    needs = {"no_such_engine": "y7edge[tensorrt]"}
    with pytest.raises(RuntimeMissing, match=r"which is not installed: pip .*; the system's tens"):
        require(needs, "opening a.engine", trt.misplaced)
    from y7edge.export.targets import trt as target

    assert target.misplaced is trt.misplaced


def test_the_link_to_jetpacks_tensorrt(jetpack, tmp_path):
    package = jetpack(python())
    assert trt.misplaced() == (
        "the system's tensorrt is not in this environment: run "
        f"`ln -sfn {package} {tmp_path / 'venv' / 'tensorrt'}`"
    )


def test_jetpack_is_for_another_python(jetpack):
    jetpack("python3.8")
    assert "is for python3.8, this is" in trt.misplaced()
    assert "make the environment with python3.8" in trt.misplaced()


def test_a_link_is_enough_and_a_copy_of_pip_hides_it(jetpack, monkeypatch, tmp_path):
    package = jetpack(python())
    site = tmp_path / "venv"
    site.mkdir()
    (site / "tensorrt").symlink_to(package)
    monkeypatch.syspath_prepend(site)
    assert trt.misplaced() is None
    (site / "tensorrt").unlink()
    (site / "tensorrt").mkdir()
    (site / "tensorrt" / "__init__.py").touch()
    advice = trt.misplaced()
    assert advice.startswith(
        f"{site / 'tensorrt'} hides the system's tensorrt in {package}: run `pip"
    )
    assert f"ln -sfn {package} {site / 'tensorrt'}" in advice
    monkeypatch.setattr(trt.platform, "machine", lambda: "x86_64")
    assert trt.misplaced() is None


def test_detector(machine, tmp_path):
    artifact = build(tmp_path, machine=machine)
    frame = np.zeros((64, 96, 3), np.uint8)
    frame[8:16, 16:24] = 255
    reference = Detector.from_session(FakeSession(make_manifest()), make_manifest())(frame)
    with Detector(artifact.path, provider_options=HOST) as detector:
        found = detector(frame)
        assert detector.info["frames"] == "numpy (kernels is False)"
    assert len(found) == 1
    np.testing.assert_array_equal(found.xyxy, reference.xyxy)
