"""Quantise a graph, and put layers back to float until the mAP drops little enough.

All convolutions but the heads are quantised first. If the mAP of that artifact drops too much,
layers go back to float in the order of their damage for each millisecond that they save: 1, 2, 4, 8
... of them, until the drop is accepted. Then the smallest sufficient number is searched by
bisection. Every attempt is built and evaluated in its own engine.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import onnx

from y7edge.artifact.artifact import Artifact
from y7edge.artifact.bounds import MAX_CALIBRATION
from y7edge.artifact.manifest import Manifest, Quantization
from y7edge.artifact.reports import AccuracyDifference, FallbackStep, ParityReport
from y7edge.errors import ConfigError, ExportError, ParityError
from y7edge.export.calibration import COUNT, Calibration, choose_images, unfamiliar
from y7edge.export.graph.quantize import profile_of
from y7edge.export.graph.quantize_check import violations
from y7edge.export.graph.quantize_ranges import require_method
from y7edge.export.proof.accuracy import MapGate, accepted
from y7edge.export.qat import recorded
from y7edge.export.quantization import METHOD, Quantizer
from y7edge.export.targets.base import Target
from y7edge.models.checkpoint import Checkpoint

LEAST_SHARE = 0.5
"""Least share of the multiplications in integers: with less, an int8 artifact is not worth it."""

_IMAGES = 8  # calibration images on which the sensitivity of the layers is measured

Progress = Callable[[str], None]
Build = Callable[[onnx.ModelProto, Quantization], Artifact]
Measure = Callable[[Artifact], AccuracyDifference]


@dataclass(frozen=True)
class Options:
    """The options of an int8 export; see ``y7edge.export.export``.

    Attributes:
        profile: Name of the profile; None: the target's default.
        calib: Data set or folder with calibration images; None: that of the evaluation.
        count: Number of calibration images; None: 256.
        ranges: Method that chooses ranges; None: the default.
        heads: Whether the convolutions that write the outputs are quantised too.
    """

    profile: str | None = None
    calib: Path | str | Calibration | None = None
    count: int | None = None
    ranges: str | None = None
    heads: bool = False

    def check(
        self,
        target: Target,
        precision: str,
        outputs: str,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        """Raise ConfigError if an option does not suit the other options, or the checkpoint.

        A checkpoint may have been trained for a quantised graph: then its profile is used.
        """
        given = [
            option
            for option, value in (
                ("profile", self.profile),
                ("ranges", self.ranges),
                ("quantize_heads", self.heads),
                ("calib", self.calib and not target.CALIBRATES),
                ("calib_images", self.count and not target.CALIBRATES),
            )
            if value
        ]
        if precision != "int8":
            if given:
                raise ConfigError(
                    f"{given[0]} is for precision int8, and the precision is {precision}: omit it, "
                    "or use precision int8"
                )
            return
        if outputs in ("decoded", "nms"):
            raise ConfigError(
                f"outputs {outputs!r} are not available in int8, because one scale for pixels and "
                "scores makes the scores useless: export 'heads', which the Detector decodes"
            )
        if (self.count or 1) > MAX_CALIBRATION:
            raise ConfigError(f"calib_images is {self.count}, expected at most {MAX_CALIBRATION}")
        trained = None if checkpoint is None else recorded(checkpoint)
        if trained is not None and (self.ranges or self.profile not in (None, trained.profile)):
            raise ConfigError(
                f"the checkpoint was trained for profile {trained.profile} with its own ranges: "
                "omit --profile and --ranges"
            )
        profile = self.profile if trained is None else trained.profile
        if profile is not None and profile not in target.PROFILES:
            profile_of(profile)
            why = "" if trained is None else ", for which the checkpoint was trained"
            raise ConfigError(
                f"target {target.NAME} does not take profile {profile!r}{why}; it takes "
                f"{' or '.join(target.PROFILES)}"
            )
        if self.ranges is not None:
            require_method(self.ranges)

    def needed(self, target: Target, precision: str) -> bool:
        """Return whether an export needs calibration images."""
        return precision == "int8" or target.CALIBRATES

    def choose(
        self,
        checkpoint: Checkpoint,
        gate: MapGate | None,
        tell: Progress,
        target: Target,
    ) -> Calibration | None:
        """Choose the calibration images, none of which is in the split that is evaluated.

        None if there is no data set, and the checkpoint was trained for int8: its ranges are known,
        and only the order of the fallback needs images. A target that hands images over needs them.

        Raises:
            ConfigError: there is no data set.
            DataError: the images cannot be used.
        """
        if isinstance(self.calib, Calibration):
            return self.calib
        baseline = gate.baseline if gate else None
        source = self.calib or (baseline.data if baseline else None)
        if source is None and not target.CALIBRATES and recorded(checkpoint) is not None:
            return None
        if source is None:
            needing = f"target {target.NAME}" if target.CALIBRATES else "int8"
            raise ConfigError(
                f"{needing} needs calibration images, at best those of the training: give a data "
                "set or a folder of images (--calib DATA)"
            )
        count, without = self.count or COUNT, baseline.images if baseline else ()
        found = choose_images(source, checkpoint.names, count=count, without=without)
        for warning in found.warnings:
            tell(warning)
        if baseline and baseline.split == "train":
            tell("warning: images that are evaluated may calibrate: better evaluate the split val")
        return found


@dataclass(frozen=True)
class Attempt:
    """An artifact with some convolutions in float, and its mAP; None if it is not measured."""

    artifact: Artifact
    accuracy: AccuracyDifference | None
    step: FallbackStep | None

    @property
    def accepted(self) -> bool:
        """Whether the mAP drops by at most the limit; also if it is not measured."""
        return self.accuracy is None or accepted(self.accuracy)


class Quantized:
    """Builds int8 artifacts of a float graph, with any selection of layers in float.

    Attributes:
        integers_only: Whether the target takes no layers in float.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        checkpoint: Checkpoint,
        calibration: Calibration | None,
        options: Options,
        target: Target,
        manifest: Manifest,
        tell: Progress,
    ) -> None:
        """Run the float graph on the calibration images.

        Args:
            model: the float graph.
            checkpoint: the checkpoint, not folded, whose statistics show foreign images.
            calibration: the images; None only if the checkpoint was trained for int8.
            options: the options of the export.
            target: the target.
            manifest: the manifest of the artifact.
            tell: called with one line for each step.

        Raises:
            DataError: an image cannot be read, or an activation is not finite.
        """
        self._calibration, self._manifest, self._tell = calibration, manifest, tell
        self.integers_only = target.INT8_HEADS
        self._trained = trained = recorded(checkpoint)
        if trained is not None:
            tell(f"the checkpoint was trained for profile {trained.profile}: its ranges are used")
            ranges, profile, method = trained.ranges, trained.profile, trained.method
            self._quantizer = Quantizer(model, (), profile, method=method, trained=ranges)
        elif calibration is not None:
            profile, count = options.profile or target.PROFILES[0], len(calibration.images)
            tell(f"calibrate profile {profile} with {count} images of {calibration.source}")
            inputs, method = calibration.inputs(manifest.input), options.ranges or METHOD
            self._quantizer = Quantizer(model, inputs, profile, method=method, progress=tell)
            for warning in unfamiliar(checkpoint, self._quantizer):
                tell(warning)
        integer_heads = options.heads or target.INT8_HEADS or bool(trained and trained.heads)
        self._always = frozenset() if integer_heads else self._quantizer.heads

    def share(self, kept: Sequence[str]) -> float:
        """Return the share of the multiplications in integers, if ``kept`` are in float."""
        return self._quantizer.share(self._always.union(kept))

    def order(self) -> list[str]:
        """Return the convolutions in the order in which they go back to float."""
        from y7edge.export import sensitivity

        self._tell("measure the damage of each layer, because the mAP drops too much")
        manifest, calibration = self._manifest, cast(Calibration, self._calibration)
        inputs = calibration.inputs(manifest.input)
        images = list(itertools.islice(inputs, _IMAGES))
        found = sensitivity.measure(
            self._quantizer,
            images,
            manifest.levels,
            manifest.nc,
            kept=self._always,
            progress=self._tell,
        )
        return sensitivity.order(found)

    def attempt(self, kept: Sequence[str], build: Build, measure: Measure | None) -> Attempt:
        """Quantise all convolutions but the heads and ``kept``; build and evaluate the artifact."""
        floats = self._always.union(kept)
        quantizer, trained = self._quantizer, self._trained
        calibration = cast(Calibration, self._calibration)
        described = Quantization(
            profile=quantizer.profile.name,
            ranges=trained.method if trained else quantizer.method,
            calibration=trained.calibration if trained else calibration.digest,
            images=trained.images if trained else calibration.names,
            kept=tuple(layer.name for layer in quantizer.layers if layer.name in floats),
            share=round(self.share(kept), 4),
            corrections=("training",) if trained else ("bias",),
        )
        graph = quantizer.quantized(floats)
        if problems := violations(graph, quantizer.profile):
            raise ExportError(
                f"the quantised graph breaks a rule of profile {quantizer.profile.name}: "
                f"{problems[0]}; please report this"
            )
        artifact = build(graph, described)
        if measure is None:
            return Attempt(artifact, None, None)
        found = measure(artifact)
        step = FallbackStep(tuple(kept), round(self.share(kept), 4), found.artifact, found.drop)
        self._tell(
            f"{len(floats)} of {len(quantizer.layers)} convolutions in float, {step.share:.1%} of "
            f"the multiplications in integers: mAP@0.5:0.95 {found.artifact:.4f}, drop "
            f"{found.drop:.4f}"
        )
        return Attempt(artifact, found, step)


