"""Reports of proofs, self-tests and comparisons, and their JSON.

NaN and infinity are stored as None.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from y7edge.artifact.schema import decode
from y7edge.errors import ArtifactError, GateError
from y7edge.text import printable

Status = Literal["passed", "failed", "inconclusive", "unverified"]
"""``unverified``: not compared. ``inconclusive``: failed, because the scores vary too little."""


@dataclass(frozen=True)
class ImageSource:
    """Number and source of the images that were compared."""

    count: int
    source: str


@dataclass(frozen=True)
class TensorDifference:
    """Difference between an output and its reference."""

    deviation: float | None  # largest, as a fraction of the output's largest magnitude
    cosine: float | None  # cosine similarity


@dataclass(frozen=True)
class CandidateDifference:
    """Differences between the reference's best candidates and the same ones of the artifact."""

    count: int
    iou: float | None  # smallest
    score_difference: float | None  # largest
    score_spread: float | None  # range of the reference's scores


@dataclass(frozen=True)
class DetectionDifference:
    """Differences between the boxes of the Detector and of the reference, after NMS."""

    images: int
    boxes: int  # found by the Detector
    unmatched: int  # found by only one of the two
    edge_difference: float | None  # largest, as a fraction of the box's side
    score_difference: float | None  # largest


@dataclass(frozen=True)
class Peak:
    """The largest magnitude of all activations."""

    peak: float | None
    at: str  # name of the layer


@dataclass(frozen=True)
class ProbeResult:
    """Result of a probe; deviations are fractions of the scale of an output."""

    key: str
    batch: int
    outputs: Mapping[str, float | None]  # deviation of each output
    deviation: float | None  # the largest of them
    tolerance: float
    passed: bool


@dataclass(frozen=True)
class Tolerance:
    """Limits of a proof in one precision; None: no limit."""

    deviation: float | None  # of each output
    cosine: float | None  # of each output
    iou: float  # of each candidate
    score: float  # of each candidate
    peak: float | None  # of all activations
    probe: float  # deviation in self-tests


@dataclass(frozen=True)
class Measured:
    """Measurements of a proof: the worst values over all images and batch sizes."""

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
class AccuracyDifference:
    """mAP@0.5:0.95 of an artifact and of the model that it was made from."""

    data: str  # the data set
    split: str
    images: int
    reference: float  # mAP of the model
    artifact: float  # mAP of the artifact
    limit: float | None  # largest accepted drop; None: only measured
    earlier: float = 0.0  # drop of the model itself, if it is an int8 artifact, from its manifest

    @property
    def drop(self) -> float:
        """The model's mAP minus the artifact's, and what the model itself lost before.

        Negative if the artifact is better.
        """
        return round(self.reference - self.artifact + self.earlier, 6)


@dataclass(frozen=True)
class FallbackStep:
    """An attempt to quantise all convolutions but some, until the mAP drops little enough."""

    kept: tuple[str, ...]  # convolutions that went back to float, the first ones first
    share: float  # of the multiplications that are computed in integers
    artifact: float  # mAP@0.5:0.95
    drop: float


@dataclass(frozen=True)
class Origin:
    """The artifact that ``verify`` checked, and its digests."""

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
    accuracy: AccuracyDifference | None = None  # None if no data set was given
    fallback: tuple[FallbackStep, ...] = ()  # of int8 artifacts, in the order of the attempts

    def to_dict(self) -> dict[str, Any]:
        """Return a flat JSON record: the entries of ``origin`` and ``measured`` become its own."""
        values = _plain(asdict(self))
        origin, measured = values.pop("origin") or {}, values.pop("measured") or {}
        own = {key: value for key, value in values.items() if value is not None}
        if not self.fallback:
            own.pop("fallback")
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


@dataclass(frozen=True)
class Side:
    """One of the two models that ``diff`` compares."""

    path: str
    model: str
    target: str  # "checkpoint" if torch runs it
    precision: str
    arithmetic: str
    payload_digest: str
    source_digest: str


@dataclass(frozen=True)
class Stage:
    """Comparison of one intermediate result.

    ``status``: ``close`` means that the difference is within the tolerance of the less precise
    model, but not within the tolerance of the more precise one. ``skipped`` means that the results
    cannot be compared; ``at`` says why.
    """

    name: str  # "input", "head0"..., "decoded", "detections", or a row as "/row12"
    status: Literal["equal", "close", "differs", "skipped"]
    measured: Mapping[str, float | None]
    at: str = ""  # place of the largest difference


@dataclass(frozen=True)
class Cause:
    """The cause of a difference, and the test that found it."""

    name: str
    text: str


@dataclass(frozen=True)
class DiffReport:
    """Result of ``diff``: the stages in the order of computation."""

    status: Literal["equal", "close", "differs"]
    a: Side
    b: Side
    image: str
    tolerance: Tolerance
    stages: tuple[Stage, ...]
    rows: tuple[Stage, ...] = ()  # outputs of the rows, if requested
    first: str | None = None  # the first stage that differs, or is only close
    first_row: str | None = None  # the first row that differs, or is only close
    cause: Cause | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON record."""
        record: dict[str, Any] = _plain(asdict(self))
        return record

    def require_equal(self) -> None:
        """Raise GateError if the models differ by more than the tolerance."""
        if self.status == "differs":
            cause = f" ({self.cause.name})" if self.cause else ""
            raise GateError(
                f"{self.a.path} and {self.b.path} differ, first in {self.first_row or self.first}"
                f"{cause}: {self.cause.text if self.cause else 'see the report'}"
            )


def _plain(value: Any) -> Any:
    """Convert tuples to lists, and escape unprintable characters of texts."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
