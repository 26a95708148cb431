"""Target ``edgetpu``: a .tflite file of integers for Google's Coral Edge TPU, and its compiler.

The compiler (https://coral.ai/docs/edgetpu/compiler/) is a closed program for x86-64 Debian. If
``edgetpu_compiler`` is on the PATH, the target runs it and reads which operators it mapped; else it
hands over the file and the command. The chip has about 8 MiB of memory for weights, of which the
compiler needs some; what does not fit is sent over USB or PCIe in every run. Large inputs are known
to fail in the compiler. Therefore only small models at up to 320 pixels are accepted. It refuses
newer versions of resizing (https://github.com/google-coral/edgetpu/issues/187), so the file has
version 1, which computes the same.

The compiler was not run by the authors. Its output is read as it is printed in public reports
(https://github.com/google-coral/edgetpu/issues/427, 60 and 671).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from y7edge.artifact.artifact import Artifact
from y7edge.artifact.manifest import Manifest
from y7edge.errors import ConfigError, ExportError
from y7edge.export import converters, handover_folder
from y7edge.export.handover_folder import Guide, Step
from y7edge.export.targets import litert_file
from y7edge.export.targets.base import BuildRequest

NAME = "edgetpu"
SUFFIX = ".edgetpu.handover"
NEEDS = litert_file.NEEDS
misplaced = litert_file.misplaced
PRECISIONS = {"int8": "int8"}
PROFILES = litert_file.PROFILES
INPUTS = ("float32",)
OUTPUTS = ("heads",)
BATCHES = ("1",)
RUNTIME = "handover"
OPTIONS = {
    "min-runtime": "Oldest version of the Edge TPU runtime that must run the file, such as 13.",
    "compile": "Whether to run edgetpu_compiler if it is installed: yes or no; default: yes.",
}
REWRITES: tuple[str, ...] = ()
INT8_HEADS = True
CALIBRATES = False
NEEDS_CHECKPOINT = True

MODEL, COMPILED, PLACEMENT = "model.tflite", "model_edgetpu.tflite", "placement.json"

_COMPILER = "edgetpu_compiler"
_MEMORY = 8 << 20  # bytes on the chip
_LARGEST = 320  # pixels
_SECONDS = 600  # that the compiler may take for one attempt
_ATTEMPTS = 6  # -d shortens the part for the Edge TPU until it can be compiled

_VERSION = re.compile(r"^Edge TPU Compiler version (\S+)", re.MULTILINE)
_ROW = re.compile(r"^([A-Z][A-Z0-9_]*)\s+([0-9]+)\s+(\S.*)$", re.MULTILINE)
_USED = re.compile(
    r"^(On-chip memory used for caching|Off-chip memory used for streaming uncached)"
    r" model parameters: ([0-9.]+)(B|KiB|MiB|GiB)$",
    re.MULTILINE,
)
_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_MAPPED = "Mapped to Edge TPU"


@dataclass(frozen=True)
class Assignment:
    """Where the operators of a compiled file run, as the compiler prints it.

    Attributes:
        compiler: Version of the compiler.
        tpu: Kind of operator -> number on the Edge TPU.
        cpu: Kind, number and reason of operators on the CPU.
        on_chip: Bytes of parameters that stay on the chip.
        streamed: Bytes of parameters that are sent in every run.
    """

    compiler: str
    tpu: dict[str, int]
    cpu: tuple[dict[str, str | int], ...]
    on_chip: int
    streamed: int


def require_fit(manifest: Manifest, options: Mapping[str, str]) -> None:
    """Raise ConfigError if the model or the input is too large, or an option is invalid."""
    parameters, image = manifest.source.parameters, manifest.input
    if parameters > _MEMORY:
        raise ConfigError(
            f"{manifest.model} has {parameters / 1e6:.1f} million parameters, and the Edge TPU has "
            f"memory for about {_MEMORY >> 20} million: the others would be sent to it in every "
            "run. Use yolov7-tiny, or a model with fewer channels (y7edge train --width)"
        )
    if max(image.height, image.width) > _LARGEST:
        raise ConfigError(
            f"the input is {image.height}x{image.width}, and the compiler of the Edge TPU fails on "
            f"large inputs: use at most {_LARGEST} pixels (--imgsz {_LARGEST})"
        )
    if not re.fullmatch(r"[1-9][0-9]?", options.get("min-runtime", "13")):
        raise ConfigError(
            f"option min-runtime is {options['min-runtime'][:64]!r}, expected a version such as 13"
        )
    handover_folder.choice(options, "compile", ("yes", "no"), "yes")


def build(request: BuildRequest) -> Artifact:
    """Convert the model, and compile it if the compiler is installed.

    Raises:
        ConfigError: the model is too large, or an option is invalid.
        ExportError: a converter failed, or no operator is mapped to the Edge TPU.
        RuntimeMissing: there is no interpreter with litert-torch.
    """
    require_fit(request.manifest, request.options)
    folder, found = request.path, None
    folder.mkdir()
    manifest = litert_file.convert_for_compiler(request, folder / MODEL, half_pixels=False)
    program = None if request.options.get("compile") == "no" else shutil.which(_COMPILER)
    arguments = _arguments(request.options)
    if program is None:
        request.progress(f"{_COMPILER} was not run: README.md has the command")
    else:
        found = compile_model(program, folder / MODEL, folder / COMPILED, arguments)
        _report(found, request)
        handover_folder.write_json(folder / PLACEMENT, asdict(found))
    guide = _guide(found, arguments, manifest)
    return handover_folder.finish(replace(request, manifest=manifest), guide, MODEL)


def compile_model(program: str, source: Path, made: Path, arguments: list[str]) -> Assignment:
    """Compile a .tflite file; return where its operators run.

    Args:
        program: path of edgetpu_compiler.
        source: the file to compile.
        made: path of the compiled file, in a folder that exists.
        arguments: further arguments of the compiler.

    Raises:
        ExportError: the compiler failed, or its file or its output cannot be used.
    """
    with TemporaryDirectory(prefix=".y7edge-", dir=made.parent) as name:
        folder = Path(name)
        compiled = folder / f"{source.stem}_edgetpu.tflite"
        command = [program, *arguments, "-o", str(folder.absolute()), str(source.absolute())]
        try:
            printed = converters.run(command, folder, _COMPILER, compiled, _ATTEMPTS * _SECONDS)
            found = _mapping(printed)
            _check(source, compiled, found)
        except ExportError as error:
            raise ExportError(
                f"{error}; to hand the file over without compiling it: --option compile=no"
            ) from error
        compiled.rename(made)
    return found


def versions() -> dict[str, str]:
    """Return the versions of the converter's packages.

    Raises:
        RuntimeMissing: there is no interpreter with litert-torch.
    """
    return litert_file.versions()


def _arguments(options: Mapping[str, str]) -> list[str]:
    least = ["-m", options["min-runtime"]] if "min-runtime" in options else []
    return ["-s", "-a", "-d", "-t", str(_SECONDS), *least]


def _mapping(printed: str) -> Assignment:
    """Read the compiler's output: the table of operators (-s) and the memory of parameters."""
    version, rows = _VERSION.search(printed), _ROW.findall(printed)
    used = {
        kind.partition("-")[0]: round(float(size) * _UNITS[unit])
        for kind, size, unit in _USED.findall(printed)
    }
    if version is None or not rows or used.keys() != {"On", "Off"}:
        raise ExportError(f"the output of {_COMPILER} cannot be read: use version 16")
    tpu: dict[str, int] = {}
    cpu: list[dict[str, str | int]] = []
    for kind, count, status in rows:
        if status.strip() == _MAPPED:
            tpu[kind] = tpu.get(kind, 0) + int(count)
        else:
            cpu.append({"kind": kind, "count": int(count), "why": status.strip()[:200]})
    return Assignment(version[1], dict(sorted(tpu.items())), tuple(cpu), used["On"], used["Off"])


