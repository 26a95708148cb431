"""``--json``: standard output has only JSON, also of libraries in C and after failures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_help import COMMANDS
from y7edge.cli import main
from y7edge.models import weights

SLOW = pytest.mark.slow
# Command line -> keys of the first object. {…}: see ``places``.
SUCCESSES = {
    "info": {"variants"},
    "info {model}": {"inputs", "parity"},
    "data check {data} --save {out}/page.html --fix {out}/fixed": {"findings", "fix"},
    "predict {model} {images} --save {out}/found --out {out}/found.csv": {"detections"},
    "selftest {model}": {"status", "probes"},
    "calibration {model} --data {data} --form images --out {out}/c --images 2": {"digest"},
    "audit yolov7-tiny --target kl720 --imgsz 320": {"chip", "rows"},
    "train --data {data} --print-recipe": {"values", "sources"},
}
SLOW_SUCCESSES = {
    "check": {"backends", "converters", "ok"},
    "audit {model}": {"chips"},
    "train --data {data} --imgsz 64 --width 0.25 --epochs 1 --batch 2 --out {out}/t": {"map50"},
    "train --data {data} --imgsz 64 --width 0.25 --batch 2 --profile 2": set[str](),
    "train --qat {checkpoint} --data {data} --imgsz 64 --batch 2 --qat-iterations 10 --out {out}/q":
        {"best_iterations"},
    "val {model} --data {data} --save {out}/val": {"map50_95", "per_class"},
    "export {checkpoint} --imgsz 64 --out {out}/m.onnx": {"artifact", "parity"},
    "export {checkpoint} --target all-here --imgsz 64 --out {out}/all": {"artifacts"},
    "build {model} --target openvino --out {out}/m.xml": {"artifact", "parity"},
    "verify {model} --against {checkpoint}": {"status"},
    "diff {model} {model}": {"status", "stages"},
    "benchmark {model} {model} --threads 1 --runs 2": {"model_ms"},
    "live {model} test://pattern?fps=10 --duration 1": {"detections", "age_ms"},
    "sensitivity {checkpoint} --data {data} --imgsz 64 --images 1 --out {out}/s": {"layers"},
    "optimize {checkpoint} --data {data} --imgsz 64 --target onnx --runs 2 --out {out}/o "
    "--max-map-drop 1": {"candidates", "winner"},
    "soup {checkpoint} {other} --data {data} --imgsz 64 --out {out}/soup.safetensors": {"better"},
}  # fmt: skip
FAILURES = {
    "info {missing}": 1,
    "check --zzz": 2,
    "data check {missing}": 1,
    "train --data {missing}": 1,
    "train": 2,
    "val {missing} --data {data}": 1,
    "soup {missing} {missing} --data {data} --out {out}/s.safetensors": 1,
    "export {missing}": 1,
    "optimize {missing} --data {data} --out {out}": 1,
    "sensitivity {missing} --data {data} --out {out}": 1,
    "calibration {missing} --data {data} --form npz --out {out}/c": 1,
    "audit {missing}": 1,
    "verify {missing} --against {missing}": 1,
    "diff {missing} {missing}": 1,
    "build {missing} --target openvino": 1,
    "selftest {missing}": 1,
    "benchmark {missing}": 1,
    "predict {model} {missing}": 1,
    "live {model} {missing}": 1,
    "info {model} --c-header -": 1,
}


@pytest.fixture
def run(
    artifact_path: Path, checkpoint_path: Path, data: Path, tmp_path: Path,
    capfd: pytest.CaptureFixture[str], request: pytest.FixtureRequest,
) -> Callable[[str], tuple[int, list[dict[str, Any]], list[str]]]:  # fmt: skip
    """Run a command with --json; return exit code, objects and the lines of stderr."""
    places = {
        "model": artifact_path, "checkpoint": checkpoint_path, "data": data,
        "images": data.parent / "images" / "val", "out": tmp_path / "out",
        "missing": "no/such/model.onnx", "other": tmp_path / "other.safetensors",
    }  # fmt: skip
    (tmp_path / "out").mkdir()
    if "{other}" in request.node.name:
        loaded = weights.load(checkpoint_path)
        arrays = {
            key: value * value.dtype.type(1.01 if key.endswith("weight") else 1)
            for key, value in loaded.arrays.items()
        }
        weights.save(replace(loaded, arrays=arrays), places["other"])

    def run_it(line: str) -> tuple[int, list[dict[str, Any]], list[str]]:
        words = [word.format(**places) for word in line.split()]
        code = main([*words, "--json"])
        printed = capfd.readouterr()  # of file descriptors 1 and 2
        return code, list(map(_strict, printed.out.splitlines())), printed.err.splitlines()

    return run_it


def _strict(line: str) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    record = json.loads(line, parse_constant=refuse)
    assert isinstance(record, dict)
    return record


@pytest.mark.parametrize(
    ("line", "keys"),
    [*SUCCESSES.items(), *(pytest.param(*one, marks=SLOW) for one in SLOW_SUCCESSES.items())],
)
def test_success(line: str, keys: set[str], run: Callable[[str], Any]) -> None:
    code, records, lines = run(line)
    assert code in (0, 4), lines  # a gate fails after the result is printed
    assert code == 0 or lines[-1].startswith("error: ")
    assert len(records) >= 1
    assert set(records[0]) >= keys


@pytest.mark.parametrize("line", FAILURES)
def test_failure(line: str, run: Callable[[str], Any]) -> None:
    """Without a result, standard output is empty; standard error ends with the reason."""
    code, records, lines = run(line)
    assert code == FAILURES[line]
    assert records == []
    assert [text for text in lines if text.startswith("error: ")] == lines[-1:]


def test_a_failed_gate_prints_its_result(
    data: Path, tmp_path: Path, run: Callable[[str], Any]
) -> None:
    shutil.copytree(data.parent, tmp_path / "data")
    next((tmp_path / "data" / "labels" / "val").iterdir()).write_text("7 0.5 0.5 0.2 0.2\n")
    code, records, lines = run(f"data check {tmp_path / 'data'}")
    assert (code, len(records)) == (4, 1)
    assert [text for text in lines if text.startswith("error: ")] == lines[-1:] != []


@pytest.mark.parametrize("table", [FAILURES, {**SUCCESSES, **SLOW_SUCCESSES}], ids=["bad", "good"])
def test_every_command_is_here(table: dict[str, object]) -> None:
    assert [name for name in COMMANDS if not any(line.startswith(name) for line in table)] == []
