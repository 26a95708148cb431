"""The choice of a runtime for a file."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

from y7edge import Detector
from y7edge.errors import (
    ArtifactError,
    ArtifactMissing,
    ConfigError,
    DeviceError,
    DigestError,
    RuntimeMissing,
)
from y7edge.runtimes import base, onnxrt, registry


@pytest.fixture
def rivals(monkeypatch):
    """The registry lists these runtimes and no others."""

    def only(*modules):
        monkeypatch.setattr(registry, "loadable", lambda: list(modules))

    return only


def runtime(target=None, error=None, targets=("rival",), needs=()):
    """A runtime that reads .onnx files and finds ``target`` in them, or raises."""

    def read_manifest(path):
        if error is not None:
            raise error
        return SimpleNamespace(target=target)

    return SimpleNamespace(
        FORMATS=(".onnx",),
        TARGETS=targets,
        NEEDS=dict.fromkeys(needs, "y7edge[rival]"),
        read_manifest=read_manifest,
    )


def test_by_suffix_name_and_manifest(artifact_path, tmp_path):
    assert registry.find(artifact_path) is onnxrt
    assert registry.find(artifact_path, "onnxrt") is onnxrt
    assert registry.load(str(artifact_path)).manifest.model.startswith("yolov7-tiny")
    with pytest.raises(ConfigError, match=r"no backend 'nothing'.*onnxrt"):
        registry.find(artifact_path, "nothing")
    with pytest.raises(ArtifactMissing, match="there is no file"):
        registry.find(tmp_path / "none.onnx")
    (tmp_path / "m.tar").write_bytes(b"x")
    with pytest.raises(ArtifactError, match=r"no runtime reads .*m\.tar.*\.onnx"):
        registry.find(tmp_path / "m.tar")
    with pytest.raises(ConfigError, match=r"reads \.onnx"):
        registry.find(tmp_path / "m.tar", "onnxrt")


def test_the_manifest_decides_between_two_of_one_suffix(artifact_path, rivals):
    """Whatever their order, and whatever the other one's reader says of the file."""
    mine = runtime("rival")
    cases = (
        [runtime("rival", targets=("other",)), mine],
        [runtime(error=ArtifactError("another format")), mine],
        [runtime(error=DigestError("changed")), mine],
        [runtime("rival", needs=("no_such_engine",)), mine],
    )
    for pair in cases:
        for order in (pair, pair[::-1]):
            rivals(*order)
            assert registry.find(artifact_path) is mine


def test_the_reason_of_a_choice(artifact_path, rivals):
    assert registry.choose(artifact_path) == (onnxrt, "no other runtime reads .onnx files")
    assert registry.choose(artifact_path, "onnxrt")[1] == "backend 'onnxrt' was given"
    with Detector(artifact_path) as detector:
        assert detector.info["backend"] == "onnxrt"
        assert detector.info["why"] == "no other runtime reads .onnx files"
    other = runtime("rival", targets=("other",))
    for mine, reason in (
        (runtime("rival"), "runs the file's target, and its engine is installed"),
        (runtime("rival", needs=("no_such_engine",)), "but its engine is not installed"),
        (runtime("rival", targets=("more",)), "does not run the file's target"),
    ):
        rivals(mine, other)
        found, why = registry.choose(artifact_path)
        assert found is mine and reason in why and why.startswith("of 2 runtimes for .onnx files")


def test_damaged_file_gets_its_runtimes_message(artifact_path, rivals):
    changed = runtime(error=DigestError("changed"))
    rivals(runtime(error=ArtifactError("another format")), changed)
    assert registry.find(artifact_path) is changed


def test_an_engine_that_cannot_be_imported_is_named(artifact_path, monkeypatch):
    def fail():
        raise ImportError("libcudart.so.12:\ncannot open")

    monkeypatch.setattr(onnxrt, "load_engine", fail)
    with pytest.raises(RuntimeMissing, match=r"cannot be imported: libcudart\.so\.12: cannot open"):
        registry.open_session(registry.load(artifact_path))


def test_a_file_that_hides_the_engine_is_named(artifact_path, tmp_path):
    (tmp_path / "onnxruntime.py").write_text("")
    script = (
        "from y7edge import Detector\n"
        "from y7edge.errors import RuntimeMissing\n"
        f"try: Detector({str(artifact_path)!r})\n"
        "except RuntimeMissing as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path
    )
    assert "onnxruntime.py hides " in done.stdout, done.stderr


def test_other_errors_of_opening_are_ours(artifact_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("no\nmore")

    monkeypatch.setattr(onnxrt, "open", fail)
    with pytest.raises(DeviceError, match=r"cannot be opened: no more"):
        registry.open_session(registry.load(artifact_path))


def test_missing_engine_names_the_extra(artifact_path, monkeypatch):
    monkeypatch.setattr(base, "find_spec", lambda name: None)
    with pytest.raises(RuntimeMissing, match=r'onnxruntime.*pip install "y7edge\[onnxruntime\]"'):
        registry.open_session(registry.load(artifact_path))


@pytest.mark.parametrize(
    ("name", "module"),
    [("openvino", "ov"), ("onnxruntime", "onnxrt"), ("onnx", "onnxrt"), ("MNN", "mnnrt")],
)
def test_names_of_engines_and_targets_select_their_runtime(name, module):
    assert registry.get(name) is registry.get(module)
