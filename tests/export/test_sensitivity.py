"""Sensitivity: the damage of each convolution alone in int8, the time it saves, and the order."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

from y7edge.artifact.manifest import LevelInfo
from y7edge.cli import main
from y7edge.data.synthetic.scenes import generate, scene
from y7edge.errors import ConfigError, DataError, OutputError
from y7edge.export import sensitivity, sensitivity_report
from y7edge.export.folding import fold_checkpoint
from y7edge.export.graph.build import build_graph
from y7edge.export.graph.quantize_placement import Wiring
from y7edge.export.proof.agreement import candidates_of, decode, iou
from y7edge.export.quantization import Quantizer
from y7edge.export.sensitivity import LayerDamage, measure, order, saved_times
from y7edge.export.sensitivity_report import analyse
from y7edge.models import registry, weights
from y7edge.models.scaling import scale
from y7edge.nn.random_weights import random_weights
from y7edge.runtimes import onnxrt

TRAINED = Path(__file__).parents[1] / "reference" / "demo.safetensors"
HEIGHT, WIDTH = 96, 128
BAD = "/row11/Conv"
FREE = "/row30/Conv"


def graph_of(checkpoint, outputs="heads", **options):
    folded = fold_checkpoint(checkpoint)
    return build_graph(folded, outputs=outputs, height=HEIGHT, width=WIDTH, **options)


def levels_of(checkpoint):
    return tuple(map(LevelInfo, checkpoint.spec.strides, checkpoint.spec.anchors))


def changed(model, name, change):
    """Return a copy of a graph with the weight of a convolution changed in place."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    node = next(n for n in copy.graph.node if n.name == name)
    tensor = next(t for t in copy.graph.initializer if t.name == node.input[1])
    array = onnx.numpy_helper.to_array(tensor).copy()
    change(array)
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    return copy


@pytest.fixture(scope="module")
def images():
    letterboxed = (scene(seed, (HEIGHT, WIDTH)).image for seed in range(2))
    return [
        np.ascontiguousarray(i[None, ..., ::-1].transpose(0, 3, 1, 2), np.float32) / 255
        for i in letterboxed
    ]


@pytest.fixture(scope="module")
def quantizer(narrow_tiny, images):
    """A graph in which int8 rounds the weights of one convolution badly, and of one not at all."""

    def outlier(weight):
        weight[:, 0, 0, 0] = 30 * np.abs(weight).max()  # 8 bits are left for less than 9 values

    def exact(weight):
        weight[:] = 0

    graph = changed(graph_of(narrow_tiny), BAD, outlier)
    return Quantizer(changed(graph, FREE, exact), images, "u16s8")


@pytest.fixture(scope="module")
def measured(quantizer, images, narrow_tiny):
    lines = []
    found = measure(
        quantizer, images, levels_of(narrow_tiny), narrow_tiny.spec.nc, progress=lines.append
    )
    return found, lines


def test_each_convolution_is_measured_once(measured, quantizer):
    found, lines = measured
    assert [x.name for x in found] == [layer.name for layer in quantizer.layers]
    assert [x.macs for x in found] == [layer.macs for layer in quantizer.layers]
    assert all(x.damage == x.boxes + x.scores for x in found)
    assert all(x.map_drop is None for x in found)
    assert "s per layer, 58 layers: about" in lines[0]
    assert len(lines) < 1 + len(found) / 2


def test_the_convolution_that_int8_damages_is_found(measured):
    by_name = {x.name: x for x in measured[0]}
    others = [x.damage for name, x in by_name.items() if name != BAD]
    assert by_name[BAD].damage > 1.4 * max(others)
    assert by_name[BAD].boxes > max(x.boxes for n, x in by_name.items() if n != BAD)
    assert by_name[FREE].damage < np.median(others) / 10


