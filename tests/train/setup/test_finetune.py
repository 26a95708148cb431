"""Fine-tuning: rows that fit, and head rows by class name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from y7edge.data.formats.coco_names import COCO_NAMES
from y7edge.errors import CheckpointError
from y7edge.models import registry
from y7edge.models.checkpoint import Checkpoint, default_names
from y7edge.models.scaling import scale
from y7edge.nn.build import Model, from_checkpoint, to_checkpoint
from y7edge.train.setup.finetune import class_map, copy_matching

OLD = ("cat", "dog", "horse")


def narrow(name="yolov7-tiny", nc=3, form="training"):
    spec = registry.get(name, nc=nc)
    spec = scale(spec, width=0.125)
    return spec if form == "training" else registry.deploy(spec)


def model_of(spec, seed):
    torch.manual_seed(seed)
    return Model(spec)


def shaken(spec, names, seed=1):
    """A checkpoint of distinct numbers, including BatchNorm."""
    model = model_of(spec, seed)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point() and value.shape != model.head.anchors.shape:
                value += 0.05 * torch.rand_like(value)
    return to_checkpoint(model, names)


def head_rows(model, level, cls):
    """Weight, bias and multiplier of one class (or, below 0, of box and objectness)."""
    outputs = model.spec.outputs_per_anchor
    rows = slice(0, 5) if cls < 0 else 5 + cls
    head = model.head
    return (
        head.lead[level].weight.detach().view(3, outputs, -1)[:, rows],
        head.lead[level].bias.detach().view(3, outputs)[:, rows],
        head.mul[level].detach().view(3, outputs)[:, rows],
    )


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_equal_class_names_copy_everything():
    checkpoint = shaken(narrow(), OLD)
    model = model_of(narrow(), 2)
    copied = copy_matching(model, checkpoint, OLD, "old")
    assert (copied.entries, copied.notes) == (copied.total, ())
    ours = model.state_dict()
    assert all(np.array_equal(ours[key].numpy(), checkpoint.arrays[key]) for key in ours)


def test_another_activation_is_noted():
    checkpoint = shaken(registry.with_activation(narrow(), "silu"), OLD)
    model = model_of(registry.with_activation(narrow(), "relu"), 2)
    copied = copy_matching(model, checkpoint, OLD, "old")
    assert copied.entries == copied.total
    assert copied.notes == (
        "the weights were trained with silu, this model has relu; --act silu keeps it",
    )


def test_head_rows_follow_the_class_names():
    checkpoint = shaken(narrow(), OLD)
    old = from_checkpoint(checkpoint)
    fresh, model = model_of(narrow(nc=4), 2), model_of(narrow(nc=4), 2)
    names = ("HORSE ", "cow", "cat", "sheep")
    copied = copy_matching(model, checkpoint, names, "old")
    for level in range(3):
        assert same(head_rows(model, level, -1), head_rows(old, level, -1))
        assert same(head_rows(model, level, 0), head_rows(old, level, 2))
        assert same(head_rows(model, level, 2), head_rows(old, level, 0))
        for new in (1, 3):
            assert same(head_rows(model, level, new), head_rows(fresh, level, new))
        assert torch.equal(model.head.add[level], old.head.add[level])
    assert copied.entries == copied.total
    assert copied.notes == (
        "head: boxes and objectness copied; classes copied by name: HORSE , cat; new: cow, sheep",
    )


def test_equal_counts_of_other_classes_are_not_mixed_up():
    checkpoint = shaken(narrow(), OLD)
    old, model = from_checkpoint(checkpoint), model_of(narrow(), 2)
    copy_matching(model, checkpoint, ("dog", "cat", "bus"), "old")
    assert same(head_rows(model, 0, 0), head_rows(old, 0, 1))
    assert same(head_rows(model, 0, 1), head_rows(old, 0, 0))
    assert not same(head_rows(model, 0, 2), head_rows(old, 0, 2))


@pytest.mark.parametrize("aux", [False, True])
def test_deploy_weights_give_equal_outputs(aux):
    name = "yolov7-w6" if aux else "yolov7-tiny"
    deploy = shaken(narrow(name, form="deploy"), OLD)
    model = model_of(narrow(name), 2)
    fresh = {k: v.clone() for k, v in model.state_dict().items()}
    copied = copy_matching(model, deploy, OLD, "old")
    side = 128 if aux else 64
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = model.eval()(images), from_checkpoint(deploy)(images)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    (note,) = copied.notes
    assert "deploy form: implicit vectors " in note
    assert ("auxiliary heads" in note) == aux
    if aux:
        last = model.spec.head.index
        for key in (f"rows.{last}.aux.0.weight", f"rows.{last - 1}.conv.weight"):
            assert torch.equal(model.state_dict()[key], fresh[key])


def test_auxiliary_heads_are_matched_by_class_name():
    checkpoint = shaken(narrow("yolov7-w6"), OLD)
    old, model = from_checkpoint(checkpoint), model_of(narrow("yolov7-w6", nc=2), 2)
    copied = copy_matching(model, checkpoint, ("horse", "bus"), "old")
    theirs = old.head.aux[3].weight.detach().view(3, 8, -1)
    ours = model.head.aux[3].weight.detach().view(3, 7, -1)
    assert torch.equal(ours[:, :5], theirs[:, :5])
    assert torch.equal(ours[:, 5], theirs[:, 7])
    assert not torch.equal(ours[:, 6], theirs[:, 6])
    assert copied.entries == copied.total


def test_auxiliary_checkpoint_fits_a_model_without():
    checkpoint = shaken(narrow("yolov7-w6"), OLD)
    without = replace(registry.deploy(narrow("yolov7-w6")), form="training")
    model = model_of(without, 2)
    copied = copy_matching(model, checkpoint, OLD, "old")
    assert copied.entries == copied.total
    head = f"rows.{checkpoint.spec.head.index}.mul.0"
    assert np.array_equal(model.head.mul[0].detach().numpy(), checkpoint.arrays[head])


@pytest.mark.parametrize(
    ("old", "new", "pairs", "note"),
    [
        (("a", "b"), ("a", "b"), ((0, 0), (1, 1)), ""),
        ((" A", "b"), ("a", "B"), ((0, 0), (1, 1)), ""),
        (("a", "b"), ("b", "a"), ((0, 1), (1, 0)), "by name: b, a; new: none"),
        (("a", "b"), ("c", "d"), (), "by name: none; new: c, d"),
        (("a", "a"), ("a",), ((0, 0),), "by name: a; new: none"),
        (("0", "1"), ("x", "y"), ((0, 0), (1, 1)), "their 2 classes are used in order"),
        (("0", "1"), ("x", "1", "z"), ((1, 1),), "by name: 1; new: x, z"),
    ],
)
def test_class_map(old, new, pairs, note):
    found = class_map(old, new)
    assert found.pairs == pairs
    assert found.note.endswith(note) and bool(found.note) == bool(note)


def test_eighty_unnamed_classes_are_those_of_coco():
    found = class_map(default_names(80), ("Zebra", "giraffe", "blood cell"))
    assert found.pairs == ((0, 22), (1, 23))
    assert found.note.endswith("new: blood cell; assumed COCO's names for its 80 unnamed classes")
    assert len(set(COCO_NAMES)) == 80
    assert (COCO_NAMES[0], COCO_NAMES[55], COCO_NAMES[79]) == ("person", "cake", "toothbrush")


def test_long_lists_of_names_are_cut():
    note = class_map([f"n{i}" for i in range(30)], [f"m{i}" for i in range(20)]).note
    assert note.endswith("new: m0, m1, m2, m3, m4, m5, m6, m7, m8, m9, m10, m11 and 8 more")


def test_weights_that_do_not_fit_are_refused():
    checkpoint = to_checkpoint(model_of(scale(registry.get("yolov7-tiny", nc=3), width=0.25), 1))
    with pytest.raises(CheckpointError, match=r"fits [1-9] of 55 convolutions"):
        copy_matching(model_of(narrow(), 2), checkpoint, OLD, "old")


def test_folded_weights_are_refused():
    spec = registry.folded(narrow())
    with pytest.raises(CheckpointError, match="a folded checkpoint cannot be trained"):
        copy_matching(model_of(narrow(), 2), Checkpoint(spec, {}, OLD), OLD, "old")
