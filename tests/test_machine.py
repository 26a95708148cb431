"""What a process may use, found in made-up /proc, /sys and cgroup folders."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from y7edge import machine
from y7edge.runtimes.base import SessionOptions


class System:
    """Folders that stand for those of a machine."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder, self._patch = folder, monkeypatch
        monkeypatch.setattr(machine, "_PROC", folder / "proc")
        monkeypatch.setattr(machine, "_CPUS", folder / "cpu")
        monkeypatch.setattr(machine, "_CGROUPS", folder / "cgroup")
        self.allow(range(8))

    def allow(self, processors) -> None:
        self._patch.setattr(os, "sched_getaffinity", lambda _: set(processors), raising=False)

    def write(self, path: str, text: str) -> None:
        file = self._folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def siblings(self, *lists: str) -> None:
        for number, text in enumerate(lists):
            self.write(f"cpu/cpu{number}/topology/thread_siblings_list", text)


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> System:
    return System(tmp_path, monkeypatch)


def test_without_any_file_each_processor_is_a_core(system: System) -> None:
    assert machine.usable_cores() == 8
    assert machine.processor_quota() is machine.memory_limit() is None
    assert machine.processor_features() == ()
    assert machine.processor_model()


@pytest.mark.parametrize(
    "lists",
    [
        ("0,4\n", "1,5\n", "2,6\n", "3,7\n") * 2,
        ("0-1", "0-1", "2-3", "2-3", "4-5", "4-5", "6-7", "6-7"),
    ],
    ids=["far", "near"],
)
def test_siblings_count_once(system: System, lists: tuple[str, ...]) -> None:
    system.siblings(*lists)
    assert machine.usable_cores() == 4
    system.allow([0, 4] if lists[0] == "0,4\n" else [0, 1])
    assert machine.usable_cores() == 1
    system.allow([1])
    assert machine.usable_cores() == 1


@pytest.mark.parametrize(
    "text", ["", "x", "0,", "-1", "7-0", "0-99999999999", "0-99999", "\udcff", "1;2", "0 1", "٣"]
)
def test_malformed_siblings_are_ignored(system: System, text: str) -> None:
    for number in range(8):
        file = f"cpu/cpu{number}/topology/thread_siblings_list"
        system.write(file, "")
        (system._folder / file).write_bytes(text.encode("utf-8", "surrogateescape"))
    assert machine.usable_cores() == 8


def test_a_folder_or_pipe_in_place_of_a_file_is_ignored(system: System) -> None:
    (system._folder / "cpu/cpu0/topology/thread_siblings_list").mkdir(parents=True)
    pipe = system._folder / "cpu/cpu1/topology/thread_siblings_list"
    pipe.parent.mkdir(parents=True)
    os.mkfifo(pipe)
    assert machine.usable_cores() == 8


@pytest.mark.parametrize(
    ("limit", "cores", "quota"),
    [
        ("max 100000", 8, None),
        ("250000 100000", 2, 2.5),
        ("50000 100000", 1, 0.5),
        ("1600000 100000", 8, 16.0),
        ("100000", 8, None),
        ("x y", 8, None),
        ("-5 100000", 8, None),
        ("100000 0", 8, None),
        ("9" * 30 + " 1", 8, None),
    ],
)
def test_quota_of_cgroup_v2(system: System, limit: str, cores: int, quota: float | None) -> None:
    system.write("proc/self/cgroup", "0::/\n")
    system.write("cgroup/cpu.max", limit + "\n")
    assert (machine.usable_cores(), machine.processor_quota()) == (cores, quota)


def test_the_lowest_quota_of_all_groups_above_applies(system: System) -> None:
    system.write("proc/self/cgroup", "0::/robot.slice/vision.service\n")
    system.write("cgroup/robot.slice/cpu.max", "300000 100000")
    system.write("cgroup/robot.slice/vision.service/cpu.max", "700000 100000")
    system.write("cgroup/other/cpu.max", "100000 100000")
    assert machine.usable_cores() == 3


def test_a_path_of_the_host_falls_back_to_the_root(system: System) -> None:
    system.write("proc/self/cgroup", "4:cpu,cpuacct:/docker/abc\n3:memory:/docker/abc\n")
    system.write("cgroup/cpu,cpuacct/cpu.cfs_quota_us", "400000")
    system.write("cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000")
    system.write("cgroup/memory/memory.limit_in_bytes", "536870912")
    assert machine.usable_cores() == 4
    assert machine.memory_limit() == 512 << 20


def test_a_path_cannot_leave_the_cgroup_folder(system: System) -> None:
    system.write("proc/self/cgroup", "0::/../../secret\n")
    system.write("secret/cpu.max", "100000 100000")
    assert machine.processor_quota() is None


def test_no_limit_in_cgroup_v1(system: System) -> None:
    system.write("proc/self/cgroup", "4:cpu:/\n3:memory:/\n")
    system.write("cgroup/cpu/cpu.cfs_quota_us", "-1")
    system.write("cgroup/cpu/cpu.cfs_period_us", "100000")
    system.write("cgroup/memory/memory.limit_in_bytes", "9223372036854771712")
    assert machine.processor_quota() is machine.memory_limit() is None


def test_features_and_model(system: System) -> None:
    system.write("proc/cpuinfo", "model name\t: Some CPU @ 2 GHz\nflags\t\t: fpu avx2 avx512f x\n")
    assert machine.processor_model() == "Some CPU @ 2 GHz"
    assert machine.processor_features() == ("avx2", "avx512f")
    system.write("proc/cpuinfo", "Features\t: fp asimd asimdhp asimddp i8mm bf16\n")
    system.write("proc/device-tree/model", "Some Board\0")
    assert machine.processor_model() == "Some Board"
    assert machine.processor_features() == ("asimdhp", "asimddp", "i8mm", "bf16")


def test_resident_memory_grows_with_what_is_allocated() -> None:
    before = machine.resident_memory()
    assert before is not None and 1 << 20 < before < 1 << 40
    block = bytearray(b"\1" * (64 << 20))
    assert machine.resident_memory() - before > 32 << 20  # others may free some
    del block


def test_threads_default_to_the_usable_cores(system: System) -> None:
    system.allow(range(5))
    assert SessionOptions().thread_count == 5
    assert SessionOptions(threads=3).thread_count == 3
