"""Open models given on the command line: a variant's name, a checkpoint or an artifact."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from y7edge.cli.console import note
from y7edge.cli.options import ImageSize
from y7edge.errors import ConfigError
from y7edge.files import is_file, is_folder, reason, require_regular

if TYPE_CHECKING:
    from y7edge.detect.detector import Detector


def kind_of(text: str) -> Literal["name", "checkpoint", "artifact"]:
    """Return what ``text`` refers to.

    A file takes precedence over a variant of the same name, a folder does not.

    Raises:
        ConfigError: ``text`` is neither a file nor a variant's name.
    """
    from y7edge.models import registry
    from y7edge.models.checkpoint import SUFFIXES

    path = Path(text)
    if is_file(path) or (is_folder(path) and not registry.split(text)):
        return "checkpoint" if path.suffix.lower() in SUFFIXES else "artifact"
    if os.path.lexists(path) and not is_folder(path):
        try:
            require_regular(path)
        except OSError as error:
            raise ConfigError(f"{text}: cannot read the model: {reason(error)}") from error
    if path.suffix or path.name != text:
        raise ConfigError(f"there is no file {text}, and no variant has this name")
    registry.get(text)
    return "name"


def say_random(text: str) -> None:
    """Print a note if ``text`` is a variant's name, because its weights are random."""
    if kind_of(text) == "name":
        note(f"{text}: no checkpoint given, using seeded random weights")


def open_detector(text: str, imgsz: ImageSize | None = None, **options: Any) -> Detector:
    """Open a Detector; print a note if its weights are random."""
    from y7edge.detect.detector import Detector

    say_random(text)
    return Detector(text, imgsz=imgsz, **options)
