"""Find out what this process may use of the machine: processors, cores, CPU features, memory.

On Linux the values come from ``/proc``, ``/sys`` and the process's control groups (cgroups,
versions 1 and 2: https://docs.kernel.org/admin-guide/cgroup-v2.html). A file that is missing or
malformed counts as no limit, because containers hide or replace some of them.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path

from y7edge.files import read_regular

_PROC, _CPUS, _CGROUPS = Path("/proc"), Path("/sys/devices/system/cpu"), Path("/sys/fs/cgroup")
_MAX_BYTES = 8 << 20  # of a file; /proc/cpuinfo has about 1.5 KB for each processor
_MAX_PROCESSORS = 1 << 16
_NO_LIMIT = 1 << 60  # bytes; for no limit, cgroup v1 states a number above this

FEATURES = {
    "avx2": "fp32 and int8 with 256-bit vectors (x86-64)",
    "avx512f": "fp32 with 512-bit vectors (x86-64)",
    "avx_vnni": "int8 dot products with 256-bit vectors (x86-64)",
    "avx512_vnni": "int8 dot products with 512-bit vectors (x86-64)",
    "avx512_bf16": "bf16 dot products (x86-64)",
    "avx512_fp16": "fp16 arithmetic (x86-64)",
    "amx_bf16": "bf16 matrix multiplication (x86-64)",
    "amx_int8": "int8 matrix multiplication (x86-64)",
    "asimdhp": "fp16 arithmetic (ARM)",
    "asimddp": "int8 dot products, dotprod (ARM)",
    "i8mm": "int8 matrix multiplication (ARM)",
    "bf16": "bf16 matrix multiplication (ARM)",
}
"""CPU features that inference engines use, by the names of ``/proc/cpuinfo``, and their purpose."""


def usable_cores() -> int:
    """Return the number of physical cores that this process may use; at least 1.

    This is the number of cores that have a processor in the affinity mask of the process, but at
    most the CPU quota of the process, rounded down. If a process runs more threads than its quota,
    Linux stops it for a part of each scheduling period. Two processors of one core (SMT) count
    once, because the threads of an engine compete for the arithmetic units of the core.
    """
    cores = len({min(_siblings(processor)) for processor in allowed_processors()})
    quota = processor_quota()
    return max(1, cores if quota is None else min(cores, int(quota)))


def allowed_processors() -> frozenset[int]:
    """Return the numbers of the processors in the affinity mask; without a mask, all processors."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def physical_cores() -> int:
    """Return the number of physical cores of the machine, whether this process may use them or not.

    Without topology information (on other systems than Linux) each processor counts as a core.
    """
    return len({min(_siblings(processor)) for processor in range(os.cpu_count() or 1)})


def processor_quota() -> float | None:
    """Return the CPU quota of the process's cgroups in processors, such as 1.5; None: no quota."""
    quotas = []
    for folder in _cgroup_folders("cpu"):
        limit, _, period = _read(folder / "cpu.max").strip().partition(" ")  # version 2
        if not limit:
            limit = _read(folder / "cpu.cfs_quota_us").strip()  # version 1; -1: no quota
            period = _read(folder / "cpu.cfs_period_us").strip()
        if (amount := _number(limit)) and (length := _number(period)):
            quotas.append(amount / length)
    return min(quotas, default=None)


def memory_limit() -> int | None:
    """Return the memory limit of the process's cgroups in bytes; None: no limit."""
    limits = []
    for folder in _cgroup_folders("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):  # versions 2 and 1
            limit = _number(_read(folder / name).strip())
            if limit is not None and limit < _NO_LIMIT:
                limits.append(limit)
    return min(limits, default=None)


def processor_model() -> str:
    """Return the name of the CPU, such as "AMD EPYC"; the architecture if it is not known."""
    text = _read(_PROC / "cpuinfo")
    for key in ("model name", "Model", "Hardware"):
        if found := re.search(rf"^{key}\s*:[ \t]*(\S.*)$", text, re.MULTILINE):
            return found[1].strip()[:100]
    board = _read(_PROC / "device-tree/model").rstrip("\0\n")  # ARM boards
    return board[:100] or platform.processor() or platform.machine() or "unknown"


def processor_features() -> tuple[str, ...]:
    """Return the names in ``FEATURES`` that the CPU has; empty if the system lists no features."""
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", _read(_PROC / "cpuinfo"), re.MULTILINE)
    listed = set(found[1].split()) if found else set()
    return tuple(name for name in FEATURES if name in listed)


def known_features() -> dict[str, str]:
    """Return the part of ``FEATURES`` that CPUs of this machine's architecture may have."""
    is_arm = platform.machine().lower().startswith(("arm", "aarch64"))
    return {name: text for name, text in FEATURES.items() if text.endswith("(ARM)") == is_arm}


def free_memory() -> int | None:
    """Return the memory of the machine that programs can still get, in bytes; None if unknown."""
    found = re.search(r"^MemAvailable:\s+([0-9]{1,15}) kB$", _read(_PROC / "meminfo"), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def resident_memory() -> int | None:
    """Return the memory of this process that is in RAM, in bytes; None if it is not known."""
    fields = _read(_PROC / "self/statm").split()
    pages = _number(fields[1]) if len(fields) > 1 else None
    return None if pages is None else pages * os.sysconf("SC_PAGE_SIZE")


def _siblings(processor: int) -> frozenset[int]:
    """Return all processors of the core to which ``processor`` belongs."""
    text = _read(_CPUS / f"cpu{processor}/topology/thread_siblings_list")
    found = {processor}
    for part in text.strip().split(","):  # such as "0,4" or "0-1"
        ends = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", part)
        if ends is None or not int(ends[1]) <= int(ends[2] or ends[1]) < _MAX_PROCESSORS:
            return frozenset({processor})
        found.update(range(int(ends[1]), int(ends[2] or ends[1]) + 1))
    return frozenset(found)


def _cgroup_folders(controller: str) -> Iterator[Path]:
    """Yield the cgroup folders whose limits apply to this process, for both versions.

    The limit of a group applies to all groups below it, so all parents are included. In a
    container, the path in ``/proc/self/cgroup`` may be the path on the host; then only the root of
    the mount exists.
    """
    for line in _read(_PROC / "self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if number == "0" and not controllers:
            mounts = [_CGROUPS, _CGROUPS / "unified"]
        elif controller in controllers.split(","):
            mounts = [_CGROUPS / controllers, _CGROUPS / controller]
        else:
            continue
        parts = [part for part in group.split("/") if part not in ("", ".", "..")][:64]
        for mount in mounts:
            for depth in range(len(parts) + 1):
                yield mount.joinpath(*parts[:depth])


def _read(path: Path) -> str:
    """Return the text of a system file; empty if it cannot be read."""
    try:
        return read_regular(path, _MAX_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""


def _number(text: str) -> int | None:
    """Return a positive whole number; None for other text, such as "max" or "-1"."""
    return int(text) if re.fullmatch(r"[0-9]{1,20}", text) and int(text) > 0 else None
