"""Candidates and assignments against published ones and a slow form; ties and extremes."""

from __future__ import annotations

import math
import weakref
from collections import Counter
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from y7edge.train.loss.assign import SimOTA
from y7edge.train.loss.candidates import propose

ANCHORS = torch.tensor(  # the published set of yolov7, in grid units
    [
        [[1.5, 2.0], [2.375, 4.5], [5.0, 3.5]],
        [[2.25, 4.6875], [4.75, 3.4375], [4.5, 9.125]],
        [[4.4375, 3.4375], [6.0, 7.59375], [14.34375, 12.53125]],
    ]
)
PLAIN_ASSIGNER = partial(propose, anchor_t=4.0, reach=0.5)  # every candidate is a positive
PLAIN = ["none", "1_7", "20_7_border", "focal_smooth", "nonsquare", "nc1"]
LEAD = ["p5_none", "p5_0_1", "p5_7_20", "p5_smooth", "p5_nc1", "p5_crowded"]
COARSE = ["none", "1_7", "0_7", "20_7_border", "crowded"]


def rows(entries):
    return Counter(map(tuple, entries.tolist()))


def scene(counts, nc=4, height=128, width=128, seed=0, std=1.0):
    """Random heads and targets of a batch; ``counts`` boxes per image."""
    random = torch.Generator().manual_seed(seed)
    heads = [
        std * torch.randn(len(counts), 3, height // s, width // s, 5 + nc, generator=random)
        for s in (8, 16, 32)
    ]
    image = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))[:, None]
    label = torch.randint(nc, image.shape, generator=random)
    centre = torch.rand(len(image), 2, generator=random)
    size = torch.exp(-3 + 2.5 * torch.rand(len(image), 2, generator=random))
    return heads, torch.cat((image, label, centre, size), 1).float()


def slow_simota(heads, targets, anchors, candidates, q0=10, square=False):
    """Image by image and target by target, in double; ``square`` scales by height alone."""
    height, width = heads[0].shape[2], heads[0].shape[3]
    scale = (height, height) if square else (width, height)
    found = [[] for _ in heads]
    for image in range(heads[0].shape[0]):
        pool = [
            (level, *entry[:4])
            for level, entries in enumerate(candidates.levels())
            for entry in entries.tolist()
            if entry[0] == image
        ]
        wanted = [t for t in range(len(targets)) if targets[t, 0] == image]
        cost = {t: [] for t in wanted}
        taken = {t: set() for t in wanted}
        for t in wanted:
            _, label, cx, cy, w, h = targets[t].double().tolist()
            box = (cx * scale[0], cy * scale[1], w * scale[0], h * scale[1])
            ious = []
            for level, _, a, gj, gi in pool:
                logits = heads[level][image, a, gj, gi].double()
                unit = height / heads[level].shape[2]
                iou = slow_iou(slow_decode(logits, anchors[level, a].tolist(), gj, gi, unit), box)
                probability = (
                    (logits[5:].sigmoid() * logits[4].sigmoid()).sqrt().clamp(1e-7, 1 - 1e-7)
                )
                sign = -torch.log1p(-probability)
                sign[int(label)] = -probability[int(label)].log()
                ious.append(iou)
                cost[t].append(sign.sum().item() - 3 * math.log(iou + 1e-8))
            k = max(1, int(sum(sorted(ious, reverse=True)[:q0])))
            taken[t] = set(sorted(range(len(pool)), key=lambda i, t=t: cost[t][i])[:k])
        for i, entry in enumerate(pool):
            takers = [t for t in wanted if i in taken[t]]
            if takers:
                rivals = wanted if len(takers) > 1 else takers
                owner = min(rivals, key=lambda t, i=i: cost[t][i])
                found[entry[0]].append((*entry[1:], owner))
    return [Counter(level) for level in found]


def slow_decode(logits, anchor, gj, gi, unit):
    x, y, w, h = logits[:4].sigmoid().tolist()
    size = ((2 * w) ** 2 * anchor[0], (2 * h) ** 2 * anchor[1])
    return tuple(v * unit for v in (2 * x - 0.5 + gi, 2 * y - 0.5 + gj, *size))


