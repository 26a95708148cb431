"""Temperature and power of the machine."""

from __future__ import annotations

import time

import pytest

from y7edge.live import board
from y7edge.live.board import Board
from y7edge.tegrastats import Monitor

LINE = (
    "RAM 2448/7620MB (lfb 4x4MB) CPU [5%@729,off] GR3D_FREQ 12% cpu@48.5C gpu@51.25C "
    "tj@51.25C VDD_IN 5142mW/5142mW VDD_CPU_GPU_CV 520mW/520mW"
)


@pytest.fixture
def zones(tmp_path, monkeypatch):
    folder = tmp_path / "thermal"
    monkeypatch.setattr(board, "_ZONES", folder)
    monkeypatch.setenv("PATH", str(tmp_path))

    def add(name, temperature):
        zone = folder / f"thermal_zone{len(list(folder.glob('*'))) if folder.is_dir() else 0}"
        zone.mkdir(parents=True)
        if name is not None:
            (zone / "type").write_text(f"{name}\n")
        if temperature is not None:
            (zone / "temp").write_text(f"{temperature}\n")

    return add


def test_the_hottest_zone(zones):
    zones("acpitz", 41000)
    zones("x86_pkg_temp", 63500)
    zones("off", -256000)
    zones("broken", "hot")
    zones("huge", "9" * 30)
    zones("unreadable", None)
    with Board() as found:
        assert found.read() == {"sensor": "x86_pkg_temp", "celsius": 63.5}


def test_a_zone_without_a_name(zones):
    zones(None, 20000)
    with Board() as found:
        assert found.read() == {"sensor": "thermal_zone0", "celsius": 20.0}


def test_a_machine_without_sensors(zones):
    with Board() as found:
        assert found.read() == {}


def _program(tmp_path, text):
    program = tmp_path / "tegrastats"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)


def test_a_jetson(zones, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    zones("cpu-thermal", 90000)
    _program(tmp_path, f"while :; do echo '{LINE}'; sleep 0.05; done")
    with Board() as found:
        end = time.monotonic() + 20
        while not (read := found.read()).get("watts") and time.monotonic() < end:
            time.sleep(0.02)
        assert read == {"sensor": "gpu", "celsius": 51.2, "rail": "VDD_IN", "watts": 5.1}


def test_a_tegrastats_that_fails(zones, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    zones("cpu-thermal", 50000)
    _program(tmp_path, "exit 1")
    with Board() as found:
        time.sleep(0.2)
        assert found.read() == {"sensor": "cpu-thermal", "celsius": 50.0}


def test_only_the_newest_samples_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    count = 'i=0; while [ $i -lt 50 ]; do i=$((i+1)); echo "RAM $i/99MB"; done'
    _program(tmp_path, f"{count}; exec sleep 9")
    with Monitor(1000, keep=2) as monitor:
        end = time.monotonic() + 20
        while not (monitor.newest and monitor.newest.ram_mb[0] == 50):
            assert time.monotonic() < end
            time.sleep(0.01)
        assert [s.ram_mb[0] for s in monitor.samples(0, time.monotonic())] == [49, 50]
