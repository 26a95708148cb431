"""Printed text: control characters are escaped, and every encoding works."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from y7edge.cli import app, logs, main
from y7edge.cli.console import facts, note, show, table, to_json
from y7edge.errors import DataError, DeviceError
from y7edge.files import is_utf8
from y7edge.text import is_printable

# Names of files, as bytes: what Linux allows, archives and cameras make, and attackers try.
NAMES = [
    *(b"\xff", b"a\xed\xa0\x80", b"M\xfcller", b"\xf0\x9f\x98"),  # not UTF-8
    *(b"a\x1b[31mred\x1b]0;title\x07", b"\xc2\x9b31m", b"a\x08\x7f", b"a\tb\rc", b"a\nerror: b"),
    *(b"\xe2\x80\xaegpj", b"\xe2\x80\xa8", b"\xef\xbf\xbf"),
    *(b"-x", b"=cmd|'x'!A1", b" ", b"%s{0}%n", b"[bold]x[/]", b"$(x)`y`", b"<b>&'\"", b"\\x1b"),
    *("schraube Öse".encode(), "猫👩‍🚀".encode(), b"x" * 200),
]
EACH = pytest.mark.parametrize("name", NAMES, ids=ascii)


def _clean(printed: str) -> list[str]:
    lines = printed.splitlines()
    assert len(lines) == printed.count("\n")  # no other separator of lines
    assert all(map(is_printable, lines))
    assert "internal error" not in printed
    assert "Traceback" not in printed
    return lines


@pytest.fixture
def place(artifact_path: Path, data: Path, tmp_path: Path) -> Callable[[bytes], Path]:
    """Make a folder of a name, with an artifact, an image and a data set of that name in it."""

    def make(name: bytes) -> Path:
        folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
        shutil.copytree(data.parent, folder / "data")
        image = next((data.parent / "images" / "val").iterdir())
        shutil.copy(image, folder / (folder.name + ".png"))
        (folder / (folder.name + ".jpg")).write_bytes(b"damaged")
        shutil.copy(artifact_path, folder / (folder.name + ".onnx"))
        return folder

    return make


@EACH
def test_every_command_escapes_hostile_names(
    name: bytes, artifact_path: Path, place: Callable[[bytes], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = place(name)
    model, own, data = str(artifact_path), str(folder / f"{folder.name}.onnx"), str(folder / "data")
    image = str(folder / f"{folder.name}.png")
    for words, expected in (
        (["predict", model, str(folder), "--save", str(folder / "out")], (1,)),
        (["predict", own, image], (0, 1)),
        (["info", own], (0,)),
        (["selftest", own], (0, 1, 4)),
        (["benchmark", own, "--runs", "1", "--warmup", "1"], (0, 1)),
        (["build", own, "--target", "openvino", "--out", str(folder / "b.onnx")], (1,)),
        (["export", own], (1,)),
        (["verify", own, "--against", image], (1, 2, 4)),
        (["soup", own, image, "--data", data, "--out", str(folder / "s.safetensors")], (1,)),
        (["data", "check", data, "--save", str(folder / "page.html")], (0, 4)),
        (["data", "check", str(folder)], (0, 1, 4)),
        (["val", model, "--data", image], (1,)),
        (["train", "--data", image], (1,)),
        ([folder.name], (2,)),
        (["info", f"--{folder.name}"], (2,)),
        (["info", folder.name + "x"], (1, 2)),
        (["predict", model, image, "--class", folder.name], (1, 2)),
        (["predict", model, image, "--imgsz", folder.name], (2,)),
        (["predict", model, image, "--device", folder.name], (1, 2)),
        (["predict", model, image, "--backend", folder.name], (1, 2)),
        (["val", model, "--data", data, "--split", folder.name], (1, 2)),
    ):
        for as_json in ([], ["--json"]) if words[0] in ("predict", "info") else ([],):
            code = main([*words, *as_json])
            out, err = capsys.readouterr()
            assert code in expected, (words, err)
            lines = _clean(out)
            if as_json:
                records = [json.loads(line) for line in lines]
                if words[:2] == ["predict", model] and words[2] == str(folder):
                    assert [record["source"] for record in records] == [image]
            remarks = _clean(err)
            assert not code or remarks[-1].startswith("error: ")
    assert b"\x1b" not in (folder / "page.html").read_bytes()
    if not is_utf8(own):
        assert main(["selftest", own]) == 1
        assert "engines open UTF-8 paths only: rename it" in capsys.readouterr().err


@pytest.mark.parametrize(
    "variables",
    [
        {"LC_ALL": "C"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "ascii:strict"},
        {"PYTHONIOENCODING": "cp1252:strict"},
        {"PYTHONIOENCODING": "utf-8:surrogateescape"},
    ],
    ids=str,
)
def test_every_locale_can_print_every_name(
    variables: dict[str, str], artifact_path: Path, place: Callable[[bytes], Path]
) -> None:
    folder = place("M\udcfcller 猫\x1b[31m".encode("utf-8", "surrogateescape"))
    encoding = variables.get("PYTHONIOENCODING", "utf-8").split(":")[0]
    for words in (
        ["predict", artifact_path, folder, "--save", folder / "out", "--json"],
        ["data", "check", folder / "data"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "y7edge", *words],
            capture_output=True,
            check=False,
            env={**os.environ, **variables},
        )
        assert done.returncode in (0, 1, 4)
        lines = _clean(done.stdout.decode(encoding))
        assert lines
        assert words[-1] != "--json" or all(isinstance(json.loads(line), dict) for line in lines)
        _clean(done.stderr.decode(encoding))


@EACH
def test_pieces_of_output(name: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    text = name.decode("utf-8", "surrogateescape")
    record = {text: [text, Path(text or "x"), {text: text}]}
    assert "\n" not in to_json(record)
    assert json.loads(to_json(record))[text][0] == text
    show(record, [text, *table([("a", text), (text, 1)]), *facts({"a": text})], as_json=False)
    note(text)
    out, err = capsys.readouterr()
    assert len(_clean(out)) == 4
    assert len(_clean(err)) == 1


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Let ``y7edge check`` raise."""

    def set_up(error: BaseException) -> None:
        def fail() -> None:
            raise error

        monkeypatch.setattr("y7edge.environment.check", fail)

    return set_up


