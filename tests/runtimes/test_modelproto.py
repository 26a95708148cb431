"""Reading ONNX files: external data and malformed files are refused."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import convert_model_to_external_data

from tests import tampering
from y7edge import Detector
from y7edge.detect.selftest import selftest
from y7edge.errors import ArtifactError, DigestError, Y7EdgeError
from y7edge.runtimes import _modelproto, onnxrt, registry

MANIFEST_LIMIT = 4 << 20


def external(name="w", **changes):
    """A tensor whose values are in another file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    for field, value in changes.items():
        getattr(tensor, field)
        setattr(tensor, field, value)
    return tensor


def graph_of(tensor):
    return helper.make_graph([], "inner", [], [], initializer=[tensor])


def attribute(**fields):
    made = onnx.AttributeProto(name="a")
    for name, value in fields.items():
        field = getattr(made, name)
        if hasattr(field, "append"):
            field.append(value)
        else:
            field.CopyFrom(value)
    return made


def sparse(**fields):
    made = onnx.SparseTensorProto()
    for name, value in fields.items():
        getattr(made, name).CopyFrom(value)
    return made


def in_node(model, made):
    model.graph.node[0].attribute.append(made)


def in_function(model, made):
    function = model.functions.add(name="f", domain="d")
    function.node.add(op_type="Constant").attribute.append(made)


def in_training(model, field):
    getattr(model.training_info.add(), field).CopyFrom(graph_of(external()))


def only_entries(model):
    tensor = external()
    tensor.data_location = TensorProto.DEFAULT
    model.graph.initializer.append(tensor)


def only_location(model):
    tensor = external()
    del tensor.external_data[:]
    model.graph.initializer.append(tensor)


def deep(model):
    made = attribute(t=external())
    for _ in range(20):
        node = helper.make_node("If", [], [])
        node.attribute.append(made)
        made = attribute(g=helper.make_graph([node], "inner", [], []))
    in_node(model, made)


PLACES = {
    "initializer": lambda m: m.graph.initializer.append(external()),
    "only entries": only_entries,
    "only location": only_location,
    "sparse values": lambda m: m.graph.sparse_initializer.append(sparse(values=external())),
    "sparse indices": lambda m: m.graph.sparse_initializer.append(sparse(indices=external())),
    "attribute": lambda m: in_node(m, attribute(t=external())),
    "attribute of several": lambda m: in_node(m, attribute(tensors=external())),
    "sparse attribute": lambda m: in_node(m, attribute(sparse_tensor=sparse(values=external()))),
    "sparse attributes": lambda m: in_node(m, attribute(sparse_tensors=sparse(values=external()))),
    "subgraph": lambda m: in_node(m, attribute(g=graph_of(external()))),
    "subgraphs": lambda m: in_node(m, attribute(graphs=graph_of(external()))),
    "deep subgraph": deep,
    "function": lambda m: in_function(m, attribute(t=external())),
    "function's default": lambda m: m.functions.add(name="f").attribute_proto.append(
        attribute(t=external())
    ),
    "training": lambda m: in_training(m, "algorithm"),
    "initialization": lambda m: in_training(m, "initialization"),
}


@pytest.mark.parametrize("place", PLACES)
def test_external_data_is_refused_everywhere(artifact_path, tmp_path, place):
    model = onnx.load(artifact_path)
    PLACES[place](model)
    copy = tmp_path / "m.onnx"
    copy.write_bytes(model.SerializeToString())
    for use in (
        registry.load,
        Detector,
        onnxrt.read_manifest,
        lambda path: onnxrt.payload_digest((path,)),
        selftest,
    ):
        with pytest.raises(ArtifactError, match=r"external data.*export it again") as caught:
            use(copy)
        assert str(copy) in str(caught.value) and "\n" not in str(caught.value)


def test_weights_moved_to_external_data_are_refused(artifact_path, tmp_path):
    """The attack: all weights moved beside the file, then set to zero."""
    model = onnx.load(artifact_path)
    convert_model_to_external_data(model, location="weights.bin", size_threshold=0)
    onnx.save(model, tmp_path / "m.onnx")
    size = (tmp_path / "weights.bin").stat().st_size
    (tmp_path / "weights.bin").write_bytes(bytes(size))
    with pytest.raises(ArtifactError, match="external data"):
        Detector(tmp_path / "m.onnx")


def test_every_path_to_a_tensor_is_walked():
    """Against onnx's own description of the format."""
    messages, left = {}, [onnx.ModelProto.DESCRIPTOR]
    while left:
        message = left.pop()
        if message.name not in messages:
            inner = {f.number: f.message_type for f in message.fields if f.message_type}
            messages[message.name] = {number: kind.name for number, kind in inner.items()}
            left += inner.values()
    holding = {"TensorProto"}
    while more := {n for n, f in messages.items() if holding & {*f.values()}} - holding:
        holding |= more
    expected = {
        name: {number: kind for number, kind in messages[name].items() if kind in holding}
        for name in holding - {"TensorProto"}
    }
    assert expected == _modelproto._INSIDE
    fields = TensorProto.DESCRIPTOR.fields_by_name
    assert fields["external_data"].number == _modelproto._EXTERNAL_DATA
    assert fields["data_location"].number == _modelproto._DATA_LOCATION


