"""Check every opcode of a pickle before it runs.

Refusing unknown functions (``find_class``) is not enough: opcodes alone can exhaust memory or the C
stack, or bypass ``find_class``. Checked here:

* extension codes, which pickle may resolve from a cache without calling ``find_class``;
* memo slots, because the C implementation allocates memory up to the highest index;
* the number of values nested in a tuple, because hashing the tuple visits every value, recursively
  and without a limit. A value that occurs several times counts each time;
* the types of dictionary keys and set members, because hashes of tuples and of large integers can
  be made to collide, and comparing long equal strings takes time;
* the number of opcodes. (pickletools checks lengths inside opcodes against the available bytes.)
"""

from __future__ import annotations

import io
import pickletools
from typing import Any

from y7edge.errors import CheckpointError

MAX_OPCODES = 1_000_000  # yolov7-e6e with average and optimiser state has about 500,000
MAX_BYTES = 256 * 2**20  # of the pickle, without tensors; published ones are below 2 MiB
MAX_KEY = 4096  # characters or bytes of a key
MAX_LARGE = 16  # integers of more than 64 bits; a legacy stream begins with one
MAX_TUPLE = 10_000  # values nested in one tuple; the arguments of a tensor are about 20

_EXTENSIONS = ("EXT1", "EXT2", "EXT4")
_NEVER = ("PERSID", "NEXT_BUFFER", "READONLY_BUFFER", "FROZENSET")
_TUPLES = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")
_STORE = ("PUT", "BINPUT", "LONG_BINPUT")
_FETCH = ("GET", "BINGET", "LONG_BINGET")
# Positions of the keys among the operands of an opcode, from the top of the stack.
_KEYS = {
    "SETITEM": slice(1, 2),
    "SETITEMS": slice(1, None, 2),
    "DICT": slice(1, None, 2),
    "ADDITEMS": slice(None),
}
_MARK = -1  # stands for a MARK on the stack of sizes


def screen(stream: io.BytesIO, most: int | None = None) -> None:
    """Check one pickle without running it.

    ``most``: maximum number of opcodes; None: ``MAX_OPCODES``.

    Raises:
        CheckpointError: the pickle is unsafe or too large.
        ValueError: the pickle is truncated, or an opcode is unknown.
    """
    start, most = stream.tell(), most or MAX_OPCODES
    stack, large = _Sizes(), 0
    argument: Any
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if opcode.name in _EXTENSIONS:
            raise CheckpointError(
                f"uses extension code {argument}, which can stand for any function"
            )
        if opcode.name in _NEVER:
            raise CheckpointError(f"uses the opcode {opcode.name}, which torch never writes")
        if count >= most or stream.tell() - start > MAX_BYTES:
            raise CheckpointError(f"is longer than {most} opcodes or {MAX_BYTES} bytes")
        if isinstance(argument, int) and not -(2**63) <= argument < 2**64:
            large += 1
            if large > MAX_LARGE or argument.bit_length() > 128:
                raise CheckpointError("has integers of more than 64 bits")
        if opcode.name in _STORE and not 0 <= argument <= count:
            raise CheckpointError(f"uses memo slot {argument} after {count} opcodes")
        stack.step(opcode, argument)


class _NoKey(int):
    """The size of a value that must not be a key: a long string, or a container."""


class _Sizes:
    """The unpickler's stack and memo, simulated with the size of each value.

    The size of a value is 1 plus the sizes of the values in it. A list or dictionary in the memo
    keeps the size that it had when it was stored. It is harmless if it grows later, because only
    tuples are limited, and a tuple that contains lists or dictionaries cannot be hashed.
    """

    def __init__(self) -> None:
        self._stack: list[int] = []
        self._memo: dict[int, int] = {}

    def step(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        """Apply one opcode."""
        name = opcode.name
        if name in _STORE:
            self._memo[argument] = self._top()
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self._top()
        elif name in _FETCH:
            if argument not in self._memo:
                raise CheckpointError(f"reads the empty memo slot {argument}")
            self._stack.append(self._memo[argument])
        elif name == "DUP":
            self._stack.append(self._top())
        elif name == "MARK":
            self._stack.append(_MARK)
        elif isinstance(argument, str | bytes | bytearray) and len(argument) > MAX_KEY:
            self._stack.append(_NoKey(1))
        else:
            self._combine(opcode)

    def _combine(self, opcode: pickletools.OpcodeInfo) -> None:
        """Replace the operands of an opcode by one value that contains them."""
        popped: list[int] = []
        taken = opcode.stack_before
        if pickletools.markobject in taken:
            while (value := self._pop()) != _MARK:
                popped.append(value)
            taken = taken[: taken.index(pickletools.markobject)]
        popped += [max(self._pop(), 0) for _ in taken]
        if opcode.name in _KEYS and any(isinstance(v, _NoKey) for v in popped[_KEYS[opcode.name]]):
            raise CheckpointError("has a key that is not a number or a short string")
        size = 1 + sum(popped)
        if opcode.name in _TUPLES and size > MAX_TUPLE:
            raise CheckpointError(f"nests or repeats {size} values inside of a tuple")
        if opcode.stack_after:
            # Appending a container to itself doubles its size each time: keep the integer small.
            size = min(size, 2**62)
            self._stack.append(_NoKey(size) if opcode.stack_before else size)

    def _top(self) -> int:
        if not self._stack:
            raise CheckpointError("takes a value from an empty stack")
        return self._stack[-1]

    def _pop(self) -> int:
        top = self._top()
        self._stack.pop()
        return top
