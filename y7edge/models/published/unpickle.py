"""Unpickle a published checkpoint without importing or calling the functions that it names.

Names that YOLOv7 checkpoints use are resolved to inert replacements; all others are refused:

* modules (``models.*``, ``torch.nn.modules.*``) become ``StandIn``, with attributes only;
* tensors become ``Tensor``, a view of a ``Storage`` that is read later;
* numpy scalars and arrays (``best_fitness``) become plain numbers and ``PickledArray``.

``y7edge.models.published.screening`` checks every pickle before it runs.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from y7edge.errors import CheckpointError
from y7edge.models.published.screening import MAX_KEY, screen
from y7edge.text import one_line

MAX_CLASSES = 256  # different module classes in one file; a published one has about 20
MAX_DIMENSIONS = 8  # of a tensor; anchor_grid has 6
MAX_SIDE = 2**40  # of shapes, strides, offsets and lengths, so that checks use small integers

_STAND_INS = ("models.", "torch.nn.modules.")
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
# Name of a module in pickles (that of its implementation) -> public name, for messages.
_KNOWN_AS = {"posix": "os", "nt": "os", "__builtin__": "builtins", "copy_reg": "copyreg"}


class Sealed:
    """Base class of objects that a pickle cannot change.

    Without ``__setstate__`` the BUILD opcode could set any attribute, even ``__class__``.
    """

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        """Refuse BUILD."""
        raise CheckpointError(f"sets attributes of {type(self).__name__}")


class StandIn:
    """Replacement of a torch module, with attributes only; one subclass per class in the file."""

    __slots__ = ("attributes",)
    qualified_name: ClassVar[str] = ""
    attributes: dict[str, Any]

    def __new__(cls, *_args: object, **_keywords: object) -> StandIn:
        """Ignore the arguments of the constructor."""
        made = super().__new__(cls)
        made.attributes = {}
        return made

    def __setstate__(self, state: object) -> None:
        """Store the attributes."""
        if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
            raise CheckpointError(f"has {self.qualified_name} with an invalid state")
        self.attributes = dict(state)


class PickledDict(dict[Any, Any]):
    """Replacement of ``collections.OrderedDict``, without attributes."""

    __slots__ = ()

    def __init__(self, items: object = ()) -> None:
        if not isinstance(items, list | tuple):
            raise CheckpointError("builds a dictionary from something other than a list")
        super().__init__((_key(pair[0]), pair[1]) for pair in items)

    def __setstate__(self, state: object) -> None:
        """Ignore attributes, such as ``_metadata`` of state dicts."""


class StorageType(Sealed):
    """Replacement of storage classes such as ``torch.HalfStorage``."""

    __slots__ = ("dtype",)

    def __init__(self, code: str) -> None:
        self.dtype = np.dtype(code)


class Storage(Sealed):
    """Reference to a flat array in the file, by its key; ``length`` is in elements."""

    __slots__ = ("dtype", "key", "length")

    def __init__(self, key: str, dtype: np.dtype[Any], length: int) -> None:
        self.key, self.dtype, self.length = key, dtype, length

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.length * self.dtype.itemsize


class Tensor(Sealed):
    """A view of a storage; offset and strides are in elements."""

    __slots__ = ("offset", "shape", "storage", "strides")

    def __init__(
        self, storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
    ) -> None:
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

    def read(self, data: bytes) -> NDArray[Any]:
        """Return the tensor as a read-only array; ``data``: the bytes of its storage."""
        size = self.storage.dtype.itemsize
        return np.ndarray(
            self.shape,
            self.storage.dtype,
            buffer=data,
            offset=self.offset * size,
            strides=tuple(stride * size for stride in self.strides),
        )


class PickledDtype(Sealed):
    """Replacement of ``numpy.dtype``, for little-endian numbers only."""

    __slots__ = ("dtype",)
    codes = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")

    def __init__(self, code: str) -> None:
        self.dtype = np.dtype(code)

    def __setstate__(self, state: object) -> None:
        """Accept only the state of a little-endian number type."""
        match state:
            case (_, "<" | "|" | "=", None, None, None, *_) if isinstance(state, tuple):
                return
        raise CheckpointError("describes a numpy type that is not a little-endian number")


class PickledArray:
    """Replacement of ``numpy.ndarray``; ``values`` is one-dimensional."""

    __slots__ = ("values",)

    def __init__(self) -> None:
        self.values: NDArray[Any] = np.empty(0)

    def __setstate__(self, state: object) -> None:
        """Accept a consistent state (version, shape, dtype, whether in Fortran order, bytes)."""
        match state:
            case (int(), tuple() as shape, PickledDtype() as kind, bool(), bytes() as data):
                sides = _whole_numbers(shape, "an array's shape")
                if math.prod(sides) * kind.dtype.itemsize == len(data):
                    self.values = np.frombuffer(data, dtype=kind.dtype)
                    return
        raise CheckpointError("has a numpy array with an invalid state")


class Inert(Sealed):
    """Safe replacement of a function that the file calls, such as ``_codecs.encode``."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., object]) -> None:
        self._function = function

    def __call__(self, *arguments: object) -> object:
        """Call the replacement."""
        return self._function(*arguments)


