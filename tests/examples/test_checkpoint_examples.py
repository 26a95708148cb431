"""The examples that train and export; and the size of all examples."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from y7edge import Detector
from y7edge.data.synthetic import scenes
from y7edge.export.targets import registry as targets

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
DEMO = ROOT / "tests" / "reference" / "demo.safetensors"
# The demo of `make demo` and the measurements of the documentation are programs, not examples.
PROGRAMS = ("demo", "research")
MOST_LINES = 60


@pytest.mark.parametrize(
    "path",
    [
        path
        for path in sorted(EXAMPLES.rglob("*.py"))
        if path.relative_to(EXAMPLES).parts[0] not in PROGRAMS
    ],
    ids=lambda path: path.name,
)
def test_examples_are_short_and_start_with_their_purpose(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    assert text.startswith(('"""', 'r"""'))


def test_every_example_is_in_the_table() -> None:
    """docs/examples.md has a row for each file or folder of examples/."""
    page = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w./]+)` \|", page, re.M)
    present = {
        path.name + ("/" if path.is_dir() else "")
        for path in EXAMPLES.iterdir()
        if path.name != "__pycache__"
    }
    listed = {row if row in present else row.partition("/")[0] + "/" for row in rows}
    assert present <= listed
    for row in rows:
        assert (EXAMPLES / row).exists(), row


@pytest.mark.slow
def test_training_on_own_data(run, tmp_path):
    data = scenes.generate(tmp_path / "data", 8, 4, size=(96, 96))
    out = tmp_path / "run"
    code, lines, err = run(
        *("train_custom.py", data, "--imgsz", 64, "--epochs", 1, "--batch", 4, "--out", out),
    )
    assert code == 0, err
    assert [line.partition(":")[0] for line in lines] == [*scenes.NAMES, "all", "next"]
    assert re.fullmatch(r"all: mAP@0.5 [01]\.\d{3}, mAP@0.5:0.95 [01]\.\d{3}", lines[-2])
    assert lines[-1] == f"next: y7edge export {out / 'best.safetensors'} --out mine.onnx"
    with Detector(out / "best.safetensors") as detector:
        assert detector.names == tuple(scenes.NAMES)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train_custom.py", "missing.yaml"], "error: missing.yaml"),
        (["export_all.py", "missing.safetensors"], "error: "),
        (["export_all.py", DEMO, "--only", "onx"], "error: no target 'onx'"),
    ],
    ids=lambda value: str(value)[:30],
)
@pytest.mark.slow
def test_mistakes_are_one_line(run, words, message):
    code, lines, err = run(*words)
    assert code == 1
    assert lines == []
    assert err.startswith(message)
    assert err.count("\n") == 1


@pytest.mark.slow
def test_the_demo_explains_itself(run, tmp_path):
    code, lines, _ = run("demo/demo.py", "--help")
    assert code == 0 and lines[0] == "usage: demo.py [-h]"
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_all_artifacts(run, tmp_path):
    code, lines, err = run("export_all.py", DEMO, "--threads", 1, "--only", "onnx", "openvino")
    assert code == 0, err
    kinds = [
        (name, precision)
        for name in ("onnx", "openvino")
        for precision in targets.get(name).PRECISIONS
    ]
    assert [tuple(line.split()[:2]) for line in lines] == [("target", "precision"), *kinds]
    for line in lines[1:]:
        if " int8 " in line:
            assert "give --data or --calib" in line
        else:
            assert (tmp_path / line.split()[-1]).is_file()
            assert float(line.split()[-2]) > 0  # ms
