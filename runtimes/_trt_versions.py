"""What differs between versions of TensorRT, and what an engine file is tied to.

Used by the target and by the runtime, without TensorRT. "Bindings" in ``DIFFERENCES`` are NVIDIA's
Python packages of that version on PyPI, whose members were listed.
"""

from __future__ import annotations

import os
import platform
import re
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from y7edge.errors import DeviceError

OLDEST, NEWEST = (8, 6), (11, 4)
"""Versions (major, minor) that this package knows."""

Topic = Literal[
    "network flag", "typed network flag", "precision", "precision on DLA", "progress monitor"
]


class Difference(NamedTuple):
    """One value that holds from version ``since`` until the next line of the same topic."""

    topic: Topic
    since: tuple[int, ...]
    value: str
    source: str


DIFFERENCES = (
    # Members of NetworkDefinitionCreationFlag for `create_network`; "": none.
    Difference("network flag", (8, 6), "EXPLICIT_BATCH", "bindings 8.6.1: batch 1 is the default"),
    Difference("network flag", (10, 0), "", "TensorRT 10 migration guide: always explicit"),
    # The same for networks whose precision is chosen by the graph.
    Difference("typed network flag", (8, 6), "", "bindings 8.6.1: no STRONGLY_TYPED"),
    Difference("typed network flag", (10, 0), "STRONGLY_TYPED", "bindings 10.0.1 to 10.16.1"),
    Difference("typed network flag", (11, 0), "", "bindings 11.0.0: all networks are typed"),
    # How the precision of a layer is chosen: by builder flags, or by the types in the graph.
    Difference("precision", (8, 6), "flags", "bindings 8.6.1: BuilderFlag.FP16, INT8"),
    Difference("precision", (10, 0), "graph", "TensorRT 10 documentation, Strongly Typed Networks"),
    # The same for networks on a DLA core; "none": the version does not support the DLA of Orin.
    Difference("precision on DLA", (8, 6), "flags", "TensorRT issue 2222: Q/DQ is not supported"),
    Difference("precision on DLA", (10, 8), "none", "Working with DLA, 11.4.1: 10.7 was the last"),
    Difference(
        "precision on DLA", (11, 4, 1), "graph", "Strongly Typed Networks for DLA, 11.4.1: Orin"
    ),
    Difference("progress monitor", (8, 6), "no", "bindings 8.6.1: no IProgressMonitor"),
    Difference("progress monitor", (10, 0), "yes", "bindings 10.0.1"),
)
"""All lines, oldest first within a topic."""

# A version-compatible engine runs on later versions of its major version, and of these others
# (TensorRT 11.4.1, Support Matrix, Engine Portability).
_LATER_MAJORS = {8: (10,), 10: (11,)}


def parse(version: str) -> tuple[int, ...]:
    """Return a version such as "10.16.1.11" as numbers.

    Raises:
        DeviceError: the text does not begin with two numbers.
    """
    numbers = re.match(r"\d{1,4}(\.\d{1,6}){1,3}", version)
    if numbers is None:
        raise DeviceError(f"TensorRT has version {version[:64]!r}, expected numbers such as 10.3.0")
    return tuple(int(number) for number in numbers[0].split("."))


def value(topic: Topic, version: str) -> str:
    """Return the value of a topic in a version of TensorRT; newer versions are like the newest.

    Raises:
        DeviceError: the version is older than ``OLDEST``.
    """
    numbers = parse(version)
    if numbers < OLDEST:
        raise DeviceError(
            f"TensorRT {version} is too old, expected {_text(OLDEST)} or later: update JetPack or "
            "TensorRT"
        )
    return next(d.value for d in reversed(DIFFERENCES) if d.topic == topic and numbers >= d.since)


def unknown(version: str) -> str | None:
    """Return a warning if the version is newer than all versions that this package knows."""
    if parse(version)[:2] <= NEWEST:
        return None
    return (
        f"TensorRT {version} is newer than {_text(NEWEST)}, the newest version that y7edge knows: "
        "it is used like that one"
    )


def this_platform() -> str:
    """Return operating system and processor, such as "linux aarch64"."""
    return f"{sys.platform} {platform.machine()}"


def mismatch(engine: Mapping[str, Any], found: Mapping[str, Any]) -> str | None:
    """Return in one line why an engine file cannot be used here; None if it can.

    Args:
        engine: the field ``engine`` of the file's manifest.
        found: the same for this machine: ``tensorrt`` (its full version), ``compute_capability``
            (such as "8.7"), ``device`` (name of the GPU) and ``platform`` (see
            ``this_platform``).
    """
    entries = ("tensorrt", "compute_capability")
    if not all(isinstance(engine.get(entry), str) for entry in entries):
        return f"its manifest does not say for which TensorRT and GPU it was built: {_AGAIN}"
    fits = (
        engine["compute_capability"] == found["compute_capability"]
        and engine.get("platform", found["platform"]) == found["platform"]
        and _runs(engine["tensorrt"], found["tensorrt"], engine.get("version_compatible") is True)
    )
    if fits:
        return None
    return f"built for {_place(engine)}, this is {_place(found)}: {_AGAIN}"


_AGAIN = "run `y7edge build MODEL.onnx --target tensorrt` on this machine"


def exposed(path: Path) -> str | None:
    """Return a warning if other users can write an engine file; None if they cannot.

    An engine file contains machine code, so whoever writes it decides what this process does.
    """
    if os.name == "nt":  # the mode bits say nothing about access there
        return None
    for place in (path, path.absolute().parent):
        mode = place.stat().st_mode
        sticky = stat.S_ISDIR(mode) and mode & stat.S_ISVTX
        if mode & stat.S_IWOTH and not sticky:
            return (
                f"an engine file is machine code, and every user of this machine can change {path}:"
                f" run `chmod o-w {place}`"
            )
    return None


def foreign(path: Path) -> str | None:
    """Return why a file of a cache must not be used: another user wrote it; None if none did.

    In a folder such as /tmp, every user can create a file before its owner does.
    """
    if os.name == "nt":
        return None
    for place in (path, path.absolute().parent):
        if place.stat().st_uid not in (0, os.geteuid()):
            return f"{place} belongs to another user, and an engine file is machine code"
    return None


def _runs(built: str, found: str, compatible: bool) -> bool:
    """Return whether an engine of version ``built`` runs on version ``found``."""
    if built == found:
        return True
    if not compatible:  # an engine runs only on exactly the version that built it
        return False
    before, now = parse(built), parse(found)
    return (now[0] == before[0] and now >= before) or now[0] in _LATER_MAJORS.get(before[0], ())


def _place(tie: Mapping[str, Any]) -> str:
    """Return compute capability, GPU and version in words."""
    kind = f"sm_{tie['compute_capability'].replace('.', '')[:16]}"
    names = ", ".join(str(tie[key])[:64] for key in ("device", "platform") if tie.get(key))
    return f"{kind}{f' ({names})' if names else ''} with TensorRT {tie['tensorrt'][:64]}"


def _text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
