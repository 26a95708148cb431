"""ONNX files of other exporters: each form gives the boxes of our own artifact."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.blocking import BLOCKER
from y7edge import Detector
from y7edge.artifact.foreign import Interface, Tensor, describe
from y7edge.artifact.names_text import parse_names
from y7edge.cli import main
from y7edge.data.synthetic import scenes
from y7edge.errors import ArtifactError, ConfigError, DataError, DeviceError, ManifestMissing
from y7edge.export import build, export
from y7edge.export.folding import fold_checkpoint
from y7edge.export.graph.build import build_graph
from y7edge.models import weights
from y7edge.runtimes import registry

CHECKPOINT = weights.load(Path(__file__).parents[1] / "reference" / "demo.safetensors")
NC, SIZE = CHECKPOINT.spec.nc, (128, 160)
LEVELS = [(16, 20), (8, 10), (4, 5)]
NAMES = ["a", "b", "c", "d"]
FORMS = ("heads", "concatenated", "rows", "padded")


def as_heads(graph, batch):
    for level, head in enumerate(list(graph.output)):
        rows, columns = LEVELS[level]
        shape = numpy_helper.from_array(np.array([0, 3, 5 + NC, rows, columns]), f"shape{level}")
        graph.initializer.append(shape)
        name = "output" if level == 0 else str(300 + level)
        graph.node.append(helper.make_node("Reshape", [head.name, shape.name], [f"r{level}"]))
        graph.node.append(
            helper.make_node("Transpose", [f"r{level}"], [name], perm=[0, 1, 3, 4, 2])
        )
        dims = [batch, 3, rows, columns, 5 + NC]
        head.CopyFrom(helper.make_tensor_value_info(name, TensorProto.FLOAT, dims))


def as_concatenated(graph, batch):
    """Objectness 0.99, and class probabilities that give the same scores."""
    part = numpy_helper.from_array(np.array(0.99, np.float32), "part")
    axes = numpy_helper.from_array(np.array([2]), "axes")
    ends = [numpy_helper.from_array(np.array([n]), f"end{n}") for n in (0, 1)]
    graph.initializer.extend([part, axes, *ends])
    graph.node.extend(
        [
            helper.make_node("Slice", ["boxes", "end0", "end1", "axes"], ["column"]),
            helper.make_node("Mul", ["column", "zero"], ["zeros"]),
            helper.make_node("Add", ["zeros", "part"], ["objectness"]),
            helper.make_node("Div", ["scores", "part"], ["classes"]),
            helper.make_node("Concat", ["boxes", "objectness", "classes"], ["output"], axis=2),
        ]
    )
    graph.initializer.append(numpy_helper.from_array(np.array(0, np.float32), "zero"))
    count = 3 * sum(rows * columns for rows, columns in LEVELS)
    del graph.output[:]
    dims = [batch, count, 5 + NC]
    graph.output.append(helper.make_tensor_value_info("output", TensorProto.FLOAT, dims))


def as_rows(graph, batch):
    del graph.input[1:]  # the thresholds are constants


def as_padded(graph, batch):
    """Two images; all outputs have 100 places."""
    del graph.input[1:]

    def constant(name, value):
        graph.initializer.append(numpy_helper.from_array(np.array(value), name))

    for name, value in {
        "zero_": [0],
        "one_": [1],
        "most": [100],
        "axis0": [0],
        "axis1": [1],
    }.items():
        constant(name, value)
    counts, padded = [], []
    for image in range(2):
        constant(f"image{image}", np.float32(image))
        own, name = f"own{image}", f"padded{image}"
        constant(f"column{image}", 0)
        constant(f"nothing{image}", [0, 0, 0])
        graph.node.extend(
            [
                helper.make_node(
                    "Gather", ["detections", f"column{image}"], [f"of{image}"], axis=1
                ),
                helper.make_node("Equal", [f"of{image}", f"image{image}"], [f"is{image}"]),
                helper.make_node("Compress", ["detections", f"is{image}"], [own], axis=0),
                helper.make_node("Shape", [own], [f"n{image}"], start=0, end=1),
                helper.make_node("Sub", ["most", f"n{image}"], [f"rest{image}"]),
                helper.make_node(
                    "Concat",
                    ["zero_", "zero_", f"rest{image}", "zero_"],
                    [f"pads{image}"],
                    axis=0,
                ),
                helper.make_node("Pad", [own, f"pads{image}"], [f"whole{image}"]),
                helper.make_node("Unsqueeze", [f"whole{image}", "axis0"], [name]),
            ]
        )
        counts.append(f"n{image}")
        padded.append(name)
    graph.node.append(helper.make_node("Concat", padded, ["all"], axis=0))
    graph.node.append(helper.make_node("Concat", counts, ["counts"], axis=0))
    graph.node.append(helper.make_node("Cast", ["counts"], ["counts32"], to=TensorProto.INT32))
    graph.node.append(helper.make_node("Unsqueeze", ["counts32", "axis1"], ["num_dets"]))
    constant("axis2", [2])
    parts = {"det_boxes": ([1], [5]), "scores_": ([6], [7]), "classes_": ([5], [6])}
    for name, (start, stop) in parts.items():
        constant(f"{name}start", start)
        constant(f"{name}stop", stop)
        inputs = ["all", f"{name}start", f"{name}stop", "axis2"]
        graph.node.append(helper.make_node("Slice", inputs, [name]))
    graph.node.append(helper.make_node("Squeeze", ["scores_", "axis2"], ["det_scores"]))
    graph.node.append(helper.make_node("Squeeze", ["classes_", "axis2"], ["classes32"]))
    graph.node.append(
        helper.make_node("Cast", ["classes32"], ["det_classes"], to=TensorProto.INT32)
    )
    del graph.output[:]
    for name, kind, dims in (
        ("num_dets", TensorProto.INT32, [2, 1]),
        ("det_boxes", TensorProto.FLOAT, [2, 100, 4]),
        ("det_scores", TensorProto.FLOAT, [2, 100]),
        ("det_classes", TensorProto.INT32, [2, 100]),
    ):
        graph.output.append(helper.make_tensor_value_info(name, kind, dims))


MADE_FROM = {"heads": "heads", "concatenated": "decoded", "rows": "nms", "padded": "nms"}
CHANGES = {
    "heads": as_heads,
    "concatenated": as_concatenated,
    "rows": as_rows,
    "padded": as_padded,
}


def foreign(form, path, *, batch=2, size=SIZE, change=None, metadata=None):
    """Write the model as another exporter would; ``change`` edits the graph."""
    height, width = size
    model = build_graph(
        fold_checkpoint(CHECKPOINT),
        outputs=MADE_FROM[form],
        height=height,
        width=width,
        batch=batch,
    )
    CHANGES[form](model.graph, "batch" if batch is None else batch)
    if change is not None:
        change(model.graph)
    model.producer_name, model.producer_version = "pytorch", "1.12"
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One file of each form, for two images, and our own artifact."""
    folder = tmp_path_factory.mktemp("foreign")
    made = {form: foreign(form, folder / f"{form}.onnx") for form in FORMS}
    own = export(CHECKPOINT, folder / "own.onnx", imgsz=SIZE, batch=2, outputs="decoded")
    return {**made, "own": own.path}


