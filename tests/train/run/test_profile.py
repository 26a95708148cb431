"""The profile of a run: the times of its parts add up."""

import json
from dataclasses import replace

import pytest
import torch

from y7edge.data.synthetic import scenes
from y7edge.errors import ConfigError
from y7edge.train.run.profile import PARTS, WARM_UP, profile
from y7edge.train.run.progress import Progress
from y7edge.train.run.timing import PartTimes
from y7edge.train.settings.config import TrainConfig


class Steps(Progress):
    count = 0
    lines = ()

    def log(self, line):
        self.lines = (*self.lines, line)

    def step(self, status):
        self.count += 1


def test_part_times_add_up(tmp_path, monkeypatch):
    data = scenes.generate(tmp_path / "data", train=6, val=2, size=(96, 96))
    monkeypatch.chdir(tmp_path)
    steps = Steps()
    small = TrainConfig(data=data, width=0.125, imgsz=64, batch=2, nominal_batch=2, workers=0)
    config = replace(small, profile=5, device="cpu")
    found = profile(config, progress=steps)
    assert (found.iterations, found.batch, steps.count) == (5, 2, 5)
    (introduction,) = (line for line in steps.lines if "training images" in line)
    assert "a profile of 5 iterations" in introduction and "nothing is saved" in introduction
    assert "epochs" not in introduction and "y7edge-" not in introduction
    parts = [getattr(found, f"{name}_ms") for name in PARTS]
    assert all(part > 0 for part in parts)
    assert sum(parts) + found.rest_ms == pytest.approx(found.iteration_ms)
    assert 0 <= found.rest_ms < 0.5 * found.iteration_ms
    assert found.images_per_second == pytest.approx(2e3 / found.iteration_ms)
    assert found.network_images_per_second > found.images_per_second
    record = json.loads(json.dumps(found.to_dict()))
    assert 0 < record["loss_share"] < 1 and 0 < record["data_share"] < 1
    assert "loss" in "\n".join(found.lines())
    assert [path.name for path in tmp_path.iterdir()] == ["data"]  # no run is left behind
    assert WARM_UP > 3  # beyond the batches that are drawn


@pytest.mark.parametrize("changes", [{"profile": 0}, {"profile": 3, "devices": 2}])
def test_invalid_profiles_are_refused(changes):
    with pytest.raises(ConfigError, match="--profile: expected 1 or more"):
        profile(TrainConfig(data="", **changes))


def test_collect_resets_times():
    times = PartTimes(torch.device("cpu"))
    for name in ("a", "b", "a"):
        with times.part(name):
            pass
    assert set(times.collect()) == {"a", "b"}
    assert times.collect() == {}
