"""Target ``rknn``: one .rknn file for a Rockchip NPU, compiled by rknn-toolkit2.

The toolkit (https://github.com/airockchip/rknn-toolkit2, doc/ "RKNN SDK API reference") runs in an
interpreter of its own. It takes the float graph for fp16, and the QDQ graph for int8: with
``do_quantization=False`` it keeps the scales of the graph. If it quantises the float graph itself,
the mAP drops four times as much (docs/int8-vendors.md).

The input is uint8 with channels last; the NPU divides it by 255. With outputs ``heads-sigmoid``,
the file suits the YOLOv7 decoder of Rockchip's model zoo
(https://github.com/airockchip/rknn_model_zoo, examples/yolov7). There is one kind of outputs in a
file: if the logits were an output too, the toolkit would not fuse the sigmoid with its convolution.

The graph is kept beside the file, because the simulator cannot read .rknn files. Files of two
builds differ in about 2,000 bytes, into which the compiler copies addresses of its memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from y7edge import interpreters
from y7edge.artifact.artifact import Artifact
from y7edge.artifact.manifest import Manifest
from y7edge.detect.selftest import RECIPE_8BIT
from y7edge.errors import ConfigError, ExportError
from y7edge.export import converters
from y7edge.export.targets.base import BuildRequest
from y7edge.runtimes import rknnrt
from y7edge.runtimes._rknn_simulator import BUILD_SECONDS, CHILD, LOG, complaint

NAME = "rknn"
SUFFIX = ".rknn"
NEEDS: Mapping[str, str] = {}
PRECISIONS = {"fp16": "fp32", "int8": "int8"}
PROFILES = ("u8s8",)
INPUTS = ("float32",)
OUTPUTS = ("heads", "heads-sigmoid")
BATCHES = ("1",)
RUNTIME = "rknnrt"
OPTIONS = {"platform": f"the chip: {', '.join(rknnrt.PLATFORMS)}; rk3588 if omitted"}
REWRITES: tuple[str, ...] = ()
INT8_HEADS = False
CALIBRATES = False
NEEDS_CHECKPOINT = False

_OPSET = 19  # the newest one that rknn-toolkit2 2.5.0 reads
_PACKAGES = ("rknn-toolkit2>=2.5", "onnx")
_INTEGERS_ONLY = ("rv1103", "rv1103b", "rv1106", "rv1106b")
_FLOAT_ONLY = ("rk2118",)  # its compiler crashes on int8 inputs
_MAGIC = b"RKNN"
_TAIL = 1 << 16


def require_fit(manifest: Manifest, options: Mapping[str, str]) -> None:
    """Raise ConfigError if the platform is unknown, or does not compute in this precision."""
    _check(manifest, _platform(options))


def build(request: BuildRequest) -> Artifact:
    """Compile the graph in the toolkit's interpreter.

    Raises:
        ConfigError: the platform does not exist, or does not compute in this precision.
        ExportError: the toolkit cannot convert the graph, or wrote a broken file.
        RuntimeMissing: there is no interpreter with rknn-toolkit2.
    """
    chip = _platform(request.options)
    _check(request.manifest, chip)
    python = _interpreter()
    interpreters.require_packages(python, _PACKAGES, rknnrt.RECIPE)
    graph = rknnrt.graph_of(request.path)
    graph.write_bytes(request.model.read_bytes())
    with TemporaryDirectory(prefix=".y7edge-", dir=request.folder) as name:
        made = Path(name) / "model.rknn"
        command = [str(python), "-I", str(CHILD), "build", chip, str(graph.absolute()), made.name]
        try:
            converters.run(command, made.parent, "rknn-toolkit2", made, BUILD_SECONDS)
        except ExportError as error:
            if why := complaint(made.parent / LOG):
                raise ExportError(f"{error}; it printed: {why}") from error
            raise
        _require_whole(made, chip)
        made.rename(request.path)
    return Artifact(request.path, _described(request.manifest, chip), (graph,))


def versions() -> dict[str, str]:
    """Return the versions of the toolkit and of its onnx package.

    Raises:
        RuntimeMissing: there is no interpreter with rknn-toolkit2.
    """
    found = interpreters.require_packages(_interpreter(), _PACKAGES, rknnrt.RECIPE)
    return {"rknn-toolkit2": found["rknn-toolkit2"], "rknn-toolkit2's onnx": found["onnx"]}


def _interpreter() -> Path:
    return rknnrt.toolkit()[0]


def _platform(options: Mapping[str, str]) -> str:
    """Return the chip; raise ConfigError if the toolkit does not know it."""
    chip = options.get("platform", "rk3588")
    if chip not in rknnrt.PLATFORMS:
        raise ConfigError(
            f"target rknn has no platform {chip!r:.40}; choose from {', '.join(rknnrt.PLATFORMS)}"
        )
    return chip


def _check(manifest: Manifest, chip: str) -> None:
    """Raise ConfigError if the chip does not compute in the precision of the graph.

    In ``y7edge build``, the manifest has the probes of the ONNX artifact.
    """
    kept = manifest.quantization.kept if manifest.quantization else ()
    if chip in _INTEGERS_ONLY and (manifest.precision != "int8" or kept):
        found = f"{len(kept)} convolutions in float" if kept else f"precision {manifest.precision}"
        raise ConfigError(
            f"platform {chip} computes in integers only, and the graph has {found}: use "
            "--precision int8 --quantize-heads, and if the mAP drops too much, train with --qat"
        )
    if chip in _FLOAT_ONLY and manifest.precision == "int8":
        raise ConfigError(
            f"the compiler for platform {chip} does not take int8 graphs with an image as input: "
            "use --precision fp16"
        )
    if (manifest.opset or 0) > _OPSET:
        raise ConfigError(
            f"rknn-toolkit2 reads ONNX opsets up to {_OPSET}, and the graph has {manifest.opset}: "
            "use profile u8s8"
        )
    if any(probe.recipe != RECIPE_8BIT for probe in manifest.probes):
        raise ConfigError(
            "target rknn takes 8-bit images, and the probes of the ONNX artifact are not 8-bit: "
            "use `y7edge export` with the checkpoint"
        )


def _require_whole(path: Path, chip: str) -> None:
    """Raise ExportError unless a file begins and ends like a .rknn file for this chip.

    The toolkit itself accepts truncated files: ``load_rknn`` returns 0 for them. A file ends with a
    JSON object, which names the chip.
    """
    with path.open("rb") as stream:
        begin = stream.read(len(_MAGIC))
        stream.seek(max(0, path.stat().st_size - _TAIL))
        end = stream.read().rstrip()
    if begin != _MAGIC or not end.endswith(b"}") or f'["{chip}"]'.encode() not in end:
        raise ExportError(
            f"rknn-toolkit2 wrote a broken file of {path.stat().st_size:,} bytes: check the space "
            "on the disk, and export again"
        )


def _described(manifest: Manifest, chip: str) -> Manifest:
    """Return the manifest of a file with uint8 inputs and float32 outputs for a chip."""
    image = replace(manifest.input, layout="NHWC", dtype="uint8", scale=1.0, zero_point=0)
    outputs = tuple(replace(output, dtype="float32") for output in manifest.outputs)
    return replace(manifest, input=image, outputs=outputs, engine={"platform": chip})
