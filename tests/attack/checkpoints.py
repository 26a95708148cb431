"""Inputs: native checkpoints whose digests match, so that the decoder is reached."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from tests.attack import mutate
from tests.attack.base import Attack, Make, Place


def _parts(place: Place, name: str = "model.safetensors") -> tuple[dict[str, Any], dict[str, Any]]:
    import safetensors

    with safetensors.safe_open(place.material / name, framework="numpy") as file:
        header = json.loads(file.metadata()["y7edge"])
        return header, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def _spec(values: Any) -> Any:
    """Decode rows with the package; return None if that fails."""
    from y7edge.artifact.schema import decode
    from y7edge.errors import CheckpointError
    from y7edge.models.spec import Spec

    with suppress(Exception):
        return decode(Spec, values, origin="", error=CheckpointError)
    return None


def seal(header: Any, arrays: dict[str, Any]) -> str:
    """Return a header with a matching digest of its content."""
    from y7edge.models.checkpoint import Checkpoint

    if isinstance(header, dict) and (spec := _spec(header.get("spec"))) is not None:
        with suppress(Exception):
            digest = Checkpoint(spec, arrays, header["names"], {}).digest
            header = {**header, "digest": digest}
    return mutate.dumps(header)


def _write(place: Place, header: Any, arrays: dict[str, Any], text: str | None = None) -> Path:
    from safetensors.numpy import save_file

    path = place.inside / "a.safetensors"
    save_file(arrays, path, metadata={"y7edge": seal(header, arrays) if text is None else text})
    return path


def _own(edit: Callable[[dict[str, Any], dict[str, Any]], object]) -> Make:
    def make(place: Place) -> Path:
        header, arrays = _parts(place)
        text = edit(header, arrays)
        return _write(place, header, arrays, text if isinstance(text, str) else None)

    return make


def fitting(rows: Callable[[dict[str, Any]], object], fill: float = 0.01) -> Make:
    """Write other rows, with weights of the required shapes if these are small."""

    def make(place: Place) -> Path:
        from y7edge.models.shapes import weight_shapes

        header, arrays = _parts(place)
        rows(header["spec"])
        with suppress(Exception):  # refused by the package: keep the old weights
            spec = _spec(header["spec"])
            shapes = weight_shapes(spec)
            if sum(int(np.prod(s, dtype=object)) for s in shapes.values()) < 10**7:
                filled = {key: _filled(key, shape, arrays, fill) for key, shape in shapes.items()}
                pixels, strides = np.array(spec.anchors), np.array(spec.strides, float)
                with np.errstate(all="ignore"):
                    grid = (pixels / strides[:, None, None]).astype(np.float32)
                arrays = {**filled, f"rows.{spec.head.index}.anchors": grid}
        return _write(place, header, arrays)

    return make


def _filled(key: str, shape: tuple[int, ...], arrays: dict[str, Any], fill: float) -> Any:
    if key in arrays and arrays[key].shape == shape:
        return arrays[key]
    kind = np.int64 if key.endswith("num_batches_tracked") else np.float32
    return np.full(shape, 1 if kind is np.int64 else fill, kind)


def _rows(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda spec: [row.update(changes) for row in spec["rows"][:3]]


def _tower(spec: dict[str, Any]) -> None:
    """Nest concatenations to get 2**n channels."""
    head, rows = spec["rows"][-1], spec["rows"][:-1]
    for _ in range(40):
        last = len(rows) - 1
        rows.append(
            {
                **rows[0],
                "index": last + 1,
                "inputs": [last, last],
                "block": "concat",
                "out": rows[-1]["out"] * 2,
                "kernel": 1,
                "stride": 1,
            }
        )
    spec["rows"] = [*rows, {**head, "index": len(rows)}]


def _long(count: int) -> Callable[[dict[str, Any]], None]:
    def edit(spec: dict[str, Any]) -> None:
        head, rows = spec["rows"][-1], spec["rows"][:-1]
        for _ in range(count):
            last = len(rows) - 1
            rows.append(
                {
                    **rows[0],
                    "index": last + 1,
                    "inputs": [last, last],
                    "block": "sum",
                    "out": rows[-1]["out"],
                    "kernel": 1,
                    "stride": 1,
                }
            )
        spec["rows"] = [*rows, {**head, "index": len(rows)}]

    return edit


def _block(index: int, **changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda spec: spec["rows"][index].update(changes)


SPECS: dict[str, Callable[[dict[str, Any]], object]] = {
    "kernel of 10**9": _rows(kernel=10**9),
    "kernel of 10**4": _block(0, kernel=9999),
    "kernel of 0": _rows(kernel=0),
    "kernel of -1": _rows(kernel=-1),
    "kernel of 2": _rows(kernel=2),
    "stride of 0": _rows(stride=0),
    "stride of 10**9": _rows(stride=10**9),
    "stride of -2": _rows(stride=-2),
    "channels of 10**9": _rows(out=10**9),
    "channels of 10**30": _rows(out=10**30),
    "channels of 0": _rows(out=0),
    "channels of -8": _rows(out=-8),
    "concat of concat": _tower,
    "5000 more rows": _long(5000),
    "100 more rows": _long(100),
    "pool of 10**9": _block(0, block="maxpool", kernel=10**9),
    "pool of 9999": _block(0, block="maxpool", kernel=9999),
    "upsample first": _block(0, block="upsample", out=3),
    "every row an upsample": lambda s: [
        r.update(block="upsample", out=3, inputs=[i - 1], kernel=1, stride=1)
        for i, r in enumerate(s["rows"][:-1])
    ],
    "every row a reorg": lambda s: [
        r.update(block="reorg", out=3 * 4 ** min(i + 1, 50), inputs=[i - 1])
        for i, r in enumerate(s["rows"][:-1])
    ],
    "sums of other shapes": lambda s: [
        r.update(block="sum", inputs=[-1, 0]) for r in s["rows"][5:9]
    ],
    "repconv of odd widths": _block(3, block="repconv", out=7, identity=True),
    "downc of odd width": _block(3, block="downc", out=7),
    "sppcspc of width 1": _block(3, block="sppcspc", out=1),
    "head reads the image": lambda s: s["rows"][-1].update(inputs=[-1, -1, -1]),
    "nc of 10**9": lambda s: s.update(nc=10**9),
    "nc of true": lambda s: s.update(nc=True),
    "strides of 10**9": lambda s: s.update(strides=[10**9] * 3),
    "strides of 0": lambda s: s.update(strides=[0, 0, 0]),
    "strides of 3": lambda s: s.update(strides=[3, 5, 7]),
    "strides descend": lambda s: s.update(strides=[32, 16, 8]),
    "anchors of 10**308": lambda s: s.update(anchors=[[[1e308, 1e308]] * 3] * 3),
    "anchors of 10**-320": lambda s: s.update(anchors=[[[1e-320, 1e-320]] * 3] * 3),
    "anchors of integers": lambda s: s.update(anchors=[[[10**400, 1]] * 3] * 3),
    "100,000 anchors": lambda s: s.update(anchors=[[[9.0, 9.0]] * 100_000] * 3),
    "anchors of three": lambda s: s.update(anchors=[[[1, 2, 3]] * 3] * 3),
    "imgsz of 10**9": lambda s: s.update(imgsz=10**9),
    "imgsz of -1": lambda s: s.update(imgsz=-1),
    "name of escapes": lambda s: s.update(name="\x1b[2J\u202e"),
    "name of 100,000 letters": lambda s: s.update(name="x" * 100_000),
    "name of a surrogate": lambda s: s.update(name="\ud800"),
    "no rows": lambda s: s.update(rows=[]),
    "form of another": lambda s: s.update(form="folded"),
    "deploy form": lambda s: s.update(form="deploy"),
    "activation of another": lambda s: s.update(activation="exec"),
}
_METAS: tuple[Any, ...] = (
    {"imgsz": 16384},
    {"imgsz": [16384, 16384]},
    {"imgsz": 10**400},
    {"imgsz": "x"},
    {"imgsz": []},
    {"imgsz": [33, 1]},
    {"imgsz": True},
    {"imgsz": [32.0, 32.0]},
    {"thresholds": {"conf": "x"}},
    {"thresholds": {"conf": float("nan")}},
    {"thresholds": {"conf": -5}},
    {"thresholds": [1]},
    {"thresholds": {"conf": 10**400}},
    {"licence": 5},
    {"licence": {"a": [1]}},
    {"licence": "x" * 10**6},
    {"licence": "\x1b[2J"},
    {"data": "/etc/passwd"},
    {"data": "/dev/zero"},
    {"data": 5},
    {"data": {"path": "/dev/zero", "split": "val"}},
    {"data": "\0"},
    {"data": ["a"]},
    {"data": "../outside"},
    {"epoch": [1]},
    {"epoch": "x"},
    {"provenance": 5},
    {"provenance": [[]]},
    {"levels": [1, 2, 3]},
    {"levels": "x"},
    {"levels": [float("nan"), 1]},
    {"levels": {"a": 1}},
    {"metrics": [None]},
    {"metrics": {"map50": "x"}},
    {"config": 1},
    {"recipe": "x"},
    {"names": 4},
    {"a": mutate.deep(300)},
    {str(i): i for i in range(100_000)},
    [],
    None,
    "x",
    5,
)


def _entry(key: str, value: Any) -> Callable[[dict[str, Any], dict[str, Any]], object]:
    return lambda header, arrays: header.update({key: value})


CHECKPOINTS: dict[str, Make] = {
    **{name: fitting(edit) for name, edit in SPECS.items()},
    **{f"meta {mutate.dumps(meta)[:30]}": _own(_entry("meta", meta)) for meta in _METAS},
    "names are one text": _own(lambda h_, a: h_.update(names="abc")),
    "names are numbers": _own(lambda h_, a: h_.update(names=[1, 2, 3])),
    **{
        f"name {ascii(name)[:24]}": _own(_entry("names", [name, "b", "c"])) for name in mutate.NAMES
    },
    "schema is a list": _own(lambda h_, a: h_.update(schema=[1])),
    "schema is true": _own(lambda h_, a: h_.update(schema=True)),
    "schema of 10**400": _own(lambda h_, a: h_.update(schema=10**400)),
    "deep header": _own(lambda h_, a: "[" * 100_000),
    "header is a number": _own(lambda h_, a: "9" * 10_000),
    "header is nothing": _own(lambda h_, a: ""),
    "weights are NaN": _own(lambda h_, a: next(iter(a.values())).fill(np.nan)),
    "weights are huge": _own(
        lambda h_, a: [v.fill(3e38) for v in a.values() if v.dtype == np.float32] and None
    ),
    "weights are tiny": _own(
        lambda h_, a: [v.fill(1e-40) for v in a.values() if v.dtype == np.float32] and None
    ),
    "variances are negative": _own(
        lambda h_, a: [v.fill(-1) for k, v in a.items() if k.endswith("running_var")] and None
    ),
    "counters are negative": _own(
        lambda h_, a: [v.fill(-(2**63)) for k, v in a.items() if k.endswith("tracked")] and None
    ),
    "100,000 more tensors": _own(
        lambda h_, a: a.update({f"x{i}": np.zeros(1) for i in range(30_000)})
    ),
    "an empty tensor": _own(lambda h_, a: a.update({next(iter(a)): np.zeros((0,), np.float32)})),
    "no tensors": _own(lambda h_, a: a.clear()),
}


def _raw_safetensors(header: bytes, data: bytes = b"", size: int | None = None) -> Make:
    def make(place: Place) -> Path:
        path = place.inside / "a.safetensors"
        count = len(header) if size is None else size
        path.write_bytes(count.to_bytes(8, "little") + header + data)
        return path

    return make


RAW: dict[str, Make] = {
    "header of 2**63": _raw_safetensors(b"{}", size=2**63),
    "header of 100 MB": _raw_safetensors(b"{}", size=100_000_000),
    "deep header": _raw_safetensors(b"[" * 100_000),
    "tensor beyond the end": _raw_safetensors(
        b'{"a":{"dtype":"F32","shape":[1000000000],"data_offsets":[0,4000000000]}}'
    ),
    "shape that overflows": _raw_safetensors(
        b'{"a":{"dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,0]}}'
    ),
    "offsets backwards": _raw_safetensors(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}', bytes(4)
    ),
    "unknown dtype": _raw_safetensors(
        b'{"a":{"dtype":"F8_E8M0","shape":[4],"data_offsets":[0,4]}}', bytes(4)
    ),
    "bf16": _raw_safetensors(
        b'{"__metadata__":{"y7edge":"{}"},"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}',
        bytes(4),
    ),
    "f8": _raw_safetensors(
        b'{"__metadata__":{"y7edge":"{}"},"a":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}}',
        bytes(4),
    ),
    "metadata is a list": _raw_safetensors(b'{"__metadata__":[1]}'),
    "metadata is empty": _raw_safetensors(b'{"__metadata__":{}}'),
    "not utf-8": _raw_safetensors(b'{"\xff\xfe":{}}'),
    "nothing": lambda place: _raw_safetensors(b"", size=0)(place),
}


def _own_mutated(place: Place) -> Path:
    rng = place.rng
    header, arrays = _parts(place, rng.choice(("model.safetensors", "folded.safetensors")))
    what = rng.random()
    if what < 0.55:
        header[rng.choice(("spec", "spec", "names", "meta"))] = mutate.tree(
            rng, header[rng.choice(("spec", "spec", "spec", "meta"))]
        )
        if rng.random() < 0.7:
            original = _parts(place)[0]
            part = rng.choice(("spec", "spec", "meta", "names"))
            header = {**original, part: mutate.tree(rng, original[part])}
        return _write(place, header, arrays)
    if what < 0.75:
        spec = header["spec"]

        def change(old: dict[str, Any]) -> None:
            old.clear()
            old.update(mutate.tree(rng, spec, 1))

        return fitting(change)(place)
    if what < 0.85:
        key = rng.choice(sorted(arrays))
        arrays[key] = rng.choice(
            (
                arrays[key][None],
                arrays[key].astype(np.float16),
                arrays[key].ravel(),
                np.zeros(3, np.uint8),
            )
        )
        return _write(place, header, arrays)
    path = _write(place, header, arrays)
    mutate.file(rng, path)
    return path


# --- readers --------------------------------------------------------------------------------------


def load(path: Path) -> None:
    """Read a checkpoint and run `info`."""
    from y7edge.cli.info import info
    from y7edge.models import weights

    loaded = weights.load(path)
    assert all(np.isfinite(array).all() for array in loaded.arrays.values()), "not finite"
    info(str(path), as_json=True)
    info(str(path))


def detect(path: Path) -> None:
    """Open a Detector and run it."""
    from y7edge import Detector

    with Detector(path, imgsz=None) as detector:
        detector(np.zeros((40, 60, 3), np.uint8))


def detect_small(path: Path) -> None:
    """Open a Detector and run it on another input size."""
    from y7edge import Detector

    with Detector(path, imgsz=(64, 96)) as detector:
        detector(np.full((40, 60, 3), 99, np.uint8)).to_dict()


def export(path: Path) -> None:
    """Fold the model and write the graph, without the slow proof."""
    from y7edge.artifact.description import describe
    from y7edge.export.folding import fold_checkpoint
    from y7edge.export.graph import build
    from y7edge.models import weights
    from y7edge.models.registry import folded

    loaded = weights.load(path)
    draft = describe(
        loaded,
        folded(loaded.spec),
        loaded.imgsz,
        batch=1,
        outputs="heads",
        precision="fp32",
        target="onnx",
        opset=build.OPSET,
        tools={},
    )
    assert draft.to_json()
    fold_checkpoint(loaded)


def finetune(path: Path) -> None:
    """Initialize a model from the checkpoint."""
    from y7edge.models import registry, weights
    from y7edge.models.scaling import scale
    from y7edge.nn.build import Model
    from y7edge.train.setup.finetune import copy_matching

    model = Model(scale(registry.get("yolov7-tiny", nc=3), width=0.125))
    copy_matching(model, weights.load(path), ("nut", "washer", "x"), str(path))


def soup(path: Path) -> None:
    """Average the checkpoint with a valid one, like `soup`."""
    from y7edge.train.averaging.soup import load_all, mean, require_alike

    loaded = load_all([path, path.parents[3] / "material" / "model.safetensors"])
    require_alike(loaded)
    mean(list(loaded.values()))


COMMANDS = (
    "info {}",
    "info {} --json",
    "export {} --out {out}.onnx --imgsz 64x96 --json",
    "predict {} {material}/images --json",
    "verify {material}/model.onnx --against {}",
    "train --data {material}/yolo --weights {} --width 0.125 --imgsz 64 --profile 1 --batch 2",
    "val {} --data {material}/yolo --imgsz 64 --json",
    "soup {} {material}/model.safetensors --data {material}/yolo --out {out}.safetensors",
)
ATTACKS = (
    Attack(
        "checkpoint",
        640,
        {**CHECKPOINTS, **RAW},
        _own_mutated,
        {
            "load": load,
            "detect": detect,
            "detect_small": detect_small,
            "export": export,
            "finetune": finetune,
            "soup": soup,
        },
        COMMANDS,
    ),
)