def _rebuild_tensor(
    storage: object, offset: object, size: object, stride: object, *_autograd: object
) -> Tensor:
    if not isinstance(storage, Storage):
        raise CheckpointError("builds a tensor on something other than a storage")
    shape = _whole_numbers(size, "a tensor's shape")
    strides = _whole_numbers(stride, "a tensor's strides")
    (start,) = _whole_numbers((offset,), "a tensor's offset")
    if len(shape) != len(strides):
        raise CheckpointError(f"has {len(strides)} strides for {len(shape)} dimensions")
    count = math.prod(shape)
    last = sum((side - 1) * step for side, step in zip(shape, strides, strict=True))
    # With stride 0, a view of any size could repeat a few elements.
    if count > storage.length or (count and start + last >= storage.length):
        raise CheckpointError(
            f"has a tensor of shape {shape}, strides {strides} at offset {start} "
            f"outside of a storage of {storage.length} elements"
        )
    return Tensor(storage, start, shape, strides)


def _whole_numbers(values: object, what: str) -> tuple[int, ...]:
    """Check that ``values`` is a tuple of at most 8 integers from 0 to 2**40, and return it."""
    if not (
        isinstance(values, tuple)
        and len(values) <= MAX_DIMENSIONS
        and all(type(value) is int and 0 <= value <= MAX_SIDE for value in values)
    ):
        raise CheckpointError(f"has {what} that is not made of small integers >= 0")
    return values


def _rebuild_parameter(data: object, *_autograd: object) -> Tensor:
    if not isinstance(data, Tensor):
        raise CheckpointError("builds a parameter from something other than a tensor")
    return data


def _set(items: Iterable[Any] = ()) -> set[Any]:
    if not isinstance(items, list | tuple):
        raise CheckpointError("builds a set from something other than a list")
    return {_key(item) for item in items}


def _key(value: object) -> object:
    """Check that a dictionary key or set member is a number or short string, and return it."""
    if not isinstance(value, str | int) or (isinstance(value, str) and len(value) > MAX_KEY):
        raise CheckpointError("has a key that is not a number or a short string")
    return value


def _encode(text: object, encoding: object = "latin1") -> bytes:
    # Protocol 2 stores bytes as latin1. Other encodings would be looked up and imported.
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise CheckpointError("encodes something other than text as latin1")
    return text.encode("latin-1")


def _dtype(code: object, *_flags: object) -> PickledDtype:
    if not isinstance(code, str) or code not in PickledDtype.codes:
        raise CheckpointError(f"has the numpy type {str(code)[:40]!r}, not a plain number")
    return PickledDtype(code)


def _scalar(kind: object, data: object) -> int | float | bool:
    match kind, data:
        case PickledDtype(), bytes() if len(data) == kind.dtype.itemsize:
            number: int | float | bool = np.frombuffer(data, dtype=kind.dtype)[0].item()
            return number
    raise CheckpointError("has a numpy number with invalid bytes")


def _reconstruct(kind: object, *_empty: object) -> PickledArray:
    if kind is not _NDARRAY:
        raise CheckpointError("reconstructs something other than a numpy.ndarray")
    return PickledArray()


