"""``y7edge soup``: average trained models, and write the average if it is better."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from y7edge.cli.console import note, show, table
from y7edge.cli.options import SPLITS, Json, TorchDevice, out_file
from y7edge.errors import GateError

_Checkpoints = Annotated[
    list[Path],
    typer.Argument(
        metavar="CHECKPOINT",
        help="Two or more unfolded checkpoints of one model, trained from the same weights.",
    ),
]
_Data = Annotated[
    Path,
    typer.Option(metavar="DATA", help="Data set with a split to evaluate on and one to train on."),
]
_Split = Annotated[str, typer.Option(**SPLITS, help="Split to evaluate on.")]
_TrainSplit = Annotated[
    str, typer.Option(**SPLITS, help="Split to estimate the average's BatchNorm statistics on.")
]
_Out = Annotated[
    Path,
    typer.Option(
        metavar="FILE",
        help="File of the average (.safetensors), written only if it is better.",
        callback=out_file,
    ),
]
_Side = Annotated[
    int | None,
    typer.Option("--imgsz", min=32, help="Side of the input; default: that of the training."),
]


def soup(
    checkpoints: _Checkpoints,
    data: _Data,
    out: _Out,
    split: _Split = "val",
    train_split: _TrainSplit = "train",
    imgsz: _Side = None,
    device: TorchDevice = "auto",
    as_json: Json = False,
) -> None:
    """Average the weights of checkpoints.

    The average is a uniform model soup (arXiv 2203.05482). Its BatchNorm statistics are estimated
    on the training images. It is compared with each checkpoint by 0.1 mAP@0.5 + 0.9 mAP@0.5:0.95,
    and written to --out if it is better than the best of them. If not, no file is written and the
    exit code is 4. Because the split is used to select a model, report scores on another split.
    """
    from y7edge.data.dataset import load
    from y7edge.models import weights
    from y7edge.nn.eager import pick_device
    from y7edge.train.averaging.soup import check_out, load_all, make_soup

    check_out(out, checkpoints)
    loaded = load_all(checkpoints)
    dataset = load(data, splits=list({split: 0, train_split: 0}))
    made = make_soup(
        loaded,
        dataset,
        split=split,
        train_split=train_split,
        imgsz=imgsz,
        device=pick_device(device),
        log=note,
    )
    if made.better:
        weights.save(made.checkpoint, out)
    record = {
        "ingredients": made.ingredients,
        "average": made.average,
        "better": made.better,
        "out": out if made.better else None,
    }
    head = ("", "mAP@0.5", "mAP@0.5:0.95", "fitness")
    rows = [(s.name, s.map50, s.map50_95, s.fitness) for s in (*made.ingredients, made.average)]
    kept = [f"the average is the best: {out}"] if made.better else []
    show(record, [*table([head, *rows]), *kept], as_json=as_json)
    if not made.better:
        raise GateError(
            f"the average (fitness {made.average.fitness:.4f}) is not better than "
            f"{made.best.name} ({made.best.fitness:.4f}): no file was written, use {made.best.name}"
        )
