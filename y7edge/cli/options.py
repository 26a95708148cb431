"""Options that several commands share."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from y7edge.files import is_file, read_regular, reason, require_replaceable, writing

# click's UsageError: newer versions of typer vendor click, older versions depend on it.
UsageError: Any = typer.BadParameter.__mro__[1]
_LONGEST_SIDE = 8192
_LONGEST_NAMES = 1 << 20  # bytes


class ImageSize(NamedTuple):
    """Height and width of a network's input, in pixels."""

    height: int
    width: int

    @classmethod
    def parse(cls, text: str) -> ImageSize:
        """Parse ``640`` (square) or ``384x640`` (height x width).

        Raises:
            typer.BadParameter: the text has another form, or a side is out of range.
        """
        match = re.fullmatch(r"(\d{1,5})(?:[xX](\d{1,5}))?", str(text).strip(), re.ASCII)
        sides = [int(side) for side in match.groups(match[1])] if match else [0]
        if not 0 < min(sides) <= max(sides) <= _LONGEST_SIDE:
            raise typer.BadParameter(
                f"expected 640, or height x width as 384x640, not {text!r}; "
                f"a side has at most {_LONGEST_SIDE} pixels"
            )
        return cls(*sides)


def finite(value: float | None) -> float | None:
    """Option callback: refuse ``nan``, which typer's range checks accept."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"expected a number, not {value}")
    return value


def class_names(given: list[str] | None) -> list[str] | None:
    """Read class names from a file, or split them at commas; an option callback."""
    if not given:
        return None
    text = ",".join(given)
    if len(given) == 1 and is_file(path := Path(given[0])):
        try:
            text = read_regular(path, _LONGEST_NAMES).decode()
        except (OSError, ValueError) as error:
            raise typer.BadParameter(f"cannot read {given[0]}: {reason(error)}") from error
        return [line.strip() for line in text.splitlines() if line.strip()]
    return [name.strip() for name in text.split(",")]


def out_file(path: Path | None) -> Path | None:
    """Option callback: before the work begins, refuse a folder, link, pipe or device."""
    if path is not None:
        with writing("the result", path):
            require_replaceable(path, folder=False)
    return path


_FILES = {".mp4", ".avi", ".mkv", ".mov", ".jpg", ".jpeg", ".png", ".json", ".jsonl", ".csv"}


def out_folder(path: Path | None) -> Path | None:
    """Option callback: before the work begins, refuse an existing path that is not a folder."""
    if path is not None:
        if path.suffix.lower() in _FILES and not path.is_dir():
            raise typer.BadParameter(f"{path} is the name of a file, expected that of a folder")
        with writing("the results", path):
            require_replaceable(path, file=False)
    return path


def completion(kind: str, *others: str) -> Callable[[str], list[str]]:
    """Return a completion, for shells, of values that the registries know, such as ``targets``.

    ``others``: values that the registries do not know.
    """

    def complete(incomplete: str) -> list[str]:
        from y7edge.cli.grouped import values

        return [value for value in (*values(kind), *others) if value.startswith(incomplete)]

    return complete


def among(*choices: str, metavar: str | None = None) -> dict[str, Any]:
    """Return the arguments of an option with few values: metavar and completion for shells."""
    return {
        "metavar": metavar or "|".join(choices),
        "autocompletion": lambda incomplete: [c for c in choices if c.startswith(incomplete)],
    }


def variants(incomplete: str) -> list[str]:
    """Complete a variant's name, or return nothing, so that the shell completes a file."""
    from y7edge.models import names

    found = [name for name in names() if incomplete and name.startswith(incomplete)]
    return [] if found and any(Path().glob(f"{incomplete}*")) else found


def given(ctx: typer.Context) -> dict[str, list[str]]:
    """Return the given options and their words, such as ``{"--batch": ["--batch", "8"]}``."""
    found: dict[str, list[str]] = {}
    for option in ctx.command.params:
        source = ctx.get_parameter_source(option.name or "")
        if source is None or source.name != "COMMANDLINE":
            continue
        name, value = option.opts[0], ctx.params[option.name or ""]
        if isinstance(value, bool):
            name = name if value else option.secondary_opts[0]
            found[name] = [name]
        elif isinstance(value, list | tuple):
            found[name] = [word for item in value for word in (name, str(item))]
        else:
            found[name] = [name, str(value)]
    return found


def command_line(ctx: typer.Context) -> str:
    """Return the command line of this call, quoted for a shell."""
    words = [word for option in given(ctx).values() for word in option]
    return shlex.join([*ctx.command_path.split(), *words])


Size = Annotated[
    ImageSize | None,
    typer.Option(
        "--imgsz",
        parser=ImageSize.parse,
        metavar="PIXELS",
        help="Input size: 640, or height x width: 384x640; multiples of the largest stride.",
    ),
]
Names = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAMES",
        help="Class names of an ONNX file of another exporter: a,b,c, or a file with one per line.",
        callback=class_names,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
# The module ``grouped`` replaces names in braces when the help is printed.
Device = Annotated[
    str,
    typer.Option(
        metavar="DEVICE",
        autocompletion=completion("devices", "auto"),
        help="auto, or a device of the backend: {devices}.",
    ),
]
# The models run in torch, which has other devices than the engines.
TorchDevice = Annotated[
    str,
    typer.Option(
        **among("auto", "cpu", "cuda", metavar="DEVICE"), help="auto, cpu, cuda or cuda:N."
    ),
]
Backend = Annotated[
    str,
    typer.Option(
        metavar="BACKEND",
        autocompletion=completion("backends", "auto"),
        help="Runtime for artifacts: auto (the manifest decides), {backends}.",
    ),
]
SPLITS = among("train", "val", "test", metavar="SPLIT")
Split = Annotated[str, typer.Option(**SPLITS, help="Split of --data: train, val or test.")]
RANGES = among("minmax", "percentile", "mse")
Threads = Annotated[
    int | None,
    typer.Option(
        min=1, help="Number of engine threads; default: the physical cores that may be used."
    ),
]
Conf = Annotated[
    float | None,
    typer.Option(min=0, max=1, callback=finite, help="Minimum confidence; default: the model's."),
]
Iou = Annotated[
    float | None,
    typer.Option(min=0, max=1, callback=finite, help="IoU threshold of NMS; default: the model's."),
]
MaxDet = Annotated[
    int | None,
    typer.Option("--max-det", min=1, help="Maximum boxes per image; default: the model's."),
]
Classes = Annotated[
    list[str] | None,
    typer.Option(
        "--class",
        metavar="CLASS",
        help="Return only boxes of this class, a name or an id; repeatable.",
    ),
]
Images = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Images to compare on; default: those of --data, else of the training's data set, "
        "else synthetic scenes.",
    ),
]
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        autocompletion=variants,
        help="A variant's name (random weights), a checkpoint (.safetensors, .pt) or an artifact.",
    ),
]
Checkpoint = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT",
        autocompletion=variants,
        help="A variant's name (random weights) or a checkpoint (.safetensors, .pt).",
    ),
]
Artifact = Annotated[Path, typer.Argument(metavar="ARTIFACT", help="A file made by y7edge export.")]
