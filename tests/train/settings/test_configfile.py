"""Recipes and runs as YAML: reading, writing, and invalid files."""

from __future__ import annotations

import logging
from dataclasses import fields, replace
from pathlib import Path

import pytest
import yaml

from y7edge.errors import ConfigError
from y7edge.models import registry
from y7edge.train.settings import configfile
from y7edge.train.settings.config import TrainConfig
from y7edge.train.settings.recipes import P5, P6, RECIPES, TINY

# A published hyper-parameter file, key for key, its comments and its trap: `1e-2` is text to YAML.
PUBLISHED = """
lr0: 1e-2  # initial learning rate (SGD=1E-2, Adam=1E-3)
lrf: 0.2  # final OneCycleLR learning rate (lr0 * lrf)
momentum: 0.937
weight_decay: 0.0005
warmup_epochs: 3.0
warmup_momentum: 0.8
warmup_bias_lr: 0.1
box: 0.05
cls: 0.3
cls_pw: 1.0
obj: 0.7
obj_pw: 1.0
iou_t: 0.20
anchor_t: 4.0
# anchors: 3
fl_gamma: 0.0
hsv_h: 0.015
hsv_s: 0.7
hsv_v: 0.4
degrees: 0.0
translate: 0.2
scale: 0.9
shear: 0.0
perspective: 0.0
flipud: 0.0
fliplr: 0.5
mosaic: 1.0
mixup: 0.15
copy_paste: 0.0
paste_in: 0.15
loss_ota: 1
"""


