"""The start of a run: rows, weights, anchors, frozen rows."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from y7edge.data.synthetic import scenes
from y7edge.errors import CheckpointError, ConfigError
from y7edge.models import registry, weights
from y7edge.models.scaling import scale
from y7edge.nn.build import Model, anchors_in_pixels, to_checkpoint
from y7edge.train.settings.config import TrainConfig
from y7edge.train.setup import parts
from y7edge.train.setup.parts import build, build_spec, resume_model, start_model

NAMES = ("cat", "dog")


def config(**changes):
    return replace(TrainConfig(data="d", width=0.125, imgsz=64), **changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    torch.manual_seed(1)
    anchors = [[[w + 1, h + 2] for w, h in level] for level in registry.get("yolov7-tiny").anchors]
    spec = scale(registry.get("yolov7-tiny", nc=2, anchors=anchors), width=0.125)
    path = tmp_path_factory.mktemp("weights") / "trained.safetensors"
    weights.save(to_checkpoint(Model(spec), NAMES), path)
    return path


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_only_a_gpu_gets_batches_without_their_colours(device, tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    def stop(*_, **options):
        raise Stop(options)

    monkeypatch.setattr(parts, "loader", stop)
    data = scenes.generate(tmp_path / "data", train=2, val=1, size=(96, 96))
    fabric = SimpleNamespace(device=torch.device(device))
    with pytest.raises(Stop) as stopped:
        build(config(data=data, workers=0), fabric=fabric)
    gpu = device != "cpu"
    assert stopped.value.args[0] == {"workers": 0, "pin": gpu, "in_part": gpu}


@pytest.mark.parametrize("act", ["relu", "silu", "hardswish"])
def test_activation(act, trained):
    start = start_model(config(act=act), NAMES)
    assert start.model.spec.activation == act
    assert start.model.spec.name == f"yolov7-tiny-{act}-w0.125"
    tuned = start_model(config(act=act, weights=trained), NAMES)
    assert tuned.model.spec.activation == act
    assert tuned.notes[-1].endswith(f"this model has {act}; --act leaky keeps it")
    assert start_model(config(model=f"yolov7-tiny-{act}"), NAMES).model.spec == start.model.spec
    spec = registry.get("yolov7", nc=2)
    assert build_spec(config(spec=spec, act=act), 2).activation == act


def test_a_name_with_an_activation_is_not_a_file():
    with pytest.raises(ConfigError, match="found a model's name"):
        start_model(config(weights="yolov7-tiny-relu"), NAMES)


def test_from_scratch():
    start = start_model(config(), NAMES)
    assert start.origin == "trained from random weights"
    assert start.notes == ()
    assert start.model.spec.nc == 2


def test_anchors_are_copied_from_weights(trained):
    start = start_model(config(weights=trained), NAMES)
    assert start.origin.startswith("fine-tuned from trained.safetensors (digest ")
    assert start.origin.endswith("), 342 of 342 entries")
    assert anchors_in_pixels(start.model)[0][0] == (11.0, 15.0)
    array = weights.load(trained).arrays["rows.9.conv.weight"]
    assert np.array_equal(start.model.state_dict()["rows.9.conv.weight"].numpy(), array)


def test_given_anchors_are_used():
    anchors = tuple(((5.0, 6.0), (7.0, 8.0), (9.0, 10.0)) for _ in range(3))
    assert anchors_in_pixels(start_model(config(), NAMES, anchors=anchors).model) == anchors


def test_resume_does_not_need_the_weights(trained):
    first = start_model(config(weights=trained, freeze=(0,)), NAMES)
    again = resume_model(config(weights="/gone", freeze=(0,)), NAMES, first.began())
    assert again.model.spec == first.model.spec
    assert (again.origin, again.notes) == (first.origin, first.notes)
    assert not next(again.model.rows[0].parameters()).requires_grad


def test_other_classes_are_reported(trained):
    (note,) = start_model(config(weights=trained), ("dog", "bus", "car")).notes
    assert note.endswith("copied by name: dog; new: bus, car")


@pytest.mark.parametrize(
    ("first", "given", "stored", "noted"),
    [
        ("GPL-3.0", {}, "GPL-3.0", "stored for the trained weights: the same"),
        ("GPL-3.0", {"licence": "MIT"}, "MIT", "stored for the trained weights: MIT"),
        ("MIT", {"licence": "MIT"}, "MIT", None),
        (None, {}, "unspecified", None),
    ],
)
def test_licence_of_the_initial_weights(first, given, stored, noted, trained, tmp_path):
    data = scenes.generate(tmp_path / "data", train=2, val=1, size=(96, 96))
    checkpoint = weights.load(trained)
    meta = {} if first is None else {"licence": first}
    weights.save(replace(checkpoint, meta=meta), tmp_path / "first.safetensors")
    settings = config(data=data, weights=tmp_path / "first.safetensors", workers=0, **given)
    made = build(replace(settings, out=tmp_path / "run"))
    assert made.config.licence == stored
    made.writer.save(made.steps.model, "last.safetensors")
    assert weights.load(tmp_path / "run/last.safetensors").meta["licence"] == stored
    assert f"licence: {stored}\n" in (tmp_path / "run/config.yaml").read_text()
    notes = [note for note in made.start.notes if note.startswith("licence of first.safetensors")]
    assert (noted is None) == (notes == [])
    assert noted is None or notes[0] == f"licence of first.safetensors: GPL-3.0; {noted}"


def test_model_name_is_not_a_file_of_weights():
    with pytest.raises(ConfigError, match=r"found a model.s name; .* --model yolov7$"):
        start_model(config(weights="yolov7"), NAMES)
    with pytest.raises(CheckpointError, match="no such file"):
        start_model(config(weights="yolov8.pt"), NAMES)


def test_custom_rows():
    own = scale(registry.get("yolov7", nc=5), width=0.125)
    spec = build_spec(config(spec=own, model="yolov7-tiny", width=1.0), 2)
    assert spec == replace(own, nc=2)
    assert not build_spec(config(spec=registry.deploy(own)), 2).implicit
    with pytest.raises(ConfigError, match=r"spec: yolov7-w0\.125 is folded"):
        build_spec(config(spec=registry.folded(own)), 2)


def test_custom_rows_may_override_the_identity_plan():
    own = scale(registry.get("yolov7-tiny", nc=2), width=0.125)
    link = next(r for r in own.rows if r.role == "chain" and own.rows[r.index - 1].out == r.out)
    rows = tuple(
        replace(r, block="repconv", identity=True) if r.index == link.index else r for r in own.rows
    )
    changed = replace(own, rows=rows)
    with pytest.raises(ConfigError):
        Model(changed)
    model = start_model(config(spec=changed, width=1.0), NAMES).model
    assert any(".identity." in key for key in model.state_dict())


def test_frozen_rows_are_frozen_and_reported(trained):
    start = start_model(config(weights=trained, freeze=(0, 1)), NAMES)
    frozen = {k.split(".")[1] for k, p in start.model.named_parameters() if not p.requires_grad}
    assert frozen == {"0", "1"}
    assert start.notes[-1].startswith("2 of 78 rows are frozen, ")
    (note,) = start_model(config(freeze=(0, 1)), NAMES).notes
    assert note.endswith("weights are random")
    with pytest.raises(ConfigError, match="has the rows 0 to 77, not 78"):
        start_model(config(freeze=(78,)), NAMES)
