"""Two processes (CPU, gloo) train like one process with all images, and end together."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from y7edge.data.synthetic import scenes
from y7edge.errors import ConfigError, DeviceError
from y7edge.train.run.distributed import Ranks, open_fabric, under_torchrun
from y7edge.train.settings.config import TrainConfig

# Models and images per batch: auxiliary heads with two times 8, a lead head with 8 and 7.
CASES = {"yolov7-w6": 16, "yolov7-tiny": 15}

# Losses and gradients of a run's parts on random images, written by rank 0.
GRADIENTS = """
import sys
from contextlib import ExitStack
import numpy as np, torch
from y7edge.models import registry
from y7edge.models.scaling import scale
from y7edge.nn.build import Model
from y7edge.train.averaging.average import average_for
from y7edge.train.settings.config import TrainConfig
from y7edge.train.run.distributed import launch, open_fabric
from y7edge.train.loss.loss import TrainingLoss
from y7edge.train.run.optim import build_optimizer
from y7edge.train.run.schedule import Schedule
from y7edge.train.run.steps import Steps

devices, out = int(sys.argv[1]), sys.argv[2]
config = TrainConfig(data="", batch=16, device="cpu", devices=devices)
object.__setattr__(config, "precision", "64-true")  # so that rounding does not hide differences
torch.set_default_dtype(torch.float64)
fabric = open_fabric(config)
held = ExitStack()
ranks = launch(fabric, held)
torch.set_num_threads(1)
torch.manual_seed(7)
images = torch.randint(0, 256, (16, 3, 128, 128), dtype=torch.uint8)
targets = torch.rand(60, 6) * 0.3 + 0.05
targets[:, 2:4] += 0.3
targets[:, 0] = (torch.rand(60) ** 3 * 16).floor()  # not the same number on each rank
targets[:, 1] = torch.arange(60) % 3

class Frozen(Steps):  # BatchNorm as in evaluation, where it does not mix images
    def train(self):
        super().train()
        for module in self.model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()

def part_of_rank(numbers):
    mine = torch.tensor(numbers[ranks.rank :: ranks.world])
    place = {int(old): new for new, old in enumerate(mine)}
    rows = targets[[int(image) in place for image in targets[:, 0]]].clone()
    rows[:, 0] = torch.tensor([float(place[int(image)]) for image in rows[:, 0]])
    return images[mine], rows

def learn(name, images):
    torch.manual_seed(ranks.rank)  # the others take over the first one's weights
    spec = scale(registry.get(name, nc=3), width=0.125)
    model, recipe = Model(spec), config.hyper
    start = {name: value.detach().clone() for name, value in model.named_parameters()}
    steps = Frozen(
        fabric,
        model,
        build_optimizer(model, recipe, 0.0),
        loss=TrainingLoss(spec, model.head.anchors, recipe, 128, "auto", ranks),
        average=average_for(recipe, model),
        schedule=Schedule(recipe, 9, 9, 16, 48, 0),  # three batches for a step
    )
    steps.train()
    steps(0, *part_of_rank(range(images)))
    steps(1, *part_of_rank(range(16 - images, 16)))
    gathered = {k: ranks.sum(p.grad) / ranks.world for k, p in model.named_parameters()}
    parts = steps(2, *part_of_rank(range(images)))
    yield "parts", ranks.sum(torch.stack((parts.box, parts.obj, parts.cls))) / ranks.world
    yield from ((f"gathered.{k}", gradient) for k, gradient in gathered.items())
    yield from ((f"moved.{k}", p.detach() - start[k]) for k, p in model.named_parameters())

found = {f"{m}/{k}": v.numpy() for m, n in CASES.items() for k, v in learn(m, n)}
if ranks.rank == 0:
    np.savez(out, **found)
