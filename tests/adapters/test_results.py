"""Results of many files in a folder: what a killed process leaves, and how the next continues."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from y7edge.adapters.results import Counts, Results, in_shard
from y7edge.adapters.rows import COLUMNS, ERROR
from y7edge.detect.detections import Detections
from y7edge.errors import ConfigError, DeviceError, OutputError, RuntimeMissing, SourceError
from y7edge.frames import Frame

SETTINGS = {"model": "ab", "conf": 0.25}
PIXELS = np.zeros((4, 6, 3), np.uint8)
NAMES = [
    *(f"{i:02}.jpg" for i in range(20)),
    "20.mp4",
    "21 bad.jpg",
    "22 cut.mp4",
    "23\n\udcff.jpg",
]
FRAMES = {"20.mp4": 7, "22 cut.mp4": 3, "21 bad.jpg": 0}


@pytest.fixture(autouse=True)
def unsynced(monkeypatch):
    """Syncing takes long on a busy disk, and makes no difference for a process."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def frames(name):
    """The frames of a file; some files cannot be read, or not to the end."""
    for number in range(FRAMES.get(name, 1)):
        yield Frame(PIXELS, source=name, sequence=number)
    if " " in name:
        raise SourceError(f"{name!a}: damaged")


def detect(frame):
    """As many objects as the number of the file, modulo 3."""
    count = int(frame.source[:2]) % 3
    boxes = np.full((count, 4), frame.sequence + 1, np.float32) * [0.1, 0.1, 1, 1]
    number = frame.sequence if frame.source.endswith("mp4") else None
    return Detections(
        boxes, [0.5] * count, [0] * count, (6, 4), ("nut",), frame_id=number, source=frame.source
    )


def run(folder, names=NAMES, settings=SETTINGS, detect=detect, **options):
    """Write the results; return them."""
    options = {"part": 6, "resume": True, **options}
    with Results(folder, [Path(name) for name in names], settings, **options) as results:
        opened = ((name, frames(name)) for name in list(results.pending()))
        results.fill(opened, detect)
    return results


def read(folder, kind="jsonl"):
    """All rows, in the order of the parts."""
    parts = sorted(folder.glob(f"part-*.{kind}"))
    if kind == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        return [row for part in parts for row in parquet.read_table(part).to_pylist()]
    return [json.loads(line) for part in parts for line in part.read_bytes().splitlines()]


def key(row):
    return tuple(map(str, row.values()))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The rows of a run that was not interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "results"
    run(folder, resume=False)
    return read(folder)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_file_has_rows(tmp_path, whole):
    results = run(tmp_path / "r", resume=False)
    assert results.counts == Counts(files=24, frames=31, detections=38, failed=2)
    assert results.earlier == Counts() and len(results) == 24
    assert list(whole[0]) == [*COLUMNS, ERROR]
    assert list(dict.fromkeys(row["source"] for row in whole)) == NAMES
    for name in NAMES:
        own = [row for row in whole if row["source"] == name]
        found = [row for row in own if row["class_id"] is not None]
        count = FRAMES.get(name, 1)
        assert len(found) == count * (int(name[:2]) % 3)
        # An image without objects, and a file that cannot be read, have one row each.
        assert [row[ERROR] for row in own if row not in found] == (
            [None] * (count if int(name[:2]) % 3 == 0 else 0)
            + ([f"{name!a}: damaged"] if " " in name else [])
        )
    names = sorted(path.name for path in (tmp_path / "r").iterdir())
    assert names[:3] == ["_files.jsonl", "_parts.jsonl", "_run.json"]
    assert names[3:] == [f"part-{i:05}.jsonl" for i in range(5)]


def test_parquet_has_the_same_rows(tmp_path, whole):
    dataset = pytest.importorskip("pyarrow.dataset", reason="pyarrow is not installed")
    run(tmp_path, format="parquet")
    found = read(tmp_path, "parquet")
    assert len(found) == len(whole)
    for row, expected in zip(found, whole, strict=True):
        if expected["source"] == NAMES[-1]:  # Arrow has no strings that are not UTF-8
            expected = expected | {"source": "23\n\\udcff.jpg"}
        assert {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()} == expected
    # The folder itself is a data set: readers skip names that start with "_".
    assert dataset.dataset(tmp_path, format="parquet").count_rows() == len(whole)


