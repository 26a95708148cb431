"""``y7edge data check``: exit codes, table, JSON, page, cleaned copy."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from y7edge.cli import main
from y7edge.cli.data import EXAMPLE
from y7edge.data import synthetic


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    synthetic.generate(tmp_path / "parts", train=10, val=6, seed=3, size=(96, 128))
    return tmp_path / "parts"


def _spoil(parts: Path) -> None:
    path = parts / "labels/train/00001.txt"
    path.write_text(path.read_text() + "7 .5 .5 .2 .2\n")
    (parts / "images/train/00002.jpg").write_bytes(b"")


def test_clean_data_pass(parts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(parts)]) == 0
    printed = capsys.readouterr()
    assert "0 errors, 0 warnings, 0 infos" in printed.out
    assert "train: 10 pictures" in printed.out
    assert printed.err == ""


def test_errors_fail_the_gate(parts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _spoil(parts)
    assert main(["data", "check", str(parts)]) == 4
    printed = capsys.readouterr()
    assert "class_range" in printed.out
    assert "00001.txt" in printed.out
    assert printed.err.count("\n") == 1
    assert "2 errors (class_range, empty_picture)" in printed.err


def test_json_has_everything(parts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _spoil(parts)
    assert main(["data", "check", str(parts), "--json"]) == 4
    result = json.loads(capsys.readouterr().out)
    assert result["errors"] == 2
    assert {f["check"] for f in result["findings"]} == {"class_range", "empty_picture"}
    assert result["summary"]["splits"]["val"]["pictures"] == 6


def test_the_size_of_the_input_decides_what_is_small(
    parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["data", "check", str(parts), "--json", "--imgsz", "32"])
    checks = {f["check"] for f in json.loads(capsys.readouterr().out)["findings"]}
    assert checks == {"small"}


def test_the_page_stands_alone(parts: Path, tmp_path: Path) -> None:
    _spoil(parts)
    page = tmp_path / "report.html"
    main(["data", "check", str(parts), "--save", str(page)])
    text = page.read_text(encoding="utf-8")
    assert "data:image/jpeg;base64," in text
    assert "class 7, but there are 4" in text
    assert not re.search(r'(src|href)="(?!data:)', text)


def test_fix_is_judged_by_the_copy(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _spoil(parts)
    out = tmp_path / "out"
    assert main(["data", "check", str(parts), "--fix", str(out)]) == 0
    assert "changes.csv" in capsys.readouterr().out
    assert main(["data", "check", str(out)]) == 0
    assert main(["data", "check", str(parts), "--fix", str(out)]) == 1
    assert "new or empty folder" in capsys.readouterr().err


def test_nothing_to_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(tmp_path / "gone")]) == 1
    assert main(["data", "check", str(tmp_path)]) == 1
    assert "found none of them" in capsys.readouterr().err


def test_the_command_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", "--help"]) == 0
    assert EXAMPLE in capsys.readouterr().out
    assert main(["data"]) == 2
