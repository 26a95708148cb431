"""``live`` for a long time: stalls, reloads, systemd and memory, as a process of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiohttp", reason="aiohttp is not installed")
pytestmark = pytest.mark.slow

PATTERN = "test://pattern?width=160&height=120"
WAIT = 120


class Program:
    """A running ``live``."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith("health: http://127.0.0.1:"), line
        self.url = line.split()[1]

    def ask(self) -> tuple[int, dict[str, Any]]:
        try:
            with urllib.request.urlopen(self.url, timeout=WAIT) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def until(self, condition: Callable[[int, dict[str, Any]], bool]) -> dict[str, Any]:
        end = time.monotonic() + WAIT
        while True:
            code, report = self.ask()
            assert (code == 200) == (report["status"] == "ok")
            if condition(code, report):
                return report
            assert time.monotonic() < end, report
            time.sleep(0.05)

    def reload(self, state: str, before: dict[str, Any]) -> dict[str, Any]:
        """Ask for a reload, and wait for its outcome."""
        self.process.send_signal(signal.SIGUSR1)
        count = before["reload"]["count"] + 1
        after = self.until(
            lambda _, now: now["reload"]["count"] == count and now["reload"]["state"] != "running"
        )
        assert after["reload"]["state"] == state, after["reload"]
        return after

    def resident(self) -> int:
        """Return the resident memory in bytes."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(text.partition("VmRSS:")[2].split()[0])


@contextmanager
def _live(model: Path, source: str, *words: str, **environment: str) -> Iterator[Program]:
    command = [sys.executable, "-m", "y7edge", "live", str(model), source, "--threads", "1"]
    with subprocess.Popen(
        [*command, "--json", "--health", ":0", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    ) as process:
        try:
            yield Program(process)
        finally:
            process.kill()


@pytest.fixture
def model(artifact_path, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(artifact_path.read_bytes())
    return path


@pytest.fixture(scope="module")
def other(narrow_tiny, tmp_path_factory):
    """The model with another size, outputs and class names."""
    from dataclasses import replace

    from y7edge.export import export

    changed = replace(narrow_tiny, names=("bolt", "gear", "cap"))
    path = tmp_path_factory.mktemp("other") / "other.onnx"
    return export(changed, path, imgsz=(64, 96), outputs="decoded").path


def _replace(path: Path, content: bytes) -> None:
    """Replace a file as docs/service.md says: write beside it, then rename."""
    beside = path.with_suffix(".new")
    beside.write_bytes(content)
    beside.replace(path)


def test_a_camera_that_stalls_and_comes_back(model, tmp_path):
    stalling = PATTERN + "&fps=20&fault=stall&after=60"
    log = tmp_path / "live.log"
    with _live(model, stalling, "--silence", "1", "--log-file", str(log)) as program:
        program.until(lambda code, _: code == 200)
        lost = program.until(lambda code, _: code == 503)
        assert lost["faults"][0].startswith(f"{lost['sources'][0]['name']}: no result for ")
        again = program.until(lambda code, report: report["sources"][0]["reconnects"] >= 1)
        program.until(lambda code, _: code == 200)
        assert again["sources"][0]["problem"].startswith("no frame for ")
        program.until(lambda *_: "healthy again" in log.read_text())
        program.process.send_signal(signal.SIGTERM)
        assert program.process.wait(WAIT) == 130
    told = ("opened by y7edge", "no frame for ", "running again", "not healthy: ")
    assert not [part for part in told if part not in log.read_text()]


def test_reloads(model, artifact_path, other, tmp_path):
    log = tmp_path / "live.log"
    records = tmp_path / "hard"
    with _live(model, PATTERN + "&fps=20", "--track", "--log-file", str(log)) as program:
        first = program.until(lambda code, _: code == 200)
        _replace(model, other.read_bytes())
        second = program.reload("done", first)
        assert second["model"]["digest"] != first["model"]["digest"]
        _replace(model, b"not a model")
        failed = program.reload("failed", second)
        assert "not a whole ONNX file" in failed["reload"]["message"]
        assert failed["model"]["digest"] == second["model"]["digest"]
        count = failed["sources"][0]["results"]
        program.until(lambda code, now: code == 200 and now["sources"][0]["results"] > count + 5)
        # A link to a file, as in a cache whose files are named by their digests.
        (tmp_path / "5e884898da").write_bytes(artifact_path.read_bytes())
        (tmp_path / "link").symlink_to("5e884898da")
        (tmp_path / "link").replace(model)
        third = program.reload("done", failed)
        assert third["model"]["digest"] == first["model"]["digest"]
        program.process.terminate()
        assert program.process.wait(WAIT) == 130
    assert "the model was not replaced, and the old one stays in use" in log.read_text()
    _replace(model, artifact_path.read_bytes())
    with _live(model, PATTERN + "&fps=20", "--save-hard", str(records)) as program:
        first = program.until(lambda code, _: code == 200)
        _replace(model, other.read_bytes())
        refused = program.reload("failed", first)
        assert "--save-hard" in refused["reload"]["message"]
        assert refused["model"]["digest"] == first["model"]["digest"]


def test_systemd_hears_of_it(model, other, tmp_path):
    heard: list[str] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(WAIT)

        def listen() -> None:
            while not heard or heard[-1] != "STOPPING=1":
                heard.append(manager.recv(4096).decode())

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "3000000"}
        with _live(model, PATTERN + "&fps=20", **environment) as program:
            first = program.until(lambda code, _: code == 200)
            time.sleep(2)
            _replace(model, other.read_bytes())
            program.reload("done", first)
            time.sleep(2)
            program.process.send_signal(signal.SIGINT)
            assert program.process.wait(WAIT) == 130
        thread.join(WAIT)
    assert heard[0] == "READY=1"
    reloading = next(i for i, state in enumerate(heard) if state.startswith("RELOADING=1\nMONO"))
    assert "READY=1" in heard[reloading:]
    assert heard.count("READY=1") == 2
    assert heard.count("WATCHDOG=1") >= 3
    assert any(state.startswith("STATUS=ok; ") for state in heard)
    assert heard[-1] == "STOPPING=1"


def test_memory_does_not_grow(model, artifact_path, other):
    """Ten exchanges, and thousands of frames."""
    contents = [other.read_bytes(), artifact_path.read_bytes()]
    with _live(model, PATTERN + "&fps=100") as program:
        now = program.until(lambda code, _: code == 200)
        sizes = []
        for number in range(12):
            _replace(model, contents[number % 2])
            now = program.reload("done", now)
            count = now["sources"][0]["results"]
            now = program.until(lambda _, now, c=count: now["sources"][0]["results"] >= c + 200)
            sizes.append(program.resident())
        # The first exchanges fill the allocator's and the engine's pools.
        assert max(sizes[4:]) - max(sizes[:4]) < 15e6, sizes
        assert now["sources"][0]["results"] > 2400