def test_nothing_is_left_to_do(tmp_path, whole):
    run(tmp_path)
    before = content(tmp_path)
    results = run(tmp_path, detect=lambda _: pytest.fail("detected again"))
    assert results.earlier == results.counts == Counts(24, 31, 38, 2)
    assert content(tmp_path) == before


CALLS = ("replace", "fsync", "open", "unlink", "chmod")


def in_child(work):
    """Run a function in a process of its own; return its exit code."""
    child = os.fork()
    if not child:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die_at(count):
    """Let this process die before its ``count``-th call of the system, and never clean up."""
    left = iter(range(count))

    def dying(call):
        def instead(*words, **more):
            if next(left, None) is None:
                os._exit(9)
            return call(*words, **more)

        return instead

    for name in CALLS:
        setattr(os, name, dying(getattr(os, name)))


def test_a_kill_at_any_write_loses_nothing(tmp_path, whole):
    kills = 0
    for count in range(10_000):
        folder = tmp_path / str(count)

        def work(folder=folder, count=count):
            die_at(count)
            run(folder)

        code = in_child(work)
        if code == 0:
            break
        assert code == 9
        kills += 1
        results = run(folder, part=1 + count % 9)
        assert results.counts == Counts(24, 31, 38, 2)
        assert read(folder) == whole, f"after call {count}"
        assert not [p for p in folder.iterdir() if p.name.startswith(".")]
    assert kills > 20


def test_a_part_is_on_the_disk_before_its_line(tmp_path, monkeypatch):
    """What a power failure leaves depends on the order of syncs and renames."""
    events = []
    rename = os.replace

    def replace(old, new):
        rename(old, new)
        events.append(f"rename {Path(new).name}")

    def fsync(handle):
        events.append(f"sync {Path(f'/proc/self/fd/{handle}').readlink().name}")

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(os, "fsync", fsync)
    run(tmp_path, NAMES[:12])
    folder = f"sync {tmp_path.name}"
    names = [re.sub(r"\.y7edge-(.*)-.{8}\.", r"\1.", event) for event in events]
    expected = []
    for name in ("_files.jsonl", "_run.json", "part-00000.jsonl", "part-00001.jsonl"):
        expected += [f"sync {name}", f"rename {name}", folder]
        expected += ["sync _parts.jsonl"] if name.startswith("part") else []
    assert names == expected


def test_a_torn_line_of_the_list_of_parts(tmp_path, whole):
    run(tmp_path / "whole")
    lines = (tmp_path / "whole" / "_parts.jsonl").read_bytes().splitlines(keepends=True)
    for kept in (0, 1, 4):
        for end in (b"", lines[kept][:1], lines[kept][:-1], bytes(50)):
            folder = tmp_path / f"{kept}-{len(end)}"
            folder.mkdir()
            for path in (tmp_path / "whole").iterdir():
                number = int(path.stem[5:]) if path.stem.startswith("part-") else -1
                if number <= kept:  # the last one is complete, but has no line
                    (folder / path.name).write_bytes(path.read_bytes())
            (folder / "_parts.jsonl").write_bytes(b"".join(lines[:kept]) + end)
            assert run(folder, part=3).counts.files == 24
            assert read(folder) == whole


@pytest.mark.parametrize("error", [KeyboardInterrupt, DeviceError])
def test_complete_files_are_written_after_an_interruption(tmp_path, whole, error):
    calls = 0

    def interrupted(frame):
        nonlocal calls
        calls += 1
        if calls == 10 or frame.source == "20.mp4":
            raise error
        return detect(frame)

    with pytest.raises(error):
        run(tmp_path, detect=interrupted)
    assert [path.name for path in sorted(tmp_path.glob("part*"))] == [
        *("part-00000.jsonl", "part-00001.jsonl")
    ]
    assert len({row["source"] for row in read(tmp_path)}) == 9
    with pytest.raises(error):
        run(tmp_path, detect=interrupted)
    assert len({row["source"] for row in read(tmp_path)}) == 20  # no frame of the video
    run(tmp_path)
    assert read(tmp_path) == whole


