"""Target luxonis: the NN Archive, its model and its configuration."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.export import handovers
from y7edge.models import registry as models
from y7edge.models.scaling import scale
from y7edge.nn.random_weights import random_weights

VARIABLE = "Y7EDGE_LUXONIS_PYTHON"
OUTPUTS = ["output1_yolov7", "output2_yolov7", "output3_yolov7"]


@pytest.fixture(scope="module")
def made(narrow_tiny, tmp_path_factory):
    return handovers.build("luxonis", narrow_tiny, tmp_path_factory.mktemp("m") / "m")


def contents(path):
    with tarfile.open(path, "r:xz") as archive:
        return {entry.name: archive.extractfile(entry).read() for entry in archive.getmembers()}


def test_archive_has_configuration_and_model(made):
    files = contents(made.path / "model.tar.xz")
    assert set(files) == {"config.json", "model.onnx"}
    assert files["config.json"] == (made.path / "config.json").read_bytes()
    config = json.loads(files["config.json"])
    assert config["model"]["metadata"]["path"] in files
    with tarfile.open(made.path / "model.tar.xz", "r:xz") as archive:
        for entry in archive.getmembers():
            assert (entry.mtime, entry.uid, entry.gid, entry.uname) == (0, 0, 0, "")


def test_outputs_are_those_of_the_proved_model(made, tmp_path):
    content = contents(made.path / "model.tar.xz")["model.onnx"]
    (tmp_path / "m.onnx").write_bytes(content)
    model = onnx.load_model(io.BytesIO(content))
    onnx.checker.check_model(model, full_check=True)
    assert [value.name for value in model.graph.output] == OUTPUTS
    array = np.random.default_rng(0).random((1, 3, *handovers.SIZE), np.float32)
    expected = handovers.run(made.path / "model.onnx", array)
    found = handovers.run(tmp_path / "m.onnx", array)
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one, other)
        assert 0 <= other.min() <= other.max() <= 1  # DepthAI expects probabilities


def test_configuration_describes_the_head(made, narrow_tiny):
    model = json.loads((made.path / "config.json").read_text())["model"]
    (image,), (head,) = model["inputs"], model["heads"]
    assert image["shape"] == [1, 3, *handovers.SIZE]
    assert image["preprocessing"] == {
        "mean": [0.0, 0.0, 0.0],
        "scale": [255.0, 255.0, 255.0],
        "dai_type": "RGB888p",
        "resize_mode": "LETTERBOX",
    }
    assert [output["name"] for output in model["outputs"]] == head["outputs"] == OUTPUTS
    assert [output["shape"][2:] for output in model["outputs"]] == [[12, 16], [6, 8], [3, 4]]
    metadata = head["metadata"]
    assert (head["parser"], metadata["subtype"]) == ("YOLOExtendedParser", "yolov7")
    assert metadata["yolo_outputs"] == OUTPUTS
    assert metadata["classes"] == list(narrow_tiny.names)
    assert metadata["n_classes"] == 3
    assert metadata["strides"] == [8, 16, 32]
    anchors = [[list(pair) for pair in level] for level in narrow_tiny.spec.anchors]
    assert metadata["anchors"] == anchors
    assert "setStrides" not in (made.path / "README.md").read_text()


def test_only_class_is_certain_in_the_archive(tmp_path):
    spec = scale(models.get("yolov7-tiny", nc=1), width=0.125)
    checkpoint = replace(random_weights(spec, seed=1), names=("nut",))
    made = handovers.build("luxonis", checkpoint, tmp_path / "m")
    (tmp_path / "m.onnx").write_bytes(contents(made.path / "model.tar.xz")["model.onnx"])
    array = np.random.default_rng(0).random((1, 3, *handovers.SIZE), np.float32)
    for head in handovers.run(tmp_path / "m.onnx", array):
        np.testing.assert_allclose(head.reshape(3, 6, -1)[:, 5], 1, atol=4e-4)


def test_models_of_four_levels_say_what_to_call(tmp_path):
    spec = scale(models.get("yolov7-w6", nc=2), width=0.0625)
    checkpoint = replace(random_weights(spec, seed=1), names=("nut", "screw"))
    made = handovers.build("luxonis", checkpoint, tmp_path / "m", imgsz=(128, 128))
    metadata = json.loads((made.path / "config.json").read_text())["model"]["heads"][0]["metadata"]
    assert metadata["strides"] == [8, 16, 32, 64]
    assert len(metadata["yolo_outputs"]) == len(metadata["anchors"]) == 4
    assert "call `setStrides`" in (made.path / "README.md").read_text()


@pytest.mark.parametrize(("chip", "calibrated"), [("rvc2", False), ("rvc4", True)])
def test_commands_are_those_of_the_camera(chip, calibrated, narrow_tiny, tmp_path):
    made = handovers.build("luxonis", narrow_tiny, tmp_path / "m", options={"chip": chip})
    text = (made.path / "README.md").read_text()
    assert f"modelconverter convert {chip} --path model.tar.xz" in text
    assert ("calibration.path calibration/images" in text) == calibrated
    assert f"Luxonis OAK, {chip.upper()}" in text


@pytest.mark.skipif(
    not os.environ.get(VARIABLE), reason=f"{VARIABLE} names no interpreter with luxonis-ml"
)
def test_luxonis_ml_accepts_the_configuration(made):
    script = Path(__file__).with_name("luxonis_check.py")
    done = subprocess.run(
        [os.environ[VARIABLE], str(script), str(made.path / "config.json")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    read = json.loads(done.stdout)
    written = json.loads((made.path / "config.json").read_text())
    assert read == written  # no key is unknown or ignored
