"""The loss against the published numbers, its named quirks and mends, and its cost."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from y7edge.errors import ConfigError
from y7edge.train.assign import PlainAssigner, SimOTA
from y7edge.train.candidates import Assignment
from y7edge.train.loss import DetectionLoss, LossGains, scale_gains

GOLDEN = Path(__file__).parents[1] / "reference" / "golden"
EQUAL = [
    "plain_p5_none",
    "plain_p5_1_7",
    "plain_p5_20_7_border",
    "plain_p5_focal_smooth",
    "plain_p5_nonsquare",
    "plain_p5_nc1",
    "ota_p5_none",
    "ota_p5_0_1",
    "ota_p5_7_20",
    "ota_p5_smooth",
    "ota_p5_nc1",
    "ota_p5_crowded",
]
UNIT = LossGains(box=1.0, obj=1.0, cls=1.0)
ANCHORS = torch.tensor([[[1.0, 1.0]], [[1.0, 1.0]], [[1.0, 1.0]]])


def run(case):
    hyp = case.record["hyp_used"]
    loss = DetectionLoss(
        case.record["nc"],
        case.anchors,
        LossGains(box=hyp["box"], obj=hyp["obj"], cls=hyp["cls"]),
        label_smoothing=hyp["label_smoothing"],
        cls_pw=hyp["cls_pw"],
        obj_pw=hyp["obj_pw"],
        focal_gamma=hyp["fl_gamma"],
    )
    assigner = PlainAssigner() if case.record["case"].startswith("plain") else SimOTA()
    return loss(case.heads, case.targets, assigner(case.heads, case.targets, case.anchors))


def small(batch=1, nc=3, dtype=torch.float32, seed=0):
    """Heads of 4 x 4, 2 x 2 and 1 x 1 cells with one anchor each."""
    random = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, 1, n, n, 5 + nc, generator=random).to(dtype).requires_grad_()
        for n in (4, 2, 1)
    ]


# ---- against the published numbers


@pytest.mark.parametrize("name", EQUAL)
def test_value_equals_the_published_one(loss_case, name):
    case = loss_case(name)
    parts = run(case)
    for part, key in ((parts.box, "lbox"), (parts.obj, "lobj"), (parts.cls, "lcls")):
        assert part.item() == pytest.approx(case.record[key], rel=1e-6)
        assert not part.requires_grad
    assert parts.total.item() == pytest.approx(case.record["total"], rel=1e-6)


@pytest.mark.parametrize("name", EQUAL)
def test_gradient_equals_the_published_one(loss_case, name):
    case = loss_case(name)
    run(case).total.backward()
    for level, (head, expected) in enumerate(zip(case.heads, case.record["grads"], strict=True)):
        values = torch.tensor(expected["val"])
        tolerance = 1e-5 * values.abs().max().item()
        assert head.grad.norm().item() == pytest.approx(expected["l2"], rel=5e-6)
        torch.testing.assert_close(
            head.grad.flatten()[expected["idx"]], values, rtol=0, atol=tolerance
        )
        if case.record["full_gradients_in_npz"]:
            whole = torch.from_numpy(case.arrays[f"grad/pred{level}"])
            torch.testing.assert_close(head.grad, whole, rtol=0, atol=tolerance)


def test_equal_costs_move_the_published_tie_case_a_little(loss_case):
    case = loss_case("ota_p6_lead_only")
    parts = run(case)
    assert parts.total.item() == pytest.approx(case.record["total"] * (1 - 2.21e-4), rel=1e-6)
    parts.total.backward()
    norm = case.heads[1].grad.norm().item() / case.record["grads"][1]["l2"]
    assert abs(norm - 1) == pytest.approx(0.01006, abs=1e-5)


def test_width_and_height_apart_change_the_published_non_square_case(loss_case):
    assert run(loss_case("ota_p5_nonsquare_quirk")).total.item() == pytest.approx(0.7221, abs=1e-4)


def test_gains_are_scaled_as_published():
    table = json.loads((GOLDEN / "train.json").read_text())["loss_gain_scaling"]
    recipes = {"p5": LossGains(0.05, 0.7, 0.3), "p6": LossGains(0.05, 0.7, 0.3)}
    recipes["tiny"] = LossGains(box=0.05, obj=1.0, cls=0.5)
    assert table["columns"] == ["hyp file", "imgsz", "nc", "nl", "box", "cls", "obj"]
    for recipe, imgsz, nc, levels, box, cls, obj in table["rows"]:
        gains = scale_gains(recipes[recipe], levels=levels, nc=nc, imgsz=imgsz)
        assert (gains.box, gains.cls, gains.obj) == pytest.approx((box, cls, obj), rel=1e-12)


# ---- the terms


def assigned(*entries, levels=3):
    """An assignment with all its entries on the finest level."""
    made = torch.tensor(entries, dtype=torch.int64).reshape(-1, 5)
    return Assignment(made, (len(made), *[0] * (levels - 1)))


def test_a_cell_of_two_targets_shows_the_last_ones_score():
    targets = torch.tensor([[0, 0, 0.375, 0.375, 0.25, 0.25], [0, 1, 0.4, 0.3, 0.5, 0.125]])
    loss = DetectionLoss(3, ANCHORS, UNIT)
    first, second, both, swapped = (
        loss(small(), targets, assigned(*([0, 0, 1, 1, t] for t in order))).obj.item()
        for order in ((0,), (1,), (0, 1), (1, 0))
    )
    assert first != second
    assert (both, swapped) == (second, first)


def test_repeated_entries_count_again_in_the_means():
    targets = torch.tensor([[0, 0, 0.375, 0.375, 0.25, 0.25], [0, 1, 0.8, 0.8, 0.25, 0.25]])
    loss = DetectionLoss(3, ANCHORS, UNIT)
    one, other = [0, 0, 1, 1, 0], [0, 0, 3, 3, 1]
    a, b, twice = (
        loss(small(), targets, assigned(*entries))
        for entries in ([one], [other], [one, one, other])
    )
    assert twice.box.item() == pytest.approx((2 * a.box.item() + b.box.item()) / 3, rel=1e-5)
    assert twice.cls.item() == pytest.approx((2 * a.cls.item() + b.cls.item()) / 3, rel=1e-5)


def test_without_positives_only_objectness_learns():
    heads = small()
    parts = DetectionLoss(3, ANCHORS, UNIT)(heads, torch.zeros(0, 6), assigned())
    parts.total.backward()
    assert parts.box.item() == parts.cls.item() == 0
    for head in heads:
        assert head.grad[..., 4].abs().min() > 0
        head.grad[..., 4] = 0
        assert not head.grad.any()


def test_one_class_has_no_class_term():
    heads = small(nc=1)
    targets = torch.tensor([[0, 0, 0.375, 0.375, 0.25, 0.25]])
    parts = DetectionLoss(1, ANCHORS, UNIT)(heads, targets, assigned([0, 0, 1, 1, 0]))
    parts.total.backward()
    assert parts.cls.item() == 0
    assert not heads[0].grad[..., 5].any()


def test_total_is_per_batch():
    targets = torch.tensor([[0, 0, 0.375, 0.375, 0.25, 0.25]])
    parts = DetectionLoss(3, ANCHORS, LossGains(0.3, 0.2, 0.1))(
        small(batch=4), targets, assigned([0, 0, 1, 1, 0])
    )
    assert parts.total.item() == pytest.approx(4 * (parts.box + parts.obj + parts.cls).item())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_heads_are_judged_in_float32(dtype):
    targets = torch.tensor([[0, 2, 0.375, 0.375, 0.25, 0.25]])
    loss, assignment = DetectionLoss(3, ANCHORS, UNIT), assigned([0, 0, 1, 1, 0])
    half = small(dtype=dtype)
    exact = loss([head.detach().float() for head in half], targets, assignment)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        parts = loss(half, targets, assignment)
    assert parts.total.dtype == torch.float32
    assert parts.total.item() == exact.total.item()
    parts.total.backward()
    assert half[0].grad.dtype == dtype


def test_gradient_is_that_of_the_value():
    targets = torch.tensor([[0, 2, 0.4, 0.35, 0.25, 0.2]])
    loss = DetectionLoss(3, ANCHORS.double(), UNIT, label_smoothing=0.1, focal_gamma=1.5)
    heads = small(dtype=torch.float64)

    def value(logits):
        return loss([logits, *heads[1:]], targets.double(), assigned([0, 0, 1, 1, 0])).total

    # Box channels are left out: alpha is held constant there, and the score is objectness' target.
    (gradient,) = torch.autograd.grad(value(heads[0]), heads[0])
    for channel in (4, 5, 7):
        step = torch.zeros_like(heads[0])
        step[0, 0, 1, 1, channel] = 1e-6
        slope = (value(heads[0] + step) - value(heads[0] - step)) / 2e-6
        assert gradient[0, 0, 1, 1, channel].item() == pytest.approx(slope.item(), rel=1e-6)


def test_unknown_number_of_levels_is_refused():
    with pytest.raises(ConfigError, match="3 or 4 levels, got 2"):
        DetectionLoss(3, ANCHORS[:2], UNIT)


# ---- cost


def operations(batch, per_picture, nc=80):
    """Profiled operations of one assignment and loss at 320 pixels."""
    anchors = torch.tensor([[1.5, 2.0], [2.4, 4.5], [5.0, 3.5]]).repeat(3, 1, 1)
    random = torch.Generator().manual_seed(batch)
    heads = [
        torch.randn(batch, 3, n, n, 5 + nc, generator=random).requires_grad_() for n in (40, 20, 10)
    ]
    count = batch * per_picture
    targets = 0.1 + 0.4 * torch.rand(count, 6, generator=random)
    targets[:, 0] = torch.arange(count) % batch
    targets[:, 1] = torch.arange(count) % nc
    loss, assigner = DetectionLoss(nc, anchors, UNIT), SimOTA()
    with profile(activities=[ProfilerActivity.CPU]) as record:
        loss(heads, targets, assigner(heads, targets, anchors))
    return record.events()


def test_operations_and_waits_do_not_grow_with_the_batch():
    two, sixteen, crowded = operations(2, 10), operations(16, 10), operations(16, 40)
    called = [
        Counter(e.name for e in events if e.cpu_parent is None)
        for events in (two, sixteen, crowded)
    ]
    assert called[0] == called[1] == called[2]
    # Inside, the CPU takes one or another path for small tensors: a handful of views differ.
    assert len(sixteen) <= len(two) + 8
    for events in (two, sixteen, crowded):
        waits = Counter(event.name for event in events)
        assert waits["aten::nonzero"] == 2
        assert waits["aten::_local_scalar_dense"] == 1
