"""Which runtime opens what; and the contract that every runtime of the listing keeps."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from types import SimpleNamespace

import pytest

from y7edge.errors import ArtifactError, ConfigError, RuntimeMissing
from y7edge.export.targets import registry as targets
from y7edge.runtimes import base, onnxrt, registry


@pytest.fixture
def other_packages(monkeypatch):
    """Announce runtimes as installed packages do."""

    def announce(**values):
        points = [EntryPoint(name, value, registry.GROUP) for name, value in values.items()]
        monkeypatch.setattr(registry, "entry_points", lambda group: points)
        registry._installed.cache_clear()

    yield announce
    registry._installed.cache_clear()


@pytest.mark.parametrize("name", registry.names())
def test_every_runtime_keeps_the_contract(name):
    runtime = registry.get(name)
    assert runtime.FORMATS and all(f.startswith(".") and f == f.lower() for f in runtime.FORMATS)
    assert set(runtime.TARGETS) <= set(targets.names())
    assert all(requirement.startswith("y7edge[") for requirement in runtime.NEEDS.values())
    for function in ("open", "read_manifest", "payload_digest", "versions"):
        assert callable(getattr(runtime, function))
    assert registry.name_of(runtime) == name
    assert name not in runtime.NEEDS, "a module must not carry the name of its engine"


@pytest.mark.parametrize("name", registry.names())
def test_every_runtime_refuses_garbage_in_one_line(name, tmp_path):
    runtime = registry.get(name)
    path = tmp_path / f"model{runtime.FORMATS[0]}"
    for content in (b"", b"\0" * 100, b"garbage, not a model " * 50, b"\xff" * 1000):
        path.write_bytes(content)
        for read in (runtime.read_manifest, runtime.payload_digest):
            with pytest.raises(ArtifactError, match="model") as caught:
                read(path)
            assert "\n" not in str(caught.value)


def test_by_suffix_name_and_manifest(artifact_path, tmp_path):
    assert registry.find(artifact_path) is onnxrt
    assert registry.find(artifact_path, "onnxrt") is onnxrt
    assert registry.load(str(artifact_path)).manifest.model.startswith("yolov7-tiny")
    with pytest.raises(ConfigError, match=r"no backend 'trt'.*onnxrt"):
        registry.find(artifact_path, "trt")
    with pytest.raises(ArtifactError, match="there is no file"):
        registry.find(tmp_path / "none.onnx")
    (tmp_path / "m.tar").write_bytes(b"x")
    with pytest.raises(ArtifactError, match=r"no runtime reads m\.tar.*\.onnx"):
        registry.find(tmp_path / "m.tar")
    with pytest.raises(ConfigError, match=r"reads \.onnx"):
        registry.find(tmp_path / "m.tar", "onnxrt")


def test_the_manifest_decides_between_two_of_one_suffix(artifact_path, other_packages, monkeypatch):
    rival = SimpleNamespace(FORMATS=(".onnx",), TARGETS=("onnx",))
    other_packages(rival="rival_package")
    real = registry.get
    monkeypatch.setattr(registry, "get", lambda name: rival if name == "rival" else real(name))
    assert registry.find(artifact_path) is onnxrt
    monkeypatch.setattr(onnxrt, "TARGETS", ("qnn",))
    assert registry.find(artifact_path) is rival


def test_other_packages_add_runtimes_and_cannot_replace_ours(other_packages):
    other_packages(onnxrt="json", plugin="json", broken="no_such_package_here")
    assert registry.names() == ["onnxrt", "broken", "plugin"]
    assert registry.get("onnxrt") is onnxrt
    import json

    assert registry.get("plugin") is json
    with pytest.raises(RuntimeMissing, match="no_such_package_here") as caught:
        registry.get("broken")
    assert caught.value.exit_code == 3


def test_a_missing_engine_is_named_with_the_way_to_get_it(artifact_path, monkeypatch):
    monkeypatch.setattr(base, "find_spec", lambda name: None)
    with pytest.raises(RuntimeMissing, match=r'onnxruntime.*pip install "y7edge\[cpu\]"'):
        registry.open_session(registry.load(artifact_path))
