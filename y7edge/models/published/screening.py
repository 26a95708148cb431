"""Check every opcode of a pickle before it runs.

Refusing names is not enough: opcodes alone can exhaust memory or the stack, or bypass the look-up
of names. Checked here:

* extension codes, which may be resolved from a cache, without a look-up;
* memo slots, for which the C implementation allocates up to the highest index;
* the number of values below a tuple, shared ones counted each time: hashing a tuple visits them
  all, recursively and without a limit;
* keys of dictionaries and members of sets: hashes of tuples and of large integers can be made to
  collide, and comparing long equal strings takes time;
* the number of opcodes. Lengths inside opcodes are checked against the available bytes.
"""

from __future__ import annotations

import io
import pickletools
from typing import Any

from y7edge.errors import CheckpointError

MAX_OPCODES = 1_000_000  # yolov7-e6e, model and average with optimiser state, has about a half
MAX_BYTES = 256 * 2**20  # of the pickle, without tensors; published ones are below 2 MiB
MAX_KEY = 4096  # characters or bytes of a key
MAX_LARGE = 16  # integers beyond 64 bits; the legacy stream begins with one
MAX_TUPLE = 10_000  # values below one tuple; a tensor's arguments are about 20

_EXTENSIONS = ("EXT1", "EXT2", "EXT4")
_NEVER = ("PERSID", "NEXT_BUFFER", "READONLY_BUFFER", "FROZENSET")
_TUPLES = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")
_STORE = ("PUT", "BINPUT", "LONG_BINPUT")
_FETCH = ("GET", "BINGET", "LONG_BINGET")
# Positions of the keys among the values that an opcode takes, from the top of the stack.
_KEYS = {
    "SETITEM": slice(1, 2),
    "SETITEMS": slice(1, None, 2),
    "DICT": slice(1, None, 2),
    "ADDITEMS": slice(None),
}
_MARK = -1  # on the stack of weights


def screen(stream: io.BytesIO, most: int | None = None) -> None:
    """Check one pickle of at most ``most`` opcodes (MAX_OPCODES) without running it.

    Raises:
        CheckpointError: the pickle is unsafe or too large.
        ValueError: the pickle is truncated, or an opcode is unknown.
    """
    start, most = stream.tell(), most or MAX_OPCODES
    stack, large = _Weights(), 0
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
    """The weight of a value that must not be a key: a long string, or a container."""


class _Weights:
    """The stack and memo of the pickle machine, with the number of values below each value.

    A list or dictionary counts as it was when memoised; neither can be hashed, so the bound on
    tuples holds.
    """

    def __init__(self) -> None:
        self._stack: list[int] = []
        self._memo: dict[int, int] = {}

    def step(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        """Apply one opcode to the counts."""
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
        """Replace the values that an opcode takes by one that contains them."""
        popped: list[int] = []
        taken = opcode.stack_before
        if pickletools.markobject in taken:
            while (value := self._pop()) != _MARK:
                popped.append(value)
            taken = taken[: taken.index(pickletools.markobject)]
        popped += [max(self._pop(), 0) for _ in taken]
        if opcode.name in _KEYS and any(isinstance(v, _NoKey) for v in popped[_KEYS[opcode.name]]):
            raise CheckpointError("has a key that is not a number or a short string")
        weight = 1 + sum(popped)
        if opcode.name in _TUPLES and weight > MAX_TUPLE:
            raise CheckpointError(f"nests or repeats {weight} values inside of a tuple")
        if opcode.stack_after:
            # Appending a container to itself doubles the count each time: keep the integer small.
            weight = min(weight, 2**62)
            self._stack.append(_NoKey(weight) if opcode.stack_before else weight)

    def _top(self) -> int:
        if not self._stack:
            raise CheckpointError("takes a value from an empty stack")
        return self._stack[-1]

    def _pop(self) -> int:
        top = self._top()
        self._stack.pop()
        return top
