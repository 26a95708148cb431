"""Self-test of an artifact on the target machine, without torch, onnx, checkpoint or images.

The payload digest shows that the files have not changed since the export. The probes (generated
inputs with sampled reference outputs) show that the engine on this machine computes the same
outputs as the reference model.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from y7edge import __version__
from y7edge.artifact.artifact import Artifact
from y7edge.artifact.manifest import InputInfo, Manifest, Probe, Samples
from y7edge.artifact.reports import ProbeResult, SelftestReport
from y7edge.artifact.schema import checked
from y7edge.detect.postprocess import threshold_feeds
from y7edge.errors import (
    ArtifactError,
    ArtifactMissing,
    DigestError,
    ManifestMissing,
    ParityError,
)
from y7edge.runtimes import registry
from y7edge.runtimes.base import Session, SessionOptions, TensorSpec

RECIPE = "blocks"
"""Name of a method that generates probe inputs: the mean of noise in squares of 32, 8 and 1 pixels.

Noise of single pixels averages out in the first layers, and deep feature maps become constant.
Larger squares prevent this.
"""

RECIPE_8BIT = "blocks-8bit"
"""The same, but values are rounded to multiples of 1/255, for inputs of 8-bit pixel values."""

_CELLS = (32, 8, 1)  # pixels
_WHITE = np.float32(255)


def probe_input(recipe: str, key: str, shape: tuple[int, int, int, int]) -> NDArray[np.float32]:
    """Generate a probe's input (B, 3, H, W) float32, 0..1.

    ``recipe``: name of the method. ``key`` seeds the random numbers.

    Raises:
        ArtifactError: the recipe is unknown.
    """
    if recipe not in (RECIPE, RECIPE_8BIT):
        raise ArtifactError(
            f"a probe has recipe {recipe!r}, expected {RECIPE!r} or {RECIPE_8BIT!r}: update y7edge"
        )
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))
    batch, channels, height, width = shape
    total = np.zeros(shape, np.float32)
    for cell in _CELLS:
        rows, columns = -(-height // cell), -(-width // cell)
        coarse = generator.random((batch, channels, rows, columns), dtype=np.float32)
        total += coarse.repeat(cell, axis=2).repeat(cell, axis=3)[:, :, :height, :width]
    pixels = np.float32(1 / len(_CELLS)) * total
    return pixels if recipe == RECIPE else np.rint(pixels * _WHITE) / _WHITE


def recipe_for(image: InputInfo) -> str:
    """Return the name of the method that generates probes for an input (``Probe.recipe``)."""
    return RECIPE_8BIT if image.dtype in ("uint8", "int8") else RECIPE


def input_crc32(pixels: NDArray[np.float32]) -> int:
    """Return the CRC-32 of an input's float32 values in little-endian order."""
    return zlib.crc32(pixels.astype("<f4", copy=False).tobytes())


@checked
def selftest(
    path: Path | str, *, backend: str = "auto", device: str = "auto", threads: int | None = None
) -> SelftestReport:
    """Check an artifact's digests, and run its probes on this machine.

    Raises:
        DigestError: the file or its manifest was changed or damaged.
        ParityError: a probe exceeds its tolerance (``report`` has the numbers), or no probe exists.
        ArtifactError: the file does not exist, has no manifest, or no runtime can read it.
        RuntimeMissing, DeviceError: the engine cannot be used.
    """
    artifact = load_undamaged(path, backend)
    registry.check_payload(artifact, backend)
    options = SessionOptions(device, threads, check_payload=False)  # checked above
    require_probes(path, artifact.manifest)
    with closing(registry.open_session(artifact, options, backend)) as session:
        return repeat_probes(path, artifact.manifest, session)


def require_probes(path: Path | str, manifest: Manifest) -> None:
    """Raise ParityError if an artifact has no probes."""
    if not manifest.probes:
        raise ParityError(f"{path} has no probes to repeat: export it again")


def repeat_probes(path: Path | str, manifest: Manifest, session: Session) -> SelftestReport:
    """Run the probes of an artifact whose digest was checked.

    Args:
        path: the artifact, for the report.
        manifest: of the artifact.
        session: in which the artifact is open.

    Raises:
        ParityError: a probe exceeds its tolerance (``report`` has the numbers), or no probe exists.
        ArtifactError: the probes cannot be reproduced here.
        DeviceError: the engine failed.
    """
    require_probes(path, manifest)
    results = tuple(run_probe(probe, session, manifest) for probe in manifest.probes)
    failed = [result for result in results if not result.passed]
    report = SelftestReport(
        status="failed" if failed else "passed",
        artifact=str(path),
        payload_digest=manifest.payload_digest,
        parity=str(manifest.parity.get("status")),
        probes=results,
        device=session.device,
        arithmetic=session.arithmetic,
        versions={"y7edge": __version__, "numpy": np.__version__, **session.versions},
    )
    if failed:
        worst = failed[0]
        raise ParityError(
            f"{path}: outputs on this machine differ from the reference: probe {worst.key} "
            f"deviates by {worst.deviation}, expected at most {worst.tolerance} "
            f"({report.arithmetic}): update the engine, or use another device",
            report,
        )
    return report


