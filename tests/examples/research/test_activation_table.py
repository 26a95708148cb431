"""The table of activations: rows, ratios, and the tables of a page."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from y7edge.data.synthetic.scenes import generate

ROOT = Path(__file__).parents[3]
PAGE = "# A\n<!-- time -->\n<!-- end -->\nB\n<!-- mAP -->\nold\n<!-- end -->\nC\n"


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Run the script; return its exit code, rows and printed lines."""
    monkeypatch.syspath_prepend(str(ROOT / "examples/research"))
    out = tmp_path / "rows.jsonl"

    def call(*words):
        import activation_table

        monkeypatch.setattr("sys.argv", ["script", *map(str, words), "--out", str(out)])
        code = activation_table.main()
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        return code, rows, capsys.readouterr()

    yield call
    for name in ("activation_table", "int8_table"):
        sys.modules.pop(name, None)


def row(act, ms, **changes):
    return {"kind": "time", "model": "yolov7", "size": 64, "graph": "g", "act": act, "ms": ms} | (
        changes
    )


def test_ratios_are_those_to_the_usual_activation(run, tmp_path):
    rows = [row("relu", 9.0), row("silu", 12.0), row("relu", 6.0)]
    rows.append({"kind": "mAP", "act": "silu", "model": "m", "size": 64, "epoch": 3})
    rows[-1]["mAP"] = {"g": 0.25}
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in rows))
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    code, found, shown = run("--page", page)
    assert (code, found) == (0, rows)
    text = page.read_text()
    for line in (
        "| yolov7, 64 px | g | 0.50 | - | 1.00 | - | 12.0 |",
        "| silu | m, 64 px | 3 | 0.2500 |",
    ):
        assert line in text
        assert line in shown.out
    assert "old" not in text
    assert "\nB\n" in text
    assert text.startswith("# A\n<!-- time -->\n") and text.endswith("<!-- end -->\nC\n")
    run("--page", page)
    assert page.read_text() == text


def test_a_page_without_marks_is_not_changed(run, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A\n")
    code, _, shown = run("--page", page)
    assert code == 1
    assert "expected <!-- time --> once, and then <!-- end -->" in shown.err
    assert page.read_text() == "# A\n"


def test_the_page_of_the_documentation_has_the_marks():
    text = (ROOT / "docs/activations.md").read_text()
    assert [text.count(f"<!-- {name} -->") for name in ("time", "mAP", "end")] == [1, 1, 2]


@pytest.mark.slow
def test_times_and_accuracy(run, tmp_path):
    pytest.importorskip("openvino")
    code, rows, _ = run("--imgsz", 64, "--runs", 2)
    assert code == 0
    assert len(rows) == 16
    assert {r["act"] for r in rows} == {"relu", "leaky", "silu", "hardswish"}
    assert all(r["ms"] > 0 for r in rows)
    data = generate(tmp_path / "data", train=8, val=4, size=(160, 160))
    demo = ROOT / "tests/reference/demo.safetensors"
    code, rows, shown = run("--checkpoints", demo, "--data", data, "--imgsz", 160)
    assert code == 0
    assert rows[-1]["act"] == "leaky"
    assert all(0.3 < value <= 1 for value in rows[-1]["mAP"].values())
    assert "| leaky |" in shown.out
