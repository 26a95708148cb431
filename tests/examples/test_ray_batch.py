"""Ray Data with two local actors finds what `y7edge predict --out FOLDER` finds."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from y7edge.cli import main
from y7edge.data.synthetic import scenes

EXAMPLE = Path(__file__).parents[2] / "examples" / "scale" / "ray_batch.py"


def test_form():
    text = EXAMPLE.read_text(encoding="utf-8")
    assert text.count("\n") <= 60
    assert text.index('os.environ["RAY_USAGE_STATS_ENABLED"] = "0"') < text.index("import ray")


@pytest.mark.slow
def test_the_rows_are_those_of_predict(tmp_path, parts_model):
    if importlib.util.find_spec("ray") is None or importlib.util.find_spec("pyarrow") is None:
        pytest.skip("the packages ray and pyarrow are not installed")
    import pyarrow.dataset as dataset

    images = tmp_path / "images"
    images.mkdir()
    for number in range(60):
        content = scenes.scene(number, (120 + number, 160)).image  # images of several sizes
        cv2.imwrite(str(images / f"{number}.png"), content)
    (images / "empty.jpg").touch()
    (images / "damaged.png").write_bytes((images / "0.png").read_bytes()[:900])
    cv2.imwrite(str(images / "nothing.png"), content[:32, :32] * 0)
    (images / "notes.txt").write_text("not an image")
    words = [sys.executable, str(EXAMPLE), str(parts_model), str(images), str(tmp_path / "ray")]
    done = subprocess.run(
        [*words, "--workers", "2"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        text=True,
        capture_output=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # The two images that cannot be read do not stop the job.
    words = ["predict", str(parts_model), str(images), "--out", str(tmp_path / "own")]
    assert main([*words, "--format", "parquet", "--threads", "1"]) == 1

    def read(name):
        table = dataset.dataset(tmp_path / name, format="parquet").to_table()
        return sorted(table.to_pylist(), key=str)

    found, expected = read("ray"), read("own")
    assert found == expected
    files = {row["source"] for row in found}
    assert len(files) == 63
    failed = [row for row in found if row["error"]]
    lost, twice = len(expected) - len(found), len(found) - len(set(map(str, found)))
    print(
        f"{len(files)} files, {len(found)} rows, lost {lost}, twice {twice}, failed {len(failed)}"
    )
    assert len(failed) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "images", "words"),
    [("missing.onnx", ".", "there is no file missing.onnx"), ("", "missing", "error: missing")],
)
def test_mistakes_are_one_line(run, parts_model, model, images, words):
    pytest.importorskip("ray.data", reason="the packages ray and pyarrow are not installed")
    code, lines, err = run("scale/ray_batch.py", model or parts_model, images, "found")
    assert code != 0 and lines == []
    assert words in err.splitlines()[-1]
    assert "Traceback" not in err
