"""E-ELAN: the model's sum of two ELANs is the paper's form with group convolutions.

The paper (figure 2d) expands the channels by group convolution, shuffles the groups' maps, and
merges the cardinality by adding the groups. yolov7-e6e has two ELANs on one input, summed. Here the
first form is built from the weights of the second, for every stage, and fed what the model feeds.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from y7edge.models import registry
from y7edge.models.scaling import scale
from y7edge.models.spec import Row, Spec
from y7edge.nn.blocks import ConvBlock
from y7edge.nn.build import Model, from_checkpoint
from y7edge.nn.random_weights import random_weights

GROUPS = 2
SUMS = [row.index for row in registry.get("yolov7-e6e").rows if row.block == "sum"]
TOLERANCE = 1e-12  # of the largest magnitude, in float64: only the order of additions differs


@dataclass(frozen=True)
class Pair:
    """Row indices of two ELANs with one input; each entry holds the first's and the second's."""

    source: int
    splits: tuple[tuple[int, int], ...]  # P, then Q
    chain: tuple[tuple[int, int], ...]  # t1, t2, ...
    gathered: tuple[tuple[int, int], ...]  # in the order of the concatenation
    closing: tuple[int, int]


def pair_of(spec: Spec, sum_row: int) -> Pair:
    second, first = spec.rows[sum_row].inputs
    elans = [
        [row for row in spec.rows if row.stage == spec.rows[merge].stage]
        for merge in (first, second)
    ]

    def both(role: str) -> tuple[tuple[int, int], ...]:
        ours, theirs = ([row.index for row in elan if row.role == role] for elan in elans)
        return tuple(zip(ours, theirs, strict=True))

    (gathers,) = both("gather")
    splits = both("split")
    (source,) = {i for split in splits for index in split for i in spec.rows[index].inputs}
    gathered = tuple(zip(*(spec.rows[index].inputs for index in gathers), strict=True))
    return Pair(source, splits, both("chain"), gathered, (first, second))


def joined(model: Model, rows: tuple[int, int], *, groups: int) -> ConvBlock:
    """One block that computes what two blocks do, the outputs of the first in front.

    Blocks that read the same map need no groups: theirs are simply twice the outputs.
    """
    blocks = [model.rows[index] for index in rows]
    first = blocks[0].conv
    width, kernel = 2 * first.out_channels, first.kernel_size[0]
    block = ConvBlock(groups * first.in_channels, width, kernel, 1, model.spec.activation)
    block.conv = nn.Conv2d(
        groups * first.in_channels, width, kernel, padding=kernel // 2, groups=groups, bias=False
    )
    block = block.double()
    first_state, second_state = (each.state_dict() for each in blocks)
    for key, value in block.state_dict().items():
        if value.dim():  # all but the count of batches
            value.copy_(torch.cat((first_state[key], second_state[key])))
    return block.train(model.training)


def shuffled(maps: list[Tensor]) -> Tensor:
    """Concatenate maps [a | b] so that all of a stands in front of all of b."""
    halves = [each.chunk(GROUPS, dim=1) for each in maps]
    return torch.cat([half for group in zip(*halves, strict=True) for half in group], dim=1)


class GroupedELAN(nn.Module):
    """Expand, shuffle, merge cardinality: the paper's E-ELAN with two groups."""

    def __init__(self, model: Model, pair: Pair) -> None:
        super().__init__()
        self.pair = pair
        self.splits = nn.ModuleList(joined(model, rows, groups=1) for rows in pair.splits)
        self.chain = nn.ModuleList(joined(model, rows, groups=GROUPS) for rows in pair.chain)
        self.closing = joined(model, pair.closing, groups=GROUPS)

    def forward(self, x: Tensor, *, shuffle: bool = True) -> tuple[Tensor, Tensor]:
        """Both groups' outputs; their sum is the block's."""
        maps = {rows: block(x) for rows, block in zip(self.pair.splits, self.splits, strict=True)}
        link = maps[self.pair.splits[1]]  # the chain starts from Q
        for rows, block in zip(self.pair.chain, self.chain, strict=True):
            link = maps[rows] = block(link)
        gathered = [maps[rows] for rows in self.pair.gathered]
        closed = self.closing(shuffled(gathered) if shuffle else torch.cat(gathered, dim=1))
        return closed.chunk(GROUPS, dim=1)


