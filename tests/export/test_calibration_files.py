"""The forms of calibration files: values, order, records, and what is refused."""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from y7edge.artifact.manifest import InputInfo
from y7edge.cli import main
from y7edge.data.images import read_image
from y7edge.detect.preprocess import Preprocessor
from y7edge.errors import ConfigError, DataError
from y7edge.export.calibration import choose_images
from y7edge.export.calibration_files import FORMS, RECORD, write

IMAGE = InputInfo("images", 1, 64, 96)
DEMO = Path(__file__).parents[1] / "reference" / "demo.safetensors"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder with five images of different shapes, and the calibration with all of them."""
    folder = tmp_path_factory.mktemp("images")
    for index in range(5):
        pixels = np.random.default_rng(index).integers(0, 256, (40 + 30 * index, 90, 3), np.uint8)
        cv2.imwrite(str(folder / f"{index}.png"), pixels)
    return folder, choose_images(folder, ("bolt",))


def fed(calibration, image):
    """The values that the Detector feeds to the network, computed from the files."""
    found = []
    for path in calibration.images:
        preprocess = Preprocessor(image)
        preprocess(read_image(path))
        found.append(preprocess.tensor.copy())
    return np.concatenate(found)


def read(form, made, image):
    """Read the files of a form back, as arrays (N, ...) in the order of the list or the names."""
    if form == "nhwc-uint8-npy":
        return np.load(made)
    if form == "npz":
        with np.load(made) as archive:
            (name,) = archive.files
            assert name == image.name
            return archive[name]
    if form == "nchw-float-npy":
        return np.concatenate([np.load(path) for path in sorted(made.iterdir())])
    if made.is_dir():
        files = sorted(made.iterdir())
    else:
        files = [made.parent / line for line in made.read_text().splitlines()]
    if form == "raw-float32":
        return np.stack([np.fromfile(path, "<f4").reshape(image.shape[1:]) for path in files])
    return np.stack([cv2.imread(str(path))[:, :, ::-1] for path in files])


@pytest.mark.parametrize("color", ["rgb", "bgr"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("form", FORMS)
def test_all_forms_have_the_values_that_the_detector_feeds(form, layout, color, images, tmp_path):
    _, calibration = images
    image = replace(IMAGE, layout=layout, color=color)
    made = write(calibration, image, tmp_path / "out", form)
    assert made.is_relative_to(tmp_path / "out")
    if form in ("images", "png-list"):  # files have the colours of the images
        expected = fed(
            calibration, replace(image, dtype="uint8", scale=1, layout="NHWC", color="rgb")
        )
    elif form == "nhwc-uint8-npy":
        expected = fed(calibration, replace(image, dtype="uint8", scale=1, layout="NHWC"))
    elif form == "nchw-float-npy":
        expected = fed(calibration, replace(image, layout="NCHW"))
    else:
        expected = fed(calibration, image)
    found = read(form, made, image)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert record["digest"] == calibration.digest
    assert record["images"] == list(calibration.names)
    assert record["form"] == form


def test_floats_of_a_uint8_input_are_pixel_values(images, tmp_path):
    _, calibration = images
    image = replace(IMAGE, layout="NHWC", dtype="uint8", scale=1.0)
    found = read("raw-float32", write(calibration, image, tmp_path / "out", "raw-float32"), image)
    np.testing.assert_array_equal(found, fed(calibration, image).astype(np.float32))
    with pytest.raises(ConfigError, match="zero point -128"):
        write(calibration, replace(image, dtype="int8", zero_point=-128), tmp_path / "b", "npz")


@pytest.mark.parametrize("form", FORMS)
def test_the_same_images_give_the_same_bytes(form, images, tmp_path):
    _, calibration = images
    contents = []
    for name in ("first", "second"):
        write(calibration, IMAGE, tmp_path / name, form)
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        contents.append({p.relative_to(tmp_path / name): p.read_bytes() for p in files})
    assert contents[0] == contents[1]
    if form == "npz":
        with zipfile.ZipFile(tmp_path / "first" / "images.npz") as archive:
            assert archive.infolist()[0].date_time[0] == 1980


def test_fewer_images_are_the_first_and_have_their_own_digest(images, tmp_path):
    _, calibration = images
    seen = []
    made = write(
        calibration, IMAGE, tmp_path / "out", "images", count=2, progress=lambda *n: seen.append(n)
    )
    assert len(list(made.iterdir())) == 2
    assert seen == [(1, 2), (2, 2)]
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    lines = "".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()} {name}\n"
        for path, name in zip(calibration.images[:2], calibration.names[:2], strict=True)
    )
    assert record["digest"] == hashlib.sha256(lines.encode()).hexdigest()
    assert record["images"] == list(calibration.names[:2])
    for count in (0, -1):
        with pytest.raises(ConfigError, match="expected 1 or more"):
            write(calibration, IMAGE, tmp_path / "none", "images", count=count)


@pytest.mark.parametrize("form", FORMS)
def test_no_file_is_written_through_a_memory_map(form, images, tmp_path, monkeypatch):
    """On a full disk, writing to one ends the process with SIGBUS."""
    monkeypatch.setattr(np, "memmap", None)
    monkeypatch.setattr(np.lib.format, "open_memmap", None)
    write(images[1], IMAGE, tmp_path / "out", form)


def test_nothing_is_left_of_a_failure_and_nothing_is_replaced(images, tmp_path):
    folder, calibration = images
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"no image")
    broken = replace(calibration, images=(*calibration.images[:4], damaged))
    with pytest.raises(DataError):
        write(broken, IMAGE, tmp_path / "out", "nhwc-uint8-npy")
    changed = replace(calibration, digest="0" * 64)
    with pytest.raises(DataError, match="were changed"):
        write(changed, IMAGE, tmp_path / "out", "npz")
    assert sorted(tmp_path.iterdir()) == [damaged]
    with pytest.raises(ConfigError, match="is not empty"):
        write(calibration, IMAGE, folder, "images")
    with pytest.raises(ConfigError, match="cannot be a new folder"):
        write(calibration, IMAGE, damaged, "images")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError):
        write(calibration, IMAGE, tmp_path / "link", "images")
    with pytest.raises(ConfigError, match=r"no form 'tfrecord'.*choose from images"):
        write(calibration, IMAGE, tmp_path / "out", "tfrecord")
    with pytest.raises(ConfigError, match="cannot be the name"):
        write(calibration, replace(IMAGE, name="../x"), tmp_path / "out", "npz")


def test_command_writes_files_for_a_checkpoint_and_an_artifact(
    images, artifact_path, tmp_path, capsys
):
    folder, calibration = images
    arguments = ["--data", str(folder), "--form", "nhwc-uint8-npy", "--json"]
    assert main(["calibration", str(DEMO), *arguments, "--out", str(tmp_path / "a")]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["images"], record["digest"]) == (5, calibration.digest)
    assert np.load(record["path"]).shape == (5, 160, 160, 3)
    assert main(["calibration", str(artifact_path), *arguments, "--out", str(tmp_path / "b")]) == 0
    assert np.load(tmp_path / "b" / "images.npy").shape == (5, 96, 128, 3)
    assert main(["calibration", str(DEMO), *arguments, "--out", str(folder)]) == 1
    assert "is not empty" in capsys.readouterr().err
    assert main(["calibration", "yolov7", *arguments, "--out", str(tmp_path / "c")]) == 1
    assert "give a checkpoint or an artifact" in capsys.readouterr().err