_NDARRAY = Sealed()  # only passed as an argument
_KNOWN: dict[tuple[str, str], object] = {
    ("collections", "OrderedDict"): PickledDict,
    ("__builtin__", "set"): Inert(_set),
    ("builtins", "set"): Inert(_set),
    ("_codecs", "encode"): Inert(_encode),
    ("torch._utils", "_rebuild_tensor_v2"): Inert(_rebuild_tensor),
    ("torch._utils", "_rebuild_parameter"): Inert(_rebuild_parameter),
    ("torch", "FloatStorage"): StorageType("<f4"),
    ("torch", "HalfStorage"): StorageType("<f2"),
    ("torch", "DoubleStorage"): StorageType("<f8"),
    ("torch", "LongStorage"): StorageType("<i8"),
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): Inert(_dtype),
    **{(f"numpy.{c}.multiarray", "_reconstruct"): Inert(_reconstruct) for c in ("core", "_core")},
    **{(f"numpy.{c}.multiarray", "scalar"): Inert(_scalar) for c in ("core", "_core")},
}


class RestrictedUnpickler(pickle.Unpickler):
    """Unpickle the types that YOLOv7 checkpoints contain; refuse all other names."""

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream)
        self._classes: dict[str, type[StandIn]] = {}
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Resolve a name to an inert object, without importing.

        Raises:
            CheckpointError: YOLOv7 checkpoints do not use this name.
        """
        known = _KNOWN.get((module, name))
        if known is not None:
            return known
        whole = f"{module}.{name}"
        # A name with a dot, such as os.system in models.common, could reach imported modules.
        if module.startswith(_STAND_INS) and "." not in name and _DOTTED.fullmatch(whole):
            return self._stand_in(whole)
        shown = f"{_KNOWN_AS.get(module, module)}.{name}"
        alias = "" if shown == whole else f" (as {one_line(whole, 200)})"
        raise CheckpointError(f"would call {one_line(shown, 200)}{alias}")

    def _stand_in(self, whole: str) -> type[StandIn]:
        if whole not in self._classes:
            if len(self._classes) >= MAX_CLASSES:
                raise CheckpointError(f"names more than {MAX_CLASSES} classes")
            members = {"__slots__": (), "qualified_name": whole}
            self._classes[whole] = type("StandIn", (StandIn,), members)
        return self._classes[whole]

    def persistent_load(self, pid: object) -> Any:
        """Resolve a persistent id: a storage, or (in a legacy stream) the class of a module."""
        match pid:
            case ("module", type() as kind, _, _) if issubclass(kind, StandIn):
                return kind  # the id also contains the class's source code
            case ("storage", StorageType() as kind, str() as key, str(), int() as length, *rest):
                if rest not in ([], [None]):
                    raise CheckpointError("has views of storages, as only torch < 0.4 wrote")
                return self._storage(key, kind.dtype, length)
        raise CheckpointError("has a persistent id that is not a storage")

    def _storage(self, key: str, dtype: np.dtype[Any], length: int) -> Storage:
        if not re.fullmatch(r"[0-9]{1,20}", key, re.ASCII):
            raise CheckpointError(f"has a storage key {key[:80]!r}, not a number")
        _whole_numbers((length,), "a storage's length")
        storage = self.storages.setdefault(key, Storage(key, dtype, length))
        if (storage.dtype, storage.length) != (dtype, length):
            raise CheckpointError(f"has two descriptions of storage {key}")
        return storage


def load(
    stream: io.BytesIO, source: str, most: int | None = None
) -> tuple[Any, dict[str, Storage]]:
    """Load the pickle at the stream's position; ``source`` names it in messages.

    ``most``: maximum number of opcodes; None: ``MAX_OPCODES``.

    Returns:
        The value, and its storages by key.

    Raises:
        CheckpointError: the pickle is refused as unsafe, or damaged.
    """
    try:
        start = stream.tell()
        screen(stream, most)
        stream.seek(start)
        unpickler = RestrictedUnpickler(stream)
        return unpickler.load(), unpickler.storages
    except CheckpointError as refusal:  # its message begins with a verb, such as "has"
        raise CheckpointError(
            f"{source} {refusal}, unlike any YOLOv7 checkpoint: the file was refused before any "
            "code in it ran; get it from a source you trust"
        ) from refusal
    except Exception as error:  # a damaged pickle can raise anything
        raise CheckpointError(
            f"{source} has a damaged pickle ({type(error).__name__}: "
            f"{one_line(str(error), 200)}); copy or download it again"
        ) from error
