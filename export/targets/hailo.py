"""Target ``hailo``: ONNX, model script, NMS configuration and images for Hailo's compiler.

The Dataflow Compiler (DFC) parses ONNX, quantises with images, and compiles a .hef file, on the
command line by ``hailo parser``, ``hailo optimize`` and ``hailo compiler`` (Dataflow Compiler User
Guide, 3.30). The commands of the model script and the keys of the NMS configuration are those of
Hailo's Model Zoo for yolov7 (https://github.com/hailo-ai/hailo_model_zoo, MIT:
``cfg/alls/generic/yolov7_tiny.alls``, ``cfg/postprocess_config/yolov7_tiny_nms_config.json``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from y7edge.artifact.artifact import Artifact
from y7edge.artifact.manifest import Manifest
from y7edge.export import calibration_files, handover_folder
from y7edge.export.handover_folder import Guide, Step
from y7edge.export.targets.base import BuildRequest

NAME = "hailo"
SUFFIX = ".hailo.handover"
NEEDS: Mapping[str, str] = {}
PRECISIONS = {"fp32": "fp32"}
PROFILES: tuple[str, ...] = ()
INPUTS = ("float32",)
OUTPUTS = ("heads",)
BATCHES = ("1",)
RUNTIME = "handover"
CHIPS = ("hailo8", "hailo8l", "hailo10h", "hailo15h", "hailo15l")
OPTIONS = {
    "chip": f"The accelerator: {', '.join(CHIPS)}; default: hailo8.",
    "nms": "Where boxes are decoded: cpu (by HailoRT) or none (raw heads, for y7edge); default: "
    "cpu.",
}
REWRITES: tuple[str, ...] = ()
INT8_HEADS = False
CALIBRATES = True
NEEDS_CHECKPOINT = False

CERTAIN_MODEL = "hailo.onnx"

_SCRIPT = Path(__file__).with_name("_hailo_layers.py")
_ADVISED = 1024  # calibration images


def require_fit(_: Manifest, options: Mapping[str, str]) -> None:
    """Raise ConfigError if the value of an option is unknown."""
    _chosen(options)


def build(request: BuildRequest) -> Artifact:
    """Write the folder.

    Raises:
        ConfigError: an option has an unknown value, or the compiler refuses the model.
    """
    import onnx

    chip, nms = _chosen(request.options)
    manifest, calibration = request.manifest, handover_folder.images_of(request)
    model = onnx.load(handover_folder.start(request))
    handover_folder.audited(request, chip)
    source = handover_folder.MODEL
    if nms:
        handover_folder.copy_script(_SCRIPT, request.path / "layers.py")
        handover_folder.write_json(request.path / "nms.json", nms_config(manifest))
    if nms and manifest.nc == 1:
        source = CERTAIN_MODEL
        certain = handover_folder.with_certain_class(model, manifest)
        (request.path / source).write_bytes(certain.SerializeToString(deterministic=True))
    # The parser takes the names of the last nodes, not those of tensors.
    writers = {name: node.name for node in model.graph.node for name in node.output}
    ends = [writers[output.name] for output in manifest.outputs]
    count = len(calibration.images)
    handover_folder.write(request.path / "model.alls", _model_script(count, nms=nms))
    script = _convert_script(source, chip, ends, nms=nms)
    handover_folder.write(request.path / "convert.sh", script)
    folder = request.path / "calibration"
    calibration_files.write(calibration, manifest.input, folder, "nhwc-uint8-npy")
    if count < _ADVISED:
        request.progress(
            f"{count} calibration images: Hailo advises {_ADVISED} or more (--calib-images)"
        )
    return handover_folder.finish(request, _guide(manifest, chip, nms=nms))


def versions() -> dict[str, str]:
    """Return an empty dict: the pipeline records the packages that write the graph."""
    return {}


def _chosen(options: Mapping[str, str]) -> tuple[str, bool]:
    """Return the chip, and whether HailoRT decodes the boxes."""
    chip = handover_folder.choice(options, "chip", CHIPS, CHIPS[0])
    return chip, handover_folder.choice(options, "nms", ("cpu", "none"), "cpu") == "cpu"


def nms_config(manifest: Manifest) -> dict[str, Any]:
    """Return the configuration of HailoRT's NMS; ``layers.py`` fills in ``encoded_layer``."""
    thresholds = manifest.thresholds
    return {
        "nms_scores_th": thresholds.conf,
        "nms_iou_th": thresholds.iou,
        "image_dims": [manifest.input.height, manifest.input.width],
        "max_proposals_per_class": min(thresholds.max_det, 80),
        "background_removal": False,
        "classes": manifest.nc,
        "bbox_decoders": [
            {
                "name": f"bbox_decoder_{level.stride}",
                "w": [width for width, _ in level.anchors],
                "h": [height for _, height in level.anchors],
                "stride": level.stride,
                "encoded_layer": "",
            }
            for level in manifest.levels
        ],
    }


