"""Typed reports of proofs and self-tests. Numbers that are not finite are None."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from y7edge.artifact.schema import decode
from y7edge.errors import ArtifactError
from y7edge.text import printable

Status = Literal["passed", "failed", "inconclusive", "unverified"]
"""``unverified``: not compared. ``inconclusive``: the comparison proves nothing; a failure."""


@dataclass(frozen=True)
class ImageSource:
    """Number and source of the images compared."""

    count: int
    source: str


@dataclass(frozen=True)
class TensorDifference:
    """Of an output: largest deviation as a fraction of the largest magnitude, and cosine."""

    deviation: float | None
    cosine: float | None


@dataclass(frozen=True)
class CandidateDifference:
    """Of the reference's best boxes before NMS: least IoU, largest difference of scores."""

    count: int
    iou: float | None
    score_difference: float | None
    score_spread: float | None


@dataclass(frozen=True)
class DetectionDifference:
    """The Detector's boxes against the reference's, after NMS.

    ``boxes``: number that the Detector returned; ``unmatched``: number that only one of them has.
    ``edge_difference`` is a fraction of the box's side.
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
    """One probe repeated: each output's deviation, as a fraction of its scale, and the largest."""

    key: str
    batch: int
    outputs: Mapping[str, float | None]
    deviation: float | None
    tolerance: float
    passed: bool


@dataclass(frozen=True)
class Tolerance:
    """Limits of one precision; None: reported only.

    ``deviation`` and ``cosine`` of each output, ``iou`` and ``score`` of the worst candidate,
    ``peak`` of any activation, ``probe`` of a self-test.
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
    pictures: ImageSource  # the key that scripts read
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
    detections: DetectionDifference | None = None  # not in artifacts of schema 1


@dataclass(frozen=True)
class Origin:
    """The artifact of ``verify``, and its digests if they were checked."""

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
        """Return one flat JSON record, the entries of ``origin`` and ``measured`` included."""
        values = _plain(asdict(self))
        origin, measured = values.pop("origin") or {}, values.pop("measured") or {}
        own = {key: value for key, value in values.items() if value is not None}
        return {**origin, **own, **measured}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ParityReport:
        """Decode the record in a manifest.

        Raises:
            ArtifactError: not such a record.
        """
        names = {field.name for field in fields(cls)}
        own = {key: value for key, value in values.items() if key in names}
        measured = {key: value for key, value in values.items() if key not in names} or None
        record = {**own, "measured": measured}
        return decode(cls, record, origin="the parity report", error=ArtifactError)


@dataclass(frozen=True)
class SelftestReport:
    """The probes of an artifact, repeated in its engine; ``parity`` is the manifest's status."""

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
