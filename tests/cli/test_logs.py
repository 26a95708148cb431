"""Where log records go."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from pathlib import Path

import pytest

from y7edge.cli import logs, main
from y7edge.cli.console import note
from y7edge.cli.logs import logging_to
from y7edge.errors import ConfigError, OutputError

LINE = re.compile(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (\w+) ([\w.]+) (.*)")


def _records(path: Path) -> list[tuple[str, ...]]:
    return [LINE.fullmatch(line).groups() for line in path.read_text().splitlines()]


def _log_some() -> None:
    sources, live = logging.getLogger("y7edge.sources"), logging.getLogger("y7edge.live")
    sources.debug("%s: detail", "cam")
    sources.info("%s: opened", "cam")
    sources.warning("%s: lost\x1b\nagain", "cam")
    live.info("open http://...")
    logging.getLogger("other").warning("of a library")


@pytest.mark.parametrize(
    ("level", "printed", "kept"),
    [
        (None, ["warning: cam: lost", "open http"], ["INFO", "WARNING", "INFO", "WARNING"]),
        ("error", ["open http"], []),
        (
            "debug",
            ["debug: cam: detail", "info: cam: opened", "warning: cam: lost", "open http"],
            ["DEBUG", "INFO", "WARNING", "INFO", "WARNING"],
        ),
    ],
)
def test_levels(tmp_path, capsys, level, printed, kept):
    path = tmp_path / "live.log"
    with logging_to(path, level):
        _log_some()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(printed)  # nothing twice
    assert all(line.startswith(start) for line, start in zip(lines, printed, strict=True))
    records = _records(path)
    assert [level for level, *_ in records] == kept
    if level is None:
        assert records[1] == ("WARNING", "y7edge.sources", "cam: lost\\x1b again")
    _log_some()  # everything is as before
    assert len(_records(path)) == len(kept)
    assert logging.getLogger("y7edge").propagate


def test_warnings_and_the_last_error_are_in_the_file(tmp_path, capsys):
    path = tmp_path / "live.log"
    with pytest.raises(ConfigError), logging_to(path, None), warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("without a proof", stacklevel=1)
        raise ConfigError("wrong")
    assert _records(path) == [
        ("WARNING", "y7edge", "without a proof"),
        ("ERROR", "y7edge.live", "wrong"),
    ]
    assert capsys.readouterr().err == "warning: without a proof\n"  # `main` prints the error


def test_messages_that_repeat_are_counted(tmp_path, monkeypatch):
    path = tmp_path / "live.log"
    log = logging.getLogger("y7edge.sources")
    with logging_to(path, None):
        for number in range(logs.SAME + 30):
            log.warning("%s: lost %d", "cam", number)
            log.warning("%s: lost %d", "other", number)
    lines = [text for _, _, text in _records(path)]
    assert sum(text.startswith("cam: lost") for text in lines) == logs.SAME
    assert sum(text.startswith("other: lost") for text in lines) == logs.SAME
    assert lines[-1] == "60 more messages of the same kinds were not logged"


def test_the_file_is_rotated(tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "FILE_BYTES", 2000)
    path = tmp_path / "live.log"
    with logging_to(path, None):
        for number in range(200):
            logging.getLogger("y7edge.live").info(f"line {number} " + 50 * "x")
    files = sorted(tmp_path.iterdir())
    assert [one.name for one in files] == ["live.log", *(f"live.log.{n}" for n in range(1, 6))]
    assert all(one.stat().st_size <= 2000 for one in files)
    assert "line 199" in path.read_text()


def test_a_file_that_cannot_be_written(tmp_path, artifact_path, capsys):
    with pytest.raises(OutputError, match="cannot write the log"), logging_to(tmp_path, None):
        pass
    source = "test://pattern"
    (tmp_path / "link.log").symlink_to(tmp_path / "other")
    for name in (".", "link.log", "missing/live.log"):
        assert main(["live", str(artifact_path), source, "--log-file", str(tmp_path / name)]) == 1
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_is_reported_once(capsys):
    with logging_to(Path("/dev/full"), None):
        for number in range(3):
            logging.getLogger("y7edge.sources").info(f"line {number}")
    assert capsys.readouterr().err == "warning: the log /dev/full cannot be written\n"


def test_lines_in_the_journal_have_a_priority(tmp_path, monkeypatch):
    path = tmp_path / "journal"
    with path.open("w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        found = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
        with logging_to(None, None):
            _log_some()
        assert main(["predict", "missing.onnx", "x"]) == 1
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino + 1}")
        note("not the journal")
    starts = ["<4>warning: cam: lost", "<6>open http", "<3>error: ", "not the journal"]
    lines = path.read_text().splitlines()
    assert [line[: len(start)] for line, start in zip(lines, starts, strict=True)] == starts
