"""``y7edge predict``: detect objects in images and videos."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from y7edge.cli.console import note, show
from y7edge.cli.models import open_detector
from y7edge.cli.options import (
    Backend,
    Device,
    Json,
    Model,
    Names,
    Size,
    Threads,
    finite,
    out_folder,
)
from y7edge.errors import SourceError

if TYPE_CHECKING:
    from y7edge.detect.detections import Detections

_Source = Annotated[
    str, typer.Argument(metavar="SOURCE", help="An image, a video, a folder or a pattern.")
]
_Save = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Folder for images and videos with boxes drawn.",
        callback=out_folder,
    ),
]
_Conf = Annotated[
    float | None,
    typer.Option(min=0, max=1, callback=finite, help="Minimum confidence; default: the model's."),
]
_Iou = Annotated[
    float | None,
    typer.Option(min=0, max=1, callback=finite, help="IoU threshold of NMS; default: the model's."),
]
_MaxDet = Annotated[
    int | None,
    typer.Option("--max-det", min=1, help="Maximum boxes per image; default: the model's."),
]
_Classes = Annotated[
    list[str] | None,
    typer.Option(
        "--class",
        metavar="CLASS",
        help="Return only boxes of this class, a name or an id; repeatable.",
    ),
]
_Tile = Annotated[
    int | None,
    typer.Option(
        min=32, help="For small objects: also run tiles of this side, in pixels of the image."
    ),
]
_Overlap = Annotated[
    float,
    typer.Option(
        min=0, max=0.9, callback=finite, help="Fraction of a tile's side that neighbours share."
    ),
]


def predict(
    model: Model,
    source: _Source,
    save: _Save = None,
    conf: _Conf = None,
    iou: _Iou = None,
    max_det: _MaxDet = None,
    classes: _Classes = None,
    tile: _Tile = None,
    overlap: _Overlap = 0.2,
    names: Names = None,
    imgsz: Size = None,
    backend: Backend = "auto",
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Detect objects in images and videos.

    --json prints one object for each image: {"source", "image_size": [w, h], "detections":
    [{"xyxy", "confidence", "class_id", "class_name"}]}, with boxes in pixels of the image. Frames
    of a video also have "frame_id", from 0. Files that cannot be read are reported, the other files
    are processed, and the exit code is 1.
    """
    from y7edge.sources.files import find_inputs, read_input

    (inputs, skipped), failures = find_inputs(source), list[SourceError]()
    if skipped:
        count = f"{len(skipped)}, such as {skipped[0].name}"
        note(f"{source}: skipped entries, not images or videos by name: {count}")
    with ExitStack() as stack:
        detector = stack.enter_context(
            open_detector(
                model,
                imgsz=imgsz,
                names=names,
                backend=backend,
                device=device,
                threads=threads,
                conf=conf,
                iou=iou,
                max_det=max_det,
                classes=classes or None,
                tile=tile,
                overlap=overlap,
            )
        )
        writer = None
        if save is not None:
            from y7edge.cli.saving import ImageWriter
            from y7edge.detect.drawing import draw

            writer = stack.enter_context(ImageWriter(save))
        for path in inputs:
            try:
                for image in read_input(path, detector.manifest.input.levels):
                    found = detector(image.image, source=str(path), frame_id=image.frame)
                    show(found.to_dict(), [_line(found)], as_json=as_json)
                    if writer is not None:
                        writer.add(image, draw(image.image, found))
            except SourceError as error:
                failures.append(error)
                if len(inputs) > 1:
                    note(f"error: {error}")
    # Raised after the writer is closed, so that the frames of a truncated video are saved.
    if failures:
        count = f"{len(failures)} of {len(inputs)} files could not be read completely"
        raise failures[0] if len(inputs) == 1 else SourceError(f"{source}: {count}")


def _line(found: Detections) -> str:
    counts = Counter(one.class_name for one in found).most_common()
    objects = ", ".join(f"{count} {name}" for name, count in counts) or "nothing"
    frame = "" if found.frame_id is None else f" frame {found.frame_id}"
    took = f" ({found.timing.total:.1f} ms)" if found.timing else ""
    return f"{found.source}{frame}: {objects}{took}"