def test_only_one_convolution_is_in_integers(quantizer, images, narrow_tiny, monkeypatch):
    kept = []
    monkeypatch.setattr(quantizer, "quantized", lambda k: (kept.append(set(k)), quantizer.model)[1])
    found = measure(quantizer, images[:1], levels_of(narrow_tiny), narrow_tiny.spec.nc)
    names = {layer.name for layer in quantizer.layers}
    assert [names - one for one in kept] == [{layer.name} for layer in quantizer.layers]
    assert all(x.damage == 0 for x in found)  # of the float graph itself


def test_a_model_whose_scores_are_all_zero_is_refused(quantizer, images, narrow_tiny):
    model = onnx.ModelProto()
    model.CopyFrom(quantizer.model)
    heads = {n.input[2] for n in model.graph.node if n.name in quantizer.heads}
    for tensor in model.graph.initializer:
        if tensor.name in heads:
            low = np.full(tuple(tensor.dims), -1000, np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(low, tensor.name))
    levels, nc = levels_of(narrow_tiny), narrow_tiny.spec.nc
    with pytest.raises(DataError, match="all scores of the float graph are 0"):
        sensitivity.Comparison(model, images[:1], levels, nc, 1)


def test_convolutions_that_stay_in_float_are_not_measured(quantizer, images, narrow_tiny):
    kept = {layer.name for layer in quantizer.layers[1:]}
    lines = []
    (found,) = measure(
        quantizer,
        images[:1],
        levels_of(narrow_tiny),
        narrow_tiny.spec.nc,
        kept=kept,
        progress=lines.append,
    )
    assert found.name == quantizer.layers[0].name
    assert "1 layers" in lines[0]


def test_damage_is_weighted_by_the_scores_of_the_reference(
    quantizer, images, narrow_tiny, measured, tmp_path
):
    """The same numbers by the formulas of the docstring, from the outputs of the engine."""
    names = {layer.name for layer in quantizer.layers}
    outputs = []
    for index, graph in enumerate((quantizer.model, quantizer.quantized(names - {BAD}))):
        path = tmp_path / f"{index}.onnx"
        path.write_bytes(graph.SerializeToString())
        run = onnxrt.opened(path)
        heads = [list(run({"images": image}).values()) for image in images]
        outputs.append([decode(h, levels_of(narrow_tiny), narrow_tiny.spec.nc) for h in heads])
    terms = [
        (one.score, 1 - iou(one.box, other.boxes[one.index]), other.scores[one.index, one.class_id])
        for i, (reference, other) in enumerate(zip(*outputs, strict=True))
        for one in candidates_of(i, reference)
    ]
    weight, lost, score = np.array(terms).T
    (found,) = (x for x in measured[0] if x.name == BAD)
    assert found.boxes == pytest.approx((weight * lost).sum() / weight.sum(), rel=1e-4)
    assert found.scores == pytest.approx(np.abs(score - weight).sum() / weight.sum(), rel=1e-4)


def test_other_inputs_and_outputs_give_the_same_damage(narrow_tiny, images):
    """Of one layer, to be quick: sigmoids instead of logits, and batches of two images."""
    pixels = [np.rint(i.transpose(0, 2, 3, 1) * 255).astype(np.uint8) for i in images]
    cases = [
        (images, {}),
        (images, {"outputs": "heads-sigmoid"}),
        ([np.concatenate(images)], {"batch": 2}),
        (images, {"batch": None}),
        (pixels, {"input": "uint8"}),
    ]
    found = []
    for given, options in cases:
        one = Quantizer(graph_of(narrow_tiny, **options), given, "u8s8", method="minmax")
        one.layers = one.layers[:1]
        found += measure(one, given, levels_of(narrow_tiny), narrow_tiny.spec.nc)
    for other in found[1:]:  # they differ where a sum is close to a rounding edge
        assert other.boxes == pytest.approx(found[0].boxes, rel=0.02)
        assert other.scores == pytest.approx(found[0].scores, rel=0.02)


def test_no_images(quantizer, narrow_tiny):
    with pytest.raises(DataError, match="no images"):
        measure(quantizer, [], levels_of(narrow_tiny), narrow_tiny.spec.nc)


