"""Inputs: arguments of unexpected types or sizes, in Python and on the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.attack import mutate
from tests.attack.base import Attack, Make, Place

VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    3,
    10**6,
    10**12,
    10**400,
    -(10**400),
    0.5,
    -0.5,
    1.5,
    1e308,
    1e-320,
    float("nan"),
    float("inf"),
    "",
    "x",
    "0",
    "cpu",
    "auto",
    "cuda",
    "cuda:0",
    "cuda:99",
    "cpu:0",
    "cuda:" + "9" * 5000,
    "mps",
    "\x1b[2J",
    "\ud800",
    "\0",
    "x" * 100_000,
    b"cpu",
    [],
    {},
    (),
    [0],
    ["x"],
    [None],
    (1, 2),
    (64, 96),
    (64,),
    (0, 0),
    (-64, 96),
    (10**9, 10**9),
    ("a", "b"),
    (64.0, 96.0),
    {"a": 1},
    {1: 2},
    {"intra_op_num_threads": "x"},
    {"": ""},
    np.int64(3),
    np.float32(0.5),
    np.nan,
    np.zeros(3),
    np.array("x"),
    np.array(None),
    np.zeros((2, 2)),
    np.bool_(True),
    object(),
    int,
    print,
    Path("x"),
    Path("/dev/zero"),
    range(3),
    iter([1]),
    set("a"),
    complex(1, 1),
    slice(1),
    Ellipsis,
    mutate.deep(500),
    ["nut"],
    "nut",
    "schraube mit Öse",
    [1, "nut"],
    ["nut"] * 10_000,
    [1.0],
    [True],
)
PATHS = tuple(value for value in VALUES if isinstance(value, str | Path))
FRAMES: tuple[Any, ...] = (
    None,
    0,
    "x",
    b"x",
    [],
    [[1]],
    np.zeros(()),
    np.zeros((3,)),
    np.zeros((0, 0, 3), np.uint8),
    np.zeros((4, 0, 3), np.uint8),
    np.zeros((4, 4, 0), np.uint8),
    np.zeros((4, 4, 1), np.uint8),
    np.zeros((4, 4, 2), np.uint8),
    np.zeros((4, 4, 5), np.uint8),
    np.zeros((1, 4, 4, 3), np.uint8),
    np.zeros((4, 4, 3)),
    np.zeros((4, 4, 3), np.float16),
    np.zeros((4, 4, 3), np.int64),
    np.zeros((4, 4, 3), bool),
    np.zeros((4, 4, 3), complex),
    np.zeros((4, 4, 3), object),
    np.zeros((4, 4, 3), "U1"),
    np.zeros((4, 4), "M8[s]"),
    np.zeros((4, 4), np.uint16),
    np.broadcast_to(np.uint8(3), (100_000, 100_000, 3)),
    np.broadcast_to(np.uint8(3), (1, 10**6, 3)),
    np.broadcast_to(np.uint8(3), (10**6, 1, 3)),
    np.zeros((1, 1, 3), np.uint8)[::-1, ::-1],
    np.zeros((8, 8, 3), np.uint8)[::2, ::2],
    np.ma.zeros((4, 4, 3), np.uint8),
    np.matrix([[1]]),
    np.zeros((4, 4, 3), np.uint8).view(np.recarray),
    np.zeros((4, 4, 3), ">u2"),
    memoryview(b"abc"),
    np.zeros((3, 8, 8), np.uint8),
    np.zeros((40, 60, 3), np.uint8).T,
    "images/a.jpg",
    Path("a.jpg"),
)


def _with(call: Callable[[Path, Any], object], values: tuple[Any, ...] = VALUES) -> Make:
    """Make inputs that call a function with a random value when they are read."""

    def make(place: Place) -> Path:
        _PENDING[:] = [(call, place.rng.choice(values), place.material)]
        return place.inside

    return make


# The call for the forked process to make; inputs are passed as paths, which cannot contain it.
_PENDING: list[tuple[Callable[[Path, Any], object], Any, Path]] = []


def go(path: Path) -> None:
    """Make the pending call."""
    call, value, material = _PENDING[0]
    call(material, value)


def _detector(**fixed: Any) -> Callable[[str], Callable[[Path, Any], object]]:
    def of(name: str) -> Callable[[Path, Any], object]:
        def call(material: Path, value: Any) -> None:
            from y7edge import Detector

            with Detector(material / "model.onnx", **{**fixed, name: value}) as detector:
                detector(np.zeros((40, 60, 3), np.uint8))

        return call

    return of


def _use(how: Callable[[Any, Any], object]) -> Callable[[Path, Any], object]:
    def call(material: Path, value: Any) -> None:
        from y7edge import Detector

        with Detector(material / "model.onnx", threads=1) as detector:
            how(detector, value)

    return call


def _source(material: Path, value: Any) -> None:
    from y7edge import Detector

    Detector(value).close()


def _of_checkpoint(material: Path, value: Any) -> None:
    from y7edge import Detector

    with Detector(material / "model.safetensors", imgsz=value) as detector:
        detector(np.zeros((40, 60, 3), np.uint8))


def _config(name: str) -> Callable[[Path, Any], object]:
    def call(material: Path, value: Any) -> None:
        from y7edge.train.settings.config import TrainConfig

        config = TrainConfig(**{"data": material / "yolo", name: value})
        assert config.hyper
        assert config.validation_interval > 0

    return call


def _export(name: str) -> Callable[[Path, Any], object]:
    def call(material: Path, value: Any) -> None:
        from y7edge.export import export
        from y7edge.models import weights

        given = {"imgsz": (64, 96), "simplify": False, name: value}
        export(weights.load(material / "model.safetensors"), Path("made.onnx").absolute(), **given)

    return call


def _loaded(call: Callable[[Any], object]) -> Callable[[Path, Any], object]:
    return lambda material, value: call(value)


def _dataset(value: Any) -> None:
    from y7edge.data import dataset

    dataset.load(value)


def _variant(value: Any) -> None:
    from y7edge.models import registry

    registry.get(value)


def _classes(value: Any) -> None:
    from y7edge.models import registry

    registry.get("yolov7-tiny", nc=value)


def _image(value: Any) -> None:
    from y7edge.data.images import read_image

    read_image(value)


_FIELDS = (
    "data",
    "model",
    "width",
    "weights",
    "imgsz",
    "train_split",
    "single_cls",
    "recipe",
    "assigner",
    "epochs",
    "batch",
    "nominal_batch",
    "patience",
    "device",
    "devices",
    "nodes",
    "precision",
    "workers",
    "cache",
    "out",
    "checkpoint_minutes",
    "seed",
    "freeze",
    "licence",
    "profile",
    "spec",
)
CALLS: dict[str, Make] = {
    **{
        f"Detector({name}=)": _with(_detector()(name))
        for name in (
            "backend",
            "device",
            "conf",
            "iou",
            "max_det",
            "classes",
            "agnostic",
            "threads",
            "imgsz",
            "provider_options",
        )
    },
    "Detector(source)": _with(_source),
    "Detector(checkpoint, imgsz=)": _with(_of_checkpoint),
    "detector(frame)": _with(_use(lambda d, v: d(v)), FRAMES),
    "detector(frame, color)": _with(_use(lambda d, v: d(np.zeros((4, 4, 3), np.uint8), v))),
    "detector(source=)": _with(
        _use(lambda d, v: d(np.zeros((4, 4, 3), np.uint8), source=v).to_dict())
    ),
    "detector(frame_id=)": _with(_use(lambda d, v: d(np.zeros((4, 4, 3), np.uint8), frame_id=v))),
    "detector(timestamp_ns=)": _with(
        _use(lambda d, v: d(np.zeros((4, 4, 3), np.uint8), timestamp_ns=v))
    ),
    "detector.batch(frames)": _with(_use(lambda d, v: d.batch(v)), (*VALUES, *FRAMES)),
    "detector.batch([frame])": _with(_use(lambda d, v: d.batch([v])), FRAMES),
    "detector.batch(source=)": _with(
        _use(lambda d, v: d.batch([np.zeros((4, 4, 3), np.uint8)], source=v))
    ),
    **{f"TrainConfig({name}=)": _with(_config(name)) for name in _FIELDS},
    **{
        f"export({name}=)": _with(_export(name))
        for name in (
            "target",
            "outputs",
            "input",
            "precision",
            "imgsz",
            "batch",
            "images",
            "rewrites",
            "device",
            "options",
            "unverified",
        )
    },
    "dataset.load()": _with(_loaded(_dataset), PATHS),
    "registry.get()": _with(_loaded(_variant), PATHS),
    "registry.get(nc=)": _with(_loaded(_classes)),
    "read_image()": _with(_loaded(_image), PATHS),
}

# --- the command line -----------------------------------------------------------------------------

WORDS = (
    *(
        "0",
        "-1",
        "1e400",
        "nan",
        "inf",
        "10" * 200,
        "9" * 5000,
        "x",
        "",
        " ",
        "64x",
        "x64",
        "64x96x3",
    ),
    *(
        "64X96",
        "６４",
        "1_0",
        "0x40",
        "1e1",
        "64.0",
        "+64",
        "auto",
        "cuda:99",
        "cuda:" + "9" * 5000,
    ),
    *(
        "\x1b[2J",
        "\u202e",
        "é" * 1000,
        "\udcff",
        "-",
        "--",
        "--help",
        "/dev/zero",
        "/proc/self/mem",
        ".",
    ),
    *(
        "a=b",
        "=",
        "a=",
        "=b",
        "lr0=1e400",
        "lr0=nan",
        "mosaic=x",
        "x" * 100_000,
        "name\nname",
        "{}",
        "[]",
    ),
    *(
        "yolov7",
        "../..",
        "~",
        "*",
        "**",
        "***",
        "[",
        "a/**b/*",
        "\\",
        "%s",
        "nut",
        "1,2,3",
        "0-999999999",
    ),
)
LINES = (
    "predict {material}/model.onnx {material}/images/a.jpg --conf {}",
    "predict {material}/model.onnx {material}/images/a.jpg --iou {}",
    "predict {material}/model.onnx {material}/images/a.jpg --max-det {}",
    "predict {material}/model.onnx {material}/images/a.jpg --class {}",
    "predict {material}/model.onnx {material}/images/a.jpg --threads {}",
    "predict {material}/model.onnx {material}/images/a.jpg --device {}",
    "predict {material}/model.onnx {material}/images/a.jpg --backend {}",
    "predict {material}/model.safetensors {material}/images/a.jpg --imgsz {}",
    "predict {material}/model.onnx {}",
    "predict {} {material}/images/a.jpg",
    "info {}",
    "info yolov7 --imgsz {}",
    "val {material}/model.onnx --data {material}/yolo --split {}",
    "val {material}/model.onnx --data {}",
    "data check {}",
    "data check {material}/yolo --imgsz {}",
    "train --data {material}/yolo --print-recipe --set {}",
    "train --data {material}/yolo --print-recipe --recipe {}",
    "train --data {material}/yolo --print-recipe --label-smoothing {}",
    "train --data {material}/yolo --profile 1 --imgsz 32 --width {}",
    "train --data {material}/yolo --profile 1 --width 0.125 --imgsz {}",
    "train --data {material}/yolo --profile 1 --width 0.125 --imgsz 32 --freeze {}",
    "train --data {material}/yolo --profile 1 --width 0.125 --imgsz 32 --batch {}",
    "train --data {material}/yolo --profile 1 --width 0.125 --imgsz 32 --device {}",
    "train --data {material}/yolo --profile 1 --width 0.125 --imgsz 32 --seed {}",
    "train --data {material}/yolo --profile 1 --width 0.125 --imgsz 32 --assigner {}",
    "train --data {material}/yolo --model {}",
    "train --resume {}",
    "export {material}/model.safetensors --imgsz {} --out {out}.onnx",
    "export {material}/model.safetensors --target {} --out {out}.onnx",
    "export {material}/model.safetensors --batch {} --imgsz 64x96 --out {out}.onnx",
    "export {material}/model.safetensors --option {} --imgsz 64x96 --out {out}.onnx",
    "benchmark {material}/model.onnx --runs 1 --threads {}",
    "soup {} {} --data {material}/yolo --out {out}.safetensors",
    "build {material}/model.onnx --target {} --out {out}.xml",
    "verify {material}/model.onnx --against {}",
    "{} --json",
)


def _word(word: str) -> Make:
    # The "path" of such an input is the word.
    return lambda place: Path(word)


ATTACKS = (
    Attack("option", 460, CALLS, None, {"call": go}),
    Attack("word", 80, {ascii(word)[:24]: _word(word) for word in WORDS}, None, {}, LINES),
)
