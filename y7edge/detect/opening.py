"""Open what a Detector is made from: an artifact, a checkpoint, or a variant's name."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from y7edge.artifact.artifact import Artifact
from y7edge.artifact.description import Size, pair
from y7edge.artifact.manifest import Manifest
from y7edge.errors import ConfigError, RuntimeMissing
from y7edge.files import is_file
from y7edge.models import registry as variants
from y7edge.models.checkpoint import SUFFIXES
from y7edge.runtimes import registry
from y7edge.runtimes.base import Session, SessionOptions


def open_model(
    source: str | Path, backend: str, options: SessionOptions, imgsz: Size | None
) -> tuple[Session, Manifest]:
    """Open a session for an artifact, or a torch session for a checkpoint or a variant's name."""
    path = Path(source)
    if not is_file(path) and path.name == str(source) and not path.suffix:
        variants.get(path.name)  # raises ConfigError for an unknown name
    elif path.suffix.lower() not in SUFFIXES:
        artifact = registry.load(path, backend)
        _require_size(artifact, imgsz)
        return registry.open_session(artifact, options, backend), artifact.manifest
    if backend != "auto" or options.provider_options:
        raise ConfigError(
            f"{source} is run by torch: omit backend and provider_options, which apply to artifacts"
        )
    # import_module, because detect must not depend on nn (see tests/test_structure.py).
    try:
        eager = import_module("y7edge.nn.eager")
    except ImportError as error:
        raise RuntimeMissing(
            f'{source} is not an exported artifact and needs torch: pip install "y7edge[export]", '
            "or export it with `y7edge export` on a machine with torch"
        ) from error
    session = eager.open(source, options, None if imgsz is None else pair(imgsz))
    return session, session.manifest


def _require_size(artifact: Artifact, imgsz: Size | None) -> None:
    image = artifact.manifest.input
    if imgsz is not None and pair(imgsz) != (image.height, image.width):
        height, width = pair(imgsz)
        raise ConfigError(
            f"{artifact.path} has a fixed input size, expected imgsz {image.height}x{image.width}, "
            f"found {height}x{width}: omit imgsz, or export again with --imgsz {height}x{width}"
        )
