"""MNN: no network, silent import, identifiers, float16 weights, arithmetic, messages."""

from __future__ import annotations

import shutil
import subprocess
import sys

import numpy as np
import pytest

from y7edge.errors import ConfigError, ExportError
from y7edge.export.targets import mnn_file
from y7edge.export.targets.base import BuildRequest
from y7edge.runtimes import mnnrt, onnxrt
from y7edge.runtimes.base import SessionOptions

# Not importorskip("MNN"), which would print a line.
if mnnrt.versions().get("mnn") is None:
    pytest.skip("the package mnn is not installed", allow_module_level=True)

USE = """
import sys
from pathlib import Path
import numpy as np
from y7edge.export.targets import mnn_file
from y7edge.export.targets.base import BuildRequest
from y7edge.runtimes import registry
from y7edge.runtimes.base import SessionOptions
path, graph, folder = sys.argv[1:]
artifact = registry.load(Path(path))
mnn_file.build(BuildRequest(Path(graph), None, artifact.manifest, Path(folder), "m.mnn"))
print("built", flush=True)
session = registry.open_session(artifact, SessionOptions("cpu"))
spec, = session.inputs
session.infer({spec.name: np.zeros(spec.shape, spec.dtype)})
print([name for name in sys.modules if name == "_tools" or name.startswith("MNN.tools")])
"""


@pytest.fixture
def artifact(make):
    return make("mnn").artifact


def test_export_and_use_make_no_system_call_for_the_network(artifact, make, tmp_path):
    """The contract tests only notice sockets of Python."""
    graph = make("onnx").artifact.path
    command = [sys.executable, "-c", USE, str(artifact.path), str(graph), str(tmp_path)]
    log = tmp_path / "calls"
    if strace := shutil.which("strace"):
        command = [strace, "-f", "-o", str(log), "-e", "trace=socket,connect,execve", *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "built\n[]\n"
    assert (tmp_path / "m.mnn").is_file()
    if strace:
        calls = log.read_text()
        assert "socket(" not in calls and "connect(" not in calls
        programs = [line for line in calls.splitlines() if "execve(" in line]
        assert len(programs) == 2 and all(sys.executable in line for line in programs)  # no pip


def test_identifier_depends_on_the_content(artifact, make):
    found = [
        mnnrt.load_engine().get_model_uuid(str(made.path))
        for made in (artifact, make("mnn", precision="fp16").artifact)
    ]
    assert len(set(found)) == 2
    assert all(len(name) == 36 for name in found)


def test_float16_weights_are_rounded(artifact, make):
    """Truncated weights would deviate twice as much, always to the same side."""
    half = make("mnn", precision="fp16").artifact
    sizes = [made.path.stat().st_size for made in (artifact, half)]
    assert 1.7 < sizes[0] / sizes[1] < 2.1
    session = mnnrt.open(half, SessionOptions("cpu"))
    assert session.arithmetic == "float16 weights, float32 (MNN, cpu)"
    reference = onnxrt.open(make("onnx", precision="fp16").artifact, SessionOptions("cpu"))
    (spec,) = session.inputs
    feeds = {spec.name: np.random.default_rng(0).random(spec.shape, np.float32)}
    found = session.infer(feeds)
    for name, array in reference.infer(feeds).items():
        assert found[name].dtype == np.float32
        assert np.abs(found[name] - array).max() < 2e-3 * np.abs(array).max()


def test_large_winograd_tiles_are_not_used(make, monkeypatch):
    artifact = make("mnn", imgsz=(320, 320)).artifact
    reference = onnxrt.open(make("onnx", imgsz=(320, 320)).artifact, SessionOptions("cpu"))
    (spec,) = reference.inputs
    feeds = {spec.name: np.random.default_rng(0).random(spec.shape, np.float32)}
    expected = reference.infer(feeds)

    def deviation():
        found = mnnrt.open(artifact, SessionOptions("cpu")).infer(feeds)
        return max(np.abs(found[n] - a).max() / np.abs(a).max() for n, a in expected.items())

    assert deviation() < 2e-5
    monkeypatch.setattr(mnnrt, "_WINOGRAD", (3, 3))
    assert deviation() > 5e-5, "the setting has no use any more"


def test_options_are_refused(artifact):
    with pytest.raises(ConfigError, match="MNN has no option 'precision', expected none"):
        mnnrt.open(artifact, SessionOptions("cpu", provider_options={"precision": "low"}))


def test_message_of_the_converter(artifact, make, tmp_path):
    nms = make("onnx", outputs="nms").artifact.path
    request = BuildRequest(nms, None, artifact.manifest, tmp_path, "m.mnn")
    with pytest.raises(ExportError, match=r"MNN cannot convert.*Not Support: ONNX::IsNaN"):
        mnn_file.build(request)
    assert not list(tmp_path.iterdir())
