"""Target ``luxonis``: an NN Archive for OAK cameras, from which Luxonis' converter makes a model.

An NN Archive is a ``.tar.xz`` with an ONNX file and ``config.json``
(https://docs.luxonis.com/software-v3/ai-inference/nn-archive/; the schema is that of the package
luxonis-ml 0.10, Apache-2.0). ``modelconverter`` or HubAI converts it for RVC2, RVC3 and RVC4.
DepthAI decodes the boxes on the camera's host: ``DetectionParser`` of depthai-core finds the head
by its parser and subtype, expects probabilities, and reads the outputs in the order of their names.
"""

from __future__ import annotations

import io
import lzma
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from y7edge.artifact.artifact import Artifact
from y7edge.artifact.manifest import Manifest
from y7edge.errors import ConfigError
from y7edge.export import handover_folder
from y7edge.export.handover_folder import Guide, Step
from y7edge.export.targets.base import BuildRequest

if TYPE_CHECKING:
    import onnx

NAME = "luxonis"
SUFFIX = ".luxonis.handover"
NEEDS: Mapping[str, str] = {}
PRECISIONS = {"fp32": "fp32"}
PROFILES: tuple[str, ...] = ()
INPUTS = ("float32",)
OUTPUTS = ("heads-sigmoid",)
BATCHES = ("1",)
RUNTIME = "handover"
CHIPS = ("rvc2", "rvc4")
OPTIONS = {"chip": "The generation of the camera: rvc2 (OAK-D) or rvc4 (OAK4); default: rvc2."}
REWRITES: tuple[str, ...] = ()
INT8_HEADS = False
CALIBRATES = False
NEEDS_CHECKPOINT = False

ARCHIVE = "model.tar.xz"


def require_fit(_: Manifest, options: Mapping[str, str]) -> None:
    """Raise ConfigError if the value of an option is unknown."""
    _chip(options)


def build(request: BuildRequest) -> Artifact:
    """Write the archive beside the proved model.

    The ONNX file in the archive is the proved model with the names of outputs that DepthAI expects.
    """
    import onnx

    chip = _chip(request.options)
    model = onnx.load(handover_folder.start(request))
    handover_folder.audited(request, chip)
    names = {
        output.name: f"output{number}_yolov7"
        for number, output in enumerate(request.manifest.outputs, 1)
    }
    model = _renamed(handover_folder.with_certain_class(model, request.manifest), names)
    path = request.path / "config.json"
    handover_folder.write_json(path, archive_config(request.manifest, names))
    content = model.SerializeToString(deterministic=True)
    files = {handover_folder.MODEL: content, path.name: path.read_bytes()}
    _write_archive(request.path / ARCHIVE, files)
    return handover_folder.finish(request, _guide(request.manifest, chip))


def versions() -> dict[str, str]:
    """Return an empty dict: the pipeline records the packages that write the graph."""
    return {}


def _chip(options: Mapping[str, str]) -> str:
    return handover_folder.choice(options, "chip", CHIPS, CHIPS[0])


def archive_config(manifest: Manifest, names: Mapping[str, str]) -> dict[str, Any]:
    """Return the content of ``config.json``; ``names``: output of the model -> of the archive."""
    image, outputs = manifest.input, list(names.values())
    scale = 1 / image.scale
    return {
        "config_version": "1.0",
        "model": {
            "metadata": {"name": "yolov7", "path": "model.onnx", "precision": "float32"},
            "inputs": [
                {
                    "name": image.name,
                    "dtype": "float32",
                    "input_type": "image",
                    "shape": list(image.shape),
                    "layout": image.layout,
                    "preprocessing": {
                        "mean": [0.0, 0.0, 0.0],
                        "scale": [round(scale, 6)] * 3,
                        "dai_type": "RGB888p" if image.color == "rgb" else "BGR888p",
                        "resize_mode": "LETTERBOX",
                    },
                }
            ],
            "outputs": [
                {
                    "name": names[output.name],
                    "dtype": "float32",
                    "shape": list(output.shape),
                    "layout": output.layout,
                }
                for output in manifest.outputs
            ],
            "heads": [
                {
                    "name": "detection",
                    "parser": "YOLOExtendedParser",
                    "outputs": outputs,
                    "metadata": {
                        "subtype": "yolov7",
                        "yolo_outputs": outputs,
                        "classes": list(manifest.names),
                        "n_classes": manifest.nc,
                        "conf_threshold": manifest.thresholds.conf,
                        "iou_threshold": manifest.thresholds.iou,
                        "max_det": manifest.thresholds.max_det,
                        "anchors": [
                            [list(anchor) for anchor in level.anchors] for level in manifest.levels
                        ],
                        "strides": list(manifest.strides),
                    },
                }
            ],
        },
    }


