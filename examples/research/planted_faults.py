"""Plant faults into copies of an artifact, and find them with `y7edge diff`.

    python examples/research/planted_faults.py > docs/diff.md        # a small trained checkpoint
    python examples/research/planted_faults.py best.safetensors --imgsz 320

The output is the Markdown of docs/diff.md. All copies have valid digests, so that only the
comparison of their outputs can find the faults. A fault is skipped if its engine is not installed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from y7edge.artifact.artifact import Artifact
from y7edge.artifact.manifest import Letterbox, Manifest
from y7edge.cli import main as command_line
from y7edge.detect.preprocess import letterbox_geometry
from y7edge.export import export
from y7edge.export.targets import registry as targets
from y7edge.models.checkpoint import Checkpoint
from y7edge.nn.source import open_checkpoint
from y7edge.runtimes import onnxrt
from y7edge.runtimes.base import missing

SMALL = Path(__file__).parents[2] / "tests" / "reference" / "demo.safetensors"
INTRODUCTION = """\
# Why two models differ

`y7edge diff A B` runs two models on the same image and compares the results of each stage: the
preprocessed input, the head of each level, the decoded candidates, and the boxes after NMS. A and
B are checkpoints, artifacts of any target, or ONNX files of other exporters, whose class names
`--names` gives. Two artifacts are compared without torch and onnx, on the robot. `--image FILE`
selects the image; the default is a synthetic scene. `--layers` compares the output of each row of
ONNX artifacts and checkpoints. `--json` prints all numbers.

A graph with NMS (`--outputs nms`) returns only the boxes after NMS. They are compared with the
candidates of the other model, at equal thresholds; the stages before are not available.

The tolerance is that of the proof in the precision of the less precise model. The result of a
stage is *equal*, *close* (within this tolerance, but not within that of the more precise model)
or *differs*. The exit code is 4 if a stage differs, else 0. Boxes are compared at A's confidence
threshold, or at a lower one if fewer than 100 candidates of A are above it.

A cause is reported only if a test finds it: A is run on swapped colour channels, on scaled values
or on a moved image, heads are decoded with another activation, order or anchors, entries of the
manifests are exchanged, digests are checked, and with `--layers` weights are compared. If no test
succeeds, the cause is *unknown*.

In Python, `y7edge.export.diff(a, b)` returns the report.

Below, faults were planted into copies of an artifact. All copies have valid digests. This page is
the output of `python examples/research/planted_faults.py`."""

SCENE = (640, 480)  # of the synthetic image that diff compares on, for square inputs


@dataclass(frozen=True)
class Fault:
    """A fault, how it is planted, and what `diff` has to find.

    Attributes:
        title: Heading.
        text: What is wrong with the file.
        plant: Takes the checkpoint, the correct artifact and a folder; writes a copy of the
            artifact with the fault into the folder, and returns its path.
        cause: Name of the cause.
        stage: The first stage that differs.
        options: Further options of `diff`.
        code: Exit code of `diff`.
    """

    title: str
    text: str
    plant: Callable[[Checkpoint, Path, Path], Path]
    cause: str
    stage: str
    options: tuple[str, ...] = ()
    code: int = 4


def edited(
    source: Path,
    destination: Path,
    edit: Callable[[onnx.ModelProto, Manifest], None] = lambda *_: None,
    **changes: object,
) -> Path:
    """Copy an ONNX artifact; edit the copy's graph, and apply ``changes`` to its manifest."""
    model, manifest = onnx.load(source), onnxrt.read_manifest(source)
    edit(model, manifest)
    destination.write_bytes(model.SerializeToString())
    digest = onnxrt.payload_digest((destination,))
    sealed = replace(manifest, payload_digest=digest, **changes)
    onnxrt.write_manifest(Artifact(destination, sealed))
    return destination


def set_weight(
    model: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    """Replace a weight of a graph."""
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    values = change(numpy_helper.to_array(tensor))
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), name))


def swap_channels(model: onnx.ModelProto, _: Manifest) -> None:
    """Exchange red and blue in the weights of the first convolution."""
    set_weight(model, "rows.0.conv.weight", lambda weight: weight[:, ::-1])


