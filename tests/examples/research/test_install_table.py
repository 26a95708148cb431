"""The table of docs/install.md, with a program that stands in for uv."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("tomllib", reason="the script needs Python 3.11")
ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "examples" / "research" / "install_table.py"
# Three messages of uv 0.13.9, shortened; the package is taken out by an override before the next.
UV = f"""#!{sys.executable}
import sys
from pathlib import Path
words = sys.argv[1:]
if words[0] == "--version":
    sys.exit(print("uv 0.0"))
assert words[:2] == ["pip", "compile"] and words[3:5] == ["--only-binary", ":all:"], words
extra = words[words.index("--extra") + 1] if "--extra" in words else ""
left = Path(words[words.index("--overrides") + 1]).read_text()
windows = "x86_64-pc-windows-msvc" in words
lacking = []
if extra == "tensorrt":
    lacking += ["hint: Wheels are required for `tensorrt` because building from source is",
                "hint: Wheels are required for `pycuda` because building from source is disabled"]
if extra == "qnn" and not windows:
    lacking += ["hint: Wheels are available for `onnxruntime-qnn` (v2.7.0) on the following"]
if extra == "coreml" and windows:
    lacking += ["hint: You require CPython 3.12, but we\\n only found wheels for `coremltools`"]
if extra == "mnn" and windows:
    sys.exit("error: the network is down")
lacking = [line for line in lacking if line.split("`")[1] + " ;" not in left]
if lacking:
    sys.exit("error: No solution found\\n" + "\\n".join(lacking))
print("numpy==" + ("2.2.6" if windows else "2.5.5"))
print("typer==0.29.2 ; sys_platform == 'linux'")
"""


@pytest.fixture
def run(tmp_path):
    program = tmp_path / "bin" / "uv"
    program.parent.mkdir()
    program.write_text(UV)
    program.chmod(0o755)

    def run(*arguments, path=program.parent):
        return subprocess.run(
            [sys.executable, str(SCRIPT), *map(str, arguments)],
            env={**os.environ, "PATH": str(path)},
            capture_output=True,
            text=True,
        )

    return run


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_every_package_without_a_wheel_is_named(run):
    done = run("--only", "x86-64")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert cells(lines[0]) == ["extra", "Linux x86-64"]
    rows = dict(cells(line) for line in lines[2 : lines.index("")])
    assert rows["(none)"] == rows["`cpu`"] == rows["`coreml`"] == "wheels"
    assert rows["`tensorrt`"] == "not pycuda, tensorrt"
    assert rows["`qnn`"] == "not onnxruntime-qnn"
    assert "`dev`" not in rows
    assert "| numpy | 2.5.5 |" in lines
    assert lines[-1].endswith("with uv 0.0. Linux x86-64: x86_64-manylinux_2_28, Python 3.12.")


def test_other_faults_of_uv_end_the_script(run, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- install: begin -->\nold\n<!-- install: end -->\n")
    done = run("--only", "Windows", "--write", page)
    assert done.returncode == 1
    assert done.stderr.startswith("error: uv, mnn for Windows x64: error: the network is down")
    assert "old" in page.read_text()
    assert run("--only", "Windows", path=tmp_path).stderr == (
        "error: uv was not found: pip install uv\n"
    )
    assert "no platform has ['Plan9']" in run("--only", "Plan9").stderr


def test_the_page_gets_the_table(run, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- install: begin -->\nold\n<!-- install: end -->\nafter\n")
    assert run("--only", "x86-64", "--write", page).returncode == 0
    text = page.read_text()
    assert text.startswith("before\n<!-- install: begin -->\n\n| extra | Linux x86-64 |\n")
    assert text.endswith("Python 3.12.\n<!-- install: end -->\nafter\n") and "old" not in text


def test_the_committed_table_has_all_extras():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    page = (ROOT / "docs" / "install.md").read_text()
    made = page.partition("<!-- install: begin -->")[2].partition("<!-- install: end -->")[0]
    rows = {cells(line)[0] for line in made.splitlines() if line.startswith("| `")}
    assert rows == {f"`{name}`" for name in project["optional-dependencies"] if name != "dev"}
