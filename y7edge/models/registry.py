"""Look up the published variants, and convert rows to the deploy and folded forms."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from y7edge.errors import ConfigError
from y7edge.models import p5, p6, tiny
from y7edge.models.spec import ACTS, IMAGE, Activation, Anchors, Form, Row, Spec


@dataclass(frozen=True, slots=True)
class Variant:
    """Rows and settings of a published model."""

    rows: Callable[[], tuple[Row, ...]]
    anchors: Anchors
    strides: tuple[int, ...]
    activation: Activation = "silu"
    imgsz: int = 640


VARIANTS: dict[str, Variant] = {
    "yolov7-tiny": Variant(tiny.tiny, tiny.ANCHORS, tiny.STRIDES, activation="leaky_relu"),
    "yolov7-tiny-silu": Variant(tiny.tiny, tiny.ANCHORS, tiny.STRIDES),
    "yolov7": Variant(p5.yolov7, p5.ANCHORS, p5.STRIDES),
    "yolov7x": Variant(p5.yolov7x, p5.ANCHORS, p5.STRIDES),
    "yolov7-w6": Variant(p6.w6, p6.ANCHORS, p6.STRIDES, imgsz=1280),
    "yolov7-e6": Variant(p6.e6, p6.ANCHORS, p6.STRIDES, imgsz=1280),
    "yolov7-d6": Variant(p6.d6, p6.ANCHORS, p6.STRIDES, imgsz=1280),
    "yolov7-e6e": Variant(p6.e6e, p6.ANCHORS, p6.STRIDES, imgsz=1280),
}


def names() -> list[str]:
    """Return the names of the published variants, smallest first."""
    return list(VARIANTS)


def split(name: str) -> tuple[str, str | None] | None:
    """Return the published variant that a name contains, and a key of ``ACTS``.

    ``yolov7-relu`` is ``yolov7`` with ReLU. The key is None for the names of published variants.
    The result is None for unknown names.
    """
    if name in VARIANTS:
        return name, None
    variant, _, act = name.rpartition("-")
    return (variant, act) if variant in VARIANTS and act in ACTS else None


def get(
    name: str,
    nc: int = 80,
    form: Form = "training",
    anchors: Sequence[Sequence[Sequence[float]]] | None = None,
    act: str | None = None,
) -> Spec:
    """Return the spec of a variant for ``nc`` classes.

    Args:
        name: a published variant, or one with another activation, such as ``yolov7-relu``.
        nc: number of classes.
        form: training, deploy or folded.
        anchors: (levels, anchors, 2) widths and heights in pixels of the network input, finest
            level first; None: the published ones.
        act: the activation: relu, leaky, silu or hardswish; None: that of ``name``.

    Raises:
        ConfigError: the name, the form or the activation is unknown, or the anchors are invalid.
    """
    found = split(name)
    if found is None:
        near = difflib.get_close_matches(name, VARIANTS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"unknown model {name!r}: {hint}known are {', '.join(VARIANTS)}")
    if form not in get_args(Form):
        raise ConfigError(f"unknown form {form!r}: expected training, deploy or folded")
    name, suffix = found
    variant = VARIANTS[name]
    spec = Spec(
        name=name,
        rows=variant.rows(),
        nc=nc,
        anchors=variant.anchors if anchors is None else _anchors(name, anchors),
        strides=variant.strides,
        activation=variant.activation,
        imgsz=variant.imgsz,
    )
    if chosen := act or suffix:
        spec = with_activation(spec, chosen)
    if form == "training":
        return spec
    return deploy(spec) if form == "deploy" else folded(spec)


def _anchors(name: str, anchors: Sequence[Sequence[Sequence[float]]]) -> Anchors:
    try:
        return tuple(tuple((float(w), float(h)) for w, h in level) for level in anchors)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{name}: anchors must be (width, height) pairs in pixels for each level, such as "
            "[[[10, 13], [16, 30], [33, 23]], ...]"
        ) from error


def with_activation(spec: Spec, act: str) -> Spec:
    """Return a spec with the activation ``act``, a key of ``ACTS``; its name ends with ``act``.

    If the result is a published variant, it has the variant's name: ``yolov7-tiny`` with ``silu``
    is ``yolov7-tiny-silu``, and that with ``leaky`` is ``yolov7-tiny``.

    Raises:
        ConfigError: the activation is unknown.
    """
    if act not in ACTS:
        raise ConfigError(f"act must be one of {', '.join(ACTS)}, not {act!r}")
    if ACTS[act] == spec.activation:
        return spec
    before = next(name for name, known in ACTS.items() if known == spec.activation)
    base = spec.name.removesuffix(f"-{before}")
    usual = base in VARIANTS and VARIANTS[base].activation == ACTS[act]
    return replace(spec, name=base if usual else f"{base}-{act}", activation=ACTS[act])


def deploy(spec: Spec) -> Spec:
    """Convert a spec to deploy form: no implicit knowledge in the head, no auxiliary rows."""
    if spec.form != "training":
        return spec
    return replace(spec, rows=_without_aux(spec), form="deploy")


def without_auxiliary(spec: Spec) -> Spec:
    """Remove the auxiliary rows of a spec, to train with the lead head only."""
    return replace(spec, rows=_without_aux(spec)) if spec.has_aux else spec


def folded(spec: Spec) -> Spec:
    """Convert a spec to folded form: plain convolutions with bias, no auxiliary rows."""
    return replace(spec, rows=_without_aux(spec), form="folded")


def _without_aux(spec: Spec) -> tuple[Row, ...]:
    """Return the rows that the lead head needs, renumbered."""
    position = {old: new for new, old in enumerate(kept_rows(spec))} | {IMAGE: IMAGE}
    kept = [
        replace(spec.rows[old], index=new, inputs=tuple(position[i] for i in spec.rows[old].inputs))
        for old, new in position.items()
        if old != IMAGE
    ]
    lead = tuple(position[i] for i in spec.lead_inputs)
    return (*kept, replace(spec.head, index=len(kept), inputs=lead))


def kept_rows(spec: Spec) -> tuple[int, ...]:
    """Return the indices of all rows that the lead head depends on, without the head.

    Row ``kept_rows(spec)[n]`` becomes row ``n`` in ``deploy`` and ``folded``.
    """
    needed = set(spec.lead_inputs)
    for row in reversed(spec.rows[:-1]):
        if row.index in needed:
            needed.update(row.inputs)
    return tuple(row.index for row in spec.rows[:-1] if row.index in needed)
