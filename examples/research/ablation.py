"""Repeat the paper's ablations on a small scale, with several seeds.

    cd examples/research
    python ablation.py                        # synthetic images, more than an hour on one core
    python ablation.py --data data.yaml --imgsz 320 --width 0.5 --epochs 60 --seeds 5
    python ablation.py --only auxiliary

YOLOv7 (arXiv 2207.02696) adds parts to a plain detector that have no cost after folding. This
script trains narrow models with and without each of these parts:

* repconv: plain 3x3 convolutions in the chains of a YOLOv7's computational blocks, RepConv with
  identity branch (which ``y7edge.models.planning`` allows only on request), and RepConv without
  identity branch (the paper's RepConvN);
* auxiliary: a YOLOv7-W6 without auxiliary heads, and with each of the three assigners;
* implicit: the head with and without implicit knowledge;
* average: the exponential moving average of the weights, and the last weights.

All settings of an experiment have the same data, recipe, length, seeds and order of images. A model
is evaluated once, after the last epoch, so that no best epoch is selected. A training that belongs
to two experiments runs once. After an interruption, the same command resumes at the same step. Two
processes can use the same folder if they share no training, for example one with
``--only auxiliary`` and one with ``--only repconv implicit average``. Then the command without
``--only`` combines their results.

Writes ``results.json``, ``results.csv``, ``table.md``, ``ablation.png`` and a folder for each
training into ``--out``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ablation_report import Result, write
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichBar

from y7edge.data.dataset import load
from y7edge.data.synthetic import scenes
from y7edge.errors import ConfigError, Y7EdgeError
from y7edge.files import atomic_write
from y7edge.models import registry
from y7edge.models.planning import reparameterize
from y7edge.models.scaling import scale
from y7edge.models.spec import Spec
from y7edge.train.output import folder as files
from y7edge.train.output.results import EpochRow, read_csv
from y7edge.train.run import state
from y7edge.train.run.loop import resume, train
from y7edge.train.run.progress import Progress, Status
from y7edge.train.settings.config import TrainConfig
from y7edge.train.settings.recipes import TINY

DATA_SEED = 0
# Options that all trainings in a folder share.
SETTINGS = ("data", "images", "epochs", "imgsz", "width", "batch")

# As in the demo: no mosaic, in which parts would be only a few pixels wide; larger gains, because
# the published rule scales them down for few classes and small inputs; an average over fewer steps.
# Gradients are clipped, because they are very large if a coarse level has a single positive.
RECIPE = replace(
    TINY,
    augmentation=replace(TINY.augmentation, mosaic=0.0, scale=0.3, flipud=0.5),
    lr0=0.05,
    ema_decay=0.99,
    ema_tau=100.0,
    clip_norm=10.0,
    box=0.2,
    obj=6.0,
    cls=6.0,
)


@dataclass(frozen=True)
class Setting:
    """The options of a training that an experiment varies."""

    model: str = "yolov7"
    chains: str = "plain"  # convolutions in the chains of the blocks: plain, RepConv or RepConvN
    assigner: str | None = None  # of the auxiliary heads; None: no auxiliary heads
    implicit: bool = True
    average: str = "ema"

    def spec(self, nc: int, width: float) -> Spec:
        """Return the model description to train."""
        spec = scale(registry.get(self.model, nc=nc), width=width)
        if self.chains != "plain":
            rows = tuple(row.index for row in spec.rows if row.role == "chain")
            identity = self.chains == "RepConv"
            spec = reparameterize(spec, rows, identity=identity, allow_identity=identity)
        if self.assigner is None:
            spec = registry.without_auxiliary(spec)
        return spec if self.implicit else registry.deploy(spec)


SETTING = {
    "p5": Setting(),
    "p5-repconv": Setting(chains="RepConv"),
    "p5-repconvn": Setting(chains="RepConvN"),
    "p5-explicit": Setting(implicit=False),
    "p5-last": Setting(average="none"),
    "w6-lead": Setting("yolov7-w6"),
    "w6-independent": Setting("yolov7-w6", assigner="independent"),
    "w6-guided": Setting("yolov7-w6", assigner="lead-guided"),
    "w6-coarse": Setting("yolov7-w6", assigner="coarse-to-fine"),
}
# Experiment -> label -> name in SETTING. Results are compared with those of the first label.
EXPERIMENTS = {
    "repconv": {"plain": "p5", "RepConv": "p5-repconv", "RepConvN": "p5-repconvn"},
    "auxiliary": {
        "no auxiliary": "w6-lead",
        "independent": "w6-independent",
        "lead-guided": "w6-guided",
        "coarse-to-fine": "w6-coarse",
    },
    "implicit": {"off": "p5-explicit", "on": "p5"},
    "average": {"off": "p5-last", "EMA": "p5"},
}


def main() -> int:
    """Run the script; return the exit code."""
    options = parse()
    try:
        run(options)
    except Y7EdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"interrupted: the same command resumes in {options.out}", file=sys.stderr)
        return 130
    return 0


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--data", type=Path, help="default: synthetic images of parts on a tray")
    parser.add_argument("--images", type=int, default=640, help="synthetic training images")
    parser.add_argument(
        "--evaluated", type=int, default=100, help="synthetic images to evaluate on"
    )
    parser.add_argument("--seeds", type=int, default=2, help="number of trainings for each setting")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--imgsz", type=int, default=128, help="a multiple of 64, at least 128")
    parser.add_argument("--width", type=float, default=0.25, help="fraction of the channels")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    return parser.parse_args(words)


def run(options: argparse.Namespace) -> None:
    """Run the trainings that are not finished, then write table and plot.

    Raises:
        Y7EdgeError: the folder has trainings with other settings, or the data cannot be used.
    """
    chosen = {name: EXPERIMENTS[name] for name in options.only}
    keep_settings(options)
    data = options.data or synthetic_data(options)
    names = load(data).names
    # The seed is the outer loop, so every experiment has a result after the first seed.
    cells = [
        (name, seed)
        for seed in range(options.seeds)
        for name in dict.fromkeys(
            name for compared in chosen.values() for name in compared.values()
        )
    ]
    with Whole(cells, options.epochs) as progress:
        for name, seed in cells:
            progress.begin(name, seed)
            row = trained(config(name, seed, data, len(names), options), progress)
            progress.end(row)
    results = [
        Result(experiment, label, seed, *figures(options.out, name, seed))
        for experiment, compared in chosen.items()
        for label, name in compared.items()
        for seed in range(options.seeds)
    ]
    print(write(results, settings(options), options.out))


def keep_settings(options: argparse.Namespace) -> None:
    """Write the shared settings to ``settings.json``; if it exists, compare them with the file.

    Raises:
        ConfigError: the file has other settings.
    """
    path, now = options.out / "settings.json", settings(options)
    if not path.exists():
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(now, indent=2) + "\n", encoding="utf-8")
        return
    stored = json.loads(path.read_text(encoding="utf-8"))
    for name, value in now.items():
        if stored.get(name) != value:
            found = f"--{name} {stored.get(name)}, not {value}"
            raise ConfigError(
                f"{options.out} has trainings with "
                f"{'another recipe' if name == 'recipe' else found}: use another --out, or the "
                "same settings"
            )


def settings(options: argparse.Namespace) -> dict[str, object]:
    """Return the settings that must be equal for all compared trainings."""
    values = {name: getattr(options, name) for name in SETTINGS}
    recipe = {name: value for name, value in RECIPE.to_dict().items() if value is not None}
    return values | {
        "data": str(options.data) if options.data else "synthetic images",
        "recipe": recipe,
    }


def synthetic_data(options: argparse.Namespace) -> Path:
    """Return the path of the synthetic data set; generate it atomically on the first call."""
    folder: Path = options.out / "data"
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=options.out) as temporary:
            made = scenes.generate(
                Path(temporary) / "data", options.images, options.evaluated, DATA_SEED
            ).parent
            try:
                made.rename(folder)
            except OSError:
                if not folder.exists():
                    raise  # else another process has generated it
    return folder / "data.yaml"


def config(name: str, seed: int, data: Path, nc: int, options: argparse.Namespace) -> TrainConfig:
    """Return the configuration of a training: one setting with one seed."""
    setting = SETTING[name]
    return TrainConfig(
        data=data,
        spec=setting.spec(nc, options.width),
        imgsz=options.imgsz,
        recipe=replace(RECIPE, average=setting.average),
        assigner=setting.assigner or "auto",
        epochs=options.epochs,
        batch=options.batch,
        nominal_batch=options.batch,
        val_every=options.epochs,  # evaluate only the last epoch
        seed=seed,
        out=place(options.out, name, seed),
    )


def place(out: Path, name: str, seed: int) -> Path:
    """Return the folder of a training."""
    return out / "trainings" / f"{name}-seed{seed}"


def trained(config: TrainConfig, progress: Whole) -> EpochRow:
    """Return the last epoch of a training; run or resume the training if it is not finished."""
    folder = Path(str(config.out))
    if not (folder / state.STATE).exists():
        # No folder, or the folder of a training that was killed before its first state.
        shutil.rmtree(folder, ignore_errors=True)
        train(config, progress=progress)
    elif not state.read(folder / state.STATE).facts.finished:
        resume(folder, progress=progress)
    return read_csv(folder / files.RESULTS)[-1]


def figures(out: Path, name: str, seed: int) -> tuple[float, float]:
    """Return mAP@0.5:0.95 and mAP@0.5 of a finished training."""
    row = read_csv(place(out, name, seed) / files.RESULTS)[-1]
    assert row.map50_95 is not None and row.map50 is not None  # the last epoch is always evaluated
    return row.map50_95, row.map50


class Whole(Progress):
    """Print a line for each training; on a terminal, also show a bar for all trainings."""

    def __init__(self, cells: Sequence[tuple[str, int]], epochs: int) -> None:
        self._epochs, self._count, self._done = epochs, len(cells), 0
        self._name = ""
        self._console = Console(stderr=True)
        self._bar = RichBar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=len(cells))

    def __enter__(self) -> Whole:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def begin(self, name: str, seed: int) -> None:
        """Start the next training."""
        self._name = f"{self._done + 1}/{self._count}  {name}, seed {seed}"
        self._bar.update(self._task, description=self._name)

    def step(self, status: Status) -> None:
        """Advance the bar within a training."""
        fraction = (status.epoch - 1 + status.iteration / status.batches) / self._epochs
        self._bar.update(self._task, completed=self._done + fraction)

    def end(self, row: EpochRow) -> None:
        """Print a line about a finished training."""
        self._done += 1
        self._bar.update(self._task, completed=self._done)
        self._console.print(
            f"{self._name}: mAP@0.5:0.95 {row.map50_95:.4f}, mAP@0.5 {row.map50:.4f}",
            highlight=False,
        )


if __name__ == "__main__":
    sys.exit(main())
