"""Hand-over folders: the proved model runs from the folder, and changed files are refused."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest

from y7edge import Detector
from y7edge.cli import main
from y7edge.detect.selftest import selftest
from y7edge.errors import ArtifactError, ArtifactMissing, ConfigError, DigestError
from y7edge.export import export, verify
from y7edge.export.delivery import require_destination
from y7edge.export.targets import registry as targets
from y7edge.files import sha256_file
from y7edge.runtimes import handover, registry
from y7edge.runtimes.base import SessionOptions

SIZE = (64, 96)
CONFIG, MODEL = "models/yolov7/config.pbtxt", "models/yolov7/1/model.onnx"


@pytest.fixture(scope="module")
def kept(narrow_tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("handover") / "robot.triton.handover"
    return export(narrow_tiny, out, target="triton", imgsz=SIZE).path


@pytest.fixture
def folder(kept, tmp_path):
    return shutil.copytree(kept, tmp_path / "moved.triton.handover")


def listed(folder, **values):
    """Change files.json."""
    path = folder / "files.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_moved_folder_runs_the_proved_model(folder, narrow_tiny, tmp_path):
    assert selftest(folder).status == verify(folder, narrow_tiny).status == "passed"
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    plain = export(narrow_tiny, tmp_path / "plain.onnx", imgsz=SIZE).path
    found, expected = Detector(folder, conf=0.01), Detector(plain, conf=0.01)
    assert found.info["backend"] == "handover"
    np.testing.assert_allclose(found(image).xyxy, expected(image).xyxy, atol=1e-2)


def test_the_digest_covers_each_file(folder, narrow_tiny, capfd):
    names = handover.read_listing(folder).files
    assert set(names) == {MODEL, CONFIG, "README.md", "client.py"}
    for name in names:
        raw = (folder / name).read_bytes()
        for damaged in (raw[:-1], raw + b"\n", bytes([raw[0] ^ 1]) + raw[1:], b""):
            (folder / name).write_bytes(damaged)
            refusing = [selftest, lambda path: verify(path, narrow_tiny)]
            for refuse in refusing + [Detector] * name.endswith(".onnx"):
                with pytest.raises(DigestError, match=rf"{name} was changed after it was proved"):
                    refuse(folder)
        (folder / name).write_bytes(raw)
    assert main(["selftest", str(folder)]) == 0
    (folder / CONFIG).write_text("{}")
    assert main(["selftest", str(folder)]) == 4
    assert "config.pbtxt was changed" in capfd.readouterr().err


def test_the_listing_itself_is_covered(folder):
    (folder / MODEL).write_bytes(b"another model")
    listed(folder, files={MODEL: sha256_file(folder / MODEL)})
    for refuse in (selftest, Detector):
        with pytest.raises(DigestError, match="changed after it was proved"):
            refuse(folder)


@pytest.mark.parametrize("name", ["manifest.json", "files.json", MODEL])
def test_a_missing_or_special_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=name):
        Detector(folder)
    os.mkfifo(folder / name)
    with pytest.raises(ArtifactError, match=name):
        Detector(folder)


def test_files_of_the_vendors_tools_may_be_added(folder):
    (folder / "converted.bin").write_bytes(b"made by the vendor's converter")
    assert selftest(folder).status == "passed"


def test_an_export_does_not_delete_what_others_wrote(folder):
    target, before = targets.get("triton"), sorted(folder.rglob("*"))
    require_destination(folder, "triton", target)  # its own files may be replaced
    made = folder / "out" / "robot.hef"
    made.parent.mkdir()
    made.write_bytes(b"compiled for hours")
    with pytest.raises(
        ConfigError, match=r"also contains out/robot\.hef, which the export did not"
    ):
        require_destination(folder, "triton", target)
    (folder / "notes").symlink_to("missing")
    with pytest.raises(ConfigError, match="contains notes and 1 more"):
        require_destination(folder, "triton", target)
    (folder / "files.json").write_text("{}")
    with pytest.raises(ConfigError, match="remove the folder, or choose another name"):
        require_destination(folder, "triton", target)
    assert set(before) < set(folder.rglob("*"))


@pytest.mark.parametrize(
    "name",
    [
        *("../model.onnx", "/etc/passwd", "a/../../model.onnx", "", ".", "a//b.onnx"),
        *("a\\b.onnx", "line\nbreak.onnx", "\x1b[2Jmodel.onnx"),
    ],
)
def test_names_outside_the_folder_are_refused(folder, name):
    listed(folder, model=name, files={name: "0" * 64})
    with pytest.raises(ArtifactError, match="expected a name of a file in the folder") as caught:
        selftest(folder)
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)


def test_a_link_out_of_the_folder_is_refused(folder, artifact_path):
    model = folder / MODEL
    model.unlink()
    model.symlink_to(artifact_path)
    with pytest.raises(ArtifactError, match="is not a file in the folder"):
        selftest(folder)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"model": "yolov7/config.pbtxt"}, "names the model"),
        ({"model": "other.onnx"}, "names the model"),
        ({"model": 3}, "model"),
        ({"files": []}, "files"),
        ({"more": 1}, "more"),
    ],
)
def test_a_listing_of_other_values_is_refused(folder, values, problem):
    listed(folder, **values)
    with pytest.raises(ArtifactError, match=problem):
        selftest(folder)


def test_only_the_cpu_is_a_device(folder):
    artifact = registry.load(folder)
    assert registry.open_session(artifact, SessionOptions("cpu")).device == "cpu"
    with pytest.raises(ConfigError, match="device"):
        Detector(folder, device="cuda")


def test_a_folder_that_is_no_hand_over_is_refused(tmp_path):
    empty = tmp_path / "none.handover"
    with pytest.raises(ArtifactMissing, match="there is no file"):
        Detector(empty)
    empty.mkdir()
    with pytest.raises(ArtifactMissing, match=r"has no manifest\.json"):
        Detector(empty)
