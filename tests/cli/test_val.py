"""``y7edge val``: its table, JSON and files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from y7edge.cli import main
from y7edge.models.checkpoint import Checkpoint
from y7edge.runtimes import base


@pytest.fixture
def words(artifact_path: Path, data: Path) -> list[str]:
    return ["val", str(artifact_path), "--data", str(data)]


def test_json_has_the_new_figures_beside_the_old(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert {"map50", "map50_95", "per_class", "images", "labels", "protocol"} <= set(record)
    assert {"map75", "map_small", "ar100", "ar300", "conf", "precision", "f1"} <= set(record)
    assert {"name", "ap50", "precision", "recall", "f1", "labels"} <= set(record["per_class"][0])
    matrix = record["confusion"]["matrix"]
    assert [sum(row) for row in matrix[:-1]] == [3, 3, 3]  # rows are the truth


def test_table_for_people(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    printed = capsys.readouterr().out
    for part in ("mAP@0.5:0.95", "precision", "recall", "F1", "medium", "all"):
        assert part in printed


def test_saves_curves_images_results_and_a_page(
    words: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "evaluated"
    assert main([*words, "--save", str(out), "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["images"] == 3  # the remark about files is not in the JSON
    assert str(out) in printed.err
    found = {str(path.relative_to(out)) for path in out.rglob("*.*")}
    assert found == {
        *(f"curves/{name}.png" for name in ("precision", "recall", "f1", "pr", "confusion")),
        *(f"predictions/00{index}.jpg" for index in range(3)),
        *("predictions.json", "report.html"),
    }
    results = json.loads((out / "predictions.json").read_text())
    assert {row["image_id"] for row in results} <= {6, 7, 8}  # the names of the images
    assert results and set(results[0]) == {"image_id", "category_id", "bbox", "score"}


def test_plots_need_matplotlib_before_the_evaluation(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(base, "find_spec", lambda name: None if name == "matplotlib" else True)
    assert main([*words, "--save", str(tmp_path / "evaluated")]) == 3
    assert 'matplotlib, which is not installed: pip install "y7edge[train]"' in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "evaluated").exists()


def test_coco_ids_are_for_coco_s_classes(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--coco-ids", "--save", str(tmp_path / "out")]) == 1
    assert "80 classes, this data set has 3" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_invalid_folder_is_refused_before_the_evaluation(
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "y7edge.evaluation.evaluate.collect", lambda *_: pytest.fail("evaluated first")
    )
    (tmp_path / "file").touch()
    assert main([*words, "--save", str(tmp_path / "file")]) == 1
    assert "file: cannot write the results: a file exists there" in capsys.readouterr().err


def test_help_names_every_kind_of_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["val", "--help"]) == 0
    assert "COCO" in capsys.readouterr().out.split("--split")[0]


def test_damaged_image_is_one_line(words: list[str], data: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(data.parent, root)
    image = root / "images/val/6.png"
    image.write_bytes(image.read_bytes()[:3000])
    command = [sys.executable, "-m", "y7edge", *words[:-1], str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {image}: expected an image")
    assert done.stderr.count("\n") == 1


def test_a_full_disk_is_an_error_of_writing(
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("y7edge.evaluation.report.write_page", fail)
    assert main([*words, "--save", str(tmp_path / "out")]) == 1
    assert "out: cannot write the evaluation: the disk is full" in capsys.readouterr().err


def _with_names(data: Path, root: Path, names: list[str], numbers: list[int]) -> Path:
    """A copy of the data with other names; class k becomes number ``numbers[k]``."""
    shutil.copytree(data.parent, root)
    for path in (root / "labels").glob("*/*.txt"):
        rows = (line.split(" ", 1) for line in path.read_text().splitlines())
        path.write_text("".join(f"{numbers[int(c)]} {rest}\n" for c, rest in rows))
    text = (root / "data.yaml").read_text().split("names:")[0]
    (root / "data.yaml").write_text(f"{text}names: {json.dumps(names)}\n")
    return root / "data.yaml"


def test_classes_are_matched_by_name_not_by_number(
    words: list[str],
    data: Path,
    narrow_tiny: Checkpoint,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = list(narrow_tiny.names)
    moved = _with_names(data, tmp_path / "moved", [names[2], names[0], names[1]], [1, 2, 0])
    records = []
    for source in (data, moved):
        assert main([*words[:-1], str(source), "--json"]) == 0
        record = json.loads(capsys.readouterr().out)
        records.append([record[key] for key in ("map50_95", "per_class", "confusion")])
    assert records[0] == records[1]


@pytest.mark.parametrize(("names", "code"), [(["a", "b", "c"], 1), (["0", "1", "2"], 0)])
def test_other_names_are_refused_and_missing_ones_count_by_number(
    names: list[str], code: int, words: list[str], data: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    source = _with_names(data, tmp_path / "other", names, [0, 1, 2])
    assert main([*words[:-1], str(source), "--json"]) == code
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert ("expected the classes" if code else "warning: class") in error
    assert ("correct names in the data set" in error) == bool(code)


@pytest.mark.parametrize("grouped", ["data", "model"])
def test_classes_without_labels_may_be_on_one_side_only(
    grouped: str, words: list[str], data: Path, narrow_tiny: Checkpoint, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """As categories that only group others, which may be in one file of a data set only."""
    names = list(narrow_tiny.names)
    if grouped == "data":
        source = _with_names(data, tmp_path / "set", ["parts", *names], [1, 2, 3])
    else:
        source = _with_names(data, tmp_path / "set", names[1:], [0, 0, 1])
        for path in (source.parent / "labels").glob("*/*.txt"):
            path.write_text("0 .5 .5 .2 .2\n")
    assert main([*words[:-1], str(source), "--json"]) == 0
    printed = capsys.readouterr()
    assert "parts" in printed.err if grouped == "data" else names[0] in printed.err
    labels = {row["name"]: row["labels"] for row in json.loads(printed.out)["per_class"]}
    assert list(labels) == names
    assert (labels[names[0]] > 0) is (grouped == "data")
    refused = _with_names(data, tmp_path / "refused", [*names[:2], "cog"], [0, 1, 2])
    assert main([*words[:-1], str(refused)]) == 1
    assert "expected the classes" in capsys.readouterr().err
