"""Ranges of tensors: statistics of the calibration images, and the methods that choose a range."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from y7edge.errors import ConfigError, DataError
from y7edge.export.folding import fold_checkpoint
from y7edge.export.graph import quantize_ranges
from y7edge.export.graph.build import build_graph
from y7edge.export.graph.quantize_ranges import METHODS, Histogram, choose, collect, opened
from y7edge.export.quantization import Quantizer

SIDE = 64


@pytest.fixture(scope="module")
def graph(narrow_tiny):
    return build_graph(fold_checkpoint(narrow_tiny), height=SIDE, width=SIDE)


@pytest.fixture(scope="module")
def images():
    generator = np.random.default_rng(0)
    return [generator.random((1, 3, SIDE, SIDE), np.float32) for _ in range(3)]


def histogram(values):
    values = np.asarray(values, np.float32)
    made = Histogram()
    made.add(values, float(values.min()), float(values.max()))
    return made


def heavy_tailed():
    values = np.random.default_rng(1).laplace(size=200_000)
    values[:20] *= 12  # rare, and far outside
    return values.astype(np.float32)


def squared_error(values, ends, levels):
    scale = (ends[1] - ends[0]) / (levels - 1)
    zero = round(-ends[0] / scale)
    steps = np.clip(np.rint(values / scale), -zero, levels - 1 - zero)
    return float(((steps * scale - values) ** 2).mean())


# --- statistics ----------------------------------------------------------------------------------


def test_a_histogram_that_grows_keeps_its_counts_and_exact_ends():
    made = histogram([0.25, -0.125])
    made.add(np.float32([5.5, 100.0, -3.0]), -3.0, 101.0)
    assert (made.low, made.high, made.reach) == (-3.0, 101.0, 128.0)
    assert made.counts.sum() == 5
    width = 2 * made.reach / len(made.counts)
    filled = made.centres[made.counts > 0]
    assert np.abs(filled - [-3.0, -0.125, 0.25, 5.5, 100.0]).max() <= width


def test_statistics_are_those_of_the_tensors(graph, images, tmp_path, monkeypatch):
    monkeypatch.setattr(quantize_ranges, "_SAMPLED", 500)  # so that tensors are sampled
    names = ["images", "/row0", graph.graph.node[0].output[0], graph.graph.node[-1].output[0]]
    found = collect(graph, names, [{"images": image} for image in images])
    run = opened(graph, names, tmp_path)
    tensors = [{**run({"images": image}), "images": image} for image in images]
    assert found.images == 3
    for name in names:
        values = np.concatenate([each[name] for each in tensors])
        assert found.histograms[name].low == values.min()
        assert found.histograms[name].high == values.max()
        assert np.allclose(found.means[name], values.mean((0, 2, 3)), rtol=1e-4, atol=1e-6)
        step = max(1, values[0].size // 500) | 1
        taken = np.concatenate([each[name].reshape(-1)[::step] for each in tensors])
        expected = Histogram()
        expected.add(taken, float(values.min()), float(values.max()))
        assert np.array_equal(found.histograms[name].counts, expected.counts)
    assert max(found.histograms[name].counts.sum() for name in names) <= 3 * 1000


MEMORY = """
import resource
import numpy as np
from onnx import helper, numpy_helper
from y7edge.export.graph.quantize_ranges import collect

weight = numpy_helper.from_array(np.eye(16, dtype=np.float32)[:, :, None, None], "w")
nodes = [helper.make_node("Conv", [f"t{i}", "w"], [f"t{i + 1}"]) for i in range(40)]
ends = [helper.make_tensor_value_info(n, 1, (1, 16, 512, 512)) for n in ("t0", "t40")]
graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], [weight])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
image = np.ones((1, 16, 512, 512), np.float32)
collect(model, ["t0"], [{"t0": image}])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
collect(model, [f"t{i}" for i in range(41)], [{"t0": image}])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_tensors_are_not_kept():
    """40 tensors of 16 MB, one after the other."""
    found = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert int(found.stdout) < 200  # MB; 640 if all are kept


def test_batches_are_counted_as_images(narrow_tiny, images):
    graph = build_graph(fold_checkpoint(narrow_tiny), height=SIDE, width=SIDE, batch=None)
    single = collect(graph, ["/row0"], [{"images": image} for image in images])
    batch = collect(graph, ["/row0"], [{"images": np.concatenate(images)}])
    assert single.images == batch.images == 3
    assert np.allclose(single.means["/row0"], batch.means["/row0"], rtol=1e-5)
    assert single.histograms["/row0"].high == pytest.approx(batch.histograms["/row0"].high)


def test_no_images_and_infinite_activations_are_refused(graph, images):
    with pytest.raises(DataError, match="no calibration images"):
        collect(graph, ["/row0"], [])
    for value in (np.inf, np.nan):
        broken = images[0].copy()
        broken[0, 1, 5, 5] = value
        with pytest.raises(
            DataError, match="calibration image 1: the values of /row0 are not finite"
        ):
            collect(graph, ["/row0"], [{"images": broken}])


