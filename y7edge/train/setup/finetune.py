"""Initialize a model from a checkpoint: copy entries that fit, and the head by class name.

Entries of the state dict outside of the head are copied if their key and shape agree. In the head,
boxes and objectness are always copied. A class is copied if the checkpoint has a class of the same
name (ignoring case and outer spaces). The published training compares only shapes: with a different
number of classes it discards the whole head; with the same number it copies classes by index.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from y7edge.data.formats.coco_names import COCO_NAMES
from y7edge.errors import CheckpointError
from y7edge.models.checkpoint import Checkpoint, default_names
from y7edge.models.registry import kept_rows
from y7edge.models.spec import ACTS, Spec
from y7edge.nn.build import Model

BOX_AND_OBJECTNESS = 5  # outputs of an anchor before its classes
_LISTED = 12  # most class names in a message


@dataclass(frozen=True, slots=True)
class Copied:
    """The result of copying a checkpoint into a model."""

    entries: int  # number of entries that were copied, entirely or in part
    total: int  # number of entries of the model
    notes: tuple[str, ...]  # messages for the log


@dataclass(frozen=True, slots=True)
class ClassMap:
    """Classes of a model and of a checkpoint that have the same name."""

    pairs: tuple[tuple[int, int], ...]  # (class of the model, class of the checkpoint)
    note: str = ""  # message for the log


def copy_matching(
    model: Model, checkpoint: Checkpoint, names: Sequence[str], source: str
) -> Copied:
    """Copy the entries of a checkpoint that fit into ``model``, except the anchors.

    ``names`` are the classes of the model; ``source`` names the checkpoint in messages.

    Raises:
        CheckpointError: the checkpoint is folded, or fewer than half of the convolutions fit.
    """
    if checkpoint.form == "folded":
        raise CheckpointError(
            f"{source}: a folded checkpoint cannot be trained; use the one that it was folded from"
        )
    arrays = _renumbered(checkpoint, model.spec)
    own = {k: v for k, v in model.state_dict().items() if not k.endswith(".anchors")}
    head = f"rows.{model.spec.head.index}."
    fitting = {
        key: torch.from_numpy(arrays[key].copy())
        for key, value in own.items()
        if not key.startswith(head) and key in arrays and arrays[key].shape == tuple(value.shape)
    }
    # Only convolutions are counted, since some entries, such as counters, fit any model.
    kernels = sum(key.endswith(".conv.weight") for key in own)
    found = sum(key.endswith(".conv.weight") for key in fitting)
    if found < kernels / 2:
        raise CheckpointError(
            f"{source}: {checkpoint.spec.name} fits {found} of {kernels} convolutions of "
            f"{model.spec.name}; use the --model and --width that it was trained with"
        )
    classes = class_map(checkpoint.names, names)
    fitting |= _head(model, arrays, classes, checkpoint.spec.outputs_per_anchor)
    model.load_state_dict(fitting, strict=False)
    specs = model.spec, checkpoint.spec
    notes = [note for note in (classes.note, _form_note(*specs), _act_note(*specs)) if note]
    return Copied(len(fitting), len(own), tuple(notes))


def class_map(old: Sequence[str], new: Sequence[str]) -> ClassMap:
    """Match the classes ``old`` of a checkpoint with the classes ``new`` of a model by name.

    If the checkpoint has 80 classes without names ("0", "1", ...), they are assumed to be COCO's,
    as in published files. Any other number of unnamed classes is matched by index, if ``new`` has
    as many classes.
    """
    old, new = list(old), list(new)
    if old == new:
        return ClassMap(tuple((i, i) for i in range(len(new))))
    assumed = ""
    if old == list(default_names(len(old))):
        if len(old) == len(COCO_NAMES):
            old, assumed = list(COCO_NAMES), "; assumed COCO's names for its 80 unnamed classes"
        elif len(old) == len(new):
            note = f"the weights have no class names; their {len(old)} classes are used in order"
            return ClassMap(tuple((i, i) for i in range(len(new))), note)
    known = {_key(name): index for index, name in reversed(list(enumerate(old)))}
    pairs = tuple((i, known[_key(n)]) for i, n in enumerate(new) if _key(n) in known)
    copied = {i for i, _ in pairs}
    fresh = [name for i, name in enumerate(new) if i not in copied]
    if not fresh and len(old) == len(new) and not assumed and all(i == j for i, j in pairs):
        return ClassMap(pairs)
    return ClassMap(
        pairs,
        "head: boxes and objectness copied; classes copied by name: "
        f"{_listed([new[i] for i, _ in pairs])}; new: {_listed(fresh)}{assumed}",
    )


def _key(name: str) -> str:
    return name.strip().casefold()


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more if names else "none"


def _renumbered(checkpoint: Checkpoint, target: Spec) -> dict[str, Any]:
    """Return the checkpoint's arrays under the keys of a model with rows ``target``.

    Row numbers differ if only one of both models has auxiliary rows. The model without them has
    only the rows that the lead head depends on, numbered in the same order.
    """
    source = checkpoint.spec
    if source.has_aux == target.has_aux:
        return dict(checkpoint.arrays)
    full = target if target.has_aux else source
    lead = dict(enumerate((*kept_rows(full), full.head.index)))  # without -> with auxiliary rows
    moved = lead if target.has_aux else {old: new for new, old in lead.items()}
    renamed = {}
    for key, array in checkpoint.arrays.items():
        _, row, rest = key.split(".", 2)
        if int(row) in moved:
            renamed[f"rows.{moved[int(row)]}.{rest}"] = array
    return renamed


def _head(
    model: Model, arrays: Mapping[str, Any], classes: ClassMap, old_outputs: int
) -> dict[str, Tensor]:
    """Return new values for those entries of the head that are copied, entirely or in part."""
    rows = (
        [*range(BOX_AND_OBJECTNESS), *(BOX_AND_OBJECTNESS + i for i, _ in classes.pairs)],
        [*range(BOX_AND_OBJECTNESS), *(BOX_AND_OBJECTNESS + j for _, j in classes.pairs)],
    )
    prefix = f"rows.{model.spec.head.index}."
    plain = not any(key.startswith(f"{prefix}add.") for key in arrays)  # deploy form
    values: dict[str, Tensor] = {}
    for name, own in model.head.state_dict().items():
        kind, given = name.partition(".")[0], arrays.get(prefix + name)
        if kind in ("lead", "aux", "mul") and given is not None:
            merged = _merged(own, torch.from_numpy(given), old_outputs, rows, model.spec)
        elif kind == "add" and given is not None and given.shape == tuple(own.shape):
            merged = torch.from_numpy(given.copy())
        elif kind in ("add", "mul") and plain:
            # With add 0 and mul 1, mul * conv(x + add) is conv(x), as in the deploy form.
            merged = torch.zeros_like(own) if kind == "add" else torch.ones_like(own)
        else:
            merged = None
        if merged is not None:
            values[prefix + name] = merged
    return values


def _merged(
    own: Tensor, theirs: Tensor, old_outputs: int, rows: tuple[list[int], list[int]], spec: Spec
) -> Tensor | None:
    """Return ``own`` with outputs ``rows[0]`` of each anchor copied from ``rows[1]`` of ``theirs``.

    Weights are (A * outputs, cin, 1, 1), biases (A * outputs,), multipliers (1, A * outputs, 1, 1).
    All can be reshaped to (A, outputs, rest). Returns None if cin or A differ.
    """
    anchors, outputs = len(spec.anchors[0]), spec.outputs_per_anchor
    if theirs.numel() * outputs != own.numel() * old_outputs:
        return None
    mine = own.reshape(anchors, outputs, -1).clone()
    mine[:, rows[0]] = theirs.reshape(anchors, old_outputs, -1)[:, rows[1]].to(mine.dtype)
    return mine.reshape(own.shape)


def _form_note(target: Spec, source: Spec) -> str:
    parts = []
    if source.form == "deploy":
        parts.append("implicit vectors are initialized without effect")
    if target.has_aux and not source.has_aux:
        parts.append("the auxiliary heads are initialized randomly")
    return f"weights in {source.form} form: {'; '.join(parts)}" if parts else ""


def _act_note(target: Spec, source: Spec) -> str:
    if target.activation == source.activation:
        return ""
    old, new = source.activation, target.activation
    keep = next(act for act, known in ACTS.items() if known == old)
    return f"the weights were trained with {old}, this model has {new}; --act {keep} keeps it"
