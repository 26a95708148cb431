"""Write the parts that all folders for a vendor's toolchain have: model, README, list of files.

A target describes its toolchain in a ``Guide``. The README says what the folder contains, how to
convert the model, what was proved, and how to get boxes from the outputs.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from y7edge.artifact.artifact import Artifact
from y7edge.artifact.manifest import Dim, Manifest
from y7edge.errors import ConfigError, ExportError
from y7edge.export.targets.base import BuildRequest
from y7edge.runtimes import handover

if TYPE_CHECKING:
    import onnx

    from y7edge.export.audit import Audit
    from y7edge.export.calibration import Calibration

MODEL = "model.onnx"

_WORD = re.compile(r"[A-Za-z0-9/_][A-Za-z0-9./:_-]{0,255}")

CERTAIN = 8.0
"""Logit of a class that is the only one: its probability is 0.9997."""


@dataclass(frozen=True)
class Step:
    """One step of a conversion.

    Attributes:
        title: What the step does.
        text: Explanation in Markdown.
        commands: Lines for a shell.
    """

    title: str
    text: str = ""
    commands: Sequence[str] = ()


@dataclass(frozen=True)
class Guide:
    """What the README of a folder says about the vendor's toolchain.

    Attributes:
        title: What the folder is for.
        steps: The conversion, step by step.
        files: Name of each file or folder -> its content; other files are explained by the README
            itself.
        not_run: What was not run here, one sentence.
        boxes: How the vendor's own software gets boxes; empty if it does not.
        sources: Documents of the vendor on which the commands are based.
        heading: Heading of the steps.
        sections: Title of each further section -> its text in Markdown.
    """

    title: str
    steps: Sequence[Step]
    files: Mapping[str, str]
    not_run: str
    sources: Sequence[str]
    boxes: str = ""
    heading: str = "Convert"
    sections: Mapping[str, str] = field(default_factory=dict)


def start(request: BuildRequest, model: str = MODEL) -> Path:
    """Create the folder of a request with the proved model in it; return the model's path."""
    path = request.path / model
    path.parent.mkdir(parents=True)
    shutil.copyfile(request.model, path)
    return path


def finish(request: BuildRequest, guide: Guide, model: str = MODEL) -> Artifact:
    """Write README and list of files, and return the artifact."""
    text = _readme(
        request.manifest,
        guide,
        model,
        calibrated=request.calibration is not None,
        audited=(request.path / "audit.txt").is_file(),
    )
    write(request.path / "README.md", text)
    handover.write_listing(request.path, model)
    return Artifact(request.path, request.manifest)


def write(path: Path, text: str) -> None:
    """Write a text file with the same bytes on all systems."""
    path.write_bytes(text.encode())


def write_json(path: Path, content: object) -> None:
    """Write a JSON file with the same bytes on all systems."""
    write(path, f"{json.dumps(content, indent=2)}\n")


def copy_script(source: Path, path: Path) -> None:
    """Copy a script of this package that runs without y7edge."""
    shutil.copyfile(source, path)


def images_of(request: BuildRequest) -> Calibration:
    """Return the calibration images of a request; raise ConfigError if it has none."""
    if request.calibration is None:
        raise ConfigError(
            f"target {request.manifest.target} needs calibration images: give a data set or a "
            "folder of images (--calib DATA)"
        )
    return request.calibration


def word(name: str) -> str:
    """Return a name of the graph for a shell script or a list of the vendor's tool.

    Raises:
        ConfigError: the name has characters that these could interpret.
    """
    if not _WORD.fullmatch(name):
        raise ConfigError(
            f"the graph has the name {name[:64]!r}, expected letters, digits and ./:_- only: "
            "export the model again"
        )
    return name


def audited(request: BuildRequest, chip: str) -> None:
    """Compare the model with the table of a chip, and write ``audit.txt``.

    Raises:
        ConfigError: the vendor's converter refuses the model for this chip.
    """
    import onnx

    from y7edge.export.audit import audit, chips

    if chip not in chips.names():
        return
    found = audit(onnx.load(request.model), chips.load(chip))
    refused = [row for row in found.rows if row.verdict == "refused"]
    if refused:
        first = refused[0]
        raise ConfigError(
            f"{chip} does not run {len(refused)} parts of the model, such as "
            f"{first.op or 'its'} {first.node}: {first.why}; `y7edge audit MODEL --target {chip}` "
            "names the rewrite or the activation that cures it"
        )
    for line in (lines := _audit_lines(found))[1:]:
        if line.startswith("cpu"):
            request.progress(f"{chip}: {line}")
    write(request.path / "audit.txt", "".join(f"{line}\n" for line in lines))


def _audit_lines(found: Audit) -> list[str]:
    """Return the lines of ``audit.txt``, one for each node that the accelerator does not run."""
    counts = ", ".join(f"{verdict} {count}" for verdict, count in found.counts.items() if count)
    return [
        f"{found.chip.title}: {found.share:.1%} of the multiplications on the accelerator "
        f"(nodes: {counts})",
        f"source: {found.chip.source}",
        *found.remarks,
        *(
            " ".join(filter(None, (row.verdict, row.op, row.node))) + f": {row.why}"
            for row in found.rows
            if row.verdict != "runs"
        ),
    ]


