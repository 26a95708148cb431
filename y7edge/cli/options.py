"""Options that several commands share, under the names that people know from other tools."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

# typer carries its own click in late versions and depends on it in early ones; the parent class of
# BadParameter is the error of wrong usage in both.
UsageError: Any = typer.BadParameter.__mro__[1]


@dataclass(frozen=True, slots=True)
class ImageSize:
    """Height and width of a network's input, pixels."""

    height: int
    width: int

    @classmethod
    def parse(cls, text: str) -> ImageSize:
        """``640`` is square, ``384x640`` is height x width.

        Raises:
            typer.BadParameter: ``text`` is neither.
        """
        match = re.fullmatch(r"(\d+)(?:[xX](\d+))?", str(text).strip())
        if match is None or not int(match[1]) or not int(match[2] or match[1]):
            raise typer.BadParameter(f"expected 640, or height x width as 384x640, not {text!r}")
        return cls(int(match[1]), int(match[2] or match[1]))

    @property
    def pair(self) -> tuple[int, int]:
        """(height, width)."""
        return self.height, self.width


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
# Names in braces are filled in when help is shown (see ``grouped``): they depend on what is there.
Device = Annotated[str, typer.Option(help="auto, or what the backend knows: {devices}.")]
Backend = Annotated[
    str, typer.Option(help="Runtime for artifacts: auto (the manifest decides), {backends}.")
]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Threads of the engine; default: the engine's own choice.")
]
Images = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Pictures to compare on, instead of the data set's."),
]
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A variant's name (random weights), a checkpoint (.safetensors, .pt) or an artifact.",
    ),
]
Artifact = Annotated[Path, typer.Argument(metavar="ARTIFACT", help="A file made by y7edge export.")]
