"""The examples run as by a user, on synthetic trays whose contents are known."""

from __future__ import annotations

import ast
import itertools
import json
import os
import re
import runpy
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from y7edge.data.synthetic.conveyor import Conveyor
from y7edge.data.synthetic.scenes import NAMES
from y7edge.sources.scenes import Settings

EXAMPLES = Path(__file__).parents[2] / "examples"
FILES = (
    *("image.py", "webcam.py", "jetson_csi.py", "rtsp_counter.py"),
    *("pick_and_place.py", "async_robot.py"),
)


def names_of(class_ids):
    return [NAMES[index] for index in class_ids]


def whole_parts(settings, sequence, belt):
    """The names of the parts that are entirely in a frame."""
    view = belt.view(settings.moved(sequence))
    return Counter(names_of(view.class_id[view.whole]))


# --- all examples --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_form(name):
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    assert text.count("\n") <= 60
    tree = ast.parse(text)
    described = ast.get_docstring(tree)
    assert f"python examples/{name} --model mine." in described
    used = {
        node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module.startswith("y7edge")
    }
    assert used <= {"y7edge", "y7edge.adapters.tracking"}  # the public API


@pytest.fixture
def inside(monkeypatch, capsys, tmp_path):
    """Run an example in this process, which is faster; return exit code, stdout and stderr."""

    def inside(name, *arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        monkeypatch.setattr(signal, "signal", lambda *_: None)
        code = 0
        try:
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        except SystemExit as stopped:
            code = stopped.code
        out, err = capsys.readouterr()
        return (code, out, err) if isinstance(code, int) else (1, out, f"{err}{code}\n")

    return inside


@pytest.mark.parametrize("name", FILES)
def test_help(inside, name):
    code, out, err = inside(name, "--help")
    assert (code, err) == (0, "")
    assert {"--model", "--source"} <= set(re.findall(r"--\w+", out))


@pytest.mark.parametrize("name", FILES)
def test_a_model_or_source_that_does_not_exist(inside, name, parts_model):
    code, _, err = inside(name, "--model", "missing.onnx", "--source", "test://scenes")
    assert code == 1
    assert re.fullmatch(r"error: .*missing\.onnx.*\n", err)
    code, _, err = inside(name, "--model", parts_model, "--source", "test://scenery")
    assert code == 1
    assert re.fullmatch(r"error: .*scenery.*\n", err)


# --- each example --------------------------------------------------------------------------------


def test_image(run, parts_model, tmp_path):
    source = "test://scenes?speed=0"
    code, lines, err = run("image.py", "--model", parts_model, "--source", source)
    assert (code, err) == (0, "")
    view = Conveyor().view(0)
    found = {}
    for line in lines[:-1]:
        kind, score, x, y = re.fullmatch(r"(\w+) (0\.\d\d) at \((\d+), (\d+)\)", line).groups()
        found[float(x), float(y)] = (kind, float(score))
    assert [score for _, score in found.values()] == sorted(
        (score for _, score in found.values()), reverse=True
    )
    assert view.whole.sum() == len(found) == 4
    for index in np.flatnonzero(view.whole):
        middle = (view.boxes[index, :2] + view.boxes[index, 2:]) / 2
        nearest = min(found, key=lambda place: np.hypot(*(place - middle)))
        assert np.hypot(*(nearest - middle)) < 25
        assert found[nearest][0] == NAMES[view.class_id[index]]
    assert lines[-1] == f"{len(found)} objects in {source}: found.jpg"
    drawn = cv2.imread(str(tmp_path / "found.jpg"))
    difference = np.abs(drawn.astype(int) - view.image).max(axis=2)
    assert drawn.shape == view.image.shape
    assert 0.005 < (difference > 60).mean() < 0.2  # boxes and labels


def test_image_that_cannot_be_written(run, parts_model):
    code, _, err = run(
        *("image.py", "--model", parts_model, "--source", "test://scenes?speed=0"),
        *("--save", "missing/found.jpg"),
    )
    assert code == 1
    assert err == "error: cannot write missing/found.jpg\n"


@pytest.mark.parametrize("name", ["found.xyz", "found"])
def test_image_of_an_unknown_format(inside, parts_model, name):
    source = "test://scenes?speed=0"
    code, _, err = inside("image.py", "--model", parts_model, "--source", source, "--save", name)
    assert code == 1
    assert err.startswith("error: ")


def test_numbers_below_the_limits(inside, parts_model):
    common = ("--model", parts_model, "--source", "test://scenes?frames=2")
    for name in ("webcam.py", "jetson_csi.py", "pick_and_place.py"):  # 0: all frames
        assert inside(name, *common, "--frames", -3)[0] == 0
    code, out, _ = inside("async_robot.py", *common, "--rate", 0, "--seconds", 1)
    assert (code, out.splitlines()[-1].split()[0]) == (0, "stop")


def test_webcam_without_a_display(run, parts_model):
    source = "test://scenes?fps=20&speed=1"
    code, lines, err = run(
        *("webcam.py", "--model", parts_model, "--source", source, "--frames", 25, "--conf", "0.4")
    )
    assert (code, err) == (0, "")
    assert len(lines) == 25
    settings, belt = Settings(fps=20, speed=1), Conveyor()
    before, expected, missing = -1, 0, 0
    for line in lines:
        sequence, age, names = re.fullmatch(r"frame (\d+), (\d+) ms old: (.+)", line).groups()
        assert before < int(sequence)
        before = int(sequence)
        assert 0 <= int(age) < 60_000
        present = whole_parts(settings, before, belt)
        found = Counter(re.findall(r"(\w+) 0\.\d\d", names))
        expected += present.total()
        missing += (present - found).total()
    assert expected >= 25
    assert missing <= 0.1 * expected


def test_webcam_in_a_window(monkeypatch, parts_model):
    shown, keys = [], iter([-1, -1, ord("q")])
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(cv2, "imshow", lambda title, image: shown.append(image))
    monkeypatch.setattr(cv2, "waitKey", lambda ms: next(keys))
    arguments = ["webcam.py", "--model", str(parts_model), "--source", "test://scenes?speed=0"]
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(str(EXAMPLES / "webcam.py"), run_name="__main__")
    assert len(shown) == 3
    assert (np.abs(shown[0].astype(int) - Conveyor().view(0).image).max(axis=2) > 60).any()


def test_webcam_stops_by_ctrl_c(start, parts_model):
    process = start("webcam.py", "--model", parts_model, "--source", "test://scenes", "--headless")
    assert process.stdout.readline().startswith("frame ")
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the camera's process too
    out, err = process.communicate(timeout=30)
    assert out.endswith("stopped\n")
    assert (process.returncode, err) == (0, "")


def test_jetson_csi(run, parts_model):
    code, lines, err = run(
        *("jetson_csi.py", "--model", parts_model, "--source", "test://scenes?fps=60"),
        *("--frames", 65),
    )
    assert (code, err) == (0, "")
    assert lines[0] == "cpu; images: scaled on the CPU"
    assert len(lines) == 3  # after 30 and 60 frames
    for line in lines[1:]:
        found = re.fullmatch(
            r"([\d.]+) frames/s, age ([\d.]+) ms \(p99 ([\d.]+)\), (\d+) dropped, (\d+) objects",
            line,
        )
        rate, p50, p99 = map(float, found.groups()[:3])
        assert 0 < rate < 80
        assert 0 < p50 <= p99 < 60_000
        assert 1 <= int(found.group(5)) <= 8


@pytest.mark.slow
def test_jetson_csi_stops_by_sigterm(start, parts_model):
    process = start("jetson_csi.py", "--model", parts_model, "--source", "test://scenes")
    process.stdout.readline()
    assert " frames/s" in process.stdout.readline()
    (child,) = _children(process.pid)
    process.terminate()
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "")
    end = time.monotonic() + 15  # the camera's process ends too
    while (running := Path(f"/proc/{child}").exists()) and time.monotonic() < end:
        time.sleep(0.05)
    assert not running


