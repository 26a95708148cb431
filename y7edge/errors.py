"""Every error that y7edge raises on purpose, and the exit code that each gives the command line.

A message is one line: what was wrong, what was expected, what to do. Vendor exceptions are wrapped
once, where they enter, with ``raise ... from``; nothing else in the package raises bare exceptions
for a user's mistake.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from y7edge.text import one_line


class Y7EdgeError(Exception):
    """Base of all errors of the package; ``exit_code`` is what the command line exits with.

    Its text is one line of bounded length, whatever names and paths of users stand in it.
    """

    exit_code = 1

    def __str__(self) -> str:
        """Return the message, fit for a terminal."""
        return one_line(super().__str__())


class ConfigError(Y7EdgeError, ValueError):
    """An option, a model description or a combination of them that cannot be used."""


class DataError(Y7EdgeError, ValueError):
    """An image, a label file or a data set that cannot be used."""


class CheckpointError(Y7EdgeError):
    """A checkpoint that is damaged, of another form than expected, or refused as unsafe."""


class TrainingError(Y7EdgeError):
    """A training run that cannot go on, such as one with a non-finite loss."""


class ExportError(Y7EdgeError):
    """An artifact could not be made; nothing was left at the destination."""


class Report(Protocol):
    """What a ParityError carries: a report of :mod:`y7edge.artifact.reports`."""

    @property
    def status(self) -> str:
        """The verdict."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""


class ParityError(ExportError):
    """An artifact differs from the model that it came from, or could not be proved equal.

    ``report`` has the verdict and what was measured; None where nothing was compared.
    """

    exit_code = 4

    def __init__(self, message: str, report: Report | None = None) -> None:
        super().__init__(message)
        self.report = report


class ArtifactError(Y7EdgeError):
    """An artifact or its manifest cannot be read, or is of an unknown version."""


class ArtifactMissing(ArtifactError, FileNotFoundError):  # noqa: N818 - reads as what happened
    """A file of an artifact does not exist: the artifact itself, or one that belongs to it."""


class DigestError(ArtifactError):
    """An artifact or its manifest was changed after it was proved."""

    exit_code = 4


class GateError(Y7EdgeError):
    """A measured figure is beyond the budget that was asked for."""

    exit_code = 4


class RuntimeMissing(Y7EdgeError, ImportError):  # noqa: N818 - a name that scripts rely on
    """A package that the call needs is not installed; the message says how to install it."""

    exit_code = 3


class DeviceError(Y7EdgeError):
    """The device asked for does not exist or the engine failed on it."""


class DetectorClosed(DeviceError):  # noqa: N818 - reads as what happened
    """A Detector or a session was used after ``close``."""


class SourceError(Y7EdgeError):
    """Images or video cannot be read from where they were asked for."""


class OutputError(Y7EdgeError):
    """A result cannot be written where it was asked for."""


@contextmanager
def needing(package: str, extra: str, purpose: str) -> Iterator[None]:
    """Re-raise an ImportError of the block as RuntimeMissing that says what to install."""
    try:
        yield
    except ImportError as error:
        raise RuntimeMissing(f'{purpose} needs {package}: pip install "y7edge[{extra}]"') from error
