"""Cache of TensorRT engines and timings, in ``~/.cache/y7edge/tensorrt`` or ``$Y7EDGE_CACHE``.

A build takes minutes, and the same graph gives another engine each time, because TensorRT measures
which kernels are fast. The name of an engine is ``Settings.key``.
"""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from y7edge.export.targets._trt_settings import Device
from y7edge.files import atomic_write, cache_folder, read_regular, reason, write_text
from y7edge.runtimes import _trt_versions as versions

_KEPT = 8  # engines
_MOST = 2 << 30  # bytes


def read(key: str) -> tuple[bytes, dict[str, Any]] | str | None:
    """Return an engine and the field ``engine`` of its manifest; None if there is none.

    Returns a text if the engine must not be used, because it was changed or others can change it.
    """
    plan, notes = _paths(key)
    try:
        if problem := versions.exposed(plan) or versions.foreign(plan):
            return problem
        data, found = read_regular(plan, _MOST), json.loads(read_regular(notes, 1 << 20))
        engine, unchanged = found["engine"], hashlib.sha256(data).hexdigest() == found["sha256"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return f"{plan} or its notes cannot be read ({type(error).__name__})"
    if not unchanged:
        return f"{plan} was changed"
    if not isinstance(engine, dict) or type(engine.get("workspace_mb")) is not int:
        return f"the notes of {plan} are incomplete"
    return data, engine


def write(key: str, data: bytes, engine: dict[str, Any]) -> str | None:
    """Keep an engine, and remove the oldest ones; return a text if that fails."""
    plan, notes = _paths(key)
    found = {"sha256": hashlib.sha256(data).hexdigest(), "engine": engine}
    try:
        plan.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with atomic_write(plan) as temporary:
            temporary.write_bytes(data)
        write_text(notes, json.dumps(found, sort_keys=True))
        engines = plan.parent.glob("*.engine")
        newest = sorted(engines, key=lambda path: path.stat().st_mtime, reverse=True)
        for old in newest[_KEPT:]:
            old.unlink(missing_ok=True)
            _paths(old.stem)[1].unlink(missing_ok=True)
    except OSError as error:
        return f"the engine is not kept in the cache: {reason(error)}"
    return None


def read_timings(version: str, device: Device) -> bytes:
    """Return the timings of earlier builds; empty if there are none."""
    path = _timings(version, device)
    with suppress(OSError):  # without timings, the build takes longer
        if not versions.exposed(path) and not versions.foreign(path):
            return read_regular(path, _MOST)
    return b""


def write_timings(version: str, device: Device, data: bytes) -> str | None:
    """Keep the timings of a build; return a text if that fails."""
    path = _timings(version, device)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with atomic_write(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        return f"the timings are not kept in the cache: {reason(error)}"
    return None


def _paths(key: str) -> tuple[Path, Path]:
    folder = cache_folder("tensorrt")
    return folder / f"{key}.engine", folder / f"{key}.json"


def _timings(version: str, device: Device) -> Path:
    """Return the file of timings, which hold for one version and one kind of GPU."""
    name = re.sub(r"[^\w.]+", "-", f"{version}-{device.compute_capability}-{device.name}")
    return cache_folder("tensorrt") / f"{name}.timings"
