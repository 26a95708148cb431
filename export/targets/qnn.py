"""Target ``qnn``: a context binary for Qualcomm's NPU (HTP), and the ONNX file that refers to it.

ONNX Runtime compiles the graph ahead of time with Qualcomm's execution provider, here on x86-64 as
on a device
(https://github.com/onnxruntime/onnxruntime-qnn/blob/main/docs/execution_providers/QNN-ExecutionProvider.md,
https://onnxruntime.ai/docs/execution-providers/EP-Context-Design.html). The fallback to the CPU is
switched off: if the HTP does not have an operator, the export fails. The artifact runs on chips
with this version of the HTP; Qualcomm lists them
(https://docs.qualcomm.com/doc/80-63442-10/topic/QNN_general_overview.html#supported-snapdragon-devices).

The HTP computes in integers or in float16, so fp16 artifacts are compiled from the fp16 graph. The
same request gives the same bytes if the compiler runs in a process of its own and gets the graph
from memory: it writes counters and the path of the graph into the file.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import y7edge
from y7edge.artifact.artifact import Artifact
from y7edge.artifact.manifest import Manifest
from y7edge.errors import ConfigError
from y7edge.export import converters
from y7edge.export.targets.base import BuildRequest
from y7edge.runtimes import _modelproto
from y7edge.runtimes import qnn as runtime

NAME = "qnn"
SUFFIX = ".qnn.onnx"
NEEDS = runtime.NEEDS
PRECISIONS = {"fp16": "fp16", "int8": "int8"}
REFUSED = {"fp32": "the HTP computes in integers or float16"}
PROFILES = ("u8s8", "u16s8")
INPUTS = ("float32", "uint8")
OUTPUTS = ("heads", "heads-sigmoid", "decoded")
BATCHES = ("1", "N")
RUNTIME = "qnn"
OPTIONS = {
    "htp-arch": "Version of the HTP: v68, v69, v73 (default), v75, v79 or v81.",
    "soc-model": "Number of the chip in Qualcomm's list, such as 43 for SM8550; default: any.",
}
REWRITES: tuple[str, ...] = ("silu-tanh",)  # the HTP's sigmoid is less accurate in fp16
INT8_HEADS = False
CALIBRATES = False
NEEDS_CHECKPOINT = False

_ARCHITECTURES = ("v68", "v69", "v73", "v75", "v79", "v81")
_DEFAULT = "v73"
_SECONDS = 3600
_PROGRAM = (
    "import sys; sys.path.append(sys.argv[1]); from y7edge.runtimes import qnn; "
    "qnn.compile_context(*sys.argv[2:])"
)


def require_fit(manifest: Manifest, options: Mapping[str, str]) -> None:
    """Raise ConfigError if an option is invalid, or the input does not suit the precision."""
    _settings(options)
    if manifest.precision == "int8" and manifest.input.dtype == "uint8":
        raise ConfigError(
            "target qnn takes no uint8 input in int8, because its scale would be computed in "
            "float32: use --input float32, or precision fp16"
        )


def build(request: BuildRequest) -> Artifact:
    """Compile the graph.

    Raises:
        ConfigError: an option is invalid, or does not suit the precision.
        ExportError: the HTP does not have an operator, or the compiler failed.
    """
    manifest, (main, binary) = request.manifest, runtime.files(request.path)
    require_fit(manifest, request.options)
    runtime.require_name(binary)
    settings = _settings(request.options)
    with TemporaryDirectory(prefix=".y7edge-", dir=request.folder) as name:
        folder = Path(name)
        graph, made = folder / "graph.onnx", folder / "made.onnx"
        graph.write_bytes(_modelproto.without_metadata(request.model))
        root = str(Path(y7edge.__file__).parents[1])
        command = [sys.executable, "-I", "-c", _PROGRAM, root, graph.name, made.name]
        timed = Path(f"{made}.json")
        converters.run([*command, json.dumps(settings)], folder, "QNN", timed, _SECONDS)
        compiled, image = json.loads(timed.read_text("utf-8"))
        main.write_bytes(_modelproto.with_attribute(made, runtime.BINARY, binary.name, 1 << 24))
        made.with_name("made_qnn.bin").rename(binary)
    arch, soc = f"v{settings['htp_arch']}", int(settings["soc_model"])
    described = {"htp_arch": arch, "soc_model": soc, "qairt": runtime.versions()["qairt"]}
    seconds = image / manifest.input.images
    request.progress(
        f"compiled for HTP {arch} in {compiled:.1f} s; on this machine an image takes "
        f"{seconds:.1f} s, an evaluation of 100 images {100 * seconds:.0f} s"
    )
    return Artifact(main, replace(manifest, engine=described, opset=None), (binary,))


def versions() -> dict[str, str]:
    """Return the versions of ONNX Runtime, of Qualcomm's package, and of the SDK in it."""
    return runtime.versions()


def _settings(options: Mapping[str, str]) -> dict[str, str]:
    """Return the options of the execution provider."""
    arch, soc = options.get("htp-arch", _DEFAULT), options.get("soc-model", "0")
    if arch not in _ARCHITECTURES:
        known = ", ".join(_ARCHITECTURES)
        raise ConfigError(f"htp-arch is {arch[:16]!r}, expected {known}: see --help of the target")
    if not re.fullmatch(r"[0-9]{1,4}", soc):
        raise ConfigError(f"soc-model is {soc[:16]!r}, expected a number, such as 43 for SM8550")
    return {
        "htp_arch": arch.removeprefix("v"),
        "soc_model": soc,
        "htp_graph_finalization_optimization_mode": "3",  # takes longest, for the best graph
        "offload_graph_io_quantization": "0",  # inputs and outputs too are converted on the HTP
    }
