"""Options and work of ``y7edge predict --out FOLDER``: results of many files in part files."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from y7edge import __version__
from y7edge.cli.console import note, show
from y7edge.cli.options import among, out_file, out_folder
from y7edge.cli.progress import Progress
from y7edge.errors import SourceError
from y7edge.files import is_folder

if TYPE_CHECKING:
    from y7edge.adapters.results import Results
    from y7edge.detect.detections import Detections
    from y7edge.detect.detector import Detector
    from y7edge.frames import Frame
    from y7edge.sources.base import Source
    from y7edge.sources.files import Files, Opened

TABLES = (".jsonl", ".csv", ".parquet")


def out_file_or_folder(path: Path | None) -> Path | None:
    """Option callback: a name without a suffix is that of a folder."""
    if path is None or path.suffix.lower() in TABLES:
        return out_file(path)
    if is_folder(path):
        return path  # or a link to a folder
    if path.suffix:
        raise typer.BadParameter(
            f"expected a name that ends in {', '.join(TABLES)}, or that of a folder, which must "
            f"exist if its name has a dot, not {path}"
        )
    return out_folder(path)


class Shard(NamedTuple):
    """One of several shares of the files: its number from 1, and their count."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Parse ``2/8``; raise BadParameter if the text has another form."""
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", str(text), re.ASCII)
        shard = cls(*map(int, found.groups())) if found else cls(0, 0)
        if not 1 <= shard.number <= shard.of:
            raise typer.BadParameter(f"expected K/N with K from 1 to N, such as 2/8, not {text!r}")
        return shard


_PANEL = "Results in a folder (--out FOLDER)"
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Continue after the last complete part.", rich_help_panel=_PANEL),
]
Format = Annotated[
    str | None,
    typer.Option(
        **among("jsonl", "parquet"),
        help="Format of the files; default: jsonl.",
        rich_help_panel=_PANEL,
    ),
]
PartSize = Annotated[
    int | None,
    typer.Option(
        min=1, help="Number of images in each file; default: 1000.", rich_help_panel=_PANEL
    ),
]
ShardOption = Annotated[
    Shard | None,
    typer.Option(
        "--shard",
        metavar="K/N",
        parser=Shard.parse,
        help="Process share K of N of the files, such as 2/8: one for each machine.",
        rich_help_panel=_PANEL,
    ),
]


@dataclass(frozen=True)
class FolderOptions:
    """The options for a folder of results, and those of tiles, on which the results depend."""

    resume: bool
    format: str | None
    part_size: int | None
    shard: Shard | None
    tile: int | None
    overlap: float

    def check(self, out: Path | None, *, save: bool, track: bool) -> Path | None:
        """Return the folder of ``--out``, or None; refuse options that do not go together."""
        folder = None if out is None or out.suffix.lower() in TABLES else out
        own = {"--resume": self.resume, "--format": self.format, "--part-size": self.part_size}
        for name, value in {**own, "--shard": self.shard}.items():
            if value and folder is None:
                raise typer.BadParameter(f"{name} needs --out with the name of a folder")
        for name, given in {"--save": save, "--track": track}.items():
            if given and folder is not None:
                raise typer.BadParameter(
                    f"{name} cannot be resumed: write a table instead, such as --out found.jsonl"
                )
        if self.format not in (None, "jsonl", "parquet"):
            raise typer.BadParameter(f"--format is {self.format}, expected jsonl or parquet")
        return folder


def into_folder(
    detector: Detector,
    source: Source,
    detect: Callable[[Frame], Detections],
    out: Path,
    options: FolderOptions,
    *,
    as_json: bool,
) -> None:
    """Write the results of files into a folder of part files; print counts."""
    from y7edge.adapters.results import Results, in_shard
    from y7edge.sources.files import Files, read_ahead, use_levels

    if not isinstance(source, Files) or source.loops:
        raise SourceError(f"{source.name}: --out FOLDER needs images or videos, without a loop")
    use_levels(source, detector.manifest.input.levels)
    shard, paths = options.shard, source.paths
    with Results(
        out,
        (path for path in paths if in_shard(path, *shard)) if shard else paths,
        _settings(detector, source, options),
        {"version": __version__, **detector.info},
        format=options.format or "jsonl",
        part=options.part_size or 1000,
        resume=options.resume,
    ) as results:
        if results.added:
            note(f"{source.name}: {results.added} files were added since the earlier run")
        for name in results.redone:
            note(f"{out / name} is missing: its files are processed again")
        began = time.monotonic()
        with closing(read_ahead(results.pending(), source.levels)) as files:
            _fill(results, files, detect, source.name)
        _show_counts(results, out, time.monotonic() - began, as_json=as_json)
        if failed := results.counts.failed:
            words = f"{failed} of {len(results)} files could not be read completely"
            raise SourceError(f"{source.name}: {words}: see the column error in {out}")


def _fill(
    results: Results, files: Iterator[Opened], detect: Callable[[Frame], Detections], name: str
) -> None:
    """Write the results, and show the progress and the files that cannot be read."""
    done, total = itertools.count(results.earlier.files + 1), max(len(results), 1)
    with Progress(name, "files", results.earlier.files / total) as progress:

        def count(problem: SourceError | None) -> None:
            progress.update(next(done) / total)
            if problem is not None:
                note(f"error: {problem}")

        try:
            results.fill(files, detect, count)
        except KeyboardInterrupt:
            note(f"{results.counts.files} of {total} files are written: continue with --resume")
            raise


def _settings(detector: Detector, source: Files, options: FolderOptions) -> dict[str, Any]:
    """Return all that the results depend on."""
    is_absolute = Path(source.name).is_absolute()
    criteria = ("names", "imgsz", "conf", "class_conf", "iou", "max_det", "classes", "agnostic")
    info = detector.info
    return {
        "model": detector.manifest.payload_digest,
        "source": str(Path(source.name)),  # images/ is the same as ./images
        "working directory": None if is_absolute else str(Path.cwd()),
        "shard": options.shard,
        "levels": source.levels,
        **{name: info[name] for name in criteria},
        "tile": options.tile,
        "overlap": options.overlap if options.tile else None,
    }


def _show_counts(results: Results, out: Path, seconds: float, *, as_json: bool) -> None:
    counts, earlier = results.counts, results.earlier
    rate = (counts.frames - earlier.frames) / max(seconds, 1e-9)
    record = {"out": str(out), **asdict(counts), "earlier_files": earlier.files, "seconds": seconds}
    line = (
        f"{out}: {counts.files} files, {counts.frames} images, {counts.detections} detections, "
        f"{counts.failed} files not readable"
    )
    new = f"{counts.files - earlier.files} files in {seconds:.1f} s, {rate:.1f} images/s"
    show({**record, "images_per_second": rate}, [line, new], as_json=as_json)