def _children(pid):
    """The processes that the threads of a process have started (proc(5))."""
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for one in lists for child in one.read_text().split()]


# With 60 frames/s, boxes that tremble on the line cross it several times.
@pytest.mark.parametrize(
    ("fps", "frames", "seed", "line"),
    [(10, 240, 0, 0.5), pytest.param(60, 240, 2, 0.5, marks=pytest.mark.slow)],
)
def test_counter_counts_exactly(run, parts_model, fps, frames, seed, line):
    pytest.importorskip("trackers")
    # As a video, so that every frame is used.
    code, lines, err = run(
        *("rtsp_counter.py", "--model", parts_model, "--conf", "0.5", "--line", line),
        *("--source", f"test://scenes?fps={fps}&frames={frames}&seed={seed}"),
    )
    assert (code, err) == (0, "")
    settings = Settings(fps=fps)
    truth = Conveyor(seed).crossings(line * 640, 0, settings.moved(frames - 1))
    assert truth.sum() >= 3
    result = json.loads(lines[-1])
    assert result == {
        "right": {name: count for name, count in zip(NAMES, truth.tolist(), strict=True) if count},
        "left": {},
        "frames": frames,
        "reconnects": 0,
    }
    ids = [re.fullmatch(r"frame \d+: \w+ (#\d+)", line).group(1) for line in lines[:-1]]
    assert len(set(ids)) == len(ids) == truth.sum()


