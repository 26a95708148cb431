"""Checkpoints: published files (pickles), and our own with digests that are right."""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.attack import mutate
from tests.attack.base import Attack, Make, Place
from tests.attack.guard import MARK
from tests.models.published import hostile_files as h

COMMAND = f"touch {MARK}"
# Calls that a pickle would make, each running the word that the guard looks for.
CALLS = {
    "os.system": (("os", "system"), h.text(COMMAND)),
    "posix.system": (("posix", "system"), h.text(COMMAND)),
    "subprocess": (("subprocess", "Popen"), h.text(COMMAND)),
    "eval": (("builtins", "eval"), h.text(f"__import__('os').system('{COMMAND}')")),
    "exec": (("builtins", "exec"), h.text(f"{MARK} = 1")),
    "old eval": (("__builtin__", "eval"), h.text(f"'{MARK}'")),
    "import": (("builtins", "__import__"), h.text(MARK)),
    "importlib": (("importlib", "import_module"), h.text(MARK)),
    "runpy": (("runpy", "run_path"), h.text(MARK)),
    "open": (("builtins", "open"), h.text("../outside/" + MARK)),
    "getattr": (("builtins", "getattr"), h.text("os")),
    "numpy load": (("numpy", "load"), h.text(MARK)),
    "torch load": (("torch", "load"), h.text(MARK)),
    "torch hub": (("torch.hub", "load"), h.text(MARK)),
    "copyreg": (("copyreg", "__newobj__"), h.text(MARK)),
    "partial": (("functools", "partial"), h.name("os", "system")),
    "pickle loads": (("pickle", "loads"), h.text(MARK)),
    "dotted": (("torch", "_utils.os.system"), h.text(COMMAND)),
    "dotted through numpy": (("numpy", "f2py.os.system"), h.text(COMMAND)),
    "fromfile": (("numpy", "fromfile"), h.text("/etc/passwd")),
    "memmap": (("numpy", "memmap"), h.text("../outside/secret.bin")),
}
PROGRAMS = {
    **{name: h.program(h.call(h.name(*who), what)) for name, (who, what) in CALLS.items()},
    **{
        f"{name} in a model": h.program(h.mapping(model=h.call(h.name(*who), what)))
        for name, (who, what) in list(CALLS.items())[:6]
    },
    "stack of STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93" + h.text(COMMAND) + b"\x85R.",
    "extension codes": b"\x80\x02\x82\x01.\x83\x01\x00.\x84\x01\x00\x00\x00.",
    "long of 2**31 bytes": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "text of 2**63 bytes": b"\x80\x04\x8d" + struct.pack("<Q", 2**63 - 1) + b".",
    "bytes of 2**32": b"\x80\x03B\xff\xff\xff\xff.",
    "frame of 2**63": b"\x80\x04\x95" + struct.pack("<Q", 2**63 - 1) + b".",
    "memo of 2**31": b"\x80\x02]r\xff\xff\xff\x7f.",
    "get of nothing": b"\x80\x02h\x05.",
    "a million marks": b"\x80\x02" + b"(" * 1_000_000 + b".",
    "a million lists": b"\x80\x02" + b"]" * 1_000_000 + b".",
    "nested a million deep": b"\x80\x02" + b"]" * 500_000 + b"a" * 499_999 + b".",
    "holds itself": b"\x80\x02]q\x00h\x00a.",
    "a mapping that holds itself": b"\x80\x02}q\x00X\x01\0\0\0ah\x00s.",
    "doubling": b"\x80\x02]q\x00"
    + b"".join(b"]h" + bytes([i]) + b"ah" + bytes([i]) + b"aq" + bytes([i + 1]) for i in range(60))
    + b".",
    "text doubling": b"\x80\x02X\x01\0\0\0a" + b"0" + h.text("a" * 1000) * 1000 + b".",
    "colliding integers": b"\x80\x02}("
    + b"".join(h.number((2**61 - 1) * i) + b"N" for i in range(1, 20_000))
    + b"u.",
    "colliding integers in a model": h.program(
        b"}("
        + h.text("model")
        + b"}("
        + b"".join(h.number((2**61 - 1) * i) + b"N" for i in range(1, 20_000))
        + b"uu"
    ),
    "decimal number of 100,000 digits": b"\x80\x02I" + b"9" * 100_000 + b"\n.",
    "decimal long": b"\x80\x02L" + b"9" * 100_000 + b"L\n.",
    "float of words": b"\x80\x02Fnan?\n.",
    "protocol 99": b"\x80\x63N.",
    "protocol 0": b"(dp0\nS'model'\np1\ncos\nsystem\np2\ns.",
    "unicode errors": b"\x80\x02X\x02\0\0\0\xff\xfe.",
    "raw unicode": b"\x80\x02V\\ud800\\u0000\n.",
    "nothing": b"",
    "only stop": b".",
    "persistent id": b"\x80\x02Pos.system\n.",
    "unhashable key": b"\x80\x02}]]s.",
    "setting of a tuple": b"\x80\x02))N\x86b.",
    "build on nothing": h.program(h.build(b"N", h.mapping(a=b"N"))),
    "next buffer": b"\x80\x05\x97\x98.",
    "set and frozenset": b"\x80\x04\x8f(]\x90.",
}
TENSORS = {
    "a huge shape": h.tensor(shape=(2**40, 2**40), strides=(1, 1)),
    "a huge shape of stride 0": h.tensor(shape=(2**31, 2**31), strides=(0, 0)),
    "a large shape of stride 0": h.tensor(shape=(60_000, 60_000), strides=(0, 0)),
    "a negative shape": h.tensor(shape=(-1,)),
    "a negative stride": h.tensor(shape=(4,), strides=(-1,)),
    "a negative offset": h.tensor(offset=-1),
    "an offset of 2**62": h.tensor(offset=2**62),
    "a shape of 5000 dimensions": h.tensor(shape=(1,) * 5000, strides=(1,) * 5000),
    "another count of strides": h.tensor(shape=(4,), strides=(1, 1)),
    "a storage of -1": h.tensor(h.storage(length=-1)),
    "a storage of 2**62": h.tensor(h.storage(length=2**62), shape=(2**62,)),
    "a storage that is missing": h.tensor(h.storage(key="7")),
    "a storage elsewhere": h.tensor(h.storage(key="../../../outside/secret.bin")),
    "a storage with a zero": h.tensor(h.storage(key="a\0b")),
    "a storage of another kind": h.tensor(h.storage(kind="os.system")),
    "a storage of quantized numbers": h.tensor(h.storage(kind="QInt8Storage")),
    "a storage of complex numbers": h.tensor(h.storage(kind="ComplexDoubleStorage")),
    "a storage that is a text": h.tensor(h.text("storage")),
    "a tensor for a shape": h.call(h.name("torch._utils", "_rebuild_tensor_v2"), h.tensor()),
}  # fmt: skip


