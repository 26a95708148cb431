"""``y7edge train``: train a model on labelled pictures."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from y7edge.cli.console import facts, show
from y7edge.cli.options import Device, Json
from y7edge.errors import ConfigError

if TYPE_CHECKING:
    from y7edge.train.config import Recipe

_Data = Annotated[
    Path,
    typer.Option(help="data.yaml, or a folder with one, or a Pascal VOC folder.", metavar="DATA"),
]
_Name = Annotated[str, typer.Option("--model", help="Name of a variant; `y7edge info` lists them.")]
_Width = Annotated[float, typer.Option(help="Multiplies every channel, in multiples of 8.")]
_Weights = Annotated[
    Path | None, typer.Option(help="Checkpoint to start from; the layers that fit are copied.")
]
_Side = Annotated[int, typer.Option("--imgsz", min=32, help="Side of the square input, pixels.")]
_Epochs = Annotated[int, typer.Option(min=1)]
_Batch = Annotated[int, typer.Option(min=1, help="Pictures in one forward pass.")]
_Seed = Annotated[int, typer.Option(min=0)]
_Workers = Annotated[
    int | None,
    typer.Option(
        min=0, help="Processes that load pictures; default: 0 on a CPU, up to 8 for a GPU."
    ),
]
_Patience = Annotated[
    int, typer.Option(min=0, help="Stop after so many epochs without a better one; 0: never.")
]
_Out = Annotated[
    Path | None, typer.Option(help="Folder of the run; default: the next free runs/trainN.")
]
_Licence = Annotated[
    str, typer.Option(help="Licence of the weights, yours to choose; kept with them everywhere.")
]
_Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="A hyper-parameter of the recipe; repeat it."),
]


def train(
    data: _Data,
    model: _Name = "yolov7-tiny",
    imgsz: _Side = 640,
    epochs: _Epochs = 300,
    batch: _Batch = 16,
    device: Device = "auto",
    seed: _Seed = 0,
    workers: _Workers = None,
    patience: _Patience = 0,
    width: _Width = 1.0,
    weights: _Weights = None,
    out: _Out = None,
    licence: _Licence = "unspecified",
    changes: _Set = None,
    as_json: Json = False,
) -> None:
    """Train a model on labelled pictures.

    From scratch, or from a checkpoint with --weights. Writes best.safetensors, last.safetensors,
    results.csv and results.png into --out. What is saved is the moving average of the weights; the
    best is that of the highest mAP on the split val.
    """
    from y7edge.train.config import TrainConfig, recipe_for
    from y7edge.train.loop import train as run
    from y7edge.train.progress import for_terminal

    config = TrainConfig(
        data=data,
        model=model,
        width=width,
        weights=weights,
        imgsz=imgsz,
        epochs=epochs,
        batch=batch,
        patience=patience,
        device=device,
        workers=workers,
        out=out,
        seed=seed,
        licence=licence,
        recipe=changed(recipe_for(model), changes or []),
    )
    result = run(config, progress=for_terminal())
    record = {
        "folder": result.folder,
        "best": result.best,
        "last": result.last,
        "epochs": result.epochs,
        "seconds_per_epoch": round(result.seconds_per_epoch, 3),
        "stopped_early": result.stopped_early,
        "map50": result.metrics.map50,
        "map50_95": result.metrics.map50_95,
    }
    show(record, facts(record), as_json=as_json)


def changed(recipe: Recipe, changes: list[str]) -> Recipe:
    """A recipe with some of its numbers replaced, each given as ``lr0=0.02``.

    Raises:
        ConfigError: a change is not of the form NAME=NUMBER, or its name or value cannot be.
    """
    augmentation = {field.name for field in fields(recipe.augmentation)}
    known = {field.name for field in fields(recipe)} - {"augmentation"}
    outer: dict[str, Any] = {}
    inner: dict[str, Any] = {}
    for change in changes:
        name, _, number = (part.strip() for part in change.partition("="))
        try:
            (inner if name in augmentation else outer)[name] = float(number)
        except ValueError as error:
            raise ConfigError(f"--set takes NAME=NUMBER, as lr0=0.02; found {change!r}") from error
        if name not in known | augmentation:
            names = ", ".join(sorted(known | augmentation))
            raise ConfigError(f"--set {change}: there is no {name!r}; the recipe has {names}")
    return replace(recipe, **outer, augmentation=replace(recipe.augmentation, **inner))
