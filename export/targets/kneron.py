"""Target ``kneron``: ONNX, calibration images and a script for Kneron's toolchain container.

The toolchain (Docker image ``kneron/toolchain``) reads ONNX of opsets 8 to 18, quantises it with
images, and compiles a .nef file (https://doc.kneron.com/docs/toolchain/manual_1_overview/). The
operators of each chip are in its table "Hardware Supported Operators":

* kl520: neither Sigmoid nor Mul nor Slice, so only models with LeakyReLU or ReLU.
* kl720: no resizing of both axes at once: rewrite ``resize-per-axis``.
* all: slices without steps only: the variants with four levels need the rewrite ``reorg-conv6``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from y7edge.artifact.artifact import Artifact
from y7edge.artifact.manifest import Manifest
from y7edge.export import calibration_files, handover_folder
from y7edge.export.handover_folder import Guide, Step
from y7edge.export.targets.base import BuildRequest

NAME = "kneron"
SUFFIX = ".kneron.handover"
NEEDS: Mapping[str, str] = {}
PRECISIONS = {"fp32": "fp32"}
PROFILES: tuple[str, ...] = ()
INPUTS = ("float32",)
OUTPUTS = ("heads",)
BATCHES = ("1",)
RUNTIME = "handover"
CHIPS = ("kl520", "kl530", "kl630", "kl720", "kl730")
OPTIONS = {"chip": f"The NPU: {', '.join(CHIPS)}; default: kl730."}
REWRITES: tuple[str, ...] = ()
INT8_HEADS = False
CALIBRATES = True
NEEDS_CHECKPOINT = False

_SCRIPT = Path(__file__).with_name("_kneron_convert.py")


def require_fit(_: Manifest, options: Mapping[str, str]) -> None:
    """Raise ConfigError if the value of an option is unknown."""
    _chip(options)


def build(request: BuildRequest) -> Artifact:
    """Write the folder.

    Raises:
        ConfigError: the chip is unknown, or its toolchain refuses the model.
    """
    chip = _chip(request.options)
    calibration = handover_folder.images_of(request)
    handover_folder.start(request)
    handover_folder.audited(request, chip)
    image = request.manifest.input
    folder = request.path / "calibration"
    calibration_files.write(calibration, image, folder, "images")
    handover_folder.copy_script(_SCRIPT, request.path / "convert.py")
    settings = {
        "platform": chip.removeprefix("kl"),
        "input": image.name,
        "outputs": [output.name for output in request.manifest.outputs],
    }
    handover_folder.write_json(request.path / "convert.json", settings)
    return handover_folder.finish(request, _guide(chip))


def versions() -> dict[str, str]:
    """Return an empty dict: the pipeline records the packages that write the graph."""
    return {}


def _chip(options: Mapping[str, str]) -> str:
    return handover_folder.choice(options, "chip", CHIPS, CHIPS[-1])


def _guide(chip: str) -> Guide:
    int16 = (
        ()
        if chip == "kl520"
        else (
            "python convert.py --bits mixbw              # slower, and more memory",
            "python convert.py --bits int16              # slowest",
        )
    )
    return Guide(
        title=f"Kneron {chip.upper()}",
        files={
            "convert.py": "the conversion, for Python inside Kneron's container",
            "convert.json": "platform, input and outputs, which `convert.py` reads",
        },
        steps=[
            Step(
                "Start the toolchain",
                "The container sees this folder as `/data1`. Limit its memory, because "
                "quantisation can take more than the machine has:",
                (
                    'docker run --rm -it --memory 16g -v "$PWD":/data1 kneron/toolchain:latest',
                    "cd /data1",
                    "conda activate onnx1.13",
                ),
            ),
            Step(
                "Convert",
                "The script puts the chip's normalisation in front of the model, optimises it, "
                "prints the operators that the CPU would run and an estimate of the speed, "
                "quantises, compares the simulated chip with the float model, and compiles:",
                ("python convert.py",),
            ),
            Step(
                "Check the printed cosines",
                "They compare the outputs of one image. If one is below about 0.99, try another "
                "range method, then more bits:",
                (
                    "python convert.py --range-method mmse",
                    "python convert.py --quantize-mode default",
                    *int16,
                ),
            ),
            Step(
                "Run `kneron/` on the device",
                "Load the .nef file with Kneron PLUS. Send images of the size of the input, "
                "letterboxed as below, with `normalize_mode=KP_NORMALIZE_KNERON`, "
                "`resize_mode=KP_RESIZE_DISABLE` and `padding_mode=KP_PADDING_DISABLE`, and ask "
                "for float outputs in the order of channels `KP_CHANNEL_ORDERING_CHW`.",
            ),
        ],
        not_run=(
            "Kneron's toolchain, its simulator and the chip. `convert.py` was written from the "
            "documents below; the inserted normalisation is tested in ONNX Runtime."
        ),
        sources=(
            "https://doc.kneron.com/docs/toolchain/manual_3_onnx/ (optimize, evaluate)",
            "https://doc.kneron.com/docs/toolchain/manual_4_bie/ (analysis, kneron_inference)",
            "https://doc.kneron.com/docs/toolchain/quantization/1.3_Optimizing_Quantization_Modes/",
            "https://doc.kneron.com/docs/toolchain/manual_5_nef/ (compile)",
            "https://doc.kneron.com/docs/toolchain/appendix/operators/ (operators of each chip)",
            "https://doc.kneron.com/docs/plus_python/api_document/ (normalisation: "
            "KP_NORMALIZE_KNERON is RGB/256 - 0.5)",
        ),
    )
