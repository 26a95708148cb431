"""The published variants by name, and the steps from training to deploy and folded rows."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from y7edge.errors import ConfigError
from y7edge.models import p5, p6, tiny
from y7edge.models.spec import IMAGE, Activation, Anchors, Form, Row, Spec


@dataclass(frozen=True, slots=True)
class Variant:
    """What makes a published model, its rows apart."""

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
    """The published variants, smallest first."""
    return list(VARIANTS)


def get(
    name: str,
    nc: int = 80,
    form: Form = "training",
    anchors: Sequence[Sequence[Sequence[float]]] | None = None,
) -> Spec:
    """A published variant for ``nc`` classes.

    Args:
        name: one of :func:`names`.
        nc: number of classes.
        form: ``training``, ``deploy`` or ``folded``.
        anchors: (levels, anchors, 2) widths and heights in pixels of the network input, finest
            level first; default the published ones.

    Raises:
        ConfigError: unknown name or form, or unusable anchors.
    """
    if name not in VARIANTS:
        near = difflib.get_close_matches(name, VARIANTS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"unknown model {name!r}: {hint}known are {', '.join(VARIANTS)}")
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
    if form == "training":
        return spec
    if form == "deploy":
        return deploy(spec)
    if form == "folded":
        return folded(spec)
    raise ConfigError(f"unknown form {form!r}: expected training, deploy or folded")


def _anchors(name: str, anchors: Sequence[Sequence[Sequence[float]]]) -> Anchors:
    try:
        return tuple(tuple((float(w), float(h)) for w, h in level) for level in anchors)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{name}: anchors must be (width, height) pairs in pixels for each level, as "
            "[[[10, 13], [16, 30], [33, 23]], ...]"
        ) from error


def deploy(spec: Spec) -> Spec:
    """The same model as it is published for inference: plain head, rows of the auxiliary head gone.

    Rows in front of the auxiliary ones keep their index; the head moves up behind them.
    """
    if spec.form != "training":
        return spec
    return replace(spec, rows=_without_aux(spec), form="deploy")


def without_auxiliary(spec: Spec) -> Spec:
    """The same model to be trained by its lead head alone: form and implicit knowledge stay.

    Auxiliary rows go as in :func:`deploy`; a model without any is returned as it is.
    """
    return replace(spec, rows=_without_aux(spec)) if spec.has_aux else spec


def folded(spec: Spec) -> Spec:
    """The rows of the model once BatchNorm, RepConv branches and implicit knowledge are folded."""
    return replace(spec, rows=_without_aux(spec), form="folded")


def _without_aux(spec: Spec) -> tuple[Row, ...]:
    """Keep what the lead head needs, renumbered.

    The auxiliary rows stand at the end of every published model; renumbering by reachability also
    covers descriptions where they do not.
    """
    position = {old: new for new, old in enumerate(kept_rows(spec))} | {IMAGE: IMAGE}
    kept = [
        replace(spec.rows[old], index=new, inputs=tuple(position[i] for i in spec.rows[old].inputs))
        for old, new in position.items()
        if old != IMAGE
    ]
    lead = tuple(position[i] for i in spec.lead_inputs)
    return (*kept, replace(spec.head, index=len(kept), inputs=lead))


def kept_rows(spec: Spec) -> tuple[int, ...]:
    """Indices of the rows, head apart, that the lead head depends on, in order.

    The n-th of them is row n of :func:`deploy` and :func:`folded`.
    """
    needed = set(spec.lead_inputs)
    for row in reversed(spec.rows[:-1]):
        if row.index in needed:
            needed.update(row.inputs)
    return tuple(row.index for row in spec.rows[:-1] if row.index in needed)
