"""Make probes for the self-test: generated inputs, with samples of the reference's outputs.

Each output is sampled at its largest values, which change most if the scale is wrong, and at evenly
spaced positions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from y7edge.artifact.manifest import Manifest, OutputInfo, Probe, Samples
from y7edge.detect.selftest import input_crc32, probe_input, recipe_for
from y7edge.export.proof.agreement import Decoded, Floats, decode, sigmoid
from y7edge.export.proof.reference import Answer, Reference

PROBES = 2
"""Number of probes for the first batch size; there is one probe for each other batch size."""

VALUES = 96
"""Number of sampled values per output."""

EXTREME = 32
"""Number of samples with the largest magnitudes, included in ``VALUES``."""


def make_probes(manifest: Manifest, reference: Reference, tolerance: float) -> tuple[Probe, ...]:
    """Run the reference on generated inputs, and sample its outputs.

    Args:
        manifest: describes the names, layouts and activations of the artifact's outputs.
        reference: the unfolded model.
        tolerance: the largest deviation that a self-test accepts, as a fraction of the output's
            largest magnitude.
    """
    image, batches = manifest.input, proved_batches(manifest)
    recipe, probes = recipe_for(image), []
    for number, batch in [*enumerate(batches[:1] * PROBES), *((0, b) for b in batches[1:])]:
        key = f"probe{number}-batch{batch}"
        pixels = probe_input(recipe, key, (batch, 3, image.height, image.width))
        outputs = outputs_of(reference.answer(pixels), manifest)
        samples = tuple(_sample(name, tensor) for name, tensor in outputs.items())
        probes.append(Probe(recipe, key, batch, input_crc32(pixels), tolerance, samples))
    return tuple(probes)


def adapted_probes(before: Manifest, after: Manifest, tolerance: float) -> tuple[Probe, ...]:
    """Convert the probes of ``before`` to the names, layouts and activations in ``after``."""
    pairs = {
        old.name: (old, new)
        for old in before.outputs
        for new in after.outputs
        if (old.role, old.level) == (new.role, new.level)
    }
    return tuple(
        replace(
            probe,
            tolerance=tolerance,
            samples=tuple(_adapted(s, probe.batch, *pairs[s.output]) for s in probe.samples),
        )
        for probe in before.probes
    )


def _adapted(samples: Samples, batch: int, old: OutputInfo, new: OutputInfo) -> Samples:
    """Convert samples of a tensor to another layout or activation."""
    if (old.layout, old.activation) == (new.layout, new.activation):
        return replace(samples, output=new.name)
    old_index = np.arange(batch * math.prod(map(int, old.shape[1:])))
    old_index = old_index.reshape(batch, *old.shape[1:])
    if old.layout != new.layout:
        old_index = old_index.transpose((0, 2, 3, 1) if new.layout == "NHWC" else (0, 3, 1, 2))
    new_index = np.argsort(old_index, axis=None)
    values, scale = np.array(samples.values), samples.scale
    if old.activation != new.activation:
        values, scale = sigmoid(values), 1.0
    return Samples(
        output=new.name,
        scale=scale,
        indices=tuple(int(i) for i in new_index[list(samples.indices)]),
        values=tuple(_rounded(float(v)) for v in values),
    )


def proved_batches(manifest: Manifest) -> tuple[int, ...]:
    """Return the batch sizes of a proof: the fixed batch size, or 1 and 3 for a dynamic one."""
    batch = manifest.input.batch
    return (1, 3) if batch == "dynamic" else (int(batch),)


def outputs_of(answer: Answer, manifest: Manifest) -> dict[str, Floats]:
    """Convert the reference's heads to the form of the artifact's outputs, by output name."""
    if manifest.outputs[0].role == "head":
        found = {}
        for output, head in zip(manifest.outputs, answer.heads, strict=True):
            values = sigmoid(head) if output.activation == "sigmoid" else head
            found[output.name] = values.transpose(0, 2, 3, 1) if output.layout == "NHWC" else values
        return found
    images = [
        decode([head[i : i + 1] for head in answer.heads], manifest.levels, manifest.nc)
        for i in range(len(answer.heads[0]))
    ]
    return {
        output.name: np.stack([getattr(image, output.role) for image in images])
        for output in manifest.outputs
    }


def decode_outputs(outputs: Mapping[str, Floats], manifest: Manifest) -> Decoded:
    """Decode an artifact's dequantised outputs for one image."""
    if manifest.outputs[0].role != "head":
        boxes, scores = (outputs[output.name][0] for output in manifest.outputs)
        return Decoded(boxes, scores)
    heads = [outputs[output.name] for output in manifest.outputs]
    if manifest.outputs[0].layout == "NHWC":
        heads = [head.transpose(0, 3, 1, 2) for head in heads]
    activated = manifest.outputs[0].activation == "sigmoid"
    return decode(heads, manifest.levels, manifest.nc, activated=activated)


def _sample(name: str, tensor: Floats) -> Samples:
    """Sample an output at its largest magnitudes and at evenly spaced positions."""
    flat = tensor.reshape(-1)
    count = min(VALUES, flat.size)
    extreme = np.argsort(-np.abs(flat), kind="stable")[: min(EXTREME, count)]
    rest = np.linspace(0, flat.size - 1, count - len(extreme)).astype(int)
    indices = np.unique(np.concatenate((extreme, rest)))
    return Samples(
        output=name,
        scale=_rounded(float(np.abs(flat).max())) or 1.0,  # 1 if all values are 0
        indices=tuple(int(i) for i in indices),
        values=tuple(_rounded(float(v)) for v in flat[indices]),
    )


def _rounded(value: float) -> float:
    """Round to seven significant digits, the precision of float32."""
    return float(f"{value:.7g}")
