"""docs/results.md: its examples run, and its lists are those of the code."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from y7edge.adapters.rows import COLUMNS
from y7edge.cli import main
from y7edge.data import dataset
from y7edge.data.synthetic import scenes

pytestmark = pytest.mark.slow  # the page's own test runs its examples too

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
CHECKPOINT = ROOT / "tests" / "reference" / "demo.safetensors"
EXAMPLES = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
(DESCRIPTION,) = re.findall(r"^   ```yaml\n(.*?)^   ```", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the examples write, run in the order of the page."""
    pytest.importorskip("trackers", reason="the package trackers is not installed")
    from y7edge.export import export
    from y7edge.models import weights

    folder = tmp_path_factory.mktemp("results")
    export(weights.load(CHECKPOINT), folder / "mine.onnx", imgsz=160)
    names: dict[str, object] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for example in EXAMPLES:
            exec(compile(example, "docs/results.md", "exec"), names)
    names["detector"].close()
    (folder / "names.json").write_text(
        json.dumps({"seen": len(names["seen"]), "inside": len(names["inside"])})
    )
    return folder


@pytest.mark.slow
def test_the_examples_write_what_the_page_says(folder):
    assert len(EXAMPLES) == 7
    table = (folder / "parts.csv").read_text("utf-8").splitlines()
    assert table[0].split(",") == list(COLUMNS)
    assert len(table) > 100
    assert {line.split(",")[11] for line in table[1:]} <= set(scenes.NAMES)
    numbers = json.loads((folder / "names.json").read_text())
    assert 3 <= numbers["seen"] <= 60
    lines = [line for path in folder.glob("recordings/*.jsonl") for line in path.open()]
    assert len(lines) == 60
    assert len(list(folder.glob("recordings/belt-000001-*.mp4"))) == 1


def test_columns_and_options_are_those_of_the_code(folder):
    named = re.search(r"The columns are always the same:\n(.*?)\.\n", TEXT, re.DOTALL)
    assert re.findall(r"`(\w+)`", named[1]) == list(COLUMNS)
    links = re.findall(r"`(tests/[\w/.]+)`", TEXT)
    assert links and all((ROOT / link).is_file() for link in links)


@pytest.fixture(scope="module")
def both(folder):
    """The last data set and the hard frames, as in the page."""
    scenes.generate(folder / "parts", train=6, val=4)
    (folder / "both.yaml").write_text(DESCRIPTION.replace("\n   ", "\n").strip())
    return folder / "both.yaml"


def test_hard_frames_join_the_last_data_set(folder, both, capsys):
    assert main(["data", "check", str(folder / "hard" / "data.yaml")]) == 0
    hard = len(list((folder / "hard" / "images").iterdir()))
    assert hard > 0
    loaded = dataset.load(both, splits=("train", "val"))
    assert len(loaded.split("train")) == 6 + hard
    assert len(loaded.split("val")) == 4
    assert yaml.safe_load(both.read_text())["names"] == list(scenes.NAMES)
    assert main(["data", "check", str(both)]) == 0
    capsys.readouterr()


@pytest.mark.slow
@pytest.mark.parametrize("data", ["both.yaml", "hard/data.yaml"])
def test_hard_frames_are_trained_on(folder, both, data, capsys):
    words = ["train", "--data", folder / data, "--weights", CHECKPOINT, "--recipe", "finetune"]
    words += ["--width", "0.5", "--imgsz", "64", "--epochs", "1", "--batch", "2", "--workers", "0"]
    out = folder / f"run-{Path(data).parent.name}"
    assert main([str(word) for word in [*words, "--out", out]]) == 0, capsys.readouterr().err
    assert (out / "best.safetensors").is_file()
