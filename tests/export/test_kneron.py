"""Target kneron: the script for the container, run against stand-ins with the documented names."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest

from tests.export import handovers
from y7edge.data.images import read_image
from y7edge.export.targets import _kneron_convert as script

# Functions, arguments and defaults of chapters 3 to 5 of the manual of toolchain 0.25 to 0.33.
# https://doc.kneron.com/docs/toolchain/manual_3_onnx/, manual_4_bie/, manual_5_nef/
KNERONNXOPT = """
import calls
def optimize(model, duplicate_shared_weights=1, skip_check=False, overwrite_input_shapes=None,
             skipped_optimizers=None, skip_fuse_qkv=False, clear_descriptions=False,
             opt_matmul=False):
    calls.note("optimize")
    return model
"""
KTC = """
import shutil
from pathlib import Path
import numpy as np
import onnx
import onnxruntime
import calls
_BITS = dict(datapath_bitwidth_mode=None, weight_bitwidth_mode=None, model_in_bitwidth_mode=None,
             model_out_bitwidth_mode=None, cpu_node_bitwidth_mode=None)
class ModelConfig:
    def __init__(self, id, version, platform, onnx_model=None, onnx_path=None, bie_path=None,
                 radix_json_path=None, compiler_config_path=None, debug=False):
        assert isinstance(id, int) and len(version) == 4 and int(version, 16)
        assert platform in ("520", "720", "530", "630", "730")
        assert isinstance(onnx_model, onnx.ModelProto)
        self.model = onnx_model
        calls.note("ModelConfig", platform=platform, id=id)
    def evaluate(self, output_dir="/data1/kneron_flow", **bits):
        assert bits.keys() <= _BITS.keys() and Path(output_dir).is_absolute()
        calls.note("evaluate", **bits)
        return "fps"
    def analysis(self, input_mapping, output_dir="/data1/kneron_flow", threads=4,
                 quantize_mode="default", datapath_range_method="percentage", percentile=0.001,
                 outlier_factor=1.0, percentage=0.999, compiler_tiling="default", mode=1,
                 optimize=0, **bits):
        assert bits.keys() <= _BITS.keys()
        (name, arrays), = input_mapping.items()
        assert name == self.model.graph.input[0].name
        np.save(Path(output_dir) / "arrays.npy", np.concatenate(arrays))
        onnx.save(self.model, str(Path(output_dir) / "input.bie"))
        calls.note("analysis", percentage=percentage, quantize_mode=quantize_mode,
                   datapath_range_method=datapath_range_method, **bits)
        return str(Path(output_dir) / "input.bie")
def kneron_inference(input_data, onnx_file=None, bie_file=None, nef_file=None, input_names=(),
                     platform=520, model_id=None):
    assert platform in (520, 720, 530, 630, 730)
    assert bool(onnx_file) != bool(bie_file)
    session = onnxruntime.InferenceSession(onnx_file or bie_file)
    calls.note("kneron_inference", platform=platform, bie=bool(bie_file))
    return session.run(None, dict(zip(input_names, input_data)))
def compile(model_list, output_dir="/data1/kneron_flow", dedicated_output_buffer=True,
            weight_compress=False, hardware_cut_opt=False, flatbuffer=True):
    calls.note("compile", models=len(model_list))
    path = Path(output_dir) / "models.nef"
    path.write_bytes(b"nef")
    return str(path)
"""
CALLS = """
import json, os
def note(name, **arguments):
    with open(os.environ["CALLS"], "a") as stream:
        stream.write(json.dumps([name, arguments]) + "\\n")
