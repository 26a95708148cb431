"""Options that several commands share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

# Newer versions of typer contain click, older ones depend on it; in both the parent class of
# BadParameter is the usage error.
UsageError: Any = typer.BadParameter.__mro__[1]


class ImageSize(NamedTuple):
    """Height and width of a network's input, pixels."""

    height: int
    width: int

    @classmethod
    def parse(cls, text: str) -> ImageSize:
        """Parse ``640`` (square) or ``384x640`` (height x width); typer.BadParameter otherwise."""
        match = re.fullmatch(r"(\d+)(?:[xX](\d+))?", str(text).strip())
        if match is None or not int(match[1]) or not int(match[2] or match[1]):
            raise typer.BadParameter(f"expected 640, or height x width as 384x640, not {text!r}")
        return cls(int(match[1]), int(match[2] or match[1]))


Size = Annotated[
    ImageSize | None,
    typer.Option(
        "--imgsz",
        parser=ImageSize.parse,
        metavar="PIXELS",
        help="Input size: 640, or height x width: 384x640; multiples of the largest stride.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
# Names in braces are replaced when help is shown (see ``grouped``).
Device = Annotated[str, typer.Option(help="auto, or what the backend knows: {devices}.")]
Backend = Annotated[
    str, typer.Option(help="Runtime for artifacts: auto (the manifest decides), {backends}.")
]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Threads of the engine; default: the engine's own choice.")
]
Images = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Images to compare on, instead of the data set's."),
]
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A variant's name (random weights), a checkpoint (.safetensors, .pt) or an artifact.",
    ),
]
Artifact = Annotated[Path, typer.Argument(metavar="ARTIFACT", help="A file made by y7edge export.")]