def _caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


LONG = "x\x1b[31m\n" * 100_000
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/a/\x1b\udcff")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (DataError(LONG), "x"),
        (OSError(errno.EIO, os.strerror(errno.EIO), LONG), "x"),
        (OSError(errno.EIO, os.strerror(errno.EIO), b"/\xff"), r"/\udcff: Input/output error"),
        (OSError(LONG), "x"),
        (OSError(), "OSError"),
        (FULL, r"/a/\x1b\udcff: the disk is full"),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "f"), "f: the disk quota is used up"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE), "f"), "f: too many files are open"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS), "f"), "f: Read-only file system"),
        (OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), "f" * 9999), "fff"),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "not enough memory"),
        (MemoryError(), "not enough memory"),
        (MemoryError("Unable to allocate 9 TiB for an array"), "not enough memory"),
        (RuntimeError("std::bad_alloc"), "not enough memory"),
        (_caused(DeviceError("the engine: bad allocation"), RuntimeError("bad allocation")),
         "not enough memory: the engine"),
        (_caused(DeviceError("x: not enough memory: y"), MemoryError()), "x: not enough memory: y"),
        (_caused(DeviceError("out of memory.jpg: damaged"), OSError(5, "no")), "out of memory.jpg"),
        (RecursionError("maximum recursion depth exceeded"), "nested too deeply"),
        (ValueError(LONG), "internal error"),
        (UnicodeEncodeError("utf-8", "\udcff", 0, 1, "no"), "internal error"),
        (ModuleNotFoundError("No module named 'x'", name="x"), "this needs x"),
    ],
    ids=lambda value: ascii(value)[:50],
)  # fmt: skip
@pytest.mark.parametrize("words_before", [[], ["--traceback"]])
def test_errors_are_one_bounded_line(
    error: Exception, words: str, words_before: list[str],
    failing: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    failing(error)
    assert main([*words_before, "check"]) in (1, 3)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert all(map(is_printable, lines))
    assert words_before or len(lines) == 1
    assert lines[-1].startswith(f"error: {words}")
    assert len(lines[-1]) < 2100


def test_warnings_and_logs_are_clean_lines(capsys: pytest.CaptureFixture[str]) -> None:
    app._show_warning(UserWarning(LONG))
    for name in ("y7edge.detect.streaming", "aiohttp.server"):
        logs.Remarks().emit(logging.LogRecord(name, 30, "x", 1, "a %s", ("\x1b\nb",), None))
    lines = _clean(capsys.readouterr().err)
    assert lines[0].startswith("warning: x\\x1b")
    assert lines[1:] == [r"warning: a \x1b b", r"warning: aiohttp.server: a \x1b b"]


@pytest.fixture
def closed() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command with its streams redirected by the shell."""

    def run(words: str, redirected: str) -> subprocess.CompletedProcess[str]:
        line = f"{sys.executable} -m y7edge {words} {redirected}"
        return subprocess.run(line, shell=True, capture_output=True, text=True, check=False)

    return run


@pytest.mark.parametrize("words", ["info", "info --json", "--version", "--help", ""])
@pytest.mark.parametrize(
    ("redirected", "code", "lines"),
    [
        ("> /dev/full", 1, ["error: the disk is full: free some space, or write elsewhere"]),
        (">&-", None, []),
        ("2> /dev/full", None, []),
        ("2>&-", None, []),
        ("< /dev/null >&- 2>&-", None, []),
    ],
)
def test_streams_that_are_full_or_closed(
    words: str, redirected: str, code: int | None, lines: list[str],
    closed: Callable[..., subprocess.CompletedProcess[str]],
) -> None:  # fmt: skip
    done = closed(words, redirected)
    usual = 0 if words else 2
    assert (done.returncode, done.stderr.splitlines()) == (usual if code is None else code, lines)


def test_a_reader_that_ends(closed: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = closed("info --json", "| (exec <&-; sleep 3)")
    assert done.stderr == ""


def test_benchmark_on_a_full_disk(
    artifact_path: Path, closed: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = closed(f"benchmark {artifact_path} --runs 1 --json", "> /dev/full")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("error: the disk is full")


# --- odd values of options ------------------------------------------------------------------------

ANY = ["", "x" * 100_000, "\x1b[2J", "\udcff", "nan", "[" * 5000]
NUMBERS = [*ANY, "-1", "1.5", "9" * 5000, "0x10", "٣", "1e999", "inf"]
OPTIONS = {
    "predict --threads": [*NUMBERS, "0", "1000000"],
    "predict --conf": [*NUMBERS[:8], "2", "-inf", "inf"],
    "predict --iou": [*NUMBERS[:8], "2"],
    "predict --max-det": [*NUMBERS, "0"],
    "predict --imgsz": [*NUMBERS, "0", "99999999", "640x", "axb", "8193", "64x99999"],
    "predict --class": [*ANY, "99", "-1", "0" * 5000, "9" * 5000, "1.0"],
    "predict --device": [*ANY, "cpu:1", "cuda:-1", "cuda:99999999999999999999", "CUDA", "None"],
    "predict --backend": ANY,
    "val --split": ANY,
    "val --threads": ["0", "1000000"],
    "benchmark --runs": [*NUMBERS, "0"],
    "benchmark --warmup": [*NUMBERS, "0"],
    "benchmark --power-interval": [*NUMBERS, "19", "1001"],
    "benchmark --device": ANY,
    "selftest --threads": ["0", "-1", "1000000", "x"],
    "selftest --device": ANY,
    "export --batch": [*NUMBERS, "0", "1000000000"],
    "export --imgsz": [*NUMBERS, "0", "99999999", "33", "1x1", "640x"],
    "export --target": ANY,
    "export --outputs": ANY,
    "export --precision": ANY,
    "export --option": [*ANY, "=", "a=b"],
    "export --device": ANY,
    "export --max-map-drop": [*NUMBERS, "0.1", "2"],
    "export --data": ANY,
    "build --data": ANY,
    "build --target": ANY,
    "diff --threads": ["0", "-1", "1000000", "x"],
    "diff --device": ANY,
    "diff --image": ANY,
    "build --device": ANY,
    "info --imgsz": ["0", "99999999", "٦٤٠", "9" * 5000],
}  # fmt: skip


@pytest.mark.parametrize("option", OPTIONS)
def test_odd_values_of_options(
    option: str, artifact_path: Path, checkpoint_path: Path, data: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    command, name = option.split()
    model, image = str(artifact_path), str(next((data.parent / "images" / "val").iterdir()))
    words = {
        "predict": [model, image],
        "val": [model, "--data", str(data)],
        "export": [str(checkpoint_path), "--out", str(tmp_path / "m.onnx")],
        "diff": [model, model],
        "build": [model, "--out", str(tmp_path / "m.xml")]
        + (["--target", "openvino"] if name != "--target" else []),
    }.get(command, [model])
    main(["check"])  # what is imported first
    for value in OPTIONS[option]:
        capsys.readouterr()
        started = time.monotonic()
        code = main([command, *words, name, value])
        took = time.monotonic() - started
        (line,) = _clean(capsys.readouterr().err)
        assert code in (1, 2), value[:50]
        assert line.startswith("error: ")
        assert len(line) < 2200
        assert took < 5, value[:50]  # a second on a machine that does nothing else
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["predict", "val", "export", "build", "info", "train", "soup"])
@pytest.mark.parametrize("words", [[""], ["--out", ""], ["--save="], ["--device="]], ids=str)
def test_empty_arguments(
    command: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, *words]) == 2
    assert "a shell variable may be unset" in capsys.readouterr().err
