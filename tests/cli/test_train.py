"""The options of ``y7edge train``: the resulting settings, and refused options."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from y7edge.cli import main
from y7edge.train.settings.config import TrainConfig
from y7edge.train.settings.recipes import P6, RECIPES, TINY

Train = Callable[..., TrainConfig]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the loop is asked for, which then does nothing."""
    calls: dict[str, Any] = {}

    def answer(name: str) -> Callable[..., Any]:
        def call(what: Any, *, progress: Any = None) -> Any:
            calls[name] = what
            return SimpleNamespace(
                folder=Path("f"),
                report=Path("f/report.html"),
                best=Path("b"),
                last=Path("l"),
                epochs=1,
                seconds_per_epoch=1.0,
                stopped_early=False,
                metrics=SimpleNamespace(map50=0.5, map50_95=0.25),
            )

        return call

    monkeypatch.setattr("y7edge.train.run.loop.train", answer("train"))
    monkeypatch.setattr("y7edge.train.run.loop.resume", answer("resume"))
    return calls


@pytest.fixture
def train(asked: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> Train:
    """The run that a line of options describes."""

    def of(*words: object) -> TrainConfig:
        assert main(["train", "--data", "d", *map(str, words)]) == 0, capsys.readouterr().err
        config: TrainConfig = asked["train"]
        return config

    return of


def test_defaults(train: Train) -> None:
    assert train() == TrainConfig(data=Path("d"), recipe=TINY, command="y7edge train --data d")


def test_every_switch_arrives(train: Train) -> None:
    line = (
        "--model yolov7 --weights w.pt --freeze backbone --imgsz 320 --width 0.5 --single-cls "
        "--no-autoanchor --recipe finetune --set lr0=1e-3 --set fliplr=0 --label-smoothing 0.1 "
        "--average swa --assigner lead --multi-scale --image-weights --cache ram --workers 2 "
        "--epochs 7 --batch 8 --patience 3 --device cpu --devices 2 --nodes 2 --sync-bn "
        "--precision bf16 --compile --out o --checkpoint-minutes 2.5 --no-report --seed 4 "
        "--licence MIT"
    )
    changes = {"lr0": 1e-3, "fliplr": 0.0, "label_smoothing": 0.1, "average": "swa"}
    assert train(*line.split()) == TrainConfig(
        data=Path("d"), model="yolov7", weights=Path("w.pt"), freeze=tuple(range(51)), imgsz=320,
        width=0.5, single_cls=True, autoanchor=False,
        recipe=RECIPES["finetune"].recipe.changed(changes),
        assigner="lead", multi_scale=True, image_weights=True, cache="ram", workers=2, epochs=7,
        batch=8, patience=3, device="cpu", devices=2, nodes=2, sync_bn=True,
        precision="bf16-mixed", compile=True, out=Path("o"), checkpoint_minutes=2.5, report=False,
        seed=4, licence="MIT", command=f"y7edge train --data d {line}",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "rows"),
    [
        (("--freeze", "3"), (0, 1, 2)),
        (("--freeze", "3", "--freeze", "5"), (3, 5)),
        (("--freeze", "3,5-6"), (3, 5, 6)),
    ],
)
def test_freeze(words: tuple[str, ...], rows: tuple[int, ...], train: Train) -> None:
    assert train(*words).freeze == rows


def test_the_command_can_be_repeated(train: Train) -> None:
    config = train("--out", "my run", "--set", "box=0.1", "--set", "cls=1", "--no-autoanchor")
    words = shlex.split(config.command)
    assert words[:2] == ["y7edge", "train"]
    assert train(*words[4:]) == config


