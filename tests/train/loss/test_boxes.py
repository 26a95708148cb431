"""CIoU against the published numbers, and for boxes without area."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from y7edge.train.loss.boxes import EPS, ciou, corners, decode

GOLDEN = Path(__file__).parents[2] / "reference" / "golden"
DEGENERATE = [2, 3, 4, 5, 8]  # empty or tiny: areas of the size of the small constant


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "ops.npz") as stored:
        return {
            key.removeprefix("iou/"): torch.from_numpy(value)
            for key, value in stored.items()
            if key.startswith("iou/")
        }


@pytest.mark.parametrize("form", ["xywh", "xyxy"])
def test_ciou_equals_the_published_one(golden, form):
    first, second = golden[f"box1_{form}"], golden[f"box2_{form}"]
    if form == "xywh":
        first, second = corners(first), corners(second)
    off = (ciou(first, second) - golden[f"ciou_{form}_input"]).abs()
    ordinary = torch.ones(len(off), dtype=torch.bool)
    ordinary[DEGENERATE] = False
    assert off[ordinary].max() <= 2e-6
    assert off.max() <= 2e-4


def test_gradient_of_ciou_holds_alpha_constant(golden):
    boxes = golden["box1_xywh"].clone().requires_grad_()
    ciou(corners(boxes), corners(golden["box2_xywh"])).sum().backward()
    expected = golden["ciou_grad_box1_xywh"]
    ordinary = torch.ones(len(expected), dtype=torch.bool)
    ordinary[DEGENERATE] = False
    scale = expected[ordinary].abs().amax()
    assert (boxes.grad - expected)[ordinary].abs().amax() <= 1e-5 * scale


def test_empty_boxes_give_0():
    empty = torch.tensor([[3.0, 3.0, 3.0, 3.0]])
    assert ciou(empty, empty).item() == 0


def test_epsilon_is_in_heights_and_union():
    tiny = torch.tensor([[0.0, 0.0, 1e-4, 1e-4]], dtype=torch.float64)
    assert ciou(tiny, tiny).item() == pytest.approx(0.0908, abs=2e-4)


def test_epsilon_is_twice_in_the_aspect_term():
    flat = torch.tensor([[0.0, 0.0, 1e-6, 1e-7]], dtype=torch.float64)
    square = torch.tensor([[0.0, 0.0, 1e-6, 1e-6]], dtype=torch.float64)
    aspect = (np.arctan(1e-6 / 1.2e-6) - np.arctan(1e-6 / 3e-7)) ** 2 * 4 / np.pi**2
    # Overlap 1e-13 (the box without the constant on its height); union with it on both heights.
    iou = 1e-13 / (1e-6 * (1e-7 + EPS) + 1e-6 * (1e-6 + EPS) - 1e-13 + EPS)
    diou = iou - (9e-7) ** 2 / 4 / (2e-12 + EPS)
    alpha = aspect / (aspect - iou + 1 + EPS)
    assert ciou(flat, square).item() == pytest.approx(diou - alpha * aspect, rel=1e-6)


def test_decode_limits():
    anchors = torch.tensor([[2.0, 3.0]])
    assert decode(torch.zeros(1, 4), anchors).tolist() == [[0.5, 0.5, 2.0, 3.0]]
    assert decode(torch.full((1, 4), 40.0), anchors).tolist() == [[1.5, 1.5, 8.0, 12.0]]
    assert decode(torch.full((1, 4), -40.0), anchors)[0, :2].tolist() == [-0.5, -0.5]