def test_progress_is_reported(graph, images, monkeypatch):
    monkeypatch.setattr(quantize_ranges, "_SECONDS", -1.0)
    lines = []
    collect(graph, ["/row0"], [{"images": image} for image in images], lines.append)
    assert lines == [f"calibration: {count} images" for count in (1, 2, 3)]


# --- methods -------------------------------------------------------------------------------------


def test_minmax_takes_all_values_and_zero():
    assert choose(histogram([2.0, 3.0]), "minmax", 256, False) == (0.0, 3.0)
    assert choose(histogram([-5.0, 3.0]), "minmax", 256, False) == (-5.0, 3.0)
    assert choose(histogram([-5.0, 3.0]), "minmax", 255, True) == (-5.0, 5.0)


def test_percentile_leaves_the_outermost_values_out(monkeypatch):
    monkeypatch.setattr(quantize_ranges, "PERCENTILE", 99.9)
    values = heavy_tailed()
    low, high = choose(histogram(values), "percentile", 256, False)
    inside = ((values >= low) & (values <= high)).mean()
    assert inside == pytest.approx(0.999, abs=1e-4)
    assert values.min() < low < 0 < high < values.max()


@pytest.mark.parametrize("symmetric", [False, True])
def test_mse_has_a_smaller_error_than_the_other_methods(symmetric):
    values = heavy_tailed()
    levels = 255 if symmetric else 256
    errors = {
        method: squared_error(values, choose(histogram(values), method, levels, symmetric), levels)
        for method in METHODS
    }
    assert errors["mse"] < 0.8 * errors["minmax"]
    assert errors["mse"] <= errors["percentile"]


def test_mse_keeps_the_range_of_values_without_tails():
    values = np.linspace(-1, 3, 100_000)
    low, high = choose(histogram(values), "mse", 256, False)
    assert (low, high) == pytest.approx((-1, 3), rel=0.02)


def test_mse_measures_the_error_behind_the_activation():
    values = np.random.default_rng(2).normal(size=100_000)
    plain = choose(histogram(values), "mse", 256, False)
    behind = choose(histogram(values), "mse", 256, False, lambda x: np.where(x < 0, 0.1 * x, x))
    assert plain[0] < behind[0] < 0  # negative values matter less
    real = np.where(values < 0, 0.1 * values, values)
    errors = []
    for low, high in (plain, behind):
        scale = (high - low) / 255
        zero = round(-low / scale)
        given = (np.clip(np.rint(values / scale), -zero, 255 - zero)) * scale
        errors.append(((np.where(given < 0, 0.1 * given, given) - real) ** 2).mean())
    assert errors[1] < errors[0]


def test_every_method_accepts_a_tensor_of_zeros():
    zeros = histogram(np.zeros(10))
    assert {choose(zeros, method, 256, False) for method in METHODS} == {(0.0, 0.0)}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [1e-45, 1e-7, 5.0, 3e38])
@pytest.mark.parametrize("sign", [1, -1])
def test_ranges_contain_zero_and_a_constant(value, sign):
    for method in METHODS:
        for symmetric in (False, True):
            low, high = choose(histogram([sign * value] * 9), method, 256, symmetric)
            assert low <= 0 <= high
            assert max(-low, high) == pytest.approx(value, rel=1e-3, abs=1e-7)


def test_entropy_is_not_a_method():
    with pytest.raises(ConfigError, match="no range method 'entropy'; choose from minmax"):
        choose(histogram([1.0]), "entropy", 256, False)


# --- comparison with ONNX Runtime's quantiser ----------------------------------------------------


def scales_of(model):
    """Tensor -> scale and zero point; weights and biases also have their integers."""
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        source, *how = node.input
        if node.op_type == "QuantizeLinear":
            found[source] = [arrays[name] for name in how]
        elif node.op_type == "DequantizeLinear" and source in arrays:
            name = source.removesuffix("/quantized").removesuffix("_quantized")
            found[name] = [arrays[name] for name in (*how, source)]
    return found


def test_minmax_equals_the_quantiser_of_onnx_runtime(graph, images, tmp_path):
    quantization = pytest.importorskip("onnxruntime.quantization")
    (tmp_path / "float.onnx").write_bytes(graph.SerializeToString())

    class Reader(quantization.CalibrationDataReader):
        feeds = iter([{"images": image} for image in images])

        def get_next(self):
            return next(self.feeds, None)

    quantization.quantize_static(
        tmp_path / "float.onnx",
        tmp_path / "quantized.onnx",
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        calibrate_method=quantization.CalibrationMethod.MinMax,
    )
    theirs = scales_of(onnx.load(tmp_path / "quantized.onnx"))
    quantizer = Quantizer(graph, images, "u8s8", method="minmax")
    quantizer.means = {}  # ONNX Runtime does not correct biases
    ours = scales_of(quantizer.quantized([]))
    common = ours.keys() & theirs.keys()
    weights = [name for name in common if len(ours[name]) == 3]
    assert len(weights) == 2 * 58  # weights and biases
    assert len(common) - len(weights) >= 130  # activations
    for name in common:
        for own, other in zip(ours[name], theirs[name], strict=True):
            rounding = own.dtype == np.int32  # biases may differ in the last digit
            assert np.allclose(own, other, rtol=1e-5, atol=float(rounding)), name
