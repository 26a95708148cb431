"""Read the precision of convolutions from the JSON of TensorRT's engine inspector.

The format is not specified, and differs between versions. Outputs that were published are test data
in ``tests/reference/tensorrt/inspector.json``.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_CONVOLUTION = re.compile(r"conv(?!ert)", re.IGNORECASE)
# "Half", "Row major linear FP32", "Channel major FP16 format where channel % 8 == 0", "Half(64,1)"
_TYPES = {
    "fp32": re.compile(r"\b(float|fp32|float32)\b", re.IGNORECASE),
    "fp16": re.compile(r"\b(half|fp16|float16)\b", re.IGNORECASE),
    "bf16": re.compile(r"\b(bf16|bfloat16)\b", re.IGNORECASE),
    "int8": re.compile(r"\bint8\b", re.IGNORECASE),
    "fp8": re.compile(r"\b(fp8|float8)\b", re.IGNORECASE),
}
_UNKNOWN = "unknown"


@dataclass(frozen=True)
class Inspection:
    """The precisions in which an engine computes its convolutions.

    Attributes:
        counts: Number of convolutions by precision: "fp32", "tf32", "fp16", "bf16", "int8", "fp8",
            or "unknown" if the inspector does not say it.
        wrong: One text for each convolution with another precision than the graph's.
    """

    counts: Mapping[str, int]
    wrong: tuple[str, ...]

    @property
    def unknown(self) -> int:
        """Number of convolutions whose precision the inspector does not say."""
        return self.counts.get(_UNKNOWN, 0)


def inspect(text: str, asked: Mapping[str, str]) -> Inspection:
    """Compare the precisions of an engine's convolutions with those of the graph.

    Args:
        text: what ``EngineInspector.get_engine_information`` returns for the format JSON.
        asked: precision by node name, of all convolutions in the graph.
    """
    counts: Counter[str] = Counter()
    wrong = []
    left = dict(asked)
    for layer in _layers(text):
        kind = f"{layer.get('LayerType')} {layer.get('ParameterType')}"
        if not _CONVOLUTION.search(kind):
            continue
        where = f"{layer.get('Name')} {layer.get('Metadata')}"
        names = [
            name for name in left if re.search(rf"(?<![\w/.]){re.escape(name)}(?![\w/.])", where)
        ]
        expected = {left.pop(name) for name in names} or set(asked.values())
        found = _precision(layer)
        counts[found] += max(1, len(names))
        if found != _UNKNOWN and found not in expected:
            name = ", ".join(names) or str(layer.get("Name"))[:80]
            wrong.append(f"{name} is computed in {found}, expected {' or '.join(sorted(expected))}")
    # A convolution that no layer names is inside a part that is compiled as a whole, such as a part
    # for the DLA. If layers have other names than nodes, the number of layers counts.
    if missing := min(len(left), len(asked) - counts.total()):
        counts[_UNKNOWN] += max(0, missing)
    return Inspection({name: counts[name] for name in sorted(counts) if counts[name]}, tuple(wrong))


def _layers(text: str) -> Iterator[Mapping[str, Any]]:
    """Yield the layers that have details; none if the text is not JSON of a known form."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return
    layers = found.get("Layers") if isinstance(found, dict) else found
    for layer in layers if isinstance(layers, list) else ():
        if isinstance(layer, dict):  # text: only the name
            yield layer


def _precision(layer: Mapping[str, Any]) -> str:
    """Return the precision of a convolution: the type of its weights, else of its first input."""
    weights, inputs = layer.get("Weights"), layer.get("Inputs")
    texts = [weights.get("Type")] if isinstance(weights, dict) else []
    if isinstance(inputs, list) and inputs and isinstance(inputs[0], dict):
        texts += [inputs[0].get(key) for key in ("Format/Datatype", "Datatype")]
    for text in texts:
        found = [name for name, pattern in _TYPES.items() if pattern.search(str(text))]
        if len(found) == 1:
            # The weights of a convolution in TF32 are stored in float32.
            tf32 = found[0] == "fp32" and "tf32" in str(layer.get("TacticName"))
            return "tf32" if tf32 else found[0]
    return _UNKNOWN