def quantized(
    source: Quantized, build: Build, measure: Measure | None, subject: str
) -> tuple[Attempt, tuple[FallbackStep, ...]]:
    """Build an int8 artifact whose mAP drops little enough; also return all attempts.

    Args:
        source: the calibrated graph.
        build: builds an artifact of a QDQ graph.
        measure: evaluates an artifact; None: the first artifact is returned.
        subject: the begin of an error's message.

    Raises:
        ParityError: the mAP drops by more than the limit although half of the multiplications are
            in float. The error's ``report`` has all attempts.
    """
    steps: list[FallbackStep] = []

    def attempt(kept: Sequence[str]) -> Attempt:
        tried = source.attempt(kept, build, measure)
        if tried.step is not None:
            steps.append(tried.step)
        return tried

    first = attempt(())
    if first.accuracy is None or first.accepted:
        return first, tuple(steps)
    found = None
    if not source.integers_only:
        found = fall_back(attempt, source.order(), source.share)
    if found is not None:
        return found, tuple(steps)
    least = min(steps, key=lambda step: step.drop)
    tried = (
        "with all layers in integers, as the target requires"
        if source.integers_only
        else f"with up to {len(steps[-1].kept)} more convolutions in float "
        f"({steps[-1].share:.0%} of the multiplications in integers)"
    )
    problem = (
        f"mAP@0.5:0.95 drops by {least.drop:.4f} or more, expected at most "
        f"{first.accuracy.limit:g}, {tried}"
    )
    report = ParityReport("failed", (problem,), accuracy=first.accuracy, fallback=tuple(steps))
    raise ParityError(
        f"{subject} is less accurate than its model: {problem}; use another profile or other "
        "calibration images, train it for int8 (y7edge train --qat), or accept more (max_map_drop)",
        report,
    )


def fall_back(
    attempt: Callable[[Sequence[str]], Attempt],
    order: Sequence[str],
    share: Callable[[Sequence[str]], float],
) -> Attempt | None:
    """Find the smallest number of layers in float with which the mAP drops little enough.

    Args:
        attempt: builds and evaluates an artifact with these layers in float.
        order: the layers, first the one that is to go back to float first.
        share: returns the share of the multiplications in integers.

    Returns:
        The attempt; None if less than ``LEAST_SHARE`` of the multiplications would be in integers.
    """
    most = 0
    while most < len(order) and share(order[: most + 1]) >= LEAST_SHARE:
        most += 1
    low, count = 0, min(1, most)
    found = None
    while low < count:
        tried = attempt(order[:count])
        if tried.accepted:
            found = tried
            break
        low, count = count, min(2 * count, most)
    while found is not None and count - low > 1:
        middle = (low + count) // 2
        tried = attempt(order[:middle])
        if tried.accepted:
            found, count = tried, middle
        else:
            low = middle
    return found
