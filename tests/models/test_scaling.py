"""Compound scaling, and the exceptions of the published variants."""

from __future__ import annotations

from fractions import Fraction

import pytest

from y7edge.errors import ConfigError
from y7edge.models import registry, shapes
from y7edge.models.scaling import scale, transition_ratio
from y7edge.nn.build import Model


def differences(scaled, published):
    """Rows that differ in block, width or inputs: index -> ((block, out), (block, out))."""
    assert len(scaled.rows) == len(published.rows)
    return {
        ours.index: ((ours.block, ours.out), (theirs.block, theirs.out))
        for ours, theirs in zip(scaled.rows, published.rows, strict=True)
        if (ours.block, ours.out, ours.inputs) != (theirs.block, theirs.out, theirs.inputs)
    }


@pytest.mark.parametrize(
    ("name", "depth", "ratio"),
    [
        ("yolov7", 1.5, Fraction(5, 4)),
        ("yolov7-w6", 1.5, Fraction(5, 4)),
        ("yolov7-w6", 2.0, Fraction(3, 2)),
    ],
)
def test_transitions_follow_the_depth_by_the_published_ratio(name, depth, ratio):
    assert transition_ratio(registry.get(name), depth) == ratio


def test_scaled_yolov7_equals_x():
    """Depth 1.5 gives X but for its neck, whose chains are full width with every second link
    gathered (the paper's stack scaling of the neck), and its plain lead convolutions."""
    published = registry.get("yolov7x")
    found = differences(scale(registry.get("yolov7"), depth=1.5), published)
    lead = set(published.lead_inputs)
    assert {i for i in found if i in lead} == lead
    for row, width in zip(published.lead_inputs, (320, 640, 1280), strict=True):
        assert found[row] == (("repconv", width), ("conv", width))
    neck = {i: rows for i, rows in found.items() if i not in lead}
    assert {published.rows[i].role for i in neck} == {"chain", "gather"}
    assert min(neck) > 59  # behind the backbone and its pyramid pooling
    for (block, ours), (_, theirs) in neck.values():
        # Half the width, all of six gathered, or full width, three of six: the same total.
        assert theirs == (2 * ours if block == "conv" else ours)


@pytest.mark.parametrize(("name", "depth"), [("yolov7-e6", 1.5), ("yolov7-d6", 2.0)])
def test_scaled_w6_equals_e6_and_d6(name, depth):
    """All but the transition block (3x3 stride 2 -> downc) and the auxiliary rows' widths, which W6
    has wider than the rule (320 where its lead has 256) and E6 and D6 as wide as their lead."""
    published = registry.get(name)
    found = differences(scale(registry.get("yolov7-w6"), depth=depth), published)
    downs = {row.index for row in published.rows if row.block == "downc"}
    aux = set(published.aux_inputs)
    assert found.keys() == downs | aux
    assert all(found[i][0][1] == found[i][1][1] for i in downs)
    assert all(found[i][0][1] * 4 == found[i][1][1] * 5 for i in aux)


@pytest.mark.parametrize("name", registry.names())
@pytest.mark.parametrize("width", [0.25, 0.5, 1.3])
def test_width_scales_every_channel_in_eights(name, width):
    original, scaled = registry.get(name), scale(registry.get(name), width=width)
    for old, new in zip(original.rows, scaled.rows, strict=True):
        assert (old.block, old.inputs) == (new.block, new.inputs)
        if old.block in ("conv", "repconv", "downc", "sppcspc"):
            assert new.out % 8 == 0
            assert new.out >= 8
            assert abs(new.out - old.out * width) <= 8
    shapes.strides(scaled)


def test_name_contains_the_factors():
    assert scale(registry.get("yolov7-tiny"), width=0.25).name == "yolov7-tiny-w0.25"
    assert scale(registry.get("yolov7"), depth=1.5, width=0.5).name == "yolov7-d1.5-w0.5"


def test_factors_of_one_change_nothing():
    spec = registry.get("yolov7-e6e")
    assert scale(spec) is spec


@pytest.mark.parametrize("depth", [0.25, 0.5, 1.5, 3])
@pytest.mark.parametrize("name", ["yolov7-tiny", "yolov7", "yolov7-e6e"])
def test_any_depth_gives_a_model_that_can_be_built(name, depth):
    spec = scale(registry.get(name, nc=2), depth=depth, width=0.1)
    model = Model(spec)
    assert sum(p.numel() for p in model.parameters()) == shapes.parameters(spec)


@pytest.mark.parametrize("factor", [0, -1, float("nan"), float("inf")])
def test_invalid_factors_are_refused(factor):
    with pytest.raises(ConfigError, match="factor between"):
        scale(registry.get("yolov7"), width=factor)


def test_folded_model_is_refused():
    with pytest.raises(ConfigError, match="before training"):
        scale(registry.get("yolov7", form="folded"), width=0.5)
