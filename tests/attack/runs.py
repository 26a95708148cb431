"""Training states, and what else lies in the folder of a run or in a cache."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.attack import mutate
from tests.attack.base import Attack, Make, Place

State = Any


def _run(place: Place) -> Path:
    """A copy of the interrupted run; where its data are stays as it was."""
    return place.copy("run")


def _state(edit: Callable[[dict[str, Any], dict[str, Any]], object]) -> Make:
    """A state with other facts or arrays, and a checksum that fits."""

    def make(place: Place) -> Path:
        from y7edge.train.output.folder import PREVIOUS, STATE
        from y7edge.train.run import state

        folder = _run(place)
        (folder / PREVIOUS).unlink(missing_ok=True)
        old = state.read(folder / STATE)
        facts, arrays = dict(old.facts), dict(old.arrays)
        changed = edit(facts, arrays)
        facts = changed if isinstance(changed, dict) else facts
        (folder / STATE).unlink()
        state.save(state.State(facts, arrays), folder)
        return folder

    return make


def _mutated(place: Place) -> Path:
    from y7edge.train.output.folder import PREVIOUS, STATE

    what = place.rng.random()
    if what < 0.5:
        return _state(lambda facts, arrays: mutate.tree(place.rng, facts))(place)
    if what < 0.65:
        return _state(lambda facts, arrays: _other_array(place.rng, arrays))(place)
    folder = _run(place)
    (folder / PREVIOUS).unlink(missing_ok=True)
    files = [folder / STATE] * 3 + [p for p in folder.iterdir() if p.is_file()]
    mutate.file(place.rng, place.rng.choice(files), mutate.raw, mutate.raw, mutate.text)
    return folder


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


def _fact(name: str, value: Any) -> Make:
    return _state(lambda facts, arrays: facts.update({name: value}))


def _text_state(text: str) -> Make:
    def make(place: Place) -> Path:
        from safetensors.numpy import save_file

        from y7edge.train.output.folder import PREVIOUS, STATE
        from y7edge.train.run.state import HEADER

        folder = _run(place)
        (folder / PREVIOUS).unlink(missing_ok=True)
        save_file({"a": np.zeros(1)}, folder / STATE, metadata={HEADER: text})
        return folder

    return make


def _file(name: str, content: bytes) -> Make:
    def make(place: Place) -> Path:
        folder = _run(place)
        (folder / name).write_bytes(content)
        return folder

    return make


_VALUES = (
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
_FACTS = ("epoch", "batch", "closed", "sums", "seconds", "gathered", "average", "scaler", "writer",
          "start", "identity", "finished")  # fmt: skip
STATES: dict[str, Make] = {
    **{f"{name} is {str(value)[:12]!a}": _fact(name, value) for name in _FACTS for value in _VALUES},
    "no facts": _state(lambda f, a: f.clear()),
    "no arrays": _state(lambda f, a: a.clear()),
    "finished": _fact("finished", True),
    "epoch beyond the last": _fact("epoch", 99),
    "batch beyond the last": _fact("batch", 10**6),
    "sums of texts": _fact("sums", ["a", "b", "c"]),
    "paths in the writer": _state(
        lambda f, a: f["writer"].update(dict.fromkeys(f["writer"], "/etc/passwd"))),
    "deep facts": _fact("x", mutate.deep(300)),
    "weights are NaN": _state(lambda f, a: [v.fill(np.nan) for k, v in a.items()
                                            if v.dtype == np.float32] and None),
    "generator of zeros": _state(lambda f, a: a.update({"run.generator": np.zeros(5056, np.uint8)})),
    "generator is short": _state(lambda f, a: a.update({"run.generator": np.zeros(3, np.uint8)})),
    "generator of floats": _state(lambda f, a: a.update({"run.generator": np.zeros(5056)})),
    "header deep": _text_state("[" * 100_000),
    "header of digits": _text_state("9" * 10_000),
    "header empty": _text_state("{}"),
    "facts are a list": _text_state('{"schema":3,"facts":[],"checksum":0}'),
    "facts are empty": _text_state('{"schema":3,"facts":{},"checksum":1213}'),
    "checksum is text": _text_state('{"schema":3,"facts":{},"checksum":"x"}'),
    "state is empty": _file("state.safetensors", b""),
    "state is zeros": _file("state.safetensors", bytes(10_000)),
    "results are zeros": _file("results.csv", bytes(1000)),
    "results are letters": _file("results.csv", b"a,b\n1,2\n\xff\xfe"),
    "last is empty": _file("last.safetensors", b""),
    "config is empty": _file("config.yaml", b""),
}  # fmt: skip


def read(path: Path) -> None:
    """Read the last state."""
    from y7edge.train.run import state

    found = state.load(path, log=lambda line: None)
    state.position(found)


def resume(path: Path) -> None:
    """Resume the run; up to its first batch, as the rest is only work."""
    from y7edge.train.run.loop import resume as go_on
    from y7edge.train.run.progress import Progress

    class Stop(Progress):
        def step(self, status: object) -> None:
            raise KeyboardInterrupt

    try:
        go_on(path, progress=Stop())
    except KeyboardInterrupt:
        pass


# --- caches ---------------------------------------------------------------------------------------


def _cached(kind: str, edit: Callable[[Any, Path], object]) -> Make:
    """A cache that was filled, and whose files were then changed."""

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

    label_cache._WORTH_KEEPING = 1  # a small set is kept too
    data = dataset.load(root)
    if kind == "pictures":
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
        b"\x93NUMPY\x01\0v\0" + b"{'descr': '<f8', 'fortran_order': False, 'shape': (2**60,), }"),
    "a picture of 2**31": lambda rng, path: path.write_bytes(
        b"y7edgeP1" + struct.pack("<III", 2**31, 2**31, 0) + bytes(99)),
}  # fmt: skip
CACHES: dict[str, Make] = {
    f"{kind}: {name}": _cached(kind, edit)
    for kind in ("labels", "pictures")
    for name, edit in EDITS.items()
}


def _damaged_cache(place: Place) -> Path:
    return _cached(place.rng.choice(("labels", "pictures")), EDITS["changed"])(place)


def use_labels(path: Path) -> None:
    """Read the set again, with the cache as it is."""
    _use("labels", path)


def use_pictures(path: Path) -> None:
    """Read the pictures again, with the cache as it is."""
    _use("pictures", path)


ATTACKS = (
    Attack("state", 300, STATES, _mutated, {"read": read, "resume": resume},
           ("train --resume {}", "train --resume {} --json")),
    Attack("cache", 100, CACHES, _damaged_cache,
           {"labels": use_labels, "pictures": use_pictures}, ()),
)  # fmt: skip
