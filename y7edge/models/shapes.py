"""Compute channels, strides, weight names and shapes, parameters and GFLOPs from rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from y7edge.artifact import bounds
from y7edge.errors import ConfigError
from y7edge.models.spec import IMAGE, Row, Spec

BN_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
POOLS = (5, 9, 13)  # windows of the pyramid pooling inside sppcspc
_INNER = {"sppcspc": 7, "repconv": 3, "downc": 3}  # peak memory of a block / memory of its output


@dataclass(frozen=True, slots=True)
class ConvInfo:
    """One convolution of the model."""

    name: str  # prefix of its weight's key
    row: int
    cin: int
    cout: int
    kernel: int
    stride: int
    at: int  # stride of its output map in pixels of the input
    part: str = "body"  # "body", "lead", "aux" or "branch" (a parallel 1x1 of a RepConv)

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """(cout, cin, k, k)."""
        return (self.cout, self.cin, self.kernel, self.kernel)


def input_channels(spec: Spec, row: Row) -> tuple[int, ...]:
    """Return the number of channels of each input of a row; 3 for the image."""
    return tuple(3 if i == IMAGE else spec.rows[i].out for i in row.inputs)


def strides(spec: Spec) -> tuple[int, ...]:
    """Return the stride in pixels of every row's output; 0 for the head.

    Raises:
        ConfigError: a row reads maps of different strides, a map has an invalid stride, or the
            stride of a level differs from ``spec.strides``.
    """
    found: list[int] = []
    for row in spec.rows[:-1]:
        steps = {Fraction(1) if i == IMAGE else Fraction(found[i]) for i in row.inputs}
        if len(steps) != 1:
            found_strides = ", ".join(map(str, sorted(steps)))
            raise ConfigError(
                f"{spec.name}: row {row.index} reads maps of strides {found_strides}; expected the "
                "same stride for all"
            )
        at = steps.pop() * _ratio(row)
        if at.denominator != 1 or at > bounds.MAX_STRIDE:
            what = "larger than the image" if at < 1 else f"of stride {at}"
            raise ConfigError(f"{spec.name}: row {row.index} has a map {what}")
        found.append(int(at))
    for level, (index, stride) in enumerate(zip(spec.lead_inputs, spec.strides, strict=True)):
        if found[index] != stride:
            raise ConfigError(
                f"{spec.name}: level {level} reads row {index} at stride {found[index]}, "
                f"but its stride is given as {stride}"
            )
    return (*found, 0)


def _ratio(row: Row) -> Fraction:
    if row.block in ("downc", "reorg"):
        return Fraction(2)
    if row.block == "upsample":
        return Fraction(1, 2)
    return Fraction(row.stride)


def convolutions(spec: Spec) -> tuple[ConvInfo, ...]:
    """Return all convolutions in the order of the weights, including RepConv branches and heads.

    Raises:
        ConfigError: strides do not match (see ``strides``), or there are more than
            ``MAX_PARAMETERS`` parameters.
    """
    at = strides(spec)
    found = tuple(info for row in spec.rows for info in _of_row(spec, row, at))
    if (count := sum(math.prod(info.weight_shape) for info in found)) > bounds.MAX_PARAMETERS:
        raise ConfigError(
            f"{spec.name}: {count} parameters, expected at most {bounds.MAX_PARAMETERS}"
        )
    return found


def _of_row(spec: Spec, row: Row, at: tuple[int, ...]) -> Iterator[ConvInfo]:
    prefix, index, here = f"rows.{row.index}", row.index, at[row.index]
    cin, cout = input_channels(spec, row)[0], row.out
    if row.block == "conv" or (row.block == "repconv" and spec.form == "folded"):
        yield ConvInfo(f"{prefix}.conv", index, cin, cout, row.kernel, row.stride, here)
    elif row.block == "repconv":
        yield ConvInfo(f"{prefix}.dense.conv", index, cin, cout, row.kernel, row.stride, here)
        yield ConvInfo(
            f"{prefix}.pointwise.conv", index, cin, cout, 1, row.stride, here, part="branch"
        )
    elif row.block == "downc":
        for member, (source, out, kernel, stride) in downc_members(cin, cout).items():
            stride_at = here if stride == 2 or member == "cv3" else here // 2
            yield ConvInfo(f"{prefix}.{member}.conv", index, source, out, kernel, stride, stride_at)
    elif row.block == "sppcspc":
        for member, (source, out, kernel) in sppcspc_members(cin, cout).items():
            yield ConvInfo(f"{prefix}.{member}.conv", index, source, out, kernel, 1, here)
    elif row.block == "head":
        yield from _head(spec, prefix)


def _head(spec: Spec, prefix: str) -> Iterator[ConvInfo]:
    out = len(spec.anchors[0]) * spec.outputs_per_anchor
    for part, sources in (("lead", spec.lead_inputs), ("aux", spec.aux_inputs)):
        for level, (source, stride) in enumerate(zip(sources, spec.strides, strict=False)):
            cin = spec.rows[source].out
            yield ConvInfo(
                f"{prefix}.{part}.{level}", spec.head.index, cin, out, 1, 1, stride, part=part
            )


def downc_members(cin: int, cout: int) -> dict[str, tuple[int, int, int, int]]:
    """Return (cin, cout, kernel, stride) of each convolution in a ``downc`` block.

    Its two branches are cv1 -> cv2 and max-pool -> cv3.
    """
    half = cout // 2
    return {"cv1": (cin, cin, 1, 1), "cv2": (cin, half, 3, 2), "cv3": (cin, half, 1, 1)}


def sppcspc_members(cin: int, cout: int) -> dict[str, tuple[int, int, int]]:
    """Return (cin, cout, kernel) of each convolution in an ``sppcspc`` block.

    ``cv2`` is the bypass branch. ``cv5`` reads the output of ``cv4``, concatenated with three
    max-pools of this output.
    """
    return {
        "cv1": (cin, cout, 1),
        "cv2": (cin, cout, 1),
        "cv3": (cout, cout, 3),
        "cv4": (cout, cout, 1),
        "cv5": (4 * cout, cout, 1),
        "cv6": (cout, cout, 3),
        "cv7": (2 * cout, cout, 1),
    }


def weight_shapes(spec: Spec) -> dict[str, tuple[int, ...]]:
    """Return the shape of every entry of a model's state dict, in order.

    The parameters and buffers of the head come last: anchors (levels, anchors, 2) in cells,
    convolutions and, in training form, implicit vectors.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    heads = []
    for info in convolutions(spec):
        if info.part in ("lead", "aux"):
            heads.append(info)
            continue
        shapes[f"{info.name}.weight"] = info.weight_shape
        if spec.form == "folded":
            shapes[f"{info.name}.bias"] = (info.cout,)
            continue
        _add_norm(shapes, info.name.removesuffix("conv") + "bn", info.cout)
        if info.part == "branch" and spec.rows[info.row].identity:
            _add_norm(shapes, f"rows.{info.row}.identity", info.cin)
    return shapes | _head_shapes(spec, heads)


