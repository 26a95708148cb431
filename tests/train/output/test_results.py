"""Results, folder and progress of a run."""

import io
from contextlib import ExitStack
from dataclasses import replace

import cv2
import pytest
from rich.console import Console

from y7edge.errors import ConfigError, DataError
from y7edge.train.output import folder
from y7edge.train.output.results import EpochRow, read_csv, write_csv, write_png
from y7edge.train.output.writer import fitness
from y7edge.train.run.progress import Bar, Lines, Progress, Status, clock, for_terminal

ROWS = [
    EpochRow(1, 0.07, 0.02, 0.03, 0.01, 12.5, 400.0),
    EpochRow(2, 0.06, 0.015, 0.02, 0.009, 12.25, 410.0, map50=0.5, map50_95=0.25),
]
STATUS = Status(3, 60, 4, 13, 0.071, 0.021, 0.031, 0.0099, 812.0, 3725.0)


def test_table_round_trip(tmp_path):
    path = tmp_path / "results.csv"
    write_csv(ROWS, path)
    assert read_csv(path) == ROWS
    head, first, _ = path.read_text(encoding="utf-8").splitlines()
    assert head.startswith("epoch,box,obj,cls,lr,seconds,memory_mb,map50,map50_95,map75,map_small")
    assert first.endswith(
        ",400" + 11 * ","
    )  # an epoch that was not evaluated has no mAP, not a mAP of 0


@pytest.mark.parametrize("text", ["", "epoch,loss\n1,2\n"])
def test_foreign_table_is_refused(tmp_path, text):
    path = tmp_path / "results.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"results\.csv: expected the columns epoch, box"):
        read_csv(path)


def test_table_of_an_earlier_version_is_read(tmp_path):
    path = tmp_path / "results.csv"
    head = "epoch,box,obj,cls,lr,seconds,memory_mb,map50,map50_95"
    path.write_text(f"{head}\n1,.07,.02,.03,.01,12.5,400,.5,.25\n", encoding="utf-8")
    assert read_csv(path) == [EpochRow(1, 0.07, 0.02, 0.03, 0.01, 12.5, 400.0, 0.5, 0.25)]


def test_curves_are_reproducible(tmp_path):
    write_png(ROWS, tmp_path / "a.png")
    write_png(ROWS, tmp_path / "b.png")
    assert cv2.imread(str(tmp_path / "a.png")).shape == (360, 1200, 3)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_fitness_weights():
    assert fitness(ROWS[1]) == pytest.approx(0.1 * 0.5 + 0.9 * 0.25)
    with pytest.raises(ValueError, match="epoch 1 was not evaluated"):
        fitness(ROWS[0])


def test_unnamed_runs_get_the_next_free_folder(tmp_path):
    names = [folder.create(None, ExitStack(), tmp_path).name for _ in range(3)]
    assert names == ["train", "train2", "train3"]


def test_folder_in_use_is_refused(tmp_path):
    with ExitStack() as held:
        folder.claim(tmp_path, held)
        (tmp_path / "results.csv").touch()
        with pytest.raises(ConfigError, match="another run is using this folder"):
            folder.check_free(tmp_path)
    with pytest.raises(ConfigError, match="already holds a run"):
        folder.check_free(tmp_path)


def test_folder_is_refused_only_for_files_of_a_run(tmp_path):
    (tmp_path / "notes.txt").touch()
    assert folder.create(tmp_path, ExitStack()) == tmp_path
    (tmp_path / "results.csv").touch()
    with pytest.raises(ConfigError, match=r"already holds a run \(results\.csv\)"):
        folder.create(tmp_path, ExitStack())
    with pytest.raises(ConfigError, match="cannot create the folder"):
        folder.create(tmp_path / "notes.txt", ExitStack())


@pytest.mark.parametrize("name", ["state.safetensors", "state-previous.safetensors"])
def test_folder_with_only_a_state_is_a_run_to_resume(name, tmp_path):
    # A run that was killed in its first epoch must not be overwritten.
    (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=rf"holds a run \({name}\): resume it with --resume "):
        folder.check_free(tmp_path)


def test_unwritable_folder_is_refused_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ConfigError, match=r"(file: is a file|a file exists there)"):
            folder.check_free(out)
    folder.check_free(tmp_path / "new" / "run")
    folder.check_free("relative/run")
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr("os.access", lambda *_: False)  # tests may run as root
    with pytest.raises(ConfigError, match=f"{tmp_path}: not writable"):
        folder.check_free(tmp_path / "new" / "run")


def test_log_has_one_line_per_epoch():
    stream = io.StringIO()
    lines = for_terminal(stream)
    assert isinstance(lines, Lines)
    lines.step(STATUS)
    lines.epoch(ROWS[0], epochs=2, left=61.0)
    lines.epoch(ROWS[1], epochs=2, left=0.0)
    lines.close()
    assert stream.getvalue().splitlines() == [
        "epoch 1/2: box 0.0700  obj 0.0200  cls 0.0300  lr 0.01000  12.5 s  400 MB  left 1:01",
        "epoch 2/2: box 0.0600  obj 0.0150  cls 0.0200  lr 0.00900  12.2 s  410 MB  "
        "mAP50 0.500  mAP50-95 0.250",
    ]


def test_bar_shows_losses_rate_memory_and_time_left():
    stream = io.StringIO()
    bar = Bar(Console(file=stream, force_terminal=True, width=160, color_system=None))
    bar.step(STATUS)
    bar.step(replace(STATUS, iteration=13))
    bar.epoch(ROWS[1], epochs=60, left=0.0)
    bar.close()
    text = stream.getvalue()
    for part in ("epoch 3/60", "13/13", "box 0.0710", "lr 0.00990", "812 MB", "left 1:02:05"):
        assert part in text
    assert "mAP50-95 0.250" in text


@pytest.mark.parametrize(
    "made", [Progress(), Lines(io.StringIO()), Bar(Console(file=io.StringIO()))]
)
def test_displays_have_the_same_interface(made):
    assert isinstance(made, Progress)
    made.close()  # also before any output


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3661, "1:01:01")]
)
def test_clock(seconds, text):
    assert clock(seconds) == text
