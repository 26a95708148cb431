"""Measure what each convolution costs in int8: the error of the boxes, and the time that it saves.

Every convolution is quantised alone, with all others in float. The error of the candidates (boxes
before NMS) is measured against the float graph, as in the proof of an artifact. NVIDIA's tools call
this a sensitivity analysis (https://github.com/NVIDIA-AI-IOT/yolo_deepstream, yolov7_qat).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from numpy.typing import NDArray

from y7edge.artifact.manifest import LevelInfo
from y7edge.errors import DataError, ExportError
from y7edge.export.graph.quantize import PROFILES, placement_of, quantize
from y7edge.export.graph.quantize_placement import Wiring
from y7edge.export.proof.agreement import Candidate, Decoded, candidates_of, decode, iou
from y7edge.export.quantization import Quantizer
from y7edge.files import temporary_folder
from y7edge.runtimes import onnxrt

TIMED = "u8s8"
"""The profile whose time is measured: ONNX Runtime computes only this one in integers."""

_RUNS = 15  # of each graph, for the times
_SECONDS = 10.0  # between lines of progress
_LEAST_SAVED = 0.05  # of the mean time that a layer saves: smaller differences are noise

Progress = Callable[[str], None]


@dataclass(frozen=True)
class LayerDamage:
    """What one convolution costs in int8, and what it saves.

    Attributes:
        name: Name of the node, such as ``/row5/Conv``.
        damage: ``boxes + scores``.
        ms_saved: Milliseconds that the convolution and its activation take less in int8 than in
            float, in ONNX Runtime on this machine; negative if they take more.
        macs: Multiplications for one image.
        boxes: Mean of 1 - IoU of the reference's best candidates, weighted by their scores.
        scores: Sum of the differences of these candidates' scores, as a fraction of their sum.
        map_drop: Drop of the mAP@0.5:0.95; None if it was not measured.
    """

    name: str
    damage: float
    ms_saved: float
    macs: int
    boxes: float = 0.0
    scores: float = 0.0
    map_drop: float | None = None


def measure(
    quantizer: Quantizer,
    images: Sequence[NDArray[Any]],
    levels: Sequence[LevelInfo],
    nc: int,
    *,
    kept: Collection[str] = (),
    progress: Progress | None = None,
    threads: int | None = None,
    drop: Callable[[onnx.ModelProto], float] | None = None,
) -> tuple[LayerDamage, ...]:
    """Quantise each convolution alone, and compare the candidates with those of the float graph.

    Args:
        quantizer: the calibrated float graph.
        images: images as the graph's input expects them, one array for each run.
        levels: strides and anchors.
        nc: number of classes.
        kept: names of convolutions that always stay in float: they are not measured.
        progress: called with one line that says how long all will take, and then with one line
            about every 10 seconds.
        threads: number of engine threads; None: the physical cores that this process may use.
        drop: function that returns the drop of the mAP of a graph; None: it is not measured.

    Returns:
        One record for each other convolution, in the order of computation.

    Raises:
        DataError: there are no images, or all scores of the float graph are 0.
        ExportError: a graph gives boxes or scores that are not finite.
    """
    if not images:
        raise DataError("there are no images to measure the sensitivity of the layers on")
    tell, names = progress or (lambda _: None), {layer.name for layer in quantizer.layers}
    comparison = Comparison(quantizer.model, images, levels, nc, threads)
    saved = saved_times(quantizer, images[0], threads)
    found: list[LayerDamage] = []
    told = time.monotonic()
    measured = [layer for layer in quantizer.layers if layer.name not in kept]
    count = len(measured)
    for index, layer in enumerate(measured):
        start = time.perf_counter()
        graph = quantizer.quantized(names - {layer.name})
        boxes, scores = comparison.errors(graph)
        if not math.isfinite(boxes + scores):
            raise ExportError(
                f"{layer.name} in int8 gives boxes that are not finite: keep it in float"
            )
        points = None if drop is None else drop(graph)
        if not index:
            seconds = time.perf_counter() - start
            minutes = seconds * count / 60
            tell(f"{seconds:.1f} s per layer, {count} layers: about {minutes:.1f} min")
        damage, ms = boxes + scores, saved[layer.name]
        found.append(LayerDamage(layer.name, damage, ms, layer.macs, boxes, scores, points))
        if time.monotonic() - told > _SECONDS:
            tell(f"{index + 1} of {count} layers")
            told = time.monotonic()
    return tuple(found)


def order(found: Iterable[LayerDamage]) -> list[str]:
    """Return the names of the layers, the most damage for each millisecond saved first.

    In this order layers go back to float. Those that int8 makes clearly slower are first, the
    largest loss of time first. If int8 saves no time on this machine in total, the multiplications
    of the layers take the place of the times.
    """
    layers = list(found)
    costs = [layer.ms_saved for layer in layers]
    if sum(costs) <= 0:
        costs = [float(layer.macs) for layer in layers]
    least = _LEAST_SAVED * sum(max(cost, 0.0) for cost in costs) / max(len(layers), 1)

    def urgency(index: int) -> tuple[float, float]:
        loss = -costs[index] if costs[index] < -least else 0.0
        return loss, layers[index].damage / max(costs[index], least)

    return [layers[i].name for i in sorted(range(len(layers)), key=urgency, reverse=True)]


def saved_times(
    quantizer: Quantizer, image: NDArray[Any], threads: int | None = None
) -> dict[str, float]:
    """Measure the milliseconds that each convolution and its activation take less in int8.

    Both graphs run in turn in one process. The times of the profile ``TIMED`` are taken for all
    profiles. They do not depend on the values of the ranges.
    """
    model, profile = quantizer.model, PROFILES[TIMED]
    placement = placement_of(model, profile)
    ranges = dict.fromkeys(placement.groups(), (-1.0, 1.0))
    wiring = Wiring(model)
    (name,) = wiring.inputs
    with temporary_folder() as folder:
        paths = [folder / "float.onnx", folder / "int8.onnx"]
        for path, graph in zip(
            paths, (model, quantize(model, placement, ranges, profile)), strict=True
        ):
            path.write_bytes(graph.SerializeToString())
        times = onnxrt.node_times(paths, {name: image}, _RUNS, threads)
    owners = _owners(wiring)
    before, after = (_by_layer(owners, of_nodes) for of_nodes in times)
    return {c.name: before.get(c.name, 0) - after.get(c.name, 0) for c in wiring.convolutions}


def _owners(wiring: Wiring) -> dict[str, str]:
    """Return names of nodes and tensors -> the convolution to which their time belongs.

    The names of all other nodes are mapped to "".
    """
    owners = {node.name: "" for node in wiring.nodes}
    for convolution in wiring.convolutions:
        activation, end = wiring.activation(convolution)
        nodes = [convolution, *activation]
        for name in (*(node.name for node in nodes), convolution.output[0], end):
            owners[name] = convolution.name
    return owners


def _by_layer(owners: Mapping[str, str], times: Mapping[str, float]) -> dict[str, float]:
    """Sum the times of an optimised graph by convolution.

    ONNX Runtime names a node that it creates after a node or a tensor that it replaces, followed by
    ``_`` or ``/``: ``/row0_nchwc``, ``/row0/Conv_token_2``, ``/row0/Mul/QuickGeluFusion/``.
    """
    sums: dict[str, float] = {}
    for name, ms in times.items():
        ends = [i for i, sign in enumerate(name) if sign in "_/" and i] + [len(name)]
        owner = next((owners[name[:i]] for i in reversed(ends) if name[:i] in owners), "")
        sums[owner] = sums.get(owner, 0.0) + ms
    return sums


class Comparison:
    """The best candidates of a float graph, and the comparison of other graphs with them."""

    def __init__(
        self,
        model: onnx.ModelProto,
        images: Sequence[NDArray[Any]],
        levels: Sequence[LevelInfo],
        nc: int,
        threads: int | None,
    ) -> None:
        """Run the float graph on the images; raise DataError if all its scores are 0."""
        wiring = Wiring(model)
        (self._input,) = wiring.inputs
        self._outputs, self._images = wiring.outputs, images
        self._levels, self._nc, self._threads = levels, nc, threads
        self._activated = wiring.producer[wiring.outputs[0]].op_type == "Sigmoid"
        self._expected: list[list[Candidate]] = [
            candidates_of(i, decoded) for i, decoded in enumerate(self._decoded(model))
        ]
        if not sum(one.score for found in self._expected for one in found) > 0:
            raise DataError(
                "all scores of the float graph are 0 on these images: there is nothing to compare"
            )

    def errors(self, model: onnx.ModelProto) -> tuple[float, float]:
        """Return the errors of boxes and scores; see ``LayerDamage``."""
        boxes = scores = weights = 0.0
        for expected, decoded in zip(self._expected, self._decoded(model), strict=True):
            for one in expected:
                weights += one.score
                boxes += one.score * (1 - iou(one.box, decoded.boxes[one.index]))
                scores += abs(float(decoded.scores[one.index, one.class_id]) - one.score)
        return boxes / weights, scores / weights

    def _decoded(self, model: onnx.ModelProto) -> Iterable[Decoded]:
        with temporary_folder() as folder:
            path = folder / "graph.onnx"
            path.write_bytes(model.SerializeToString())
            run = onnxrt.opened(path, self._threads)
            for image in self._images:
                given = run({self._input: image})
                for one in zip(*(given[name][:, None] for name in self._outputs), strict=True):
                    yield decode(one, self._levels, self._nc, activated=self._activated)
