"""Target ``ethosu``: a .tflite file of integers, compiled by Vela for one Arm Ethos-U NPU.

Vela (https://gitlab.arm.com/artificial-intelligence/ethos-u/ethos-u-vela, OPTIONS.md) replaces the
operators that the NPU computes by custom operators with its commands, and leaves the others to the
CPU. It succeeds even if all stay on the CPU, so the placement is read from its report
(``--verbose-performance``), and compared with the operators in the file that it wrote. Vela runs in
an interpreter of its own. Its cycles are those of a performance model, not measured.

The compiled file runs only on the device. ``model.tflite``, from which it is compiled, is proved
on the CPU.
"""

from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from y7edge import interpreters
from y7edge.artifact.artifact import Artifact
from y7edge.artifact.manifest import Manifest
from y7edge.errors import ConfigError, ExportError
from y7edge.export import converters, handover_folder
from y7edge.export.handover_folder import Guide, Step
from y7edge.export.targets import litert_file
from y7edge.export.targets.base import BuildRequest
from y7edge.files import read_regular, reason
from y7edge.text import one_line

NAME = "ethosu"
SUFFIX = ".ethosu.handover"
NEEDS = litert_file.NEEDS
misplaced = litert_file.misplaced
PRECISIONS = {"int8": "int8"}
PROFILES = litert_file.PROFILES
INPUTS = ("float32",)
OUTPUTS = ("heads",)
BATCHES = ("1",)
RUNTIME = "handover"
REWRITES: tuple[str, ...] = ()
INT8_HEADS = True
CALIBRATES = False
NEEDS_CHECKPOINT = True

MODEL, COMPILED, PLACEMENT = "model.tflite", "model_vela.tflite", "placement.json"

# Accelerator -> system configuration and memory mode, which Vela 5.2 takes by default.
_SETUPS = {
    **dict.fromkeys(
        ("ethos-u55-32", "ethos-u55-64", "ethos-u55-128", "ethos-u55-256"),
        ("Ethos_U55_High_End_Embedded", "Shared_Sram"),
    ),
    **dict.fromkeys(
        ("ethos-u65-256", "ethos-u65-512"), ("Ethos_U65_Client_Server", "Dedicated_Sram_384KB")
    ),
    **dict.fromkeys(
        ("ethos-u85-128", "ethos-u85-256", "ethos-u85-512", "ethos-u85-1024", "ethos-u85-2048"),
        ("Ethos_U85_SYS_DRAM_Mid", "Dedicated_Sram_384KB"),
    ),
}
_ACCELERATOR = "ethos-u65-256"  # of the i.MX 93
OPTIONS = {
    "accelerator": f"One of {', '.join(_SETUPS)}; default: {_ACCELERATOR}.",
    "system-config": "System configuration: clock and bandwidths; default: Vela's.",
    "memory-mode": "Memory mode: where weights and activations are; default: Vela's.",
    "config": "Vela configuration file (.ini) of the board; default: Arm/vela.ini of Vela.",
    "cpu": "Whether operators may stay on the CPU: refuse or allow; default: refuse.",
}

_PACKAGE = "ethos-u-vela"
_NEEDED = f"{_PACKAGE}>=5.2"
_RECIPE = "python -m venv ENV && ENV/bin/pip install ethos-u-vela==5.2.0"
_SECONDS = 1800
_LARGEST = 1 << 20  # bytes of a configuration file
_WORD = re.compile(r"[A-Za-z0-9_]{1,64}")
_REFUSED = re.compile(r"operator: \w+, ofm: '(.*)'\nReason: (.*)")
_CLOCK = "core_clock"
_AREAS = {
    "sram": "SRAM",
    "dram": "DRAM",
    "on_chip_flash": "on-chip flash",
    "off_chip_flash": "off-chip flash",
}


