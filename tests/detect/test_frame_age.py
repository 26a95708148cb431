"""Frame age and memory of ``Detector.stream`` with a camera in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.detect.test_streaming import sleeping

SCRIPT = Path(__file__).parents[2] / "examples" / "research" / "frame_age.py"
RATE = 30
INTERVAL_MS = 1000 / RATE
ENGINE_SECONDS = 0.05  # longer than an interval, so that frames are dropped
PATTERN = f"test://pattern?fps={RATE}"
MB = 1_000_000


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("frame_age", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["frame_age"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["frame_age"]


def check_numbers(measured) -> None:
    for name, ages in measured.ages.items():
        shown, dropped = measured.shown[name], measured.dropped[name]
        assert measured.made[name] == shown + dropped
        assert len(ages) == shown > 0
        assert dropped > 0


@pytest.mark.parametrize("cameras", [1, 2])
def test_a_frame_waits_for_one_interval_and_the_engine(script, cameras):
    """The bounds are loose, because the machine may be busy; the slow test has the real ones."""
    detector, _ = sleeping(batch="dynamic", seconds=ENGINE_SECONDS)
    with detector.stream([PATTERN] * cameras) as stream:
        assert len(script.children(os.getpid())) >= cameras
        measured = script.measure(stream, seconds=2.5, warmup=0.5)
    check_numbers(measured)
    for name in stream.names:
        age, engine = measured.ages[name].summary(), measured.engine[name].summary()
        # With two cameras, a frame also waits for a batch that began without it.
        waiting = INTERVAL_MS if cameras == 1 else 2 * INTERVAL_MS + engine["p50_ms"]
        assert engine["p50_ms"] < age["p50_ms"] < engine["p99_ms"] + waiting + INTERVAL_MS
    assert {status.state for status in stream.status.values()} == {"closed"}


@pytest.mark.slow
def test_age_and_memory_over_minutes(script):
    """p99 of the age is one interval, the engine's p99 and a tenth of an interval at most."""
    detector, _ = sleeping(seconds=ENGINE_SECONDS)
    beyond, memory = [], []
    with detector.stream(PATTERN) as stream:
        script.measure(stream, seconds=40)  # until all memory is in use
        for _ in range(3):
            measured = script.measure(stream, seconds=180)
            check_numbers(measured)
            (age,) = (ages.summary() for ages in measured.ages.values())
            (engine,) = (ages.summary() for ages in measured.engine.values())
            beyond.append(age["p99_ms"] - engine["p99_ms"] - 1.1 * INTERVAL_MS)
            memory.append(measured.memory)
            print(f"age {age}, engine {engine}, memory {measured.memory}")
            if beyond[-1] <= 0:
                break
    assert min(beyond) <= 0, f"milliseconds above the bound, in each window: {beyond}"
    for start, end in memory:
        assert end - start < 3 * MB  # three frames, of several thousand


def test_a_camera_that_fails_beside_one_that_works(caplog):
    detector, _ = sleeping(seconds=0.005)
    first, second = "test://pattern", "test://pattern (2)"
    shown: Counter[str] = Counter()
    with detector.stream([f"{PATTERN}&fault=error&after=3", PATTERN], retries=0) as stream:
        for frame, _ in stream:
            shown[frame.source] += 1
            if stream.status[first].state == "failed" and shown[second] > 9:
                break
        assert stream.status[second].state == "running"
    assert shown[first] <= 3
    (message,) = [text for text in caplog.messages if "continuing" in text]
    assert message.startswith("test://pattern failed; continuing with 1 others: ")


def test_the_script_prints_a_table(script, artifact_path, monkeypatch, capsys):
    arguments = [str(artifact_path), "--cameras", "2", "--seconds", "1", "--warmup", "0.2"]
    monkeypatch.setattr(sys, "argv", ["frame_age.py", *arguments, "--source", PATTERN])
    script.main()
    header, line, *rows = capsys.readouterr().out.splitlines()
    assert header.startswith("| engine | model | camera | frames/s |")
    assert [row.split(" | ")[2] for row in rows] == ["test://pattern", "test://pattern (2)"]
    assert {len(row.split(" | ")) for row in (header, line, *rows)} == {8}
