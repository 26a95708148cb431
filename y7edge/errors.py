"""The exceptions of y7edge, and their exit codes on the command line.

A message is one line: what was wrong, what was expected, what to do. Exceptions of other libraries
are wrapped once, where they are first caught, with ``raise ... from``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Protocol

from y7edge.text import one_line


class Y7EdgeError(Exception):
    """Base class of all errors of the package; ``exit_code`` is the command line's exit code.

    ``str(error)`` is one printable line of bounded length, whatever the message contains.
    """

    exit_code = 1

    def __str__(self) -> str:
        """Return the message as one printable line."""
        return one_line(super().__str__())


class ConfigError(Y7EdgeError, ValueError):
    """An option or a model description is invalid, or options contradict each other."""


class DataError(Y7EdgeError, ValueError):
    """An image, a label file or a data set cannot be used."""


class CheckpointError(Y7EdgeError):
    """A checkpoint is damaged, has unexpected content, or was refused as unsafe."""


class TrainingError(Y7EdgeError):
    """A training run cannot continue, for example after a non-finite loss."""


class ExportError(Y7EdgeError):
    """An artifact could not be created; files at the destination were not changed."""


class Report(Protocol):
    """The members of ``ParityError.report``; implemented in ``y7edge.artifact.reports``."""

    @property
    def status(self) -> str:
        """The result of the proof."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""


class ParityError(ExportError):
    """The outputs of an artifact differ from its model's, or could not be compared.

    ``report`` contains the status and the measurements; None if nothing was compared.
    """

    exit_code = 4

    def __init__(self, message: str, report: Report | None = None) -> None:
        super().__init__(message)
        self.report = report


class ArtifactError(Y7EdgeError):
    """An artifact or its manifest cannot be read, or has an unknown version."""


class ArtifactMissing(ArtifactError, FileNotFoundError):  # noqa: N818 - a public name
    """The main file of an artifact or one of its side files does not exist."""


class ManifestMissing(ArtifactError):  # noqa: N818 - a public name
    """A file has no manifest: it was made by another exporter."""


class DigestError(ArtifactError):
    """A digest does not match: an artifact or its manifest was changed after the export."""

    exit_code = 4


class GateError(Y7EdgeError):
    """A gate failed: a measured value exceeds its limit."""

    exit_code = 4


class RuntimeMissing(Y7EdgeError, ImportError):  # noqa: N818 - a public name
    """A required package is not installed; the message names the command that installs it."""

    exit_code = 3


class DeviceError(Y7EdgeError):
    """The requested device does not exist, or the engine failed."""


class DetectorClosed(DeviceError):  # noqa: N818 - a public name
    """A Detector or a session was used after ``close``."""


class FrameDropped(DeviceError):  # noqa: N818 - a public name
    """A submitted frame was dropped, because the queue was full."""


class SourceError(Y7EdgeError):
    """An image or video source cannot be read."""


class SourceTimeout(SourceError):  # noqa: N818 - a public name
    """A source had no frame in time; reading again may succeed."""


class SourceSkipped(SourceError):  # noqa: N818 - a public name
    """A source skipped a file or frame that cannot be read; reading again returns the next one."""


class OutputError(Y7EdgeError):
    """A result cannot be written to its destination."""


@contextmanager
def needing(package: str, extra: str, purpose: str) -> Iterator[None]:
    """Re-raise an ImportError in a ``with`` statement as RuntimeMissing with an install command."""
    try:
        yield
    except ImportError as error:
        raise RuntimeMissing(f'{purpose} needs {package}: pip install "y7edge[{extra}]"') from error


def public_name(package: str, places: Mapping[str, str], name: str, extra: str) -> Any:
    """Import a public name of a package from the module that defines it, on first use.

    Args:
        package: import name of the package, for messages.
        places: public name -> import name of the module that defines it.
        name: the name that was asked for.
        extra: the extra with the packages that these modules need.

    Raises:
        AttributeError: the package has no such name.
        RuntimeMissing: a package that the module needs is not installed.
    """
    if name not in places:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    try:
        module = import_module(places[name])
    except ModuleNotFoundError as error:
        raise RuntimeMissing(
            f"{package}.{name} needs {error.name}, which is not installed: pip install "
            f'"y7edge[{extra}]"'
        ) from error
    return getattr(module, name)
