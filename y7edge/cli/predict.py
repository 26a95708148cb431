"""``y7edge predict``: detect objects in images and videos."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
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
    from y7edge.detect.detector import Detector
    from y7edge.frames import Frame
    from y7edge.sources.base import Source

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
    with ExitStack() as stack:
        opened = stack.enter_context(_open(source))
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
        failures = _detect(detector, opened, save, as_json=as_json)
    # Raised after everything is closed, so that the frames of a truncated video are saved.
    if failures:
        paths = getattr(opened, "paths", ())
        count = f"{len(failures)} of {len(paths)} files could not be read completely"
        raise failures[0] if len(paths) == 1 else SourceError(f"{opened.name}: {count}")


def _open(uri: str) -> Source:
    """Open a source that ends; raise SourceError if it is a camera or a network stream."""
    from y7edge.sources.address import LIVE, parse
    from y7edge.sources.files import Files
    from y7edge.sources.uri import open_source

    address = parse(uri)
    source = None if address.scheme in LIVE else open_source(uri)
    if source is None or source.live:
        if source is not None:
            source.close()
        raise SourceError(f"{address.name}: frames come live: use `y7edge live MODEL SOURCE`")
    if isinstance(source, Files) and source.skipped:
        count = f"{len(source.skipped)}, such as {source.skipped[0].name}"
        note(f"{source.name}: skipped entries, not images or videos by name: {count}")
    return source


def _detect(
    detector: Detector, source: Source, save: Path | None, *, as_json: bool
) -> list[SourceError]:
    """Detect objects in all frames; return the errors of files that cannot be read."""
    from y7edge.cli.saving import ImageWriter
    from y7edge.detect.drawing import draw
    from y7edge.sources.files import Files

    if isinstance(source, Files) and source.levels is None:
        source.levels = detector.manifest.input.levels
    failures = []
    with ExitStack() as stack:
        writer = None if save is None else stack.enter_context(ImageWriter(save))
        for frame in _frames(source):
            if isinstance(frame, SourceError):
                failures.append(frame)
                if not (isinstance(source, Files) and len(source.paths) == 1):
                    note(f"error: {frame}")
                continue
            is_still = frame.timestamp_ns is None
            found = detector(
                frame.image,
                timestamp_ns=frame.timestamp_ns,
                frame_id=None if is_still else frame.sequence,
                source=frame.source,
            )
            show(found.to_dict(), [_line(found)], as_json=as_json)
            if writer is not None:
                writer.add(frame, draw(frame.image, found))
    return failures


def _frames(source: Source) -> Iterator[Frame | SourceError]:
    """Yield the frames of a source, and the errors after which it continues."""
    while True:
        try:
            frame = source.read()
        except SourceError as error:
            yield error
            continue
        if frame is None:
            return
        yield frame


def _line(found: Detections) -> str:
    counts = Counter(one.class_name for one in found).most_common()
    objects = ", ".join(f"{count} {name}" for name, count in counts) or "nothing"
    frame = "" if found.frame_id is None else f" frame {found.frame_id}"
    took = f" ({found.timing.total:.1f} ms)" if found.timing else ""
    return f"{found.source}{frame}: {objects}{took}"