@pytest.fixture(scope="module")
def frames():
    return [scenes.scene(seed, (240, 320)).image for seed in range(3)]


def opened(path, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Detector(path, **options)


@pytest.mark.parametrize("form", FORMS)
def test_boxes_equal_those_of_our_own_artifact(files, frames, form):
    detector = opened(files[form], names=NAMES)
    expected = Detector(files["own"]).batch(frames)
    for found, wanted in zip(detector.batch(frames), expected, strict=True):
        assert len(wanted) > 1
        np.testing.assert_allclose(found.xyxy, wanted.xyxy, atol=1e-3)
        np.testing.assert_allclose(found.confidence, wanted.confidence, atol=1e-5)
        np.testing.assert_array_equal(found.class_id, wanted.class_id)
    assert detector.names == tuple(NAMES)
    detector.close()


@pytest.mark.parametrize("form", ["heads", "concatenated"])
def test_heads_and_candidates_can_be_evaluated(files, frames, form):
    found = opened(files[form]).detect_for_evaluation(frames[0])
    wanted = Detector(files["own"]).detect_for_evaluation(frames[0])
    assert len(found) == len(wanted) > 10
    np.testing.assert_allclose(found.xyxy, wanted.xyxy, atol=1e-3)


def test_thresholds_inside_the_graph_are_not_changed_silently(files, frames):
    for form in ("rows", "padded"):
        with pytest.raises(ConfigError, match=r"iou is 0\.3, but NMS is part of the graph"):
            opened(files[form], iou=0.3)
        with pytest.raises(ConfigError, match="mAP needs every class"):
            opened(files[form]).detect_for_evaluation(frames[0])
        few = opened(files[form], conf=0.6, max_det=2, classes=[1])(frames[0])
        assert len(few) <= 2
        assert set(few.class_id) <= {1}
        assert (few.confidence > 0.6).all()


def test_the_detector_warns_that_there_is_no_proof(files):
    with pytest.warns(UserWarning, match="made by another exporter.*y7edge info") as caught:
        detector = Detector(files["rows"])
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert detector.info["parity"] == "unverified"


def test_a_dynamic_batch_and_size(tmp_path, frames):
    def free(graph):
        for side in (2, 3):
            graph.input[0].type.tensor_type.shape.dim[side].dim_param = "side"

    path = foreign("heads", tmp_path / "m.onnx", batch=None, change=free)
    with pytest.raises(ConfigError, match=r"dynamic size \(images float32 \?x3x\?x\?\): choose"):
        Detector(path)
    with pytest.raises(ConfigError, match="100x160 pixels is not a multiple of 32"):
        Detector(path, imgsz=(100, 160))
    detector = opened(path, imgsz=SIZE)
    assert detector.manifest.input.shape == ("dynamic", 3, *SIZE)
    one, many = detector(frames[1]), detector.batch(frames)[1]
    np.testing.assert_array_equal(one.xyxy, many.xyxy)
    with pytest.raises(ArtifactError, match="expected a map of 20x20 for stride 8"):
        Detector(path, imgsz=160)


def test_a_fixed_size_is_fixed(files):
    with pytest.raises(ConfigError, match=r"imgsz is 640x640, but .* fixed input images float32"):
        Detector(files["heads"], imgsz=640)


def test_info_says_what_is_assumed(files, capsys):
    assert main(["info", str(files["heads"]), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["layout"], record["nc"], record["parameters"]) == ("heads", NC, None)
    assert record["assumed"] == {
        "anchors": "those of the published yolov7-tiny, for 3 levels and LeakyReLU",
        "activation": "none: logits",
        "levels": "3, with strides 8, 16, 32",
        "names": "numbers from 0 to 3",
        "colour": "RGB, values from 0 to 1",
        "letterbox": "centred, padded with grey 114",
    }
    assert record["tools"] == {"exporter": "pytorch 1.12"}
    assert main(["info", str(files["rows"]), "--names", "a,b,c,d"]) == 0
    out = capsys.readouterr().out
    assert "assumed coordinates" in out
    assert "in the graph, with thresholds of its own" in out
    assert "IoU 0.45" not in out
    assert "unverified: made by another exporter" in out
    assert main(["info", str(files["padded"])]) == 0
    assert "does not state the number of classes, 80 is COCO's" in capsys.readouterr().out


def test_commands_take_names(files, frames, tmp_path, capsys):
    import cv2

    cv2.imwrite(str(tmp_path / "a.png"), frames[0])
    (tmp_path / "labels.txt").write_text("nut\nbolt\n\nwasher\npin\n")
    words = ["predict", str(files["concatenated"]), str(tmp_path / "a.png"), "--json"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main([*words, "--names", str(tmp_path / "labels.txt")]) == 0
        found = json.loads(capsys.readouterr().out)["detections"]
        assert {one["class_name"] for one in found} <= {"nut", "bolt", "washer", "pin"}
        assert len(found) > 1
        assert main([*words, "--names", "nut,bolt"]) == 1
        assert "2 class names for" in capsys.readouterr().err
        benchmark = ["benchmark", str(files["heads"]), "--runs", "1", "--warmup", "1", "--json"]
        assert main([*benchmark, "--names", "a,b,c,d"]) == 0
    assert main(["predict", str(files["own"]), str(tmp_path / "a.png"), "--names", "a,b,c,d"]) == 1
    assert "has its own: omit names" in capsys.readouterr().err


def test_what_has_no_proof_is_an_error_and_not_a_failed_gate(files, tmp_path, capsys):
    path, engine = files["heads"], tmp_path / "lonely.mnn"
    engine.write_bytes(path.read_bytes())
    with pytest.raises(ManifestMissing, match="has no y7edge manifest"):
        registry.load(path)
    with pytest.raises(ManifestMissing, match="has no y7edge manifest"):
        build(path, tmp_path / "m.xml", target="openvino")
    for words, message in (
        (["selftest", str(path)], "make an artifact with `y7edge export"),
        (["verify", str(path), "--against", "yolov7-tiny"], "has no y7edge manifest"),
        (["build", str(path), "--target", "openvino"], "has no y7edge manifest"),
        (["selftest", str(engine)], "copy lonely.mnn and lonely.mnn.json together"),
    ):
        assert main(words) == 1
        assert message in capsys.readouterr().err.splitlines()[-1]


def test_neither_torch_nor_onnx_is_imported(files):
    script = (
        "import warnings; warnings.simplefilter('ignore')\n"
        "import numpy as np\n"
        "from y7edge import Detector\n"
        f"print(len(Detector({str(files['heads'])!r}, conf=0)(np.zeros((64, 64, 3), np.uint8))))"
    )
    blocked = BLOCKER.format(blocked={"torch", "onnx"})
    done = subprocess.run([sys.executable, "-c", blocked + script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0


# --- class names ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("{0: 'person', 1: 'traffic light'}", ("person", "traffic light")),
        ('{1: "b", 0: "it\'s",}', ("it's", "b")),
        ("['a', 'b\\'c', \"d\"]", ("a", "b'c", "d")),
        ('{"0": "x", "1": "y"}', ("x", "y")),
        ('["ö", "日本"]', ("ö", "日本")),
        ("['a\\x1b[31m']", ("a\\x1b[31m",)),  # escaped, not printed
        ("{0: 'a', 2: 'b'}", None),
        ("{0: __import__('os').system('true')}", None),
        ("['a' 'b']", None),
        ("['a', ['b']]", None),
        ("[1, 2]", None),
        ("['\\x1']", None),
        ("{}", None),
        ("", None),
        ("[" * 100_000 + "]" * 100_000, None),
        ("['" + "a" * (1 << 21) + "']", None),
    ],
    ids=lambda value: str(value)[:30],
)
def test_names_of_other_exporters_are_parsed_and_never_evaluated(text, names):
    assert parse_names(text) == names


def test_names_come_from_the_argument_the_metadata_or_numbers(tmp_path):
    path = foreign("heads", tmp_path / "m.onnx", metadata={"names": str(dict(enumerate(NAMES)))})
    assert opened(path).names == tuple(NAMES)
    assert opened(path, names=[*"wxyz"]).names == tuple("wxyz")
    path = foreign("heads", tmp_path / "n.onnx", metadata={"names": "__import__('os')"})
    assert opened(path).names == tuple("0123")
    assert "cannot be read" in registry.load_any(path).foreign.assumed["names"]
    path = foreign("heads", tmp_path / "o.onnx", metadata={"names": "['a', 'b']"})
    with pytest.raises(ArtifactError, match="have 2 class names, its outputs 4 classes"):
        Detector(path)
    assert opened(path, names=[*"wxyz"]).names == tuple("wxyz")
    with pytest.raises(ConfigError, match=r"names: expected"):
        Detector(path, names="xyz")


def test_a_class_without_a_name_is_an_error(files, frames):
    with pytest.raises(DataError, match=r"class \d, expected 0 to 0"):
        opened(files["rows"], names=["only"], conf=0.01).batch(frames)


# --- refusals ------------------------------------------------------------------------------------

IMAGES = Tensor("images", "float32", (1, 3, 640, 640))


def head(size, last=85, anchors=3, dtype="float32"):
    return Tensor("h", dtype, (1, anchors, size, size, last))


@pytest.mark.parametrize(
    ("outputs", "problem"),
    [
        ([], "found none; expected 3 or 4 heads"),
        ([Tensor("output0", "float32", (1, 84, 8400))], "gives 25200 candidates on 3 levels"),
        ([Tensor("o", "float32", (1, 25200, 5))], "found o float32 1x25200x5; expected"),
        ([Tensor("o", "int8", (1, 25200, 85))], "found o int8"),
        ([Tensor("o", "float32", None)], "found o float32 of unknown shape"),
        ([Tensor("o", "not a tensor", None)], "found o not a tensor"),
        ([Tensor("o", "float32", (None, 6))], r"found o float32 \?x6"),
        ([Tensor("o", "float32", (1, 255, 80, 80))], "found o float32 1x255x80x80"),
        ([head(80), head(40)], "found h float32 1x3x80x80x85, h float32"),
        ([head(80), head(40), head(20, last=84)], "expected 3 or 4 heads"),
        ([head(80, anchors=1), head(40, anchors=1), head(20, anchors=1)], "expected 3 or 4 heads"),
        ([head(80, dtype="int8"), head(40), head(20)], "expected 3 or 4 heads"),
        ([head(80, last=1 << 40), head(40, last=1 << 40), head(20, last=1 << 40)], "at most 65536"),
        ([head(80), head(40), head(40)], "expected a map of 20x20 for stride 32"),
        ([Tensor("\x1b[2J", "float32", (2,))], r"found \\x1b\[2J float32 2;"),
    ],
)
def test_other_outputs_are_refused_with_what_was_found(outputs, problem):
    with pytest.raises(ArtifactError, match=problem) as caught:
        describe(Interface((IMAGES,), tuple(outputs)), "m.onnx", "m")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("inputs", "problem"),
    [
        ([], "found none; expected one of float32"),
        ([IMAGES, IMAGES], "expected one of float32 or float16, Bx3xHxW"),
        ([Tensor("x", "uint8", (1, 3, 640, 640))], "found x uint8"),
        ([Tensor("x", "float32", (1, 640, 640, 3))], "found x float32 1x640x640x3"),
        ([Tensor("x", "float32", (1, 3, 1 << 40, 640))], "cannot be used: a side has"),
        ([Tensor("x", "float32", (5000, 3, 640, 640))], "cannot be used: batch is 5000"),
    ],
)
def test_other_inputs_are_refused(inputs, problem):
    rows = Tensor("output", "float32", (None, 7))
    with pytest.raises(ArtifactError, match=problem):
        describe(Interface(tuple(inputs), (rows,)), "m.onnx", "m")


def test_heads_are_ordered_by_their_size():
    heads = [head(20), head(80), head(40)]
    names = [Tensor(n, t.dtype, t.shape) for n, t in zip("abc", heads, strict=True)]
    assert describe(Interface((IMAGES,), tuple(names)), "m", "m").outputs == ("b", "c", "a")
    auxiliary = [Tensor("f", "float32", (1, 256, 80, 80))] * 3
    found = describe(Interface((IMAGES,), (*names, *auxiliary)), "m", "m")
    assert found.outputs == ("b", "c", "a")
    assert found.assumed["other outputs"].startswith("not used: f float32 1x256x80x80, f")
    four = tuple(head(size) for size in (80, 40, 20, 10))
    found = describe(Interface((IMAGES,), four), "m", "m")
    assert found.manifest.strides == (8, 16, 32, 64)
    assert "yolov7-w6" in found.assumed["anchors"]


def test_candidates_of_four_levels():
    count = 3 * sum((640 // stride) ** 2 for stride in (8, 16, 32, 64))
    output = Tensor("output", "float32", (None, count, 85))
    found = describe(Interface((IMAGES,), (output,)), "m", "m")
    assert found.assumed["levels"] == "4, with strides 8, 16, 32, 64"


def test_outputs_that_contradict_the_form_are_an_error(tmp_path, frames):
    def lie(graph):
        graph.output[0].type.tensor_type.shape.dim[1].dim_param = "n"
        cut = [numpy_helper.from_array(np.array([n]), f"cut{n}") for n in (0, 9, 1)]
        graph.initializer.extend(cut)
        graph.node[-1].output[0] = "whole"
        inputs = ["whole", "cut0", "cut9", "cut1"]
        graph.node.append(helper.make_node("Slice", inputs, ["output"]))

    path = foreign("concatenated", tmp_path / "m.onnx", change=lie)
    with pytest.raises(DataError, match=r"boxes \(2, 9, 4\), expected \(2, 1260, 4\)"):
        opened(path)(frames[0])


@pytest.mark.parametrize("form", ["concatenated", "rows", "padded"])
def test_scores_that_are_not_probabilities_are_an_error(form):
    shapes, scores = {
        "concatenated": ({"o": (1, 25200, 85)}, ("o", 4)),
        "rows": ({"o": (5, 7)}, ("o", 6)),
        "padded": ({"n": (1, 1), "b": (1, 3, 4), "s": (1, 3), "c": (1, 3)}, ("s", 0)),
    }[form]
    kinds = {"n": "int32", "c": "int32"}
    outputs = tuple(Tensor(n, kinds.get(n, "float32"), shape) for n, shape in shapes.items())
    found = describe(Interface((IMAGES,), outputs), "m", "m")
    arrays = {o.name: np.ones(o.shape, o.dtype) for o in outputs}
    name, column = scores
    for value, fits in ((1, True), (1.001, True), (90, False), (-2, False)):
        arrays[name][..., column] = value
        with nullcontext() if fits else pytest.raises(DataError, match="expected probabilities"):
            found.convert(list(arrays.values()))


def rows_for_deepstream(boxes, *columns):
    """(1, 252, 4 + columns): corners or centres, and one value of each column for all boxes."""
    rows = np.empty((1, 252, 4 + len(columns)), np.float32)
    rows[..., :4] = boxes
    rows[..., 4:] = columns
    return rows


@pytest.mark.parametrize(
    ("rows", "other_class", "problem"),
    [
        (rows_for_deepstream((9, 9, 8, 8), 0.1, 0, 0.2), 17, r"from 0 to 17, expected prob"),
        (rows_for_deepstream((9, 9, 8, 8), 0.1, 0, 0.2), 1, "0 or 1: they are class ids"),
        (rows_for_deepstream((1, 1, 9, 9), 0.1, 0), 2, r"from 0 to 2, expected prob"),
        (rows_for_deepstream((1, 1, 9, 9), 0.1, 0), 0, "0 or 1: they are class ids"),
    ],
)
def test_a_class_id_is_not_a_class_probability(rows, other_class, problem):
    """Files for DeepStream have rows (xywh, score, class id, objectness) or (xyxy, score, id)."""
    image = Tensor("images", "float32", (1, 3, 64, 64))
    found = describe(Interface((image,), (Tensor("output", "float32", rows.shape),)), "m", "m")
    rows = rows.copy()
    rows[0, 7, 5] = other_class
    with pytest.raises(DataError, match=problem):
        found.convert([rows])


def test_heads_with_a_sigmoid_are_an_error():
    image = Tensor("images", "float32", (1, 3, 64, 64))
    shapes = [(1, 3, side, side, 7) for side in (8, 4, 2)]
    outputs = tuple(Tensor(f"o{i}", "float32", shape) for i, shape in enumerate(shapes))
    found = describe(Interface((image,), outputs), "m", "m")
    rng = np.random.default_rng(0)
    logits = [rng.normal(-3, 1, shape).astype(np.float32) for shape in shapes]
    assert list(found.convert(logits)) == ["head0", "head1", "head2"]
    with pytest.raises(DataError, match="from 0 to 1, expected logits"):
        found.convert([1 / (1 + np.exp(-array)) for array in logits])


def test_a_count_beyond_the_places_is_an_error(tmp_path, frames):
    def lie(graph):
        graph.initializer.append(numpy_helper.from_array(np.array(1000, np.int32), "many"))
        node = next(n for n in graph.node if n.output[0] == "num_dets")
        node.output[0] = "right"
        graph.node.append(helper.make_node("Add", ["right", "many"], ["num_dets"]))

    path = foreign("padded", tmp_path / "m.onnx", change=lie)
    with pytest.raises(DataError, match=r"number of boxes is .* expected 0 to 100"):
        opened(path)(frames[0])


def test_places_beyond_the_count_are_not_boxes():
    shapes = {"n": (2, 1), "b": (2, 3, 4), "s": (2, 3), "c": (2, 3)}
    kinds = {"n": "int32", "c": "int32"}
    outputs = tuple(Tensor(n, kinds.get(n, "float32"), shape) for n, shape in shapes.items())
    images = Tensor("images", "float32", (2, 3, 640, 640))
    found = describe(Interface((images,), outputs), "m", "m")
    arrays = [np.ones(shape, kinds.get(n, "float32")) for n, shape in shapes.items()]
    arrays[0][:, 0] = 0, 2
    arrays[2][1] = 0.9, 0.8, 0.7
    rows = found.convert(arrays)["detections"]
    np.testing.assert_allclose(rows, [[1, 1, 1, 1, 1, 1, 0.9], [1, 1, 1, 1, 1, 1, 0.8]])
    with pytest.raises(DataError, match=r"the outputs are .* expected \(B, 1\), \(B, K, 4\)"):
        found.convert([*arrays[:3], arrays[3][:, :2]])


def test_a_tensorrt_plugin_is_named(tmp_path):
    def plugin(graph):
        graph.node.append(
            helper.make_node("EfficientNMS_TRT", ["images"], ["unused"], domain="TRT")
        )

    path = foreign("rows", tmp_path / "m.onnx", change=plugin)
    model = onnx.load(path)
    model.opset_import.append(helper.make_opsetid("TRT", 1))
    onnx.save(model, path)
    with pytest.raises(DeviceError, match=r"EfficientNMS.*export it without NMS"):
        opened(path)


def test_weights_listed_as_inputs_are_not_inputs(tmp_path, frames):
    """Exporters before IR version 4 list every initializer among the inputs."""

    def listed(graph):
        for tensor in graph.initializer:
            value = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            graph.input.append(value)

    path = foreign("heads", tmp_path / "m.onnx", change=listed)
    assert len(opened(path)(frames[0])) > 0


def test_hostile_files(files, tmp_path):
    raw = files["rows"].read_bytes()
    path = tmp_path / "m.onnx"
    for length in (0, 10, len(raw) // 2, len(raw) - 1):
        path.write_bytes(raw[:length])
        with pytest.raises(ArtifactError):
            Detector(path)
    model = onnx.load(files["rows"])
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = -5
    onnx.save(model, path)
    with pytest.raises(ArtifactError, match="impossible shape"):
        Detector(path)
    model.graph.input[0].name = "x" * 70_000
    onnx.save(model, path)
    with pytest.raises(ArtifactError, match="description of a tensor has"):
        Detector(path)
    onnx.save(onnx.load(files["rows"]), path, save_as_external_data=True, size_threshold=0)
    with pytest.raises(ArtifactError, match="external data"):
        Detector(path)