def slow_iou(a, b):
    sides = [
        max(
            0,
            min(a[i] + a[i + 2] / 2, b[i] + b[i + 2] / 2)
            - max(a[i] - a[i + 2] / 2, b[i] - b[i + 2] / 2),
        )
        for i in (0, 1)
    ]
    overlap = sides[0] * sides[1]
    return overlap / (a[2] * a[3] + b[2] * b[3] - overlap)


# ---- against the published numbers


@pytest.mark.parametrize("name", PLAIN)
def test_plain_assignment_equals_the_published_one_in_order(loss_case, name):
    case = loss_case(f"plain_p5_{name}")
    assignment = PLAIN_ASSIGNER(case.heads, case.targets, case.anchors)
    for level, entries in enumerate(assignment.levels()):
        label = case.targets[entries[:, 4], 1:2].long()
        expected = case.arrays[f"assign/{level}"].tolist()
        assert torch.cat((entries[:, :4], label), 1).tolist() == expected


@pytest.mark.parametrize("name", [f"ota_{n}" for n in LEAD] + [f"aux_p6_{n}" for n in COARSE])
def test_lead_assignment_equals_the_published_one(loss_case, name):
    case = loss_case(name)
    q0 = 20 if name.startswith("aux") else 10
    for got, kind in (
        (propose(case.heads, case.targets, case.anchors, anchor_t=4.0, reach=0.5), "lead_cand"),
        (SimOTA(q0=q0)(case.heads, case.targets, case.anchors), "lead_match"),
    ):
        for level, entries in enumerate(got.levels()):
            expected = case.arrays[f"{kind}/{level}"]
            assert rows(entries[:, : expected.shape[1]]) == rows(expected)


@pytest.mark.parametrize("name", [n for n in COARSE if n != "none"])
def test_coarse_labels_from_lead_predictions_equal_the_published_ones(loss_case, name):
    case = loss_case(f"aux_p6_{name}")
    assignment = SimOTA(reach=1.0, q0=20)(case.heads, case.targets, case.anchors)
    for level, entries in enumerate(assignment.levels()):
        assert rows(entries) == rows(case.arrays[f"aux_match/{level}"])


def test_tie_case_differs_in_one_match(loss_case):
    case = loss_case("ota_p6_lead_only")
    got = [rows(e) for e in SimOTA()(case.heads, case.targets, case.anchors).levels()]
    published = [rows(case.arrays[f"lead_match/{level}"]) for level in range(4)]
    assert [p - g for p, g in zip(published, got, strict=True)] == [
        Counter(),
        Counter({(0, 0, 8, 8, 0): 1}),
        Counter(),
        Counter(),
    ]
    assert not any(g - p for p, g in zip(published, got, strict=True))


def test_non_square_case_differs_by_scaling_only(loss_case):
    case = loss_case("ota_p5_nonsquare_quirk")
    heads = [head.detach() for head in case.heads]
    candidates = propose(heads, case.targets, case.anchors, anchor_t=4.0, reach=0.5)
    quirk = slow_simota(heads, case.targets, case.anchors, candidates, square=True)
    assert quirk == [rows(case.arrays[f"lead_match/{level}"]) for level in range(3)]
    right = slow_simota(heads, case.targets, case.anchors, candidates)
    assignment = SimOTA()(heads, case.targets, case.anchors)
    assert [rows(e) for e in assignment.levels()] == right
    assert assignment.sizes == (16, 13, 0)


# ---- candidates


def cells(x, y, reach=0.5, size=0.03125):
    """(column, row) entries of one target for the first anchor of a 16 x 16 grid."""
    head = torch.zeros(1, 3, 16, 16, 6)
    target = torch.tensor([[0, 0, x, y, size, size]])
    found = propose([head], target, torch.tensor([[[1.0, 1.0]]]), anchor_t=4.0, reach=reach)
    return [(column, row) for _, _, row, column, _ in found.entries.tolist()]


