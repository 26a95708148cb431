"""Inputs: published checkpoints, pickles in zip files and in the older container."""

from __future__ import annotations

import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

from tests.attack import mutate
from tests.attack.base import Attack, Make, Place
from tests.attack.checkpoints import COMMANDS, load
from tests.attack.guard import MARK
from tests.models.published import hostile_files as h

COMMAND = f"touch {MARK}"
# Calls in a pickle; each executes the word that the guard detects.
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
}


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
    "deflated bomb": _zip(
        lambda p: h.write_zip(p, h.program(h.tensor()), {"data/0": bytes(4 * 10**8)}, True)
    ),
    "deflated pickle bomb": _zip(
        lambda p: h.write_zip(p, b"\x80\x02" + b"]" * 100_000_000, {}, True)
    ),
    "60,000 entries": _zip(_many_entries),
    "the directory counts a million": _zip(lambda p: _edited_zip(p, _directory_of_a_million)),
    "paths that escape": _zip(lambda p: h.write_zip(p, h.program(b"N"), {"../../../x": b"a"})),
    "two pickles": _zip(lambda p: h.write_zip(p, h.program(b"N"), {"data.pkl": h.program(b"N")})),
    "no pickle": _zip(lambda p: zipfile.ZipFile(p, "w").close()),
    "a storage of odd length": _zip(
        lambda p: h.write_zip(p, h.program(h.mapping(model=h.tensor())), {"data/0": b"abc"})
    ),
    "script": _zip(
        lambda p: h.write_zip(p, h.program(b"N"), {"code/a.py": b"import y7edge_canary"})
    ),
    "legacy storages of 2**63": _zip(
        lambda p: h.write_legacy(
            p, h.program(h.mapping(model=h.tensor())), storages=struct.pack("<q", 2**62)
        )
    ),
    "legacy keys": _zip(
        lambda p: h.write_legacy(
            p, h.program(h.tensor()), keys=pickle.dumps(list(map(str, range(200_000))), 2)
        )
    ),
    "legacy keys that call": _zip(
        lambda p: h.write_legacy(p, h.program(h.tensor()), keys=PROGRAMS["os.system"])
    ),
    "tar": _zip(lambda p: p.write_bytes(b"a.pkl" + bytes(252) + b"ustar" + bytes(762))),
    "safetensors under another name": _zip(
        lambda p: p.write_bytes((8).to_bytes(8, "little") + b"{}      ")
    ),
}
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
    """Mutate bytes of a published file, mostly in its pickle."""
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


def _changed_pickle(rng: random.Random, data: bytes) -> bytes:
    """Mutate bytes, or replace one value by a text, a number or a hostile call."""
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
    value = rng.choice(
        (
            h.text(rng.choice(mutate.NAMES[:40]).encode("ascii", "ignore").decode()),
            h.number(rng.choice((0, -1, 2**31, 2**62))),
            b"N",
            b"]",
            b"}",
            b")",
            b"\x88",
            b"G" + struct.pack(">d", float("nan")),
            rng.choice(calls),
        )
    )
    return data[: places[at][0]] + value + data[places[at + 1][0] :]


ATTACKS = (Attack("pickle", 440, PICKLES, _official, {"load": load}, COMMANDS[:4]),)