def load_undamaged(path: Path | str, backend: str = "auto") -> Artifact:
    """Load an artifact; raise DigestError also if the manifest cannot be read.

    Raises:
        ArtifactMissing, ManifestMissing: there is nothing to check the file against.
        DigestError: the manifest was changed or damaged.
    """
    registry.find(path, backend)  # raises ArtifactError if the file does not exist
    try:
        return registry.load(path, backend)
    except (ArtifactMissing, ManifestMissing, DigestError):
        raise
    except ArtifactError as error:
        raise DigestError(str(error)) from error


def run_probe(probe: Probe, session: Session, manifest: Manifest) -> ProbeResult:
    """Run one probe, and compare its outputs.

    Raises:
        ArtifactError: the probe's input cannot be reproduced, or samples do not fit the outputs.
    """
    image = manifest.input
    pixels = probe_input(probe.recipe, probe.key, (probe.batch, 3, image.height, image.width))
    if input_crc32(pixels) != probe.crc32:
        raise ArtifactError(
            f"the input of probe {probe.key}, generated with numpy {np.__version__}, differs from "
            "the input at the export: use a newer y7edge, or another version of numpy"
        )
    feeds = {image.name: as_input(pixels, image)}
    if probe.thresholds is not None:
        feeds |= threshold_feeds(manifest, probe.thresholds)
    outputs = session.infer(feeds)
    deviations = compare_samples(probe, outputs, session.outputs)
    finite = [value for value in deviations.values() if value is not None]
    worst = max(finite) if len(finite) == len(deviations) else None
    passed = worst is not None and worst <= probe.tolerance
    return ProbeResult(probe.key, probe.batch, deviations, worst, probe.tolerance, passed)


def as_input(pixels: NDArray[np.float32], image: InputInfo) -> NDArray[Any]:
    """Convert pixels (B, 3, H, W) float32, 0..1, to the input's layout, dtype and scale.

    Raises:
        ArtifactError: dtype, scale or zero point is not supported, or the input has 8-bit integers
            and a pixel is not a multiple of 1/255.
    """
    ordered = pixels.transpose(0, 2, 3, 1) if image.layout == "NHWC" else pixels
    found = image.dtype, image.scale, image.zero_point
    if found in (("uint8", 1, 0), ("int8", 1, -128)):
        whole = np.rint(ordered * _WHITE)
        if not np.array_equal(whole.clip(0, _WHITE) / _WHITE, ordered):
            raise ArtifactError(
                f"a pixel for {image.dtype} inputs is not a multiple of 1/255, from 0 to 1"
            )
        ordered = whole + np.float32(image.zero_point)
    elif found not in (("float32", 1 / 255, 0), ("float16", 1 / 255, 0)):
        raise ArtifactError(
            f"the input is {image.dtype} with scale {image.scale:g} and zero point "
            f"{image.zero_point}, expected float32 or float16 with scale 1/255, uint8 with scale "
            "1, or int8 with scale 1 and zero point -128"
        )
    return np.ascontiguousarray(ordered, image.dtype)


def compare_samples(
    probe: Probe, outputs: Mapping[str, NDArray[Any]], specs: tuple[TensorSpec, ...]
) -> dict[str, float | None]:
    """Return the largest deviation of each output, as a fraction of its scale; None: not finite."""
    by_name = {spec.name: spec for spec in specs}
    deviations: dict[str, float | None] = {}
    if {sample.output for sample in probe.samples} != set(by_name):
        raise ArtifactError(f"probe {probe.key}: expected one set of samples for each output")
    for sample in probe.samples:
        if by_name[sample.output].role == "detections":
            deviations[sample.output] = _row_deviation(sample, outputs[sample.output])
            continue
        if max(sample.indices) >= outputs[sample.output].size:
            raise ArtifactError(
                f"probe {probe.key}: a sample's index is beyond the end of {sample.output}"
            )
        taken = outputs[sample.output].reshape(-1)[list(sample.indices)]
        real = dequantised(taken, by_name[sample.output])
        worst = float(np.abs(real - np.array(sample.values)).max()) / sample.scale
        deviations[sample.output] = worst if np.isfinite(worst) else None
    return deviations


def _row_deviation(sample: Samples, rows: NDArray[Any]) -> float | None:
    """Return the largest deviation of sampled detections from their nearest rows.

    Deviations of corners are fractions of the scale, deviations of scores are absolute. Return None
    if a detection has no row of the same image and class, for example in an empty result.
    """
    if len(sample.values) % 7:
        raise ArtifactError(f"samples of {sample.output} are not whole rows of 7 values")
    unit, worst = np.array([1.0, *[sample.scale] * 4, 1.0, 1.0]), 0.0
    for expected in np.array(sample.values).reshape(-1, 7):
        same = (rows[:, [0, 5]] == expected[[0, 5]]).all(axis=1)
        apart = np.abs(rows[same] - expected) / unit
        worst = max(worst, float(apart.max(axis=1).min(initial=np.inf)))
    return worst if np.isfinite(worst) else None


def dequantised(values: NDArray[Any], spec: TensorSpec) -> NDArray[np.float64]:
    """Convert values of an engine's output to real values (float64)."""
    real = values.astype(np.float64)
    if spec.scale is None:
        return real
    return (real - (spec.zero_point or 0)) * spec.scale
