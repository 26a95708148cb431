"""The parser of tegrastats on recorded lines, and the child process with programs that stand in."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from dataclasses import fields
from pathlib import Path

import pytest

from y7edge import tegrastats
from y7edge.tegrastats import Core, Engine, Monitor, Rail, Sample, parse

RECORDED = json.loads(
    (Path(__file__).parent / "reference" / "jetson" / "tegrastats.json").read_text()
)
NAMES = [entry["name"] for entry in RECORDED]
NANO, THOR = RECORDED[0]["line"], RECORDED[NAMES.index("JetPack 7, Thor")]["line"]


def expected(entry: dict) -> dict:
    """The stated values of a line as a Sample has them; what is not stated is None or empty."""
    values = dict(entry["expect"])
    found = {
        "cpu": tuple(core and Core(*core) for core in values.pop("cpu")),
        "engines": {name: Engine(*engine) for name, engine in values.pop("engines", {}).items()},
        "rails": {name: Rail(*rail) for name, rail in values.pop("rails").items()},
        "temperatures": values.pop("temperatures", {}),
    }
    for name, value in values.items():
        found[name] = tuple(value) if isinstance(value, list) else value
    return found


@pytest.mark.parametrize("entry", RECORDED, ids=NAMES)
def test_every_recorded_line(entry: dict) -> None:
    sample = parse(entry["line"] + "\n")
    assert sample == Sample(**expected(entry))
    assert not sample.unknown
    assert list(sample.total_rails()) == entry["total"]


def test_verbatim_and_completed_lines_are_marked() -> None:
    assert all(entry["verbatim"] != bool(entry["completed"]) for entry in RECORDED)
    assert sum(entry["verbatim"] for entry in RECORDED) >= 7
    for release in ("JetPack 4", "JetPack 5", "JetPack 6", "JetPack 7"):
        assert any(name.startswith(release) for name in NAMES)
    tested = {name for entry in RECORDED for name in entry["expect"]} | {"unknown"}
    assert tested == {field.name for field in fields(Sample)}


@pytest.mark.parametrize(
    "line",
    [
        *("", "\n", "tegrastats: not found", "RAM", "RAM 330/3964", "RAM x/yMB (lfb 1x4MB)"),
        "CPU [1%@102] GR3D_FREQ 0%",
        "RAM 99999999999999999999/1MB (lfb 1x4MB)",
    ],
)
def test_other_lines(line: str) -> None:
    assert parse(line) is None


def test_unknown_parts_are_returned() -> None:
    sample = parse(THOR + " NEW_FIELD ?? 12 RAM CPU [5%@100,broken] GR3D_FREQ 1%@[²,12]")
    assert sample is not None
    assert sample.unknown == ("NEW_FIELD", "??", "12", "RAM", "broken")
    assert sample.cpu == (Core(5, 100), None)
    assert sample.gpu_mhz[-2:] == (None, 12)


def test_every_cut_of_a_line() -> None:
    for entry in RECORDED:
        for length in range(len(entry["line"])):
            parse(entry["line"][:length])  # raises nothing


@pytest.mark.parametrize(
    "line",
    [
        "CPU [" * 100_000,
        "A" * 100_000,
        "1" * 100_000,
        "RAM " * 100_000,
        f"GR3D_FREQ @[{'9' * 8000}]",
    ],
)
def test_hostile_lines_take_no_time(line: str) -> None:
    begin = time.process_time()
    assert parse(f"RAM 1/2MB (lfb 1x4MB) {line}") is not None
    assert time.process_time() - begin < 1


# --- child process --------------------------------------------------------------------------------


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a Python program called tegrastats on PATH."""
    program = folder / "tegrastats"
    program.write_text(f"#!{sys.executable} -S\nimport os, signal, sys, time\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


PRINT = f"""
open(os.path.dirname(__file__) + "/arguments", "w").write(" ".join(sys.argv[1:]))
while True:
    sys.stdout.write({THOR!r} + chr(10)); sys.stdout.flush(); time.sleep(0.01)
"""


def wait(done, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.005)


def reading() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "tegrastats"]


def test_samples_are_collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, PRINT)
    begin = time.monotonic()
    with Monitor(100) as monitor:
        wait(lambda: len(monitor.samples(begin, time.monotonic())) > 2)
        middle = time.monotonic()
        assert monitor.running()
        wait(lambda: len(monitor.samples(middle, time.monotonic())) > 2)
        process = monitor._process
    assert (tmp_path / "arguments").read_text() == "--interval 100"
    assert process is not None and process.returncode == -15  # by SIGTERM
    assert not monitor.running() and not reading()
    assert monitor.failure is None
    early, all_samples = monitor.samples(begin, middle), monitor.samples(0, time.monotonic())
    assert 2 < len(early) < len(all_samples)
    assert early[0].rails["VIN"].now == 28906