def scale_weight(model: onnx.ModelProto, _: Manifest) -> None:
    """Scale the weights of the convolution in the middle by 1.1."""
    names = [node.input[1] for node in model.graph.node if node.op_type == "Conv"]
    set_weight(model, names[len(names) // 2], lambda weight: weight * weight.dtype.type(1.1))


def add_sigmoid(model: onnx.ModelProto, _: Manifest) -> None:
    """Append a Sigmoid to each output."""
    for output in model.graph.output:
        for node in model.graph.node:
            for index, name in enumerate(node.output):
                if name == output.name:
                    node.output[index] = f"{name}/logits"
        model.graph.node.append(
            helper.make_node("Sigmoid", [f"{output.name}/logits"], [output.name])
        )


def align_left(model: onnx.ModelProto, manifest: Manifest) -> None:
    """Move the image to the left edge of the input, as letterboxes of other packages do."""
    image = manifest.input
    left = letterbox_geometry(SCENE, (image.height, image.width)).left
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == image.name:
                node.input[index] = "moved"
    grey = image.letterbox.pad / 255
    constants = {
        "from": np.array([left]),
        "to": np.array([image.width]),
        "axis": np.array([3]),
        "pads": np.array([0, 0, 0, 0, 0, 0, 0, left]),
        "grey": np.array(grey, np.float32),
    }
    model.graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in constants.items()
    )
    model.graph.node.insert(
        0, helper.make_node("Slice", [image.name, "from", "to", "axis"], ["cut"])
    )
    model.graph.node.insert(1, helper.make_node("Pad", ["cut", "pads", "grey"], ["moved"]))


def black_border(_: Checkpoint, good: Path, folder: Path) -> Path:
    """Change the grey value of the border in the manifest."""
    image = onnxrt.read_manifest(good).input
    return edited(good, folder / "border.onnx", input=replace(image, letterbox=Letterbox(0)))


def bfloat16(checkpoint: Checkpoint, good: Path, folder: Path) -> Path:
    """Export the checkpoint for OpenVINO, computed in bfloat16."""
    image = onnxrt.read_manifest(good).input
    size = (image.height, image.width)
    path = folder / "bf16.xml"
    return export(checkpoint, path, target="openvino", precision="bf16", imgsz=size).path


def with_nms(checkpoint: Checkpoint, good: Path, folder: Path) -> Path:
    """Export the checkpoint as a graph with NMS, and swap its input channels."""
    image = onnxrt.read_manifest(good).input
    size = (image.height, image.width)
    made = export(checkpoint, folder / "nms.onnx", outputs="nms", imgsz=size).path
    return edited(made, folder / "nms.onnx", swap_channels)


FAULTS = {
    "colour": Fault(
        "Colour order",
        "The first convolution expects BGR; the manifest declares RGB.",
        lambda _, good, folder: edited(good, folder / "colour.onnx", swap_channels),
        "colour order",
        "head0",
    ),
    "left": Fault(
        "Shifted letterbox",
        "The graph moves the image to the left edge of the letterbox.",
        lambda _, good, folder: edited(good, folder / "left.onnx", align_left),
        "letterbox",
        "head0",
    ),
    "border": Fault(
        "Border of the letterbox",
        "The border of the letterbox is black instead of grey.",
        black_border,
        "letterbox",
        "input",
    ),
    "bf16": Fault(
        "bfloat16",
        "OpenVINO computes in bfloat16. The artifact declares this, so the exit code is 0.",
        bfloat16,
        "precision",
        "head0",
        code=0,
    ),
    "weight": Fault(
        "Changed weight",
        "The weights of one convolution are scaled by 1.1.",
        lambda _, good, folder: edited(good, folder / "weight.onnx", scale_weight),
        "changed weights",
        "head0",
        ("--layers",),
    ),
    "sigmoid": Fault(
        "Double sigmoid",
        "The graph ends with a Sigmoid; the manifest declares logits.",
        lambda _, good, folder: edited(good, folder / "sigmoid.onnx", add_sigmoid),
        "sigmoid",
        "head0",
    ),
    "nms": Fault(
        "Colour order in a graph with NMS",
        "The artifact was exported with `--outputs nms`. Its first convolution expects BGR.",
        with_nms,
        "colour order",
        "detections",
    ),
}


def main() -> None:
    """Plant each fault, run `y7edge diff`, and print its output."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", nargs="?", default=str(SMALL))
    parser.add_argument("--imgsz", type=int, default=160)
    options = parser.parse_args()
    checkpoint = open_checkpoint(options.checkpoint)
    print(INTRODUCTION)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # so that the printed paths are short
        good = export(checkpoint, Path("good.onnx"), imgsz=options.imgsz).path
        for key, fault in FAULTS.items():
            if key == "bf16" and missing(targets.get("openvino").NEEDS):
                continue
            bad = fault.plant(checkpoint, good, Path())
            words = ["diff", str(good), str(bad), *fault.options]
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
                code = command_line(words)
            print(f"\n## {fault.title}\n\n{fault.text}\n\n```console\n$ y7edge {' '.join(words)}")
            print(f"{printed.getvalue().rstrip()}\n```\n\nExit code: {code}.")
        os.chdir(tempfile.gettempdir())


if __name__ == "__main__":
    main()