def _add_norm(shapes: dict[str, tuple[int, ...]], prefix: str, width: int) -> None:
    for entry in ("weight", "bias", *BN_BUFFERS):
        shapes[f"{prefix}.{entry}"] = () if entry == "num_batches_tracked" else (width,)


def _head_shapes(spec: Spec, heads: list[ConvInfo]) -> dict[str, tuple[int, ...]]:
    prefix = f"rows.{spec.head.index}"
    shapes: dict[str, tuple[int, ...]] = {
        f"{prefix}.anchors": (spec.levels, len(spec.anchors[0]), 2)
    }
    for info in heads:
        shapes[f"{info.name}.weight"] = info.weight_shape
        shapes[f"{info.name}.bias"] = (info.cout,)
    if spec.implicit:
        lead = [info for info in heads if info.part == "lead"]
        shapes |= {f"{prefix}.add.{level}": (1, i.cin, 1, 1) for level, i in enumerate(lead)}
        shapes |= {f"{prefix}.mul.{level}": (1, i.cout, 1, 1) for level, i in enumerate(lead)}
    return shapes


def is_buffer(key: str) -> bool:
    """Return whether a key is a buffer (running statistics, counter, anchors), not a parameter."""
    return key.rsplit(".", 1)[-1] in (*BN_BUFFERS, "anchors")


def parameters(spec: Spec) -> int:
    """Return the number of parameters, as ``sum(p.numel() for p in model.parameters())``."""
    shapes = weight_shapes(spec).items()
    return sum(math.prod(shape) for key, shape in shapes if not is_buffer(key))


def gflops(spec: Spec, height: int, width: int) -> float:
    """Return billions of operations for one image: 2 x multiply-accumulates of the convolutions.

    RepConv branches and auxiliary convolutions are included if the form has them. Bias, BatchNorm,
    activations and pooling are not included.
    """
    operations = sum(
        2 * math.prod(info.weight_shape) * (height / info.at) * (width / info.at)
        for info in convolutions(spec)
    )
    return operations / 1e9


def require_affordable(spec: Spec, height: int, width: int, *, asked: bool = False) -> None:
    """Check that memory and time for one image are within ``y7edge.artifact.bounds``.

    ``asked``: whether the user chose the size. The limit of memory is then ``MAX_ASKED``; for sizes
    in files it is ``MAX_LIVE``.

    Raises:
        ConfigError: a limit is exceeded.
    """
    at, pixels = strides(spec), height * width
    last = {source: row.index for row in spec.rows for source in row.inputs}
    values = {IMAGE: 3 * pixels}
    live = peak = touched = values[IMAGE]
    for row in spec.rows[:-1]:
        size = values[row.index] = row.out * pixels // at[row.index] ** 2
        live += size
        peak = max(peak, live + (_INNER.get(row.block, 1) - 1) * size)
        touched += size * row.kernel**2 if row.block == "maxpool" else size
        live -= sum(values[i] for i in {*row.inputs, row.index} if last.get(i, -1) <= row.index)
    for what, found, most in (
        ("pixels", pixels, bounds.MAX_PIXELS),
        ("values in memory at once", peak, bounds.MAX_ASKED if asked else bounds.MAX_LIVE),
        ("values to compute", touched, bounds.MAX_TOUCHED),
    ):
        if found > most:
            raise ConfigError(
                f"{spec.name} at {height}x{width} has {found:,} {what}, expected at most "
                f"{most:,}: give a smaller --imgsz"
            )
