"""Runs survive concurrent runs, invalid states, full disks, kills and failing reports."""

import errno
import os
import re
import resource
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from y7edge import files
from y7edge.data.synthetic import scenes
from y7edge.errors import CheckpointError, ConfigError, DataError, Y7EdgeError
from y7edge.models import weights
from y7edge.train.output import folder
from y7edge.train.run import state
from y7edge.train.run.loop import resume, train
from y7edge.train.run.progress import Progress
from y7edge.train.run.resume import capture, require_fitting
from y7edge.train.run.state import Position, State
from y7edge.train.run.trainer import Trainer
from y7edge.train.settings.config import TINY, TrainConfig
from y7edge.train.setup.parts import build

REAL = files.atomic_write
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Four training images, two validation images."""
    return scenes.generate(tmp_path_factory.mktemp("data"), train=4, val=2, size=(96, 96))


def config(data, out, **changes):
    small = TrainConfig(data=data, width=0.125, imgsz=64, epochs=2, batch=2, workers=0, out=out)
    small = replace(small, device="cpu")  # also on a machine with a GPU
    recipe = replace(TINY, warmup_epochs=0.4)
    return replace(small, **{"report": False, "nominal_batch": 4, "recipe": recipe, **changes})


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The folder of an undisturbed run."""
    return train(config(data, tmp_path_factory.mktemp("whole") / "run")).folder


def assert_equal_runs(one, other):
    for name in ("last.safetensors", "best.safetensors"):
        assert weights.load(one / name).digest == weights.load(other / name).digest


class Recorder(Progress):
    def __init__(self, at=None) -> None:
        self.lines, self.at = [], at

    def log(self, line):
        self.lines.append(line)

    def step(self, status):
        if (status.epoch, status.iteration) == self.at:
            raise KeyboardInterrupt


@pytest.fixture
def stopped(data, tmp_path):
    """The folder of a run that was interrupted in its second epoch."""
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(config(data, out), progress=Recorder((2, 1)))
    return out


# --- concurrent runs -----------------------------------------------------------------------------


def command(*words):
    return [sys.executable, "-m", "y7edge", "train", *map(str, words)]


def together(*words):
    """Start a command twice, and return exit codes and error outputs, those of success first."""
    pair = [
        subprocess.Popen(
            command(*words), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=ENV
        )
        for _ in range(2)
    ]
    outputs = [one.communicate(timeout=120)[1] for one in pair]
    return sorted(zip([one.returncode for one in pair], outputs, strict=True))


def test_second_run_in_a_folder_is_refused(data, tmp_path):
    out = tmp_path / "run"
    words = ["--data", data, "--width", 0.125, "--imgsz", 64, "--batch", 2, "--no-report"]
    (code, _), (other, output) = together(*words, "--epochs", 20, "--out", out)
    assert (code, other) == (0, 1)
    assert re.search(r"error: .*(another run is using|already holds a run)", output)
    assert weights.load(out / "last.safetensors").meta["epoch"] == 20