"""


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """By number of processes: loss parts, accumulated gradients, and change by a step."""
    folder, found = tmp_path_factory.mktemp("learnt"), {}
    script = folder / "gradients.py"
    script.write_text(f"CASES = {CASES!r}\n{GRADIENTS}")
    for devices in (1, 2):
        run([sys.executable, script, devices, folder / f"{devices}.npz"])
        with np.load(folder / f"{devices}.npz") as stored:
            found[devices] = dict(stored)
    return found


@pytest.mark.parametrize("model", CASES)
@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one(learnt, model):
    one, two = ({k: v for k, v in learnt[n].items() if k.startswith(model)} for n in (1, 2))
    assert set(one) == set(two)
    assert any("gathered" in name and ".aux." in name for name in one) == (model == "yolov7-w6")
    sizes = {name: np.abs(value).max() for name, value in one.items()}
    assert np.mean([size > 0 for size in sizes.values()]) > 0.9
    for name, value in one.items():
        assert np.abs(two[name] - value).max() <= 1e-9 * sizes[name], name


def run(words, **options):
    """Run a command and return its output."""
    done = subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
        **options,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return scenes.generate(tmp_path_factory.mktemp("data"), train=11, val=2, size=(96, 96))


def command(data, out, devices, *more):
    # Rows in front of the head are frozen, so that BatchNorm doesn't depend on a rank's images.
    words = ["train", "--data", data, "--width", 0.125, "--imgsz", 64, "--batch", 4, "--freeze", 77]
    words += ["--device", "cpu", "--devices", devices, "--out", out, "--json", *more]
    return [sys.executable, "-m", "y7edge", *words]


def losses(folder):
    with (folder / "results.csv").open(newline="") as stream:
        return [
            [float(row[part]) for part in ("box", "obj", "cls")] for row in csv.DictReader(stream)
        ]


def test_run_of_two_processes_equals_one(data, tmp_path):
    """From the command line; only the first prints and writes; both use loopback only."""
    one, two, scratch = (tmp_path / name for name in ("one", "two", "scratch"))
    scratch.mkdir()
    run(command(data, one, 1, "--epochs", 2))
    process = subprocess.Popen(
        [str(word) for word in command(data, two, 2, "--epochs", 2)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(scratch)},
    )
    addresses, places = set(), set()
    while process.poll() is None:
        try:
            for pid in (process.pid, *children_of(process.pid)):
                addresses |= listening(pid)
        except FileNotFoundError:  # it has just ended
            continue
        places |= set(scratch.glob(".y7edge-*"))
        time.sleep(0.01)
    output, messages = process.communicate()
    assert process.returncode == 0, messages
    assert losses(two) == [pytest.approx(row, rel=1e-4) for row in losses(one)]
    assert json.loads(output)["epochs"] == 2  # one record, of one process
    assert messages.count("11 training images") == 1
    assert messages.count("epoch 2/2:") == 1
    assert addresses == {"127.0.0.1"}
    assert len(places) == 1  # the file by which they connected
    assert not any(place.exists() for place in places)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "scratch", "two"]


def listening(pid):
    """Return the addresses that a process listens on."""
    files = Path(f"/proc/{pid}/fd").iterdir()
    links = [str(path.readlink()) for path in files if path.is_symlink()]
    sockets = {link[len("socket:[") : -1] for link in links if link.startswith("socket:")}
    addresses = set()
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            is_open = words[3] == "0A" or table.startswith("udp")
            if is_open and words[9] in sockets:
                packed = bytes.fromhex(words[1].partition(":")[0])
                addresses.add(".".join(map(str, reversed(packed))) if len(packed) == 4 else "::")
    return addresses


@pytest.mark.slow
def test_processes_end_with_the_first_and_the_run_resumes(data, tmp_path):
    out, whole = tmp_path / "run", tmp_path / "whole"
    words = ["--epochs", 3, "--checkpoint-minutes", 1e-6]
    run(command(data, whole, 2, *words))
    process = subprocess.Popen(
        [str(word) for word in command(data, out, 2, *words)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not (out / "results.csv").exists():
        time.sleep(0.05)
        assert process.poll() is None
    children = children_of(process.pid)
    assert children
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(lambda: not any(is_alive(child) for child in children))
    run([sys.executable, "-m", "y7edge", "train", "--resume", out])
    assert losses(out) == losses(whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "text"),
    [
        pytest.param(signal.SIGINT, 130, "interrupted; the state so far is in", id="Ctrl-C"),
        pytest.param(signal.SIGKILL, 1, "another process of the run died", id="kill -9"),
    ],
)
def test_first_process_reports_errors_of_others(data, tmp_path, number, code, text):
    out = tmp_path / "run"
    process = subprocess.Popen(
        [str(word) for word in command(data, out, 2, "--epochs", 500)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (out / "results.csv").exists():
        time.sleep(0.05)
        assert process.poll() is None
    os.kill(children_of(process.pid)[0], number)
    _, output = process.communicate(timeout=60)
    assert (process.returncode, output.count(text)) == (code, 1), output
    assert "Traceback" not in output


def children_of(pid):
    """Return the children of a process and of its threads."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(word) for word in (task / "children").read_text().split()]
    return found


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_single_process_does_not_communicate():
    ranks = Ranks()
    assert (ranks.first, ranks.largest(3), ranks.from_first("a")) == (True, 3, "a")
    with pytest.raises(ConfigError), ranks.together():
        raise ConfigError("as it came")


def test_torchrun_sets_devices_and_nodes(monkeypatch):
    config = TrainConfig(data="", batch=8)
    assert under_torchrun(config) == config
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert under_torchrun(config) == replace(config, devices=2, nodes=4)
    with pytest.raises(ConfigError, match="torchrun started 4 nodes of 2 processes"):
        under_torchrun(replace(config, devices=4))
    with pytest.raises(ConfigError, match="batch must be a multiple of 8"):
        under_torchrun(TrainConfig(data="", batch=12))


def test_nodes_without_torchrun_are_refused(monkeypatch):
    for name in ("MASTER_ADDR", "NODE_RANK", "SLURM_JOB_ID", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    several = TrainConfig(data="", batch=8, devices=2, nodes=2)
    with pytest.raises(ConfigError, match="torchrun --nnodes 2 --nproc-per-node 2"):
        under_torchrun(several)
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    assert under_torchrun(several) == several


def test_unsupported_precision_is_refused():
    with pytest.raises(DeviceError, match="use --precision bf16 or fp32"):
        open_fabric(TrainConfig(data="", device="cpu", precision="16-mixed"))


@pytest.mark.parametrize("device", ["cuda:9", "gpu", "cpu:1"])
def test_unavailable_device_is_refused(device):
    with pytest.raises(DeviceError, match=f"device '{device}' is not available: expected cpu"):
        open_fabric(TrainConfig(data="", device=device))