def test_a_file_is_written_whole_or_not_at_all(tmp_path, whole):
    def interrupted(frame):
        if frame.sequence == 4:
            raise KeyboardInterrupt
        return detect(frame)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, detect=interrupted)
    assert {row["source"] for row in read(tmp_path)} == set(NAMES[:18])  # 3 parts
    run(tmp_path)
    assert read(tmp_path) == whole


def test_two_processes_are_refused(tmp_path):
    pytest.importorskip("fcntl", reason="Windows has no flock")
    with Results(tmp_path, [Path("a.jpg")], SETTINGS):
        for resume in (False, True):
            with pytest.raises(OutputError, match="another process writes"):
                Results(tmp_path, [Path("a.jpg")], SETTINGS, resume=resume)
    run(tmp_path, ["00.jpg"])


def test_results_are_not_replaced(tmp_path):
    run(tmp_path, part=6)
    before = content(tmp_path)
    with pytest.raises(ConfigError, match="has results: add --resume"):
        run(tmp_path, resume=False)
    with pytest.raises(ConfigError, match=r"results with conf 0.25, not 0.5"):
        run(tmp_path, settings=SETTINGS | {"conf": 0.5})
    with pytest.raises(ConfigError, match='results with model "ab", not "cd"'):
        run(tmp_path, settings={"model": "cd", "conf": 0.25})
    with pytest.raises(ConfigError, match="results with shard null, not"):
        run(tmp_path, settings=SETTINGS | {"shard": (1, 2)})
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    with pytest.raises(ConfigError, match='results with format "jsonl", not "parquet"'):
        run(tmp_path, format="parquet")
    assert content(tmp_path) == before


def test_options_are_checked(tmp_path, monkeypatch):
    for options in ({"format": "csv"}, {"part": 0}):
        with pytest.raises(ConfigError):
            run(tmp_path / "r", **options)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(RuntimeMissing, match=r"y7edge\[parquet\]"):
        run(tmp_path / "r", format="parquet")
    assert not (tmp_path / "r").exists()


def test_a_run_that_wrote_nothing_starts_again(tmp_path, whole):
    def interrupted(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, detect=interrupted, settings={"conf": 0.1}, resume=False)
    run(tmp_path, resume=False)
    assert read(tmp_path) == whole


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(OutputError, match=r"has other files, such as notes.txt"):
        run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    (tmp_path / "notes.txt").rename(tmp_path / "part-00000.jsonl")  # of another program
    with pytest.raises(OutputError, match=r"has other files, such as part-00000.jsonl"):
        run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["part-00000.jsonl"]
    file = tmp_path / "part-00000.jsonl" / "r"
    with pytest.raises(OutputError, match="cannot write the results"):
        run(file)


def edit(name, old, new):
    def change(folder):
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return change


def truncate(folder):
    os.truncate(folder / "part-00004.jsonl", 100)


