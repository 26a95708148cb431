"""Typed reports of proofs and self-tests, and their JSON; non-finite numbers are None."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from y7edge.artifact.schema import decode
from y7edge.errors import ArtifactError
from y7edge.text import printable

Status = Literal["passed", "failed", "inconclusive", "unverified"]
"""``unverified``: not compared. ``inconclusive``: compared, but without significance; a failure."""


@dataclass(frozen=True)
class ImageSource:
    """Number and source of the images that were compared."""

    count: int
    source: str


@dataclass(frozen=True)
class TensorDifference:
    """Largest deviation of an output, as a fraction of its largest magnitude, and its cosine."""

    deviation: float | None
    cosine: float | None


@dataclass(frozen=True)
class CandidateDifference:
    """Smallest IoU and largest score difference of the reference's best boxes before NMS."""

    count: int
    iou: float | None
    score_difference: float | None
    score_spread: float | None


@dataclass(frozen=True)
class DetectionDifference:
    """Differences between the boxes of the Detector and of the reference, after NMS.

    ``boxes``: number of boxes of the Detector; ``unmatched``: boxes that only one side has;
    ``edge_difference``: as a fraction of the box's side.
    """

    images: int
    boxes: int
    unmatched: int
    edge_difference: float | None
    score_difference: float | None


@dataclass(frozen=True)
class Peak:
    """The largest magnitude of an activation, and its layer."""

    peak: float | None
    at: str


@dataclass(frozen=True)
class ProbeResult:
    """Result of a probe: the deviation of each output, as a fraction of its scale; the largest."""

    key: str
    batch: int
    outputs: Mapping[str, float | None]
    deviation: float | None
    tolerance: float
    passed: bool


@dataclass(frozen=True)
class Tolerance:
    """Limits of a proof in one precision; None: no limit.

    ``deviation`` and ``cosine`` apply to each output, ``iou`` and ``score`` to the worst candidate,
    ``peak`` to every activation, ``probe`` to self-tests.
    """

    deviation: float | None
    cosine: float | None
    iou: float
    score: float
    peak: float | None
    probe: float


@dataclass(frozen=True)
class Measured:
    """Measurements of a proof, the worst over all images and batch sizes."""

    reference: str
    pictures: ImageSource  # this name is a public JSON key
    batches: tuple[int, ...]
    outputs: Mapping[str, TensorDifference]
    candidates: CandidateDifference
    probes: tuple[ProbeResult, ...]
    activations: Peak
    tolerance: Tolerance
    engine: str
    device: str
    arithmetic: str
    versions: Mapping[str, str]
    detections: DetectionDifference | None = None  # None in artifacts of schema 1


@dataclass(frozen=True)
class Origin:
    """The artifact given to ``verify``, and the digests that were checked."""

    artifact: str
    payload_digest: str | None = None
    source_digest: str | None = None


@dataclass(frozen=True)
class ParityReport:
    """The proof of an artifact."""

    status: Status
    problems: tuple[str, ...] = ()
    reason: str | None = None  # why it is unverified
    simplifier: str | None = None  # result of the graph's simplification
    origin: Origin | None = None
    measured: Measured | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return one flat JSON record with the entries of ``origin`` and ``measured``."""
        values = _plain(asdict(self))
        origin, measured = values.pop("origin") or {}, values.pop("measured") or {}
        own = {key: value for key, value in values.items() if value is not None}
        return {**origin, **own, **measured}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ParityReport:
        """Decode the parity record of a manifest.

        Raises:
            ArtifactError: the record is invalid.
        """
        names = {field.name for field in fields(cls)}
        own = {key: value for key, value in values.items() if key in names}
        measured = {key: value for key, value in values.items() if key not in names} or None
        record = {**own, "measured": measured}
        return decode(cls, record, origin="the parity report", error=ArtifactError)


@dataclass(frozen=True)
class SelftestReport:
    """Result of a self-test; ``parity`` is the status of the manifest's proof."""

    status: Status
    artifact: str
    payload_digest: str
    parity: str
    probes: tuple[ProbeResult, ...]
    device: str
    arithmetic: str
    versions: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON record."""
        record: dict[str, Any] = _plain(asdict(self))
        return record


def _plain(value: Any) -> Any:
    """Convert tuples to lists, and escape texts."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
