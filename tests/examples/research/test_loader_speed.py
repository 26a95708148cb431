"""The measurement of the loader: consistent costs, and the gate."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from y7edge.train.loading import image_cache

ROOT = Path(__file__).parents[3]


@pytest.fixture
def speed():
    threads = cv2.getNumThreads()
    path = ROOT / "examples" / "research" / "loader_speed.py"
    spec = importlib.util.spec_from_file_location("loader_speed", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["loader_speed"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["loader_speed"]
    cv2.setNumThreads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Six noisy images with a label each, as a YOLO folder."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name in ("images", "labels"):
        (folder / name / "train").mkdir(parents=True)
    for index in range(6):
        image = rng.integers(0, 255, (120, 160, 3), np.uint8)
        cv2.imwrite(str(folder / f"images/train/{index}.jpg"), image)
        (folder / f"labels/train/{index}.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    (folder / "data.yaml").write_text("train: images/train\nnames: [a]\n")
    return folder


def run(speed, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["loader_speed.py", *map(str, arguments)])
    return speed.main()


@pytest.mark.parametrize("more", [(), ("--in-part",)])
def test_figures_add_up(speed, data, monkeypatch, capsys, more):
    options = ("--data", data, "--imgsz", 64, "--images", 7, "--repeats", 2, "--json", *more)
    assert run(speed, monkeypatch, *options) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == 12
    assert found["imgsz"] == 64
    assert found["whole"] == pytest.approx(found["decoding"] + found["beyond"])
    assert found.pop("nominal") == pytest.approx(found["whole"] - 5.25)
    assert min(found.values()) > 0
    # A mosaic of four or nine, some of whose images are out of sight.
    assert 1 < found["decoded"] < 9


def test_slow_decoding_counts_as_decoding_alone(speed, data, monkeypatch):
    decode = image_cache.decode

    def slowly(*arguments):
        end = time.process_time() + 0.02
        while time.process_time() < end:
            pass
        return decode(*arguments)

    monkeypatch.setattr(image_cache, "decode", slowly)
    (samples, settings) = speed.inputs(data, "train", "tiny")
    found = speed.measure(samples, 64, settings, images=6, repeats=1)
    each = found.decoding * found.imread_ms / found.decoded
    assert 20 < each < 40
    assert found.beyond * found.imread_ms < 20
    assert found.ram * found.imread_ms < 20


@pytest.mark.parametrize(
    ("budgets", "code", "message"),
    [
        ({"beyond": 1e9, "ram": 1e9}, 0, ""),
        ({"beyond": 0, "ram": 1e9}, 4, "beyond: expected at most 0 units, found"),
        ({"beyond": 1e9, "ram": 0}, 4, "ram: expected at most 0 units, found"),
    ],
)
def test_the_gate(speed, data, monkeypatch, capsys, budgets, code, message):
    monkeypatch.setattr(speed, "BUDGETS", budgets)
    options = ("--data", data, "--imgsz", 64, "--images", 1, "--repeats", 1, "--gate")
    assert run(speed, monkeypatch, *options) == code
    out, err = capsys.readouterr()
    assert message in err
    assert "whole item, cache ram" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [(("--recipe", "tinny"), "tinny"), (("--data", "nowhere"), "nowhere: expected")],
)
def test_mistakes_are_one_line(speed, data, monkeypatch, capsys, options, message):
    assert run(speed, monkeypatch, "--data", data, *options) == 1
    assert message in capsys.readouterr().err


def test_counts_start_at_one(speed, data, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(speed, monkeypatch, "--data", data, "--images", 0)
    assert "expected a whole number from 1, found 0" in capsys.readouterr().err


def test_workers_are_measured_with_both_memories(speed, data, monkeypatch, capsys):
    options = ("--data", data, "--imgsz", 64, "--workers", 1, "--repeats", 1, "--json")
    assert run(speed, monkeypatch, *options) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"batch memory", "torch's own"}
    assert all(value > 0 for value in found.values())
