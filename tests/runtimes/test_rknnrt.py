"""Runtime for RKNN: the simulator's child process, with a stand-in for the toolkit; the board."""

from __future__ import annotations

import gc
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import pytest

from tests import fake_rknn
from y7edge import environment, interpreters
from y7edge.errors import (
    ArtifactError,
    ConfigError,
    DetectorClosed,
    DeviceError,
    RuntimeMissing,
    Y7EdgeError,
)
from y7edge.export import export
from y7edge.runtimes import _rknn_simulator, registry, rknnrt
from y7edge.runtimes.base import SessionOptions

SIZE = (64, 96)
FEEDS = {"images": np.full((1, *SIZE, 3), 90, np.uint8)}


@pytest.fixture(scope="module")
def toolkit(tmp_path_factory):
    return fake_rknn.install(tmp_path_factory.mktemp("rknn") / "toolkit")


@pytest.fixture(scope="module")
def artifact(narrow_tiny, toolkit, tmp_path_factory):
    """An fp16 artifact; not to be changed."""
    out = tmp_path_factory.mktemp("artifact") / "m.rknn"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(fake_rknn.VARIABLE, str(toolkit))
        interpreters._versions.cache_clear()
        return export(narrow_tiny, out, target="rknn", imgsz=SIZE)


@pytest.fixture(autouse=True)
def interpreter(toolkit, monkeypatch):
    monkeypatch.setenv(fake_rknn.VARIABLE, str(toolkit))
    monkeypatch.delenv("FAKE_RKNN", raising=False)
    interpreters._versions.cache_clear()
    yield
    interpreters._versions.cache_clear()


def opened(artifact, **options):
    return registry.open_session(artifact, SessionOptions(**options))


