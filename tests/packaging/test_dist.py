"""What `make dist` checks, tried on this interpreter, and on wheels with faults."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.packaging import check_dist

ROOT = Path(__file__).parents[2]
BOX = {"class_name": "nut", "xyxy": [1.0, 2.0, 30.0, 40.0], "confidence": 0.9}


def test_the_tests_that_need_no_torch_exist():
    assert [name for name in check_dist.TESTS if not (ROOT / name).is_file()] == []


def test_the_oldest_versions_are_those_of_the_wheel(tmp_path):
    wheel = tmp_path / "y7edge-1-py3-none-any.whl"
    needs = [
        "numpy>=1.26",
        "typer!=0.27.*,>=0.19.1",
        'opencv-python>=4.8.0.74; extra == "opencv"',
        'y7edge[opencv]; extra == "cpu"',
        'onnxruntime>=1.24.2; extra == "qnn"',
    ]
    lines = ["Metadata-Version: 2.4", *(f"Requires-Dist: {need}" for need in needs)]
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("y7edge-1.dist-info/METADATA", "\n".join(lines))
    assert check_dist.lowest(wheel) == ["numpy==1.26", "typer==0.19.1", "opencv-python==4.8.0.74"]


@pytest.mark.parametrize(
    ("change", "agree"),
    [
        ({}, True),
        ({"xyxy": [1.5, 2.0, 30.0, 40.0], "confidence": 0.895}, True),
        ({"xyxy": [1.0, 2.0, 30.0, 42.0]}, False),
        ({"confidence": 0.85}, False),
        ({"class_name": "screw"}, False),
    ],
)
def test_detections_agree_within_a_pixel_and_a_hundredth(change, agree):
    assert check_dist.same([{**BOX, **change}], [BOX]) == agree
    assert not check_dist.same([], [BOX])


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("build") is None, reason="needs the package build")
def test_the_distributions_of_this_checkout(tmp_path):
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1767225600"}
    build = [sys.executable, "-m", "build", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, env=environment, check=True, capture_output=True, timeout=600)
    script = str(ROOT / "tests" / "packaging" / "check_dist.py")
    command = [sys.executable, script, str(tmp_path), "--no-tests", "--python", sys.executable]
    run = {"env": environment, "capture_output": True, "text": True, "timeout": 1800}
    done = subprocess.run(command, **run)
    assert done.returncode == 0, done.stderr
    assert ".tar.gz[cpu]: ok" in done.stdout

    # A wheel that lacks a file is found before anything is installed.
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as whole:
        kept = {n: whole.read(n) for n in whole.namelist() if not n.endswith("chips/rk3588.yaml")}
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in kept.items():
            archive.writestr(name, content)
    done = subprocess.run(command, **run)
    assert done.returncode == 1
    assert done.stderr.startswith(f"failed: {wheel.name} has other bytes than a wheel")
