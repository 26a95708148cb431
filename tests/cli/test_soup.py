"""``y7edge soup``: its table, its file, and refused inputs."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from y7edge.cli import main
from y7edge.models import weights
from y7edge.models.checkpoint import Checkpoint
from y7edge.train.averaging import soup


@pytest.fixture(scope="module")
def pair(narrow_tiny: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A checkpoint, and the same a little elsewhere."""
    folder = tmp_path_factory.mktemp("pair")
    rng = np.random.default_rng(0)
    moved = {
        key: value * rng.uniform(0.99, 1.01, value.shape).astype(np.float32)
        if key.endswith("conv.weight")
        else value
        for key, value in narrow_tiny.arrays.items()
    }
    meta = {"imgsz": 96}
    weights.save(replace(narrow_tiny, meta=meta), folder / "a.safetensors")
    weights.save(replace(narrow_tiny, arrays=moved, meta=meta), folder / "b.safetensors")
    return [str(folder / "a.safetensors"), str(folder / "b.safetensors")]


@pytest.mark.parametrize("better", [True, False])
def test_average_is_written_only_if_it_is_better(
    pair: list[str],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    better: bool,
) -> None:
    monkeypatch.setattr(soup.Soup, "better", better)
    out = tmp_path / "soup.safetensors"
    line = ["soup", *pair, "--data", str(data), "--out", str(out), "--json"]
    assert main(line) == (0 if better else 4)
    printed = capsys.readouterr()
    record = json.loads(printed.out)
    assert [one["name"] for one in record["ingredients"]] == ["a.safetensors", "b.safetensors"]
    assert record["better"] is better
    assert record["out"] == (str(out) if better else None)
    assert out.exists() is better
    if better:
        kept = weights.load(out)
        key = "rows.0.conv.weight"
        one, other = (weights.load(path).arrays[key] for path in pair)
        np.testing.assert_allclose(kept.arrays[key], (one + other) / 2, rtol=1e-5)
    else:
        assert "no file was written, use a.safetensors" in printed.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("soup.onnx", "must end in .safetensors"),
        ("nowhere/soup.safetensors", "no folder"),
        (None, "is one of the ingredients"),
        ("link.safetensors", "a link exists there"),
        ("pipe.safetensors", "a pipe exists there"),
        ("folder.safetensors", "a folder exists there"),
    ],
)
def test_wrong_destinations_are_refused_before_any_work(
    pair: list[str],
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    out: str | None,
    message: str,
) -> None:
    (tmp_path / "link.safetensors").symlink_to(pair[0])
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    place = str(tmp_path / out) if out else pair[0]
    assert main(["soup", *pair, "--data", str(data), "--out", place]) == 1
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
