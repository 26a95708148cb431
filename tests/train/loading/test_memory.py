"""Reused memory of batches, and available memory."""

from __future__ import annotations

import gc
import platform
import subprocess
import sys

import numpy as np
import pytest
import torch

from y7edge import machine
from y7edge.errors import ConfigError
from y7edge.train.loading import memory
from y7edge.train.loading.memory import BatchMemory, WrittenBatch, available_memory, format_bytes
from y7edge.train.loading.sampling import Key

SHAPE = (2, 3, 2, 2)
KEYS = [[Key(1, number)] for number in range(6)]


def filled(block, slot, value):
    """Write a batch filled with one value, as a worker does."""
    block.space(slot, SHAPE)[:] = value
    return WrittenBatch(id(block), slot, SHAPE, np.full((1, 6), value, np.float32))


def test_batch_is_received_unchanged():
    block = BatchMemory(2, 24)
    (task,) = block.tasks(KEYS[:1])
    images, targets = filled(block, task.slot, 7).item()
    assert task.keys == KEYS[0]
    assert images.shape == SHAPE
    assert (images == 7).all()
    assert targets.tolist() == [[7] * 6]


def test_slot_is_reused_once_nothing_references_it():
    block = BatchMemory(2, 24)
    tasks = block.tasks(KEYS)
    slots = []
    for value in range(5):
        slot = next(tasks).slot
        images, _ = filled(block, slot, value).item()
        assert (images == value).all()
        slots.append(slot)
    assert set(slots) == {0, 1}


def test_referenced_batches_are_not_overwritten():
    block = BatchMemory(3, 24)
    tasks = block.tasks(KEYS)
    kept = [filled(block, next(tasks).slot, value).item()[0][1:] for value in range(3)]
    assert next(tasks).slot is None
    assert [int(part.unique()) for part in kept] == [0, 1, 2]
    del kept[1]
    gc.collect()
    images, _ = filled(block, next(tasks).slot, 9).item()
    assert [int(part.unique()) for part in (*kept, images)] == [0, 2, 9]


def test_new_pass_frees_slots_of_batches_not_received():
    block = BatchMemory(2, 24)
    before = block.tasks(KEYS)
    held, _ = filled(block, next(before).slot, 1).item()
    assert next(before).slot is not None
    after = [task.slot for task in block.tasks(KEYS[:2])]
    assert after[0] is not None
    assert after[1] is None
    assert (held == 1).all()


def test_two_memories_are_distinguished():
    first, second = BatchMemory(1, 24), BatchMemory(1, 24)
    result = [filled(block, 0, value) for block, value in ((first, 3), (second, 4))]
    assert [int(one.item()[0].unique()) for one in result] == [3, 4]


def test_a_pinned_batch_is_a_copy_that_frees_its_slot(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    block = BatchMemory(1, 24)
    (task,) = block.tasks(KEYS[:1])
    images, targets = filled(block, task.slot, 5).pin_memory()
    (again,) = block.tasks(KEYS[1:2])
    filled(block, again.slot, 6)
    assert (images == 5).all()
    assert targets.tolist() == [[5] * 6]


def test_too_large_memory_is_refused(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 1000)
    BatchMemory(2, 400)
    with pytest.raises(ConfigError, match=r"take 0\.0 MB, .*: use fewer workers or a"):
        BatchMemory(2, 401)


def test_format_bytes():
    assert format_bytes(2_140_000_000) == "2.1 GB"
    assert format_bytes(340_000) == "0.3 MB"


def test_memory_is_read_from_the_system_and_the_container(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_PROC", tmp_path)
    assert machine.free_memory() is None
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 2000 kB\nMemFree: 10 kB\nMemAvailable:   1500 kB\n")
    assert machine.free_memory() == 1_536_000
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 300\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._cgroup(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    assert memory._cgroup(tmp_path) == 400
    assert memory._cgroup(tmp_path / "none") is None


def test_smaller_limit_is_used(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: 700)
    monkeypatch.setattr(memory, "_cgroup", lambda _: 500)
    assert available_memory() == 500
    monkeypatch.setattr(memory, "_cgroup", lambda _: None)
    assert available_memory() == 700
    monkeypatch.setattr(memory, "free_memory", lambda: None)
    assert available_memory() is None


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="other C libraries have other ways with freed memory"
)
def test_freed_image_memory_is_kept():
    script = """
import resource, numpy as np
from y7edge.train.loading.memory import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        pieces = [np.full(900_000, 7, np.uint8) for _ in range(4)]
        del pieces
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
keep_freed_memory()
faults()
print(faults())
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(out.stdout) < 400  # 17,000 pages are written
