"""Target hailo: the files for the compiler, and the script that calls it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from dataclasses import replace

import numpy as np
import onnx
import pytest

from tests.export import handovers
from y7edge.models import registry as models
from y7edge.models.scaling import scale
from y7edge.nn.random_weights import random_weights

# A `hailo` that records its arguments, and whose parser writes a HAR file as the real one.
PROGRAM = """#!/bin/sh
printf '%s\\n' "$*" >> "$CALLS"
if [ "$1" = parser ]; then cp "$HAR" model.har; fi
"""
SHAPES = {"conv43": (12, 16), "conv51": (6, 8), "conv58": (3, 4)}  # the levels of 96x128


def write_har(path, layers):
    content = json.dumps({"name": "model", "layers": layers}).encode()
    with tarfile.open(path, "w") as archive:
        entry = tarfile.TarInfo("model.hn")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))


def layers(shapes, *, outputs=True):
    """Layers of a network, out of order, with or without layers of type output_layer."""
    found = {"model/input_layer1": {"type": "input_layer", "output": ["model/conv1"]}}
    found["model/conv1"] = {"type": "conv", "output": ["model/conv43"], "output_shapes": [[-1, 48]]}
    for index, (name, (rows, columns)) in enumerate(reversed(shapes.items())):
        sink = f"model/output_layer{index + 1}"
        found[f"model/{name}"] = {
            "type": "conv",
            "output": [sink] if outputs else [],
            "output_shapes": [[-1, rows, columns, 24]],
        }
        if outputs:
            found[sink] = {"type": "output_layer", "input": [f"model/{name}"], "output": []}
    return found


@pytest.fixture(scope="module")
def calibration(tmp_path_factory):
    return handovers.make_images(tmp_path_factory.mktemp("images") / "images")


@pytest.fixture
def folder(narrow_tiny, calibration, tmp_path):
    options = {"chip": "hailo8l"}
    return handovers.build("hailo", narrow_tiny, tmp_path / "m", calibration, options=options).path


def convert(folder, tmp_path, har):
    """Run convert.sh with the stand-in; return its process and the recorded command lines."""
    programs, calls = tmp_path / "bin", tmp_path / "calls"
    programs.mkdir()
    (programs / "hailo").write_text(PROGRAM)
    (programs / "hailo").chmod(0o755)
    (programs / "python").symlink_to(sys.executable)
    write_har(tmp_path / "made.har", har)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", str(folder / "convert.sh")],
        env={**os.environ, "PATH": path, "CALLS": str(calls), "HAR": str(tmp_path / "made.har")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    return done, calls.read_text().splitlines()


@pytest.mark.parametrize("outputs", [True, False])
def test_script_calls_the_compiler(outputs, folder, tmp_path):
    listed = (folder / "files.json").read_bytes()
    done, calls = convert(folder, tmp_path, layers(SHAPES, outputs=outputs))
    assert done.returncode == 0, done.stderr
    ends = "/row77/lead/0/Conv /row77/lead/1/Conv /row77/lead/2/Conv"
    assert calls == [
        f"parser onnx model.onnx --net-name model --hw-arch hailo8l --har-path model.har "
        f"--end-node-names {ends}",
        "optimize model.har --hw-arch hailo8l --calib-set-path calibration/images.npy "
        "--model-script model.alls --output-har-path model_optimized.har",
        "compiler model_optimized.har --hw-arch hailo8l --output-dir .",
    ]
    writers = {name: node.name for node in onnx.load(folder / "model.onnx").graph.node
               for name in node.output}  # fmt: skip
    assert ends.split() == [writers[f"head{level}"] for level in range(3)]
    filled = json.loads((folder / "nms_layers.json").read_text())
    assert [d["encoded_layer"] for d in filled["bbox_decoders"]] == ["conv43", "conv51", "conv58"]
    template = json.loads((folder / "nms.json").read_text())
    for decoder in filled["bbox_decoders"]:
        decoder["encoded_layer"] = ""
    assert filled == template
    assert (folder / "files.json").read_bytes() == listed


def test_nms_configuration_has_the_keys_of_the_model_zoo(folder, narrow_tiny):
    found = json.loads((folder / "nms.json").read_text())
    assert found["image_dims"] == [96, 128]
    assert (found["classes"], found["nms_iou_th"]) == (3, 0.45)
    decoder = found["bbox_decoders"][0]
    assert decoder == {
        "name": "bbox_decoder_8",
        "w": [w for w, _ in narrow_tiny.spec.anchors[0]],
        "h": [h for _, h in narrow_tiny.spec.anchors[0]],
        "stride": 8,
        "encoded_layer": "",
    }
    # https://github.com/hailo-ai/hailo_model_zoo, yolov7_tiny_nms_config.json
    assert set(found) == {
        *("nms_scores_th", "nms_iou_th", "image_dims", "max_proposals_per_class"),
        *("background_removal", "classes", "bbox_decoders"),
    }
    assert (folder / "model.alls").read_text().splitlines() == [
        "normalization1 = normalization([0.0, 0.0, 0.0], [255.0, 255.0, 255.0])",
        "change_output_activation(sigmoid)",
        'nms_postprocess("nms_layers.json", yolov5, engine=cpu)',
        "model_optimization_config(calibration, batch_size=2, calibset_size=3)",
    ]


def test_calibration_is_one_array_of_pixels(folder, calibration, narrow_tiny, tmp_path):
    found = np.load(folder / "calibration" / "images.npy")
    assert (found.shape, found.dtype) == ((3, 96, 128, 3), np.uint8)
    made = handovers.build("hailo", narrow_tiny, tmp_path / "o", calibration)
    expected = handovers.fed(calibration, made.manifest)[0].transpose(1, 2, 0) * 255
    np.testing.assert_allclose(found[0], expected, atol=1e-4)


def test_without_nms_the_outputs_are_raw(narrow_tiny, calibration, tmp_path):
    options = {"nms": "none", "chip": "hailo15h"}
    made = handovers.build("hailo", narrow_tiny, tmp_path / "m", calibration, options=options)
    names = {path.name for path in made.path.iterdir()}
    assert not names & {"nms.json", "layers.py", "hailo.onnx"}
    assert "nms" not in (made.path / "model.alls").read_text()
    assert "sigmoid" not in (made.path / "model.alls").read_text()
    done, calls = convert(made.path, tmp_path, {})
    assert done.returncode == 0, done.stderr
    assert all("--hw-arch hailo15h" in call for call in calls)
    assert 'layout="NHWC"' in (made.path / "README.md").read_text()


def test_the_class_of_a_model_with_one_is_certain(calibration, tmp_path):
    spec = scale(models.get("yolov7-tiny", nc=1), width=0.125)
    checkpoint = replace(random_weights(spec, seed=1), names=("nut",))
    made = handovers.build("hailo", checkpoint, tmp_path / "m", calibration)
    assert "parser onnx hailo.onnx" in (made.path / "convert.sh").read_text()
    array = handovers.fed(calibration, made.manifest)
    for head in handovers.run(made.path / "hailo.onnx", array):
        assert np.ptp(head.reshape(3, 6, -1)[:, 5]) == 0
    assert "`hailo.onnx`: " in (made.path / "README.md").read_text()


@pytest.mark.parametrize(
    ("har", "expected"),
    [
        (layers({**SHAPES, "conv51": (7, 8)}), "expected outputs with"),
        (layers({"conv43": (12, 16)}), "expected outputs with"),
        ({"model/conv1": {"type": "conv"}}, "has another form"),
        ({}, "expected outputs with"),
    ],
)
def test_other_layers_are_explained(har, expected, folder, tmp_path):
    done, calls = convert(folder, tmp_path, har)
    assert done.returncode == 1
    assert expected in done.stderr
    assert "by hand" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(calls) == 1  # neither optimised nor compiled
    assert not (folder / "nms_layers.json").exists()


def test_a_file_that_is_no_har_is_refused(folder, tmp_path):
    (tmp_path / "x.har").write_bytes(b"no archive")
    done = subprocess.run(
        [sys.executable, str(folder / "layers.py"), str(tmp_path / "x.har")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "expected a HAR file" in done.stderr
