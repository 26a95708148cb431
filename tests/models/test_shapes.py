"""Rows, parameters and operations of the eight variants against the published tables."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from y7edge.artifact.schema import decode
from y7edge.errors import ConfigError
from y7edge.models import registry, shapes
from y7edge.models.spec import IMAGE, Spec

REFERENCE = Path(__file__).parents[1] / "reference"
TABLE = json.loads((REFERENCE / "table.json").read_text())
FORMS = {"training": "training", "deploy": "deploy_unfused", "folded": "deploy_fused"}
CASES = [(name, form) for name in registry.names() for form in FORMS]


@pytest.mark.parametrize(("name", "form"), CASES)
def test_parameters_are_exactly_the_published_ones(name, form):
    spec = registry.get(name, form=form)
    assert shapes.parameters(spec) == TABLE[name][FORMS[form]]["parameters"]


@pytest.mark.parametrize(("name", "form"), CASES)
def test_gflops_are_the_published_ones(name, form):
    size = TABLE[name]["img_size"]
    found = shapes.gflops(registry.get(name, form=form), size, size)
    assert found == pytest.approx(TABLE[name][FORMS[form]]["gflops"], rel=1e-9)


@pytest.mark.parametrize("path", sorted((REFERENCE / "rows").glob("*.tsv")), ids=lambda p: p.stem)
def test_rows_are_the_published_ones(path):
    form, name = path.stem.split("_", 1)
    spec = registry.get(name, form=form)
    published = list(csv.DictReader(path.open(), delimiter="\t"))
    assert len(spec.rows) == len(published)
    for row, stride, entry in zip(spec.rows, shapes.strides(spec), published, strict=True):
        sources = [IMAGE if s == "in" else int(s) for s in entry["sources"].split(",")]
        assert list(row.inputs) == sources, row
        if row.block != "head":
            assert (row.out, stride) == (int(entry["out"]), int(entry["stride"])), row


@pytest.mark.parametrize("name", registry.names())
def test_anchors_and_strides(name):
    spec = registry.get(name)
    assert [list(map(list, level)) for level in spec.anchors] == TABLE[name]["anchors_px"]
    assert list(spec.strides) == TABLE[name]["strides"]


@pytest.mark.parametrize("name", registry.names())
@pytest.mark.parametrize("nc", [1, 3])
def test_any_number_of_classes_keeps_the_body(name, nc):
    few, many = (
        shapes.weight_shapes(registry.get(name, nc=nc)),
        shapes.weight_shapes(registry.get(name)),
    )
    head = f"rows.{registry.get(name).head.index}."
    assert few.keys() == many.keys()
    assert all(few[key] == many[key] for key in few if not key.startswith(head))
    assert few[f"{head}lead.0.bias"] == (3 * (5 + nc),)


def decoded(values):
    return decode(Spec, values, origin="spec", error=ConfigError)


@pytest.mark.parametrize("name", registry.names())
def test_spec_json_round_trip(name):
    spec = registry.get(name, nc=7)
    assert decoded(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize("name", registry.names())
def test_deploy_keeps_rows_before_the_auxiliary_ones(name):
    training, deploy = registry.get(name), registry.deploy(registry.get(name))
    assert deploy.rows[:-1] == training.rows[: len(deploy.rows) - 1]
    assert not deploy.has_aux
    assert deploy.head.inputs == training.lead_inputs


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(ConfigError, match="did you mean yolov7-tiny"):
        registry.get("yolov7_tiny")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nc": 0}, "nc must be"),
        ({"strides": (8, 16)}, "anchors"),
        ({"anchors": (((1.0, -1.0),),) * 3}, "positive"),
        ({"form": "fused"}, "form: expected 'training' or"),
    ],
)
def test_contradictions_are_refused(change, message):
    values = registry.get("yolov7-tiny").to_dict() | change
    with pytest.raises(ConfigError, match=message):
        decoded(values)


def test_unknown_form_is_refused():
    with pytest.raises(ConfigError, match="form 'fused'"):
        replace(registry.get("yolov7-tiny"), form="fused")


def test_row_that_reads_a_later_row_is_refused():
    values = registry.get("yolov7-tiny").to_dict()
    values["rows"][5]["inputs"] = [6]
    with pytest.raises(ConfigError, match="earlier rows only"):
        decoded(values)


def test_maps_of_different_strides_cannot_meet():
    values = registry.get("yolov7-tiny").to_dict()
    values["rows"][6]["inputs"] = [5, 4, 3, 0]
    with pytest.raises(ConfigError, match=r"row 6 .* strides 2, 4"):
        shapes.strides(decoded(values))
