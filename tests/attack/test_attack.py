"""Run the attack without faults; detect planted faults.

The attack forks, so it runs in its own process without threads.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.attack.planted import NAMES

RUN = Path(__file__).with_name("run.py")


def attack(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(RUN), *options], capture_output=True, text=True, check=False
    )


def counts(text: str, row: str) -> dict[str, int]:
    """Return one row of the table."""
    found = re.search(rf"^{row} +(\d+) +(\d+) +(\d+) +(\d+) ", text, re.MULTILINE)
    assert found, text
    return dict(zip(("tried", "ok", "refused", "faults"), map(int, found.groups()), strict=True))


@pytest.mark.slow
def test_short_attack() -> None:
    done = attack("--quick")
    assert counts(done.stdout, "all")["tried"] >= 140
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_full_attack() -> None:
    done = attack()
    assert counts(done.stdout, "all")["tried"] >= 5000
    assert counts(done.stdout, "command lines")["tried"] >= 200
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("option", ["--replay=coco", "--replay=nothing:m1", "--only=nothing"])
def test_unknown_names(option: str) -> None:
    done = attack(option)
    assert done.returncode == 1
    assert "such as coco:m17" in done.stderr or "there are yolo" in done.stderr


@pytest.mark.slow
def test_planted_faults_are_detected() -> None:
    """Check that the harness reports every outcome, each for a fault planted for it."""
    done = attack("--planted", "--jobs=4")  # most of them sleep
    found = re.findall(r"^planted:h(\d+): .*?: (\w+): ", done.stdout, re.MULTILINE)
    outcomes = {NAMES[int(number)]: outcome for number, outcome in found}
    assert outcomes == {
        "returns": "ok",
        "typed error": "refused",
        "raises ValueError": "raw",
        "exits": "raw",
        "sleeps": "hang",
        "computes without end": "hang",
        "deaf to signals": "hang",
        "allocates": "memory",
        "segfault": "killed",
        "leaves without a word": "killed",
        "writes outside": "outside",
        "removes outside": "outside",
        "writes outside from C": "outside",
        "copies the secret": "leaked",
        "os system": "executed",
        "subprocess": "executed",
        "eval of the mark": "executed",
        "import of the mark": "executed",
        "unpickles": "executed",
        "connects": "executed",
        "hides the error": "executed",
        "empty message": "message",
        "cannot be prepared": "broken",
        "traceback in a command": "raw",
        "internal error in a command": "raw",
        "exit code 7": "output",
        "escapes on stdout": "output",
        "two error lines": "output",
        "silent failure": "output",
        "a line without end": "output",
        "JSON with NaN": "output",
    }
    assert done.returncode == 1
