"""Energy per frame, with programs that print recorded lines instead of tegrastats."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from tests.fake_model import FakeSession, make_manifest
from y7edge import jetson
from y7edge.benchmark import measure, power
from y7edge.benchmark.measure import compare, open_measured
from y7edge.benchmark.power import measure_power
from y7edge.cli import main
from y7edge.detect.detector import Detector
from y7edge.errors import ConfigError

RECORDED = {
    entry["name"]: entry["line"]
    for entry in json.loads(
        (Path(__file__).parents[1] / "reference" / "jetson" / "tegrastats.json").read_text()
    )
}
NANO = RECORDED["JetPack 7.2.1, Orin Nano"]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power, "_SETTLE_SECONDS", 0.1)
    monkeypatch.setattr(power, "_SECONDS", 0.3)
    monkeypatch.setattr(power, "_MIN_SAMPLES", 1)


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> jetson.Jetson:
    """Pretend to run on an Orin Nano."""
    found = jetson.Jetson(
        *("NVIDIA Jetson Orin Nano Developer Kit", "p3767-0005", "Jetson Orin Nano 8 GB"),
        *("tegra234", "39.2.1", "7.2.1", "L4T 39.2.1", {}, None, None),
        jetson.PowerModes("/etc/nvpmodel.conf", {0: "15W", 1: "25W"}, current=1),
        jetson.Clocks({"gpu": (918.0, 918.0)}, True),
    )
    monkeypatch.setattr(jetson, "find", lambda: found)
    return found


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, *lines: str, end: str = "") -> None:
    """Put a program on PATH that prints the lines again and again."""
    program = folder / "tegrastats"
    program.write_text(
        f"#!{sys.executable} -S\nimport itertools, sys, time\n"
        f"for line in itertools.cycle({list(lines)!r}):\n"
        f"    print(line, flush=True); time.sleep(0.02)\n    {end or 'pass'}\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


def frame(_: int) -> None:
    time.sleep(0.01)


def test_energy_is_mean_power_times_the_time_of_a_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hot = NANO.replace("VDD_IN 3582mW", "VDD_IN 9582mW").replace("gpu@46.843C", "gpu@66C")
    hot = hot.replace("GR3D_FREQ 0%@[305]", "GR3D_FREQ 99%@[918]").replace("5%@665", "90%@3199")
    install(tmp_path, monkeypatch, NANO, hot)
    indices: list[int] = []

    def run(index: int) -> None:
        indices.append(index)
        time.sleep(0.01)

    measured = measure_power(run, 20)
    found = measured.power
    assert found and measured.problem is None
    assert indices == list(range(len(indices)))
    assert 0 < found.frames < len(indices)  # the rest was the warm-up
    assert found.rail == "VDD_IN"
    assert found.mean_mw == found.rails_mw["VDD_IN"]
    # As many lines of one kind as of the other, except for one.
    assert found.samples > 3
    assert found.mean_mw == pytest.approx(6582, abs=3000 / found.samples + 1)
    assert found.rails_mw["VDD_SOC"] == 1127
    assert found.seconds >= 0.3
    assert found.frame_ms == pytest.approx(1e3 * found.seconds / found.frames, rel=0.01)
    assert found.mj_per_frame == pytest.approx(found.mean_mw * found.frame_ms / 1e3, rel=0.001)
    assert found.temperatures["gpu"][1] == 66
    assert found.clocks_mhz == {"cpu": (729, 729), "gpu": (305, 918), "emc": (665, 3199)}
    text = "\n".join(found.lines())
    assert f"{found.mj_per_frame:.1f} mJ per frame" in text and "mW of VDD_IN x" in text
    assert "gpu 305 to 918 MHz" in text and "66.0 C" in text


@pytest.mark.parametrize(
    ("name", "rail", "mean"),
    [
        ("JetPack 4, Nano", "POM_5V_IN", 933),
        ("JetPack 4, TX2", "VDD_IN", 2003),
        ("JetPack 4, AGX Xavier", "GPU + CPU + SOC + CV + VDDRQ + SYS5V", 216 + 864 + 144 + 1889),
        ("JetPack 5, AGX Orin, root", "VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0", 2399 + 400 + 4032),
        ("JetPack 6, AGX Orin", "VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0", 2412 + 1607 + 4707),
        ("JetPack 7, Thor under load", "VIN", 70000),  # contains the others
    ],
)
def test_the_rails_of_the_whole_board(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, rail: str, mean: int
) -> None:
    install(tmp_path, monkeypatch, RECORDED[name])
    found = measure_power(frame, 20).power
    assert found
    assert (found.rail, found.mean_mw) == (rail, mean)


@pytest.mark.parametrize(
    ("lines", "end", "problem"),
    [
        ([NANO], "sys.exit(1)", "tegrastats ended with exit code 1"),
        (["hello"], "", "no line of tegrastats was understood, such as 'hello'"),
        ([NANO], "time.sleep(60)", "tegrastats stopped printing"),
        (
            ["RAM 1/2MB (lfb 1x4MB) VDD_NEW 10mW/10mW VDD_SOC 1mW/1mW"],
            "",
            "no rail of the whole board is known among those found: VDD_NEW, VDD_SOC",
        ),
        (["RAM 1/2MB (lfb 1x4MB)"], "", "no rail of the whole board is known among those found: "),
        (
            ["RAM 1/2MB (lfb 1x4MB) VDD_IN -392mW/5mW"],
            "",
            "VDD_IN is -392 mW, expected more than 0",
        ),
        (["RAM 1/2MB (lfb 1x4MB) VIN 0mW/5mW"], "", "VIN is 0 mW, expected more than 0"),
        ([NANO, NANO.replace("VDD_IN", "NC")], "", "no rail of the whole board is known among"),
    ],
)
def test_what_cannot_be_measured_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str], end: str, problem: str
) -> None:
    install(tmp_path, monkeypatch, *lines, end=end)
    monkeypatch.setattr(power, "_START_SECONDS", 2.0)
    measured = measure_power(frame, 20)
    assert measured.power is None
    assert measured.problem is not None and measured.problem.startswith(problem)


def test_a_program_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power, "_START_SECONDS", 0.3)
    install(tmp_path, monkeypatch)
    (tmp_path / "tegrastats").write_text("#!/bin/sh\nexec sleep 60\n")
    begin = time.monotonic()
    monkeypatch.setattr(power, "_SECONDS", 60)
    assert measure_power(frame, 20).problem == "tegrastats printed nothing"
    assert time.monotonic() - begin < 30  # nothing is measured after the warm-up


def test_no_frame_runs_without_tegrastats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    measured = measure_power(lambda index: pytest.fail("a frame ran"), 100)
    assert measured.problem == "tegrastats was not found on PATH; it is a part of L4T"


@pytest.mark.parametrize("interval", [0, -1, 19, 1001])
def test_interval_out_of_range(interval: int) -> None:
    with pytest.raises(ConfigError, match="expected 20 to 1000"):
        measure_power(frame, interval)


def test_an_error_of_the_model_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, NANO)
    with pytest.raises(ZeroDivisionError):
        measure_power(lambda index: 1 / 0, 20)


class SlowSession(FakeSession):
    def _run(self, feeds):
        time.sleep(0.005)
        return super()._run(feeds)


def opened(name: str):
    manifest = make_manifest()
    return open_measured(lambda: Detector.from_session(SlowSession(manifest), manifest), name)


def test_each_model_is_measured_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, board: jetson.Jetson
) -> None:
    install(tmp_path, monkeypatch, NANO)
    reports = compare([opened("a"), opened("b")], warmup=1, runs=1, power_ms=20)
    for report in reports:
        assert report.jetson is board
        assert report.power and report.power.rail == "VDD_IN"
        assert 5 <= report.power.frame_ms < 100
        text = str(report)
        assert "Orin Nano Developer Kit, JetPack 7.2.1, L4T 39.2.1; power mode 25W, clocks" in text
        assert "mJ per frame (3582 mW of VDD_IN x" in text


def test_latency_is_measured_without_tegrastats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, board: jetson.Jetson
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (report,) = compare([opened("a")], warmup=1, runs=1, power_ms=20)
    assert report.power is None and report.model_ms["p50"] > 0
    assert "power: not measured: tegrastats was not found on PATH" in str(report)
    (report,) = compare([opened("a")], warmup=1, runs=1)  # not asked for
    assert report.power is report.power_problem is None
    assert report.jetson is board


def test_other_machines_measure_no_power(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jetson, "find", lambda: None)
    monkeypatch.setattr(measure, "measure_power", lambda *_: pytest.fail("measured"))
    (report,) = compare([opened("a")], warmup=1, runs=1, power_ms=20)
    assert report.jetson is report.power is report.power_problem is None
    assert "power" not in str(report)


def test_command(
    artifact_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    board: jetson.Jetson,
) -> None:
    install(tmp_path, monkeypatch, NANO)
    asked: list[int] = []
    original = measure.measure_power
    monkeypatch.setattr(
        measure, "measure_power", lambda run, ms: asked.append(ms) or original(run, ms)
    )
    arguments = ["benchmark", str(artifact_path), "--threads", "1", "--runs", "1", "--warmup", "1"]
    assert main([*arguments, "--json", "--power-interval", "50"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["jetson"]["jetpack"] == "7.2.1"
    assert record["jetson"]["power"]["names"] == {"0": "15W", "1": "25W"}
    assert record["jetson"]["clocks"]["pinned"] is True
    assert record["power"]["rail"] == "VDD_IN" and record["power"]["mj_per_frame"] > 0
    assert record["power"]["temperatures"]["tj"] == [46.843, 46.843]
    assert record["power_problem"] is None
    assert main(arguments) == 0
    assert "mJ per frame" in capsys.readouterr().out
    assert asked == [50, 100]
