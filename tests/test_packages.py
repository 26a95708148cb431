"""Files that hide installed packages are named, whatever error they cause."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from y7edge.packages import hidden, hidden_behind

ROOT = Path(__file__).parents[1]
ARTIFACT = ROOT / "tests" / "reference" / "schema1.onnx"


def run(folder: Path, *words: object) -> tuple[int, str]:
    """Run the command line with ``folder`` first on the path; return code and standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "y7edge", *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cv2", ""),
        ("cv2", "raise ValueError('this script is not a module')"),
        ("onnxruntime", ""),  # opened without an error, then an attribute is missing
        ("numpy", ""),  # the command line itself cannot be imported
        ("typer", ""),
    ],
)
def test_commands_name_a_file_that_hides_a_package(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / f"{name}.py").write_text(content)
    code, text = run(tmp_path, "predict", ARTIFACT, ROOT / "docs" / "images" / "demo.jpg")
    assert code == 3
    (line,) = text.splitlines()
    assert line.startswith(f"error: {tmp_path / name}.py hides ")
    assert "rename or remove one of them (" in line


def test_an_engine_that_wraps_the_exception(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnxruntime.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        try:
            raise AttributeError("no InferenceSession", name="InferenceSession", obj=pytest)
        except AttributeError as cause:
            raise RuntimeError("cannot open the file") from cause
    except RuntimeError as error:
        assert hidden_behind(error) is None  # pytest is not hidden
    try:
        try:
            raise ImportError("no InferenceSession", name="onnxruntime.capi")
        except ImportError as cause:
            raise RuntimeError("cannot open the file") from cause
    except RuntimeError as error:
        assert str(hidden_behind(error)).startswith(f"{tmp_path / 'onnxruntime.py'} hides ")


def test_errors_that_hidden_packages_do_not_explain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cv2.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    for error in (ValueError("x"), AttributeError("x", name="x", obj=3), ImportError("x")):
        assert hidden_behind(error) is None


@pytest.mark.parametrize("folder", ["site-packages", "target/onnxruntime-1.0.dist-info"])
def test_an_installed_package_hides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    (tmp_path / folder).mkdir(parents=True)
    first = tmp_path / folder.split("/")[0]
    (first / "onnxruntime").mkdir()
    (first / "onnxruntime" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(first)
    assert hidden("onnxruntime") is None
