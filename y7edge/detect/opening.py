"""Open and describe a Detector's model: an artifact, another exporter's ONNX, a checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from y7edge.artifact.description import Size, pair
from y7edge.artifact.foreign import REASON
from y7edge.artifact.manifest import Manifest
from y7edge.errors import ConfigError, RuntimeMissing
from y7edge.files import is_file
from y7edge.models import registry as variants
from y7edge.models.checkpoint import SUFFIXES
from y7edge.runtimes import registry
from y7edge.runtimes.base import Session, SessionOptions


def open_model(
    source: str | Path,
    backend: str,
    options: SessionOptions,
    imgsz: Size | None,
    names: Sequence[str] | None,
) -> tuple[Session, Manifest]:
    """Open a session for an artifact, or a torch session for a checkpoint or a variant's name.

    Arguments and errors are those of ``Detector``.
    """
    size = None if imgsz is None else pair(imgsz)
    if not needs_torch(source):
        artifact = registry.load_any(source, backend, names=names, imgsz=size)
        return registry.open_session(artifact, options, backend), artifact.manifest
    if backend != "auto" or options.provider_options:
        raise ConfigError(
            f"{source} is run by torch: omit backend and provider_options, which apply to artifacts"
        )
    if names is not None:
        raise ConfigError(
            f"names were given, but {source} has its own: omit names (--names), which are for "
            "files of other exporters"
        )
    # import_module, because detect must not depend on nn (see tests/test_structure.py).
    try:
        eager = import_module("y7edge.nn.eager")
    except ImportError as error:
        raise RuntimeMissing(
            f'{source} is not an exported artifact and needs torch: pip install "y7edge[export]", '
            "or export it with `y7edge export` on a machine with torch"
        ) from error
    session = eager.open(source, options, size)
    return session, session.manifest


def needs_torch(source: str | Path) -> bool:
    """Return whether a model is a checkpoint or a variant's name.

    Raises:
        ConfigError: there is neither a file nor a variant of this name.
    """
    path = Path(source)
    if not is_file(path) and path.name == str(source) and not path.suffix:
        variants.get(path.name)
        return True
    return path.suffix.lower() in SUFFIXES


def describe(session: Session, manifest: Manifest) -> dict[str, Any]:
    """Return the model and the device, as JSON values for logs."""
    return {
        "model": manifest.model,
        "model_id": manifest.payload_digest[:16],
        "nc": manifest.nc,
        "names": list(manifest.names),
        "imgsz": [manifest.input.height, manifest.input.width],
        "batch": manifest.input.batch,
        "precision": manifest.precision,
        "target": manifest.target,
        **session.info,
        "licence": manifest.licence,
        "parity": manifest.parity.get("status"),
    }


def warn_if_unverified(source: str | Path, manifest: Manifest, stacklevel: int) -> None:
    """Warn if an artifact has no proof."""
    if manifest.parity.get("status") != "unverified":
        return
    reason = manifest.parity.get("reason", "no reason given")
    way_out = "run `y7edge selftest` or `y7edge verify` on a machine with its engine"
    if reason == REASON:
        way_out = "`y7edge info` prints what is assumed about it"
    warnings.warn(
        f"{source} was exported without a proof ({reason}): {way_out}", stacklevel=stacklevel + 1
    )