DAMAGES = {
    "truncated part": (truncate, r"part-00004.jsonl: has 100 bytes, [\d,]+ were written"),
    "no run": (lambda folder: (folder / "_run.json").unlink(), r"_run.json: was changed or"),
    "bad run": (edit("_run.json", "{", "["), r"_run.json: was changed or damaged"),
    "run of another type": (edit("_run.json", '{\n "s', '[{\n "s'), "_run.json: was changed"),
    "another schema": (edit("_run.json", '"schema": 1', '"schema": 2'), "another version"),
    "no files": (lambda folder: (folder / "_files.jsonl").unlink(), r"_files.jsonl: was changed"),
    "a file removed": (edit("_files.jsonl", '"07.jpg"\n', ""), "the files of part-00001.jsonl"),
    "a file renamed": (edit("_files.jsonl", "07.jpg", "08.jpg"), "the files of part-00001.jsonl"),
    "spaces": (edit("_files.jsonl", '"07.jpg"', ' "07.jpg"'), "the files of part-00001.jsonl"),
    "a line removed": (edit("_parts.jsonl", '{"part": "part-00001', '{"part": "x'), "line 2"),
    "no JSON": (edit("_parts.jsonl", '"first": 6', '"first": '), "line 2"),
    "a gap": (edit("_parts.jsonl", '"first": 6', '"first": 7'), "line 2: expected part-00001"),
    "no files in it": (edit("_parts.jsonl", '"files": 6', '"files": 0'), "line 1"),
    "negative": (edit("_parts.jsonl", '"frames": 6', '"frames": -6'), "line 1"),
    "parts without lines": (
        lambda folder: (folder / "_parts.jsonl").write_text(""), "has no line in it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_a_folder_that_was_changed_is_refused(tmp_path, name):
    change, words = DAMAGES[name]
    run(tmp_path)
    change(tmp_path)
    before = content(tmp_path)
    with pytest.raises((OutputError, ConfigError), match=words) as caught:
        run(tmp_path)
    assert "\n" not in str(caught.value)
    assert content(tmp_path) == before


def test_a_missing_part_is_made_again(tmp_path, whole):
    run(tmp_path)
    for name in ("part-00001.jsonl", "part-00003.jsonl"):
        (tmp_path / name).unlink()
    detected = []

    def counted(frame):
        detected.append(frame.source)
        return detect(frame)

    results = run(tmp_path, detect=counted, part=2)
    assert results.redone == ["part-00001.jsonl", "part-00003.jsonl"]
    assert list(dict.fromkeys(detected)) == [*NAMES[6:12], *NAMES[18:21]]
    assert results.counts == Counts(24, 31, 38, 2)
    assert read(tmp_path) == whole
    (tmp_path / "part-00001.jsonl").unlink()  # again: the list of parts has two lines for it
    run(tmp_path)
    assert read(tmp_path) == whole


def test_an_interruption_does_not_shorten_a_part_that_is_made_again(tmp_path, whole):
    run(tmp_path)
    (tmp_path / "part-00001.jsonl").unlink()

    def interrupted(frame):
        if frame.source == "09.jpg":
            raise KeyboardInterrupt
        return detect(frame)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, detect=interrupted)
    assert not (tmp_path / "part-00001.jsonl").exists()
    run(tmp_path)
    assert read(tmp_path) == whole


def test_files_that_were_added_come_last(tmp_path, whole):
    first = NAMES[1::2]
    run(tmp_path, first)
    results = run(tmp_path, NAMES)
    assert results.added == 12
    assert results.earlier.files == 12
    assert sorted(map(key, read(tmp_path))) == sorted(map(key, whole))
    assert [row["source"] for row in read(tmp_path)][-1] == NAMES[-2]
    # Of files that were removed, the results remain.
    results = run(tmp_path, NAMES[:2])
    assert (results.added, len(results)) == (0, 24)
    assert sorted(map(key, read(tmp_path))) == sorted(map(key, whole))


def test_files_that_all_fail_do_not_make_one_part(tmp_path):
    names = [f"{i:02} bad.jpg" for i in range(20)]
    FRAMES.update(dict.fromkeys(names, 0))
    results = run(tmp_path, names)
    assert results.counts == Counts(20, 0, 0, 20)
    assert len(list(tmp_path.glob("part-*"))) == 4


def test_shards_divide_the_files():
    names = [Path(f"/data/{i:06}.jpg") for i in range(4000)]
    shards = [{name for name in names if in_shard(name, k, 8)} for k in range(1, 9)]
    assert set.union(*shards) == set(names)
    assert sum(map(len, shards)) == len(names)
    assert all(400 < len(shard) < 600 for shard in shards)
    assert in_shard(Path("/mnt/000007.jpg"), 3, 8) == (names[7] in shards[2])
    assert all(in_shard(name, 1, 1) for name in names[:9])