def test_default_data_location_is_accepted(artifact_path, tmp_path):
    model = onnx.load(artifact_path)
    for tensor in model.graph.initializer:
        tensor.data_location = TensorProto.DEFAULT
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    assert onnxrt.read_manifest(tmp_path / "m.onnx").nc == 3


def number(value):
    return _modelproto._number(value)


def field(tag, content):
    return number(tag << 3 | 2) + number(len(content)) + content


GRAPH = field(7, b"")
NESTED = b""
for _ in range(2000):
    NESTED = field(1, field(5, field(6, NESTED)))
FILES = {
    "empty": (b"", "no graph"),
    "two graphs": (GRAPH * 2, "2 graphs"),
    "a graph as a number": (b"\x38\x00", "no graph"),
    "many empty entries": (GRAPH + b"\x72\x00" * 600_000, "fields"),
    "many empty nodes": (field(7, b"\x0a\x00" * 600_000), "fields"),
    "many numbers": (GRAPH + b"\x08\x01" * 600_000, "fields"),
    "many empty tensors": (field(7, b"\x2a\x00" * 600_000), "fields"),
    "a group": (GRAPH + b"\x0b\x0c", "no field starts"),
    "field 0": (GRAPH + b"\x02\x00", "ends at"),
    # Engines cut the number of a field to 29 bits: this is a graph for them.
    "a number too large": (GRAPH + number((1 << 32) + (7 << 3 | 2)) + b"\x00", "ends at"),
    "a length too large": (GRAPH + b"\x0a" + number(2**62), "ends at"),
    "a length of ten bytes": (GRAPH + b"\x0a" + b"\xff" * 9 + b"\x01", "ends at"),
    "a number without an end": (GRAPH + b"\x08" + b"\xff" * 11, "longer than 10 bytes"),
    "half a number": (GRAPH + b"\x08\xff", "inside a number"),
    "an inner length too large": (field(7, b"\x0a\x7f"), "ends at"),
}


@pytest.mark.parametrize("name", FILES)
def test_malformed_files_are_refused(tmp_path, name):
    content, match = FILES[name]
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    started = time.process_time()
    for read in (registry.load, lambda p: onnxrt.payload_digest((p,))):
        with pytest.raises(ArtifactError, match=f"not a whole ONNX file .*{match}"):
            read(path)
    assert time.process_time() - started < 10


def test_nested_graphs_do_not_use_the_stack(tmp_path):
    (tmp_path / "m.onnx").write_bytes(field(7, NESTED))
    assert _modelproto.read_metadata(tmp_path / "m.onnx", "y7edge", MANIFEST_LIMIT) is None


def test_a_file_that_changes_while_it_is_read(artifact_path, tmp_path):
    """Truncated and overwritten in place, again and again: an error or the manifest, no crash."""
    path, whole = tmp_path / "m.onnx", artifact_path.read_bytes()
    path.write_bytes(whole)
    stop, results = threading.Event(), []

    def overwrite():
        with path.open("r+b") as stream:
            while not stop.is_set():
                for content in (whole[:100], b"\x0a" * len(whole), whole):
                    os.truncate(path, 0)
                    stream.seek(0)
                    stream.write(content)
                    stream.flush()

    writer = threading.Thread(target=overwrite)
    writer.start()
    try:
        for _ in range(150):
            try:
                results.append(registry.check_payload(registry.load(path)))
            except (ArtifactError, DigestError) as error:
                results.append(type(error).__name__)
    finally:
        stop.set()
        writer.join()
    assert set(results) <= {registry.load(artifact_path).manifest.payload_digest, "ArtifactError",
                            "DigestError"}  # fmt: skip


def test_the_engine_does_not_map_the_file(artifact_path, tmp_path):
    copy = tampering.rewrite(artifact_path, tmp_path / "m.onnx")
    with Detector(copy) as detector:
        maps = Path("/proc/self/maps")
        if maps.exists():
            assert str(copy) not in maps.read_text()
        expected = detector(np.full((64, 64, 3), 90, np.uint8))
        os.truncate(copy, 0)
        assert len(detector(np.full((64, 64, 3), 90, np.uint8))) == len(expected)
        with pytest.raises(Y7EdgeError):
            Detector(copy)


def test_engine_reads_external_data(tmp_path):
    """The test above is worth something: ONNX Runtime does read such a file."""
    weights = np.full(4, 7, np.float32)
    tensor = numpy_helper.from_array(weights, "w")
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
    node = helper.make_node("Identity", ["w"], ["y"])
    graph = helper.make_graph([node], "g", [], [output], [tensor])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    convert_model_to_external_data(model, location="w.bin", size_threshold=0)
    onnx.save(model, tmp_path / "m.onnx")
    (tmp_path / "w.bin").write_bytes(np.zeros(4, np.float32).tobytes())
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    assert (session.run(None, {})[0] == 0).all()