@dataclass(frozen=True)
class Setup:
    """The hardware for which Vela compiles.

    Attributes:
        accelerator: Name of the NPU and its number of MACs per cycle.
        system_config: Name of a section ``System_Config`` of the configuration file.
        memory_mode: Name of a section ``Memory_Mode``.
        config: The configuration file; None: the one in Vela.
    """

    accelerator: str
    system_config: str
    memory_mode: str
    config: Path | None = None


@dataclass(frozen=True)
class Placement:
    """Where the operators of a compiled file run, as Vela reports it.

    Attributes:
        operators: Kind of operator -> number on the NPU and on the CPU, and estimated cycles.
        cpu: Name, kind and reason of each operator on the CPU.
        memory: Memory area -> bytes.
        macs: Multiplications of one run.
        estimated_cycles: Cycles of one run on the NPU, by Vela's performance model.
        estimated_seconds: Time of one run on the NPU, by the same model.
        clock: Clock of the NPU in the system configuration, in Hz.
    """

    operators: dict[str, dict[str, int]]
    cpu: tuple[dict[str, str], ...]
    memory: dict[str, int]
    macs: int
    estimated_cycles: int
    estimated_seconds: float
    clock: float

    @property
    def npu(self) -> int:
        """Number of operators on the NPU."""
        return sum(counts["npu"] for counts in self.operators.values())

    def used(self) -> str:
        """Return the used memory, for messages."""
        sizes = [f"{n / 2**20:.1f} MiB {_AREAS[area]}" for area, n in self.memory.items() if n]
        return ", ".join(sizes)

    def estimate(self) -> str:
        """Return the estimated cycles and time, for messages."""
        milliseconds, megahertz = 1000 * self.estimated_seconds, self.clock / 1e6
        return f"{self.estimated_cycles:,} cycles, {milliseconds:.1f} ms at {megahertz:g} MHz"


def require_fit(_: Manifest, options: Mapping[str, str]) -> None:
    """Raise ConfigError if the value of an option is invalid."""
    setup_of(options)


def build(request: BuildRequest) -> Artifact:
    """Convert the model, compile it, and write the placement.

    Raises:
        ConfigError: an option is invalid.
        ExportError: a converter failed, or operators stay on the CPU.
        RuntimeMissing: an interpreter with litert-torch or Vela was not found.
    """
    setup, python = setup_of(request.options), _interpreter()
    version = interpreters.require_packages(python, [_NEEDED], _RECIPE)[_PACKAGE]
    folder = request.path
    folder.mkdir()
    manifest = litert_file.convert_for_compiler(request, folder / MODEL)
    found = compile_model(python, folder / MODEL, folder / COMPILED, setup)
    _require_npu(found, setup, request)
    config = None
    if setup.config is not None:
        config = shutil.copyfile(setup.config, folder / "vela.ini").name
    record = {
        "compiler": f"{_PACKAGE} {version}",
        **{**asdict(setup), "config": config},
        "npu_operators": found.npu,
        "cpu_operators": len(found.cpu),
        **asdict(found),
        "note": "estimates are those of Vela's performance model, not measured",
    }
    handover_folder.write_json(folder / PLACEMENT, record)
    guide = _guide(found, setup, version, config)
    return handover_folder.finish(replace(request, manifest=manifest), guide, MODEL)


def compile_model(python: Path, source: Path, made: Path, setup: Setup) -> Placement:
    """Compile a .tflite file with Vela; return where its operators run.

    Args:
        python: an interpreter with Vela.
        source: the file to compile.
        made: path of the compiled file, in a folder that exists.
        setup: the hardware.

    Raises:
        ExportError: Vela failed, or its file or its report cannot be used.
    """
    with TemporaryDirectory(prefix=".y7edge-", dir=made.parent) as name:
        folder = Path(name)
        output = folder / "output"
        command = [str(python), "-I", "-m", "ethosu.vela", str(source.absolute())]
        command += ["--output-dir", str(output), *_arguments(setup, setup.config)]
        compiled = output / f"{source.stem}_vela.tflite"
        printed = converters.run(command, folder, "Vela", compiled, _SECONDS)
        found = _placement(output, source.stem, printed)
        _check(source, compiled, found)
        compiled.rename(made)
    return found


