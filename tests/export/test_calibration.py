"""The choice of calibration images, and the check of their activations."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from y7edge.artifact.manifest import InputInfo
from y7edge.data.images import read_image
from y7edge.data.synthetic import scenes
from y7edge.detect.preprocess import Preprocessor
from y7edge.errors import ConfigError, DataError
from y7edge.export.calibration import choose_images, unfamiliar
from y7edge.export.folding import fold_checkpoint
from y7edge.export.graph.build import build_graph
from y7edge.export.quantization import Quantizer
from y7edge.models import weights

NAMES = ("bolt", "nut", "rare")
DEMO = Path(__file__).parents[1] / "reference" / "demo.safetensors"


def write_image(path, seed, size=(20, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    assert cv2.imwrite(str(path), image)


@pytest.fixture
def parts(tmp_path):
    """60 training images with "bolt", every third also "nut", one "rare"; 5 of val."""
    root = tmp_path / "parts"
    for split, count in (("train", 60), ("val", 5)):
        for index in range(count):
            seed = index + 1000 * (split == "val")
            write_image(root / "images" / split / f"{index:02}.png", seed)
            classes = [0] + [1] * (index % 3 == 0) + [2] * (split == "train" and index == 41)
            lines = "".join(f"{c} 0.5 0.5 {0.2 + 0.1 * c} 0.3\n" for c in classes)
            label = root / "labels" / split / f"{index:02}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text(lines)
    content = {"path": ".", "train": "images/train", "val": "images/val", "names": list(NAMES)}
    (root / "data.yaml").write_text(json.dumps(content))
    return root


# --- choice --------------------------------------------------------------------------------------


def test_images_are_of_the_training_split_and_cover_all_classes(parts):
    for seed in range(5):
        found = choose_images(parts, NAMES, count=32, seed=seed)
        assert len(found.images) == len(set(found.images)) == 32
        assert all(path.parent.name == "train" for path in found.images)
        assert "images/train/41.png" in found.names  # the only one with the class "rare"
        assert sum(int(path.stem) % 3 == 0 for path in found.images) >= 5  # 32 / (2 * 3)
        assert found.warnings == ()


def test_a_large_data_set_keeps_its_frequencies(parts):
    counts = Counter()
    for seed in range(20):
        counts += Counter(
            int(p.stem) % 3 == 0 for p in choose_images(parts, NAMES, count=40, seed=seed).images
        )
    assert 0.3 < counts[True] / counts.total() < 0.45  # a third of the images


def test_the_choice_depends_on_files_and_seed_only(parts, tmp_path):
    first = choose_images(parts / "data.yaml", NAMES, count=10)
    moved = parts.rename(tmp_path / "moved")
    again = choose_images(moved, NAMES, count=10)
    other = choose_images(moved, NAMES, count=10, seed=1)
    assert (again.names, again.digest) == (first.names, first.digest)
    assert set(other.names) != set(first.names)
    assert len(first.digest) == 64


def test_the_digest_changes_with_a_pixel_and_with_a_name(parts):
    before = choose_images(parts, NAMES, count=60)
    path = before.images[7]
    write_image(path, 999)
    changed = choose_images(parts, NAMES, count=60)
    assert changed.names == before.names
    assert changed.digest != before.digest
    lines = "".join(
        f"{hashlib.sha256(image.read_bytes()).hexdigest()} {name}\n"
        for image, name in zip(changed.images, changed.names, strict=True)
    )
    assert changed.digest == hashlib.sha256(lines.encode()).hexdigest()


def test_classes_are_matched_by_name(parts):
    renamed = choose_images(parts, ("rare", "nut", "bolt"), count=32)
    assert renamed.names == choose_images(parts, NAMES, count=32).names
    with pytest.raises(DataError, match="give a folder of images instead"):
        choose_images(parts, ("cat", "dog"), count=32)


def test_classes_without_training_images_give_a_warning(parts):
    label = parts / "labels" / "train" / "41.txt"
    label.write_text("0 0.5 0.5 0.2 0.3\n")
    (warning,) = choose_images(parts, NAMES, count=60).warnings
    assert "no training images with 1 of the classes: ['rare']" in warning


def test_a_folder_of_images_without_labels_is_accepted(tmp_path):
    for index in range(40):
        write_image(tmp_path / "frames" / f"a{index}" / "same.png", index)
    found = choose_images(tmp_path / "frames", NAMES, count=33)
    assert len(found.images) == 33
    assert found.names[0] == found.images[0].relative_to(tmp_path / "frames").as_posix()
    assert found.warnings == ()
    assert found.source == str(tmp_path / "frames")


@pytest.mark.parametrize("name", ["val", "test", "Valid"])
def test_folders_of_the_evaluation_are_refused(tmp_path, name):
    write_image(tmp_path / name / "a.png", 0)
    with pytest.raises(DataError, match="expected images for training"):
        choose_images(tmp_path / name, NAMES)
    with pytest.raises(DataError, match="expected images for training"):
        choose_images(tmp_path, NAMES)


def test_a_data_set_without_training_images_is_refused(parts):
    (parts / "data.yaml").write_text(json.dumps({"path": ".", "val": "images/val", "names": NAMES}))
    with pytest.raises(DataError, match="train"):
        choose_images(parts, NAMES)


def test_empty_folders_missing_paths_and_counts_are_refused(tmp_path):
    with pytest.raises(DataError, match="no images"):
        choose_images(tmp_path, NAMES)
    with pytest.raises(DataError, match="found nothing there"):
        choose_images(tmp_path / "nowhere", NAMES)
    for count in (0, 10_001):
        with pytest.raises(ConfigError, match=f"is {count}, expected 1 to 10000"):
            choose_images(tmp_path, NAMES, count=count)


def test_copies_are_used_once(tmp_path):
    for index in range(50):
        write_image(tmp_path / f"{index}.png", index % 35)
    found = choose_images(tmp_path, NAMES, count=50)
    assert len(found.images) == 35
    (warning,) = found.warnings
    assert "15 copies" in warning
    few = choose_images(tmp_path, NAMES, count=34)
    assert len({path.read_bytes() for path in few.images}) == 34


def test_images_of_the_evaluation_and_their_copies_are_not_used(parts, tmp_path):
    val = sorted((parts / "images" / "val").iterdir())
    mixed = tmp_path / "mixed"
    for index, path in enumerate((*(parts / "images" / "train").iterdir(), *val)):
        mixed.mkdir(exist_ok=True)
        (mixed / f"{index:03}.png").write_bytes(path.read_bytes())
    found = choose_images(mixed, NAMES, without=val)
    assert len(found.images) == 60
    assert not {p.read_bytes() for p in found.images} & {p.read_bytes() for p in val}
    assert found.warnings == (
        f"warning: {mixed} contains images of the evaluation: 5 are not used",
    )
    copied = parts / "images" / "train" / "41.png"
    copied.write_bytes(val[0].read_bytes())
    assert copied not in choose_images(parts, NAMES, without=val).images
    with pytest.raises(DataError, match="all images are images of the evaluation: calibrate with"):
        choose_images(mixed, NAMES, without=mixed.iterdir())


def test_few_images_give_a_warning_unless_few_were_requested(tmp_path):
    for index in range(5):
        write_image(tmp_path / f"{index}.png", index)
    (warning,) = choose_images(tmp_path, NAMES).warnings
    assert f"few calibration images in {tmp_path}: found 5, expected 32 or more" in warning
    assert choose_images(tmp_path, NAMES, count=4).warnings == ()


def test_a_file_that_is_not_an_image_is_named(tmp_path):
    write_image(tmp_path / "good.png", 0)
    (tmp_path / "bad.jpg").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"bad\.jpg: expected an image"):
        choose_images(tmp_path, NAMES)


def test_names_with_control_characters_are_printable(tmp_path):
    write_image(tmp_path / "plain.png", 0)
    (tmp_path / "plain.png").rename(tmp_path / "a\x1b[31m\nb.png")
    found = choose_images(tmp_path, NAMES, count=1)
    assert found.names == ("a\\x1b[31m\\nb.png",)


# --- inputs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layout", "dtype"), [("NCHW", "float32"), ("NHWC", "uint8")])
def test_inputs_are_those_of_the_detector(parts, layout, dtype):
    scale = 1.0 if dtype == "uint8" else 1 / 255
    network = InputInfo("images", 1, 64, 96, layout=layout, dtype=dtype, scale=scale)
    found = choose_images(parts, NAMES, count=6)
    arrays = list(found.inputs(network))
    preprocess = Preprocessor(network)
    assert len(arrays) == 6
    for path, array in zip(found.images, arrays, strict=True):
        preprocess(read_image(path))
        assert array.dtype == dtype
        assert np.array_equal(array, preprocess.tensor)


def test_a_fixed_batch_is_filled_with_the_first_images(parts):
    found = choose_images(parts, NAMES, count=6)
    single = np.concatenate(list(found.inputs(InputInfo("images", 1, 32, 32))))
    batches = list(found.inputs(InputInfo("images", 4, 32, 32)))
    assert [batch.shape for batch in batches] == [(4, 3, 32, 32)] * 2
    assert np.array_equal(np.concatenate(batches), np.concatenate((single, single[:2])))
    (wide,) = found.inputs(InputInfo("images", 8, 32, 32))
    assert np.array_equal(wide, np.concatenate((single, single[:2])))


def test_files_that_change_or_disappear_are_noticed(parts):
    found = choose_images(parts, NAMES, count=6)
    network = InputInfo("images", 1, 32, 32)
    write_image(found.images[2], 4711)
    with pytest.raises(DataError, match="images were changed during the calibration"):
        list(found.inputs(network))
    found.images[3].unlink()
    with pytest.raises(DataError, match=found.images[3].name):
        list(found.inputs(network))


# --- activations ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo():
    return weights.load(DEMO)


def calibrated(checkpoint, images, profile="u8s8"):
    graph = build_graph(fold_checkpoint(checkpoint), height=160, width=160)
    preprocess = Preprocessor(InputInfo("images", 1, 160, 160))
    inputs = []
    for image in images:
        preprocess(image)
        inputs.append(preprocess.tensor.copy())
    return Quantizer(graph, inputs, profile)


@pytest.mark.parametrize("profile", ["u8s8", "s8s8"])
def test_images_of_the_training_data_are_familiar(demo, profile):
    images = [scenes.scene(seed).image for seed in range(12)]
    assert unfamiliar(demo, calibrated(demo, images, profile)) == ()


@pytest.mark.parametrize("change", ["dark", "noise", "grey"])
def test_foreign_images_give_a_warning(demo, change):
    images = [scenes.scene(seed).image for seed in range(12)]
    noise = np.random.default_rng(0).integers(0, 256, images[0].shape, np.uint8)
    changed = {
        "dark": [(image * 0.25).astype(np.uint8) for image in images],
        "noise": [np.roll(noise, index, axis=0) for index in range(12)],
        "grey": [np.full_like(image, 114) for image in images],
    }
    (warning,) = unfamiliar(demo, calibrated(demo, changed[change]))
    assert warning.startswith("warning: activations on the calibration images differ")
    assert "\n" not in warning


def test_checkpoints_without_batch_norms_are_not_compared(demo):
    noise = [np.random.default_rng(0).integers(0, 256, (160, 160, 3), np.uint8)]
    assert unfamiliar(fold_checkpoint(demo), calibrated(demo, noise)) == ()