def _model_script(count: int, *, nms: bool) -> str:
    lines = [
        "normalization1 = normalization([0.0, 0.0, 0.0], [255.0, 255.0, 255.0])",
        f"model_optimization_config(calibration, batch_size=2, calibset_size={count})",
    ]
    if nms:
        lines[1:1] = [
            "change_output_activation(sigmoid)",
            'nms_postprocess("nms_layers.json", yolov5, engine=cpu)',
        ]
    return "".join(f"{line}\n" for line in lines)


def _convert_script(source: str, chip: str, ends: list[str], *, nms: bool) -> str:
    nodes = " ".join(handover_folder.word(name) for name in ends)
    fill = "python layers.py model.har\n" if nms else ""
    return f"""#!/bin/sh
# Convert {source} for {chip}, with Hailo's Dataflow Compiler. Writes model.hef.
set -eu
cd "$(dirname "$0")"
# The parser may offer an NMS of its own, with the anchors of other models: no.
yes n | hailo parser onnx {source} --net-name model --hw-arch {chip} \\
    --har-path model.har --end-node-names {nodes}
{fill}hailo optimize model.har --hw-arch {chip} --calib-set-path calibration/images.npy \\
    --model-script model.alls --output-har-path model_optimized.har
hailo compiler model_optimized.har --hw-arch {chip} --output-dir .
"""


def _guide(manifest: Manifest, chip: str, *, nms: bool) -> Guide:
    files = {
        "convert.sh": "the conversion, for a shell in which `hailo` is installed",
        "model.alls": "the model script: pixels / 255"
        + (", sigmoid of the outputs, NMS" if nms else ""),
    }
    if nms and manifest.nc == 1:
        files[CERTAIN_MODEL] = (
            "the model that the compiler reads: `model.onnx`, where the logit of the only class is "
            "a constant, because HailoRT multiplies the objectness by its sigmoid"
        )
    if nms:
        files |= {
            "nms.json": "anchors, strides and thresholds for HailoRT's NMS",
            "layers.py": "writes `nms_layers.json`, with the names of the compiler's layers",
        }
    box = (
        "The .hef contains HailoRT's NMS (`yolov5`, which decodes YOLOv7 too): the output is a "
        "list of boxes for each class, as y0, x0, y1, x1 and score, in fractions of the input. The "
        "thresholds are those of `nms.json`. To decode the boxes with y7edge instead, export with "
        "`--option nms=none`."
        if nms
        else 'The .hef has raw heads in layout NHWC: pass `layout="NHWC"` to `Postprocessor`, and '
        "ask HailoRT for float32 outputs."
    )
    return Guide(
        title=chip.replace("hailo", "Hailo-").upper().replace("HAILO", "Hailo"),
        files=files,
        steps=[
            Step(
                "Install the Dataflow Compiler",
                "From Hailo's Developer Zone (login), in Python 3.10 on Linux: version 3.x for "
                "Hailo-8 and Hailo-8L, 5.x for Hailo-10H and Hailo-15. The levels of optimisation "
                "above 1 need a GPU.",
            ),
            Step(
                "Convert",
                "Parses, quantises with the images in `calibration/`, and compiles; this takes "
                "minutes to hours:",
                ("sh convert.sh",),
            ),
            Step(
                "Compare",
                "The emulator measures the loss of each layer without a device:",
                ("hailo analyze-noise model_optimized.har --data-path calibration/images.npy",),
            ),
            Step("Run it on the device", "", ("hailortcli run model.hef",)),
        ],
        not_run=(
            "Hailo's compiler, its emulator and the accelerator. `nms.json` and `model.alls` have "
            "the keys and commands of Hailo's Model Zoo for yolov7."
        ),
        boxes=box,
        sources=(
            "Hailo Dataflow Compiler User Guide 3.30: parser, optimize, compiler, model scripts",
            "https://github.com/hailo-ai/hailo_model_zoo (MIT): `cfg/alls/generic/yolov7*.alls`, "
            "`cfg/postprocess_config/yolov7*_nms_config.json`, `docs/OPTIMIZATION.rst`",
        ),
    )
