"""Target triton: the configuration against the fields of the server, and the client."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import onnx
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from tests.export import handovers
from tests.export.test_calibration_files import DEMO
from y7edge import Detector
from y7edge.data.synthetic import scenes
from y7edge.models import weights
from y7edge.runtimes import handover

FIELD = descriptor_pb2.FieldDescriptorProto
# Fields of github.com/triton-inference-server/common, protobuf/model_config.proto (BSD-3), which
# `DESCRIPTOR` of tritonclient 2.60 has too: name, number, type, repeated.
MESSAGES = {
    "ModelConfig": [
        ("name", 1, "string", False),
        ("platform", 2, "string", False),
        ("backend", 17, "string", False),
        ("max_batch_size", 4, "int32", False),
        ("input", 5, "ModelInput", True),
        ("output", 6, "ModelOutput", True),
        ("instance_group", 7, "ModelInstanceGroup", True),
        ("dynamic_batching", 11, "ModelDynamicBatching", False),
        ("default_model_filename", 8, "string", False),
    ],
    "ModelInput": [
        ("name", 1, "string", False),
        ("data_type", 2, "DataType", False),
        ("format", 3, "int32", False),
        ("dims", 4, "int64", True),
    ],
    "ModelOutput": [
        ("name", 1, "string", False),
        ("data_type", 2, "DataType", False),
        ("dims", 3, "int64", True),
    ],
    "ModelInstanceGroup": [
        ("name", 1, "string", False),
        ("kind", 4, "Kind", False),
        ("count", 2, "int32", False),
        ("gpus", 3, "int32", True),
    ],
    "ModelDynamicBatching": [
        ("preferred_batch_size", 1, "int32", True),
        ("max_queue_delay_microseconds", 2, "uint64", False),
    ],
}
ENUMS = {
    "DataType": {
        "TYPE_INVALID": 0,
        "TYPE_UINT8": 2,
        "TYPE_INT8": 6,
        "TYPE_FP16": 10,
        "TYPE_FP32": 11,
    },
    "Kind": {"KIND_AUTO": 0, "KIND_GPU": 1, "KIND_CPU": 2, "KIND_MODEL": 3},
}
ONNX_TYPES = {onnx.TensorProto.FLOAT: 11, onnx.TensorProto.FLOAT16: 10, onnx.TensorProto.UINT8: 2}


def config_class():
    """The message ``ModelConfig``."""
    file = descriptor_pb2.FileDescriptorProto(name="model.proto", package="t", syntax="proto3")
    for name, values in ENUMS.items():
        enum = file.enum_type.add(name=name)
        for key, number in values.items():
            enum.value.add(name=key, number=number)
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, number, kind, repeated in fields:
            label = FIELD.LABEL_REPEATED if repeated else FIELD.LABEL_OPTIONAL
            added = message.field.add(name=field, number=number, label=label)
            if kind in MESSAGES or kind in ENUMS:
                added.type = FIELD.TYPE_MESSAGE if kind in MESSAGES else FIELD.TYPE_ENUM
                added.type_name = f".t.{kind}"
            else:
                added.type = getattr(FIELD, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.ModelConfig"))


CONFIG = config_class()


def read(made):
    """The configuration, and the graph beside it."""
    listing = handover.read_listing(made.path)
    path = made.path / listing.model
    config = text_format.Parse((path.parents[1] / "config.pbtxt").read_text(), CONFIG())
    assert path.parent.name == "1"
    assert path.parents[1].name == config.name
    return config, onnx.load(path)


def dims(value):
    return [
        d.dim_value if d.HasField("dim_value") else -1 for d in value.type.tensor_type.shape.dim
    ]


KINDS = [
    ({}, {}),
    ({"input": "uint8", "outputs": "decoded"}, {}),
    ({"batch": 2, "precision": "fp16"}, {"device": "gpu", "instances": "2"}),
    ({"batch": None}, {"max-batch": "4", "queue-delay": "100", "name": "parts.v1-a_b"}),
    ({"batch": None, "input": "uint8"}, {"device": "cpu"}),
]


@pytest.mark.parametrize(("kinds", "options"), KINDS)
def test_configuration_is_that_of_the_graph(kinds, options, narrow_tiny, tmp_path):
    made = handovers.build("triton", narrow_tiny, tmp_path / "m", options=options, **kinds)
    config, model = read(made)
    assert (config.name, config.backend) == (options.get("name", "yolov7"), "onnxruntime")
    dynamic = kinds.get("batch", 1) is None
    assert config.max_batch_size == (int(options.get("max-batch", 8)) if dynamic else 0)
    for described, values in (
        (config.input, model.graph.input),
        (config.output, model.graph.output),
    ):
        assert [tensor.name for tensor in described] == [value.name for value in values]
        for tensor, value in zip(described, values, strict=True):
            shape = dims(value)
            assert list(tensor.dims) == (shape[1:] if dynamic else shape)
            assert tensor.data_type == ONNX_TYPES[value.type.tensor_type.elem_type]
    (group,) = config.instance_group
    kind = {"auto": 0, "gpu": 1, "cpu": 2}[options.get("device", "auto")]
    assert (group.kind, group.count) == (kind, int(options.get("instances", 1)))
    assert config.HasField("dynamic_batching") == ("queue-delay" in options)
    if "queue-delay" in options:
        assert config.dynamic_batching.max_queue_delay_microseconds == 100


def test_repository_has_nothing_but_the_model(narrow_tiny, tmp_path):
    made = handovers.build("triton", narrow_tiny, tmp_path / "m")
    files = sorted(p.relative_to(made.path).as_posix() for p in (made.path / "models").rglob("*"))
    assert files == [
        *("models/yolov7", "models/yolov7/1", "models/yolov7/1/model.onnx"),
        "models/yolov7/config.pbtxt",
    ]


# The classes and arguments of tritonclient.http 2.60; the "server" is ONNX Runtime.
TRITONCLIENT = """
import os
import numpy as np
import onnxruntime
_TYPES = {"FP32": np.float32, "UINT8": np.uint8}
class InferInput:
    def __init__(self, name, shape, datatype):
        self.name, self.shape, self.dtype = name, list(shape), _TYPES[datatype]
    def set_data_from_numpy(self, input_tensor, binary_data=True):
        assert input_tensor.dtype == self.dtype and list(input_tensor.shape) == self.shape
        self.data = input_tensor