def versions() -> dict[str, str]:
    """Return the versions of the packages of both interpreters.

    Raises:
        RuntimeMissing: an interpreter with litert-torch or Vela was not found.
    """
    vela = interpreters.require_packages(_interpreter(), [_NEEDED], _RECIPE)
    return {**litert_file.versions(), **vela}


def _interpreter() -> Path:
    return interpreters.find_interpreter(NAME, "ethosu", _RECIPE)


def setup_of(options: Mapping[str, str]) -> Setup:
    """Read the options of the target; raise ConfigError if one is invalid."""
    accelerator = handover_folder.choice(options, "accelerator", _SETUPS, _ACCELERATOR)
    system, memory = _SETUPS[accelerator]
    system, memory = options.get("system-config", system), options.get("memory-mode", memory)
    for option, value in (("system-config", system), ("memory-mode", memory)):
        if not _WORD.fullmatch(value):
            raise ConfigError(
                f"option {option} is {value[:64]!r}, expected a name of the configuration file, "
                "such as Ethos_U55_High_End_Embedded or Shared_Sram"
            )
    handover_folder.choice(options, "cpu", ("refuse", "allow"), "refuse")
    config = Path(options["config"]) if "config" in options else None
    if config is not None:
        _require_sections(config, (f"System_Config.{system}", f"Memory_Mode.{memory}"))
    return Setup(accelerator, system, memory, config and config.absolute())


def _require_sections(config: Path, expected: Sequence[str]) -> None:
    """Raise ConfigError unless a configuration file has these sections."""
    try:
        text = read_regular(config, _LARGEST).decode()
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the option config: {config}: {reason(error)}") from error
    found = re.findall(r"^\[([\w.]+)\]", text, re.MULTILINE)
    for section in expected:
        if section not in found:
            kind = section.partition(".")[0]
            known = [name.partition(".")[2] for name in found if name.startswith(f"{kind}.")]
            raise ConfigError(
                f"{config} has no section [{section}]; it has for {kind}: "
                f"{', '.join(known[:20]) or 'none'}"
            )


def _arguments(setup: Setup, config: Path | str | None) -> list[str]:
    return [
        *("--accelerator-config", setup.accelerator),
        *("--config", str(config or "Arm/vela.ini")),
        *("--system-config", setup.system_config),
        *("--memory-mode", setup.memory_mode),
        "--verbose-performance",
    ]


def _placement(output: Path, stem: str, printed: str) -> Placement:
    """Read Vela's tables: one row for each operator, and one row for the whole file."""
    try:
        (summary,) = output.glob(f"{stem}_summary_*.csv")
        (whole,) = _rows(summary)
        rows = _rows(output / f"{stem}_per-layer.csv")
        reasons = dict(_REFUSED.findall(printed))
        operators: dict[str, dict[str, int]] = {}
        cpu = []
        for row in rows:
            counts = operators.setdefault(
                row["Original Operator"], {"npu": 0, "cpu": 0, "estimated_cycles": 0}
            )
            counts[row["Target"].lower()] += 1
            counts["estimated_cycles"] += round(float(row["Op Cycles"]))
            if row["Target"] == "CPU":
                name = row["Name"]
                why = one_line(reasons.get(name, "not reported"), 200)
                cpu.append(
                    {"name": one_line(name, 200), "kind": row["Original Operator"], "why": why}
                )
        return Placement(
            dict(sorted(operators.items())),
            tuple(cpu),
            {area: round(1024 * float(whole[f"{area}_memory_used"])) for area in _AREAS},
            round(float(whole["nn_macs"])),
            round(float(whole["cycles_total"])),
            float(whole["inference_time"]),
            float(whole[_CLOCK]),
        )
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ExportError(
            f"Vela's report cannot be read ({one_line(str(error), 200)}): use {_PACKAGE} 5.2"
        ) from error


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _check(source: Path, compiled: Path, found: Placement) -> None:
    """Raise ExportError unless the compiled file has the reported operators, and the source's ends.

    The inputs and outputs must have the same names, shapes, dtypes, scales and zero points, because
    the manifest describes both files.
    """
    left = litert_file.kinds(compiled, "Vela")
    commands = left.pop("CUSTOM", 0)
    if sum(left.values()) != len(found.cpu) or bool(commands) != bool(found.npu):
        raise ExportError(
            f"Vela's file has {sum(left.values())} operators for the CPU, and its report has "
            f"{len(found.cpu)}: use {_PACKAGE} 5.2"
        )
    before, after = litert_file.ends(source, "y7edge"), litert_file.ends(compiled, "Vela")
    if before != after:
        raise ExportError(
            f"Vela's file has the inputs and outputs {one_line(str(after), 300)}, expected "
            f"{one_line(str(before), 300)}: use {_PACKAGE} 5.2"
        )


