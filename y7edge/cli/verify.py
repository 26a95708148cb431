"""``y7edge verify``: compare an artifact with its checkpoint."""

from __future__ import annotations

from typing import Annotated

import typer

from y7edge.cli.console import note, show
from y7edge.cli.export import Data, MaxMapDrop
from y7edge.cli.gate import parity_lines, report_even_if_failed
from y7edge.cli.models import say_random
from y7edge.cli.options import Artifact, Backend, Device, Images, Json, Split, Threads, variants

_Against = Annotated[
    str,
    typer.Option(
        metavar="CHECKPOINT",
        autocompletion=variants,
        help="Checkpoint or variant that was exported.",
    ),
]
_IgnoreDigests = Annotated[bool, typer.Option("--ignore-digests", help="Compare only outputs.")]


def verify(
    artifact: Artifact,
    against: _Against,
    images: Images = None,
    backend: Backend = "auto",
    device: Device = "auto",
    threads: Threads = None,
    ignore_digests: _IgnoreDigests = False,
    data: Data = None,
    split: Split = "val",
    max_map_drop: MaxMapDrop = None,
    as_json: Json = False,
) -> None:
    """Repeat an artifact's proof against its checkpoint.

    Also checks the digests. The exit code is 4 if the artifact was changed, was exported from
    another checkpoint, or computes other outputs than the checkpoint. With --data, also if its mAP
    is too low; an int8 artifact is compared with the checkpoint only by this.
    """
    from y7edge.export.proof.accuracy import Baseline
    from y7edge.export.proof.verify import verify as prove
    from y7edge.nn.source import open_checkpoint

    say_random(against)
    checkpoint = open_checkpoint(against)
    with report_even_if_failed(as_json):
        report = prove(
            artifact,
            checkpoint,
            images=images,
            backend=backend,
            device=device,
            threads=threads,
            ignore_digests=ignore_digests,
            data=data and Baseline(checkpoint, data, split, progress=note),
            max_map_drop=max_map_drop,
            progress=note,
        )
    lines = [f"{artifact}: {report.status}", *parity_lines(report)]
    show(report.to_dict(), lines, as_json=as_json)