@pytest.mark.slow
def test_counter_of_a_live_source(run, parts_model):
    pytest.importorskip("trackers")
    code, lines, err = run(
        *("rtsp_counter.py", "--model", parts_model, "--conf", "0.5", "--line", "0.4"),
        *("--source", "test://scenes?fps=15&speed=0.3", "--frames", 75),
    )
    assert (code, err) == (0, "")
    counted = [re.fullmatch(r"frame (\d+): (\w+) #\d+", line).groups() for line in lines[:-1]]
    assert Counter(kind for _, kind in counted) == json.loads(lines[-1])["right"]
    # Whichever frames were dropped: each crossing is one of the belt's, shortly before its frame.
    settings, belt = Settings(fps=15, speed=0.3), Conveyor()
    at = [settings.moved(int(frame)) for frame, _ in counted]
    assert len(counted) >= 3
    for moved, (_, kind) in zip(at, counted, strict=True):
        recent = belt.crossings(0.4 * 640, max(0, moved - 250), moved + 20)
        assert recent[NAMES.index(kind)] >= 1
    between = belt.crossings(0.4 * 640, at[0] + 20, at[-1] - 250)
    assert len(counted) >= between.sum()


def test_picks_are_where_the_parts_are(run, parts_model):
    # The camera looks at the table from the side: four points, as a user would measure them.
    pixels = np.array([(80, 60), (560, 60), (630, 470), (10, 470)], float)
    table = np.array([(-200, 0), (200, 0), (200, 300), (-200, 300)], float)
    given = [" ".join(f"{x:g},{y:g}" for x, y in four) for four in (pixels, table)]
    source = "test://scenes?fps=2&frames=40"
    arguments = ("pick_and_place.py", "--model", parts_model, "--source", source)
    arguments += ("--pixels", given[0], "--table", given[1])
    code, lines, err = run(*arguments)
    assert (code, err) == (0, "")
    assert run(*arguments)[1] == lines  # deterministic

    settings, belt = Settings(fps=2), Conveyor()
    errors, missing = [], 0
    for sequence, line in enumerate(lines):
        record = json.loads(line)
        assert record["frame"] == sequence
        view = belt.view(settings.moved(sequence))
        places = _to_table((view.boxes[:, :2] + view.boxes[:, 2:]) / 2, pixels, table)
        for index in np.flatnonzero(view.whole):
            same = [p for p in record["picks"] if p["class"] == NAMES[view.class_id[index]]]
            distances = [
                np.hypot(p["x_mm"] - x, p["y_mm"] - y) for p in same for x, y in [places[index]]
            ]
            if min(distances, default=np.inf) < 60:
                errors.append(min(distances))
            else:
                missing += 1
    assert len(errors) > 60
    assert missing <= 0.1 * len(errors)
    assert np.median(errors) < 8  # mm, of parts of 100 mm
    assert np.max(errors) < 30


def _to_table(points, pixels, table):
    """Map points by the homography of four points: eight linear equations."""
    rows, right = [], []
    for (x, y), (u, v) in zip(pixels, table, strict=True):
        rows += [(x, y, 1, 0, 0, 0, -u * x, -u * y), (0, 0, 0, x, y, 1, -v * x, -v * y)]
        right += [u, v]
    matrix = np.append(np.linalg.solve(rows, right), 1).reshape(3, 3)
    mapped = np.column_stack((points, np.ones(len(points)))) @ matrix.T
    return mapped[:, :2] / mapped[:, 2:]


