"""``y7edge train``: train a model on labelled images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from y7edge.cli.console import facts, note, show
from y7edge.cli.options import RANGES, Json, UsageError, among, command_line, completion, given
from y7edge.errors import ConfigError

if TYPE_CHECKING:
    from y7edge.export.qat import QatResult
    from y7edge.train.run.loop import TrainResult
    from y7edge.train.settings.config import TrainConfig
    from y7edge.train.settings.recipes import NamedRecipe

# Precision -> its name in Lightning Fabric.
PRECISIONS = {"fp32": "32-true", "fp16": "16-mixed", "bf16": "bf16-mixed"}
# Augmentations that combine several images; --rect turns them off.
JOINING = ("mosaic", "mixup", "copy_paste", "paste_in")
# Options of --qat, and those that both kinds of training have -> field of QatConfig.
_QAT_ONLY = {
    "--qat-profile": "profile",
    "--qat-ranges": "ranges",
    "--quantize-heads": "quantize_heads",
    "--qat-iterations": "iterations",
}
_QAT_TOO = {
    **{f"--{name}": name for name in ("data", "imgsz", "batch", "device", "out", "seed")},
    "--checkpoint-minutes": "checkpoint_minutes",
}

_what = partial(typer.Option, rich_help_panel="What to train")
_Data = Annotated[
    Path | None,
    _what(metavar="DATA", help="data.yaml or its folder, or a folder of Pascal VOC or COCO files."),
]
_Name = Annotated[
    str,
    _what(
        "--model",
        metavar="VARIANT",
        autocompletion=completion("variants"),
        help="Name of a variant; `y7edge info` lists them.",
    ),
]
_Act = Annotated[
    str | None,
    _what(
        **among("relu", "leaky", "silu", "hardswish"),
        help="Activation; default: that of the model (docs/activations.md compares them).",
    ),
]
_Weights = Annotated[
    Path | None,
    _what(
        metavar="CHECKPOINT",
        help="Initial checkpoint, .safetensors or a published .pt. Layers that fit are copied; "
        "class outputs of the head are matched by class name.",
    ),
]
_Freeze = Annotated[
    list[str] | None,
    _what(
        metavar="ROWS",
        help="Rows to freeze: backbone; 50 (the first 50); 3,5 (these two); 0-50 (a range).",
    ),
]
_Side = Annotated[int, _what("--imgsz", min=32, help="Side of the square input, pixels.")]
_Width = Annotated[float, _what(help="Factor on all channel numbers, rounded to multiples of 8.")]
_Single = Annotated[bool, _what("--single-cls", help="Train all classes as one.")]
_Anchors = Annotated[
    bool,
    _what(
        "--autoanchor/--no-autoanchor",
        help="Fit new anchors to the data if the model's anchors fit too few objects.",
    ),
]

_recipe = partial(typer.Option, rich_help_panel="Recipe")
_Recipe = Annotated[
    str | None,
    _recipe(
        **among("p5", "p6", "tiny", "finetune", "small-data", metavar="NAME|FILE"),
        help="p5, p6, tiny, finetune, small-data, or a YAML file with the published names. The "
        "default, also for values missing in a file, is the recipe of the model's family.",
    ),
]
_Set = Annotated[
    list[str] | None,
    _recipe("--set", metavar="NAME=VALUE", help="Change one value of the recipe; repeatable."),
]
_Smoothing = Annotated[float | None, _recipe(help="The same as --set label_smoothing=VALUE.")]
_Average = Annotated[
    str | None,
    _recipe(**among("ema", "swa", "none"), help="Average of the weights to evaluate and save."),
]
_Assigner = Annotated[
    str,
    _recipe(
        **among(*("auto", "coarse-to-fine", "lead-guided", "independent", "lead"), metavar="NAME"),
        help="auto; for models with auxiliary heads also coarse-to-fine (published), lead-guided, "
        "independent, or lead (train without auxiliary heads).",
    ),
]
_Print = Annotated[
    bool,
    _recipe(
        "--print-recipe",
        help="Print the recipe as YAML, with the source of each value, instead of training.",
    ),
]

_images = partial(typer.Option, rich_help_panel="Images")
_Rect = Annotated[
    bool, _images("--rect", help="Batch images of similar shape, to pad less; no mosaic.")
]
_Scales = Annotated[
    bool, _images("--multi-scale", help="Random input size per batch, 0.5 to 1.5 times --imgsz.")
]
_Drawn = Annotated[
    bool,
    _images("--image-weights", help="Use images of rare or poorly detected classes more often."),
]
_Cache = Annotated[
    str, _images(**among("ram", "disk", "none", "auto"), help="Where to cache decoded images.")
]
_Workers = Annotated[
    int | None,
    _images(min=0, help="Processes that load images; default: 0 on a CPU, up to 8 for a GPU."),
]

_length = partial(typer.Option, rich_help_panel="How long")
_Epochs = Annotated[int, _length(min=1, help="Number of epochs.")]
_Batch = Annotated[int, _length(min=1, help="Images in one forward pass, over all devices.")]
_Patience = Annotated[
    int,
    _length(
        min=0,
        help="Stop after this many epochs without a better evaluation (with --average swa, counted "
        "from the start of averaging); 0: never.",
    ),
]

_where = partial(typer.Option, rich_help_panel="Where")
_Device = Annotated[
    str,
    _where(
        **among("auto", "cpu", "cuda", "mps", metavar="DEVICE"),
        help="auto, cpu, cuda, cuda:N or mps.",
    ),
]
_Devices = Annotated[int, _where(min=1, help="Number of devices on this machine.")]
_Nodes = Annotated[int, _where(min=1, help="Number of machines; start each with torchrun.")]
_SyncBn = Annotated[bool, _where("--sync-bn", help="BatchNorm statistics over all devices.")]
_Precision = Annotated[
    str,
    _where(
        **among("fp32", "fp16", "bf16", "auto"),
        help="auto: fp16 on CUDA, else fp32; a CPU has no fp16.",
    ),
]
_Compile = Annotated[bool, _where("--compile", help="Use torch.compile.")]

_run = partial(typer.Option, rich_help_panel="The run")
_Out = Annotated[
    Path | None,
    _run(metavar="FOLDER", help="Folder of the run; default: the next free runs/trainN."),
]
_Resume = Annotated[
    Path | None,
    _run(metavar="FOLDER", help="Resume this run with its own settings; takes no other options."),
]
_Minutes = Annotated[
    float,
    _run(metavar="MINUTES", help="Interval of saving the state for --resume within an epoch."),
]
_Report = Annotated[
    bool, _run("--report/--no-report", help="Write curves, images and report.html at the end.")
]
_Seed = Annotated[int, _run(min=0, help="Random seed.")]
_Profile = Annotated[
    int,
    _run(min=0, metavar="N", help="Measure the time of N iterations instead of training."),
]
_Licence = Annotated[
    str,
    _run(
        metavar="TEXT",
        help="Licence of the weights; stored in checkpoints and exported files. If not given, that "
        "of --weights.",
    ),
]


_qat = partial(typer.Option, rich_help_panel="Quantisation-aware training")
_Qat = Annotated[
    Path | None,
    _qat(
        metavar="CHECKPOINT",
        help="Train this float checkpoint for its int8 graph. Labels are optional. Also takes "
        "--data, --imgsz, --batch, --device, --out, --seed and --checkpoint-minutes.",
    ),
]
_QatProfile = Annotated[
    str | None,
    _qat(
        metavar="PROFILE",
        autocompletion=completion("profiles"),
        help="Types of activations and weights of the int8 graph: {profiles}; default: u8s8.",
    ),
]
_QatRanges = Annotated[
    str | None, _qat(**RANGES, help="How the ranges of int8 activations are chosen.")
]
_QatHeads = Annotated[bool, _qat("--quantize-heads", help="Quantise the last convolutions too.")]
_Iterations = Annotated[
    int | None, _qat("--qat-iterations", min=10, help="Number of batches; default: 400.")
]


def train(
    ctx: typer.Context,
    data: _Data = None,
    model: _Name = "yolov7-tiny",
    act: _Act = None,
    weights: _Weights = None,
    freeze: _Freeze = None,
    imgsz: _Side = 640,
    width: _Width = 1.0,
    single_cls: _Single = False,
    autoanchor: _Anchors = True,
    recipe: _Recipe = None,
    changes: _Set = None,
    label_smoothing: _Smoothing = None,
    average: _Average = None,
    assigner: _Assigner = "auto",
    print_recipe: _Print = False,
    rect: _Rect = False,
    multi_scale: _Scales = False,
    image_weights: _Drawn = False,
    cache: _Cache = "auto",
    workers: _Workers = None,
    epochs: _Epochs = 300,
    batch: _Batch = 16,
    patience: _Patience = 0,
    device: _Device = "auto",
    devices: _Devices = 1,
    nodes: _Nodes = 1,
    sync_bn: _SyncBn = False,
    precision: _Precision = "auto",
    compile: _Compile = False,
    out: _Out = None,
    resume: _Resume = None,
    checkpoint_minutes: _Minutes = 10.0,
    report: _Report = True,
    seed: _Seed = 0,
    profile: _Profile = 0,
    licence: _Licence = "unspecified",
    qat: _Qat = None,
    qat_profile: _QatProfile = None,
    qat_ranges: _QatRanges = None,
    quantize_heads: _QatHeads = False,
    qat_iterations: _Iterations = None,
    as_json: Json = False,
) -> None:
    """Train a model on labelled images.

    Starts from random weights, or from a checkpoint with --weights. Writes best.safetensors and
    last.safetensors, a table, curves, images and a report to the folder of the run. Both files have
    the average of the weights (--average). The best epoch is selected by mAP on the split val.
    """
    asked = parsed(changes or [], label_smoothing=label_smoothing, average=average)
    if print_recipe:
        _print_recipe(recipe, model, asked, rect, as_json)
        return
    if resume is not None:
        _resume(resume, given(ctx), as_json)
        return
    if data is None:
        raise UsageError("Missing option '--data'.", ctx=ctx)
    if require_fitting(given(ctx)):
        _train_quantized(ctx.params, given(ctx), as_json)
        return
    from y7edge.train.settings.config import TrainConfig

    config = TrainConfig(
        data=data, model=model, act=act, weights=weights, imgsz=imgsz, width=width,
        freeze=_frozen_rows(freeze or [], model),
        single_cls=single_cls, autoanchor=autoanchor,
        recipe=chosen_recipe(recipe, model, asked, rect=rect).recipe,
        assigner=assigner, rect=rect, multi_scale=multi_scale, image_weights=image_weights,
        cache=cache, workers=workers, epochs=epochs, batch=batch, patience=patience,
        device=device, devices=devices, nodes=nodes, sync_bn=sync_bn,
        precision=PRECISIONS.get(precision, precision), compile=compile, out=out,
        checkpoint_minutes=checkpoint_minutes, report=report, profile=profile, seed=seed,
        licence=licence, command=command_line(ctx),
    )  # fmt: skip
    _train(config, as_json)


def _train(config: TrainConfig, as_json: bool) -> None:
    """Train, or only measure the time of some iterations."""
    from y7edge.train.run import loop
    from y7edge.train.run.profile import profile as measure
    from y7edge.train.run.progress import for_terminal

    _note_remarks(config)
    if config.profile:
        found = measure(config, progress=for_terminal())
        show(found.to_dict(), found.lines(), as_json=as_json)
        return
    result = loop.train(config, progress=for_terminal())
    if is_first():
        _show(result, as_json)


def _resume(folder: Path, options: Mapping[str, object], as_json: bool) -> None:
    """Resume a training of either kind."""
    from y7edge.export import qat
    from y7edge.train.run import loop
    from y7edge.train.run.progress import for_terminal

    require_alone(folder, options)
    if qat.is_run(folder):
        _show_quantized(qat.resume(folder, progress=for_terminal()), as_json)
        return
    result = loop.resume(folder, progress=for_terminal())
    if is_first():
        _show(result, as_json)


def require_fitting(options: Iterable[str]) -> bool:
    """Return whether ``--qat`` is given; raise ConfigError for options that do not fit it."""
    names = set(options)
    if "--qat" not in names:
        if others := sorted(names & set(_QAT_ONLY)):
            raise ConfigError(f"{others[0]} is for --qat: omit it, or give --qat CHECKPOINT")
        return False
    if others := sorted(names - {"--qat", "--json", *_QAT_ONLY, *_QAT_TOO}):
        raise ConfigError(
            f"--qat starts from a trained model, without a recipe: omit {', '.join(others)}"
        )
    return True


def _train_quantized(values: Mapping[str, Any], options: Iterable[str], as_json: bool) -> None:
    """Train a checkpoint for its int8 graph; only given options differ from the defaults."""
    from y7edge.export import qat
    from y7edge.train.run.progress import for_terminal
    from y7edge.train.settings.qat import QatConfig

    fields = {"--qat": "checkpoint", **_QAT_ONLY, **_QAT_TOO}
    chosen = {
        fields[name]: values[name.strip("-").replace("-", "_")]
        for name in options
        if name in fields
    }
    _show_quantized(qat.train(QatConfig(**chosen), progress=for_terminal()), as_json)


def _show_quantized(result: QatResult, as_json: bool) -> None:
    start, chosen = result.start, result.chosen
    record = {
        "folder": result.folder,
        "best": result.best,
        "last": result.last,
        "iterations": result.iterations,
        "best_iterations": chosen.iterations,
        "loss": chosen.loss,
        "loss_before": start.loss,
        "map50_95": chosen.map50_95,
        "map50_95_before": start.map50_95,
        "map50_95_float": start.float_map50_95,
    }
    show(record, facts(record), as_json=as_json)


def require_alone(folder: Path, options: Iterable[str]) -> None:
    """Raise ConfigError if ``options`` has options other than ``--resume`` and ``--json``."""
    others = [name for name in options if name not in ("--resume", "--json")]
    if others:
        raise ConfigError(
            f"--resume uses the run's own settings: omit {', '.join(others)}, or "
            f"start a new run with --weights {folder / 'last.safetensors'}"
        )


def _show(result: TrainResult, as_json: bool) -> None:
    record = {
        "folder": result.folder,
        "best": result.best,
        "last": result.last,
        "report": result.report,
        "epochs": result.epochs,
        "seconds_per_epoch": round(result.seconds_per_epoch, 3),
        "stopped_early": result.stopped_early,
        "map50": result.metrics.map50,
        "map50_95": result.metrics.map50_95,
    }
    show(record, facts(record), as_json=as_json)


def _print_recipe(
    text: str | None, model: str, changes: Mapping[str, str], rect: bool, as_json: bool
) -> None:
    from y7edge.models import registry
    from y7edge.train.settings.configfile import recipe_text

    registry.get(model)  # raises ConfigError for an unknown name
    chosen = chosen_recipe(text, model, changes, rect=rect)
    record = {"name": chosen.name, "values": chosen.recipe.to_dict(), "sources": chosen.sources}
    show(record, recipe_text(chosen).splitlines(), as_json=as_json)


def chosen_recipe(
    text: str | None, model: str, changes: Mapping[str, str], *, rect: bool
) -> NamedRecipe:
    """Return the recipe to train with.

    Args:
        text: value of ``--recipe``: a name or a file; None: the default recipe of the model.
        model: name of the variant.
        changes: new values by name, from ``--set``.
        rect: turn off the augmentations in ``JOINING``.

    Raises:
        ConfigError: the recipe does not exist, a change is invalid, or it contradicts ``rect``.
    """
    from y7edge.train.settings.configfile import choose

    chosen = choose(text, model)
    try:
        chosen = chosen.changed(changes, "the command line")
    except ConfigError as error:
        raise ConfigError(f"--set: {error}") from error
    joined = {name: getattr(chosen.recipe.augmentation, name, 0) for name in JOINING}
    if rect and any(joined.values()):
        wanted = [name for name in changes if joined.get(name)]
        if wanted:
            raise ConfigError(f"--rect turns off {wanted[0]}: omit --set {wanted[0]}")
        chosen = chosen.changed(dict.fromkeys(joined, 0.0), "off by --rect")
    return chosen


def parsed(changes: Sequence[str], **shorthands: object) -> dict[str, str]:
    """Return changes of the recipe by name, such as ``{"lr0": "0.02"}``.

    Args:
        changes: values of ``--set``, such as ``["lr0=0.02"]``.
        shorthands: values that have an option of their own; None: the option was not given.

    Raises:
        ConfigError: a change is not NAME=VALUE, or a name is given twice.
    """
    values: dict[str, str] = {}
    for change in changes:
        name, _, value = (part.strip() for part in change.partition("="))
        if not name or not value:
            raise ConfigError(f"--set takes NAME=VALUE, such as lr0=0.02; found {change!r}")
        if name in values:
            raise ConfigError(f"--set {name} is given twice: {values[name]} and {value}")
        values[name] = value
    given = {name: str(short) for name, short in shorthands.items() if short is not None}
    if both := values.keys() & given.keys():
        raise ConfigError(f"{min(both)} is given by --set and by its own option")
    return values | given


def _frozen_rows(texts: Sequence[str], model: str) -> tuple[int, ...]:
    from y7edge.models import registry
    from y7edge.train.setup.freeze import parse

    return parse(texts, registry.get(model)) if texts else ()


def _note_remarks(config: TrainConfig) -> None:
    """Print a note for each setting that has no effect or turns off another one."""
    remarks = []
    if config.sync_bn and config.devices * config.nodes == 1 and "WORLD_SIZE" not in os.environ:
        remarks.append("--sync-bn has no effect on a single device")
    if config.rect:
        remarks.append("--rect: mosaic, mixup, copy-paste and paste-in are off")
    if config.image_weights and config.single_cls:
        remarks.append("--image-weights with --single-cls: there are no rare classes")
    for text in remarks if is_first() else []:
        note(text)


def is_first() -> bool:
    """Return whether this is the first of all processes of a distributed training."""
    return not any(int(os.environ.get(n) or 0) for n in ("RANK", "LOCAL_RANK", "NODE_RANK"))