def _program(data: bytes, container: str) -> Make:
    return lambda place: h.write(place.inside / "a.pt", data, container)


def _tensor(value: bytes, container: str) -> Make:
    data = h.program(h.mapping(model=h.mapping(**{"model.0.conv.weight": value})))
    return _program(data, container)


def _zip(write: Callable[[Path], object]) -> Make:
    def make(place: Place) -> Path:
        path = place.inside / "a.pt"
        write(path)
        return path

    return make


def _many_entries(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", h.program(b"N"))
        for index in range(60_000):
            archive.writestr(f"archive/data/{index}", b"")


def _edited_zip(path: Path, edit: Callable[[bytearray], None]) -> None:
    h.write_zip(path, h.program(h.mapping(model=h.tensor())))
    data = bytearray(path.read_bytes())
    edit(data)
    path.write_bytes(data)


def _directory_of_a_million(data: bytearray) -> None:
    at = data.rindex(b"PK\5\6")
    data[at + 8 : at + 12] = b"\xff\xff\xff\xff"


ZIPS: dict[str, Make] = {
    "deflated bomb": _zip(lambda p: h.write_zip(p, h.program(h.tensor()), {"data/0": bytes(10**9)}, True)),
    "deflated pickle bomb": _zip(lambda p: h.write_zip(
        p, b"\x80\x02" + b"]" * 200_000_000, {}, True)),
    "60,000 entries": _zip(_many_entries),
    "the directory counts a million": _zip(lambda p: _edited_zip(p, _directory_of_a_million)),
    "paths that escape": _zip(lambda p: h.write_zip(p, h.program(b"N"), {"../../../x": b"a"})),
    "two pickles": _zip(lambda p: h.write_zip(p, h.program(b"N"), {"data.pkl": h.program(b"N")})),
    "no pickle": _zip(lambda p: zipfile.ZipFile(p, "w").close()),
    "a storage of odd length": _zip(lambda p: h.write_zip(
        p, h.program(h.mapping(model=h.tensor())), {"data/0": b"abc"})),
    "script": _zip(lambda p: h.write_zip(p, h.program(b"N"), {"code/a.py": b"import y7edge_canary"})),
    "legacy storages of 2**63": _zip(lambda p: h.write_legacy(
        p, h.program(h.mapping(model=h.tensor())), storages=struct.pack("<q", 2**62))),
    "legacy keys": _zip(lambda p: h.write_legacy(
        p, h.program(h.tensor()), keys=pickle.dumps(list(map(str, range(200_000))), 2))),
    "legacy keys that call": _zip(lambda p: h.write_legacy(p, h.program(h.tensor()), keys=PROGRAMS["os.system"])),
    "tar": _zip(lambda p: p.write_bytes(b"a.pkl" + bytes(252) + b"ustar" + bytes(762))),
    "safetensors under another name": _zip(lambda p: p.write_bytes(
        (8).to_bytes(8, "little") + b"{}      ")),
}  # fmt: skip
PICKLES: dict[str, Make] = {
    **{
        f"{name} ({c})": _program(data, c)
        for name, data in PROGRAMS.items()
        for c in ("zip", "legacy")
    },
    **{
        f"{name} ({c})": _tensor(data, c)
        for name, data in TENSORS.items()
        for c in ("zip", "legacy")
    },
    **ZIPS,
}


def _official(place: Place) -> Path:
    """A published file with changed bytes, most of them in its pickle."""
    rng, name = place.rng, place.rng.choice(("zip.pt", "zip.pt", "legacy.pt", "weights.pt"))
    path = place.copy(name)
    if name == "legacy.pt" or rng.random() < 0.2:
        mutate.file(rng, path)
        return path
    with zipfile.ZipFile(path) as archive:
        content = {entry: archive.read(entry) for entry in archive.namelist()}
    entry = next(e for e in content if e.endswith("data.pkl"))
    content[entry] = _changed_pickle(rng, content[entry])
    with zipfile.ZipFile(path, "w") as archive:
        for each, data in content.items():
            archive.writestr(each, data)
    return path


def _changed_pickle(rng: Any, data: bytes) -> bytes:
    """Change bytes, or exchange one whole value for a text, a number or a hostile call."""
    if rng.random() < 0.5:
        return mutate.raw(rng, data)
    import pickletools

    places = [(at, op.name) for op, _, at in pickletools.genops(data)]
    values = [
        i
        for i, (_, name) in enumerate(places[:-1])
        if name.startswith(("BININT", "BINUNICODE", "SHORT_BIN", "NONE", "NEW", "BINFLOAT"))
    ]
    at = rng.choice(values)
    calls = [h.call(h.name(*who), what) for who, what in CALLS.values()]
    value = rng.choice((h.text(rng.choice(mutate.NAMES[:40]).encode("ascii", "ignore").decode()),
                        h.number(rng.choice((0, -1, 2**31, 2**62))), b"N", b"]", b"}", b")", b"\x88",
                        b"G" + struct.pack(">d", float("nan")), rng.choice(calls)))  # fmt: skip
    return data[: places[at][0]] + value + data[places[at + 1][0] :]


# --- our own --------------------------------------------------------------------------------------


def _parts(place: Place, name: str = "model.safetensors") -> tuple[dict[str, Any], dict[str, Any]]:
    import safetensors

    with safetensors.safe_open(place.material / name, framework="numpy") as file:
        header = json.loads(file.metadata()["y7edge"])
        return header, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def seal(header: Any, arrays: dict[str, Any]) -> str:
    """A header with the digest of what it says, as only who made the file should have."""
    from y7edge.models.checkpoint import canonical_json

    if isinstance(header, dict) and "spec" in header and "names" in header:
        try:
            state = hashlib.sha256(canonical_json([header["spec"], header["names"]]).encode())
            for key in sorted(arrays):
                array = np.ascontiguousarray(arrays[key])
                state.update(canonical_json([key, array.dtype.str, array.shape]).encode())
                state.update(array.tobytes())
            header = {**header, "digest": state.hexdigest()}
        except (ValueError, TypeError, UnicodeEncodeError):
            pass
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
    """Other rows, with weights of the shapes that they ask for, where these are small."""

    def make(place: Place) -> Path:
        from y7edge.artifact.schema import decode
        from y7edge.errors import CheckpointError, Y7EdgeError
        from y7edge.models.shapes import weight_shapes
        from y7edge.models.spec import Spec

        header, arrays = _parts(place)
        rows(header["spec"])
        try:
            shapes = weight_shapes(decode(Spec, header["spec"], origin="", error=CheckpointError))
            if sum(int(np.prod(s, dtype=object)) for s in shapes.values()) < 10**7:
                arrays = {key: _filled(key, shape, arrays, fill) for key, shape in shapes.items()}
        except (Y7EdgeError, ArithmeticError, ValueError, TypeError, LookupError):
            pass  # refused by the package: the old weights will do
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
    """Concatenations of concatenations: 2**n channels."""
    head, rows = spec["rows"][-1], spec["rows"][:-1]
    for _ in range(40):
        last = len(rows) - 1
        rows.append({**rows[0], "index": last + 1, "inputs": [last, last], "block": "concat",
                     "out": rows[-1]["out"] * 2, "kernel": 1, "stride": 1})  # fmt: skip
    spec["rows"] = [*rows, {**head, "index": len(rows)}]


def _long(count: int) -> Callable[[dict[str, Any]], None]:
    def edit(spec: dict[str, Any]) -> None:
        head, rows = spec["rows"][-1], spec["rows"][:-1]
        for _ in range(count):
            last = len(rows) - 1
            rows.append({**rows[0], "index": last + 1, "inputs": [last, last], "block": "sum",
                         "out": rows[-1]["out"], "kernel": 1, "stride": 1})  # fmt: skip
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
    {"imgsz": 16384}, {"imgsz": [16384, 16384]}, {"imgsz": 10**400}, {"imgsz": "x"}, {"imgsz": []},
    {"imgsz": [33, 1]}, {"imgsz": True}, {"imgsz": [32.0, 32.0]}, {"thresholds": {"conf": "x"}},
    {"thresholds": {"conf": float("nan")}}, {"thresholds": {"conf": -5}}, {"thresholds": [1]},
    {"thresholds": {"conf": 10**400}}, {"licence": 5}, {"licence": {"a": [1]}}, {"licence": "x" * 10**6},
    {"licence": "\x1b[2J"}, {"data": "/etc/passwd"}, {"data": "/dev/zero"}, {"data": 5},
    {"data": {"path": "/dev/zero", "split": "val"}}, {"data": "\0"}, {"data": ["a"]},
    {"data": "../outside"}, {"epoch": [1]}, {"epoch": "x"}, {"provenance": 5}, {"provenance": [[]]},
    {"levels": [1, 2, 3]}, {"levels": "x"}, {"levels": [float("nan"), 1]}, {"levels": {"a": 1}},
    {"metrics": [None]}, {"metrics": {"map50": "x"}}, {"config": 1}, {"recipe": "x"}, {"names": 4},
    {"a": mutate.deep(300)}, {str(i): i for i in range(100_000)}, [], None, "x", 5,
)  # fmt: skip
CHECKPOINTS: dict[str, Make] = {
    **{name: fitting(edit) for name, edit in SPECS.items()},
    **{f"meta {mutate.dumps(meta)[:30]}": _own(lambda h_, a, m=meta: h_.update(meta=m)) for meta in _METAS},
    "names are one text": _own(lambda h_, a: h_.update(names="abc")),
    "names are numbers": _own(lambda h_, a: h_.update(names=[1, 2, 3])),
    **{f"name {ascii(name)[:24]}": _own(lambda h_, a, n=name: h_.update(names=[n, "b", "c"]))
       for name in mutate.NAMES},
    "schema is a list": _own(lambda h_, a: h_.update(schema=[1])),
    "schema is true": _own(lambda h_, a: h_.update(schema=True)),
    "schema of 10**400": _own(lambda h_, a: h_.update(schema=10**400)),
    "deep header": _own(lambda h_, a: "[" * 100_000),
    "header is a number": _own(lambda h_, a: "9" * 10_000),
    "header is nothing": _own(lambda h_, a: ""),
    "weights are NaN": _own(lambda h_, a: next(iter(a.values())).fill(np.nan)),
    "weights are huge": _own(lambda h_, a: [v.fill(3e38) for v in a.values() if v.dtype == np.float32] and None),
    "weights are tiny": _own(lambda h_, a: [v.fill(1e-40) for v in a.values() if v.dtype == np.float32] and None),
    "variances are negative": _own(
        lambda h_, a: [v.fill(-1) for k, v in a.items() if k.endswith("running_var")] and None),
    "counters are negative": _own(
        lambda h_, a: [v.fill(-(2**63)) for k, v in a.items() if k.endswith("tracked")] and None),
    "100,000 more tensors": _own(lambda h_, a: a.update({f"x{i}": np.zeros(1) for i in range(30_000)})),
    "an empty tensor": _own(lambda h_, a: a.update({next(iter(a)): np.zeros((0,), np.float32)})),
    "no tensors": _own(lambda h_, a: a.clear()),
}  # fmt: skip


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
        b'{"a":{"dtype":"F32","shape":[1000000000],"data_offsets":[0,4000000000]}}'),
    "shape that overflows": _raw_safetensors(
        b'{"a":{"dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,0]}}'),
    "offsets backwards": _raw_safetensors(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}', bytes(4)),
    "unknown dtype": _raw_safetensors(b'{"a":{"dtype":"F8_E8M0","shape":[4],"data_offsets":[0,4]}}', bytes(4)),
    "bf16": _raw_safetensors(b'{"__metadata__":{"y7edge":"{}"},"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}', bytes(4)),
    "f8": _raw_safetensors(b'{"__metadata__":{"y7edge":"{}"},"a":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}}', bytes(4)),
    "metadata is a list": _raw_safetensors(b'{"__metadata__":[1]}'),
    "metadata is empty": _raw_safetensors(b'{"__metadata__":{}}'),
    "not utf-8": _raw_safetensors(b'{"\xff\xfe":{}}'),
    "nothing": lambda place: _raw_safetensors(b"", size=0)(place),
}  # fmt: skip