@pytest.fixture(scope="module", params=[False, True], ids=["evaluation", "training"])
def run(request):
    """A narrow yolov7-e6e in float64, and the output of each of its rows on a wide image.

    In training mode BatchNorm takes the batch's statistics, channel by channel: equal all the same.
    """
    spec = scale(registry.get("yolov7-e6e", nc=1), width=0.125)
    model = from_checkpoint(random_weights(spec)).double().train(request.param)
    maps: dict[int, Tensor] = {}
    for index, module in enumerate(model.rows[:-1]):
        module.register_forward_hook(
            lambda _module, _inputs, output, index=index: maps.__setitem__(index, output)
        )
    images = torch.rand(2, 3, 128, 192, dtype=torch.float64, generator=torch.manual_seed(0))
    with torch.inference_mode():
        model.raw(images)
    return model, maps


def difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def test_every_elan_is_one_of_a_pair():
    spec = registry.get("yolov7-e6e")
    pairs = [pair_of(spec, index) for index in SUMS]
    closings = [row.index for row in spec.rows if row.role == "merge"]
    assert sorted(index for pair in pairs for index in pair.closing) == closings
    # Backbone, P2 to P6: every second link is gathered. Neck: every link, and these half as wide.
    for stage, pair in enumerate(pairs):
        in_neck = stage >= 5
        assert len(pair.chain) == 6
        assert len(pair.gathered) == (8 if in_neck else 5)
        wide, narrow = (spec.rows[rows[0][0]].out for rows in (pair.splits, pair.chain))
        assert wide == (2 * narrow if in_neck else narrow)
    assert len(pairs) == 11


@pytest.mark.parametrize("sum_row", SUMS)
def test_grouped_form_equals_the_sum_of_two(run, sum_row):
    model, maps = run
    pair = pair_of(model.spec, sum_row)
    grouped = GroupedELAN(model, pair)
    with torch.inference_mode():
        groups = grouped(maps[pair.source])
    for group, closing in zip(groups, pair.closing, strict=True):
        assert difference(group, maps[closing]) < TOLERANCE
    assert difference(groups[0] + groups[1], maps[sum_row]) < TOLERANCE
    used = {index for rows in (*pair.splits, *pair.chain, pair.closing) for index in rows}
    assert weights(grouped) == sum(weights(model.rows[index]) for index in used)


def weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("sum_row", SUMS)
def test_shuffle_is_required(run, sum_row):
    model, maps = run
    pair = pair_of(model.spec, sum_row)
    with torch.inference_mode():
        groups = GroupedELAN(model, pair)(maps[pair.source], shuffle=False)
    assert difference(groups[0] + groups[1], maps[sum_row]) > 0.01


def test_maps_of_one_width_are_shuffled_as_in_shufflenet():
    """Maps of one width, as in the backbone: the transposition of ShuffleNet, arXiv 1707.01083."""
    x = torch.arange(5 * GROUPS * 3, dtype=torch.float64).view(1, -1, 1, 1)
    transposed = x.view(1, 5, GROUPS, 3).transpose(1, 2).reshape(x.shape)
    assert torch.equal(shuffled(list(x.chunk(5, dim=1))), transposed)


def test_auxiliary_heads_read_one_group():
    """The paper's partial auxiliary head: before the groups are merged, on the second of them."""
    spec = registry.get("yolov7-e6e")
    seconds = {pair_of(spec, index).closing[1] for index in SUMS}
    taps = [source_of(spec, spec.rows[index]) for index in spec.aux_inputs]
    assert [spec.rows[tap].block for tap in taps] == ["conv", "conv", "conv", "sppcspc"]
    assert set(taps[:3]) <= seconds
    assert spec.rows[source_of(spec, spec.rows[spec.lead_inputs[0]])].block == "sum"


def source_of(spec: Spec, row: Row) -> int:
    (source,) = row.inputs
    return source
