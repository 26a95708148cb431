"""``y7edge val``: mAP of anything that detects, by one protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from y7edge.cli.options import Backend, Device, Json, Model, Size, Threads

_Data = Annotated[
    Path,
    typer.Option(help="data.yaml, or a folder with one, or a Pascal VOC folder.", metavar="DATA"),
]
_Split = Annotated[str, typer.Option(help="Which pictures of the data set: train, val or test.")]


def val(
    model: Model,
    data: _Data,
    split: _Split = "val",
    imgsz: Size = None,
    backend: Backend = "auto",
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Judge a model or an artifact by mAP.

    One protocol for all: square letterbox, every class of a candidate counts, confidence from
    0.001, NMS at IoU 0.65 within each class, 300 boxes a picture.
    """
