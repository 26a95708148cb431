"""Repeat the paper's ablations on a small scale, with several seeds.

    cd examples/research
    python ablation.py                        # synthetic images, a good hour on a core
    python ablation.py --data data.yaml --imgsz 320 --width 0.5 --epochs 60 --seeds 5
    python ablation.py --only auxiliary

YOLOv7 (arXiv 2207.02696) adds to a plain detector what costs nothing once it is folded. This trains
narrow models with and without each of these parts, with several seeds:

* repconv: in the chains of the computational blocks of a YOLOv7, plain 3x3 convolutions, RepConv
  with its identity branch (against the plan of ``y7edge.models.planning``, which has to be
  overridden for it), and RepConv without (RepConvN, as the paper plans it);
* auxiliary: a YOLOv7-W6 without auxiliary heads, and with each of their three assignments;
* implicit: the head with and without implicit knowledge;
* average: the exponential moving average of the weights, and the last weights themselves.

All settings of an experiment share data, recipe, length, seeds and the order of the images.
Models are evaluated once, after the last epoch, so that no best epoch is chosen for them; a
training that belongs to two experiments is done once. An interrupted run is resumed by the same
command, at the same step. Two may work in one folder side by side, one with
``--only auxiliary``, the other with ``--only repconv implicit average``, which share no training;
the command without ``--only`` then puts the results together.

Leaves in ``--out``: ``results.json``, ``results.csv``, ``table.md``, ``ablation.png``, and a folder
for each training.
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
SETTINGS = ("data", "images", "epochs", "imgsz", "width", "batch")  # the same in all of a folder

# As in the demo: whole images, as parts of a mosaic would be a few pixels wide; gains raised,
# which the published rule shrinks with few classes and small inputs; an average that forms early.
# Clipping, as a coarse level that has a single positive in a batch throws such small models off.
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
    """One thing to train."""

    model: str = "yolov7"
    chains: str = "plain"  # of the computational blocks: plain, RepConv or RepConvN
    assigner: str | None = None  # of the auxiliary heads; None: there are none
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
# What is compared in which experiment; the first is what the others are measured against.
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
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--data", type=Path, help="default: synthetic images of parts on a tray")
    parser.add_argument("--images", type=int, default=640, help="made, to train on")
    parser.add_argument("--judged", type=int, default=100, help="synthetic images to evaluate on")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each setting")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--imgsz", type=int, default=128, help="a multiple of 64, from 128")
    parser.add_argument("--width", type=float, default=0.25, help="fraction of the channels")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    return parser.parse_args(words)


def run(options: argparse.Namespace) -> None:
    """Train what is not trained yet, then write table and plot.

    Raises:
        Y7EdgeError: other settings than those of the trainings in the folder, or data that cannot
            be used.
    """
    chosen = {name: EXPERIMENTS[name] for name in options.only}
    keep_settings(options)
    data = options.data or made_pictures(options)
    names = load(data).names
    # Seed by seed: after the first, every experiment has a result.
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
    """Write the settings that all trainings of a folder share, or compare them with the file.

    Raises:
        ConfigError: something else was noted.
    """
    path, now = options.out / "settings.json", settings(options)
    if not path.exists():
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(now, indent=2) + "\n", encoding="utf-8")
        return
    then = json.loads(path.read_text(encoding="utf-8"))
    for name, value in now.items():
        if then.get(name) != value:
            found = f"--{name} {then.get(name)}, not {value}"
            raise ConfigError(
                f"{options.out} holds trainings with "
                f"{'another recipe' if name == 'recipe' else found}: give another --out, or the "
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


def made_pictures(options: argparse.Namespace) -> Path:
    """Return the synthetic data set; make it atomically on the first call."""
    folder: Path = options.out / "data"
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=options.out) as temporary:
            made = scenes.generate(
                Path(temporary) / "data", options.images, options.judged, DATA_SEED
            ).parent
            try:
                made.rename(folder)
            except OSError:
                if not folder.exists():
                    raise  # otherwise another process has made it
    return folder / "data.yaml"


def config(name: str, seed: int, data: Path, nc: int, options: argparse.Namespace) -> TrainConfig:
    """The training of one setting with one seed."""
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
        val_every=options.epochs,  # no epoch is chosen
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
    """mAP@0.5:0.95 and mAP@0.5 of a finished training."""
    row = read_csv(place(out, name, seed) / files.RESULTS)[-1]
    assert row.map50_95 is not None and row.map50 is not None  # the last epoch is always evaluated
    return row.map50_95, row.map50


class Whole(Progress):
    """Print a line per training; on a terminal, also show a bar for all trainings."""

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
        """Move the bar within a training."""
        share = (status.epoch - 1 + status.iteration / status.batches) / self._epochs
        self._bar.update(self._task, completed=self._done + share)

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
