"""What is installed, which backend will be used, and why the others will not."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

from y7edge import environment, machine
from y7edge.cli import main
from y7edge.cli.check import _gstreamer
from y7edge.export.targets import registry as targets
from y7edge.runtimes import registry


def test_this_installation_can_do_everything() -> None:
    report = environment.check()
    assert report.exit_code == 0
    assert report.ready == dict.fromkeys(
        ("detect", "val", "export", "train", "web page", "tracking"), True
    )
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


def _onnxrt() -> environment.Backend:
    (backend,) = [b for b in environment.check().backends if b.name == "onnxrt"]
    return backend


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise ImportError('libcudart.so.12: no such file')", "cannot be used: libcudart.so.12"),
        ("import os; os.kill(os.getpid(), 4)", "SIGILL: this build needs CPU instructions"),
        ("import os; os.kill(os.getpid(), 11)", "importing it ended with SIGSEGV"),
        ("import os; os._exit(0)", "importing it ended the process"),
        ("print('hello')\nx = 1", "has no attribute 'get_available_providers'"),
    ],
)
def test_broken_engine_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, reason: str
) -> None:
    (tmp_path / "onnxruntime.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(environment, "hidden", lambda module: None)
    backend = _onnxrt()
    assert not backend.usable
    assert reason in backend.reason
    assert "\n" not in backend.reason
    assert backend.versions


@pytest.mark.parametrize("package", [False, True])
def test_a_file_that_hides_an_engine_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: bool
) -> None:
    place = tmp_path / ("onnxruntime" if package else "onnxruntime.py")
    if package:
        place.mkdir()
    (place / "__init__.py" if package else place).write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    backend = _onnxrt()
    assert not backend.usable
    assert backend.reason.startswith(f"{place} hides ")
    assert "site-packages" in backend.reason


def test_a_folder_without_a_module_hides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnxruntime").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert _onnxrt().usable


@pytest.mark.parametrize("name", ["cv3", "cv3.py"])
def test_a_local_file_or_folder_in_place_of_a_missing_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    place = tmp_path / name
    place.touch() if name.endswith(".py") else place.mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert environment.hidden("cv3") == (
        f"{place} is found instead of an installed package: rename it"
    )
    assert environment.hidden("cv4") is None


def test_a_version_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = ['onnxruntime>=99.1; extra == "onnxruntime"', "numpy>=1.26"]
    monkeypatch.setattr(environment.metadata, "requires", lambda _: needs)
    backend = _onnxrt()
    assert not backend.usable
    found = version("onnxruntime")
    assert backend.reason == (
        f"onnxruntime is {found}, expected 99.1 or later: pip install -U onnxruntime"
    )


def test_the_least_version_is_that_of_the_runtimes_own_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The extra qnn asks for a newer ONNX Runtime than the runtime of ONNX artifacts needs.
    needs = ['onnxruntime>=1.17; extra == "onnxruntime"', "onnxruntime>=99.1; extra == 'qnn'"]
    monkeypatch.setattr(environment.metadata, "requires", lambda _: needs)
    assert _onnxrt().usable


@pytest.mark.parametrize(
    ("version", "least", "fits"),
    [
        ("1.17", "1.17", True),
        ("1.17.0", "1.17", True),
        ("1.9.3", "1.17", False),
        ("2024.4.0rc1", "2024.4", True),
        ("1.0.20250503", "1.0.20250504", False),
        ("unknown", "1", False),
    ],
)
def test_versions_are_compared_as_numbers(version: str, least: str, fits: bool) -> None:
    assert (environment.version_numbers(version) >= environment.version_numbers(least)) == fits


def test_two_opencv_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"cv2": ["opencv-python", "opencv-python-headless"]}
    monkeypatch.setattr(environment.metadata, "packages_distributions", lambda: found)
    problem = environment.check().opencv["problem"]
    assert problem.startswith("opencv-python and opencv-python-headless are installed")


def test_gstreamer_is_read_from_the_build_information(monkeypatch: pytest.MonkeyPatch) -> None:
    import cv2

    for text, found in (("    GStreamer:   YES (1.20)\n", True), ("    GStreamer:   NO\n", False)):
        monkeypatch.setattr(cv2, "getBuildInformation", lambda text=text: text)
        assert environment.check().opencv["gstreamer"] == found


def test_gstreamer_of_this_machine() -> None:
    found = environment.check().gstreamer
    if find_spec("gi") is None:
        assert not found.usable and "PyGObject is not installed" in str(found.problem)
    else:
        assert found.usable != (found.problem is not None)


def test_a_file_in_place_of_pygobject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gi.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    found = environment._look_for_gstreamer()()
    assert found.problem == f"{tmp_path / 'gi.py'} hides PyGObject: rename it"


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("raise SystemExit", "loading it ended the process"),
        ("import os; os.abort()", "loading it ended the process"),
        ("import time; time.sleep(60)", "loading it takes more than 0.5 s"),
    ],
)
def test_gstreamer_that_fails(code: str, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_GSTREAMER", code)
    monkeypatch.setattr(environment, "_SECONDS", 0.5 if "sleep" in code else 60)
    found = environment._look_for_gstreamer()()
    assert not found.usable and found.problem == problem


def test_lines_about_gstreamer() -> None:
    good = environment.GStreamer(
        *(True, None, "1.20.3"),
        missing={"avdec_h264": "apt A", "avdec_h265": "apt A", "rtspsrc": "apt B"},
        jetson=("nvvidconv",),
    )
    assert _gstreamer(good) == [
        "GStreamer: 1.20.3, of a Jetson: nvvidconv",
        "GStreamer lacks avdec_h264, avdec_h265: apt A",
        "GStreamer lacks rtspsrc: apt B",
    ]
    bad = environment.GStreamer(False, "PyGObject is not installed: x", None, {}, ())
    assert _gstreamer(bad) == ["GStreamer, for cameras: PyGObject is not installed: x"]


def test_a_file_in_place_of_opencv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cv2.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cv2")
    report = environment.check()
    assert report.exit_code == 3
    assert report.opencv["problem"].startswith(f"{tmp_path / 'cv2.py'} hides ")


def test_the_processor_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("y7edge.machine.processor_quota", lambda: 1.5)
    found = environment.check().processor
    assert found.model and found.quota == 1.5 and found.usable_cores == 1
    assert set(found.features) <= set(machine.FEATURES)
    assert {**found.features, **found.absent} == machine.known_features()
    assert not found.features.keys() & found.absent.keys()
    assert 1 <= found.cores <= found.processors


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
    assert [c["target"] for c in record["converters"]] == targets.names()
    assert {"model", "features", "cores", "usable_cores", "quota"} <= record["processor"].keys()
    assert main(["check"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("onnxrt ") for line in lines)
    assert any(line.split()[:3] == ["onnx", "yes", "no"] for line in lines)


def test_a_package_that_the_system_keeps_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a Jetson; see tests/runtimes/test_trt.py."""
    runtime = registry.get("onnxrt")
    monkeypatch.setattr(runtime, "misplaced", lambda: "run `ln -sfn A B`", raising=False)
    usable = _onnxrt()
    assert usable.usable
    assert usable.reason.endswith("; run `ln -sfn A B`")
    monkeypatch.setattr("y7edge.environment.missing", lambda needs: list(needs))
    assert _onnxrt().reason == "onnxruntime is not installed: run `ln -sfn A B`"