@pytest.mark.slow
def test_second_resume_of_a_run_is_refused(data, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(config(data, out, epochs=20), progress=Recorder((2, 1)))
    (code, _), (other, output) = together("--resume", out)
    assert (code, other) == (0, 1), output
    assert re.search(r"error: .*(another run is using|the run is finished)", output)
    assert "Traceback" not in output


def test_claimed_folder_is_refused(data, stopped):
    with ExitStack() as held:
        folder.claim(stopped, held)
        with pytest.raises(ConfigError, match="another run is using this folder"):
            resume(stopped)
        for name in ("state", "state-previous", "last", "best"):
            (stopped / f"{name}.safetensors").unlink(missing_ok=True)
        (stopped / "results.csv").unlink()
        with pytest.raises(ConfigError, match="another run is using this folder"):
            train(config(data, stopped))
    train(config(data, stopped))


def test_artifact_can_be_written_to_the_folder_of_a_run(tmp_path):
    (tmp_path / "new").touch()
    with ExitStack() as held:
        run = folder.create(tmp_path / "run", held)
        files.replace_files([(tmp_path / "new", run / "model.onnx")])


def test_lock_ends_with_its_process(tmp_path):
    code = (
        "import os, sys; from contextlib import ExitStack; from pathlib import Path\n"
        "from y7edge.train.output import folder\n"
        "folder.claim(Path(sys.argv[1]), ExitStack()); held = ExitStack()\n"
        "folder.claim(Path(sys.argv[1]), held); print('held', flush=True); input()"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert owner.stdout.readline() == b"held\n"
    with pytest.raises(ConfigError, match="another run"):
        folder.claim(tmp_path, ExitStack())
    owner.kill()
    owner.communicate()
    folder.claim(tmp_path, ExitStack())


def a_link(path):
    (path.parent / "elsewhere").mkdir()
    path.symlink_to(path.parent / "elsewhere")


def a_dangling_link(path):
    path.symlink_to(path.parent / "nowhere")


def a_socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def a_folder_with_a_linked_lock(path):
    path.mkdir()
    (path.parent / "precious").touch()
    (path / folder.LOCK).symlink_to(path.parent / "precious")


@pytest.mark.parametrize(
    "make", [a_link, a_dangling_link, os.mkfifo, a_socket, Path.touch, a_folder_with_a_linked_lock]
)
def test_out_that_is_not_a_folder_is_refused(data, tmp_path, make):
    make(tmp_path / "run")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=str(tmp_path / "run")):
        train(config(data, tmp_path / "run"))
    assert sorted(tmp_path.rglob("*")) == before


# --- states that do not fit ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def trainer(data, tmp_path_factory):
    """A run with gradients and momenta, and a state of it."""
    made = Trainer(build(config(data, tmp_path_factory.mktemp("runs") / "run", image_weights=True)))
    batches = made.learn_epoch()
    next(batches)
    made._read()
    return made, capture(made.parts, Position(1, 1))


KERNEL = "model.rows.0.conv.weight"


def first(state, start):
    return next(name for name in state.arrays if name.startswith(start))


def poisoned(array, value):
    array = array.copy()
    array.flat[0] = value
    return array


MISFITS = {
    "missing": lambda s: {KERNEL: None},
    "missing average": lambda s: {first(s, "average."): None},
    "missing generator": lambda s: {"run.generator": None},
    "missing image weights": lambda s: {"run.image_weights": None},
    "unexpected": lambda s: {"model.other": np.zeros(3, np.float32)},
    "unexpected part": lambda s: {"other.thing": np.zeros(3, np.float32)},
    "unexpected momentum": lambda s: {"optimizer.9999.momentum_buffer": np.zeros(3, np.float32)},
    "unexpected entry": lambda s: {"optimizer.0.step": np.zeros(1, np.float32)},
    "unexpected gradient": lambda s: {"gradients.rows.9999.x": np.zeros(3, np.float32)},
    "shape": lambda s: {KERNEL: s.arrays[KERNEL][:1]},
    "one axis more": lambda s: {KERNEL: s.arrays[KERNEL][None]},
    "no elements": lambda s: {KERNEL: np.zeros((0, 3, 3, 3), np.float32)},
    "dtype": lambda s: {KERNEL: s.arrays[KERNEL].astype(np.float64)},
    "whole numbers": lambda s: {KERNEL: s.arrays[KERNEL].astype(np.int32)},
    "nan": lambda s: {KERNEL: poisoned(s.arrays[KERNEL], np.nan)},
    "infinite average": lambda s: {(k := first(s, "average.")): poisoned(s.arrays[k], np.inf)},
    "anchors": lambda s: {(k := _anchors(s)): s.arrays[k] + 1},
    "gradient's shape": lambda s: {(k := first(s, "gradients.")): s.arrays[k][..., None]},
    "gradient's dtype": lambda s: {(k := first(s, "gradients.")): s.arrays[k].astype(np.int8)},
    "generator's size": lambda s: {"run.generator": s.arrays["run.generator"][:-1]},
    "generator of zeros": lambda s: {"run.generator": 0 * s.arrays["run.generator"]},
    "negative probability": lambda s: {"run.image_weights": np.array([-1.0, 1, 0.5, 0.5])},
    "no probabilities": lambda s: {"run.image_weights": np.zeros(4)},
    "nan as probability": lambda s: {"run.image_weights": np.full(4, np.nan)},
    "others' probabilities": lambda s: {"run.image_weights": np.full(5, 0.2)},
}


def _anchors(state):
    return next(name for name in state.arrays if name.endswith(".anchors"))


def test_captured_state_fits(trainer):
    made, captured = trainer
    assert any(name.startswith("gradients.") for name in captured.arrays)
    require_fitting(made.parts, captured)


@pytest.mark.parametrize("kind", MISFITS)
def test_invalid_arrays_are_refused(trainer, kind):
    made, captured = trainer
    changed = {**captured.arrays, **MISFITS[kind](captured)}
    arrays = {name: array for name, array in changed.items() if array is not None}
    with pytest.raises(CheckpointError, match="a state does not fit the run: "):
        require_fitting(made.parts, State(captured.facts, arrays))


@pytest.mark.parametrize(
    "position", [Position(4), Position(10**9), Position(1, 3), Position(1, 10**30), Position(2)]
)
def test_positions_outside_the_run_are_refused(trainer, position):
    made, captured = trainer
    facts = replace(captured.facts, position=position)
    with pytest.raises(CheckpointError, match="a state does not fit the run: it "):
        require_fitting(made.parts, State(facts, captured.arrays))


@pytest.mark.parametrize("kind", ["array", "anchors", "levels"])
def test_run_resumes_from_the_previous_state(stopped, whole, kind):
    found = state.read(stopped / state.STATE)
    anchors = {"anchors": (((1.0, 1e30),),), "levels": found.facts.began.anchors[:2]}
    if kind == "array":
        del found.arrays[KERNEL]
    else:
        began = replace(found.facts.began, anchors=anchors[kind])
        found = State(replace(found.facts, began=began), found.arrays)
    state.save(state.read(stopped / state.PREVIOUS), stopped)
    state.save(found, stopped)
    recorder = Recorder()
    resume(stopped, progress=recorder)
    assert sum("resuming from state-previous" in line for line in recorder.lines) == 1
    assert_equal_runs(stopped, whole)


def test_run_without_a_usable_state_is_refused(stopped):
    for name in (state.STATE, state.PREVIOUS):
        found = state.read(stopped / name)
        del found.arrays[KERNEL]
        state.save(found, stopped)
    with pytest.raises(CheckpointError, match=rf"{KERNEL} is missing.*--weights ") as caught:
        resume(stopped)
    assert "\n" not in str(caught.value)


# --- limits of exported models ------------------------------------------------


def data_set(folder, names):
    for split in ("train", "val"):
        (folder / "images" / split).mkdir(parents=True)
        (folder / "labels" / split).mkdir(parents=True)
        image = cv2.imencode(".png", np.zeros((64, 64, 3), np.uint8))[1]
        (folder / "images" / split / "0.png").write_bytes(image.tobytes())
        (folder / "labels" / split / "0.txt").write_text("0 .5 .5 .5 .5\n")
    listed = "\n".join(f'  - "{name}"' for name in names)
    (folder / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames:\n{listed}\n")
    return folder / "data.yaml"


@pytest.mark.parametrize(
    ("names", "licence"),
    [
        pytest.param(["a" * 257], "x", id="257 letters"),
        pytest.param(["a", "ü" * 300], "x", id="300 letters"),
        pytest.param(["\\ud83d"], "x", id="one half"),
        pytest.param(["\\e[31mred"], "x", id="terminal escape"),
        pytest.param(["a\\nb"], "x", id="line break"),
        pytest.param(["a\\u202eb"], "x", id="writing direction"),
        pytest.param([f"{i:0250d}" for i in range(9000)], "x", id="more than a manifest holds"),
        pytest.param([f"{i}" for i in range(65537)], "x", id="too many"),
        pytest.param(["a"], "\x1b[31m", id="licence"),
    ],
)
def test_models_that_cannot_be_exported_are_refused(tmp_path, names, licence):
    path = data_set(tmp_path, names)
    with pytest.raises(
        (DataError, ConfigError), match="65536" if len(names) > 65536 else str(path)
    ):
        train(config(path, tmp_path / "run", licence=licence, autoanchor=False))
    assert not (tmp_path / "run").exists()


def test_longest_names_train_and_are_reported(tmp_path):
    names = ["a" * 256, "\\ud83d\\ude00", "$\\\\frac{x$", "<b>&", "=1+1", "日本"]
    path = data_set(tmp_path, names)
    recorder = Recorder()
    result = train(config(path, tmp_path / "run", report=True, epochs=1), progress=recorder)
    assert not [line for line in recorder.lines if "warning" in line]
    assert (result.folder / "report.html").is_file()


def test_data_folder_with_a_name_that_is_not_utf8(tmp_path):
    place = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9\x1b[31m"))
    path = data_set(place, ["a"])
    recorder = Recorder((2, 1))
    with pytest.raises(KeyboardInterrupt):
        train(config(path, place / "run", report=True), progress=recorder)
    again = Recorder()
    resume(place / "run", progress=again)
    assert not [line for line in again.lines if "warning" in line]
    assert (place / "run" / "report.html").is_file()


# --- full disks, failing reports -----------------------------------------------------------------


@contextmanager
def full(path, **_options):
    with REAL(path) as temporary:
        yield temporary
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(temporary))


# Files of a run, and the modules that write them.
NEEDED = {
    "state.safetensors": "y7edge.train.run.state",
    "best.safetensors": "y7edge.models.weights",
    "last.safetensors": "y7edge.models.weights",
    "results.csv": "y7edge.train.output.results",
    "config.yaml": "y7edge.files",
}
OPTIONAL = {
    "results.png": "y7edge.evaluation.plots",
    "report.html": "y7edge.files",
    "pr.png": "y7edge.evaluation.plots",
    "confusion.png": "y7edge.evaluation.plots",
    "predictions.json": "y7edge.files",
    "001.jpg": "y7edge.evaluation.predictions",  # a prediction, and a training batch
}


def fill_disk(patch, module, name, after=0):
    """Make writes of a file fail, except for the first ones."""
    written = []

    def write(path, **options):
        written.append(Path(path).name)
        failing = Path(path).name == name and written.count(name) > after
        return (full if failing else REAL)(path, **options)

    patch.setattr(f"{module}.atomic_write", write)


@pytest.mark.parametrize("name", NEEDED)
@pytest.mark.parametrize("after", [0, 1, 2])
def test_full_disk_ends_the_run_and_keeps_the_state(
    data, tmp_path, whole, name, after, monkeypatch
):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        fill_disk(patch, NEEDED[name], name, after)
        try:
            train(config(data, out, checkpoint_minutes=1e-6))
        except Y7EdgeError as error:
            assert "the disk is full" in str(error) or "No space left" in str(error)
            assert str(out) in str(error)
        else:
            assert after, "every file is written at least once"
    assert not list(tmp_path.rglob(".y7edge-*"))
    kept = [out / name for name in (state.STATE, state.PREVIOUS) if (out / name).exists()]
    if not kept:
        assert after == 0
        return
    if not state.read(kept[0]).facts.finished:
        resume(out)
    assert_equal_runs(out, whole)


@pytest.mark.parametrize("name", OPTIONAL)
def test_full_disk_for_optional_files_does_not_end_the_run(
    data, tmp_path, whole, name, monkeypatch, caplog
):
    out, recorder = tmp_path / "run", Recorder()
    with monkeypatch.context() as patch:
        fill_disk(patch, OPTIONAL[name], name)
        train(config(data, out, report=True), progress=recorder)
    warnings = [line for line in recorder.lines if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert re.search("the disk is full|No space left", warnings[0])
    assert len(caplog.messages) == (name == "001.jpg")
    assert_equal_runs(out, whole)
    assert not (out / "report.html").exists()
    again = Recorder()
    assert resume(out, progress=again).epochs == 2
    assert not [line for line in again.lines if "warning" in line]
    assert (out / "report.html").exists()
    with pytest.raises(ConfigError, match="finished after 2 epochs"):
        resume(out)


def test_full_disk_ends_tensorboard_with_a_warning(data, tmp_path, whole, monkeypatch, caplog):
    real = Path.open

    def opened(path, mode="r", *rest, **options):
        if "tfevents" in path.name:
            return Path("/dev/full").open("wb")
        return real(path, mode, *rest, **options)

    monkeypatch.setattr(Path, "open", opened)
    train(config(data, tmp_path / "run"))
    (line,) = caplog.messages
    assert "tensorboard: no longer written: the disk is full" in line
    assert_equal_runs(tmp_path / "run", whole)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        ValueError("no font\nfor that"),
        RuntimeError("matplotlib"),
        MemoryError(),
        cv2.error("odd data"),
        DataError("gone.jpg: no such file"),
        UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"),
        ImportError("no module named mpl"),
        RecursionError("deep"),
        KeyError("precision"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_failing_report_does_not_fail_the_run(data, tmp_path, whole, error, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("y7edge.train.output.writer.RunWriter.finish", fail)
    recorder = Recorder()
    result = train(config(data, tmp_path / "run", report=True), progress=recorder)
    assert result.epochs == 2
    assert len([line for line in recorder.lines if line.startswith("warning: ")]) == 1
    assert "\n" not in recorder.lines[-1]
    assert_equal_runs(tmp_path / "run", whole)


def test_page_has_no_images_from_outside_the_run(data, tmp_path):
    secret, out = tmp_path / "secret.jpg", tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(config(data, out, report=True), progress=Recorder((2, 1)))
    cv2.imwrite(str(secret), np.zeros((8, 8, 3), np.uint8))
    drawn = out / "batches" / "000.jpg"
    drawn.unlink()
    drawn.symlink_to(secret)
    (out / "batches" / "001.jpg").unlink()
    resume(out)
    page = (out / "report.html").read_text()
    assert "<figcaption>000.jpg" not in page
    assert "<figcaption>002.jpg" in page


def limited(size):
    """Limit files to a size, as a quota does."""
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


SURROUNDINGS = {
    # /proc refuses new files even from root.
    "read-only": dict.fromkeys(("HOME", "TMPDIR", "Y7EDGE_CACHE", "MPLCONFIGDIR"), "/proc"),
    "missing": {"HOME": "none", "TMPDIR": "none"},
}


@pytest.mark.parametrize("kind", [*SURROUNDINGS, "quota"])
def test_disk_and_permission_errors_of_the_command(data, tmp_path, whole, kind):
    words = ["--data", data, "--width", 0.125, "--imgsz", 64, "--batch", 2, "--epochs", 2]
    words += ["--cache", "disk", "--workers", 1, "--out", tmp_path / "run"]
    words += ["--no-report"] if kind != "read-only" else []
    done = subprocess.run(
        command(*words),
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env={**ENV, "Y7EDGE_CACHE": str(tmp_path / "cache"), **SURROUNDINGS.get(kind, {})},
        preexec_fn=(lambda: limited(100_000)) if kind == "quota" else None,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert done.returncode == (kind == "quota"), done.stderr
    if kind == "quota":
        assert re.search(r"^error: .*state\.safetensors cannot be written", done.stderr, re.M)
        assert not list(tmp_path.rglob(".y7edge-*"))
    else:
        assert weights.load(tmp_path / "run" / "best.safetensors")
        assert done.stderr.count("training without a cache") == (kind == "read-only")


# --- kills ---------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, {here!r})
from test_failures import config
from y7edge import files
from y7edge.train.run.loop import resume, train

def make(destination, real=files._make_file):
    made = real(destination)
    if {word!r} in str(destination):
        made.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    return made

files._make_file = make
out = Path({out!r})
resume(out) if out.exists() else train(config({data!r}, out, cache="disk"))
"""


@pytest.mark.slow
def test_temporary_files_of_killed_runs_are_removed(data, tmp_path, whole, monkeypatch):
    """kill -9 inside every kind of write; then the run is resumed."""
    out, cache = tmp_path / "run", tmp_path / "cache"
    for word in ("images", "batches", "state", "results.csv", "best"):
        here = str(Path(__file__).parent)
        code = KILLED.format(here=here, out=str(out), data=str(data), word=word)
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=120,
            env={**ENV, "Y7EDGE_CACHE": str(cache)},
            check=False,
        )
        assert done.returncode == -9, done.stderr
        left = [path for path in tmp_path.rglob(".y7edge-*") if path.read_bytes() == b"half"]
        assert any(path.is_relative_to(cache if word == "images" else out) for path in left)
    monkeypatch.setenv("Y7EDGE_CACHE", str(cache))
    resume(out)
    assert not list(tmp_path.rglob(".y7edge-*"))
    assert_equal_runs(out, whole)
