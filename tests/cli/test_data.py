"""``y7edge data check``: exit codes, table, JSON, page, fixed copy."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from y7edge.cli import main
from y7edge.cli.data import EXAMPLE
from y7edge.data.synthetic import scenes


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    scenes.generate(tmp_path / "parts", train=10, val=6, seed=3, size=(96, 128))
    return tmp_path / "parts"


def _spoil(parts: Path) -> None:
    path = parts / "labels/train/00001.txt"
    path.write_text(path.read_text() + "7 .5 .5 .2 .2\n")
    (parts / "images/train/00002.jpg").write_bytes(b"")


def test_clean_data_pass(parts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(parts)]) == 0
    printed = capsys.readouterr()
    assert "0 errors, 0 warnings, 0 infos" in printed.out
    assert "train: 10 images" in printed.out
    assert printed.err == ""


def test_errors_fail_the_gate(parts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _spoil(parts)
    assert main(["data", "check", str(parts)]) == 4
    printed = capsys.readouterr()
    assert "class_range" in printed.out
    assert "00001.txt" in printed.out
    assert printed.err.count("\n") == 1
    assert "2 errors (class_range, empty_image)" in printed.err


def test_json_has_everything(parts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _spoil(parts)
    assert main(["data", "check", str(parts), "--json"]) == 4
    result = json.loads(capsys.readouterr().out)
    assert result["errors"] == 2
    assert {f["check"] for f in result["findings"]} == {"class_range", "empty_image"}
    assert result["summary"]["splits"]["val"]["images"] == 6


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
    assert "expected a class from 0 to 3, found 7" in text
    assert not re.search(r'(src|href)="(?!data:)', text)


def test_exit_code_with_fix_is_that_of_the_copy(
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
    assert "found none of these" in capsys.readouterr().err


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", "--help"]) == 0
    assert EXAMPLE in capsys.readouterr().out
    assert main(["data"]) == 2


@pytest.mark.parametrize(
    "target",
    ["", "parts", "parts/data.yaml", "parts/images/train/00001.jpg", "parts/labels/train/1.txt",
     "parts/images/train/new.jpg", "mine.html", "pipe.html", "mine.html/page.html"],
)  # fmt: skip
def test_page_does_not_replace_other_files(
    target: str, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.html").write_text("<html>my thesis</html>")
    os.mkfifo(tmp_path / "pipe.html")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    save = str(tmp_path / target) if target else ""
    assert main(["data", "check", str(parts), "--save", save]) == (1 if target else 2)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert (target or "empty argument") in error
    assert "/." not in error
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_older_page_is_replaced(parts: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    for _ in range(2):
        assert main(["data", "check", str(parts), "--save", str(page)]) == 0


@pytest.mark.parametrize("target", ["", ".", "file", "link", "file/out"])
def test_copy_does_not_replace_other_files(
    target: str,
    parts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("gone")
    monkeypatch.chdir(tmp_path / "empty")
    out = str(tmp_path / target) if target not in ("", ".") else target
    assert main(["data", "check", str(parts), "--fix", out]) == (1 if target else 2)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert ".y7edge-" not in error
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "file", "link", "parts"]


@pytest.mark.parametrize(("encoding", "options"), [("cp1252", []), ("ascii", ["--json"])])
def test_names_that_cannot_be_shown(
    encoding: str, options: list[str], parts: Path, tmp_path: Path
) -> None:
    for name in ("größe \u65e5\u672c", os.fsdecode(b"caf\xe9"), "\U0001f600"):
        Image.new("RGB", (64, 64)).save(parts / "images/train/plain.png")
        (parts / "images/train/plain.png").rename(parts / f"images/train/{name}.png")
    command = [sys.executable, "-m", "y7edge", "data", "check", str(parts), *options]
    command += ["--save", str(tmp_path / "page.html")]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert b"caf" in (tmp_path / "page.html").read_bytes()
    if options:
        files = {finding["file"] for finding in json.loads(done.stdout)["findings"]}
        assert any(name.endswith("caf\udce9.png") for name in files)
    else:
        assert "\\udce9" in done.stdout.decode(encoding)


def test_closed_output(parts: Path) -> None:
    command = f"{sys.executable} -m y7edge data check {parts} >&-"
    done = subprocess.run(command, shell=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_terminal_names_the_full_report(parts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = parts / "labels/train/00001.txt"
    path.write_text(path.read_text() + "200 .5 .5 .2 .2\n200 .5 .5 .3 .2\n")
    text = (parts / "data.yaml").read_text()
    names = "".join(f"  {i}: name{i}\n" for i in range(80))
    (parts / "data.yaml").write_text(re.sub(r"names:.*", f"names:\n{names}", text, flags=re.S))
    assert main(["data", "check", str(parts)]) == 4
    printed = capsys.readouterr().out
    assert "... 60 more classes" in printed
    assert "name19" in printed
    assert "name21 " not in printed
    assert "--json has all" in printed
    assert "--save report.html" in printed


def test_page_shows_images_of_each_class(parts: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert main(["data", "check", str(parts), "--save", str(page)]) == 0  # no findings
    text = page.read_text(encoding="utf-8")
    for name in scenes.NAMES:
        assert len(re.findall(rf'<img [^>]*alt="{name}"', text)) == 2
    assert "Red: the boxes of the class" in text
