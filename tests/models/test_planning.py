"""The plan of identity branches of RepConv."""

from __future__ import annotations

from dataclasses import replace

import pytest

from y7edge.errors import ConfigError
from y7edge.models import registry
from y7edge.models.planning import check, plan, reparameterize
from y7edge.nn.build import Model


def verdict(spec, row, **options):
    return next(entry for entry in plan(spec, **options) if entry.row == row)


def test_published_repconvs_have_no_identity_branch():
    spec = registry.get("yolov7")
    rows = [row.index for row in spec.rows if row.block == "repconv"]
    assert rows == [102, 103, 104]
    for row in rows:
        assert not verdict(spec, row).identity
        assert "output channels" in verdict(spec, row).reason


def test_identity_is_planned_only_for_links_that_are_not_concatenated():
    spec = registry.get("yolov7")  # chain 6, 7, 8, 9 of which 7 and 9 are concatenated
    for row in (7, 9):
        assert not verdict(spec, row).identity
        assert "concatenation in row 10" in verdict(spec, row).reason
    assert verdict(spec, 8).identity
    assert verdict(spec, 6).identity


def test_residual_addition_behind_pooling_is_found():
    spec = registry.get("yolov7")
    rows = list(spec.rows)
    # Row 25 pools row 24's map; let a 3x3 stand in front of the pool and an addition behind it.
    rows[24] = replace(rows[24], kernel=3, inputs=(23,), out=512)
    rows[29] = replace(rows[29], block="sum", inputs=(25, 25))
    changed = replace(spec, rows=tuple(rows))
    assert "residual addition in row 29" in verdict(changed, 24).reason


def test_strided_convolutions_get_no_identity():
    assert verdict(registry.get("yolov7"), 1).reason == "its stride is not 1"


def test_allow_identity_overrides_the_plan():
    spec = registry.get("yolov7")
    assert verdict(spec, 7, allow_identity=True).identity
    with pytest.raises(ConfigError, match=r"concatenation.*diversity of gradients.*allow_identity"):
        reparameterize(_asking(spec, 7), (), identity=True)
    check(_asking(spec, 7), allow_identity=True)


def test_builder_checks_the_plan():
    spec = _asking(registry.get("yolov7", nc=1), 7)
    with pytest.raises(ConfigError, match="has an identity branch"):
        Model(spec)
    assert Model(spec, allow_identity=True).rows[7].identity is not None


def _asking(spec, index):
    rows = list(spec.rows)
    rows[index] = replace(rows[index], block="repconv", identity=True)
    return replace(spec, rows=tuple(rows))


def test_reparameterize_replaces_convolutions():
    spec = reparameterize(registry.get("yolov7-tiny", nc=1), (74, 75, 76), identity=True)
    assert [spec.rows[i].block for i in (74, 75, 76)] == ["repconv"] * 3
    assert not any(spec.rows[i].identity for i in (74, 75, 76))  # 64 -> 128 channels
    Model(spec)


def test_reparameterize_refuses_other_kernels():
    with pytest.raises(ConfigError, match="not a 3x3 convolution"):
        reparameterize(registry.get("yolov7-tiny"), (2,))
