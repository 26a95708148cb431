"""Target ``qualcomm``: ONNX, calibration data and ranges for Qualcomm's QAIRT SDK.

``qairt-converter`` and ``qairt-quantizer`` make a .dlc file, which SNPE runs on all chips of a
generation, and ``qnn-context-binary-generator`` makes a context binary for one
(https://docs.qualcomm.com/doc/80-63442-10/). In precision int8, the SDK gets the float graph, and
the ranges of the proved QDQ graph as quantisation overrides: JSON in the form of AIMET 0.6.1
(https://quic.github.io/aimet-pages/), where real value = (integer + offset) x scale.

The architecture of each chip's tensor processor is from memory, but for qcs6490 and sm8750; the
SDK's document "Supported Snapdragon devices" lists them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from y7edge.artifact.artifact import Artifact
from y7edge.artifact.manifest import Manifest
from y7edge.errors import ConfigError
from y7edge.export import calibration_files, handover_folder
from y7edge.export.handover_folder import Guide, Step
from y7edge.export.targets.base import BuildRequest

if TYPE_CHECKING:
    import onnx

    from y7edge.export.graph.quantize_check import Numbers, Parsed

NAME = "qualcomm"
SUFFIX = ".qualcomm.handover"
NEEDS: Mapping[str, str] = {}
PRECISIONS = {"fp32": "fp32", "int8": "int8"}
PROFILES: tuple[str, ...] = ("u16s8", "u8s8")
INPUTS = ("float32",)
OUTPUTS = ("heads", "heads-sigmoid")
BATCHES = ("1",)
RUNTIME = "handover"
SOCS = {
    "qcs6490": "v68",
    "sm8350": "v68",
    "sm8450": "v69",
    "sm8550": "v73",
    "sm8650": "v75",
    "sm8750": "v79",
    "sm8850": "v81",
}
"""System on chip -> architecture of its Hexagon tensor processor (HTP)."""
OPTIONS = {
    "soc": f"The chip: {', '.join(SOCS)}; default: qcs6490.",
    "activations": "Bits of activations, 16 or 8, if the vendor's quantiser chooses the ranges "
    "(fp32); default: 16. In int8 the profile decides.",
}
REWRITES: tuple[str, ...] = ()
INT8_HEADS = True
CALIBRATES = True
NEEDS_CHECKPOINT = False

FLOAT_MODEL, OVERRIDES = "float.onnx", "overrides.json"

_PROFILE_BITS = {"u8s8": 8, "u16s8": 16}
_DEQUANTIZED = "/dequantized"
_IR_VERSION = 8  # of opset 17


def require_fit(manifest: Manifest, options: Mapping[str, str]) -> None:
    """Raise ConfigError if an option has an unknown value, or does not suit the precision."""
    _soc(options)
    activations = handover_folder.choice(options, "activations", ("16", "8"), "16")
    if manifest.precision == "int8" and "activations" in options:
        raise ConfigError(
            f"option activations={activations} is for precision fp32: in int8 choose a profile "
            f"(--profile {' or '.join(PROFILES)})"
        )


def build(request: BuildRequest) -> Artifact:
    """Write the folder.

    Raises:
        ConfigError: an option has an unknown value, or does not suit the precision.
    """
    import onnx

    manifest = request.manifest
    require_fit(manifest, request.options)
    soc, bits = _soc(request.options), _bits(request)
    calibration = handover_folder.images_of(request)
    names = [manifest.input.name, *(output.name for output in manifest.outputs)]
    for name in names:
        handover_folder.word(name)
    path = handover_folder.start(request)
    handover_folder.audited(request, f"htp-{SOCS[soc]}")
    ranges = manifest.precision == "int8"
    if ranges:
        model, overrides = without_pairs(onnx.load(path))
        content = model.SerializeToString(deterministic=True)
        (request.path / FLOAT_MODEL).write_bytes(content)
        handover_folder.write_json(request.path / OVERRIDES, overrides)
    folder = request.path / "calibration"
    calibration_files.write(calibration, manifest.input, folder, "raw-float32")
    script = _convert_script(manifest, soc, bits, ranges=ranges)
    handover_folder.write(request.path / "convert.sh", script)
    extension = {
        "shared_library_path": "libQnnHtpNetRunExtensions.so",
        "config_file_path": "htp.json",
    }
    handover_folder.write_json(request.path / "context.json", {"backend_extensions": extension})
    device = {"dsp_arch": SOCS[soc]}
    handover_folder.write_json(request.path / "htp.json", {"devices": [device]})
    return handover_folder.finish(request, _guide(soc, bits, ranges=ranges))


def versions() -> dict[str, str]:
    """Return an empty dict: the pipeline records the packages that write the graph."""
    return {}


def _soc(options: Mapping[str, str]) -> str:
    return handover_folder.choice(options, "soc", SOCS, "qcs6490")


def _bits(request: BuildRequest) -> int:
    """Return the number of bits of activations."""
    quantization = request.manifest.quantization
    if quantization is None:
        return int(request.options.get("activations", "16"))
    return _PROFILE_BITS[quantization.profile]


# --- ranges --------------------------------------------------------------------------------------


def without_pairs(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Return a QDQ graph as a float graph, and its ranges as quantisation overrides.

    The weights are those of the QDQ graph, dequantised: with the overrides, a quantiser restores
    the same integers. Tensors and convolutions that stay in float have overrides of type float.
    """
    import onnx
    from onnx import helper, numpy_helper

    from y7edge.export.graph.build import OPSET
    from y7edge.export.graph.quantize_check import parse

    parsed = parse(model)
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    graph = parsed.model.graph
    plain = {name: name.removesuffix(_DEQUANTIZED) for name in parsed.constants}
    for name, constant in parsed.constants.items():
        shape = [1] * constant.values.ndim
        if constant.numbers.scale.ndim:
            shape[constant.axis] = -1
        scale = constant.numbers.scale.reshape(shape).astype(np.float64)
        zero = constant.numbers.zero.reshape(shape).astype(np.float64)
        values = (constant.values.astype(np.float64) - zero) * scale
        arrays[plain[name]] = values.astype(np.float32)
    for node in graph.node:
        node.input[:] = [plain.get(name, name) for name in node.input]
    used = {name for node in graph.node for name in node.input}
    del graph.initializer[:]
    for name in sorted(used & arrays.keys()):
        graph.initializer.append(numpy_helper.from_array(arrays[name], name))
    graph.name = model.graph.name
    result: onnx.ModelProto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=_IR_VERSION
    )
    onnx.checker.check_model(result, full_check=True)
    return result, _overrides(parsed, plain)


