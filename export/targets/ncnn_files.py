"""Target ``ncnn``: a graph (.param) and its weights (.bin), converted by pnnx.

pnnx (https://github.com/pnnx/pnnx) is a program in the package of the same name. The package is not
imported, because it would import torch; only the program is run.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from y7edge.artifact.artifact import Artifact
from y7edge.errors import ConfigError, RuntimeMissing
from y7edge.export import converters
from y7edge.export.targets.base import BuildRequest
from y7edge.runtimes import ncnnrt
from y7edge.runtimes.base import installed_versions

NAME = "ncnn"
SUFFIX = ".param"
NEEDS = {"pnnx": "y7edge[ncnn-export]"}
PRECISIONS = {"fp32": "fp32", "fp16": "fp32", "bf16": "fp32"}
PROFILES: tuple[str, ...] = ()
INPUTS = ("float32",)
OUTPUTS = ("heads", "heads-sigmoid", "decoded")
BATCHES = ("1",)
RUNTIME = "ncnnrt"
OPTIONS: dict[str, str] = {}
REWRITES: tuple[str, ...] = ()
INT8_HEADS = False
CALIBRATES = False
NEEDS_CHECKPOINT = False

_SECONDS = 600  # the largest variant takes 30 s


def build(request: BuildRequest) -> Artifact:
    """Convert the graph, and name its inputs and outputs as in the manifest.

    Raises:
        ConfigError: the outputs would be boxes in bfloat16.
        ExportError: pnnx cannot convert the graph.
        RuntimeMissing: the package pnnx does not contain the program.
    """
    manifest = request.manifest
    if manifest.precision == "bf16" and manifest.outputs[0].role != "head":
        raise ConfigError(
            "target ncnn would store pixels in bfloat16, in steps of 2 above 256: use outputs "
            "heads or heads-sigmoid, or precision fp16"
        )
    main, weights = ncnnrt.files(request.path)[:2]
    with TemporaryDirectory(prefix=".y7edge-", dir=request.folder) as name:
        folder = Path(name)
        graph = folder / "graph.onnx"
        graph.symlink_to(request.model.absolute())
        half = int(manifest.precision == "fp16")
        made = folder / "graph.ncnn.param"
        command = [str(_program()), graph.name, f"fp16={half}"]
        converters.run(command, folder, "pnnx", made.with_suffix(".bin"), _SECONDS)
        names = {"in0": manifest.input.name}
        names |= {f"out{index}": output.name for index, output in enumerate(manifest.outputs)}
        main.write_text(_renamed(made.read_text(), names))
        made.with_suffix(".bin").rename(weights)
    return Artifact(main, replace(manifest, opset=None), (weights,))


def versions() -> dict[str, str]:
    """Return the version of the converter.

    Raises:
        RuntimeMissing: the package pnnx does not contain the program.
    """
    _program()
    return installed_versions("pnnx")


def _program() -> Path:
    """Return the path of pnnx's program."""
    spec = find_spec("pnnx")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        for name in ("pnnx", "pnnx.exe"):
            if (Path(place) / name).is_file():
                return Path(place) / name
    raise RuntimeMissing('the package pnnx has no program: pip install "y7edge[ncnn-export]"')


def _renamed(text: str, names: dict[str, str]) -> str:
    """Rename blobs in a .param file.

    A layer is one line: type, name, number of inputs, number of outputs, inputs, outputs, values
    (https://github.com/Tencent/ncnn/wiki/param-and-model-file-structure).
    """
    lines = text.splitlines()
    for number, line in enumerate(lines[2:], start=2):
        fields = line.split()
        last = 4 + int(fields[2]) + int(fields[3])
        fields[4:last] = [names.get(blob, blob) for blob in fields[4:last]]
        lines[number] = " ".join(fields)
    return "\n".join(lines) + "\n"
