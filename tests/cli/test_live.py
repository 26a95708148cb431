"""``live`` from end to end: test patterns, results, the end by signals, and the page."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest

from y7edge import Detector
from y7edge.cli import main
from y7edge.sources.uri import open_source

PATTERN = "test://pattern?fps=20&width=160&height=120"
WAIT = 60

STATE = r"running · (no objects|\d.*) · [\d.]+ frames/s · age p50 \d+, p99 \d+ ms · "


def _live(model: Path, *words: object) -> int:
    return main(["live", str(model), *map(str, words), "--threads", "1"])


def test_json_for_some_seconds(artifact_path, capsys):
    assert _live(artifact_path, PATTERN, "--duration", 2, "--json", "--conf", 0.01) == 0
    printed = capsys.readouterr()
    records = [json.loads(line) for line in printed.out.splitlines()]
    assert len(records) > 3
    numbers = [record["frame_id"] for record in records]
    assert numbers == sorted(set(numbers))
    times = [record["timestamp_ns"] for record in records]
    assert times == sorted(set(times))
    assert {record["source"] for record in records} == {"test://pattern"}
    (summary,) = printed.err.splitlines()
    assert re.fullmatch(
        r"test://pattern: \d+ of \d+ frames, \d+ dropped, [\d.]+ frames/s, "
        r"frame age \d+/\d+/\d+/\d+ ms \(p50/p95/p99/max\), 0 reconnects",
        summary,
    )
    assert int(summary.split()[1]) >= len(records)


def test_two_sources(artifact_path, capsys):
    second = PATTERN.replace("fps=20", "fps=10")
    assert _live(artifact_path, PATTERN, second, "--duration", 3, "--json") == 0
    printed = capsys.readouterr()
    names = {json.loads(line)["source"] for line in printed.out.splitlines()}
    assert len(names) == 2
    assert {line.split(": ")[0] for line in printed.err.splitlines()} == names


@pytest.mark.parametrize("track", [(), ("--track",)])
def test_several_folders_and_videos(artifact_path, data, tmp_path, capsys, monkeypatch, track):
    """Their frames have other names than their sources: those of the files."""
    if track:
        pytest.importorskip("trackers")
    monkeypatch.chdir(tmp_path)
    images = sorted((data.parent / "images" / "val").iterdir())[:2]
    for name, path in zip("ab", images, strict=True):
        (tmp_path / name).mkdir()
        for number in "12":
            (tmp_path / name / f"{number}{path.suffix}").write_bytes(path.read_bytes())
    assert _live(artifact_path, "./a?loop=1", "b", "--json", *track, "--save", "videos") == 0
    printed = capsys.readouterr()
    names = sorted(json.loads(line)["source"][:3] for line in printed.out.splitlines())
    assert names == ["a/1", "a/1", "a/2", "a/2", "b/1", "b/2"]
    summary = printed.err.splitlines()
    assert [line.partition(", ")[0] for line in summary[:2]] == [
        "./a: 4 of 4 frames",
        "b: 2 of 2 frames",
    ]
    assert [line.partition("; ")[0] for line in summary[2:]] == [
        "./a: 4 frames in 1 video in videos, 0 dropped",
        "b: 2 frames in 1 video in videos, 0 dropped",
    ]


def test_files_end(artifact_path, data, capsys):
    folder = data.parent / "images" / "val"
    assert _live(artifact_path, folder, "--json", "--conf", 0.3) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(record["source"]).name for record in records] == ["6.png", "7.png", "8.png"]
    with Detector(artifact_path, conf=0.3, threads=1) as detector, open_source(folder) as source:
        expected = [detector(frame).to_dict()["detections"] for frame in source]
    assert [record["detections"] for record in records] == expected


def test_everything_is_saved(artifact_path, tmp_path, capsys):
    pytest.importorskip("trackers")
    folders = {name: tmp_path / name for name in ("save", "record", "save-hard")}
    words = [word for name, folder in folders.items() for word in (f"--{name}", folder)]
    code = _live(
        artifact_path, PATTERN, "--duration", 2, "--conf", 0.01, "--track", "--json", *words
    )
    printed = capsys.readouterr()
    assert code == 0, printed.err
    records = [json.loads(line) for line in printed.out.splitlines()]
    assert all("tracker_id" in one for record in records for one in record["detections"])
    (video,) = folders["save"].glob("*.mp4")
    lines = [json.loads(line) for line in video.with_suffix(".jsonl").read_text().splitlines()]
    assert len(lines) >= len(records)
    assert lines[0]["detections"] == records[0]["detections"]
    replayed = list(open_source(f"replay://{folders['record']}"))
    assert replayed[0].timestamp_ns == records[0]["timestamp_ns"]
    assert (
        folders["save-hard"] / "data.yaml"
    ).is_file() or "0 frames to be labelled" in printed.err
    assert f"{len(replayed)} frames recorded, " in printed.err
    assert _live(artifact_path, PATTERN, "--record", folders["record"], "--duration", 1) == 0
    summary = capsys.readouterr().err
    assert re.search(rf": \d+ frames recorded after the {len(replayed)} of before, ", summary)


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        (["--web", "x:y"], 1, "--web is 'x:y', expected a port"),
        (["--web", "0.0.0.0:0"], 1, "add --token auto"),
        (["--web", ":0", "--token", "short"], 1, "16 to 200 letters"),
        (["--token", "0123456789abcdef"], 2, "add --web"),
        (["--token", "auto", "--health", ":0"], 2, "choose a token"),
        (["--web-rate", "nan"], 2, "--web-rate"),
        (["--web-width", "5"], 2, "--web-width"),
        (["--duration", "-1"], 2, "--duration"),
        (["--duration", "nan"], 2, "--duration"),
        (["--class", "nothing"], 1, "the model has no class 'nothing'"),
    ],
)
def test_wrong_options(artifact_path, capsys, words, code, problem):
    assert _live(artifact_path, PATTERN, *words) == code
    printed = capsys.readouterr()
    assert problem in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_an_occupied_port_is_noticed_before_the_model_is_loaded(capsys):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert main(["live", "missing.onnx", PATTERN, "--web", str(port)]) == 1
    assert "choose another port" in capsys.readouterr().err


def test_a_source_that_fails(artifact_path, tmp_path, capsys):
    assert _live(artifact_path, tmp_path / "missing.mp4") == 1
    assert "missing.mp4" in capsys.readouterr().err
    code = _live(artifact_path, PATTERN + "&fault=end&after=5&retries=0", "--json")
    printed = capsys.readouterr()
    assert code == 1
    assert len(printed.out.splitlines()) >= 1
    assert "last fault" in printed.err, printed.err


def test_without_a_terminal_the_state_is_printed_from_time_to_time(
    artifact_path, capsys, monkeypatch
):
    monkeypatch.setattr("y7edge.cli.status_line.NOTE_SECONDS", 0.3)
    monkeypatch.setattr("y7edge.live.window.can_open", lambda: False)
    assert _live(artifact_path, PATTERN, "--duration", 2) == 0
    printed = capsys.readouterr()
    *states, summary = printed.err.splitlines()
    assert any(re.search(STATE, one) for one in states)
    assert summary.startswith("test://pattern: ")
    assert printed.out == ""


def test_a_fault_is_reported_while_it_runs(artifact_path):
    stalled = PATTERN + "&fault=stall&after=10"
    with _start(artifact_path, "--json", source=stalled) as process:
        try:
            line = process.stderr.readline()
        finally:
            process.terminate()
            process.stdout.read()
    assert line.startswith("warning: test://pattern: no frame for ")


def _start(
    model: Path,
    *words: str,
    source: str = PATTERN,
    stderr: int = subprocess.PIPE,
    **environment: str,
) -> subprocess.Popen:
    command = [sys.executable, "-m", "y7edge", "live", str(model), source, *words]
    return subprocess.Popen(
        [*command, "--threads", "1"],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_with_a_summary(artifact_path, number):
    with _start(artifact_path, "--json") as process:
        assert process.stdout.readline().startswith("{")
        process.send_signal(number)
        began = time.monotonic()
        _, errors = process.communicate(timeout=WAIT)
    assert process.returncode == 130
    assert time.monotonic() - began < WAIT / 2
    summary, interrupted = errors.splitlines()
    assert summary.startswith("test://pattern: ")
    assert interrupted == "interrupted"


def test_the_reader_of_the_output_ends(artifact_path):
    with _start(artifact_path, "--json") as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(WAIT) == 1
        assert "Traceback" not in process.stderr.read()


def test_the_page_is_served_until_the_end(artifact_path, tmp_path):
    pytest.importorskip("aiohttp")
    token, log = "0123456789abcdef", tmp_path / "live.log"
    words = "--web", ":0", "--log-file", str(log)
    with _start(artifact_path, *words, Y7EDGE_TOKEN=token) as process:
        try:
            line = process.stderr.readline()
            found = re.fullmatch(rf"open (http://127\.0\.0\.1:\d+)/\?token={token}\n", line)
            assert found, line
            with urllib.request.urlopen(found[1], timeout=WAIT) as answer:
                assert b"y7edge live" in answer.read()
        finally:
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=WAIT)
        assert process.returncode == 130
        assert token not in log.read_text()
        *_, summary, interrupted = errors.splitlines()
        assert summary.startswith("test://pattern: ")
        assert interrupted == "interrupted"


def test_a_terminal_gets_the_state_and_the_pipe_the_records(artifact_path):
    """The library that draws the line would redirect standard output too."""
    master, terminal = pty.openpty()
    shown: list[bytes] = []

    def read() -> None:  # in a thread, because a terminal that nobody reads blocks the program
        with suppress(OSError):  # the end
            while part := os.read(master, 1 << 16):
                shown.append(part)

    with _start(artifact_path, "--json", "--duration", "2", stderr=terminal) as process:
        os.close(terminal)
        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        printed, _ = process.communicate(timeout=WAIT)
    reader.join(WAIT)
    os.close(master)
    assert process.returncode == 0
    assert len(printed.splitlines()) > 3
    assert all(json.loads(line)["frame_id"] >= 0 for line in printed.splitlines())
    text = b"".join(shown).decode()
    assert re.search(r"running · (no objects|\d)", text)
    assert '"detections"' not in text
