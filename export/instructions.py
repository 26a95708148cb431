"""Write the README.md of a hand-over: what the files are, and how boxes are computed from outputs.

Each target adds its own sections, with the commands of the vendor's tools.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from y7edge.artifact.manifest import Dim, InputInfo, Manifest, OutputInfo
from y7edge.files import write_text

NAME = "README.md"


def write(folder: Path, manifest: Manifest, model: str, sections: Mapping[str, str]) -> None:
    """Write the README.md of a hand-over.

    Args:
        folder: the folder of the hand-over.
        manifest: the manifest of the model in it.
        model: name of the model file in the folder, which is proved.
        sections: title of each section of the target -> its text in Markdown, in order.

    Raises:
        OSError: the file cannot be written.
    """
    image = manifest.input
    parts = [
        f"# {manifest.model} for {manifest.target}\n\n"
        f"`{model}`: {manifest.precision}, {image.height}x{image.width} pixels (height x width), "
        f"{manifest.nc} classes. Names of classes, anchors, and the report of the proof are in "
        "`manifest.json`; `y7edge info` shows them.",
        *(f"## {title}\n\n{text.strip()}" for title, text in sections.items()),
        f"## Input\n\n{_input(image)}",
        f"## Outputs\n\n{_outputs(manifest)}",
        f"## Proof\n\n{_proof(model)}",
    ]
    write_text(folder / NAME, "\n\n".join(parts) + "\n")


def commands(*lines: str) -> str:
    """Return command lines as a block of Markdown."""
    return "\n".join(("```", *lines, "```"))


def _input(image: InputInfo) -> str:
    order = {"NCHW": "channels first", "NHWC": "channels last"}[image.layout]
    zero = f" {'-' if image.zero_point < 0 else '+'} {abs(image.zero_point)}"
    scale = "1/255" if image.scale == 1 / 255 else f"{image.scale:g}"
    factor = "" if image.scale == 1 else f" x {scale}"
    return (
        f"`{image.name}`: {image.dtype} {_shape(image.shape)}, {order}, {image.color.upper()}. "
        f"Value = pixel value (0 to 255){factor}{zero if image.zero_point else ''}. Images are "
        "resized with one factor for both sides, centred, and padded with grey "
        f"{image.letterbox.pad} (letterbox)."
    )


def _outputs(manifest: Manifest) -> str:
    rows = ["| output | dtype, shape | scale | zero point | stride | anchors (w, h) |"]
    rows.append("|---|---|---|---|---|---|")
    rows += [_row(manifest, output) for output in manifest.outputs]
    if manifest.outputs[0].role != "head":
        return "\n".join(rows)
    quantised = any(output.scale is not None for output in manifest.outputs)
    real = "Real value = (value - zero point) x scale. " if quantised else ""
    values = "the logits of" if manifest.outputs[0].activation == "logit" else "probabilities for"
    sigmoid = "S(v) is the sigmoid of v" if values.startswith("the") else "S(v) = v"
    score = "S(o)" if manifest.nc == 1 else "S(o) S(c)"
    order = "the last axis" if manifest.outputs[0].layout == "NHWC" else "the second axis"
    return "\n".join(
        (
            *rows,
            "",
            f"{real}Each head has, on {order}, {values} x, y, w, h, objectness o and "
            f"{manifest.nc} classes c for its first anchor, then for the others. At a cell in "
            f"column i and row j, in pixels of the input ({sigmoid}):",
            "",
            "```",
            "centre x = (2 S(x) - 0.5 + i) stride      width  = (2 S(w))^2 anchor width",
            "centre y = (2 S(y) - 0.5 + j) stride      height = (2 S(h))^2 anchor height",
            f"score    = {score}",
            "```",
            "",
            "Then non-maximum suppression, by class. The file never contains boxes: pixels and "
            "scores in one integer tensor would make the scores useless.",
        )
    )


def _row(manifest: Manifest, output: OutputInfo) -> str:
    scale = "" if output.scale is None else f"{output.scale:.9g}"
    zero = "" if output.zero_point is None else str(output.zero_point)
    stride = anchors = ""
    if output.level is not None:
        level = manifest.levels[output.level]
        stride = str(level.stride)
        anchors = ", ".join(f"({w:g}, {h:g})" for w, h in level.anchors)
    kind = f"{output.dtype} {_shape(output.shape)}"
    return f"| `{output.name}` | {kind} | {scale} | {zero} | {stride} | {anchors} |"


def _shape(shape: tuple[Dim, ...]) -> str:
    return f"({', '.join(map(str, shape))})"


def _proof(model: str) -> str:
    return (
        f"y7edge runs `{model}` on the CPU and compares it with the model before the export. The "
        "commands `y7edge info`, `verify`, `selftest`, `val`, `predict` and `benchmark` work on "
        "this folder. The vendor's compiler may compute other numbers, and its file is not proved "
        "unless this page says so: compare its outputs on the device."
    )