"""


@pytest.fixture(scope="module")
def calibration(tmp_path_factory):
    return handovers.make_images(tmp_path_factory.mktemp("images") / "images")


def convert(folder, tmp_path, *arguments):
    """Run convert.py with the stand-ins; return its process and the recorded calls."""
    vendor, log = tmp_path / "vendor", tmp_path / "calls"
    vendor.mkdir()
    for name, text in (("ktc", KTC), ("kneronnxopt", KNERONNXOPT), ("calls", CALLS)):
        (vendor / f"{name}.py").write_text(text)
    done = subprocess.run(
        [sys.executable, str(folder / "convert.py"), *arguments],
        env={**os.environ, "PYTHONPATH": str(vendor), "CALLS": str(log)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = log.read_text().splitlines() if log.exists() else []
    return done, [json.loads(line) for line in lines]


def test_script_calls_the_toolchain_as_documented(narrow_tiny, calibration, tmp_path):
    made = handovers.build(
        "kneron", narrow_tiny, tmp_path / "m", calibration, options={"chip": "kl720"}
    )
    done, calls = convert(made.path, tmp_path)
    assert done.returncode == 0, done.stderr
    assert [name for name, _ in calls] == [
        *("optimize", "ModelConfig", "evaluate", "analysis"),
        *("kneron_inference", "kneron_inference", "compile"),
    ]
    by_name = dict(calls)
    assert by_name["ModelConfig"]["platform"] == "720"
    assert by_name["analysis"]["percentage"] == 1.0
    assert by_name["analysis"]["quantize_mode"] == "post_sigmoid"
    assert by_name["kneron_inference"] == {"platform": 720, "bie": True}
    assert done.stdout.count("cosine 1.00000") == 3
    assert (made.path / "kneron" / "models.nef").is_file()
    # What the quantiser reads is what KP_NORMALIZE_KNERON gives: pixel / 256 - 0.5.
    arrays = np.load(made.path / "kneron" / "arrays.npy")
    pixels = handovers.fed(calibration, made.manifest) * 255
    np.testing.assert_allclose(arrays[:1], np.round(pixels) / 256 - 0.5, atol=1e-7)
    assert arrays.min() >= -0.5
    assert arrays.max() < 0.5


def test_options_of_the_script(narrow_tiny, calibration, tmp_path):
    made = handovers.build("kneron", narrow_tiny, tmp_path / "m", calibration)
    done, calls = convert(
        made.path, tmp_path, "--bits", "int16", "--range-method", "mmse", "--id", "40000"
    )
    assert done.returncode == 0, done.stderr
    by_name = dict(calls)
    parts = ("datapath", "weight", "model_in", "model_out", "cpu_node")
    bits = {f"{part}_bitwidth_mode": "int16" for part in parts}
    assert by_name["evaluate"] == bits
    assert bits.items() <= by_name["analysis"].items()
    assert by_name["analysis"]["datapath_range_method"] == "mmse"
    assert by_name["ModelConfig"]["id"] == 40000
    for path in (made.path / "calibration" / "images").iterdir():
        path.unlink()
    (tmp_path / "again").mkdir()
    done, _ = convert(made.path, tmp_path / "again")
    assert "found none" in done.stderr
    assert "Traceback" not in done.stderr


def test_normalisation_is_exact_at_the_border_too(narrow_tiny, calibration, tmp_path):
    made = handovers.build("kneron", narrow_tiny, tmp_path / "m", calibration)
    model = onnx.load(made.path / "model.onnx")
    name = model.graph.input[0].name
    normalized = script.normalized(onnx.load(made.path / "model.onnx"), name)
    first = normalized.graph.node[0]
    assert first.op_type == "BatchNormalization"
    assert sum(name in node.input for node in normalized.graph.node) == 1
    assert [value.name for value in normalized.graph.input] == [name]
    onnx.save(normalized, tmp_path / "normalized.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (1, 3, *handovers.SIZE))
    expected = handovers.run(made.path / "model.onnx", (pixels / 255).astype(np.float32))
    kneron = (pixels / 256 - 0.5).astype(np.float32)
    found = handovers.run(tmp_path / "normalized.onnx", kneron)
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(other, one, atol=1e-4 * np.abs(one).max())
    # Without the node, values are wrong by far: the comparison above can fail.
    raw = handovers.run(made.path / "model.onnx", kneron)
    assert np.abs(raw[0] - expected[0]).max() > 0.01 * np.abs(expected[0]).max()


def test_images_are_in_rgb(narrow_tiny, calibration, tmp_path):
    made = handovers.build("kneron", narrow_tiny, tmp_path / "m", calibration)
    arrays = script.images(made.path / "calibration" / "images")
    image = read_image(calibration.images[0])
    assert len(arrays) == len(calibration.images)
    inside = (arrays[0][0].transpose(1, 2, 0) + 0.5) * 256
    means = inside.mean((0, 1)) - inside.mean()
    bgr = image.mean((0, 1)) - image.mean()
    assert np.abs(means - bgr[::-1]).max() < np.abs(means - bgr).max()


def test_readme_activates_the_environment_before_the_conversion(narrow_tiny, calibration, tmp_path):
    made = handovers.build("kneron", narrow_tiny, tmp_path / "m", calibration)
    text = (made.path / "README.md").read_text()
    assert 0 < text.index("conda activate onnx1.13\n") < text.index("python convert.py\n")


def test_readme_says_how_to_choose_boxes(narrow_tiny, calibration, tmp_path):
    made = handovers.build("kneron", narrow_tiny, tmp_path / "m", calibration)
    text, thresholds = (made.path / "README.md").read_text(), made.manifest.thresholds
    assert f"score is greater than {thresholds.conf:g}, then remove" in text
    assert f"of the same class is greater than {thresholds.iou:g}." in text