def test_recipe_from_a_file(train: Train, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("box: 0.1\niou_t: 0.2\n")
    config = train("--model", "yolov7-w6", "--recipe", path, "--set", "cls=1")
    assert config.recipe == P6.changed({"box": 0.1, "cls": 1.0})


def test_rect_is_without_mosaic(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    config = train("--rect")
    assert (config.rect, config.hyper.augmentation) == (True, TINY.augmentation.closed())
    assert "--rect: mosaic, mixup, copy-paste and paste-in are off" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("--rect --set mosaic=1", "--rect turns off mosaic: omit --set mosaic"),
        ("--rect --image-weights", "rect and image_weights "),
        ("--set lr0", "--set takes NAME=VALUE, such as lr0=0.02; found 'lr0'"),
        ("--set lr0=", "--set takes NAME=VALUE"),
        ("--set =1", "--set takes NAME=VALUE"),
        ("--set lr0=fast", "--set: lr0 must be a number, not 'fast'"),
        ("--set lr=1", "--set: unknown key 'lr', did you mean 'lr0' or 'lrf'?"),
        ("--set mosaic=2", "--set: mosaic must be a number from 0 to 1, not 2.0"),
        ("--set lr0=1 --set lr0=2", "--set lr0 is given twice: 1 and 2"),
        ("--set average=ema --average swa", "average is given by --set and by its own option"),
        ("--average mean", "average must be one of ema, swa, none, not 'mean'"),
        ("--recipe tny", "no recipe or file is called 'tny', did you mean 'tiny'"),
        ("--recipe no.yaml", "no.yaml: cannot be read"),
        ("--freeze some", "freeze takes a number of rows"),
        ("--freeze 99", "yolov7-tiny has the rows 0 to 77, not 78"),
        ("--cache tape", "cache must be one of auto, ram, disk, none, not 'tape'"),
        ("--precision fp8", "precision must be one of auto"),
        ("--batch 3 --devices 2", "batch must be a multiple of 2"),
        ("--act mish", "act must be one of relu, leaky, silu, hardswish, not 'mish'"),
        ("--act leaky_relu", "act must be one of relu, leaky"),
        ("--qat m.safetensors --act relu", "without a recipe: omit --act"),
    ],
)
def test_invalid_options_are_refused(
    line: str, part: str, asked: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--data", "d", *line.split()]) == 1
    assert part in capsys.readouterr().err
    assert not asked


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("--sync-bn", "--sync-bn has no effect on a single device"),
        ("--image-weights --single-cls", "there are no rare classes"),
    ],
)
def test_remarks(line: str, part: str, train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    train(*line.split())
    assert part in capsys.readouterr().err


def test_a_profile_trains_nothing(
    asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def profile(config: TrainConfig, *, progress: Any = None) -> Any:
        return SimpleNamespace(to_dict=lambda: {"iterations": config.profile}, lines=list)

    monkeypatch.setattr("y7edge.train.run.profile.profile", profile)
    assert main(["train", "--data", "d", "--profile", "9", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"iterations": 9}
    assert not asked


def test_activation(train: Train) -> None:
    assert train().act is None
    assert train("--act", "relu").act == "relu"
    config = train("--model", "yolov7-w6-hardswish", "--act", "leaky")
    assert (config.model, config.act, config.recipe) == ("yolov7-w6-hardswish", "leaky", P6)


def test_resume_alone(asked: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--resume", "runs/x", "--json"]) == 0
    assert asked == {"resume": Path("runs/x")}
    assert json.loads(capsys.readouterr().out)["map50"] == 0.5


def test_resume_takes_no_other_options(
    asked: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["train", "--resume", "runs/x", "--data", "d", "--act", "relu", "--epochs", "300"]
    assert main(line) == 1
    error = capsys.readouterr().err
    assert "omit --data, --act, --epochs, or start a new run with" in error
    assert not asked


def test_recipes_are_printed(
    asked: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["train", "--recipe", "small-data", "--set", "lr0=0.02", "--print-recipe"]
    assert main(line) == 0
    text = capsys.readouterr().out
    assert text.startswith("# small-data: ")
    assert "# the command line" in text.splitlines()[1]
    assert yaml.safe_load(text) == RECIPES["small-data"].recipe.changed({"lr0": 0.02}).to_dict()
    assert main([*line, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["name"], record["values"]["lr0"]) == ("small-data", 0.02)
    assert record["sources"]["hsv_h"] == "published: file tiny"
    assert not asked


def test_recipe_of_no_model_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--model", "yolov8", "--print-recipe"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "yolov8" in printed.err


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "NODE_RANK"])
def test_only_the_first_process_prints(
    name: str, train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, "1")
    train("--sync-bn", "--rect")
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "")
    monkeypatch.setenv(name, "0")
    train()
    assert "map50" in capsys.readouterr().out


def test_help_has_headings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    headings = ["What to train:", "Recipe:", "Images:", "Where:", "The run:"]
    positions = [text.index(heading) for heading in headings]
    assert positions == sorted(positions)
    assert text.index("Recipe:") < text.index("--label-smoothing") < text.index("Images:")