class InferResult:
    def __init__(self, arrays):
        self.arrays = arrays
    def as_numpy(self, name):
        return self.arrays[name]
class InferenceServerClient:
    def __init__(self, url, verbose=False, concurrency=1):
        assert url == "host:1"
    def infer(self, model_name, inputs, model_version="", outputs=None):
        path = os.path.join(os.environ["REPOSITORY"], model_name, "1", "model.onnx")
        session = onnxruntime.InferenceSession(path)
        names = [value.name for value in session.get_outputs()]
        found = session.run(names, {tensor.name: tensor.data for tensor in inputs})
        return InferResult(dict(zip(names, found)))
"""


@pytest.mark.parametrize(
    "kinds",
    [{}, {"batch": 2, "outputs": "decoded"}, {"input": "uint8", "outputs": "heads-sigmoid"}],
)
def test_client_prints_the_detections_of_the_detector(kinds, parts_model, tmp_path):
    checkpoint = weights.load(DEMO)
    made = handovers.build("triton", checkpoint, tmp_path / "m", imgsz=(160, 160), **kinds)
    handover.write_manifest(made_with_digest(made))
    package = tmp_path / "vendor" / "tritonclient"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "http.py").write_text(TRITONCLIENT)
    image = scenes.scene(1, (120, 160)).image
    cv2.imwrite(str(tmp_path / "image.png"), image)
    done = subprocess.run(
        [sys.executable, "client.py", str(tmp_path / "image.png"), "--url", "host:1"],
        cwd=made.path,
        env={
            **os.environ,
            "PYTHONPATH": f"{package.parent}{os.pathsep}{Path(__file__).parents[2]}",
            "REPOSITORY": str(made.path / "models"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with Detector(parts_model) as detector:
        expected = detector(image)
    rows = [line.split() for line in done.stdout.splitlines()]
    assert len(rows) == len(expected) > 0
    for row, found in zip(rows, expected, strict=True):
        assert row[0] == checkpoint.names[found.class_id]
        assert float(row[1]) == pytest.approx(found.confidence, abs=0.002)
        assert [float(value) for value in row[2:]] == pytest.approx(list(found.xyxy), abs=0.11)


def made_with_digest(made):
    """The artifact with the payload digest that an export writes."""
    digest = handover.payload_digest((made.path,))
    return replace(made, manifest=replace(made.manifest, payload_digest=digest))