def written(tmp_path, text, name="my.yaml"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def read(path, model="yolov7"):
    return configfile.choose(str(path), model).recipe


def test_published_file_is_read(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    path = written(tmp_path, PUBLISHED)
    assert read(path) == P6
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{path}: keys without effect: iou_t (")
    assert "loss_ota (" in record.getMessage()
    assert "anchors" not in record.getMessage()


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_round_trip(name, tmp_path, caplog):
    path = tmp_path / "recipe.yaml"
    path.write_text(configfile.recipe_text(RECIPES[name]))
    assert read(path) == RECIPES[name].recipe
    # The file has every value of its family's recipe.
    assert list(yaml.safe_load(path.read_text())) == list(P5.to_dict())
    assert caplog.records == []


@pytest.mark.parametrize("value", [1e-5, 1 / 3, 1e22, 5e-324, 0.1 + 0.2])
def test_numbers_round_trip(value, tmp_path):
    changed = RECIPES["tiny"].changed({"weight_decay": value}, "a test")
    path = written(tmp_path, configfile.recipe_text(changed))
    assert read(path).weight_decay == value


def test_missing_values_are_those_of_the_family(tmp_path):
    path = written(tmp_path, "box: 0.1\n")
    assert read(path, "yolov7-tiny") == replace(TINY, box=0.1)
    chosen = configfile.choose(str(path), "yolov7-w6")
    assert chosen.recipe == replace(P6, box=0.1)
    assert (chosen.sources["box"], chosen.sources["lr0"]) == (str(path), "published: file p6")


def test_printed_recipes_have_the_source_of_each_value():
    text = configfile.recipe_text(RECIPES["finetune"])
    lines = text.splitlines()
    assert lines[0] == "# finetune: any model from trained weights"
    (line,) = [line for line in lines if line.startswith("close_mosaic:")]
    assert line.split("  # ")[1].startswith("ours: ")
    assert all("  # " in line for line in lines[1:])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr0: 0.1\nmixupp: 1\n", r"my\.yaml: unknown key 'mixupp', did you mean 'mixup'"),
        ("mixup: 1.5", r"my\.yaml: mixup must be a number from 0 to 1, not 1\.5"),
        ("lr0: 0", r"my\.yaml: lr0 must be a positive number, not 0"),
        ("lr0: 1e", r"my\.yaml: lr0 must be a number, not '1e'"),
        ("mosaic: on", r"my\.yaml: mosaic must be a number, not True"),
        ("lr0: 1\nbox: 1\nlr0: 2", r"my\.yaml: 'lr0' is in line 1 and again in line 3"),
        ("lr0: [1", r"my\.yaml: not YAML: .*line 1"),
        ("a: &x\n  b: *x\n", r"my\.yaml: "),
        ("- lr0\n", r"my\.yaml: expected lines of `name: value`, found a list"),
        ("", r"my\.yaml: expected lines of `name: value`, found nothing"),
        ("lr0: 0.1\n\x00", r"my\.yaml: not YAML"),
    ],
)
def test_invalid_files(text, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        read(written(tmp_path, text))


def test_unreadable_files(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"lr0: 0.1 # \xe9t\xe9")
    for name in ("latin.yaml", "missing.yaml"):
        with pytest.raises(ConfigError, match=rf"{name}: cannot be read"):
            configfile.choose(str(tmp_path / name), "yolov7")
    with pytest.raises(ConfigError, match=r"no recipe .* 'finetun', did you mean 'finetune'"):
        configfile.choose("finetun", "yolov7")


def another(spec=None):
    """A run in which no field has its default."""
    return TrainConfig(
        data=Path("/data/set.yaml"), model="yolov7", spec=spec, act="relu", width=0.5,
        weights=Path("/weights/start.pt"), imgsz=320, train_split="a", val_split="b",
        single_cls=True, autoanchor=False, recipe=replace(P6, weight_decay=1 / 3, nominal_batch=8),
        assigner="independent", rect=False, multi_scale=True, image_weights=True, freeze=(0, 7),
        epochs=7, batch=12, nominal_batch=8, patience=3, val_every=2, device="cpu", devices=2,
        nodes=3, sync_bn=True, precision="bf16-mixed", compile=True, workers=1, cache="disk",
        out=Path("/runs/x"), checkpoint_minutes=0.5, report=False, profile=9, seed=5, licence="1.0",
        command="y7edge train --data 'my set.yaml'",
    )  # fmt: skip


@pytest.mark.parametrize("own_rows", [False, True])
def test_run_config_round_trip(own_rows, tmp_path):
    config = another(registry.get("yolov7-w6", nc=3) if own_rows else None)
    path = tmp_path / "config.yaml"
    configfile.write(config, path)
    assert configfile.read(path) == config
    default = TrainConfig(data="/d")
    unlike = {f.name for f in fields(config) if getattr(config, f.name) != getattr(default, f.name)}
    assert {f.name for f in fields(config)} - unlike <= {"spec", "rect"}
    configfile.write(TrainConfig(data="/d", rect=True), path)
    assert configfile.read(path) == replace(
        TrainConfig(data=Path("/d"), rect=True), recipe=(TrainConfig(data="/d", rect=True).hyper)
    )


def test_run_is_written_with_absolute_paths(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    configfile.write(TrainConfig(data="set.yaml", weights="../w.pt"), tmp_path / "config.yaml")
    monkeypatch.chdir(tmp_path)
    config = configfile.read(tmp_path / "config.yaml")
    assert (config.data, config.out) == (tmp_path / "here" / "set.yaml", None)
    assert config.weights == tmp_path / "w.pt"
    assert config.recipe == TINY  # written in full, not as "the default"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: yolov7", "expected an entry 'data', found none"),
        ("data: d\nepoch: 3", "there is no 'epoch', did you mean 'epochs'"),
        ("data: d\nepochs: 1e2", r"epochs: expected a whole number, found 100\.0"),
        ("data: d\nwidth: fast", "width: expected a finite number, found 'fast'"),
        ("data: d\nrect: 1", "rect: expected true or false, found 1"),
        ("data: d\nrecipe: tiny", "recipe: expected named entries, found 'tiny'"),
        ("data: d\nrecipe: {lr: 1}", "unknown key 'lr'"),
        ("data: d\nrecipe:\n  lr0: 1\n  lr0: 2", "'lr0' is in line 3 and again in line 4"),
        ("data: d\nspec: {name: x}", "spec: expected an entry 'rows', found none"),
        ("data: d\nfreeze: [1, x]", r"freeze\[1\]: expected a whole number, found 'x'"),
        ("data: d\nbatch: 3\ndevices: 2", "batch must be a multiple of 2"),
    ],
)
def test_invalid_runs(text, message, tmp_path):
    with pytest.raises(ConfigError, match=rf"my\.yaml: {message}"):
        configfile.read(written(tmp_path, text))


def test_text_numbers_of_a_run(tmp_path):
    path = written(tmp_path, "data: d\nwidth: 5e-1\nrecipe: {lr0: 1e-3}\n")
    config = configfile.read(path)
    assert (config.width, config.hyper.lr0) == (0.5, 0.001)


def test_file_is_written_atomically(tmp_path, monkeypatch):
    path = tmp_path / "config.yaml"
    configfile.write(TrainConfig(data="/d"), path)
    before = path.read_bytes()

    def fail(self, *_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="No space"):
        configfile.write(TrainConfig(data="/e"), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]