# --- time ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["yolov7-tiny", "yolov7"])
def test_times_of_nodes_belong_to_convolutions(variant, images, monkeypatch):
    """ONNX Runtime gives other names to the nodes that it fuses, in float and in int8."""
    spec = scale(registry.get(variant, nc=3), width=0.25)
    model = graph_of(random_weights(spec, seed=1))
    wiring, times, node_times = Wiring(model), [], onnxrt.node_times

    def remembered(*arguments):
        times.extend(node_times(*arguments))
        return times

    monkeypatch.setattr(onnxrt, "node_times", remembered)
    saved = saved_times(Quantizer(model, images[:1], "s8s8"), images[0], threads=1)
    assert list(saved) == [c.name for c in wiring.convolutions]
    sums = [sensitivity._by_layer(sensitivity._owners(wiring), one) for one in times]
    for of_layers, of_nodes in zip(sums, times, strict=True):
        assert set(saved) <= set(of_layers)  # each convolution has a time in both graphs
        assert sum(of_layers.values()) == pytest.approx(sum(of_nodes.values()))
        assert of_layers[""] < 0.3 * sum(of_layers.values())  # Concat, MaxPool, Resize, Transpose
    for name, ms in saved.items():
        assert ms == pytest.approx(sums[0][name] - sums[1][name])


def test_a_name_is_matched_as_a_whole():
    owners = {
        "/row1": "a",
        "/row1/Conv": "a",
        "/row51": "b",
        "/row51/Concat": "",
        "/row51/c/1": "c",
    }
    times = {
        "/row1_nchwc": 1.0,
        "/row10_nchwc": 2.0,
        "/row1/Conv_token_3": 4.0,
        "/row51/Concat": 8.0,
        "/row51/c/1_nchwc": 16.0,
        "/row51/QuantizeLinear": 32.0,
        "Transpose_token_1": 64.0,
    }
    found = sensitivity._by_layer(owners, times)
    assert found == {"a": 5.0, "": 74.0, "c": 16.0, "b": 32.0}


# --- order ---------------------------------------------------------------------------------------


def damage(name, value, ms, macs=1):
    return LayerDamage(name, value, ms, macs)


def test_most_damage_for_each_millisecond_is_first():
    layers = [damage("a", 0.1, 1.0), damage("b", 0.1, 0.5), damage("c", 0.9, 1.0)]
    assert order(layers) == ["c", "b", "a"]


def test_convolutions_that_int8_makes_slower_are_first():
    layers = [damage("a", 0.1, 1.0), damage("b", 0.02, -0.2), damage("c", 0.01, -0.5)]
    assert order(layers) == ["c", "b", "a"]


def test_savings_that_are_smaller_than_noise_count_alike():
    """One of 60 saves 0.05 of the mean at least."""
    some = [damage(str(i), 0.0, 1.0) for i in range(57)]
    layers = [damage("a", 0.01, -0.01), damage("b", 0.02, 0.01), damage("c", 0.03, 0.04)]
    assert order([*some, *layers])[:3] == ["c", "b", "a"]


def test_multiplications_take_the_place_of_times_if_int8_is_slower():
    layers = [damage("a", 0.1, -1.0, 1000), damage("b", 0.1, 0.5, 100), damage("c", 0.3, -1.0, 100)]
    assert order(layers) == ["c", "b", "a"]


def test_order_of_nothing():
    assert order([]) == []


# --- the analysis --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four images without labels."""
    root = tmp_path_factory.mktemp("unlabelled")
    for seed in range(4):
        cv2.imwrite(str(root / f"{seed}.png"), scene(seed, (HEIGHT, WIDTH)).image)
    return root