def test_stops_when_the_measurement_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, PRINT)
    with pytest.raises(ZeroDivisionError), Monitor(100) as monitor:
        wait(lambda: monitor.samples(0, time.monotonic()))
        _ = 1 / 0
    assert not monitor.running() and not reading()


def test_a_program_that_ignores_sigterm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tegrastats, "_STOP_SECONDS", 0.2)
    install(tmp_path, monkeypatch, f"signal.signal(signal.SIGTERM, signal.SIG_IGN)\n{PRINT}")
    with Monitor(100) as monitor:
        wait(lambda: monitor.samples(0, time.monotonic()))
    assert monitor._process is not None and monitor._process.returncode == -9
    assert not reading() and monitor.failure is None


def test_a_grandchild_that_keeps_the_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tegrastats, "_STOP_SECONDS", 0.2)
    place = tmp_path / "child"
    script = f"if os.fork() == 0:\n open({str(place)!r}, 'w').write(str(os.getpid()))\n"
    install(tmp_path, monkeypatch, f"{script} time.sleep(60)\n{PRINT}")
    with Monitor(100) as monitor:
        wait(lambda: place.exists() and place.read_text())
        wait(lambda: monitor.samples(0, time.monotonic()))
        begin = time.monotonic()
    assert time.monotonic() - begin < 5
    assert not monitor.running()
    os.kill(int(place.read_text()), 9)
    wait(lambda: not reading())


@pytest.mark.parametrize(
    ("script", "failure"),
    [
        ("sys.exit(3)", "tegrastats ended with exit code 3"),
        ("print('no device')", "tegrastats ended with exit code 0"),
        ("os.kill(os.getpid(), 11)", "tegrastats ended with exit code -11"),
        (f"print({THOR!r}, flush=True)", "tegrastats ended with exit code 0"),
    ],
)
def test_a_program_that_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, failure: str
) -> None:
    install(tmp_path, monkeypatch, script)
    with Monitor(100) as monitor:
        wait(lambda: not monitor.running())
    assert monitor.failure == failure


@pytest.mark.parametrize(
    ("script", "failure"),
    [
        ("time.sleep(60)", "tegrastats printed nothing"),
        (f"print({THOR!r}, end='', flush=True); time.sleep(60)", "tegrastats printed nothing"),
        ("print('x' * 10**7, end='', flush=True); time.sleep(60)", "tegrastats printed nothing"),
        (
            f"print('x' * {tegrastats._LONGEST_LINE} + {THOR!r}, flush=True); time.sleep(60)",
            "tegrastats printed nothing",
        ),
    ],
    ids=["hangs", "half a line", "endless line", "end of a long line"],
)
def test_no_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, failure: str
) -> None:
    install(tmp_path, monkeypatch, f"print(end='')\n{script}")
    with Monitor(100) as monitor:
        time.sleep(0.3)
        assert monitor.running()
    assert not monitor.samples(0, time.monotonic()) and not reading()
    assert monitor.failure == failure


def test_lines_that_are_not_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "print('\\x1b[31mno', 'x' * 99, flush=True); time.sleep(60)")
    with Monitor(100) as monitor:
        wait(lambda: monitor._odd)
    shown = r"\x1b[31mno " + "x" * 72
    assert monitor.failure == f"no line of tegrastats was understood, such as '{shown}'"


def test_absent_or_not_executable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with Monitor(100) as monitor:
        assert not monitor.running()
    assert monitor.failure == "tegrastats was not found on PATH; it is a part of L4T"
    program = tmp_path / "tegrastats"
    program.write_bytes(b"\x7fELF not a program")
    program.chmod(0o755)
    with Monitor(100) as monitor:
        assert not monitor.running()
    assert monitor.failure == "tegrastats cannot be started: Exec format error"


def test_lines_are_not_held_back_in_a_buffer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A C program, here grep, writes to a pipe in blocks of 4 KB unless stdbuf changes that."""
    monkeypatch.setattr(tegrastats, "_STOP_SECONDS", 0.1)
    program = tmp_path / "tegrastats"
    program.write_text(f'#!/bin/sh\n(echo "{NANO}"; exec sleep 2) | grep RAM\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with Monitor(50) as monitor:
        wait(lambda: monitor.samples(0, time.monotonic()), seconds=1.9)
        assert monitor.running()
    wait(lambda: not reading())  # the children of the shell
