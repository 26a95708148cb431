"""``y7edge calibration``: write calibration images for a vendor's quantiser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from y7edge.cli.console import facts, note, show
from y7edge.cli.models import kind_of
from y7edge.cli.options import Json, Size, completion
from y7edge.cli.progress import Progress
from y7edge.errors import ConfigError

if TYPE_CHECKING:
    from y7edge.artifact.manifest import Manifest

_Model = Annotated[str, typer.Argument(metavar="MODEL", help="An artifact or a checkpoint.")]
_Data = Annotated[
    Path,
    typer.Option(metavar="DATA", help="Data set; its split train is used; or a folder of images."),
]
_Form = Annotated[
    str,
    typer.Option(
        metavar="FORM", autocompletion=completion("forms"), help="Form of the files: {forms}."
    ),
]
_Out = Annotated[Path, typer.Option(metavar="FOLDER", help="New folder for the files.")]
_Count = Annotated[int, typer.Option(min=1, help="Number of images.")]


def calibration(
    model: _Model,
    data: _Data,
    form: _Form,
    out: _Out,
    images: _Count = 256,
    imgsz: Size = None,
    as_json: Json = False,
) -> None:
    """Write calibration images for a vendor's quantiser.

    They are letterboxed as MODEL reads them. The images are those that `y7edge export --calib DATA`
    chooses. FOLDER must not exist or must be empty.
    """
    from y7edge.export.calibration import choose_images
    from y7edge.export.calibration_files import require_form, require_new, write

    require_form(form)
    require_new(out)
    manifest = _described(model, imgsz)
    chosen = choose_images(data, manifest.names, count=images)
    for warning in chosen.warnings:
        note(warning)
    with Progress("images") as progress:
        made = write(chosen, manifest.input, out, form, progress=progress.update)
    record: dict[str, Any] = {
        "path": made,
        "form": form,
        "images": len(chosen.images),
        "digest": chosen.digest,
    }
    show(record, facts(record), as_json=as_json)


def _described(model: str, imgsz: tuple[int, int] | None) -> Manifest:
    """Return the manifest of an artifact, or that of a checkpoint's default export."""
    from y7edge.artifact.description import describe
    from y7edge.models import weights
    from y7edge.runtimes import registry as runtimes

    kind = kind_of(model)
    if kind == "artifact":
        return runtimes.load_any(Path(model), imgsz=imgsz).manifest
    if kind == "name":
        raise ConfigError(f"{model} has no weights to calibrate: give a checkpoint or an artifact")
    checkpoint = weights.load(Path(model))
    return describe(checkpoint, checkpoint.spec, imgsz or checkpoint.imgsz, batch=1, tools={})