def _check(source: Path, compiled: Path, found: Assignment) -> None:
    """Raise ExportError unless the compiled file has commands, and the inputs and outputs."""
    if not litert_file.kinds(compiled, _COMPILER)["CUSTOM"] or not found.tpu:
        raise ExportError(f"{_COMPILER} mapped no operator to the Edge TPU")
    if litert_file.ends(source, "y7edge") != litert_file.ends(compiled, _COMPILER):
        raise ExportError(f"the file of {_COMPILER} has other inputs and outputs than its source")


def _report(found: Assignment, request: BuildRequest) -> None:
    on_cpu = sum(int(row["count"]) for row in found.cpu)
    total = sum(found.tpu.values()) + on_cpu
    request.progress(
        f"{_COMPILER} {found.compiler} maps {total - on_cpu} of {total} operators to the Edge TPU; "
        f"parameters: {found.on_chip / 2**20:.2f} MiB on the chip, "
        f"{found.streamed / 2**20:.2f} MiB sent in every run"
    )
    if found.cpu:
        first = found.cpu[0]
        request.progress(
            f"warning: {on_cpu} operators stay on the CPU, the first is {first['kind']} "
            f"({first['why']}): each change between both costs a transfer"
        )


def _guide(found: Assignment | None, arguments: list[str], manifest: Manifest) -> Guide:
    """Return the README's sections."""
    placed = (
        f"The model has {manifest.source.parameters / 1e6:.2f} million parameters, one byte each, "
        f"and the chip about {_MEMORY >> 20} MiB. The compiler prints which operators it maps, and "
        "how many parameters do not fit."
    )
    files = {}
    if found is not None:
        files = {COMPILED: "the compiled model", PLACEMENT: "where its operators run"}
        rows = [f"| {kind} | {count} | Edge TPU |" for kind, count in found.tpu.items()]
        rows += [f"| {row['kind']} | {row['count']} | CPU: {row['why']} |" for row in found.cpu]
        placed += (
            f"\n\nVersion {found.compiler} keeps {found.on_chip:,} bytes of them on the chip, and "
            f"sends {found.streamed:,} in every run.\n\n| operator | number | runs on |\n"
            "|---|---:|---|\n" + "\n".join(rows)
        )
    step = Step(
        "Compile",
        "On x86-64 Debian or Ubuntu, with the package edgetpu-compiler of Google's apt repository. "
        f"It writes `{COMPILED}`.",
        (" ".join((_COMPILER, *arguments, MODEL)),),
    )
    return Guide(
        title="the Coral Edge TPU",
        steps=(step,),
        files=files,
        not_run="the compiled model, which needs the device"
        + ("." if found else "; and the compiler, which is a closed program of Google."),
        sources=("https://coral.ai/docs/edgetpu/compiler/",),
        sections={"Placement": placed},
    )
