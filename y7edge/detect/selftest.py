"""The proof repeated where the artifact runs: no torch, no onnx, no checkpoint, no pictures.

Two questions are answered. Is the file what was proved (payload digest)? Does the engine *here*
compute what the model that it came from computed (probes: inputs made by recipe, whose reference
outputs travel in the manifest)?
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from y7edge import __version__
from y7edge.artifact.artifact import Artifact
from y7edge.artifact.manifest import Manifest, Probe
from y7edge.errors import ArtifactError, DigestError, ParityError
from y7edge.runtimes import registry
from y7edge.runtimes.base import Session, SessionOptions, TensorSpec

RECIPE = "blocks"
"""The one recipe for inputs so far: noise in squares of 32, 8 and 1 pixels, a third each.

Single pixels of noise average out within a few layers; the squares keep deep maps varied too.
"""

_CELLS = (32, 8, 1)


def probe_input(recipe: str, key: str, shape: tuple[int, int, int, int]) -> NDArray[np.float32]:
    """The input (B, 3, H, W) float32, 0..1, that a recipe makes from a key; the same everywhere.

    Raises:
        ArtifactError: a recipe that this version does not know.
    """
    if recipe != RECIPE:
        raise ArtifactError(f"a probe's recipe is {recipe!r}; this y7edge knows {RECIPE!r}: update")
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))
    batch, channels, height, width = shape
    total = np.zeros(shape, np.float32)
    for cell in _CELLS:
        rows, columns = -(-height // cell), -(-width // cell)
        coarse = generator.random((batch, channels, rows, columns), dtype=np.float32)
        total += coarse.repeat(cell, axis=2).repeat(cell, axis=3)[:, :, :height, :width]
    return np.float32(1 / len(_CELLS)) * total


def input_crc32(pixels: NDArray[np.float32]) -> int:
    """CRC-32 of an input's little-endian bytes."""
    return zlib.crc32(pixels.astype("<f4", copy=False).tobytes())


def selftest(
    path: Path | str, *, backend: str = "auto", device: str = "auto", threads: int | None = None
) -> dict[str, Any]:
    """Check an artifact's digests and repeat its probes in its own engine.

    Returns:
        ``status`` ("passed"), ``artifact``, ``payload_digest``, ``probes`` (for each the largest
        deviation per output, as a part of that output's largest magnitude, and the tolerance),
        ``device``, ``arithmetic``, ``versions``.

    Raises:
        DigestError: file or manifest were changed, or are damaged.
        ParityError: the engine computes something else here; ``report`` holds the numbers.
        ArtifactError: no such file, or no runtime reads it.
        RuntimeMissing, DeviceError: the engine cannot be started.
    """
    runtime = registry.find(path, backend)
    artifact = load_undamaged(path, backend)
    digest = registry.check_payload(artifact, backend)
    if not artifact.manifest.probes:
        raise ParityError(f"{path} has no probes to repeat: export it again")
    options = SessionOptions(device, threads, check_payload=False)  # it has just been checked
    session = registry.open_session(artifact, options, backend)
    try:
        results = [
            run_probe(probe, session, artifact.manifest) for probe in artifact.manifest.probes
        ]
        failed = [result for result in results if not result["passed"]]
        report = {
            "status": "failed" if failed else "passed",
            "artifact": str(path),
            "payload_digest": digest,
            "probes": results,
            "device": session.device,
            "arithmetic": session.arithmetic,
            "versions": {"y7edge": __version__, "numpy": np.__version__, **runtime.versions()},
        }
    finally:
        session.close()
    if failed:
        worst = failed[0]
        raise ParityError(
            f"{path} computes something else here than where it was proved: probe {worst['key']} "
            f"deviates by {worst['deviation']}, tolerance {worst['tolerance']} "
            f"({report['arithmetic']}): update the engine, or use another device",
            report,
        )
    return report


def load_undamaged(path: Path | str, backend: str = "auto") -> Artifact:
    """Read an artifact where its integrity is the question.

    Raises:
        DigestError: also for a file so damaged that no manifest is found in it.
    """
    registry.find(path, backend)  # a path that is no file at all stays an ArtifactError
    try:
        return registry.load(path, backend)
    except DigestError:
        raise
    except ArtifactError as error:
        raise DigestError(str(error)) from error


def run_probe(probe: Probe, session: Session, manifest: Manifest) -> dict[str, Any]:
    """Repeat one probe.

    Returns:
        ``key``, ``batch``, ``outputs`` (deviation of each), ``deviation`` (the largest),
        ``tolerance``, ``passed``. A deviation is None where the engine gave NaN or infinity.

    Raises:
        ArtifactError: the input cannot be made as it was, or an output is missing.
    """
    image = manifest.input
    pixels = probe_input(probe.recipe, probe.key, (probe.batch, 3, image.height, image.width))
    if input_crc32(pixels) != probe.crc32:
        raise ArtifactError(
            f"numpy {np.__version__} makes another input of probe {probe.key} than the one that "
            "was proved: use a newer y7edge, or another numpy"
        )
    outputs = session.infer({image.name: pixels})
    deviations = compare_samples(probe, outputs, session.outputs)
    finite = [value for value in deviations.values() if value is not None]
    worst = max(finite) if len(finite) == len(deviations) else None
    return {
        "key": probe.key,
        "batch": probe.batch,
        "outputs": deviations,
        "deviation": worst,
        "tolerance": probe.tolerance,
        "passed": worst is not None and worst <= probe.tolerance,
    }


def compare_samples(
    probe: Probe, outputs: Mapping[str, NDArray[Any]], specs: tuple[TensorSpec, ...]
) -> dict[str, float | None]:
    """Largest deviation from the probe's samples by output, in parts of the output's scale."""
    by_name = {spec.name: spec for spec in specs}
    deviations: dict[str, float | None] = {}
    for sample in probe.samples:
        if sample.output not in by_name or max(sample.indices) >= outputs[sample.output].size:
            raise ArtifactError(f"probe {probe.key} asks for output {sample.output}, which differs")
        taken = outputs[sample.output].reshape(-1)[list(sample.indices)]
        real = dequantised(taken, by_name[sample.output])
        worst = float(np.abs(real - np.array(sample.values)).max()) / sample.scale
        deviations[sample.output] = worst if np.isfinite(worst) else None
    return deviations


def dequantised(values: NDArray[Any], spec: TensorSpec) -> NDArray[np.float64]:
    """Real values of a tensor as the engine gave it."""
    real = values.astype(np.float64)
    if spec.scale is None:
        return real
    return (real - (spec.zero_point or 0)) * spec.scale