def _own_mutated(place: Place) -> Path:
    rng = place.rng
    header, arrays = _parts(place, rng.choice(("model.safetensors", "folded.safetensors")))
    what = rng.random()
    if what < 0.55:
        header[rng.choice(("spec", "spec", "names", "meta"))] = mutate.tree(
            rng, header[rng.choice(("spec", "spec", "spec", "meta"))])  # fmt: skip
        if rng.random() < 0.7:
            original = _parts(place)[0]
            part = rng.choice(("spec", "spec", "meta", "names"))
            header = {**original, part: mutate.tree(rng, original[part])}
        return _write(place, header, arrays)
    if what < 0.75:
        spec = header["spec"]
        return fitting(lambda old: (old.clear(), old.update(mutate.tree(rng, spec, 1)))[0])(place)
    if what < 0.85:
        key = rng.choice(sorted(arrays))
        arrays[key] = rng.choice((arrays[key][None], arrays[key].astype(np.float16),
                                  arrays[key].ravel(), np.zeros(3, np.uint8)))  # fmt: skip
        return _write(place, header, arrays)
    path = _write(place, header, arrays)
    mutate.file(rng, path)
    return path


# --- readers --------------------------------------------------------------------------------------


def load(path: Path) -> None:
    """Read a checkpoint, and what `info` says of it."""
    from y7edge.cli.info import info
    from y7edge.models import weights

    loaded = weights.load(path)
    assert all(np.isfinite(array).all() for array in loaded.arrays.values()), "not finite"
    info(str(path), as_json=True)
    info(str(path))


