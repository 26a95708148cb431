"""Inputs: training states, other files of a run, and caches."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from tests.attack import mutate
from tests.attack.base import Attack, Make, Place

State = Any


def _run(place: Place) -> Path:
    """Copy the interrupted run; its data set is not copied."""
    return place.copy("run")


def _state(edit: Callable[[dict[str, Any], dict[str, Any]], object]) -> Make:
    """Return a state with other values or arrays and a matching checksum."""

    def make(place: Place) -> Path:
        import safetensors

        from y7edge.train.output.folder import STATE
        from y7edge.train.run.state import HEADER

        folder = _run(place)
        with safetensors.safe_open(folder / STATE, framework="numpy") as file:
            header = json.loads(file.metadata()[HEADER])
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        changed = edit(header["facts"], arrays)
        if isinstance(changed, dict):
            header["facts"] = changed
        _seal(folder, mutate.dumps(header), arrays)
        return folder

    return make


def _seal(folder: Path, text: str, arrays: dict[str, Any]) -> None:
    """Write the only state of a run, with a matching checksum."""
    from safetensors.numpy import save_file

    from y7edge.train.output.folder import PREVIOUS, STATE
    from y7edge.train.run.state import CHECKSUM, HEADER, _checksum

    (folder / PREVIOUS).unlink(missing_ok=True)
    metadata = {HEADER: text, CHECKSUM: str(_checksum(text, arrays))}
    save_file(arrays, folder / STATE, metadata=metadata)


def _mutated(place: Place) -> Path:
    from y7edge.train.output.folder import PREVIOUS, STATE

    what = place.rng.random()
    if what < 0.5:
        return _state(lambda facts, arrays: _other_facts(place.rng, facts))(place)
    if what < 0.65:
        return _state(lambda facts, arrays: _other_array(place.rng, arrays))(place)
    folder = _run(place)
    (folder / PREVIOUS).unlink(missing_ok=True)
    files = [folder / STATE] * 3 + [p for p in folder.iterdir() if p.is_file()]
    mutate.file(place.rng, place.rng.choice(files), mutate.raw, mutate.raw, mutate.text)
    return folder


def _other_facts(rng: Any, facts: dict[str, Any]) -> dict[str, Any]:
    """Mutate the values of a state, but rarely its settings, which must match the run."""
    if rng.random() < 0.2:
        return dict(mutate.tree(rng, {**facts}))
    kept = facts["identity"].pop("settings")
    changed = mutate.tree(rng, facts)
    if isinstance(changed.get("identity"), dict):
        changed["identity"].setdefault("settings", kept)
    return dict(changed)


def _other_array(rng: Any, arrays: dict[str, Any]) -> None:
    key = rng.choice(sorted(arrays))
    value = arrays[key]
    changes: list[Callable[[], Any]] = [
        lambda: value[None].copy(),
        lambda: value.ravel()[:-1].copy(),
        lambda: value.astype(np.float16),
        lambda: value.astype(np.int8),
        lambda: np.zeros((), np.float32),
        lambda: np.zeros((0,), np.float32),
    ]
    if rng.random() < 0.3:
        del arrays[key]
    elif rng.random() < 0.2:
        arrays["model.rows.999.conv.weight"] = value
    else:
        arrays[key] = rng.choice(changes)()


def _fact(way: str, value: Any) -> Make:
    """Set one value, by its dotted name."""

    def edit(facts: dict[str, Any], arrays: dict[str, Any]) -> None:
        *outer, last = way.split(".")
        holder = facts
        for key in outer:
            holder = holder[key]
        holder[last] = value

    return _state(edit)


def _in_rows(key: str, value: Any) -> Make:
    return _state(lambda f, a: [row.update({key: value}) for row in f["written"]["rows"]])


def _text_state(text: str) -> Make:
    def make(place: Place) -> Path:
        folder = _run(place)
        _seal(folder, text, {"a": np.zeros(1)})
        return folder

    return make


def _file(name: str, content: bytes) -> Make:
    def make(place: Place) -> Path:
        folder = _run(place)
        (folder / name).write_bytes(content)
        return folder

    return make


_VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    10**30,
    1.5,
    float("nan"),
    "x",
    "",
    [],
    {},
    [None],
    {"a": 1},
    "\x1b[2J",
)
_FACTS = (
    *("position", "identity", "finished", "began", "average", "scaler", "gathered", "written"),
    *("position.epoch", "position.batch", "position.closed", "position.sums", "position.seconds"),
    *("identity.settings", "identity.data", "identity.torch", "identity.threads", "began.origin"),
    *("began.notes", "began.anchors", "identity.device", "identity.processes", "x"),
)
STATES: dict[str, Make] = {
    **{
        f"{name} is {str(value)[:12]!a}": _fact(name, value) for name in _FACTS for value in _VALUES
    },
    "no facts": _state(lambda f, a: f.clear()),
    "no arrays": _state(lambda f, a: a.clear()),
    "finished": _fact("finished", True),
    "epoch beyond the last": _fact("position.epoch", 99),
    "epoch of 2**62": _fact("position.epoch", 2**62),
    "batch beyond the last": _fact("position.batch", 10**6),
    "sums of infinity": _fact("position.sums", [float("inf")] * 3),
    "anchors of zero": _fact("began.anchors", [[[0, 0]] * 3] * 3),
    "anchors of 10**308": _fact("began.anchors", [[[1e308, 1e308]] * 3] * 3),
    "anchors of another count": _fact("began.anchors", [[[9.0, 9.0]]] * 3),
    "origin of escapes": _fact("began.origin", "\x1b[2J" + "x" * 100_000),
    "notes of escapes": _fact("began.notes", ["\x1b[2J", mutate.HTML, "\ud800"]),
    "updates of 2**62": _fact("average.updates", 2**62),
    "updates of -1": _fact("average.updates", -1),
    **{
        f"{key} of rows is {value!a}": _in_rows(key, value)
        for key in ("epoch", "box", "map50", "lr", "seconds", "memory_mb")
        for value in (None, -1, 10**30, float("nan"), "/etc/passwd", [1])
    },
    "a million rows": _state(lambda f, a: f["written"].update(rows=f["written"]["rows"] * 20_000)),
    "deep facts": _fact("x", mutate.deep(300)),
    "weights are NaN": _state(
        lambda f, a: [v.fill(np.nan) for k, v in a.items() if v.dtype == np.float32] and None
    ),
    "generator of zeros": _state(
        lambda f, a: a.update({"run.generator": np.zeros(5056, np.uint8)})
    ),
    "generator is short": _state(lambda f, a: a.update({"run.generator": np.zeros(3, np.uint8)})),
    "generator of floats": _state(lambda f, a: a.update({"run.generator": np.zeros(5056)})),
    "header deep": _text_state("[" * 100_000),
    "header of digits": _text_state("9" * 10_000),
    "header empty": _text_state("{}"),
    "facts are a list": _text_state('{"schema":4,"facts":[]}'),
    "facts are empty": _text_state('{"schema":4,"facts":{}}'),
    "schema is a list": _text_state('{"schema":[4],"facts":{}}'),
    "schema of 10**400": _text_state('{"schema":' + "9" * 400 + ',"facts":{}}'),
    "state is empty": _file("state.safetensors", b""),
    "state is zeros": _file("state.safetensors", bytes(10_000)),
    "results are zeros": _file("results.csv", bytes(1000)),
    "results are letters": _file("results.csv", b"a,b\n1,2\n\xff\xfe"),
    "last is empty": _file("last.safetensors", b""),
    "config is empty": _file("config.yaml", b""),
}


def read(path: Path) -> None:
    """Read the last state."""
    from y7edge.train.run import state

    state.load(path, lambda found: str(found.facts.position), log=lambda line: None)


def resume(path: Path) -> None:
    """Resume the run up to its first batch."""
    from y7edge.train.run.loop import resume as go_on
    from y7edge.train.run.progress import Progress

    class Stop(Progress):
        def step(self, status: object) -> None:
            raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        go_on(path, progress=Stop())


# --- caches ---------------------------------------------------------------------------------------


def _cached(kind: str, edit: Callable[[Any, Path], object]) -> Make:
    """Fill a cache and mutate its files."""

    def make(place: Place) -> Path:
        os.environ["Y7EDGE_CACHE"] = str(place.inside / "cache")
        root = place.copy("yolo")
        _use(kind, root)
        files = [p for p in (place.inside / "cache").rglob("*") if p.is_file()]
        assert files, f"nothing is kept of {kind}"
        for file in files:
            edit(place.rng, file)
        return root

    return make


def _use(kind: str, root: Path) -> None:
    from y7edge.data import dataset, label_cache

    label_cache._WORTH_KEEPING = 1  # cache small sets too
    data = dataset.load(root)
    if kind == "images":
        from y7edge.train.loading.image_cache import open_cache

        images = open_cache("disk", data.split("train"), 64)
        assert all(image.shape[1] == 64 for image in images)


def _special(make: Callable[[Path], object]) -> Callable[[Any, Path], object]:
    def edit(rng: Any, path: Path) -> None:
        path.unlink()
        make(path)

    return edit


EDITS: dict[str, Callable[[Any, Path], object]] = {
    "changed": lambda rng, path: mutate.file(rng, path),
    "empty": lambda rng, path: path.write_bytes(b""),
    "zeros": lambda rng, path: path.write_bytes(bytes(path.stat().st_size)),
    "a pickle": lambda rng, path: np.save(path.open("wb"), np.array([{}]), allow_pickle=True),
    "a pipe": _special(os.mkfifo),
    "a folder": _special(Path.mkdir),
    "a device": _special(lambda path: path.symlink_to("/dev/zero")),
    "a link to itself": _special(lambda path: path.symlink_to(path)),
    "an array of 2**60": lambda rng, path: path.write_bytes(
        b"\x93NUMPY\x01\0v\0" + b"{'descr': '<f8', 'fortran_order': False, 'shape': (2**60,), }"
    ),
    "an image of 2**31": lambda rng, path: path.write_bytes(
        b"y7edgeP1" + struct.pack("<III", 2**31, 2**31, 0) + bytes(99)
    ),
}
CACHES: dict[str, Make] = {
    f"{kind}: {name}": _cached(kind, edit)
    for kind in ("labels", "images")
    for name, edit in EDITS.items()
}


def _damaged_cache(place: Place) -> Path:
    return _cached(place.rng.choice(("labels", "images")), EDITS["changed"])(place)


def use_labels(path: Path) -> None:
    """Read the data set with this cache."""
    _use("labels", path)


def use_images(path: Path) -> None:
    """Read the images with this cache."""
    _use("images", path)


ATTACKS = (
    Attack(
        "state",
        300,
        STATES,
        _mutated,
        {"read": read, "resume": resume},
        ("train --resume {}", "train --resume {} --json"),
    ),
    Attack("cache", 100, CACHES, _damaged_cache, {"labels": use_labels, "images": use_images}, ()),
)
