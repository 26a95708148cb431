"""Translate the keys of published weights, and identify their variant.

Published keys are ``model.{row}.{member}``. The row numbers are the same as ours, the member names
are not. The row number of the head identifies the variant, except that the two tiny models have the
same keys. Weights with implicit tensors have training form.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, get_args

import numpy as np

from y7edge.errors import CheckpointError
from y7edge.models import registry
from y7edge.models.checkpoint import COUNTER, check_keys
from y7edge.models.shapes import weight_shapes
from y7edge.models.spec import Spec

# Patterns of our member names -> published names. No pattern matches a published name.
_MEMBERS = (
    (re.compile(r"^dense\.conv\."), "rbr_dense.0."),
    (re.compile(r"^dense\.bn\."), "rbr_dense.1."),
    (re.compile(r"^pointwise\.conv\."), "rbr_1x1.0."),
    (re.compile(r"^pointwise\.bn\."), "rbr_1x1.1."),
    (re.compile(r"^identity\."), "rbr_identity."),
    (re.compile(r"^lead\."), "m."),
    (re.compile(r"^aux\."), "m2."),
    (re.compile(r"^add\.(\d+)$"), r"ia.\1.implicit"),
    (re.compile(r"^mul\.(\d+)$"), r"im.\1.implicit"),
)
_HEAD = re.compile(r"model\.(\d+)\.m\.0\.weight")
_IMPLICIT = re.compile(r"model\.\d+\.i[am]\.\d+\.implicit")
_FOLDED = re.compile(r"model\.\d+\.(?:rbr_reparam|conv|cv\d+\.conv)\.bias")
_ANCHOR_GRID = ".anchor_grid"  # a copy of ``anchors`` in pixels

PublishedForm = Literal["training", "deploy"]


def published_key(key: str) -> str:
    """Return the published name of one of our weights."""
    _, row, member = key.split(".", 2)
    for pattern, replacement in _MEMBERS:
        member = pattern.sub(replacement, member)
    return f"model.{row}.{member}"


@cache
def _variants() -> dict[tuple[int, PublishedForm], tuple[str, ...]]:
    """Return the names of variants by (row number of the head, form)."""
    found: dict[tuple[int, PublishedForm], tuple[str, ...]] = {}
    for name in registry.names():
        for form in get_args(PublishedForm):
            head = registry.get(name, form=form).head.index
            found[head, form] = (*found.get((head, form), ()), name)
    return found


def identify(state: Mapping[str, Any], source: str) -> tuple[tuple[str, ...], PublishedForm]:
    """Return the names of the variants that the weights may belong to, and the weights' form.

    Raises:
        CheckpointError: the keys match no variant, or the weights are folded.
    """
    if any(_FOLDED.fullmatch(key) for key in state):
        raise CheckpointError(
            f"{source}: already folded weights (convolutions with a bias, no BatchNorm), which "
            "cannot be trained or proved; use the .pt file from before the folding"
        )
    heads = [int(match[1]) for key in state if (match := _HEAD.fullmatch(key))]
    implicit = any(_IMPLICIT.fullmatch(key) for key in state)
    form: PublishedForm = "training" if implicit else "deploy"
    if len(heads) == 1 and (heads[0], form) in _variants():
        return _variants()[heads[0], form], form
    if any(".m_kpt." in key for key in state):
        found = "a pose model"
    elif len(heads) == 1:
        found = f"a {form} head in row {heads[0]}"
    else:
        found = f"{len(heads)} detection heads (model.N.m.0.weight) among {len(state)} entries"
    raise CheckpointError(
        f"{source}: {found}, expected one of the detection models {', '.join(registry.names())}; "
        "mask, pose and u6 models and changed configurations are not supported"
    )


def translate(state: Mapping[str, Any], name: str, source: str) -> tuple[Spec, dict[str, Any]]:
    """Return the spec for published weights, and the weights by our keys, in our order.

    Values (arrays or tensors) are not changed. Missing BatchNorm counters become zero.

    Raises:
        CheckpointError: keys or shapes differ from those of the variant ``name``.
        ConfigError: ``name`` is unknown.
    """
    registry.get(name)
    fitting, form = identify(state, source)
    if name not in fitting:
        raise CheckpointError(
            f"{source}: weights of {' or '.join(fitting)} in {form} form, not of {name}; pass "
            "the name of the right variant"
        )
    spec = registry.get(name, nc=_classes(state, source), form=form)
    expected = {published_key(key): (key, shape) for key, shape in weight_shapes(spec).items()}
    found = {key: value for key, value in state.items() if not key.endswith(_ANCHOR_GRID)}
    for key in expected:
        if key.endswith(COUNTER) and key not in found:
            found[key] = _zero_like(next(iter(state.values())))
    check_keys(found, expected, f"{source} ({name}, {form} form)")
    for published, (_, shape) in expected.items():
        if _shape(found[published]) != shape:
            raise CheckpointError(
                f"{source}: {published} has shape {_shape(found[published])}, expected {shape} for "
                f"{name} with {spec.nc} classes; other widths are not supported"
            )
    return spec, {key: found[published] for published, (key, _) in expected.items()}


def _classes(state: Mapping[str, Any], source: str) -> int:
    """Return the number of classes, from the number of outputs of a head convolution."""
    key = next(key for key in state if _HEAD.fullmatch(key))
    shape = _shape(state[key])
    outputs = shape[0] if shape else 0
    if outputs % 3 or outputs < 3 * 6:
        raise CheckpointError(
            f"{source}: {key} has {outputs} outputs, expected 3 x (5 + number of classes)"
        )
    return outputs // 3 - 5


def _shape(value: Any) -> tuple[int, ...] | None:
    shape = getattr(value, "shape", None)
    return None if shape is None else tuple(shape)


def _zero_like(value: Any) -> Any:
    """Return an int64 zero: of torch if ``value`` is a torch tensor, else of numpy."""
    if hasattr(value, "new_zeros"):
        return value.new_zeros(()).long()
    return np.zeros((), dtype=np.int64)
