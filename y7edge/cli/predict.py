"""``y7edge predict``: boxes on pictures and videos."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from y7edge.cli.console import show
from y7edge.cli.kinds import open_detector
from y7edge.cli.options import Backend, Device, Json, Model, Size, Threads

if TYPE_CHECKING:
    from y7edge.cli.pictures import Picture
    from y7edge.detections import Detections

_Source = Annotated[
    str, typer.Argument(metavar="SOURCE", help="A picture, a video, a folder or a pattern.")
]
_Save = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Write pictures with their boxes into it.")
]
_Conf = Annotated[float | None, typer.Option(min=0, max=1, help="Least confidence; model's own.")]
_Iou = Annotated[float | None, typer.Option(min=0, max=1, help="IoU of the NMS; model's own.")]
_MaxDet = Annotated[int, typer.Option("--max-det", min=1, help="Most boxes in a picture.")]
_Classes = Annotated[
    list[int] | None, typer.Option("--class", metavar="ID", help="Only this class; repeat it.")
]


def predict(
    model: Model,
    source: _Source,
    save: _Save = None,
    conf: _Conf = None,
    iou: _Iou = None,
    max_det: _MaxDet = 300,
    classes: _Classes = None,
    imgsz: Size = None,
    backend: Backend = "auto",
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Detect objects in pictures and videos.

    --json prints one object for each picture: {"source", "image_size": [w, h], "detections":
    [{"xyxy", "confidence", "class_id", "class_name"}]}, boxes in pixels of the picture; frames of
    a video have "frame", from 0.
    """
    from y7edge.cli.pictures import open_source

    with ExitStack() as stack:
        detector = stack.enter_context(
            open_detector(
                model,
                imgsz=imgsz,
                backend=backend,
                device=device,
                threads=threads,
                conf=conf,
                iou=iou,
                max_det=max_det,
                classes=classes,
            )
        )
        album = None
        if save is not None:
            from y7edge.cli.saving import Album
            from y7edge.drawing import draw

            album = stack.enter_context(Album(save))
        for picture in open_source(source):
            detections = detector(picture.image)
            show(record(picture, detections), [_line(picture, detections)], as_json=as_json)
            if album is not None:
                album.add(picture, draw(picture.image, detections))


def record(picture: Picture, detections: Detections) -> dict[str, Any]:
    """One line of JSON: where the picture came from, its size, its objects."""
    place = {"source": picture.source}
    frame = {} if picture.frame is None else {"frame": picture.frame}
    objects = [
        {
            "xyxy": [round(side, 2) for side in found.xyxy],
            "confidence": round(found.confidence, 5),
            "class_id": found.class_id,
            "class_name": found.class_name,
        }
        for found in detections
    ]
    return {**place, **frame, "image_size": detections.image_size, "detections": objects}


def _line(picture: Picture, detections: Detections) -> str:
    counts = Counter(found.class_name for found in detections)
    found = ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "nothing"
    frame = "" if picture.frame is None else f" frame {picture.frame}"
    return f"{picture.source}{frame}: {found} ({detections.timing.total:.1f} ms)"
