"""``y7edge check``: show installed packages, usable backends and converters."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from y7edge.cli.console import show, table
from y7edge.cli.options import Json

if TYPE_CHECKING:
    from y7edge.environment import GStreamer, Processor, Report
    from y7edge.export.targets.registry import Converter
    from y7edge.jetson import Jetson


_Row = tuple[str, ...]


def check(as_json: Json = False) -> None:
    """Show what is installed and usable on this machine.

    These are packages, backends that can run artifacts, and targets that can be built, each with
    the reason; the CPU's features and limits; on a Jetson also its state. The exit code is 3 if
    detection cannot run here.
    """
    from y7edge.environment import check as look
    from y7edge.export.targets.registry import converters

    report = look()
    found = converters(report.missing.get("export", ()))
    record = {
        **asdict(report),
        "converters": [asdict(c) for c in found],
        "ok": not report.exit_code,
    }
    show(record, _lines(report, found), as_json=as_json)
    if report.exit_code:
        raise typer.Exit(report.exit_code)


def _processor(cpu: Processor) -> list[str]:
    quota = "none" if cpu.quota is None else f"{cpu.quota:g} processors"
    limit = "none" if cpu.memory_limit is None else f"{cpu.memory_limit / 2**20:.0f} MB"
    return [
        f"CPU: {cpu.model}, {cpu.cores} cores, {cpu.processors} processors",
        f"this process: {cpu.allowed} processors allowed, CPU quota {quota}, memory limit {limit}; "
        f"engines use {cpu.usable_cores} threads by default",
        "",
        *table([("CPU feature", "for"), *(cpu.features.items() or [("-", "none known")])]),
        *([f"the CPU lacks {', '.join(cpu.absent)}"] if cpu.features and cpu.absent else []),
    ]


def _gstreamer(found: GStreamer) -> list[str]:
    if not found.usable:
        return [f"GStreamer, for cameras: {found.problem}"]
    commands: dict[str, list[str]] = {}
    for element, command in found.missing.items():
        commands.setdefault(command, []).append(element)
    jetson = f", of a Jetson: {', '.join(found.jetson)}" if found.jetson else ""
    return [
        f"GStreamer: {found.version}{jetson}",
        *(f"GStreamer lacks {', '.join(names)}: {command}" for command, names in commands.items()),
    ]


def _converter(one: Converter) -> tuple[str, str, str, str]:
    versions = ", ".join(f"{name} {version}" for name, version in one.versions.items())
    able = ["no", "yes"]
    reason = f"{one.reason} ({versions})" if versions else one.reason
    return one.target, able[one.exports], able[one.builds], reason


def _jetson(board: Jetson) -> list[str]:
    """Describe a Jetson: board, versions, power modes, clocks; problems and warnings at the end."""
    known = (board.module, board.module_name, board.soc, board.jetpack_source)
    module, name, chip, source = (text or "not known" for text in known)
    lines = [
        f"Jetson: {board.title()}",
        f"  module {module} ({name}), {chip}; JetPack's version is from: {source}",
    ]
    if power := board.power:
        modes = ", ".join(f"{mode} {text}" for mode, text in power.names.items())
        current = "not known" if power.current is None else f"{power.current} {power.current_name}"
        lines.append(f"  power mode {current}; {power.file} has {modes}")
    clocks = [
        f"{name} {low:g} to {high:g} MHz" for name, (low, high) in board.clocks.limits.items()
    ]
    clocks += [f"{name} {why}" for name, why in board.clocks.unknown.items()]
    return [
        *lines,
        f"  {board.clocks.state()}: {', '.join(clocks)}",
        f"  /usr/local/cuda: {board.cuda or 'missing'}",
        *(f"  {name} {version}" for name, version in board.packages.items()),
        *(f"problem: {text}" for text in board.problems),
        *(f"warning: {text}" for text in board.warnings),
    ]


_RECIPE = re.compile(r": (python[\d.]* -m venv .+)")


def _shortened(rows: list[_Row], recipes: dict[str, int]) -> list[_Row]:
    """Replace the commands that make an environment by a number; add them to ``recipes``."""
    return [
        (*most, _RECIPE.sub(lambda m: f": see [{recipes.setdefault(m[1], len(recipes) + 1)}]", why))
        for *most, why in rows
    ]


def _lines(report: Report, converters: Sequence[Converter]) -> list[str]:
    opencv = report.opencv
    video = ", ".join(opencv["video"]) or "none"
    found = f"{opencv['version']}, video: {video}" if opencv["installed"] else opencv["problem"]
    recipes: dict[str, int] = {}
    backends = _shortened(
        [(b.name, "yes" if b.usable else "no", b.reason) for b in report.backends], recipes
    )
    purposes = [
        (purpose, "yes" if ready else "no: needs " + ", ".join(report.missing[purpose]))
        for purpose, ready in report.ready.items()
    ]
    targets = _shortened([_converter(one) for one in converters], recipes)
    packages = [(name, version or "not installed") for name, version in report.packages.items()]
    return [
        f"y7edge {report.y7edge}, Python {report.python}, {report.system}",
        f"OpenCV: {found}",
        *([f"OpenCV: {opencv['problem']}"] if opencv["installed"] and opencv["problem"] else []),
        *_gstreamer(report.gstreamer),
        *_processor(report.processor),
        *(["", *_jetson(report.jetson)] if report.jetson else []),
        "",
        *table([("backend", "usable", "why"), *backends]),
        "",
        *table([("target", "export", "build", "why"), *targets]),
        *(f"[{number}] {recipe}" for recipe, number in recipes.items()),
        "",
        *table([("package", "version"), *packages]),
        *(f"warning: {text}" for text in report.empty),
        "",
        *table([("purpose", "ready"), *purposes]),
    ]
