"""``y7edge predict``: detect objects in images and videos."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from y7edge.cli.console import note, show
from y7edge.cli.models import open_detector
from y7edge.cli.options import (
    Backend,
    Classes,
    Conf,
    Device,
    Iou,
    Json,
    MaxDet,
    Model,
    Names,
    Size,
    Threads,
    finite,
    out_folder,
)
from y7edge.cli.progress import Progress
from y7edge.cli.results import (
    FolderOptions,
    Format,
    PartSize,
    Resume,
    ShardOption,
    into_folder,
    out_file_or_folder,
)
from y7edge.errors import SourceError, SourceSkipped

if TYPE_CHECKING:
    from y7edge.detect.detections import Detections
    from y7edge.detect.detector import Detector
    from y7edge.frames import Frame
    from y7edge.sources.base import Source

_Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE", help="An image, a video, a folder, a pattern, or replay://FOLDER."
    ),
]
_Save = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Folder for images and videos with boxes drawn.",
        callback=out_folder,
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
_Out = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        help="A .jsonl, .csv or .parquet file for all detections, or a folder for many images.",
        callback=out_file_or_folder,
    ),
]
_Track = Annotated[
    bool,
    typer.Option("--track", help="Track objects: each keeps its id from frame to frame."),
]


def predict(
    model: Model,
    source: _Source,
    save: _Save = None,
    out: _Out = None,
    conf: Conf = None,
    iou: Iou = None,
    max_det: MaxDet = None,
    classes: Classes = None,
    tile: _Tile = None,
    overlap: _Overlap = 0.2,
    track: _Track = False,
    resume: Resume = False,
    format: Format = None,
    part_size: PartSize = None,
    shard: ShardOption = None,
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
    of a video also have "frame_id", from 0, and "timestamp_ns", the position in the video. Files
    that cannot be read are reported, the other files are processed, and the exit code is 1.

    --out FOLDER writes the results of many files as part files. If the process is killed, the same
    command with --resume continues. --json then prints the counts.
    """
    options = FolderOptions(resume, format, part_size, shard, tile, overlap)
    folder = options.check(out, save=save is not None, track=track)
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
        if folder is not None:
            detect = partial(_of_frame, detector)
            into_folder(detector, opened, detect, folder, options, as_json=as_json)
            return
        tracked = _Tracked() if track else None
        sinks = list(_sinks(stack, save, out))
        count, failures = _detect(detector, opened, tracked, sinks, as_json=as_json)
    # Raised after everything is closed, so that the frames of a truncated video are saved.
    if failures:
        words = f"{len(failures)} of {count} files could not be read completely"
        last = list(failures.values())[-1]
        has_ended = isinstance(last, SourceSkipped)
        raise SourceError(f"{opened.name}: {words}") if has_ended else last


def _open(uri: str) -> Source:
    """Open a source that ends; raise SourceError if it is a camera or a network stream."""
    from y7edge.sources.address import parse
    from y7edge.sources.files import Files
    from y7edge.sources.uri import open_source

    address = parse(uri)
    source = None if address.live else open_source(uri)
    if source is None or source.live:
        if source is not None:
            source.close()
        raise SourceError(f"{address.name} is a live source: use `y7edge live MODEL SOURCE`")
    if isinstance(source, Files) and source.skipped:
        count = f"{len(source.skipped)}, such as {source.skipped[0].name}"
        note(f"{source.name}: skipped entries, not images or videos by name: {count}")
    return source


def _sinks(
    stack: ExitStack, save: Path | None, out: Path | None
) -> Iterator[Callable[[Frame, Detections], None]]:
    """Yield functions that write results; files are closed with the stack."""
    if save is not None:
        from y7edge.cli.saving import ImageWriter
        from y7edge.detect.drawing import draw
        from y7edge.detect.preprocess import to_bgr

        images = stack.enter_context(ImageWriter(save))
        yield lambda frame, found: images.add(frame, draw(to_bgr(frame), found))
    if out is not None:
        from y7edge.adapters.rows import RowWriter

        table = stack.enter_context(RowWriter(out))
        yield lambda _, found: table.add(found)


def _detect(
    detector: Detector,
    source: Source,
    tracked: _Tracked | None,
    sinks: Sequence[Callable[[Frame, Detections], None]],
    *,
    as_json: bool,
) -> tuple[int, dict[str, SourceError]]:
    """Detect objects in all frames.

    Returns:
        The number of files, and the errors of those that cannot be read, by message.
    """
    from y7edge.sources.files import Files, use_levels

    use_levels(source, detector.manifest.input.levels)
    count = 0
    failures: dict[str, SourceError] = {}  # once, also if the files are read again
    with Progress(source.name, also_stdout=False) as progress:
        for frame in _frames(source):
            progress.update(getattr(source, "progress", 0.0))
            count += 1
            if isinstance(frame, SourceError):
                failures[str(frame)] = frame
                if isinstance(frame, SourceSkipped):
                    note(f"error: {frame}")
                continue
            found = _of_frame(detector, frame)
            found = tracked(frame, found) if tracked else found
            show(found.to_dict(), [_line(found)], as_json=as_json)
            for sink in sinks:
                sink(frame, found)
    return len(source.paths) if isinstance(source, Files) else count, failures


def _of_frame(detector: Detector, frame: Frame) -> Detections:
    """Detect objects in a frame; still images have no number."""
    found = detector(frame)
    return replace(found, frame_id=None) if frame.timestamp_ns is None else found


class _Tracked:
    """Trackers by source: one for each video, and one for all still images."""

    def __init__(self) -> None:
        from y7edge.adapters.tracking import Tracker

        self._make = Tracker
        self._tracker, self._of = Tracker(), ""

    def __call__(self, frame: Frame, found: Detections) -> Detections:
        of = "" if frame.timestamp_ns is None else str(frame.source)
        if of != self._of:
            self._tracker, self._of = self._make(frame.rate), of
        # Still images are one sequence, although each is a source.
        return replace(self._tracker.update(replace(found, source=of)), source=found.source)


def _frames(source: Source) -> Iterator[Frame | SourceError]:
    """Yield the frames of a source, and its errors."""
    while True:
        try:
            frame = source.read()
        except SourceError as error:
            yield error
            if not isinstance(error, SourceSkipped):
                return
            continue
        if frame is None:
            return
        yield frame


def _line(found: Detections) -> str:
    if found.tracker_id is None:
        counts = Counter(one.class_name for one in found).most_common()
        objects = ", ".join(f"{count} {name}" for name, count in counts)
    else:  # -1: not tracked yet
        objects = ", ".join(
            f"{one.class_name} #{one.tracker_id}" if one.tracker_id != -1 else one.class_name
            for one in found
        )
    frame = "" if found.frame_id is None else f" frame {found.frame_id}"
    took = f" ({found.timing.total:.1f} ms)" if found.timing else ""
    return f"{found.source}{frame}: {objects or 'nothing'}{took}"
