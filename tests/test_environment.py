"""What is installed, which backend will be used, and why the others will not."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from y7edge import environment
from y7edge.cli import main
from y7edge.runtimes import registry


def test_this_installation_can_do_everything() -> None:
    report = environment.check()
    assert report.exit_code == 0
    assert report.ready == dict.fromkeys(("detect", "val", "export", "train"), True)
    assert not report.missing
    assert report.packages["numpy"] == version("numpy")
    assert report.opencv["installed"]


def test_every_runtime_is_reported() -> None:
    assert [backend.name for backend in environment.check().backends] == registry.names()


def test_missing_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("y7edge.environment.missing", lambda needs: list(needs))
    report = environment.check()
    assert not report.ready["detect"]
    assert report.exit_code == 3
    (backend,) = [b for b in report.backends if b.name == "onnxrt"]
    assert "pip install 'y7edge[onnxruntime]'" in backend.reason


def test_broken_engine_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('libcudart.so.12: no such file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    (backend,) = [b for b in environment.check().backends if b.name == "onnxrt"]
    assert not backend.usable
    assert "cannot be used: libcudart.so.12" in backend.reason


def test_missing_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    report = environment.check()
    assert report.opencv["problem"]
    assert report.exit_code == 3


@pytest.mark.parametrize(
    ("package", "extra"),
    [
        ("cv2", "opencv"),
        ("onnxruntime", "onnxruntime"),
        ("yaml", "eval"),
        ("torch", "export"),
        ("matplotlib", "train"),
    ],
)
def test_extra_of(package: str, extra: str) -> None:
    assert environment.extra_of(package) == extra


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["ok"] is True
    assert [b["name"] for b in record["backends"]] == registry.names()
    assert all(b["formats"] for b in record["backends"])
    assert main(["check"]) == 0
    assert "onnxrt" in capsys.readouterr().out
