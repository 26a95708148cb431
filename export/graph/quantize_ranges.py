"""Find the range of each tensor from histograms of its values on calibration images.

ONNX Runtime's own histograms keep all values of all images in memory, and offer no range of the
smallest squared error. These are streamed: one image at a time, with bins that double their width
when a larger value comes. The smallest and largest value are exact.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from y7edge.errors import ConfigError, DataError
from y7edge.files import temporary_folder
from y7edge.runtimes import onnxrt

METHODS = ("minmax", "percentile", "mse")
"""Methods that choose a range: all values, all but the outermost, the smallest squared error."""

PERCENTILE = 99.999
"""Share of the values in the range of method ``percentile``, in percent."""

BINS = 4096
_SAMPLED = 1 << 16  # values of a tensor that are counted in an image
_PARTS = tuple(f"calibration/{part}" for part in ("sample", "low", "high", "means"))
_SECONDS = 10.0  # between lines of progress
_STEPS = 64  # ranges that method mse tries for each end

Floats = NDArray[np.float32]
Function = Callable[[NDArray[np.float64]], NDArray[np.float64]]


@dataclass
class Histogram:
    """Counts of the values of one tensor.

    Attributes:
        low: Smallest value.
        high: Largest value.
        reach: The bins cover -reach to reach; a power of two.
        counts: (BINS,) float64.
    """

    low: float = np.inf
    high: float = -np.inf
    reach: float = 2.0**-20
    counts: NDArray[np.float64] = field(default_factory=lambda: np.zeros(BINS))

    def add(self, sample: Floats, low: float, high: float) -> None:
        """Count values.

        Args:
            sample: a sample of the values, of any shape.
            low: the smallest of all values.
            high: the largest of all values.
        """
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._widen(max(-low, high))
        index = (sample.reshape(-1).astype(np.float64) / self.reach + 1) * (BINS / 2)
        self.counts += np.bincount(np.minimum(index.astype(np.int64), BINS - 1), minlength=BINS)

    @property
    def centres(self) -> NDArray[np.float64]:
        """Centres of the bins, (BINS,)."""
        at = np.arange(BINS, dtype=np.float64) + 0.5
        return np.asarray(at * (2 * self.reach / BINS) - self.reach, np.float64)

    def _widen(self, largest: float) -> None:
        while self.reach < largest:
            self.reach *= 2
            pairs = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.zeros(BINS)
            self.counts[BINS // 4 : BINS // 4 * 3] = pairs


@dataclass(frozen=True)
class Statistics:
    """The values of tensors on the calibration images.

    Attributes:
        histograms: The values of each tensor.
        means: Mean of each channel (C,) of each tensor.
        images: Number of images.
    """

    histograms: dict[str, Histogram]
    means: dict[str, NDArray[np.float64]]
    images: int


def collect(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    feeds: Iterable[Mapping[str, NDArray[Any]]],
    progress: Callable[[str], None] | None = None,
) -> Statistics:
    """Run a float graph on images, and count the values of its tensors.

    Large tensors are sampled at even distances. The samples, ends and means are computed in the
    graph, so that the tensors themselves need not be kept: those of yolov7-e6e have 7.6 GB.

    Args:
        model: the float graph.
        tensors: names of tensors (B, C, H, W).
        feeds: the inputs of each run, by name.
        progress: called with one line about every 10 seconds.

    Raises:
        DataError: there are no images, or a value is not finite.
    """
    found = {name: Histogram() for name in tensors}
    sums: dict[str, NDArray[np.float64]] = {name: np.zeros(1) for name in tensors}
    count, told = 0, time.monotonic()
    with temporary_folder() as folder:
        run = opened(*_summarized(model, tensors), folder)
        for feed in feeds:
            got = run(feed)
            for name in tensors:
                sample, low, high, means = (got[f"{name}/{part}"] for part in _PARTS)
                # The mean is not finite if a single value is not.
                if not np.isfinite([low, high, *means.reshape(-1)]).all():
                    raise DataError(
                        f"calibration image {count + 1}: the values of {name} are not finite: "
                        "export in fp32"
                    )
                found[name].add(sample, float(low), float(high))
                sums[name] = sums[name] + means.sum(axis=(0, 2, 3), dtype=np.float64)
            count += len(next(iter(feed.values())))
            if progress and time.monotonic() - told > _SECONDS:
                progress(f"calibration: {count} images")
                told = time.monotonic()
    if not count:
        raise DataError("there are no calibration images")
    return Statistics(found, {name: sum / count for name, sum in sums.items()}, count)


def _summarized(
    model: onnx.ModelProto, tensors: Sequence[str]
) -> tuple[onnx.ModelProto, list[str]]:
    """Return a graph that also computes samples, ends and means, and the names of these."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    sizes = {
        value.name: math.prod(d.dim_value or 1 for d in value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    summarized = onnx.ModelProto()
    summarized.CopyFrom(model)
    names: list[str] = []

    def constant(name: str, value: int) -> str:
        tensor = numpy_helper.from_array(np.array([value], np.int64), name)
        summarized.graph.initializer.append(tensor)
        return name

    flat, start = constant("calibration/flat", -1), constant("calibration/start", 0)
    end = constant("calibration/end", np.iinfo(np.int64).max)
    added: dict[str, list[onnx.NodeProto]] = {}
    for name in tensors:
        step = max(1, sizes[name] // _SAMPLED) | 1  # odd, so that it does not follow rows
        line = f"{name}/calibration/flat"
        steps = constant(f"{name}/calibration/step", step)
        sample, low, high, means = parts = [f"{name}/{part}" for part in _PARTS]
        added[name] = [
            helper.make_node("Reshape", [name, flat], [line]),
            helper.make_node("Slice", [line, start, end, start, steps], [sample]),
            helper.make_node("ReduceMin", [name], [low], keepdims=0),
            helper.make_node("ReduceMax", [name], [high], keepdims=0),
            helper.make_node("GlobalAveragePool", [name], [means]),
        ]
        names += parts
    # Directly behind the node that writes the tensor: then the engine can free the tensor early.
    del summarized.graph.node[:]
    for value in model.graph.input:
        summarized.graph.node.extend(added.get(value.name, ()))
    for node in model.graph.node:
        summarized.graph.node.append(node)
        for name in node.output:
            summarized.graph.node.extend(added.get(name, ()))
    return summarized, names


def opened(
    model: onnx.ModelProto, tensors: Sequence[str], folder: Path
) -> Callable[[Mapping[str, NDArray[Any]]], dict[str, Any]]:
    """Open a graph in ONNX Runtime with additional outputs; return a function that runs it."""
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    given = {value.name for value in (*model.graph.input, *model.graph.output)}
    probed.graph.output.extend(onnx.ValueInfoProto(name=n) for n in tensors if n not in given)
    path = folder / "probed.onnx"
    path.write_bytes(probed.SerializeToString())
    return onnxrt.opened(path, small=True)


def require_method(method: str) -> None:
    """Raise ConfigError unless ``method`` is one of ``METHODS``."""
    if method not in METHODS:
        raise ConfigError(f"no range method {method!r}; choose from {', '.join(METHODS)}")


def choose(
    histogram: Histogram,
    method: str,
    levels: int,
    symmetric: bool,
    behind: Function | None = None,
) -> tuple[float, float]:
    """Return the range (low <= 0, high >= 0) of a tensor.

    Args:
        histogram: the values.
        method: one of ``METHODS``.
        levels: number of quantised values, such as 256.
        symmetric: whether low must be -high.
        behind: the activation that follows; method ``mse`` then measures the error behind it.
    """
    require_method(method)
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    if method == "percentile":
        low, high = _percentile(histogram)
    elif method == "mse" and high > low:
        low, high = _least_error(histogram, levels, symmetric, behind)
    if symmetric:
        high = max(-low, high)
        low = -high
    return float(low), float(high)


def _percentile(histogram: Histogram) -> tuple[float, float]:
    share = np.cumsum(histogram.counts) / histogram.counts.sum()
    beyond = (1 - PERCENTILE / 100) / 2
    edges = histogram.centres
    low = float(edges[int(np.searchsorted(share, beyond))])
    high = float(edges[min(int(np.searchsorted(share, 1 - beyond)), BINS - 1)])
    low, high = max(low, histogram.low), min(high, histogram.high)  # of the bins' centres
    return min(low, 0.0), max(high, 0.0)


def _least_error(
    histogram: Histogram, levels: int, symmetric: bool, behind: Function | None
) -> tuple[float, float]:
    """Return the range with the smallest squared error: one end after the other is moved."""
    used = histogram.counts > 0
    values, counts = histogram.centres[used], histogram.counts[used]
    real = values if behind is None else behind(values)
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)

    def error(low: float, high: float) -> float:
        scale = (high - low) / (levels - 1)
        if scale <= 0:
            return np.inf
        zero = round(-low / scale)
        steps = np.clip(np.rint(values / scale), -zero, levels - 1 - zero)
        given = steps * scale if behind is None else behind(steps * scale)
        return float(((given - real) ** 2 * counts).sum())

    shares = np.linspace(1, 1 / _STEPS, _STEPS)
    if symmetric:
        most = max(-low, high)
        best = min((most * s for s in shares), key=lambda m: error(-m, m))
        return -best, best
    for _ in range(2):
        high = min((max(histogram.high, 0.0) * s for s in shares), key=lambda h: error(low, h))
        low = min((min(histogram.low, 0.0) * s for s in (*shares, 0)), key=lambda v: error(v, high))
    return low, high
