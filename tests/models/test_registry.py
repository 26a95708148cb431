"""Models without their auxiliary head, in training form."""

from __future__ import annotations

from dataclasses import replace

import pytest

from y7edge.models import registry
from y7edge.models.shapes import parameters, weight_shapes
from y7edge.models.spec import Row

P6 = [name for name in registry.names() if registry.get(name).has_aux]


@pytest.mark.parametrize("name", registry.names())
def test_without_auxiliary_keeps_the_form_and_the_lead_head(name):
    spec = registry.get(name, nc=7)
    lead = registry.without_auxiliary(spec)
    assert not lead.has_aux
    assert lead.implicit
    assert (lead.name, lead.nc, lead.anchors, lead.strides) == (
        *(spec.name, 7, spec.anchors, spec.strides),
    )
    assert lead.rows == registry.deploy(spec).rows
    assert registry.deploy(lead) == registry.deploy(spec)


@pytest.mark.parametrize("name", P6)
def test_without_auxiliary_renames_only_the_heads_weights(name):
    spec = registry.get(name)
    lead = registry.without_auxiliary(spec)
    before, after = weight_shapes(spec), weight_shapes(lead)
    assert parameters(lead) < parameters(spec)
    dropped = tuple(f"rows.{i}." for i in spec.aux_inputs)
    head, moved = f"rows.{spec.head.index}.", f"rows.{lead.head.index}."
    assert after == {
        key.replace(head, moved, 1): shape
        for key, shape in before.items()
        if not key.startswith(dropped) and ".aux." not in key
    }


@pytest.mark.parametrize("form", ["training", "deploy", "folded"])
def test_without_auxiliary_returns_a_plain_model_unchanged(form):
    spec = registry.get("yolov7-tiny", form=form)
    assert registry.without_auxiliary(spec) is spec


def test_auxiliary_rows_may_be_anywhere():
    spec = registry.get("yolov7-w6")
    finest = spec.lead_inputs[0]
    rows = list(spec.rows[:-1])
    rows.append(Row(index=len(rows), inputs=(finest,), block="conv", out=rows[finest].out))
    inputs = (len(rows) - 1, *spec.head.inputs[1:])
    changed = replace(spec, rows=(*rows, replace(spec.head, index=len(rows), inputs=inputs)))
    lead = registry.without_auxiliary(changed)
    assert lead.head.inputs[0] == lead.head.index - 1
    assert lead.rows[lead.head.inputs[0]].block == "conv"
    assert len(lead.rows) == len(registry.without_auxiliary(spec).rows) + 1
