"""The moving average against the published implementation's numbers."""

import json
from pathlib import Path

import pytest
import torch

from y7edge.train.averaging.average import ModelEma

GOLDEN = json.loads(
    (Path(__file__).parents[2] / "reference/golden/train.json").read_text(encoding="utf-8")
)["ema"]


class Toy(torch.nn.Module):
    """The golden file's toy: a weight of two numbers and a batch norm's buffers."""

    def __init__(self) -> None:
        super().__init__()
        start = GOLDEN["toy_start"]
        self.w = torch.nn.Parameter(torch.tensor(start["w"]))
        self.register_buffer("running_mean", torch.tensor(start["running_mean"]))
        self.register_buffer("num_batches_tracked", torch.tensor(start["num_batches_tracked"]))


@pytest.mark.parametrize("row", GOLDEN["decay"], ids=lambda row: f"update{row['updates']}")
def test_decay_grows_as_published(row):
    ema = ModelEma(Toy(), decay=GOLDEN["decay_max"], tau=GOLDEN["tau"])
    assert ema.decay(row["updates"]) == pytest.approx(row["decay"], rel=1e-9)


def test_average_follows_the_published_sequence():
    toy = Toy()
    ema = ModelEma(toy)
    for row in GOLDEN["toy_updates"]:
        with torch.no_grad():
            toy.w.copy_(torch.tensor(row["model_w"]))
            toy.running_mean.fill_(row["model_running_mean"])
            toy.num_batches_tracked += 1
        ema.update(toy)
        assert ema.updates == row["update"]
        assert ema.model.w.tolist() == pytest.approx(row["ema_w"], rel=2e-7, abs=2e-6)
        assert float(ema.model.running_mean) == pytest.approx(row["ema_running_mean"], rel=2e-7)
        assert int(ema.model.num_batches_tracked) == row["ema_num_batches_tracked"]


def test_average_is_a_copy_of_the_model():
    toy = Toy().train().half()
    ema = ModelEma(toy)
    assert ema.model.w.dtype == torch.float32
    assert not ema.model.training
    assert not ema.model.w.requires_grad
    with torch.no_grad():
        toy.w += 1
    assert ema.model.w.tolist() == GOLDEN["toy_start"]["w"]