@pytest.mark.parametrize(
    ("x", "y", "reach", "expected"),
    [
        (8.25, 8.75, 0.5, [(8, 8), (7, 8), (8, 9)]),
        (8.25, 8.75, 1.0, [(8, 8), (7, 8), (8, 7), (9, 8), (8, 9)]),
        (8.5, 8.5, 0.5, [(8, 8)]),
        (0.25, 15.75, 0.5, [(0, 15)]),
        (8.0, 8.0, 0.5, [(8, 8), (7, 8), (8, 7), (8, 8), (8, 8)]),
        (0.0, 0.0, 0.5, [(0, 0), (0, 0), (0, 0)]),
        (16.0, 8.25, 0.5, [(15, 8), (15, 8), (15, 7)]),
        (1.0, 15.0, 0.5, [(1, 15), (1, 14), (1, 15)]),
    ],
    ids=["fine", "coarse", "centre", "border", "corner", "origin", "edge", "one-from-edges"],
)
def test_candidate_cells_of_a_centre(x, y, reach, expected):
    assert cells(x / 16, y / 16, reach) == expected


def test_anchors_fit_below_the_ratio_only():
    assert cells(0.53125, 0.53125, size=3.999 / 16)
    assert not cells(0.53125, 0.53125, size=4.0 / 16)
    assert not cells(0.53125, 0.53125, size=0.25 / 16)


# ---- simOTA


@pytest.mark.parametrize("pairs", [1 << 22, 500, 1], ids=["whole", "chunks", "row-by-row"])
@pytest.mark.parametrize(
    ("counts", "size"),
    [((3, 0, 9), (128, 128)), ((30, 1), (128, 64)), ((0, 25, 2), (64, 128))],
    ids=["mixed", "crowded-tall", "crowded-wide"],
)
def test_assignment_equals_the_slow_form(counts, size, pairs):
    heads, targets = scene(counts, height=size[0], width=size[1], seed=sum(counts))
    targets = targets[torch.randperm(len(targets), generator=torch.Generator().manual_seed(1))]
    candidates = propose(heads, targets, ANCHORS, anchor_t=4.0, reach=0.5)
    assignment = SimOTA(pairs=pairs)(heads, targets, ANCHORS)
    assert [rows(e) for e in assignment.levels()] == slow_simota(
        heads, targets, ANCHORS, candidates
    )


def one_level(targets, **logits):
    """A 4 x 4 grid, one anchor of one cell, two classes; ``logits`` set channels everywhere."""
    head = torch.zeros(1, 1, 4, 4, 7)
    for channel, value in logits.items():
        head[..., {"box": slice(0, 4), "obj": 4, "cls": slice(5, 7)}[channel]] = value
    return [head], torch.tensor(targets), torch.tensor([[[1.0, 1.0]]])


def test_equal_costs_select_the_first_candidate():
    # A grid corner: the own cell is entered first, fourth and fifth, at exactly the same cost.
    heads, targets, anchors = one_level([[0, 0, 0.5, 0.5, 0.25, 0.25]])
    heads[0][0, 0, 2, 2, :2] = -math.log(3)  # sigmoid 0.25: decoded exactly on the corner
    candidates = propose(heads, targets, anchors, anchor_t=4.0, reach=0.5)
    place = [row == column == 2 for _, _, row, column, _ in candidates.entries.tolist()]
    assert place == [True, False, False, True, True]
    wider = SimOTA()(heads, targets, anchors).entries
    assert len(wider) == 3  # IoUs 1, 1, 1 and two below a half
    heads[0][0, 0, 2, 2, 2:4] = -0.6  # smaller boxes: the sum of IoUs falls below three
    assert SimOTA()(heads, targets, anchors).entries.tolist() == [[0, 0, 2, 2, 0]]


def test_equal_targets_select_the_first():
    box = [0.625, 0.625, 0.25, 0.25]
    heads, targets, anchors = one_level([[0, 1, *box], [0, 1, *box], [0, 1, *box]])
    assert SimOTA()(heads, targets, anchors).entries[:, 4].unique().tolist() == [0]
    assert SimOTA(pairs=1)(heads, targets, anchors).entries[:, 4].unique().tolist() == [0]


