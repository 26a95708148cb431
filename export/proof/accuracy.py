"""Compare the mAP of an artifact with that of the model that it was made from.

The proof shows that an artifact computes nearly the same numbers. For low precisions the proof
cannot show how many objects are lost. Therefore ``export`` and ``build`` can evaluate both models
on a data set with the protocol of ``y7edge val``, and refuse an artifact whose mAP@0.5:0.95 drops
too much.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from y7edge.artifact.artifact import Artifact
from y7edge.artifact.reports import AccuracyDifference, ParityReport
from y7edge.data import dataset
from y7edge.detect.detector import Detector
from y7edge.errors import ConfigError, ParityError
from y7edge.evaluation.evaluate import Metrics, evaluate, same_classes
from y7edge.models.checkpoint import Checkpoint
from y7edge.runtimes import registry
from y7edge.runtimes.base import SessionOptions, require

MAX_INT8_DROP = 0.005
"""Default of the largest accepted drop of the mAP@0.5:0.95 of int8 artifacts."""

Progress = Callable[[str], None]


class Baseline:
    """A model and a labelled data set, on which artifacts of the model are evaluated.

    The mAP of the model is computed once for each input size. Pass one object to several exports
    to evaluate the model only once.
    """

    def __init__(
        self,
        model: Checkpoint | Artifact,
        data: Path | str,
        split: str = "val",
        *,
        device: str = "auto",
        progress: Progress | None = None,
    ) -> None:
        """Load the data set. The model is evaluated when its mAP is needed.

        Args:
            model: a checkpoint of any form, which torch runs; or a proved artifact.
            data: the data set, as for ``y7edge val``.
            split: the split of the data set: "train", "val" or "test".
            device: the device that runs the model.
            progress: called with warnings about class names.

        Raises:
            DataError: the data set cannot be used, or its classes differ from the model's.
            RuntimeMissing: a package is not installed.
        """
        require({"faster_coco_eval": "y7edge[eval]"}, "an evaluation")
        self.data, self.split = str(data), split
        self._model, self._device = model, device
        loaded = dataset.load(data, splits=[split])
        loaded.split(split)  # raises DataError if there are no images
        names = model.names if isinstance(model, Checkpoint) else model.manifest.names
        self._names, self._samples = names, same_classes(names, loaded, progress).split(split)
        self._metrics: dict[tuple[int, int], Metrics] = {}

    @property
    def digest(self) -> str:
        """Digest of the model's checkpoint."""
        model = self._model
        return model.digest if isinstance(model, Checkpoint) else model.manifest.source.digest

    @property
    def images(self) -> tuple[Path, ...]:
        """The images of the evaluation, with which nothing may be calibrated; () in "train"."""
        return () if self.split == "train" else tuple(sample.path for sample in self._samples)

    @property
    def shown(self) -> tuple[str, tuple[Path, ...]]:
        """What the images of the split are called in reports, and the images."""
        return f"split {self.split} of {self.data}", tuple(s.path for s in self._samples)

    @property
    def measured(self) -> tuple[tuple[int, int], ...]:
        """The input sizes at which the model was evaluated."""
        return tuple(self._metrics)

    def metrics(self, imgsz: tuple[int, int]) -> Metrics:
        """Return the model's metrics at an input size (height, width), measured on first use."""
        if imgsz not in self._metrics:
            with closing(self._open(imgsz)) as detector:
                self._metrics[imgsz] = self.evaluate(detector)
        return self._metrics[imgsz]

    def evaluate(self, detector: Detector) -> Metrics:
        """Evaluate a detector on the data set."""
        return evaluate(detector.detect_for_evaluation, self._samples, self._names)

    def _open(self, imgsz: tuple[int, int]) -> Detector:
        options, model = SessionOptions(self._device), self._model
        if isinstance(model, Artifact):
            return Detector.from_session(registry.open_session(model, options), model.manifest)
        from y7edge.nn.build import from_checkpoint
        from y7edge.nn.eager import EagerSession, describe

        manifest = describe(model, imgsz)
        session = EagerSession(from_checkpoint(model), manifest, options)
        return Detector.from_session(session, manifest)


