"""The table of int8 graphs, and the runs in vendors' tools, with few images and without NPUs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from y7edge.data.synthetic.scenes import generate

ROOT = Path(__file__).parents[3]
DEMO = str(ROOT / "tests/reference/demo.safetensors")

# In place of a vendor's interpreter. It refuses graphs of opset 21, computes the others with ONNX
# Runtime, and adds 1 to the outputs.
FAKE = """#!{python}
import json, sys
if "-c" in sys.argv:
    print(json.dumps({{name: "1.0" for name in sys.argv[4:]}}))
    sys.exit()
import numpy as np, onnx, onnxruntime
vendor, path, options = sys.argv[-3:]
assert vendor == "qnn" and json.loads(options) == {{"chip": "75"}}
if onnx.load(path).opset_import[0].version == 21:
    print(json.dumps({{"error": "not this opset"}}))
    sys.exit(1)
print(json.dumps({{"versions": {{"qnn": "1.0"}}, "seconds": 0.5}}), flush=True)
session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
for line in sys.stdin:
    image = line.strip()
    found = session.run(None, {{"images": np.load(image)}})
    np.savez(image.replace(".npy", ".npz"), *[array + 1 for array in found])
    print(json.dumps({{"seconds": 0.25}}), flush=True)
"""


@pytest.fixture(scope="module")
def scripts():
    """The modules int8_table and int8_vendors, which import each other as scripts do."""
    sys.path.insert(0, str(ROOT / "examples/research"))
    import int8_table
    import int8_vendors

    yield int8_table, int8_vendors
    sys.path.pop(0)
    for name in ("int8_table", "int8_vendors"):
        del sys.modules[name]


@pytest.fixture
def run(scripts, monkeypatch, tmp_path, capsys):
    """Run a script with a small model, and return its exit code, rows and printed lines."""
    out = tmp_path / "rows.jsonl"

    def call(module, *words):
        monkeypatch.setattr("sys.argv", ["script", *words, "--out", str(out)])
        code = module.main()
        rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
        return code, rows, capsys.readouterr().out.splitlines()

    return call


def test_rows_are_measured_once(scripts, run):
    table, _ = scripts
    few = ("--imgsz", "64", "--images", "2", "--ranges", "minmax", "--runs", "1")
    words = (DEMO, *few, "--profile", "u8s8", "--target", "onnx")
    code, (row,), lines = run(table, *words)
    assert code == 0
    assert (row["model"], row["floats"], row["layers"]) == ("demo", 3, 58)
    assert row["share"] > 0.9 and row["cosine"] > 0.9 and row["logits"] < 1
    assert row["speed"] == pytest.approx(row["ms"] / row["ms_fp32"])
    assert "map" not in row
    shown = dict(zip(lines[0].split(" | "), lines[2].split(" | "), strict=True))
    assert shown["layers in float"] == "3 of 58" and shown["mAP"] == "-"
    code, rows, again = run(table, *words)
    assert (code, rows, again) == (0, [row], lines)
    _, rows, _ = run(table, *words, "--int8-heads")
    assert [(r["heads"], r["floats"]) for r in rows] == [("float", 3), ("int8", 0)]
    assert run(table)[2][3].split(" | ")[2] == "u8s8, int8 heads"


def test_problems_are_errors_of_one_line(scripts, run, tmp_path, monkeypatch, capsys):
    table, vendors = scripts
    assert run(table, str(tmp_path / "no.safetensors"))[0] != 0
    monkeypatch.setenv("Y7EDGE_QNN_PYTHON", sys.executable)  # has no onnxruntime-qnn
    code, rows, _ = run(vendors, DEMO, "--imgsz", "64", "--images", "1", "--vendor", "qnn")
    assert (code, rows) == (3, [])


@pytest.mark.slow
def test_graphs_in_a_vendors_tool(scripts, run, tmp_path, monkeypatch):
    _, vendors = scripts
    python = tmp_path / "python"
    python.write_text(FAKE.format(python=sys.executable))
    python.chmod(0o755)
    monkeypatch.setenv("Y7EDGE_QNN_PYTHON", str(python))
    words = (DEMO, "--imgsz", "64", "--images", "1", "--vendor", "qnn")
    code, rows, lines = run(vendors, *words, "--profile", "u8s8", "--profile", "u16s8")
    assert (code, len(rows), len(lines)) == (0, 4, 6)
    accepted, refused = rows[:2], rows[2:]
    assert [row["heads"] for row in rows] == ["float", "int8"] * 2
    assert {row["state"] for row in refused} == {"refused: not this opset"}
    for row in accepted:
        assert (row["state"], row["seconds"], row["prepared"]) == ("accepted", 0.25, 0.5)
        assert 0.5 < row["logits"] - row["same_logits"] <= 1  # the fake adds 1
        assert row["boxes"] < 1 and row["scores"] > 0
    assert refused[0]["same_cosine"] > 0.9


@pytest.mark.slow
def test_layers_go_back_to_float(scripts, run, tmp_path):
    """With a limit that no graph reaches, half of the multiplications stay in int8."""
    table, _ = scripts
    data = generate(tmp_path / "scenes", 8, 4, seed=0)
    words = ("--data", str(data), "--imgsz", "96", "--images", "8", "--ranges", "minmax")
    more = ("--profile", "u8s8", "--target", "onnx", "--runs", "1", "--max-map-drop")
    _, (row,), _ = run(table, DEMO, *words, *more, "-1")
    assert row["floats"] > 3 and row["attempts"] > 3 and 0.5 <= row["share"] < 0.7
    assert row["drop"] == pytest.approx(row["reference"] - row["map"])