def detect(path: Path) -> None:
    """Open a Detector on it, and use it."""
    from y7edge import Detector

    with Detector(path, imgsz=None) as detector:
        detector(np.zeros((40, 60, 3), np.uint8))


def detect_small(path: Path) -> None:
    """The same with an input of its own."""
    from y7edge import Detector

    with Detector(path, imgsz=(64, 96)) as detector:
        detector(np.full((40, 60, 3), 99, np.uint8)).to_dict()


def export(path: Path) -> None:
    """Fold it, and write the graph; the proof would take too long."""
    from y7edge.artifact.description import describe
    from y7edge.export.folding import fold_checkpoint
    from y7edge.export.graph import build
    from y7edge.models import weights
    from y7edge.models.registry import folded

    loaded = weights.load(path)
    draft = describe(
        loaded, folded(loaded.spec), loaded.imgsz, batch=1, outputs="heads", precision="fp32",
        target="onnx", opset=build.OPSET, tools={},
    )  # fmt: skip
    assert draft.to_json()
    fold_checkpoint(loaded)


def finetune(path: Path) -> None:
    """Start a model from it."""
    from y7edge.models import registry, weights
    from y7edge.models.scaling import scale
    from y7edge.nn.build import Model
    from y7edge.train.setup.finetune import copy_matching

    model = Model(scale(registry.get("yolov7-tiny", nc=3), width=0.125))
    copy_matching(model, weights.load(path), ("nut", "washer", "x"), str(path))


def soup(path: Path) -> None:
    """Compare it to itself, as a soup does."""
    from y7edge.train.averaging.soup import load_all, mean, require_alike

    other = path.with_name("b" + path.suffix)
    other.write_bytes(path.read_bytes())
    loaded = load_all([path, other])
    require_alike(loaded)
    mean([replace(one) for one in loaded.values()])


COMMANDS = (
    "info {}", "info {} --json", "export {} --out {out}.onnx --imgsz 64x96 --json",
    "predict {} {material}/images --json", "verify {material}/model.onnx --against {}",
    "train --data {material}/yolo --weights {} --width 0.125 --imgsz 64 --profile 1 --batch 2",
    "val {} --data {material}/yolo --imgsz 64 --json",
    "soup {} {material}/model.safetensors --data {material}/yolo --out {out}.safetensors",
)  # fmt: skip
ATTACKS = (
    Attack("pickle", 440, PICKLES, _official, {"load": load}, COMMANDS[:4]),
    Attack("checkpoint", 640, {**CHECKPOINTS, **RAW}, _own_mutated,
           {"load": load, "detect": detect, "detect_small": detect_small, "export": export,
            "finetune": finetune, "soup": soup}, COMMANDS),
)  # fmt: skip