def _overrides(parsed: Parsed, plain: Mapping[str, str]) -> dict[str, Any]:
    activations = {name: _encodings(numbers) for name, numbers in parsed.tensors.items()}
    parameters = {
        plain[name]: _encodings(constant.numbers)
        for name, constant in parsed.constants.items()
        if constant.values.dtype == np.int8  # the SDK computes the scales of biases
    }
    floats = [{"bitwidth": 16, "dtype": "float"}]
    for node in parsed.model.graph.node:
        if node.op_type == "Conv" and node.input[1] not in parameters:
            parameters |= dict.fromkeys(node.input[1:], floats)
        for name in node.output:  # else the SDK would quantise it with ranges of its own
            activations.setdefault(name, floats)
    return {
        "version": "0.6.1",
        "activation_encodings": dict(sorted(activations.items())),
        "param_encodings": dict(sorted(parameters.items())),
    }


def _encodings(numbers: Numbers) -> list[dict[str, Any]]:
    """Return one entry for a tensor, or one for each channel.

    Offsets are those of unsigned integers: a symmetric int8 range has the offset -128.
    """
    info = np.iinfo(numbers.zero.dtype)
    entries = []
    for scale, zero in zip(numbers.scale.reshape(-1), numbers.zero.reshape(-1), strict=True):
        low, high = info.min - int(zero), info.max - int(zero)
        entries.append(
            {
                "bitwidth": info.bits,
                "dtype": "int",
                "is_symmetric": str(info.min < 0),
                "max": float(scale) * high,
                "min": float(scale) * low,
                "offset": low,
                "scale": float(scale),
            }
        )
    return entries


# --- the texts -----------------------------------------------------------------------------------


