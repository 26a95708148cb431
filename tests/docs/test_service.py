"""docs/service.md and the unit of systemd: options, limits and fields are those of the code."""

from __future__ import annotations

import configparser
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.detect.test_detector import detector_over, frame_with
from y7edge.cli import logs, main
from y7edge.detect.health import SILENCE_S
from y7edge.live.notify import Notifier
from y7edge.live.operation import Operation
from y7edge.live.reload import Reloader
from y7edge.sources.child import KILL_S

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "service.md").read_text(encoding="utf-8")
UNIT = ROOT / "examples" / "deploy" / "y7edge.service"


def test_options_and_limits(capsys):
    main(["live", "--help"])
    printed = capsys.readouterr().out
    for option in ("--health", "--silence", "--log-file", "--log-level"):
        assert f"`{option}" in TEXT
        assert f"{option} " in printed
    assert f"{SILENCE_S:g} by default" in TEXT
    assert f"larger than {logs.FILE_BYTES / 1e6:g} MB" in TEXT
    assert f"`FILE.{logs.FILES}` is the oldest" in TEXT
    assert f"at most {logs.SAME} in a minute" in TEXT
    assert f"{(1 + logs.FILES) * logs.FILE_BYTES / 1e6:g} MB at most" in TEXT


def test_every_field_of_the_report_is_described():
    detector, _ = detector_over()
    with detector.stream(iter([frame_with((0, 0))])) as stream:
        next(stream)
        operation = Operation(
            stream, SILENCE_S, Reloader(), Notifier({}), lambda: {"problems": [], "board": {}}
        )
        report = json.loads(json.dumps(operation.report()))
    named = set(re.findall(r"`(\w+)`", TEXT))
    used = {*report, *report["model"], *report["sources"][0], *report["reload"]}
    assert used - named == set()


def test_the_unit_is_valid(tmp_path):
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze is not installed")
    unit = tmp_path / "y7edge.service"
    # The commands must exist.
    unit.write_text(UNIT.read_text().replace("/opt/y7edge/bin/y7edge", sys.executable))
    done = subprocess.run([tool, "verify", str(unit)], capture_output=True, text=True, check=False)
    told = [line for line in done.stderr.splitlines() if "y7edge.service" in line]
    assert (done.returncode, told) == (0, [])


def test_the_unit_fits_the_program():
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str
    parser.read(UNIT)
    service = parser["Service"]
    assert service["Type"] == "notify"
    assert service["ExecReload"] == "/bin/kill -USR1 $MAINPID"
    assert service["SuccessExitStatus"] == "130"
    assert service["KillMode"] == "control-group"
    assert int(service["TimeoutStopSec"]) > KILL_S
    assert int(service["WatchdogSec"]) > 2 * SILENCE_S
    words = service["ExecStart"].split()
    assert words[1] == "live"
    assert f"127.0.0.1:{words[words.index('--health') + 1]}/health" in TEXT
    for option in ("PrivateDevices", "ProtectClock", "MemoryDenyWriteExecute", "PrivateTmp"):
        assert option not in service
