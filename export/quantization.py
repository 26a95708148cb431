"""Quantise a float graph: calibrate it once, then write QDQ graphs of any selection of layers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from y7edge.errors import ConfigError
from y7edge.export.graph.quantize import PROFILES, placement_of, quantize, ranges_of
from y7edge.export.graph.quantize_placement import Wiring
from y7edge.export.graph.quantize_ranges import Histogram, Statistics, collect
from y7edge.export.graph.quantize_weights import corrected

Ranges = Mapping[str, tuple[float, float]]

METHOD = "mse"
"""Default method to choose ranges; docs/int8.md has the measurement."""


@dataclass(frozen=True)
class Layer:
    """A convolution of the float graph.

    Attributes:
        name: Name of the node, such as ``/row5/Conv``.
        macs: Multiplications for one image.
        head: Whether it writes an output of the graph.
    """

    name: str
    macs: int
    head: bool


class Quantizer:
    """A calibrated float graph.

    Attributes:
        model: The float graph.
        profile: The profile of the QDQ graphs.
        method: The method that chose the ranges.
        layers: All convolutions, in the order of computation.
        means: Mean of each channel (C,) of the tensors on the calibration images.
        images: Number of calibration images.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        inputs: Iterable[NDArray[Any]],
        profile: str,
        *,
        method: str = METHOD,
        trained: Ranges | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        """Run the float graph on the calibration images, and count the values of its tensors.

        If ``trained`` is given, these are the ranges, and the images are not used.

        Args:
            model: an fp32 graph with the outputs "heads" or "heads-sigmoid".
            inputs: the images, as the graph's input expects them, one at a time.
            profile: name of a profile.
            method: one of ``quantize_ranges.METHODS``.
            trained: tensor -> the range with which the weights were trained (``qat``).
            progress: called with one line for each step.

        Raises:
            DataError: there are no images, or an activation is not finite.
        """
        self.model, self.profile, self.method = model, PROFILES[profile], method
        wiring = Wiring(model)
        sizes, heads = _macs(model), wiring.heads()
        self.layers = tuple(
            Layer(node.name, sizes[node.name], node.name in heads) for node in wiring.convolutions
        )
        (name,) = wiring.inputs
        tensors = placement_of(model, self.profile).group  # of all layers in integers
        self._trained = trained
        if trained is not None:
            # A histogram without values has the range inf to -inf.
            self.method = "minmax"
            ends = {tensor: trained.get(tensor, (np.inf, -np.inf)) for tensor in tensors}
            known = {tensor: Histogram(*range) for tensor, range in ends.items()}
            found = Statistics(known, {}, 0)  # without means: trained biases need no correction
        else:
            feeds = ({name: image} for image in inputs)
            found = collect(model, list(tensors), feeds, progress)
        self._histograms, self.means, self.images = found.histograms, found.means, found.images

    @property
    def heads(self) -> frozenset[str]:
        """Names of the convolutions that write the outputs; by default they stay in float."""
        return frozenset(layer.name for layer in self.layers if layer.head)

    def quantized(self, kept: Collection[str] | None = None) -> onnx.ModelProto:
        """Write a QDQ graph.

        Args:
            kept: names of the convolutions that stay in float; None: the heads.

        Raises:
            ConfigError: the weights were trained for a graph with other tensors.
        """
        placement = placement_of(self.model, self.profile, self.heads if kept is None else kept)
        ranges = ranges_of(self.model, placement, self.profile, self._histograms, self.method)
        self._require_trained(placement.groups(), ranges)
        model = corrected(self.model, placement.integer, self.means)
        return quantize(model, placement, ranges, self.profile)

    def _require_trained(self, groups: Mapping[str, list[str]], ranges: Ranges) -> None:
        """Raise ConfigError if a group of tensors has no trained range."""
        for group, tensors in groups.items():
            known = self._trained is None or not self._trained.keys().isdisjoint(tensors)
            if not known and ranges[group] == (0, 0):  # pixels and sigmoids have fixed ranges
                raise ConfigError(
                    f"the checkpoint was trained for a quantised graph without the tensor {group}: "
                    "omit rewrites, and use the profile of the training"
                )

    def share(self, kept: Collection[str] | None = None) -> float:
        """Return the share of all multiplications that are computed in integers."""
        floats = self.heads if kept is None else kept
        total = sum(layer.macs for layer in self.layers)
        return sum(layer.macs for layer in self.layers if layer.name not in floats) / total


def _macs(model: onnx.ModelProto) -> dict[str, int]:
    """Return the multiplications of each convolution for one image, by the node's name."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    shapes = {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*inferred.value_info, *inferred.output)
    }
    weights = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    return {
        node.name: int(np.prod(weights[node.input[1]]) * np.prod(shapes[node.output[0]][2:]))
        for node in model.graph.node
        if node.op_type == "Conv"
    }