def _renamed(model: onnx.ModelProto, names: Mapping[str, str]) -> onnx.ModelProto:
    """Return the graph with other names of tensors."""
    import onnx

    renamed = onnx.ModelProto()
    renamed.CopyFrom(model)
    graph = renamed.graph
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    if clash := sorted(taken & set(names.values())):
        raise ConfigError(f"the graph has a tensor {clash[0]}, which is the name of an output")
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in (*graph.output, *graph.value_info):
        value.name = names.get(value.name, value.name)
    return renamed


def _write_archive(path: Path, files: Mapping[str, bytes]) -> None:
    """Write a .tar.xz without dates and owners, so that equal files give equal bytes."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    # Weights hardly compress: a higher preset takes minutes and saves little.
    path.write_bytes(lzma.compress(content.getvalue(), preset=1))


def _convert(chip: str) -> Step:
    install, convert = "pip install modelconv", f"modelconverter convert {chip} --path {ARCHIVE}"
    if chip == "rvc2":
        text = "With Luxonis' `modelconverter` (Docker), in float16:"
        return Step("Convert the archive", text, (install, convert))
    return Step(
        "Convert the archive",
        "With Luxonis' `modelconverter` (Docker), in int8. SNPE's quantiser behind it needs images "
        "of the training, letterboxed:",
        (
            install,
            'y7edge calibration "$PWD" --data DATA --form images --out calibration',
            f"{convert} calibration.path calibration/images",
        ),
    )


def _guide(manifest: Manifest, chip: str) -> Guide:
    height, width = manifest.input.height, manifest.input.width
    several = len(manifest.levels) != 3
    return Guide(
        title=f"Luxonis OAK, {chip.upper()} (NN Archive)",
        files={
            ARCHIVE: "the NN Archive: `config.json`, and the model with outputs named for DepthAI",
            "config.json": "a copy of the archive's configuration, to read",
        },
        steps=[
            _convert(chip),
            Step(
                "Run it on the camera",
                "Pass the converted archive to DepthAI 3:",
                (
                    "python - <<'END'",
                    "import depthai as dai",
                    "with dai.Pipeline() as pipeline:",
                    "    camera = pipeline.create(dai.node.Camera).build()",
                    '    archive = dai.NNArchive("CONVERTED.tar.xz")',
                    "    network = pipeline.create(dai.node.DetectionNetwork)",
                    "    network.build(camera, archive)",
                    "    results = network.out.createOutputQueue()",
                    "    pipeline.start()",
                    "    while pipeline.isRunning():",
                    "        for found in results.get().detections:",
                    "            print(found.label, found.confidence, found.xmin, found.ymin)",
                    "END",
                ),
            ),
        ],
        not_run="Luxonis' converter, and an OAK camera.",
        boxes=(
            "DepthAI decodes the boxes itself (`DetectionParser`, subtype yolov7), because the "
            "archive describes the head. It letterboxes with its own filter and padding, so that "
            "boxes may differ by a pixel. Its coordinates are fractions of the input "
            f"({width}x{height})."
            + (
                f" Its parser assumes strides 8, 16 and 32: for the {len(manifest.levels)} levels "
                "of this model, call `setStrides` of the parser."
                if several
                else ""
            )
        ),
        sources=(
            "NN Archive: https://docs.luxonis.com/software-v3/ai-inference/nn-archive/",
            "schema: package luxonis-ml 0.10.2, `luxonis_ml.nn_archive` (Apache-2.0)",
            "decoder: depthai-core, `DetectionParser.cpp`, `DetectionParserUtils.cpp` (MIT)",
            "converter: https://github.com/luxonis/modelconverter (Apache-2.0)",
        ),
    )
