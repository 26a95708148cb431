"""Assignment of lead and auxiliary head."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from y7edge.errors import ConfigError
from y7edge.train.loss import assign
from y7edge.train.loss.assign import SimOTA, by_name
from y7edge.train.loss.candidates import Assignment, distinct, propose

CASES = ["none", "1_7", "0_7", "20_7_border", "crowded"]
ANCHORS = torch.tensor(  # the published set of the P6 models, in grid units of strides 8 to 64
    [
        [[2.375, 3.375], [5.5, 5.0], [4.75, 11.75]],
        [[6.0, 4.25], [5.375, 9.5], [11.25, 8.5625]],
        [[4.375, 9.40625], [9.46875, 8.25], [7.4375, 16.9375]],
        [[6.8125, 9.609375], [11.546875, 5.9375], [14.453125, 12.375]],
    ]
)


def rows(entries):
    return Counter(map(tuple, entries.tolist()))


def scene(counts, nc=4, size=(256, 256), seed=0, snap=0):
    """Random lead and auxiliary heads; centres of targets are multiples of ``snap`` pixels."""
    random = torch.Generator().manual_seed(seed)
    heads = [
        torch.randn(len(counts), 3, size[0] // s, size[1] // s, 5 + nc, generator=random)
        for s in (8, 16, 32, 64) * 2
    ]
    image = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))[:, None]
    label = torch.randint(nc, image.shape, generator=random)
    centre = torch.rand(len(image), 2, generator=random)
    if snap:
        grid = torch.tensor([size[1], size[0]]) / snap
        centre = (centre * grid).round() / grid
    sides = torch.exp(-3 + 2.5 * torch.rand(len(image), 2, generator=random))
    return heads[:4], heads[4:], torch.cat((image, label, centre, sides), 1).float()


def both(name, lead, aux, targets, anchors=ANCHORS, **options):
    """The assignments of the lead and of the auxiliary head."""
    made = by_name(name, **options)([*lead, *aux], targets, anchors)
    first, second = made.sizes[: len(lead)], made.sizes[len(lead) :]
    entries = made.entries.split_with_sizes((sum(first), sum(second)))
    return Assignment(entries[0], first), Assignment(entries[1], second)


@pytest.mark.parametrize("name", CASES)
def test_coarse_to_fine_equals_the_published_assignment(loss_case, name):
    case = loss_case(f"aux_p6_{name}")
    assigned = both("coarse-to-fine", case.heads, case.aux, case.targets, case.anchors)
    for assignment, kind in zip(assigned, ("lead_match", "aux_match"), strict=True):
        for level, entries in enumerate(assignment.levels()):
            expected = case.arrays.get(f"{kind}/{level}", [])
            assert rows(entries) == Counter(tuple(row.tolist()) for row in expected)


SCENES = [
    ((3, 0, 9), (256, 256), 0),
    ((40, 1), (256, 128), 0),
    ((0, 25, 2), (128, 256), 8),
    ((12, 12), (256, 256), 64),
]
IDS = ["mixed", "crowded", "on-grid-lines", "on-all-grid-lines"]


@pytest.mark.parametrize("pairs", [1 << 22, 700, 1], ids=["whole", "chunks", "row-by-row"])
@pytest.mark.parametrize(("counts", "size", "snap"), SCENES, ids=IDS)
def test_shared_cost_equals_two_assignments(counts, size, snap, pairs):
    lead, _, targets = scene(counts, size=size, seed=sum(counts), snap=snap)
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(1))
    targets = targets[order]
    together = SimOTA(q0=20, pairs=pairs).for_reaches((0.5, 1.0), lead, targets, ANCHORS)
    for reach, assignment in zip((0.5, 1.0), together, strict=True):
        apart = SimOTA(reach=reach, q0=20)(lead, targets, ANCHORS)
        assert assignment.sizes == apart.sizes
        assert assignment.entries.tolist() == apart.entries.tolist()
    assert together[0].entries.tolist() != together[1].entries.tolist()


@pytest.mark.parametrize(("counts", "size", "snap"), SCENES, ids=IDS)
def test_cost_is_computed_once_per_cell(monkeypatch, counts, size, snap):
    lead, aux, targets = scene(counts, size=size, seed=sum(counts), snap=snap)
    computed, compared = [], []
    costs, iou = assign._costs, assign._pairwise_iou

    def counting_costs(heads, cells, anchors):
        computed.append((heads, torch.cat((cells.level[:, None], cells.entries[:, :4]), 1)))
        return costs(heads, cells, anchors)

    def counting_iou(boxes, image, corners):
        compared.append(len(image) * boxes.shape[2])
        return iou(boxes, image, corners)

    monkeypatch.setattr(assign, "_costs", counting_costs)
    monkeypatch.setattr(assign, "_pairwise_iou", counting_iou)
    both("coarse-to-fine", lead, aux, targets)
    assert len(computed) == len(compared) == 1
    heads, cells = computed[0]
    assert all(a is b for a, b in zip(heads, lead, strict=True)), "the lead's predictions decide"
    offered = set()
    for reach in (0.5, 1.0):
        found = propose(lead, targets, ANCHORS, anchor_t=4.0, reach=reach)
        offered |= rows(torch.cat((found.level[:, None], found.entries[:, :4]), 1)).keys()
    assert rows(cells) == Counter(offered), "each cell of either reach, once"
    widest = cells[:, 1].bincount().max().item() + 1
    assert compared == [len(targets) * widest]


def test_distinct_cells_index_every_candidate():
    lead, _, targets = scene((5, 30), size=(128, 256), snap=16)
    offers = [propose(lead, targets, ANCHORS, anchor_t=4.0, reach=r) for r in (0.5, 1.0)]
    cells, indices = distinct(offers, lead)
    assert len(cells.entries) < min(len(offer.entries) for offer in offers)
    assert max(rows(cells.entries[:, :4]).values()) <= 4, "a cell on each level at most"
    for offer, index in zip(offers, indices, strict=True):
        assert torch.equal(cells.entries[index, :4], offer.entries[:, :4])
        assert torch.equal(cells.level[index], offer.level)


def test_independent_assignments_use_their_own_predictions():
    lead, aux, targets = scene((6, 9))
    first, second = both("independent", lead, aux, targets)
    fine = SimOTA(reach=0.5, q0=20)
    assert first.entries.tolist() == fine(lead, targets, ANCHORS).entries.tolist()
    assert second.entries.tolist() == fine(aux, targets, ANCHORS).entries.tolist()
    assert first.entries.tolist() != second.entries.tolist()


def test_lead_guided_uses_the_cells_of_the_lead_twice():
    lead, aux, targets = scene((6, 9))
    first, second = both("lead-guided", lead, aux, targets)
    fine = SimOTA(reach=0.5, q0=20)(lead, targets, ANCHORS)
    assert first.entries.tolist() == second.entries.tolist() == fine.entries.tolist()


def test_coarse_assignment_has_more_cells():
    lead, aux, targets = scene((6, 9), seed=3)
    lead = [torch.zeros_like(head) for head in lead]  # every box is its anchor: k can reach 20
    fine, coarse = both("coarse-to-fine", lead, aux, targets)
    assert sum(coarse.sizes) > sum(fine.sizes)


@pytest.mark.parametrize("name", assign.AUXILIARY)
@pytest.mark.parametrize(
    "targets",
    [torch.zeros(0, 6), torch.tensor([[0, 0, 0.5, 0.5, 1e-4, 1e-4]])],
    ids=["no-targets", "too-small-for-all-anchors"],
)
def test_nothing_to_match(name, targets):
    lead, aux, _ = scene((1, 1))
    for assignment in both(name, lead, aux, targets):
        assert assignment.sizes == (0, 0, 0, 0)
        assert assignment.entries.shape == (0, 5)


@pytest.mark.parametrize("name", assign.AUXILIARY)
def test_anchor_t_is_used(name):
    lead, aux, targets = scene((6, 9))
    strict = both(name, lead, aux, targets, anchor_t=1.2)
    for assignment, usual in zip(strict, both(name, lead, aux, targets), strict=True):
        assert 0 < sum(assignment.sizes) < sum(usual.sizes)


def test_an_unknown_name_is_refused():
    with pytest.raises(ConfigError, match=r"unknown assigner 'fine'.*: coarse-to-fine, lead"):
        by_name("fine")