def _require_npu(found: Placement, setup: Setup, request: BuildRequest) -> None:
    """Report the placement; raise ExportError if operators stay on the CPU, unless allowed."""
    total = found.npu + len(found.cpu)
    request.progress(
        f"Vela places {found.npu} of {total} operators on the {setup.accelerator}, "
        f"{len(found.cpu)} on the CPU; {found.used()}; estimated, not "
        f"measured: {found.estimate()}"
    )
    if not found.cpu:
        return
    first = found.cpu[0]
    text = (
        f"{len(found.cpu)} of {total} operators stay on the CPU, the first is {first['kind']} "
        f"({first['why']})"
    )
    if not found.npu or request.options.get("cpu") != "allow":
        raise ExportError(
            f"{text}: use another accelerator or model"
            + (", or accept them (--option cpu=allow)" if found.npu else "")
        )
    request.progress(f"warning: {text}: they are slow, and need kernels in the firmware")


def _guide(found: Placement, setup: Setup, version: str, config: str | None) -> Guide:
    """Return the README's sections."""
    rows = ["| operator | on the NPU | on the CPU | estimated cycles |", "|---|---:|---:|---:|"]
    rows += [
        f"| {kind} | {one['npu']} | {one['cpu']} | {one['estimated_cycles']:,} |"
        for kind, one in found.operators.items()
    ]
    on_cpu = [f"* {one['kind']} `{one['name']}`: {one['why']}" for one in found.cpu[:20]]
    placed = [f"{found.npu} operators on the NPU, {len(found.cpu)} on the CPU.", "\n".join(rows)]
    placed += ["On the CPU:", "\n".join(on_cpu)] if on_cpu else []
    board = "describe the board" if config else "are those of a reference system of Arm"
    files = {
        COMPILED: f"the model for the {setup.accelerator}: TensorFlow Lite Micro and the Ethos-U "
        "delegate run it there, and nowhere else",
        PLACEMENT: "the numbers of the sections below",
    }
    step = Step(
        "Compile it again, for your board",
        f"The system configuration `{setup.system_config}` and the memory mode "
        f"`{setup.memory_mode}` {board}; take those of the vendor of your chip.",
        (
            f"pip install {_PACKAGE}=={version}",
            " ".join(["vela", MODEL, "--output-dir .", *_arguments(setup, config)]),
        ),
    )
    return Guide(
        title=f"the Arm {setup.accelerator}",
        steps=(step,),
        files={**files, **({config: "the configuration for Vela"} if config else {})},
        not_run=f"`{COMPILED}`, which needs the device. Vela {version} compiled it here.",
        sources=(
            "Vela, OPTIONS.md (https://gitlab.arm.com/artificial-intelligence/ethos-u/ethos-u-vela)",
        ),
        sections={
            "Placement": "\n\n".join(placed),
            "Memory and time": (
                f"{found.used()}; {found.macs:,} multiplications. Vela's performance model "
                f"estimates {found.estimate()}. This is not a measurement."
            ),
        },
    )
