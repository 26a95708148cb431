"""The snippets of README.md and docs/robot.md run, on synthetic trays instead of a camera."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from y7edge import Detections
from y7edge.data.synthetic.conveyor import Conveyor

ROOT = Path(__file__).parents[2]
ROBOT = (ROOT / "docs" / "robot.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = {"image", "webcam", "jetson_csi", "rtsp_counter", "pick_and_place", "async_robot"}

FIRST, AGES, MEET, STOP, NEAREST, TRACK, CAMERAS = range(7)  # snippets of robot.md


def snippets(text):
    return re.findall(r"```python\n(.+?)```", text, re.DOTALL)


def run(code, tmp_path, model, capsys):
    """Run a snippet in a folder with its files; return its names and what it printed."""
    for camera in (0, 1):
        # As a video, so that the loop ends.
        source = f"test://scenes?fps=5&frames=6&seed={camera}"
        code = code.replace(f'"csi://{camera}"', f'"{source}"')
    code = code.replace('"rtsp://192.168.0.9/cam"', '"test://scenes?fps=5&frames=6"')
    assert "csi" not in code and "rtsp" not in code
    for name in ("tiny.onnx", "mine.onnx"):
        (tmp_path / name).symlink_to(model)
    cv2.imwrite(str(tmp_path / "tray.jpg"), Conveyor().view(0).image)
    (tmp_path / "snippet.py").write_text(code)
    names = runpy.run_path(str(tmp_path / "snippet.py"))
    names["detector"].close()
    return names, capsys.readouterr().out.splitlines()


@pytest.fixture
def shown(tmp_path, parts_model, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda code: run(code, tmp_path, parts_model, capsys)


def test_readme(shown):
    live, image = snippets(README)[:2]
    _, lines = shown(live + image)
    assert {line.split()[0] for line in lines} == set("012345")
    assert {line.split()[1] for line in lines} <= {"nut", "washer", "screw", "bracket"}
    drawn = cv2.imread("found.jpg")
    assert np.abs(drawn.astype(int) - Conveyor().view(0).image).max() > 100


def test_first_program(shown):
    _, lines = shown(snippets(ROBOT)[FIRST])
    assert {line.split()[0] for line in lines} == set("012345")


def test_ages(shown):
    code = snippets(ROBOT)[AGES]
    names, lines = shown(code)
    assert lines == []  # a video has no ages
    assert names["frame"].sequence == 5


def test_meeting_point():
    scope = {}
    exec(snippets(ROBOT)[MEET], scope)
    assert scope["meet"](100.0, 50_000_000, 200.0, 0.75) == pytest.approx(260.0)


def test_tracking(shown):
    pytest.importorskip("trackers")
    _, lines = shown(snippets(ROBOT)[TRACK])
    assert {line.split()[0] for line in lines} >= {"1", "2"}


def test_several_cameras(shown):
    _, lines = shown(snippets(ROBOT)[CAMERAS])
    assert len(lines) == 12
    assert {line.rsplit(maxsplit=2)[0] for line in lines} == {"test://scenes", "test://scenes (2)"}


def test_all_examples_are_listed():
    assert set(re.findall(r"^\| `(\w+)\.py` \|", ROBOT, re.MULTILINE)) == EXAMPLES


def test_a_limit_for_waiting(shown):
    names, lines = shown(snippets(ROBOT)[STOP])
    assert names["frame"].sequence == 5
    assert lines == ["stop: an old result"] * 6  # a video has no ages


def test_the_nearest_object_of_a_class(shown):
    names, lines = shown(snippets(ROBOT)[NEAREST])
    assert [line.split()[1] for line in lines] == ["nut"] * 6
    found = Detections(
        [[0, 0, 10, 10], [300, 200, 340, 280]], [0.9, 0.5], [0, 0], (640, 480), ("nut",)
    )
    assert names["nearest"](found, 320, 240)[0].center == (320, 240)
    assert len(names["nearest"](found[:0], 320, 240)) == 0


def test_the_unit_is_valid(tmp_path):
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze is not installed")
    unit = tmp_path / "robot.service"
    text = re.search(r"```ini\n(.+?)```", ROBOT, re.DOTALL)[1]
    assert "KillMode=control-group" in text and "SuccessExitStatus=130" in text
    for program in ("y7edge", "python"):  # the commands must exist
        text = text.replace(f"/opt/robot/env/bin/{program} ", f"{sys.executable} ")
    unit.write_text(text)
    done = subprocess.run([tool, "verify", str(unit)], capture_output=True, text=True, check=False)
    told = [line for line in done.stderr.splitlines() if "robot.service" in line]
    assert (done.returncode, told) == (0, [])