# --- options -------------------------------------------------------------------------------------


def choice(options: Mapping[str, str], name: str, known: Collection[str], default: str) -> str:
    """Return the value of a target's option, which must be one of ``known``.

    Raises:
        ConfigError: it is not.
    """
    value = options.get(name, default)
    if value not in known:
        raise ConfigError(f"option {name} is {value[:64]!r}; choose from {', '.join(known)}")
    return value


def whole(options: Mapping[str, str], name: str, default: int, most: int) -> int:
    """Return the value of a target's option, a whole number from 1 to ``most``.

    Raises:
        ConfigError: it is not such a number.
    """
    text = options.get(name, str(default))
    # isdecimal() is also true for digits of other scripts.
    value = int(text) if text.isascii() and text.isdecimal() and len(text) < 12 else 0
    if not 1 <= value <= most:
        raise ConfigError(f"option {name} is {text[:64]!r}, expected a whole number, 1 to {most}")
    return value


# --- the model -----------------------------------------------------------------------------------


def with_certain_class(model: onnx.ModelProto, manifest: Manifest) -> onnx.ModelProto:
    """Return a float graph for decoders that multiply objectness by class probability.

    With one class, the score is the objectness: the class logit is not trained. Decoders of vendors
    multiply by its sigmoid all the same. The logit becomes the constant ``CERTAIN``. Graphs with
    more classes are returned as they are.

    Raises:
        ExportError: an output is not written by a convolution, or by its sigmoid.
    """
    if manifest.nc != 1:
        return model
    import numpy as np
    import onnx
    from onnx import numpy_helper

    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    writers = {name: node for node in changed.graph.node for name in node.output}
    arrays = {tensor.name: tensor for tensor in changed.graph.initializer}
    for output in changed.graph.output:
        node = writers[output.name]
        if node.op_type == "Sigmoid":
            node = writers[node.input[0]]
        if node.op_type != "Conv" or len(node.input) < 3 or not set(node.input[1:]) <= set(arrays):
            raise ExportError(f"{output.name} is not the output of a convolution with a bias")
        for name, value in zip(node.input[1:], (0.0, CERTAIN), strict=True):
            values = np.array(numpy_helper.to_array(arrays[name]))
            values[5 :: 5 + manifest.nc] = value
            arrays[name].CopyFrom(numpy_helper.from_array(values, name))
    return changed


# --- the README ----------------------------------------------------------------------------------


def _readme(
    manifest: Manifest, guide: Guide, model: str, *, calibrated: bool, audited: bool
) -> str:
    sections = [
        f"# {_plain(manifest.model)} for {guide.title}",
        *_about(manifest, model),
        "## Files",
        _files(guide, model, calibrated=calibrated, audited=audited),
        f"## {guide.heading}",
        *_steps(guide.steps),
        *(part for title, text in guide.sections.items() for part in (f"## {title}", text)),
        "## What was proved",
        *_proved(manifest, guide, model),
        "## Input",
        *_input(manifest),
        "## Outputs and boxes",
        *_outputs(manifest, guide),
        "## Sources",
        "\n".join(f"- {source}" for source in guide.sources),
    ]
    return "\n\n".join(sections) + "\n"


def _about(manifest: Manifest, model: str) -> list[str]:
    image, version = manifest.input, manifest.tools.get("y7edge", "")
    words = [
        f"`{model}` is {_plain(manifest.model)} with {manifest.nc} "
        f"{'class' if manifest.nc == 1 else 'classes'} for images of {image.height}x{image.width} "
        f"pixels (height x width), in {manifest.precision}. y7edge {version} exported it.".replace(
            "  ", " "
        )
    ]
    if rewrites := manifest.tools.get("rewrites"):
        words.append(f"The graph was rewritten: {rewrites}.")
    return words


def _files(guide: Guide, model: str, *, calibrated: bool, audited: bool) -> str:
    files = {model: "the proved model", **guide.files}
    if audited:
        files["audit.txt"] = "which operators the chip runs, from the table of its vendor"
    if calibrated:
        files["calibration/"] = (
            "images for the quantiser, letterboxed like all inputs; `calibration.json` names them "
            "and has the SHA-256 of their contents"
        )
    files["manifest.json"] = "classes, anchors, outputs and proof, for `y7edge`"
    files["files.json"] = "SHA-256 of all files, for `y7edge verify`"
    return "\n".join(f"- `{name}`: {text}" for name, text in files.items())


def _steps(steps: Sequence[Step]) -> list[str]:
    sections = []
    for number, step in enumerate(steps, 1):
        sections.append(f"{number}. **{step.title}.** {step.text}".rstrip())
        if step.commands:
            sections.append("\n".join(("```bash", *step.commands, "```")))
    return sections


