"""What all folders for vendors' toolchains have in common: scripts, README, options, names."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import onnx
import pytest

from tests.export import handovers
from tests.export.test_calibration_files import DEMO
from y7edge import Detector
from y7edge.artifact.description import describe
from y7edge.data.images import read_image
from y7edge.errors import ConfigError
from y7edge.export import handover_folder
from y7edge.models import registry as models
from y7edge.models import weights
from y7edge.models.scaling import scale
from y7edge.nn.random_weights import random_weights
from y7edge.runtimes import handover

NAMES = ("hailo", "kneron", "luxonis", "qualcomm", "triton")


@pytest.fixture(scope="module")
def calibration(tmp_path_factory):
    return handovers.make_images(tmp_path_factory.mktemp("images") / "images")


@pytest.fixture(scope="module")
def folders(narrow_tiny, calibration, tmp_path_factory):
    root = tmp_path_factory.mktemp("folders")
    return {
        name: handovers.build(name, narrow_tiny, root / name, calibration).path for name in NAMES
    }


@pytest.mark.parametrize("name", NAMES)
def test_scripts_compile(name, folders):
    scripts = sorted(path for path in folders[name].rglob("*") if path.suffix in (".py", ".sh"))
    assert scripts or name == "luxonis"
    for path in scripts:
        if path.suffix == ".py":
            # The vendors' environments have older interpreters than y7edge.
            tree = ast.parse(path.read_text(), feature_version=(3, 8))
            assert any(
                isinstance(node, ast.ImportFrom) and node.module == "__future__"
                for node in tree.body
            )
        else:
            subprocess.run(["sh", "-n", str(path)], check=True)
            if shutil.which("bash"):
                subprocess.run(["bash", "-n", str(path)], check=True)


@pytest.mark.parametrize("name", NAMES)
def test_readme_names_all_files_and_its_commands_are_valid(name, folders):
    text = (folders[name] / "README.md").read_text()
    listed = set(re.findall(r"^- `([^`]+)`:", text, re.M))
    for path in handover.read_listing(folders[name]).files:
        parents = {f"{path.split('/')[0]}/", path}
        assert parents & listed or path == "README.md", path
    for file in listed - {"manifest.json"}:  # written at the end of an export
        assert (folders[name] / file).exists(), file
    blocks = re.findall(r"```bash\n(.*?)```", text, re.S)
    assert blocks
    for block in blocks:
        subprocess.run(["sh", "-n"], input=block, text=True, check=True)
    for block in re.findall(r"```python\n(.*?)```", text, re.S):
        compile(block, "README", "exec")
    assert "Not run: " in text
    assert "head0" in text


@pytest.mark.parametrize("name", NAMES)
def test_the_same_request_gives_the_same_bytes(name, folders, narrow_tiny, calibration, tmp_path):
    again = handovers.build(name, narrow_tiny, tmp_path / "again", calibration).path
    assert (again / "files.json").read_bytes() == (folders[name] / "files.json").read_bytes()


def test_snippet_of_the_readme_returns_the_boxes_of_the_detector(
    calibration, tmp_path, parts_model
):
    checkpoint = weights.load(DEMO)
    made = handovers.build("hailo", checkpoint, tmp_path / "demo", calibration, imgsz=(160, 160))
    handover.write_manifest(made)
    image = read_image(calibration.images[0])
    source = re.search(r"```python\n(.*?)```", (made.path / "README.md").read_text(), re.S)[1]
    source = source.replace('Path(".")', f"Path({str(made.path)!r})")
    before, after = source.split("decode =")
    names = {"image": image}
    exec(before, names)
    heads = handovers.run(made.path / "model.onnx", names["preprocess"].tensor)
    names |= {f"head{index}": head for index, head in enumerate(heads)}
    exec(f"decode ={after}", names)
    with Detector(parts_model) as detector:
        expected = detector(image)
    assert len(expected) > 0
    np.testing.assert_allclose(names["xyxy"], expected.xyxy, atol=0.05)


def test_names_of_models_are_escaped(narrow_tiny, calibration, tmp_path):
    spec = replace(narrow_tiny.spec, name="a`b<img src=x>*")
    made = handovers.build("kneron", replace(narrow_tiny, spec=spec), tmp_path, calibration)
    text = (made.path / "README.md").read_text()
    assert text.startswith(r"# a\`b\<img src=x\>\* for Kneron KL730")
    assert "<img" not in text.replace(r"\<img", "")


@pytest.mark.parametrize("name", ["a'; rm -rf ~; '", "$(id)", "a b", "-x", "a\nb", "", "x" * 300])
def test_names_for_scripts_are_checked(name):
    with pytest.raises(ConfigError, match="expected letters, digits"):
        handover_folder.word(name)
    assert handover_folder.word("/row77/lead/0/Conv") == "/row77/lead/0/Conv"


WRONG = ("", "../x", 'a"b', "-a", "a" * 65, "a/b")
OPTIONS = [
    ("hailo", {"chip": "hailo9"}, "hailo8l"),
    ("hailo", {"nms": "gpu"}, "cpu, none"),
    ("luxonis", {"chip": "rvc3"}, "rvc2, rvc4"),
    ("kneron", {"chip": "kl520; rm"}, "kl530"),
    ("qualcomm", {"soc": "sm1\n"}, "qcs6490"),
    ("qualcomm", {"activations": "4"}, "16, 8"),
    *(
        ("triton", {"name": n}, "option name is")
        for n in ("", "../x", 'a"b', "-a", "a" * 65, "a/b")
    ),
    ("triton", {"device": "tpu"}, "auto, cpu, gpu"),
    ("triton", {"instances": "0"}, "1 to 64"),
    ("triton", {"max-batch": "8"}, "--dynamic"),
    ("triton", {"queue-delay": "8"}, "--dynamic"),
]


@pytest.mark.parametrize(("name", "options", "expected"), OPTIONS)
def test_values_of_options_are_checked(name, options, expected, narrow_tiny, calibration, tmp_path):
    with pytest.raises(ConfigError, match=re.escape(expected)) as caught:
        handovers.build(name, narrow_tiny, tmp_path / "x", calibration, options=options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "1e3", "", "١", "1025", "9" * 20, "0x10", " 8"])
def test_whole_numbers_are_checked(text):
    with pytest.raises(ConfigError, match="a whole number, 1 to 1024"):
        handover_folder.whole({"max-batch": text}, "max-batch", 8, 1024)
    assert handover_folder.whole({"max-batch": "1024"}, "max-batch", 8, 1024) == 1024


def test_images_are_required(narrow_tiny, tmp_path):
    for name in ("hailo", "kneron", "qualcomm"):
        with pytest.raises(ConfigError, match=r"needs calibration images.*--calib DATA"):
            handovers.build(name, narrow_tiny, tmp_path / name)


@pytest.mark.parametrize("outputs", ["heads", "heads-sigmoid"])
def test_the_only_class_is_certain(outputs, tmp_path):
    """A decoder that multiplies by the class probability gets the objectness, and equal boxes."""
    spec = scale(models.get("yolov7-tiny", nc=1), width=0.125)
    checkpoint = replace(random_weights(spec, seed=1), names=("nut",))
    made = handovers.build("luxonis", checkpoint, tmp_path / "x", outputs=outputs)
    graph = onnx.load(made.path / "model.onnx")
    changed = handover_folder.with_certain_class(graph, made.manifest)
    onnx.save(changed, tmp_path / "changed.onnx")
    array = np.random.default_rng(0).random((1, 3, *handovers.SIZE), np.float32)
    before = handovers.run(made.path / "model.onnx", array)
    after = handovers.run(tmp_path / "changed.onnx", array)
    for old, new in zip(before, after, strict=True):
        old, new = (head.reshape(3, 6, -1) for head in (old, new))
        np.testing.assert_array_equal(new[:, :5], old[:, :5])
        logit = handover_folder.CERTAIN
        expected = logit if outputs == "heads" else 1 / (1 + np.exp(-logit))
        np.testing.assert_allclose(new[:, 5], expected, rtol=1e-5)


def test_graphs_of_several_classes_stay_as_they_are(narrow_tiny, folders):
    graph = onnx.load(folders["luxonis"] / "model.onnx")
    manifest = describe(narrow_tiny, narrow_tiny.spec, handovers.SIZE, tools={})
    assert handover_folder.with_certain_class(graph, manifest) is graph


def test_audit_is_written_and_refuses(narrow_tiny, calibration, tmp_path):
    lines = []
    made = handovers.build(
        "kneron", narrow_tiny, tmp_path / "a", calibration, options={"chip": "kl720"}, lines=lines
    )
    text = (made.path / "audit.txt").read_text()
    assert "Kneron KL720: 100.0% of the multiplications" in text
    assert sum(line.startswith("cpu Resize") for line in text.splitlines()) == 2
    assert any("Resize" in line for line in lines)
    assert "`audit.txt`" in (made.path / "README.md").read_text()
    made = handovers.build(
        "kneron",
        narrow_tiny,
        tmp_path / "b",
        calibration,
        options={"chip": "kl720"},
        rewrites=("resize-per-axis",),
    )
    assert "cpu" not in (made.path / "audit.txt").read_text()
    spec = scale(models.get("yolov7", nc=3), width=0.125)
    silu = replace(random_weights(spec, seed=1), names=("a", "b", "c"))
    with pytest.raises(ConfigError, match=r"kl520 does not run .* Sigmoid"):
        handovers.build("kneron", silu, tmp_path / "c", calibration, options={"chip": "kl520"})
    assert json.loads((made.path / "files.json").read_text())["files"]["audit.txt"]