@dataclass(frozen=True)
class MapGate:
    """A baseline and ``limit``, the largest accepted drop of the mAP@0.5:0.95 (None: any).

    ``earlier``: what the baseline's model, if it is an int8 artifact, itself lost before.
    """

    baseline: Baseline
    limit: float | None
    earlier: float = 0.0

    @classmethod
    def create(
        cls,
        model: Checkpoint | Artifact,
        data: Path | str | Baseline | None,
        limit: float | None,
        progress: Progress,
    ) -> MapGate | None:
        """Create the gate from the arguments of an export; load the data set.

        Returns None if ``data`` is None.

        Raises:
            ConfigError: ``limit`` is out of range or given without ``data``, or the baseline is of
                another model.
            DataError, RuntimeMissing: see ``Baseline``.
        """
        if limit is not None and not 0 <= limit <= 1:
            raise ConfigError(f"max_map_drop is {limit}, expected 0 to 1, such as 0.002")
        if data is None:
            if limit is not None:
                raise ConfigError("max_map_drop needs a data set: give data too (--data DATA)")
            return None
        if not isinstance(data, Baseline):
            return cls(Baseline(model, data, progress=progress), limit)
        digest = model.digest if isinstance(model, Checkpoint) else model.manifest.source.digest
        if data.digest != digest:
            raise ConfigError(
                f"the baseline is of another model: found digest {data.digest[:16]}, expected "
                f"{digest[:16]}; create one from the model that is exported"
            )
        return cls(data, limit)

    def measure(
        self, artifact: Artifact, backend: str, device: str, progress: Progress
    ) -> AccuracyDifference:
        """Evaluate the baseline's model and an artifact; return both mAPs.

        Raises:
            ParityError: the mAP of the model is so low that no int8 artifact could fail.
        """
        image, baseline = artifact.manifest.input, self.baseline
        if (size := (image.height, image.width)) not in baseline.measured:
            progress(f"evaluate the model on the split {baseline.split} of {baseline.data}")
        expected = baseline.metrics(size)
        if artifact.manifest.precision == "int8" and expected.map50_95 <= (self.limit or 0):
            problem = (
                f"inconclusive, the model's mAP@0.5:0.95 on the split {baseline.split} of "
                f"{baseline.data} is {expected.map50_95:.4f}, expected more than the accepted drop"
            )
            raise ParityError(
                f"the artifact cannot be accepted: {problem}; use a data set like that of the "
                "training, or train longer",
                ParityReport("inconclusive", (problem,)),
            )
        progress("evaluate the artifact")
        options = SessionOptions(device, check_payload=False)
        session = registry.open_session(artifact, options, backend)
        with closing(Detector.from_session(session, artifact.manifest)) as detector:
            found = baseline.evaluate(detector)
        return AccuracyDifference(
            data=baseline.data,
            split=baseline.split,
            images=found.images,
            reference=round(expected.map50_95, 6),
            artifact=round(found.map50_95, 6),
            limit=self.limit,
            earlier=self.earlier,
        )


def gated(
    report: ParityReport,
    gate: MapGate | None,
    artifact: Artifact,
    backend: str,
    device: str,
    subject: str,
    progress: Progress,
) -> ParityReport:
    """Compare the mAP of the artifact with the baseline's; add the result to the proof's report.

    If ``gate`` is None, the report is returned unchanged.

    Raises:
        ParityError: the mAP drops by more than the limit; ``subject`` begins the message, and
            ``report`` has the numbers.
    """
    if gate is None:
        return report
    return judged(report, gate.measure(artifact, backend, device, progress), subject)


def accepted(found: AccuracyDifference) -> bool:
    """Return whether the mAP drops by at most the limit."""
    return found.limit is None or (math.isfinite(found.drop) and found.drop <= found.limit)


def gate_of(
    checkpoint: Checkpoint,
    precision: str,
    data: Path | str | Baseline | None,
    limit: float | None,
    progress: Progress,
) -> MapGate | None:
    """Create the gate for artifacts of a checkpoint; see ``MapGate.create``.

    In int8, a checkpoint that was trained for int8 may have lost some mAP in float.
    """
    limit = limit_of(precision, limit, data)
    gate = MapGate.create(checkpoint, data, limit, progress)
    if gate is None or precision != "int8":
        return gate
    from y7edge.export.qat import recorded

    trained = recorded(checkpoint)
    if trained is None:
        return gate
    if trained.drop is None:
        progress(
            "warning: the training for int8 had no labelled images: drops are those from the mAP "
            "of the trained weights, not of the float checkpoint"
        )
    return replace(gate, earlier=trained.drop or 0.0)


def limit_of(precision: str, limit: float | None, data: object) -> float | None:
    """Return the largest accepted drop: of int8 artifacts, the default if none is given.

    ``data``: the data set; without one, there is no limit.
    """
    return MAX_INT8_DROP if limit is None and data is not None and precision == "int8" else limit


def judged(report: ParityReport, found: AccuracyDifference, subject: str) -> ParityReport:
    """Add a measured mAP to the proof's report; raise ParityError if it drops too much.

    ``subject`` begins the message.
    """
    report = replace(report, accuracy=found)
    if accepted(found):
        return report
    problem = (
        f"mAP@0.5:0.95 drops by {found.drop:.4f} on the split {found.split} of {found.data}, from "
        f"{found.reference + found.earlier:.4f} to {found.artifact:.4f}, expected at most "
        f"{found.limit:g}"
    )
    raise ParityError(
        f"{subject} is less accurate than its model: {problem}; accept more (max_map_drop), or use "
        "another precision",
        replace(report, status="failed", problems=(*report.problems, problem)),
    )
