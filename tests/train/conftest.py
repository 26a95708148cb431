"""The published loss (`tests/reference/golden/loss.*`) with its predictions rebuilt; threads."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

GOLDEN = Path(__file__).parents[1] / "reference" / "golden"


@dataclass(frozen=True)
class LossCase:
    heads: list[Tensor]  # lead levels, requiring gradients
    aux: list[Tensor]  # the same of the auxiliary head; empty where there is none
    targets: Tensor
    anchors: Tensor
    record: dict[str, Any]
    arrays: dict[str, np.ndarray]  # keys without the name of the case


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Small kernels are slower with threads, and equal runs must be bit-identical."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def loss_case() -> Callable[[str], LossCase]:
    records = {c["case"]: c for c in json.loads((GOLDEN / "loss.json").read_text())["cases"]}
    with np.load(GOLDEN / "loss.npz") as stored:
        arrays = dict(stored)

    def get(name: str) -> LossCase:
        record = records[name]
        heads = [_head(**pred) for pred in record["preds"]]
        levels = len(record["strides"])
        return LossCase(
            heads=heads[:levels],
            aux=heads[levels:],
            targets=torch.tensor(record["targets"], dtype=torch.float32).reshape(-1, 6),
            anchors=torch.tensor(record["anchors_grid_units"]),
            record=record,
            arrays={
                k.removeprefix(f"{name}/"): v for k, v in arrays.items() if k.startswith(f"{name}/")
            },
        )

    return get


def _head(key: str, shape: list[int], a: float, b: float, first4: list[float]) -> Tensor:
    random = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))
    values = random.standard_normal(shape, dtype="float32") * np.float32(b) + np.float32(a)
    np.testing.assert_array_equal(values.ravel()[:4], np.float32(first4))
    return torch.from_numpy(values).requires_grad_()
