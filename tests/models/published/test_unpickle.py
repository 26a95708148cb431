"""Hostile pickles are refused by name, without running."""

from __future__ import annotations

import copyreg
import os
import pickle
import struct
import sys
from pathlib import Path

import pytest

from tests.models.published import hostile_files as hostile
from y7edge.errors import CheckpointError
from y7edge.models.published import official, screening, unpickle
from y7edge.models.published.container import opened

CONTAINERS = ("zip", "legacy")


class Caller:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.fixture
def canary(tmp_path):
    """Return the path of a file that the attacks would create."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "the attack was executed"


def refused(path, match):
    with pytest.raises(CheckpointError, match=match) as caught:
        official.load(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


def shell(canary: Path) -> bytes:
    """A call of os.system."""
    return hostile.call(hostile.name("posix", "system"), hostile.text(f"touch {canary}"))


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_shell_call_is_refused_by_name(tmp_path, canary, container, protocol):
    data = pickle.dumps(Caller(os.system, f"touch {canary}"), protocol=protocol)
    path = hostile.write(tmp_path / "evil.pt", data, container)
    assert "would call os.system (as posix.system)" in refused(path, "os.system")


def test_bare_pickle_is_refused_by_name(tmp_path, canary):
    path = tmp_path / "evil.pt"
    path.write_bytes(pickle.dumps(Caller(os.system, f"touch {canary}"), protocol=0))
    refused(path, r"would call os\.system")


@pytest.mark.parametrize(
    ("module", "member"),
    [
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("__builtin__", "exec"),
        ("subprocess", "Popen"),
        ("importlib", "import_module"),
        ("operator", "attrgetter"),
        ("functools", "partial"),
        ("copyreg", "_reconstructor"),
        ("pickle", "loads"),
        ("torch", "load"),
        ("torch.storage", "_load_from_bytes"),
        ("torch._utils", "_rebuild_tensor"),
        ("torch.nn", "Module"),
        ("torch.nn.modulesx", "Conv2d"),
        ("torch", "BFloat16Storage"),
        ("numpy", "load"),
        ("numpy.core.multiarray", "fromfile"),
        ("collections", "Counter"),
        ("models", "Conv"),
        ("utils.torch_utils", "ModelEMA"),
    ],
)
def test_every_other_name_is_refused(tmp_path, module, member):
    data = hostile.program(hostile.call(hostile.name(module, member)))
    shown = f"{module.replace('__builtin__', 'builtins')}.{member}"
    refused(hostile.write_zip(tmp_path / "evil.pt", data), f"would call {shown}")


@pytest.mark.parametrize(
    ("module", "member"),
    [
        ("models.common", "os.system"),
        ("models.common", "Conv.__init__.__globals__"),
        ("models.common", "Conv\x00"),
        ("models.common; import os", "Conv"),
        ("torch.nn.modules.module", "torch.os.system"),
    ],
)
def test_dotted_names_in_allowed_modules_are_refused(tmp_path, module, member):
    data = b"\x80\x04" + hostile.text(module) + hostile.text(member) + b"\x93)R."
    refused(hostile.write_zip(tmp_path / "evil.pt", data), "would call (models|torch)")


def test_stand_ins_are_never_imported(tmp_path, canary, monkeypatch):
    folder = tmp_path / "path"
    (folder / "models").mkdir(parents=True)
    (folder / "models" / "__init__.py").write_text(f"open({str(canary)!r}, 'w')")
    (folder / "models" / "common.py").write_text("def Conv(*a): raise SystemExit")
    monkeypatch.syspath_prepend(folder)
    data = hostile.program(hostile.call(hostile.name("models.common", "Conv"), hostile.text("x")))
    refused(hostile.write_zip(tmp_path / "inert.pt", data, {}), "0 detection heads")
    assert "models" not in sys.modules


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda evil: hostile.build(hostile.module(), hostile.mapping(_modules=evil)),
        lambda evil: hostile.module("Conv", evil),
        lambda evil: hostile.tensor(source=evil),
        lambda evil: hostile.tuple_of(hostile.text("storage"), evil) + b"Q",
        lambda evil: hostile.call(hostile.name("collections", "OrderedDict"), evil),
        lambda evil: hostile.call(hostile.name("__builtin__", "set"), evil),
        lambda evil: hostile.build(hostile.tensor(), evil),
        lambda evil: hostile.mapping(ema=evil),
        lambda evil: hostile.module() + b"0" + evil,  # the result is thrown away
    ],
)
def test_nested_call_is_refused(tmp_path, canary, container, wrap):
    data = hostile.program(wrap(shell(canary)))
    refused(hostile.write(tmp_path / "evil.pt", data, container), r"os\.system")


@pytest.mark.parametrize("old_opcode", ["INST", "OBJ"])
def test_old_call_opcodes_are_refused(tmp_path, canary, old_opcode):
    command = hostile.text(f"touch {canary}")
    calls = {
        "INST": b"(" + command + b"iposix\nsystem\n",
        "OBJ": b"(" + hostile.name("posix", "system") + command + b"o",
    }
    data = hostile.program(calls[old_opcode])
    refused(hostile.write_zip(tmp_path / "evil.pt", data), r"os\.system")


def test_cached_extension_codes_are_refused(tmp_path, canary):
    """The C implementation does not call find_class for a cached code."""
    copyreg.add_extension("posix", "system", 77)
    try:
        evil = b"\x80\x02\x82\x4d" + hostile.tuple_of(hostile.text(f"touch {canary}")) + b"R."
        pickle.loads(b"\x80\x02\x82\x4d.")  # noqa: S301 - fills the cache
        refused(hostile.write_zip(tmp_path / "evil.pt", evil), "extension code 77")
    finally:
        copyreg.remove_extension("posix", "system", 77)


def test_all_pickles_of_a_legacy_stream_are_checked(tmp_path, canary):
    evil = hostile.program(shell(canary))
    plain = hostile.program(hostile.module())
    refused(hostile.write_legacy(tmp_path / "keys.pt", plain, keys=evil), r"os\.system")
    (tmp_path / "magic.pt").write_bytes(evil + plain)
    refused(tmp_path / "magic.pt", r"os\.system")


@pytest.mark.parametrize(
    ("target", "state", "match"),
    [
        (hostile.name("_codecs", "encode"), hostile.mapping(__defaults__=b"N"), "of Inert"),
        (
            hostile.name("_codecs", "encode"),
            b"N" + hostile.mapping(_function=b"N") + b"\x86",
            "Inert",
        ),
        (hostile.tensor(), b"N" + hostile.mapping(shape=b"K\x09\x85") + b"\x86", "of Tensor"),
        (hostile.storage(), hostile.mapping(length=hostile.number(2**30)), "of Storage"),
        (hostile.name("torch", "FloatStorage"), hostile.mapping(dtype=b"N"), "of StorageType"),
        (hostile.name("collections", "OrderedDict"), hostile.mapping(get=b"N"), "damaged pickle"),
        (hostile.name("models.common", "Conv"), hostile.mapping(__new__=b"N"), "damaged pickle"),
        (
            hostile.module(),
            hostile.tuple_of(b"N", hostile.mapping(__class__=b"N")),
            "invalid state",
        ),
    ],
    ids=["function", "slots", "tensor", "storage", "type", "dict class", "class", "instance"],
)
def test_inert_objects_cannot_be_changed(tmp_path, target, state, match):
    data = hostile.program(hostile.build(target, state))
    refused(hostile.write_zip(tmp_path / "evil.pt", data), match)
    encode = unpickle._KNOWN["_codecs", "encode"]
    assert encode("\xff", "latin1") == b"\xff"


def test_attributes_of_a_state_dict_are_ignored(tmp_path):
    data = hostile.build(
        hostile.call(hostile.name("collections", "OrderedDict")), hostile.mapping(_metadata=b"}")
    )
    path = hostile.write_zip(tmp_path / "plain.pt", hostile.program(data), {})
    with opened(path) as container:
        assert container.value == {} and not hasattr(container.value, "__dict__")


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (hostile.tensor(shape=(5,)), r"shape \(5,\).*outside of a storage of 4 elements"),
        (hostile.tensor(offset=1), "outside of a storage of"),
        (hostile.tensor(offset=-1), "offset that is not made"),
        (hostile.tensor(shape=(2,), strides=(-1,)), "strides that is not made"),
        (hostile.tensor(shape=(2, 2), strides=(4, 1)), "outside of a storage of"),
        (hostile.tensor(shape=(2**38,), strides=(0,)), "outside of a storage of"),
        (hostile.tensor(shape=(5,), strides=(0,)), "outside of a storage of"),
        (hostile.tensor(shape=(2**62,)), "shape that is not made"),
        (hostile.tensor(shape=(2,), strides=(1, 1)), "2 strides for 1 dimensions"),
        (hostile.tensor(shape=(1,) * 9, strides=(1,) * 9), "shape that is not made"),
        (hostile.tensor(source=hostile.module()), "something other than a storage"),
        (hostile.tensor(hostile.storage("../../etc/passwd")), "has a storage key"),
        (hostile.tensor(hostile.storage("0", 2**50)), "length that is not made"),
        (hostile.tuple_of(hostile.storage("0", 4), hostile.storage("0", 2)), "two descriptions"),
        (hostile.text("passwd") + b"Q", "not a storage"),
        (b"P../../etc/passwd\n", "opcode PERSID"),
    ],
)
@pytest.mark.parametrize("container", CONTAINERS)
def test_invalid_storages_are_refused(tmp_path, container, value, match):
    refused(hostile.write(tmp_path / "evil.pt", hostile.program(value), container), match)


def array(state: bytes) -> bytes:
    made = hostile.call(
        hostile.name("numpy.core.multiarray", "_reconstruct"), hostile.name("numpy", "ndarray")
    )
    return hostile.build(made, state)


def dtype(code: str) -> bytes:
    return hostile.call(hostile.name("numpy", "dtype"), hostile.text(code), b"\x89", b"\x88")


LATIN = hostile.call(hostile.name("_codecs", "encode"), hostile.text("1234"))
BIG_ENDIAN = hostile.tuple_of(b"K\x03", hostile.text(">"), b"N", b"N", b"N")
NINE_FLOATS = hostile.tuple_of(b"K\x01", b"K\x09\x85", dtype("f4"), b"\x89", LATIN)


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (dtype("O8"), "numpy type 'O8'"),
        (dtype("V16"), "numpy type 'V16'"),
        (hostile.build(dtype("f4"), BIG_ENDIAN), "little-endian"),
        (array(NINE_FLOATS), "with an invalid state"),
        (array(b"}"), "with an invalid state"),
        (hostile.call(hostile.name("numpy._core.multiarray", "_reconstruct"), hostile.module()),
         "something other than a numpy.ndarray"),
        (hostile.call(hostile.name("numpy.core.multiarray", "scalar"), dtype("f8"), LATIN),
         "numpy number with invalid bytes"),
        (hostile.call(hostile.name("_codecs", "encode"), hostile.text("x"), hostile.text("zip")),
         "as latin1"),
        (hostile.call(hostile.name("__builtin__", "set"), hostile.text("abc")),
         "something other than a list"),
        (hostile.call(hostile.name("torch._utils", "_rebuild_parameter"), b"N"),
         "something other than a tensor"),
        (hostile.build(hostile.module(), b"]"), "with an invalid state"),
    ],
)  # fmt: skip
def test_arguments_are_checked(tmp_path, value, match):
    refused(hostile.write_zip(tmp_path / "evil.pt", hostile.program(value)), match)


def doubled(levels: int) -> bytes:
    """A tuple of 2^levels values in a few bytes."""
    steps = b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(levels))
    return b"K\x01\x85" + steps


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (b"}" + doubled(60) + b"K\x01s", "values inside of a tuple"),
        (b"}" + b")" + b"\x85" * 200_000 + b"K\x01s", "values inside of a tuple"),
        (b"]r\xff\xff\xff\x7f", "memo slot 2147483647"),
        (b"]p999999999\n", "memo slot 999999999"),
        (b"h\x05", "empty memo slot"),
        (b"X\xff\xff\xff\x7fabc", "damaged pickle"),
        (b"\x8e" + struct.pack("<Q", 2**50), "damaged pickle"),
        (b"\x8b\xff\xff\xff\x7f1", "damaged pickle"),
        (
            b"".join(hostile.name("models.x", f"C{i}") + b"0" for i in range(300)) + b"N",
            "256 classes",
        ),
        (b"00", "empty stack"),
        (b"\xfe", "damaged pickle"),
        (b"", "empty stack"),
    ],
    ids=[
        *("hash bomb", "deep tuple", "memo", "text memo", "empty slot", "long text", "long bytes"),
        *("long number", "classes", "underflow", "no opcode", "nothing"),
    ],
)
def test_bombs_are_refused_before_they_run(tmp_path, value, match):
    refused(hostile.write_zip(tmp_path / "evil.pt", hostile.program(value)), match)


def test_the_length_of_a_pickle_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(screening, "MAX_OPCODES", 1000)
    data = hostile.program(b"N0" * 500)
    refused(hostile.write_zip(tmp_path / "evil.pt", data), "longer than 1000 opcodes")


def test_control_characters_do_not_reach_the_terminal(tmp_path):
    data = b"\x80\x04" + hostile.text("os\x1b[2J\n") + hostile.text("x" * 5000) + b"\x93."
    message = refused(hostile.write_zip(tmp_path / "evil.pt", data), "would call")
    assert "\x1b" not in message and len(message) < 1000


def test_deep_harmless_value_is_read(tmp_path):
    data = hostile.program(b"]" * 100_000 + b"a" * 99_999)
    refused(hostile.write_zip(tmp_path / "deep.pt", data, {}), "no model: found a list")