@pytest.mark.parametrize("logit", [17.0, 40.0, -60.0, -110.0])
def test_saturated_logits_use_the_box_cost(logit):
    heads, targets, anchors = one_level([[0, 0, 0.6, 0.55, 0.25, 0.25]], obj=logit, cls=logit)
    calm, _, _ = one_level([[0, 0, 0.6, 0.55, 0.25, 0.25]])
    entries = SimOTA()(heads, targets, anchors).entries
    assert entries.tolist() == SimOTA()(calm, targets, anchors).entries.tolist() != []


@pytest.mark.parametrize(
    "targets",
    [torch.zeros(0, 6), torch.tensor([[0, 0, 0.5, 0.5, 1e-4, 1e-4]])],
    ids=["no-targets", "too-small-for-all-anchors"],
)
@pytest.mark.parametrize("assigner", [PLAIN_ASSIGNER, SimOTA()])
def test_nothing_to_match(assigner, targets):
    heads, _ = scene((1, 1))
    assignment = assigner(heads, targets, ANCHORS)
    assert assignment.sizes == (0, 0, 0)
    assert assignment.entries.shape == (0, 5)


def test_image_without_candidates_does_not_affect_others():
    heads, targets = scene((5, 0))
    alone = SimOTA()(heads, targets, ANCHORS)
    speck = torch.tensor([[1, 0, 0.5, 0.5, 1e-4, 1e-4]])
    both = SimOTA()(heads, torch.cat((targets, speck)), ANCHORS)
    assert both.entries.tolist() == alone.entries.tolist()


@pytest.mark.parametrize("assigner", [PLAIN_ASSIGNER, SimOTA()])
def test_no_gradient_and_float32_under_autocast(assigner):
    heads, targets = scene((4, 7))
    half = [head.bfloat16().requires_grad_() for head in heads]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assignment = assigner(half, targets, ANCHORS)
    assert not assignment.entries.requires_grad
    exact = assigner([head.float() for head in half], targets, ANCHORS)
    assert assignment.entries.tolist() == exact.entries.tolist()


def test_non_contiguous_heads():
    heads, targets = scene((4, 7))
    planes = [head.permute(0, 1, 4, 2, 3).contiguous().permute(0, 1, 3, 4, 2) for head in heads]
    assert not planes[0].is_contiguous()
    expected = SimOTA()(heads, targets, ANCHORS).entries
    assert SimOTA()(planes, targets, ANCHORS).entries.tolist() == expected.tolist()


# ---- memory


class LivePeak(TorchDispatchMode):
    """Bytes of the tensors made inside that are alive at a time."""

    def __init__(self):
        super().__init__()
        self.current = self.peak = 0
        self.users = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                address, size = storage.data_ptr(), storage.nbytes()
                self.current += 0 if self.users[address] else size
                self.users[address] += 1
                weakref.finalize(tensor, self.drop, address, size)
        self.peak = max(self.peak, self.current)
        return result

    def drop(self, address, size):
        self.users[address] -= 1
        self.current -= 0 if self.users[address] else size


@pytest.mark.parametrize("reaches", [(0.5,), (0.5, 1.0)], ids=["fine", "fine-and-coarse"])
@pytest.mark.parametrize(
    ("counts", "megabytes"),
    [([300] * 16, 260), ([300] + [3] * 15, 40)],
    ids=["all-crowded", "one-crowded"],
)
def test_memory_is_bounded_on_crowded_images(counts, megabytes, reaches):
    _, targets = scene(counts, nc=80, seed=2)
    one, _ = scene([0], nc=80, height=640, width=640, seed=3)
    heads = [head.expand(len(counts), -1, -1, -1, -1) for head in one]
    assigner = SimOTA()
    stated = (32 if len(reaches) == 1 else 48) * assigner.pairs
    for reach in reaches:
        candidates = propose(heads, targets, ANCHORS, anchor_t=4.0, reach=reach)
        most = candidates.entries[:, 0].bincount().max().item()
        stated += 48 * len(counts) * most
    stated += 20 * len(candidates.entries) * 85
    with LivePeak() as memory:
        assignments = assigner.for_reaches(reaches, heads, targets, ANCHORS)
    assert all(sum(assignment.sizes) > len(counts) for assignment in assignments)
    assert memory.peak < stated
    assert memory.peak < megabytes * len(reaches) * 1e6
