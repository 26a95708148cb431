"""All artifacts that can be made here, in one table."""

from __future__ import annotations

import json

import pytest

from tests.runtimes.conftest import unavailable
from y7edge.cli import main
from y7edge.errors import (
    ArtifactError,
    ConfigError,
    DeviceError,
    ExportError,
    GateError,
    OutputError,
    ParityError,
)
from y7edge.export import everything
from y7edge.export.everything import ExportPlan, Made, export_all, require_none_refused
from y7edge.export.targets import registry as targets
from y7edge.export.targets import triton
from y7edge.export.targets.base import Unprovable
from y7edge.models import weights
from y7edge.runtimes import mnnrt, registry
from y7edge.runtimes.base import is_simulated

SIZE = (64, 96)


def order(checkpoint, folder, **values):
    return ExportPlan(checkpoint, folder, "m", SIZE, runs=1, **values)


def test_each_precision_is_made_proved_and_measured(narrow_tiny, tmp_path):
    found = export_all(order(narrow_tiny, tmp_path / "all", only=["onnx", "triton"]))
    kinds = {(one.target, one.precision): one for one in found}
    assert len(kinds) == len(found) == 6
    for (target, precision), one in kinds.items():
        if precision == "int8":
            assert (one.state, one.path) == ("not made", None)
            assert "give --data or --calib" in one.problem
            continue
        assert one.state == ("run" if target == "onnx" else "handed over")
        assert registry.load(one.path).manifest.precision == precision
        assert (one.ms is not None) == (one.state == "run")
        assert ("deviation" if precision == "fp32" else "cosine") in one.parity
        assert one.seconds > 0 and one.megabytes > 0 and not one.problem
    assert {p.name for p in (tmp_path / "all").iterdir()} == {
        *("m-onnx-fp32.onnx", "m-onnx-fp16.onnx"),
        *("m-fp32.triton.handover", "m-fp16.triton.handover"),
    }


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (ParityError("differs", None), "refused"),
        (ExportError("the disk is full"), "not made"),
        (ArtifactError("the engine cannot open the file"), "not made"),
        (OutputError("the disk is full"), "not made"),
    ],
)
def test_a_failure_ends_one_row_only(narrow_tiny, tmp_path, monkeypatch, error, state):
    real = everything.export

    def failing(*args, **options):
        if options["precision"] == "fp16":
            raise error
        return real(*args, **options)

    monkeypatch.setattr(everything, "export", failing)
    first, second, _ = export_all(order(narrow_tiny, tmp_path, only=["onnx"]))
    assert (first.state, second.state, second.problem) == ("run", state, str(error))
    if state == "refused":
        with pytest.raises(GateError, match="the proof failed for onnx fp16"):
            require_none_refused([first, second])
    else:
        require_none_refused([first, second])


def test_the_table_does_not_need_the_latency(narrow_tiny, tmp_path, monkeypatch):
    def failing(*_, **__):
        raise DeviceError("the GPU is lost")

    monkeypatch.setattr(everything, "compare_files", failing)
    lines = []
    found = export_all(order(narrow_tiny, tmp_path, only=["onnx"]), lines.append)
    assert [one.state for one in found] == ["run", "run", "not made"]
    assert {one.ms for one in found} == {None}
    assert lines[-1] == "the latency was not measured: the GPU is lost"


def test_what_nothing_here_runs_is_not_run(narrow_tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(triton, "RUNTIME", Unprovable("the server is elsewhere"))
    one, *_ = export_all(order(narrow_tiny, tmp_path, only=["triton"]))
    assert (one.state, one.problem, one.parity) == (
        *("not run", "the server is elsewhere"),
        "unverified",
    )


def test_emulators_are_told_from_devices(monkeypatch):
    assert not is_simulated(mnnrt)
    monkeypatch.setattr(mnnrt, "DEVICES", ("npu", "emulator"))
    monkeypatch.setattr(mnnrt, "available_devices", lambda: ["emulator"])
    assert is_simulated(mnnrt)
    with monkeypatch.context() as patch:
        patch.setattr(mnnrt, "NEEDS", {"no_such_engine": "y7edge[mnn]"})
        assert not is_simulated(mnnrt)  # the engine cannot be asked
    monkeypatch.setattr(mnnrt, "available_devices", lambda: ["npu", "emulator"])
    assert not is_simulated(mnnrt)


def test_an_emulator_whose_package_is_missing_ends_one_row_only(narrow_tiny, tmp_path, monkeypatch):
    absent = {"y7edge_absent": "y7edge[qnn]"}
    for module in (targets.get("qnn"), registry.get("qnn")):
        monkeypatch.setattr(module, "NEEDS", absent)
    monkeypatch.setattr(registry.get("qnn"), "load_engine", pytest.fail)
    found = export_all(order(narrow_tiny, tmp_path, only=["qnn"]))
    assert {one.state for one in found} == {"not made"}
    assert "needs y7edge_absent" in found[0].problem


def test_results_of_an_emulator_are_not_those_of_a_device(narrow_tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(everything, "is_simulated", lambda runtime: True)
    first, *_ = export_all(order(narrow_tiny, tmp_path, only=["onnx"]))
    assert (first.state, first.ms, first.map50_95) == ("emulated", None, None)
    assert first.where.startswith("float32 (")


def test_foreign_files_are_found_before_the_work(narrow_tiny, tmp_path):
    (tmp_path / "m-onnx-int8.onnx").write_bytes(b"mine")
    with pytest.raises(ConfigError, match="does not belong to the artifact"):
        export_all(order(narrow_tiny, tmp_path, only=["onnx"]))
    assert [p.name for p in tmp_path.iterdir()] == ["m-onnx-int8.onnx"]


@pytest.mark.slow
def test_the_command_prints_one_table(narrow_tiny, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(targets, "names", lambda: ["mnn", "onnx"])
    if reason := unavailable(targets.get("mnn")):
        pytest.skip(reason)
    path = tmp_path / "narrow.safetensors"
    weights.save(narrow_tiny, path)
    command = ["export", str(path), "--target", "all-here", "--imgsz", "64x96"]
    assert main([*command, "--out", str(tmp_path / "a")]) == 0
    out = capfd.readouterr().out
    assert out.splitlines()[0].split()[:4] == ["target", "precision", "state", "MB"]
    assert "onnx int8: calibration images are missing: give --data or --calib" in out
    assert main([*command, "--out", str(tmp_path / "a"), "--json"]) == 0
    record = json.loads(capfd.readouterr().out)
    assert {one["state"] for one in record["artifacts"]} == {"run", "not made"}
    for option in (["--precision", "fp16"], ["--batch", "2"], ["--option", "a=b"], ["--dynamic"]):
        assert main([*command, *option]) == 2
        assert f"{option[0]} is for a single target" in capfd.readouterr().err


def test_a_refused_proof_fails_the_command(narrow_tiny, tmp_path, monkeypatch, capfd):
    refused = (Made("onnx", "fp32", "refused", problem="the artifact differs from its model"),)
    monkeypatch.setattr(everything, "export_all", lambda *_: refused)
    assert main(["export", "yolov7-tiny", "--target", "all-here", "--out", str(tmp_path)]) == 4
    found = capfd.readouterr()
    assert "the artifact differs" in found.out
    assert "the proof failed for onnx fp32" in found.err