# --- quantisation --------------------------------------------------------------------------------


def quantised(path, node, *, inputs, **tensors):
    """A file with one node; ``tensors``: arrays of the initializers."""
    graph = helper.make_graph(
        [helper.make_node(node, inputs, ["y"], name="/node")],
        "g",
        [],
        [],
        initializer=[numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    path.write_bytes(helper.make_model(graph).SerializeToString())
    return path


@pytest.mark.parametrize(
    ("node", "inputs", "tensors", "dtype", "symmetric"),
    [
        ("QuantizeLinear", ["x", "s", "z"], {"z": np.int8(0)}, "int8", True),
        ("QuantizeLinear", ["x", "s", "z"], {"z": np.int8(1)}, "int8", False),
        ("QuantizeLinear", ["x", "s", "z"], {"z": np.zeros(300, np.int8)}, "int8", True),
        ("QuantizeLinear", ["x", "s", "z"], {"z": np.eye(30, dtype=np.int8)}, "int8", False),
        ("QuantizeLinear", ["x", "s", "z"], {"z": np.uint8(0)}, "uint8", True),
        ("QuantizeLinear", ["x", "s", "z"], {}, "", None),
        ("QuantizeLinear", ["x", "s"], {}, "uint8", True),
        ("QuantizeLinear", ["x", "s", ""], {}, "uint8", True),
        ("DequantizeLinear", ["x", "s"], {}, "", True),
        ("DequantizeLinear", ["x", "s"], {"x": np.ones(3, np.int32)}, "int32", True),
        ("DequantizeLinear", ["x", "s", "z"], {"z": np.int32(0)}, "int32", True),
        ("DequantizeLinear", ["x", "s", "z"], {"z": np.int32(-4)}, "int32", False),
    ],
)
def test_zero_points(tmp_path, node, inputs, tensors, dtype, symmetric):
    arrays = {name: np.asarray(array) for name, array in tensors.items()}
    path = quantised(tmp_path / "m.onnx", node, inputs=inputs, **arrays)
    assert _modelproto.read_quantizers(path) == (
        _modelproto.Quantizer("/node", node, dtype, symmetric),
    )


@pytest.mark.parametrize(("values", "symmetric"), [([0], True), ([0, 3], False), ([], None)])
@pytest.mark.parametrize("kind", [TensorProto.INT8, TensorProto.INT32])
def test_zero_points_in_the_field_for_integers(tmp_path, kind, values, symmetric):
    path = quantised(tmp_path / "m.onnx", "QuantizeLinear", inputs=["x", "s", "z"])
    model = onnx.load(path)
    tensor = TensorProto(name="z", data_type=kind, dims=[len(values)], int32_data=values)
    model.graph.initializer.append(tensor)
    path.write_bytes(model.SerializeToString())
    assert _modelproto.read_quantizers(path)[0].symmetric is symmetric


def test_other_graphs_have_no_quantizers(artifact_path, tmp_path):
    assert _modelproto.read_quantizers(artifact_path) == ()
    path = quantised(tmp_path / "m.onnx", "QuantizeLinear", inputs=["x", "s", "z"], z=np.int8(0))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ArtifactError, match="not a whole ONNX file"):
        _modelproto.read_quantizers(path)


# --- an attribute replaced -----------------------------------------------------------------------


@pytest.fixture
def context(tmp_path):
    """A file with one node that names another file, and with metadata."""
    values = {"embed_mode": 0, "ep_cache_context": "a.bin", "notes": "ep_cache_context"}
    node = helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft", **values)
    ends = (helper.make_tensor_value_info(name, 1, [1]) for name in "xy")
    proto = helper.make_model(helper.make_graph([node], "g", *([end] for end in ends)))
    helper.set_model_props(proto, {"other": "kept", "y7edge": "manifest"})
    path = tmp_path / "context.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.parametrize("name", ["b.bin", "ö" * 300, ""])
def test_an_attribute_is_replaced_and_nothing_else(context, name):
    expected = onnx.load(context)
    for attribute in expected.graph.node[0].attribute:
        if attribute.name == "ep_cache_context":
            attribute.s = name.encode()
    changed = _modelproto.with_attribute(context, "ep_cache_context", name, MANIFEST_LIMIT)
    assert onnx.load_from_string(changed) == expected


def test_a_large_or_damaged_file_has_no_attribute_replaced(context):
    with pytest.raises(ArtifactError, match="bytes, expected at most 10"):
        _modelproto.with_attribute(context, "ep_cache_context", "b", 10)
    context.write_bytes(context.read_bytes()[:-3])
    with pytest.raises(ArtifactError, match="not a whole ONNX file"):
        _modelproto.with_attribute(context, "ep_cache_context", "b", MANIFEST_LIMIT)


def test_only_the_manifest_is_left_out(context):
    left = onnx.load_from_string(_modelproto.without_manifest(context))
    assert {entry.key: entry.value for entry in left.metadata_props} == {"other": "kept"}
    assert left.graph == onnx.load(context).graph
