"""Loading processes end with their parent, and their death is reported."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from y7edge.errors import TrainingError
from y7edge.train.loading.workers import batches, start_worker

LINUX = sys.platform == "linux"
ROOT = Path(__file__).parents[3]

PARENT = """
import sys, numpy as np, cv2
from functools import partial
from pathlib import Path
from y7edge.data.sample import Sample
from y7edge.train.loading.dataset import TrainingSet, loader
from y7edge.train.loading.workers import batches
from y7edge.train.loading.sampling import BatchPlan

path = Path(sys.argv[1]) / "a.png"
cv2.imwrite(str(path), np.zeros((64, 64, 3), np.uint8))
sample = Sample(path, np.zeros((0, 4), np.float32), np.zeros(0, np.int32))
images = loader(TrainingSet([sample] * 4000, 64, cache="none"), BatchPlan(4000, 4), workers=2)
running = batches(images)
next(running)
print(*[worker.pid for worker in images._iterator._workers], flush=True)
for _ in running:
    pass
"""


def runs(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"  # a zombie has ended


@pytest.mark.skipif(not LINUX, reason="parents and shared memory are looked up as Linux has them")
def test_workers_end_with_a_killed_parent_and_leave_no_shared_memory(tmp_path):
    command = [sys.executable, "-c", PARENT, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as parent:
        children = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(children) == 2
        assert all(map(runs, children))
        os.kill(children[0], signal.SIGINT)  # as by Ctrl-C, which must not end it
        time.sleep(0.1)
        assert all(map(runs, children))
        parent.kill()
    # Torch's own watchdog takes up to five seconds.
    deadline = time.monotonic() + 2
    while any(map(runs, children)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(runs, children))
    left = [path.name for path in Path("/dev/shm").iterdir()]
    assert not [name for name in left if any(str(p) in name for p in (parent.pid, *children))]


@pytest.mark.skipif(not LINUX, reason="elsewhere torch watches for the parent")
@pytest.mark.parametrize(("parent", "code"), [(os.getpid, 0), (os.getppid, 1)])
def test_worker_ends_if_its_parent_has_ended(parent, code):
    expected = parent()
    child = os.fork()
    if not child:
        start_worker(expected, 0)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == code


class Numbers(torch.utils.data.Dataset):
    """Tensors; the worker that loads number ``kill`` is killed."""

    def __init__(self, kill=None, how=signal.SIGKILL, error=None):
        self.kill, self.how, self.error = kill, how, error

    def __len__(self):
        return 8

    def __getitem__(self, index):
        if index == self.kill:
            if self.error is not None:
                raise self.error
            os.kill(os.getpid(), self.how)
        return torch.full((10,), index)


def numbers(count=1, **arguments):
    return DataLoader(
        Numbers(**arguments),
        num_workers=count,
        persistent_workers=True,
        worker_init_fn=partial(start_worker, os.getpid()),
        multiprocessing_context="fork" if count and LINUX else None,
    )


@pytest.mark.skipif(not LINUX, reason="signals as Linux has them")
@pytest.mark.parametrize(
    ("how", "message"),
    [
        (signal.SIGKILL, r"\(process \d+\) was killed, .* memory ran out: use fewer workers"),
        (signal.SIGBUS, r"bus error, .* shared memory: enlarge /dev/shm"),
        (signal.SIGTERM, r"ended with exit code -15: --workers 0"),
    ],
)
def test_dead_worker_is_reported_in_one_line(how, message):
    with pytest.raises(TrainingError, match=message) as caught:
        list(batches(numbers(kill=5, how=how)))
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not LINUX, reason="signals as Linux has them")
def test_dead_worker_does_not_interrupt_a_step():
    train_loader = numbers()
    running = batches(train_loader)
    next(running)
    worker = train_loader._iterator._workers[0]
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    time.sleep(0.05)  # a step, in which SIGCHLD comes
    with pytest.raises(TrainingError, match="was killed"):
        list(running)
    with pytest.raises(TrainingError, match="was killed"):
        list(batches(train_loader))


def test_other_errors_are_not_changed():
    with pytest.raises(RuntimeError, match="a fault of ours"):
        list(batches(numbers(kill=1, error=RuntimeError("a fault of ours"))))


def test_full_shared_memory_is_reported_in_one_line():
    error = RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2_3>: No space")
    with pytest.raises(TrainingError, match="no shared memory left for a batch: enlarge /dev/shm"):
        list(batches(numbers(kill=1, error=error)))
