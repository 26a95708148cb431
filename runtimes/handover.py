"""Run the model in a folder that is handed over to a vendor's toolchain.

A hand-over is a folder ``NAME.handover`` with the model (an .onnx, .tflite or OpenVINO .xml file)
and what the vendor's converter needs: scripts, configurations, calibration images. ``files.json``
lists the files and their SHA-256; ``manifest.json`` is the manifest. The runtime of the model's
suffix runs the model on the CPU. The vendor's converter and device are not involved.

Files that are not listed, such as those that the vendor's converter writes, are allowed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from y7edge.artifact.artifact import Artifact, digest_files, require_files
from y7edge.artifact.manifest import MAX_BYTES, Manifest
from y7edge.artifact.schema import decode, parse
from y7edge.errors import ArtifactError, ArtifactMissing, ConfigError, DigestError
from y7edge.files import read_regular, reason, sha256_file, write_text
from y7edge.runtimes.base import Session, SessionOptions
from y7edge.text import printable

FORMATS = (".handover",)
TARGETS: tuple[str, ...] = ()  # those with the suffix ".handover", which the registry lists
NEEDS: Mapping[str, str] = {}  # that of the model's runtime, which its own opening requires
DEVICES = ("cpu",)
DEVIATION = 1e-4

LISTING, MANIFEST = "files.json", "manifest.json"
_MODELS = (".onnx", ".tflite", ".xml")
_MOST = 100_000  # files


@dataclass(frozen=True)
class Listing:
    """The content of ``files.json``.

    Attributes:
        model: Name of the model file, relative to the folder, with ``/``.
        files: Name of each file, also the model's, to its SHA-256.
    """

    model: str
    files: dict[str, str]


def load_engine() -> None:
    """Do nothing: the model's own runtime loads its engine."""


def files(path: Path) -> tuple[Path, ...]:
    """Return the folder, which contains the manifest."""
    return (path,)


def read_manifest(path: Path) -> Manifest:
    """Read the manifest in the folder.

    Raises:
        ArtifactMissing: the folder has no manifest.
        ArtifactError, DigestError: the manifest cannot be used, or was changed.
    """
    try:
        text = read_regular(path / MANIFEST, MAX_BYTES)
    except FileNotFoundError as error:
        raise ArtifactMissing(f"{path} has no {MANIFEST}: export it again") from error
    except OSError as error:
        raise ArtifactError(f"cannot read {path / MANIFEST}: {reason(error)}") from error
    return Manifest.from_json(text, str(path))


def write_manifest(artifact: Artifact) -> None:
    """Write the manifest into the folder."""
    write_text(artifact.path / MANIFEST, artifact.manifest.to_json())


def write_listing(folder: Path, model: str) -> None:
    """List all files of a new hand-over.

    ``model``: name of the model file, relative to the folder, with ``/``.
    """
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != LISTING)
    names = sorted(path.relative_to(folder).as_posix() for path in found)
    listed = {name: sha256_file(folder / name) for name in names}
    write_text(folder / LISTING, json.dumps({"model": model, "files": listed}, indent=1) + "\n")


def read_listing(folder: Path) -> Listing:
    """Read ``files.json``, and check the names in it. The files are not read.

    Raises:
        ArtifactError: it cannot be read, or a name is not that of a file in the folder.
    """
    path = folder / LISTING
    try:
        values = parse(read_regular(path, MAX_BYTES))
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {reason(error)}") from error
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is not valid JSON: {reason(error)}") from error
    listing = decode(Listing, values, origin=str(path), error=ArtifactError)
    if len(listing.files) > _MOST:
        raise ArtifactError(f"{path} lists {len(listing.files)} files, expected at most {_MOST}")
    for name in listing.files:
        parts = PurePosixPath(name).parts
        outside = not parts or ".." in parts or parts[0].startswith("/")
        if outside or "\\" in name or name != "/".join(parts) or printable(name) != name:
            raise ArtifactError(f"{path} lists {name!r}, expected a name of a file in the folder")
    if listing.model not in listing.files or not listing.model.endswith(_MODELS):
        raise ArtifactError(
            f"{path} names the model {listing.model!r}, expected one of its files, with suffix "
            f"{', '.join(_MODELS)}"
        )
    return listing


def added_files(folder: Path) -> list[str]:
    """Return the names of the files in the folder that the export did not write.

    Raises:
        ArtifactError: ``files.json`` cannot be read.
    """
    own = {*read_listing(folder).files, LISTING, MANIFEST}
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted({path.relative_to(folder).as_posix() for path in found} - own)


def payload_digest(files: Sequence[Path]) -> str:
    """Check the listed files, and return the SHA-256 of ``files.json``, which has their digests.

    Raises:
        ArtifactError: a listed file cannot be read.
        DigestError: a listed file was changed.
    """
    (folder,) = files
    listing = read_listing(folder)
    for name, expected in listing.files.items():
        _check(folder, name, expected)
    return digest_files((folder / LISTING,))


def _check(folder: Path, name: str, expected: str) -> None:
    """Raise ArtifactError or DigestError unless a listed file has the expected SHA-256."""
    path = folder / name
    require_files((path,))
    if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
        raise ArtifactError(f"{path} is not a file in the folder: export it again")
    try:
        found = sha256_file(path)
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {reason(error)}") from error
    if found != expected:
        raise _changed(path)


def _changed(path: Path) -> DigestError:
    return DigestError(
        f"{path} was changed after it was proved: use the original file, or export the model again"
    )


def model_file(artifact: Artifact) -> Path:
    """Return the path of the model in the folder, which is the proved one.

    Raises:
        ArtifactError: the folder cannot be read.
        DigestError: the model was changed.
    """
    folder = artifact.path
    listing = read_listing(folder)
    if digest_files((folder / LISTING,)) != artifact.manifest.payload_digest:
        raise _changed(folder / LISTING)
    _check(folder, listing.model, listing.files[listing.model])
    return folder / listing.model


def versions() -> dict[str, str]:
    """Return nothing: the versions are those of the model's runtime."""
    return {}


def available_devices() -> list[str]:
    """Return the CPU."""
    return ["cpu"]


def open(artifact: Artifact, options: SessionOptions) -> Session:
    """Open the model on the CPU, in the runtime of its suffix."""
    from y7edge.runtimes import registry

    if options.device not in ("auto", "cpu"):
        raise ConfigError(
            f"{artifact.path} runs on the CPU only, not on {options.device!r}: use device='cpu', "
            "or convert it with the vendor's tools"
        )
    inner = replace(artifact, path=model_file(artifact), side_files=())
    return registry.open_session(inner, replace(options, device="cpu", check_payload=False))