def test_picks_are_in_order():
    from y7edge import Detections

    picks = runpy.run_path(str(EXAMPLES / "pick_and_place.py"))["picks"]
    found = Detections(
        xyxy=[
            (100, 100, 200, 200),  # half covered by the next one
            (150, 100, 250, 200),
            (300, 300, 340, 340),
            (400, 300, 440, 340),
            (0, 10, 30, 40),  # at the edge
        ],
        confidence=[0.9, 0.5, 0.6, 0.8, 0.95],
        class_id=[0, 1, 2, 3, 0],
        image_wh=(640, 480),
        names=NAMES,
    )
    half = np.diag((0.5, 0.5, 1.0))
    listed = picks(found, half)
    assert [row["class"] for row in listed] == ["bracket", "screw", "nut", "washer"]
    assert (listed[0]["x_mm"], listed[0]["y_mm"]) == (210, 160)
    assert picks(Detections.empty((640, 480), NAMES), half) == []


@pytest.mark.parametrize(
    "four",
    ["0,0 1,1 2,2 0,5", "0,0 0,0 9,9 0,9", "1,2 3,4", "a,b c,d e,f g,h", "nan,0 9,0 9,9 0,9"],
)
def test_points_that_define_no_table_are_refused(inside, four):
    code, _, err = inside("pick_and_place.py", "--pixels", four)
    assert code == 2
    assert "error: " in err


def test_images_of_another_size_have_no_places(inside, parts_model):
    source = ("--model", parts_model, "--source", "test://scenes?width=320&height=240&frames=1")
    code, out, err = inside("pick_and_place.py", *source)
    assert (code, out) == (1, "")
    assert err == "error: the images have 320x240 pixels, but --size is 640x480\n"
    code, out, _ = inside("pick_and_place.py", *source, "--size", "320x240")
    assert (code, out.count("x_mm") > 0) == (0, True)


@pytest.mark.slow
def test_control_loop_keeps_its_period(run, parts_model):
    started = time.monotonic()
    code, lines, err = run(
        *("async_robot.py", "--model", parts_model, "--source", "test://scenes?speed=0"),
        *("--rate", 50, "--stale", 5, "--seconds", 3),
    )
    assert (code, err) == (0, "")
    assert time.monotonic() - started >= 3
    best = Conveyor().view(0)
    x, y, kind, age = re.fullmatch(
        r"[\d.]+ s: move ([+-]0\.\d\d) ([+-]0\.\d\d) to a (\w+), seen (\d+) ms ago", lines[-2]
    ).groups()
    middles = (best.boxes[:, :2] + best.boxes[:, 2:]) / 2 / (640, 480) - 0.5
    distance = np.hypot(*(middles - (float(x), float(y))).T)
    assert distance.min() < 0.05
    assert kind == NAMES[best.class_id[distance.argmin()]]
    assert int(age) < 5000
    count, late = re.fullmatch(
        r"stop after 3\.0\d s: (\d+) commands, up to ([\d.]+) ms late", lines[-1]
    ).groups()
    assert int(count) in (150, 151)  # delays do not add up
    assert float(late) < 1000


@pytest.mark.slow
def test_robot_stops_when_results_are_old(run, parts_model):
    # A frame every second, and results count for 0.6 s: move, stop, move, stop.
    code, lines, err = run(
        *("async_robot.py", "--model", parts_model, "--source", "test://scenes?fps=1&speed=0"),
        *("--stale", 0.6, "--seconds", 4.2),
    )
    assert (code, err) == (0, "")
    verbs = [line.split()[2] for line in lines[:-1]]
    assert verbs.count("stop:") >= 3
    assert verbs.count("move") >= 2
    assert all(a != b for a, b in itertools.pairwise(verbs))


def test_robot_stops_when_the_camera_fails(run, parts_model):
    source = "test://pattern?fps=20&fault=error&after=10&retries=0"
    code, lines, err = run("async_robot.py", "--model", parts_model, "--source", source)
    assert code == 1
    assert lines[-1].startswith("stop after ")
    assert err.splitlines()[-1].startswith("error: test://pattern")


def test_control_loop_says_why_it_stops(inside, start, parts_model):
    source = "test://scenes?speed=0&fault=stall&after=30"
    process = start("async_robot.py", "--model", parts_model, "--source", source, "--seconds", 60)
    lines = []
    while sum("stop: no recent result" in line for line in lines) < 2:  # at first, and stalled
        lines.append(process.stdout.readline())
        assert not lines[-1].startswith("stop after"), lines
    assert any("move" in line for line in lines)
    process.terminate()
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert out.splitlines()[-1].startswith("stop after ")
    nothing = ("--source", "test://pattern", "--seconds", 1)
    _, out, _ = inside("async_robot.py", "--model", parts_model, *nothing, "--stale", 9)
    assert out.splitlines()[-2].endswith("stop: no object")
