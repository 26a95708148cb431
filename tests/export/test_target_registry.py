"""Which targets can be built on this machine, for `y7edge check`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from y7edge.export.targets import base, ncnn_files, onnx_file, registry
from y7edge.runtimes import ncnnrt
from y7edge.runtimes.base import missing


def found(name: str, *lacking: str) -> registry.Converter:
    (one,) = [c for c in registry.converters(lacking) if c.target == name]
    return one


def test_every_target_is_reported() -> None:
    listed = registry.converters()
    assert [one.target for one in listed] == registry.names()
    assert all(one.reason and one.suffix for one in listed)


def test_a_target_whose_packages_are_installed() -> None:
    one = found("openvino")
    if missing(registry.get("openvino").NEEDS):
        pytest.skip("openvino is not installed")
    assert one.exports and one.builds and one.reason == "builds .xml files"
    assert set(one.versions) == {"openvino"}
    onnx = found("onnx")
    assert (onnx.exports, onnx.builds) == (True, False)  # `build` begins with an ONNX artifact


def test_packages_that_export_lacks() -> None:
    for name, builds in (("onnx", False), ("mnn", True)):
        if missing(registry.get(name).NEEDS):
            pytest.skip(f"{name} is not installed")
        one = found(name, "torch", "onnx")
        assert (one.exports, one.builds) == (False, builds)
        assert one.reason.endswith(
            "`y7edge export` needs torch, onnx: pip install 'y7edge[export]'"
        )


@pytest.mark.parametrize("module", [ncnn_files, ncnnrt])
def test_a_converter_or_an_engine_that_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, module: object
) -> None:
    monkeypatch.setattr(module, "NEEDS", {"no_such_package": "y7edge[ncnn]"})
    one = found("ncnn")
    assert (one.exports, one.builds) == (False, False)
    assert one.reason == (
        'target ncnn needs no_such_package, which is not installed: pip install "y7edge[ncnn]"'
    )


def test_a_package_without_its_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if missing({**ncnn_files.NEEDS, **ncnnrt.NEEDS}):
        pytest.skip("pnnx is not installed")
    monkeypatch.setattr(ncnn_files, "find_spec", lambda _: None)
    assert found("ncnn").reason.startswith("the package pnnx has no program: pip install")


def test_a_hidden_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if missing(registry.get("openvino").NEEDS):
        pytest.skip("openvino is not installed")
    (tmp_path / "openvino.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    one = found("openvino")
    assert not one.exports
    assert one.reason.startswith(f"{tmp_path / 'openvino.py'} hides ")


def test_an_interpreter_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    if missing(registry.get("litert").NEEDS):
        pytest.skip("ai_edge_litert is not installed")
    monkeypatch.setenv("Y7EDGE_LITERT_PYTHON", "/no/such/python")
    one = found("litert")
    assert not one.exports
    assert one.reason.startswith("Y7EDGE_LITERT_PYTHON is /no/such/python, expected a Python")
    assert "pip install litert-torch" in one.reason
    monkeypatch.setenv("Y7EDGE_LITERT_PYTHON", sys.executable)
    reason = found("litert").reason
    assert reason.startswith(f"{sys.executable} does not have litert-torch") or "builds" in reason


def test_a_target_without_a_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "RUNTIME", base.Unprovable("no engine here"))
    assert found("onnx").reason == "builds .onnx files, without a proof (--unverified)"
