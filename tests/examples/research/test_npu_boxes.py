"""The comparison of boxes in examples/research/npu_boxes.py."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from y7edge.detect.detections import Detections

RESEARCH = Path(__file__).parents[3] / "examples" / "research"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(RESEARCH))
    yield __import__("npu_boxes")
    sys.modules.pop("npu_boxes", None)


def found(*rows):
    """Detections of rows (left, top, right, bottom, score, class)."""
    values = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(values[:, :4], values[:, 4], values[:, 5].astype(np.int32), (100, 100))


def test_pairs_lost_and_extra_boxes(script):
    pairs = script.Pairs()
    pairs.add(
        found((0, 0, 10, 10, 0.9, 0), (20, 20, 30, 30, 0.8, 1), (50, 50, 60, 60, 0.3, 0)),
        found((20, 20, 30, 25, 0.7, 1), (0, 0, 10, 10, 0.85, 0), (20, 20, 30, 30, 0.6, 0)),
    )
    assert pairs.ious == pytest.approx([1.0, 0.5])
    assert pairs.differences == pytest.approx([0.05, 0.1], abs=1e-6)
    assert pairs.lost == pytest.approx([0.3])
    assert pairs.extra == pytest.approx([0.6])


def test_a_box_is_matched_once(script):
    pairs = script.Pairs()
    box = (0, 0, 10, 10)
    pairs.add(found((*box, 0.9, 0), (*box, 0.8, 0)), found((*box, 0.7, 0)))
    assert (len(pairs.ious), pairs.lost) == (1, pytest.approx([0.8]))
    pairs.add(found((*box, 0.9, 0)), found())
    assert len(pairs.lost) == 2


def test_the_table(script, parts_model, monkeypatch, capsys):
    demo = RESEARCH.parents[1] / "tests" / "reference" / "demo.safetensors"
    monkeypatch.setattr(sys, "argv", ["npu_boxes.py", str(demo), str(parts_model), "--images", "2"])
    assert script.main() == 0
    *_, row = capsys.readouterr().out.splitlines()
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:4] == ["onnx", "fp32", "cpu"]
    assert cells[4] == cells[5] != "0" and cells[6] == "0"
    assert float(cells[7]) > 0.999