def _convert_script(manifest: Manifest, soc: str, bits: int, *, ranges: bool) -> str:
    name, source = manifest.input.name, FLOAT_MODEL if ranges else handover_folder.MODEL
    layouts = [
        f"--source_model_{kind}_layout {tensor} NCHW --desired_{kind}_layout {tensor} NCHW"
        for kind, tensor in (("input", name), *(("output", o.name) for o in manifest.outputs))
    ]
    if ranges:
        layouts.append(f"--quantization_overrides {OVERRIDES}")
    options = "".join(f" \\\n    {line}" for line in layouts)
    libraries = "$QNN_SDK_ROOT/lib/x86_64-linux-clang"
    return f"""#!/bin/sh
# Convert {source} for {soc} ({SOCS[soc]}) with the QAIRT SDK: model.dlc, and model.bin for HTP.
set -eu
cd "$(dirname "$0")"
: "${{QNN_SDK_ROOT:?run first: . SDK/bin/envsetup.sh}}"
qairt-converter --input_network {source} --output_path model_float.dlc{options}
# The paths in input_list.txt are relative to its folder.
(
    cd calibration
    qairt-quantizer --input_dlc ../model_float.dlc --input_list input_list.txt \\
        --act_bitwidth {bits} --weights_bitwidth 8 --bias_bitwidth 32 \\
        --act_quantizer_calibration min-max --param_quantizer_calibration min-max \\
        --use_per_channel_quantization --output_dlc ../model.dlc
)
qnn-context-binary-generator --model "{libraries}/libQnnModelDlc.so" \\
    --backend "{libraries}/libQnnHtp.so" --dlc_path model.dlc \\
    --config_file context.json --output_dir . --binary_file model
"""


def _guide(soc: str, bits: int, *, ranges: bool) -> Guide:
    files = {
        "convert.sh": "the conversion, for a shell with the QAIRT SDK",
        "context.json": "configuration of `qnn-context-binary-generator`",
        "htp.json": f"the tensor processor of {soc}: {SOCS[soc]}",
    }
    if ranges:
        files |= {
            FLOAT_MODEL: "the model without QuantizeLinear and DequantizeLinear, with the same "
            "weights: what the SDK reads",
            OVERRIDES: "scales and offsets of all tensors and weights, from `model.onnx`",
        }
    text = (
        f"The quantiser takes the ranges of `{OVERRIDES}`; with the images it only fills gaps. "
        if ranges
        else f"The quantiser chooses the ranges: 8 bits for weights, {bits} for activations. "
    )
    return Guide(
        title=f"Qualcomm {soc.upper()} (QAIRT SDK)",
        files=files,
        steps=[
            Step(
                "Start the SDK",
                "Qualcomm AI Runtime SDK 2.36 or later, on Linux x86-64, with its Python packages:",
                (". SDK/bin/envsetup.sh",),
            ),
            Step("Convert", text + "Writes `model.dlc` and `model.bin`:", ("sh convert.sh",)),
            Step(
                "Or prepare the .dlc for SNPE",
                "",
                (
                    "snpe-dlc-graph-prepare --input_dlc model.dlc "
                    f"--output_dlc model_{soc}.dlc --htp_socs {soc}",
                ),
            ),
            Step(
                "Compare with this artifact",
                "The CPU backend computes the quantised network; the outputs are float32 files:",
                (
                    "cd calibration && head -1 input_list.txt > one.txt",
                    "qnn-net-run --backend libQnnCpu.so --dlc_path ../model.dlc "
                    "--input_list one.txt --output_dir ../outputs",
                ),
            ),
            Step(
                "For float16 instead",
                "Add `--float_bitwidth 16` to `qairt-converter`, omit the overrides and "
                "`qairt-quantizer`, and pass `--dlc_path model_float.dlc`.",
            ),
        ],
        not_run=(
            "The QAIRT SDK and the chip. Target `qnn` of y7edge, which needs only packages of "
            "PyPI, runs the same QDQ graph in Qualcomm's emulation of the tensor processor."
            if ranges
            else "The QAIRT SDK and the chip; the vendor's quantiser is not part of the proof."
        ),
        sources=(
            "https://docs.qualcomm.com/doc/80-63442-10/topic/qairt_quantizer.html",
            "https://docs.qualcomm.com/doc/80-63442-10/topic/converters.html",
            "https://docs.qualcomm.com/doc/80-63442-10/topic/quantization.html (offsets)",
            "AIMET, on-target inference (BSD-3): converter, quantizer, context binary",
        ),
    )
