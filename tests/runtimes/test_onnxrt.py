"""ONNX Runtime: reading files without onnx, and sessions that match the manifest."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from tests import tampering
from y7edge.artifact.artifact import Artifact
from y7edge.errors import ArtifactError, ConfigError, DeviceError
from y7edge.runtimes import onnxrt, registry
from y7edge.runtimes.base import SessionOptions, TensorSpec


@pytest.fixture(scope="module")
def artifact(artifact_path):
    return registry.load(artifact_path)


@pytest.fixture
def session(artifact):
    opened = onnxrt.open(artifact, SessionOptions(device="cpu", threads=1))
    yield opened
    opened.close()


def images(artifact, batch=1):
    image = artifact.manifest.input
    shape = (batch, 3, image.height, image.width)
    return np.random.default_rng(0).random(shape, dtype=np.float32)


# --- the file ------------------------------------------------------------------------------------


def test_the_walker_agrees_with_onnx(artifact_path):
    model = onnx.load(artifact_path)
    (entry,) = model.metadata_props
    assert entry.key == "y7edge"
    assert entry.value == onnxrt.read_manifest(artifact_path).to_json()
    del model.metadata_props[:]
    payload = model.SerializeToString(deterministic=True)
    assert hashlib.sha256(payload).hexdigest() == onnxrt.payload_digest((artifact_path,))
    onnx.checker.check_model(onnx.load(artifact_path), full_check=True)


def test_metadata_of_others_does_not_enter_the_payload(artifact_path, tmp_path):
    model = onnx.load(artifact_path)
    model.metadata_props.add(key="author", value="someone")
    copy = tmp_path / "m.onnx"
    copy.write_bytes(model.SerializeToString())
    assert onnxrt.payload_digest((copy,)) == onnxrt.payload_digest((artifact_path,))
    assert onnxrt.read_manifest(copy) == onnxrt.read_manifest(artifact_path)


def test_a_second_manifest_is_refused(artifact_path, tmp_path):
    model = onnx.load(artifact_path)
    model.metadata_props.add(key="y7edge", value=model.metadata_props[0].value)
    copy = tmp_path / "m.onnx"
    copy.write_bytes(model.SerializeToString())
    with pytest.raises(ArtifactError, match="2 entries"):
        onnxrt.read_manifest(copy)


def test_writing_a_manifest_replaces_the_old_one(artifact_path, tmp_path):
    copy = tampering.rewrite(artifact_path, tmp_path / "m.onnx", licence="MIT")
    assert onnxrt.read_manifest(copy).licence == "MIT"
    assert len(onnx.load(copy).metadata_props) == 1
    assert onnxrt.payload_digest((copy,)) == onnxrt.payload_digest((artifact_path,))


def test_file_without_manifest_names_the_export(tmp_path):
    path = tmp_path / "foreign.onnx"
    onnx.save(doubling([1, 3]), path)
    with pytest.raises(ArtifactError, match=r"foreign\.onnx has no y7edge manifest.*y7edge export"):
        registry.load(path)


def test_truncated_files_are_refused(artifact_path, tmp_path):
    whole = artifact_path.read_bytes()
    copy = tmp_path / "m.onnx"
    for length in (1, 5, 100, len(whole) // 2, len(whole) - 1):
        copy.write_bytes(whole[:length])
        with pytest.raises(ArtifactError, match="not a whole ONNX file"):
            onnxrt.read_manifest(copy)


# --- the session ---------------------------------------------------------------------------------


def test_outputs_match_the_manifest(artifact, session):
    assert session.inputs == (TensorSpec("images", (1, 3, 96, 128), "float32", "images", "NCHW"),)
    assert [(o.name, o.role) for o in session.outputs] == [(f"head{i}", "head") for i in range(3)]
    feeds = {"images": images(artifact)}
    results = session.infer(feeds)
    plain = onnxruntime.InferenceSession(str(artifact.path)).run(None, feeds)
    for spec, expected in zip(session.outputs, plain, strict=True):
        assert results[spec.name].shape == spec.shape
        assert results[spec.name].dtype == spec.dtype
        np.testing.assert_allclose(results[spec.name], expected, atol=1e-5)
    assert session.device == "cpu"
    assert "float32" in session.arithmetic


def test_telemetry_is_off(artifact_path, tmp_path):
    # Its telemetry leaves a session file in the temporary folder; in tests it is off.
    silencers = ("ORT_DISABLE_TELEMETRY", "CI", "PYTEST_CURRENT_TEST", "PYTEST_VERSION")
    environment = {k: v for k, v in os.environ.items() if k not in silencers}
    script = f"from y7edge import Detector; Detector({str(artifact_path)!r}).warmup()"
    environment["TMPDIR"] = str(tmp_path)
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)
    assert list(tmp_path.iterdir()) == []


def test_cuda_is_never_replaced_by_the_cpu(artifact, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(DeviceError, match="onnxruntime-gpu"):
        onnxrt.open(artifact, SessionOptions(device="cuda:1"))
    assert onnxrt.open(artifact, SessionOptions(device="auto")).device == "cpu"


def test_silent_fallback_is_an_error(artifact, monkeypatch):
    real, given = onnxruntime.InferenceSession, {}

    def start(path, settings, providers):
        given["providers"] = providers
        return real(path, settings, providers=["CPUExecutionProvider"])

    available = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    monkeypatch.setattr(onnxruntime, "InferenceSession", start)
    with pytest.raises(DeviceError, match="on the CPU"):
        onnxrt.open(artifact, SessionOptions(device="cuda:1"))
    name, options = given["providers"][0]
    assert name == "CUDAExecutionProvider"
    assert options == {"device_id": 1, "use_tf32": 0}, "fp32 is fp32: no tf32"
    assert onnxrt.open(artifact, SessionOptions(device="auto")).device == "cpu"


def test_another_provider_is_used_or_an_error(artifact, monkeypatch):
    real, given = onnxruntime.InferenceSession, {}
    name = "TensorrtExecutionProvider"
    options = SessionOptions(provider_options={"provider": name, "trt_fp16_enable": 1})
    with pytest.raises(DeviceError, match=f"{name}.* is not available: .*CPUExecutionProvider"):
        onnxrt.open(artifact, options)

    def start(path, settings, providers):
        given["providers"] = providers
        return real(path, settings, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [name])
    monkeypatch.setattr(onnxruntime, "InferenceSession", start)
    with pytest.raises(DeviceError, match=r"opened .* with CPUExecutionProvider"):
        onnxrt.open(artifact, options)
    assert given["providers"] == [(name, {"trt_fp16_enable": 1}), ("CPUExecutionProvider", {})]
    with pytest.raises(ConfigError, match="or a provider, not both"):
        onnxrt.open(artifact, SessionOptions("cpu", provider_options={"provider": name}))
    with pytest.raises(ConfigError, match="give device='cuda'"):  # which switches TF32 off
        own = {"provider": "CUDAExecutionProvider"}
        onnxrt.open(artifact, SessionOptions(provider_options=own))


@pytest.mark.parametrize("own", [{"proivder": "CUDAExecutionProvider"}, {"use_arena": 0}])
def test_options_that_the_cpu_would_ignore_are_refused(artifact, own):
    with pytest.raises(ConfigError, match=f"no option {next(iter(own))!r} on the CPU"):
        onnxrt.open(artifact, SessionOptions(provider_options=own))
    with pytest.raises(ConfigError, match="on the CPU"):
        own = {"provider": "CPUExecutionProvider", **own}
        onnxrt.open(artifact, SessionOptions(provider_options=own))


def test_the_provider_is_reported(artifact):
    others = [p for p in onnxruntime.get_available_providers() if p != "CPUExecutionProvider"]
    for name in ("CPUExecutionProvider", *others):
        session = onnxrt.open(artifact, SessionOptions(provider_options={"provider": name}))
        if name == "CPUExecutionProvider":
            assert (session.device, session.arithmetic) == ("cpu", "float32 (ONNX Runtime, cpu)")
        else:
            assert session.device == name
            assert session.arithmetic == f"chosen by {name} for fp32 (ONNX Runtime)"


def test_a_graph_that_contradicts_its_manifest_does_not_open(artifact, artifact_path, tmp_path):
    names = ("a", "b", "c", "d")
    heads = tuple(replace(o, shape=(1, 27, *o.shape[2:])) for o in artifact.manifest.outputs)
    copy = tampering.rewrite(artifact_path, tmp_path / "m.onnx", names=names, nc=4, outputs=heads)
    with pytest.raises(
        ArtifactError, match=r"head0 float32 \(1, 24, 12, 16\), its manifest has.*\(1, 27"
    ):
        registry.open_session(registry.load(copy))


def test_a_graph_with_other_tensors_does_not_open(artifact, tmp_path):
    image = artifact.manifest.input
    path = tmp_path / "m.onnx"
    onnx.save(doubling([1, 3, image.height, image.width], "images", "head0"), path)
    with pytest.raises(ArtifactError, match=r"export it again"):
        onnxrt.open(Artifact(path, artifact.manifest), SessionOptions())


def test_a_file_that_the_engine_refuses_is_wrapped(artifact, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(artifact.path.read_bytes()[:1000])
    with pytest.raises(DeviceError, match=r"cannot open .*m\.onnx") as caught:
        onnxrt.open(Artifact(path, artifact.manifest), SessionOptions())
    assert "\n" not in str(caught.value)


def doubling(shape, source="x", result="y"):
    """The smallest ONNX model there is."""
    return helper.make_model(
        helper.make_graph(
            [helper.make_node("Add", [source, source], [result])],
            "doubling",
            [helper.make_tensor_value_info(source, TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(result, TensorProto.FLOAT, shape)],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )


# --- the time of nodes ---------------------------------------------------------------------------


def test_times_of_the_nodes_of_two_files(artifact, artifact_path, tmp_path, monkeypatch):
    paths = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    for path in paths:
        path.write_bytes(artifact_path.read_bytes())
    (tmp_path / "working").mkdir()
    monkeypatch.chdir(tmp_path / "working")
    first, second = onnxrt.node_times(paths, {"images": images(artifact)}, runs=3, threads=1)
    assert first.keys() == second.keys()
    assert len(first) > 58  # a node for each convolution, and others
    assert all(0 <= ms < 1000 for ms in first.values())
    assert sum(first.values()) > 0.05
    assert not list((tmp_path / "working").iterdir())  # profiles are written beside the files


def test_the_first_run_is_not_counted():
    def event(ms):
        return {"cat": "Node", "name": "/row0/Conv_kernel_time", "dur": 1000 * ms}

    events = [event(1), {"cat": "Session", "name": "run"}, event(3), event(2)]
    assert onnxrt._node_times(events) == {"/row0/Conv": 2.0}


def test_times_of_a_file_that_cannot_be_run(artifact_path, tmp_path):
    path = tmp_path / "a.onnx"
    path.write_bytes(artifact_path.read_bytes())
    with pytest.raises(DeviceError, match=r"a\.onnx failed"):
        onnxrt.node_times([path], {"pixels": np.zeros(1, np.float32)}, runs=1)
    path.write_bytes(b"no model")
    with pytest.raises(DeviceError, match="cannot open"):
        onnxrt.node_times([path], {}, runs=1)