def test_command(folder, narrow_tiny, tmp_path, capsys):
    path, out = tmp_path / "narrow.safetensors", tmp_path / "out"
    weights.save(narrow_tiny, path)
    words = ["sensitivity", path, "--data", folder, "--out", out, "--imgsz", f"{HEIGHT}x{WIDTH}"]
    code = main([*map(str, words), "--images", "1", "--threads", "1", "--json"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    record = json.loads(printed.out)
    assert record == json.loads((out / "sensitivity.json").read_text())
    assert len(record["layers"]) == 58
    assert len(record["heads"]) == 3
    assert record["order"] == [
        name
        for name in order(LayerDamage(**layer) for layer in record["layers"])
        if name not in record["heads"]
    ]
    assert (record["calibrated"], record["images"], record["evaluated"]) == (4, 1, 0)
    assert record["imgsz"] == [HEIGHT, WIDTH]
    plot = cv2.imread(str(out / "sensitivity.png"))
    assert plot.shape[0] > 58 * 15  # one legible line for each convolution
    assert "few calibration images" in printed.err
    assert "s per layer, 58 layers" in printed.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"profile": "u4s4"}, "no profile 'u4s4'; choose from u8s8"),
        ({"ranges": "entropy"}, "no range method 'entropy'; choose from minmax"),
        ({"images": 0}, "images is 0"),
        ({"evaluated": -1}, "evaluated -1"),
        ({"imgsz": 100}, "multiples of 32"),
        ({"threads": 0}, "threads"),
    ],
)
def test_invalid_options(options, message, folder, narrow_tiny, tmp_path):
    with pytest.raises(ConfigError, match=message):
        analyse(narrow_tiny, folder, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_was_trained_for_int8(folder, narrow_tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(sensitivity_report, "recorded", lambda _: "a training")
    with pytest.raises(ConfigError, match="trained with --qat"):
        analyse(narrow_tiny, folder, tmp_path / "out")


def test_the_map_needs_labels(folder, narrow_tiny, tmp_path):
    with pytest.raises(DataError):
        analyse(narrow_tiny, folder, tmp_path / "out", evaluated=3)
    assert not (tmp_path / "out").exists()


def test_a_destination_that_is_a_folder_is_refused_at_once(folder, narrow_tiny, tmp_path):
    (tmp_path / "sensitivity.png").mkdir()
    with pytest.raises(OutputError, match=r"sensitivity\.png"):
        analyse(narrow_tiny, folder, tmp_path, images=1)


def test_the_drop_is_positive_if_the_map_of_int8_is_lower(tmp_path, monkeypatch):
    """Of one graph only, to be quick; the images of the evaluation are spread over the split."""
    data = generate(tmp_path / "set", 3, 9, seed=3)
    seen = []

    def map50_95(evaluator, graph):
        seen.append([sample.path.name for sample in evaluator.samples])
        return 0.4 if any(n.op_type == "QuantizeLinear" for n in graph.graph.node) else 0.5

    def measured(quantizer, images, *_, drop, **__):
        return (LayerDamage("/row0/Conv", 0.1, 1.0, 1, map_drop=drop(quantizer.quantized())),)

    monkeypatch.setattr(sensitivity_report._Evaluator, "map50_95", map50_95)
    monkeypatch.setattr(sensitivity_report, "measure", measured)
    found = analyse(weights.load(TRAINED), data, tmp_path / "out", evaluated=3)
    assert (found.map50_95, found.evaluated) == (0.5, 3)
    assert found.layers[0].map_drop == pytest.approx(0.1)
    names = sorted(path.name for path in (data.parent / "images" / "val").iterdir())
    assert seen == [[names[0], names[3], names[6]]] * 2


@pytest.mark.slow
def test_map_of_a_trained_model(tmp_path):
    """Each convolution alone in int8 costs little; six images give a mAP with much noise."""
    checkpoint = weights.load(TRAINED)
    data = generate(tmp_path / "set", 40, 12, seed=3)
    lines = []
    found = analyse(
        checkpoint, data, tmp_path / "out", images=8, evaluated=6, progress=lines.append
    )
    assert found.evaluated == 6
    assert found.map50_95 is not None
    assert found.map50_95 > 0.5
    drops = [layer.map_drop for layer in found.layers]
    assert all(drop is not None and abs(drop) < 0.1 for drop in drops)
    assert np.median(np.abs(drops)) < 0.005
    assert len(set(drops)) > 3  # different graphs were evaluated