def ends(child) -> bool:
    """Whether a process ends, and its folder disappears, within some seconds."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def problem_of(function, *arguments) -> str:
    with pytest.raises(DeviceError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert "\n" not in message and message.isprintable(), message
    return message


# --- the simulator -------------------------------------------------------------------------------


def test_a_session_runs_many_images_in_one_child(artifact):
    session = opened(artifact, threads=1)
    assert (session.device, session.arithmetic) == (
        *("simulator", "float16 (RKNN simulator, rk3588)"),
    )
    assert session.versions == rknnrt.versions() == {"rknn-toolkit2": "2.5.0"}
    first = session.infer(FEEDS)
    kept = {name: array.copy() for name, array in first.items()}
    other = session.infer({"images": np.zeros_like(FEEDS["images"])})
    again = session.infer({"images": np.asfortranarray(FEEDS["images"])})
    for name, array in kept.items():
        np.testing.assert_array_equal(first[name], array)
        np.testing.assert_array_equal(again[name], array)
        assert first[name].flags.writeable and np.ptp(other[name] - array)
    child, folder = session._child._child.pid, session._child._folder
    assert folder.is_dir()
    session.close()
    session.close()
    assert ends(child) and not folder.exists()
    with pytest.raises(DetectorClosed):
        session.infer(FEEDS)


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ("refuse build", r"ended with code 1: build: The Conv\('/row1/Conv'\) is not supported!$"),
        ("raise build", "ended with code 1: ValueError: the last line"),
        ("abort build", f"ended with signal {signal.SIGABRT}: Meet unsupported conv"),
        ("answer:", "takes too long, and was ended"),
        ("answer:ffffffff", r"unexpected \(4294967295 bytes\)"),
        ("answer:000000025b5d", r"unexpected \(a list\)"),
        ("answer:00000002ff5d", "answered something unexpected"),
        ("answer:000000027b7d", "without its version"),
    ],
)
def test_a_child_that_cannot_build_is_ended(artifact, monkeypatch, fault, problem):
    monkeypatch.setenv("FAKE_RKNN", fault)
    monkeypatch.setattr(_rknn_simulator, "BUILD_SECONDS", 1.0 if fault == "answer:" else 60.0)
    message = problem_of(opened, artifact)
    assert re.search(problem, message), message


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ("refuse inference", "ended with code 1: inference: The Conv"),
        ("abort inference", f"signal {signal.SIGABRT}: Meet unsupported conv"),
        ("hang inference", "takes too long, and was ended"),
        ("other shape", r"outputs of shapes \[\[1, 23, .*, expected \[\(1, 24, "),
        ("fewer outputs", "returned outputs of shapes"),
    ],
)
def test_a_child_that_cannot_run_is_ended(artifact, monkeypatch, fault, problem):
    monkeypatch.setenv("FAKE_RKNN", fault)
    monkeypatch.setattr(_rknn_simulator, "_RUN_SECONDS", 1.0 if "hang" in fault else 60.0)
    session = opened(artifact)
    child = session._child._child.pid
    message = problem_of(session.infer, FEEDS)
    assert re.search(problem, message), message
    assert ends(child)
    assert "was ended after an earlier error: open" in problem_of(session.infer, FEEDS)
    session.close()


def test_a_killed_child_is_named(artifact):
    session = opened(artifact)
    os.kill(session._child._child.pid, signal.SIGKILL)
    assert "signal 9 (short of memory?)" in problem_of(session.infer, FEEDS)


def test_an_interrupt_ends_the_child(artifact, monkeypatch):
    monkeypatch.setenv("FAKE_RKNN", "hang inference")
    session = opened(artifact)
    child = session._child._child.pid
    monkeypatch.setattr(_rknn_simulator.Simulator, "_message", lambda *_: signal.raise_signal(2))
    with pytest.raises(KeyboardInterrupt):
        session.infer(FEEDS)
    assert ends(child)


def test_a_session_that_is_freed_ends_its_child(artifact):
    session = opened(artifact)
    child = session._child._child.pid
    del session
    gc.collect()
    assert ends(child)


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
@pytest.mark.parametrize("how", ["idle", "hang inference"])
def test_a_child_ends_with_its_parent(artifact, monkeypatch, how):
    """Even if the parent is killed while the toolkit computes, or a fork keeps the pipe open."""
    monkeypatch.setenv("FAKE_RKNN", how)
    script = (
        "import os, threading, time, numpy as np\n"
        "from y7edge.runtimes import registry\n"
        f"session = registry.open_session(registry.load({str(artifact.path)!r}))\n"
        f"feeds = {{'images': np.zeros((1, *{SIZE}, 3), np.uint8)}}\n"
        "if not os.fork(): time.sleep(30); os._exit(0)\n"
        "threading.Thread(target=session.infer, args=(feeds,), daemon=True).start()\n"
        "print(session._child._child.pid, flush=True)\n"
        "time.sleep(30)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        child = int(parent.stdout.readline())
        time.sleep(0.3)
        parent.kill()
        assert ends(child)
    finally:
        parent.kill()
        os.killpg(parent.pid, signal.SIGKILL)  # the fork
        parent.wait()
        parent.stdout.close()


def test_tensors_in_other_files_are_refused(artifact, tmp_path):
    copy = copied(artifact, tmp_path)
    model = onnx.load(copy.files[1])
    tensor = model.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    copy.files[1].write_bytes(model.SerializeToString())
    with pytest.raises(ArtifactError, match="external data"):
        opened(resealed(copy))


def test_a_graph_with_other_outputs_is_refused(artifact, tmp_path):
    copy = copied(artifact, tmp_path)
    model = onnx.load(copy.files[1])
    model.graph.output.pop()
    copy.files[1].write_bytes(model.SerializeToString())
    with pytest.raises(ArtifactError, match=r"has the tensors .* its manifest has"):
        opened(resealed(copy))


@pytest.mark.parametrize("chip", ["rk3399", 3588, None, "--help", "rk3588\n", ["rk3588"]])
def test_an_unknown_platform_in_the_manifest_is_refused(artifact, tmp_path, chip):
    copy = copied(artifact, tmp_path)
    changed = replace(copy, manifest=replace(copy.manifest, engine={"platform": chip}))
    with pytest.raises(ArtifactError, match="was built for the platform"):
        opened(changed)


@pytest.mark.parametrize("device", ["simulator", "npu"])
@pytest.mark.parametrize(
    "change", [{"dtype": "float32"}, {"layout": "NCHW"}, {"batch": "dynamic"}], ids=str
)
def test_another_input_in_the_manifest_is_refused(artifact, device, change):
    """The child would read four images from the bytes of one in float32."""
    image = replace(artifact.manifest.input, **change)
    manifest = artifact.manifest
    outputs = manifest.outputs
    if "batch" in change:
        outputs = tuple(replace(o, shape=("dynamic", *o.shape[1:])) for o in outputs)
    changed = replace(artifact, manifest=replace(manifest, input=image, outputs=outputs))
    with pytest.raises(ArtifactError, match=r"has the input .* expected uint8 \(1, 64, 96, 3\)"):
        opened(changed, device=device)


def copied(artifact, folder):
    files = rknnrt.files(folder / "copy.rknn")
    for source, destination in zip(artifact.files, files, strict=True):
        destination.write_bytes(source.read_bytes())
    return replace(artifact, path=files[0], side_files=files[1:])


def resealed(artifact):
    digest = rknnrt.payload_digest(artifact.files)
    return replace(artifact, manifest=replace(artifact.manifest, payload_digest=digest))


def test_complaints_are_found_in_the_log(tmp_path):
    log = tmp_path / "log"
    assert _rknn_simulator.complaint(log) == ""
    log.write_bytes(b"I Loading\n\xff\nW build: careful\n")
    assert _rknn_simulator.complaint(log) == ""
    log.write_bytes(
        b"E rknn-toolkit2 version: 2.5.0\n\x1b[1;31mE\x1b[0m \x1b[1;31mbuild: Traceback (most\n"
        b"\x1b[1;31mE\x1b[0m \x1b[1;31mbuild: not\x07 'float16'\x1b[0m\nE build: later\n"
    )
    assert _rknn_simulator.complaint(log) == "build: not\\x07 'float16'"
    log.write_bytes(bytes(1 << 20) + b"\nE RKNN: [18:30:58.588] Meet " + b"x" * 9999)
    assert _rknn_simulator.complaint(log).startswith("Meet xxx")
    assert len(_rknn_simulator.complaint(log)) == 300


# --- devices -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"device": "cpu"}, "device is 'cpu', expected auto, simulator, npu or npu:N"),
        ({"device": "npu:3"}, "'npu:3' does not exist, expected npu:0, npu:1 or npu:2"),
        ({"provider_options": {"core_mask": "5"}}, "core_mask is '5', expected auto, 0, 1"),
        ({"provider_options": {"core_mask": 0}}, "core_mask is 0, expected auto"),
        ({"provider_options": {"threads": 1}}, "no option 'threads', expected core_mask"),
        ({"provider_options": {"core_mask": "0"}}, "simulator has no option 'core_mask'"),
        ({"device": "npu:1", "provider_options": {"core_mask": "0"}}, "give only one"),
    ],
)
def test_wrong_options_are_named(artifact, options, problem):
    with pytest.raises((ConfigError, DeviceError), match=problem):
        opened(artifact, **options)


def test_without_an_interpreter_the_recipe_is_named(artifact, monkeypatch):
    monkeypatch.delenv(fake_rknn.VARIABLE)
    with pytest.raises(RuntimeMissing, match=r"rknn-toolkit2==2.5.0 .*set Y7EDGE_RKNN_PYTHON=ENV"):
        opened(artifact)
    assert rknnrt.available_devices() == [] and rknnrt.versions() == {}
    assert "Y7EDGE_RKNN_PYTHON" in rknnrt.misplaced()
    found = environment._check("rknnrt")()
    assert not found.usable and found.reason == rknnrt.misplaced()
    assert "on a Rockchip board, install rknn-toolkit-lite2: pip install" in rknnrt.misplaced()
    monkeypatch.setattr(rknnrt.platform, "machine", lambda: "aarch64")
    with pytest.raises(RuntimeMissing, match=r"pip install rknn-toolkit-lite2$"):
        opened(artifact)


def test_the_devices_of_this_machine(monkeypatch):
    assert rknnrt.available_devices() == ["simulator"]
    assert rknnrt.misplaced() is None


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"radxa,rock-5b\0rockchip,rk3588\0", True),
        (b"nvidia,p3767-0005\0nvidia,tegra234\0", False),
        (b"\xff\0rockchip", False),
        (None, False),
    ],
)
def test_boards_are_recognised_by_the_device_tree(tmp_path, monkeypatch, content, expected):
    path = tmp_path / "compatible"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setattr(rknnrt, "_COMPATIBLE", path)
    assert rknnrt.on_board() is expected


def test_a_board_without_the_package_is_told_to_install_it(artifact, tmp_path, monkeypatch):
    path = tmp_path / "compatible"
    path.write_bytes(b"rockchip,rk3588\0")
    monkeypatch.setattr(rknnrt, "_COMPATIBLE", path)
    monkeypatch.setattr(rknnrt.platform, "machine", lambda: "aarch64")
    for device in ("auto", "npu:0"):
        with pytest.raises(RuntimeMissing, match=r"pip install rknn-toolkit-lite2$"):
            opened(artifact, device=device)
    assert rknnrt.misplaced().endswith("pip install rknn-toolkit-lite2")


class Lite:
    """The part of ``RKNNLite`` that is used, with the names and keywords of version 2.5.0."""

    NPU_CORE_AUTO, NPU_CORE_0, NPU_CORE_1, NPU_CORE_2 = 0, 1, 2, 4
    NPU_CORE_0_1, NPU_CORE_0_1_2, NPU_CORE_ALL = 3, 7, 0xFFFF
    calls: ClassVar[list] = []
    codes: ClassVar[dict] = {}
    outputs: ClassVar[list | None] = None

    def __init__(self, verbose=False, verbose_file=None):
        self.calls.clear()

    def load_rknn(self, path, key_path=None):
        self.calls.append(("load_rknn", path))
        return self.codes.get("load_rknn", 0)

    def init_runtime(self, target=None, device_id=None, async_mode=False, core_mask=NPU_CORE_AUTO):
        assert target is None
        self.calls.append(("init_runtime", core_mask))
        return self.codes.get("init_runtime", 0)

    def inference(self, inputs, data_type=None, data_format=None, inputs_pass_through=None):
        (pixels,) = inputs
        assert pixels.flags.c_contiguous and data_type is None  # uint8
        self.calls.append(("inference", pixels.shape, str(pixels.dtype), data_format))
        return self.outputs

    def release(self):
        self.calls.append(("release",))


@pytest.fixture
def lite(artifact, monkeypatch):
    shapes = [output.shape for output in artifact.manifest.outputs]
    monkeypatch.setattr(Lite, "outputs", [np.ones(shape, np.float32) for shape in shapes])
    monkeypatch.setattr(Lite, "codes", {})
    monkeypatch.setattr(rknnrt, "load_engine", lambda: Lite)
    monkeypatch.setattr(rknnrt.platform, "machine", lambda: "aarch64")
    return Lite


@pytest.mark.parametrize(
    ("options", "mask"),
    [
        ({"device": "npu"}, 0),
        ({"device": "npu:2"}, 4),
        ({"device": "npu", "provider_options": {"core_mask": "0_1_2"}}, 7),
        ({"device": "npu", "provider_options": {"core_mask": "all"}}, 0xFFFF),
    ],
)
def test_the_board_is_used_as_documented(artifact, lite, options, mask):
    session = opened(artifact, **options)
    assert session.device == options["device"]
    assert session.arithmetic == "float16 (RKNN, rk3588)"
    found = session.infer({"images": np.asfortranarray(FEEDS["images"])})
    assert list(found) == [output.name for output in artifact.manifest.outputs]
    lite.outputs[0][:] = 2  # the package may use its buffers again
    assert (found["head0"] == 1).all()
    assert len(session.bare(FEEDS)()) == 3
    session.close()
    run = ("inference", (1, *SIZE, 3), "uint8", ["nhwc"])
    assert lite.calls == [
        *(("load_rknn", str(artifact.path)), ("init_runtime", mask), run, run, ("release",)),
    ]


@pytest.mark.parametrize("step", ["load_rknn", "init_runtime"])
def test_a_board_that_refuses_the_file_is_named(artifact, lite, step):
    lite.codes[step] = -1
    message = problem_of(lambda: opened(artifact, device="npu"))
    assert f"{step} failed with code -1" in message and "has the chip rk3588" in message
    assert lite.calls[-1] == ("release",)


@pytest.mark.parametrize("outputs", [None, [], [np.zeros((1, 1), np.float32)] * 3])
def test_a_board_that_returns_other_outputs_is_named(artifact, lite, monkeypatch, outputs):
    monkeypatch.setattr(lite, "outputs", outputs)
    session = opened(artifact, device="npu")
    with pytest.raises(Y7EdgeError, match="returned"):
        session.infer(FEEDS)


def test_a_pc_with_the_package_is_told_to_use_the_simulator(artifact, lite, monkeypatch):
    monkeypatch.setattr(rknnrt.platform, "machine", lambda: "x86_64")
    assert "use device='simulator'" in problem_of(lambda: opened(artifact, device="npu"))


@pytest.mark.parametrize("device", ["npu", "npu:1"])
def test_a_pc_has_no_npu(artifact, device):
    message = problem_of(lambda: opened(artifact, device=device))
    assert f"device '{device}'" in message and "use device='simulator'" in message