def _proved(manifest: Manifest, guide: Guide, model: str) -> list[str]:
    if manifest.precision == "int8":
        found = (
            f"`{model}` ran on the CPU. `y7edge info` prints how its mAP compares with that of the "
            "trained model, or why this was not measured."
        )
    else:
        found = (
            f"`{model}` ran on the CPU, and its outputs and boxes equal those of the trained model "
            "within the tolerance in `manifest.json`."
        )
    return [
        f'{found} `y7edge selftest "$PWD"` repeats this in this folder, whose name must end with '
        "`.handover`; `verify`, `val` and `predict` run it too.",
        f"Not run: {guide.not_run}",
    ]


def _input(manifest: Manifest) -> list[str]:
    image = manifest.input
    return [
        f"`{image.name}`: {_shape(image.shape)} {image.dtype}, layout {image.layout}, colours in "
        f"the order {image.color.upper()}; value = {image.scale:.6g} x pixel (0 to 255)"
        + (f" {image.zero_point:+d}." if image.zero_point else "."),
        "Images are resized with one factor for both sides, centred, and padded with grey "
        f"{image.letterbox.pad}.",
    ]


def _outputs(manifest: Manifest, guide: Guide) -> list[str]:
    first = manifest.outputs[0]
    if first.role != "head":
        return [
            *(f"- `{o.name}`: {_shape(o.shape)} {o.dtype}, {o.role}" for o in manifest.outputs),
            "Boxes are centre x, centre y, width and height in pixels of the input.",
        ]
    quantised = first.scale is not None
    more, line = (" dtype | scale | zero point |", "---|---:|---:|") if quantised else ("", "")
    rows = [
        f"| output | shape | stride | anchors (width x height, pixels) |{more}",
        f"|---|---|---|---|{line}",
    ]
    for output, level in zip(manifest.outputs, manifest.levels, strict=True):
        anchors = ", ".join(f"{w:g}x{h:g}" for w, h in level.anchors)
        row = f"| `{output.name}` | {_shape(output.shape)} | {level.stride} | {anchors} |"
        if output.scale is not None:
            row += f" {output.dtype} | {output.scale:.9g} | {output.zero_point} |"
        rows.append(row)
    sigmoid = first.activation == "sigmoid"
    score = "p4" if manifest.nc == 1 else "p4 x max(p5, p6, ...)"
    sections = [
        "\n".join(rows),
        "Real value = (value - zero point) x scale." if quantised else "",
        "The channels of the first anchor come first, then those of the second, and so on. An "
        f"anchor has {5 + manifest.nc}: x, y, width, height, objectness, then one per class, in "
        "the order of `names` in `manifest.json`. Values are "
        f"{'probabilities' if sigmoid else 'logits'}. For the values p0, p1, ... "
        f"{'' if sigmoid else '(sigmoids of the logits) '}of an anchor in a row and column:",
        "\n".join(
            (
                "```text",
                "x = (2 p0 - 0.5 + column) stride     width  = (2 p2)^2 anchor width",
                "y = (2 p1 - 0.5 + row) stride        height = (2 p3)^2 anchor height",
                f"score = {score}",
                "```",
            )
        ),
        "With one class the score is the objectness." if manifest.nc == 1 else "",
        "x and y are the centre, in pixels of the letterboxed input. Keep boxes whose score is "
        f"greater than {manifest.thresholds.conf:g}, then remove those whose IoU with a better box "
        f"of the same class is greater than {manifest.thresholds.iou:g}.",
        "From outputs of the vendor's runtime, y7edge computes the same boxes as from its own "
        "engines:",
        _snippet(manifest),
        guide.boxes,
    ]
    return [section for section in sections if section]


def _snippet(manifest: Manifest) -> str:
    heads = ", ".join(output.name for output in manifest.outputs)
    first = manifest.outputs[0]
    quantised = first.scale is not None
    scales = "[(o.scale, o.zero_point) for o in manifest.outputs]"
    return "\n".join(
        (
            "```python",
            "from pathlib import Path",
            "from y7edge.detect.postprocess import Criteria, Postprocessor",
            "from y7edge.detect.preprocess import Preprocessor",
            "from y7edge.runtimes.handover import read_manifest",
            "",
            'manifest = read_manifest(Path("."))  # this folder',
            "preprocess = Preprocessor(manifest.input)",
            "geometry = preprocess(image)  # BGR; the network's input is preprocess.tensor",
            f'decode = Postprocessor(manifest.levels, manifest.nc, "{first.activation}", '
            f'layout="{first.layout}"' + (f", quantization={scales})" if quantised else ")"),
            f"boxes = decode.heads([{heads}], Criteria(conf={manifest.thresholds.conf:g}))[0]",
            "xyxy = geometry.to_source(boxes.xyxy)  # pixels of the image",
            "```",
        )
    )


def _shape(shape: tuple[Dim, ...]) -> str:
    return "(" + ", ".join(str(size) for size in shape) + ")"


def _plain(text: str) -> str:
    """Escape the characters of a name that Markdown or HTML would interpret."""
    return "".join(f"\\{c}" if c in r"\`*_[]<>#|&!~" else c for c in text)
