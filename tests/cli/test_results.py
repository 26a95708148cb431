"""predict --out FOLDER: killed processes resume, nothing is lost and nothing is there twice."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.cli.test_predict import Predict, lossless_video, predict, scene, use
from tests.fake_model import make_manifest
from y7edge.cli import main

__all__ = ["predict"]
ROOT = Path(__file__).parents[2]
# The fake model, as slow as an engine, in a process of its own.
PROCESS = """
import sys, time
from tests.fake_model import FakeSession, make_manifest
from y7edge import Detector
import y7edge.cli.predict as predict
from y7edge.cli import main

class Slow(FakeSession):
    def _run(self, feeds):
        time.sleep(0.002)
        return super()._run(feeds)

predict.open_detector = lambda *_, **__: Detector.from_session(
    Slow(make_manifest()), make_manifest()
)
sys.exit(main(["predict", "model.onnx", *sys.argv[1:]]))
"""


def images(folder: Path, count: int = 20) -> Path:
    """Images with 0 to 3 objects, a damaged one, a video, and names that are hard to write."""
    folder.mkdir()
    for number in range(count):
        cv2.imwrite(str(folder / f"{number:04}.png"), scene(*range(1, 1 + number % 4)))
    content = cv2.imencode(".png", scene(1))[1].tobytes()
    for name in ("line\nbreak.png", "\x1b[31mred.png", "\udce9.png", '"quoted".png', "0001.PNG"):
        (folder / name).write_bytes(content)
    (folder / "0007a.png").write_bytes(content[:60])
    lossless_video(folder / "0008.mkv", [(1,), (1, 5), ()])
    return folder


def rows(folder: Path) -> list[dict[str, Any]]:
    """All rows, as a reader with a glob sees them."""
    lines = (
        line for p in sorted(folder.glob("part-*.jsonl")) for line in p.read_bytes().splitlines()
    )
    found = [json.loads(line) for line in lines]
    if parts := sorted(folder.glob("part-*.parquet")):
        import pyarrow.parquet as parquet

        found = [row for part in parts for row in parquet.read_table(part).to_pylist()]
    return sorted(found, key=lambda row: json.dumps(row))


def start(*words: object, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROCESS, *map(str, words)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def kill_and_resume(source: Path, out: Path, kills: int, form: str, seed: int) -> list[str]:
    """Kill processes at random times, and let the last one end; return the lines it printed."""
    chosen = random.Random(seed)
    words = (source, "--out", out, "--resume", "--part-size", 7, "--format", form)
    lines = 0  # of the list of parts
    for _ in range(kills):
        process = start(*words)
        journal = out / "_parts.jsonl"
        # The machine may be busy: wait for work, not for time.
        until = lines + chosen.choice((0, 1, 2))
        while process.poll() is None:
            lines = len(journal.read_bytes().splitlines()) if journal.exists() else 0
            if lines >= until:
                break
            time.sleep(0.001)
        time.sleep(chosen.uniform(0, 0.03))
        process.kill()
        process.communicate()
        lines = len(journal.read_bytes().splitlines()) if journal.exists() else 0
    process = start(*words)
    out_text, err = process.communicate(timeout=300)
    assert process.returncode == 1, err  # one image is damaged
    return [*out_text.splitlines(), *err.splitlines()]


def check_kills(tmp_path: Path, count: int, kills: int, form: str, seed: int) -> None:
    source = images(tmp_path / "images", count)
    whole = start(source, "--out", tmp_path / "whole", "--part-size", 7, "--format", form)
    whole.communicate(timeout=300)
    assert whole.returncode == 1
    expected = rows(tmp_path / "whole")
    kill_and_resume(source, tmp_path / "out", kills, form, seed)
    found = rows(tmp_path / "out")
    keys, wanted = ([json.dumps(row) for row in each] for each in (found, expected))
    lost, twice = len(set(wanted) - set(keys)), len(keys) - len(set(keys))
    files = len({row["source"] for row in found})
    print(f"{form}: {files} files, {kills} kills, {len(found)} rows, lost {lost}, twice {twice}")
    assert found == expected
    assert files == count + 7
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def test_killed_processes_lose_nothing(tmp_path: Path) -> None:
    check_kills(tmp_path, count=40, kills=2, form="jsonl", seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_many_killed_processes_lose_nothing(tmp_path: Path, form: str) -> None:
    if form == "parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    check_kills(tmp_path, count=600, kills=40, form=form, seed=2)


def test_the_rows_are_those_of_a_table(tmp_path: Path, predict: Predict) -> None:
    source = images(tmp_path / "images")
    (record,), errors = predict(source, "--out", tmp_path / "r", exits=1)
    assert record["files"] == 27 and record["failed"] == 1 and record["frames"] == 28
    assert record["out"] == str(tmp_path / "r") and record["earlier_files"] == 0
    assert record["images_per_second"] > 0
    assert errors[0].startswith(f"error: {source}/0007a.png: ")
    assert errors[1].endswith(
        f"1 of 27 files could not be read completely: see the column error in {tmp_path}/r"
    )
    predict(source, "--out", tmp_path / "t.jsonl", exits=1)
    table = [json.loads(line) for line in (tmp_path / "t.jsonl").read_bytes().splitlines()]
    found = rows(tmp_path / "r")
    objects = [row for row in found if row["class_id"] is not None]
    assert len(objects) == record["detections"] == len(table)
    assert sorted(table, key=json.dumps) == [
        {name: value for name, value in row.items() if name != "error"} for row in objects
    ]
    assert {row["source"] for row in found} == {str(path) for path in source.iterdir()}
    ((error),) = [row for row in found if row["error"]]
    assert error["source"] == str(source / "0007a.png") and error["image_width"] is None
    # Again: nothing is read, and the damaged file is not tried again.
    (again,), errors = predict(source, "--out", tmp_path / "r", "--resume", exits=1)
    assert (again["earlier_files"], again["failed"], len(errors)) == (27, 1, 1)
    assert rows(tmp_path / "r") == found


def test_equal_names_in_subfolders_and_files_that_are_added(
    tmp_path: Path, predict: Predict
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / "x.png"), scene(1))
    pattern, out = tmp_path / "*" / "*.png", tmp_path / "r"
    predict(pattern, "--out", out)
    cv2.imwrite(str(tmp_path / "a" / "0.png"), scene(1, 2))
    _, lines = predict(pattern, "--out", out, "--resume")
    assert lines == [f"{pattern}: 1 files were added since the earlier run"]
    names = [str(tmp_path / name) for name in ("a/0.png", "a/0.png", "a/x.png", "b/x.png")]
    assert sorted(row["source"] for row in rows(out)) == names


def test_links_and_other_spellings_of_a_folder(
    tmp_path: Path, predict: Predict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    cv2.imwrite("in/0.png", scene(1))
    (tmp_path / "disk").mkdir()
    (tmp_path / "out.v2").symlink_to("disk")
    for source in ("in", "in/", "./in"):
        (record,), _ = predict(source, "--out", "out.v2", "--resume")
        assert record["files"] == 1
    assert [row["source"] for row in rows(tmp_path / "disk")] == ["in/0.png"]


def test_shards_have_all_files_once(tmp_path: Path, predict: Predict) -> None:
    source = images(tmp_path / "images", 40)
    for number in (1, 2, 3):
        (record,), _ = predict(
            *(source, "--out", tmp_path / f"s{number}", "--shard", f"{number}/3", "--resume"),
            exits=int("0007a.png" in _files(source, number)),
        )
        assert 5 < record["files"] < 30
    found = [row["source"] for number in (1, 2, 3) for row in rows(tmp_path / f"s{number}")]
    predict(source, "--out", tmp_path / "whole", exits=1)
    assert sorted(found) == sorted(row["source"] for row in rows(tmp_path / "whole"))
    (record,), _ = predict(source / "0000.png", "--out", tmp_path / "few", "--shard", "1/99999")
    assert record["files"] == 0


def _files(source: Path, number: int) -> set[str]:
    from y7edge.adapters.results import in_shard

    return {path.name for path in source.iterdir() if in_shard(path, number, 3)}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--resume"], "--resume needs --out with the name of a folder"),
        (["--format", "parquet", "--out", "x.parquet"], "--format needs --out"),
        (["--shard", "1/2"], "--shard needs --out"),
        (
            ["--out", "r", "--shard", "3/2"],
            "expected K/N with K from 1 to N, such as 2/8, not '3/2'",
        ),
        (["--out", "r", "--shard", "0/2"], "expected K/N"),
        (["--out", "r", "--part-size", "0"], "--part-size"),
        (["--out", "r", "--format", "csv"], "--format is csv, expected jsonl or parquet"),
        (["--out", "r", "--track"], "--track cannot be resumed"),
        (["--out", "r", "--save", "s"], "--save cannot be resumed"),
        (["--out", "r.txt"], "that of a folder, which must exist if its name has a dot, not r.txt"),
    ],
)
def test_options_that_do_not_fit(
    words: list[str], expected: str, tmp_path: Path, predict: Predict, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    _, errors = predict(tmp_path, *words, exits=2)
    assert expected in errors[-1]
    assert not list(tmp_path.iterdir())


def test_sources_that_do_not_fit(tmp_path: Path, predict: Predict) -> None:
    source = images(tmp_path / "images", 2)
    for name in (f"{source}?loop=1", "test://scenes?frames=2"):
        _, errors = predict(name, "--out", tmp_path / "r", exits=1)
        assert "without a loop" in errors[-1] or "is a live source" in errors[-1]
    assert not (tmp_path / "r").exists()


def test_another_model_or_option_is_refused(
    tmp_path: Path, predict: Predict, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = images(tmp_path / "images", 3), tmp_path / "r"
    predict(source, "--out", out, exits=1)
    before = rows(out)
    _, errors = predict(source, "--out", out, exits=1)
    assert errors == [f"error: {out}: has results: add --resume, or choose another folder"]
    for words, expected in {
        ("--tile", "64"): "results with overlap null, not 0.2",
        ("--shard", "1/2"): "results with shard null, not [1, 2]",
        ("--format", "parquet"): 'results with format "jsonl", not "parquet"',
    }.items():
        _, errors = predict(source, "--out", out, "--resume", *words, exits=1)
        assert expected in errors[-1]
    _, errors = predict(f"{source}/*.png", "--out", out, "--resume", exits=1)
    assert f'results with source "{source}", not' in errors[-1]
    monkeypatch.chdir(tmp_path)
    predict("images", "--out", "relative", exits=1)
    shutil.copytree(source, tmp_path / "other" / "images")
    monkeypatch.chdir(tmp_path / "other")
    _, errors = predict("images", "--out", "../relative", "--resume", exits=1)
    assert "results with working directory" in errors[-1]
    use(monkeypatch, make_manifest(payload_digest="cd" * 32))
    _, errors = predict(source, "--out", out, "--resume", exits=1)
    assert 'results with model "abab' in errors[-1]
    assert rows(out) == before


def test_16_bit_levels_are_part_of_the_run(tmp_path: Path, predict: Predict) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.full((64, 96), 4095, np.uint16))
    words = ("--out", tmp_path / "r", "--resume")
    (record,), _ = predict(f"{tmp_path}/a.png?levels=0-4095", *words)
    assert record["detections"] > 10  # white
    _, errors = predict(f"{tmp_path}/a.png?levels=0-9000", *words, exits=1)
    assert "results with" in errors[-1]


def test_an_interruption_is_reported(
    tmp_path: Path, predict: Predict, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = images(tmp_path / "images", 200), tmp_path / "r"
    process = start(source, "--out", out)
    while not list(out.glob(".y7edge-part*")):
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    *_, last, end = err.splitlines()
    count = int(last.split()[0])
    if count:
        assert last == f"{count} of 207 files are written: continue with --resume"
        assert len({row["source"] for row in rows(out)}) == count
    assert end == "interrupted"
    assert not list(out.glob(".*"))
    assert main(["predict", "model.onnx", str(source), "--out", str(out), "--resume"]) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{out}: 207 files, 208 images, ")
    assert second.startswith(f"{207 - count} files in ")
    assert len({row["source"] for row in rows(out)}) == 207


def test_a_full_disk(tmp_path: Path, predict: Predict) -> None:
    """The limit for the size of a file acts as a full disk does."""
    source, out = images(tmp_path / "images", 60), tmp_path / "r"

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))

    process = start(source, "--out", out, "--part-size", 40, preexec_fn=limit)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "cannot write the rows: the file is larger than the system allows" in err
    assert "Traceback" not in err
    predict(source, "--out", out, "--part-size", 40, "--resume", exits=1)
    predict(source, "--out", tmp_path / "whole", exits=1)
    assert rows(out) == rows(tmp_path / "whole")
    assert not list(out.glob(".*"))


@pytest.mark.slow
def test_the_second_process_is_refused(tmp_path: Path) -> None:
    source, out = images(tmp_path / "images", 300), tmp_path / "r"
    first = start(source, "--out", out)
    while not list(out.glob(".y7edge-part*")):
        time.sleep(0.01)
        assert first.poll() is None
    first.send_signal(signal.SIGSTOP)
    second = start(source, "--out", out, "--resume")
    _, err = second.communicate(timeout=60)
    first.send_signal(signal.SIGCONT)
    first.communicate(timeout=120)
    assert second.returncode == 1
    words = "another process writes results there: wait until it ends, or choose another folder"
    assert err == f"error: {out}: {words}\n"
    assert len({row["source"] for row in rows(out)}) == 307


def test_a_folder_that_cannot_be_written(
    tmp_path: Path, predict: Predict, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = images(tmp_path / "images", 2)
    monkeypatch.setattr(os, "open", _read_only(os.open, str(tmp_path / "r")))
    _, errors = predict(source, "--out", tmp_path / "r", exits=1)
    assert (
        errors == [f"error: {tmp_path}/r: cannot write the results: Read-only file system"]
        or "Read-only file system" in errors[-1]
    )
    assert main(["predict", "m.onnx", str(source), "--out", str(source / "0000.png" / "r")]) == 1


def _read_only(call: Any, folder: str) -> Any:
    def instead(path: Any, flags: int, *words: Any, **more: Any) -> int:
        if str(path).startswith(folder) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(30, "Read-only file system", str(path))
        return int(call(path, flags, *words, **more))

    return instead
