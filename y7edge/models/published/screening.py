"""Check every opcode of a pickle before it runs.

Refusing names is not enough: the pickle machine itself can be made to allocate, to recurse or to
skip the look-up of names. Checked here:

* extension codes, which a cache may answer without a look-up;
* memo slots, for which the C implementation allocates up to the highest index;
* the number of values below a tuple, shared ones counted each time: hashing a tuple visits them
  all, recursively and without a limit;
* the number of opcodes. Lengths inside opcodes are checked against the bytes that are there.
"""

from __future__ import annotations

import io
import mmap
import pickletools
from typing import Any

from y7edge.errors import CheckpointError

MAX_OPCODES = 2_000_000  # yolov7-e6e, model and average with optimiser state, has about a quarter
MAX_BYTES = 256 * 2**20  # of the pickle, tensors apart; published ones stay below 2 MiB
MAX_TUPLE = 10_000  # values below one tuple; a tensor's arguments are about 20

_EXTENSIONS = ("EXT1", "EXT2", "EXT4")
_OUT_OF_BAND = ("PERSID", "NEXT_BUFFER", "READONLY_BUFFER")
_TUPLES = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")
_STORE = ("PUT", "BINPUT", "LONG_BINPUT")
_FETCH = ("GET", "BINGET", "LONG_BINGET")
_MARK = -1  # on the stack of weights


ByteStream = io.BytesIO | mmap.mmap


def screen(stream: ByteStream) -> None:
    """Read one pickle to its end without running it.

    Raises:
        CheckpointError: it does something that the published files never do.
        ValueError: it is truncated, or an opcode is unknown.
    """
    start = stream.tell()
    stack = _Weights()
    argument: Any
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):  # type: ignore[arg-type]
        if opcode.name in _EXTENSIONS:
            raise CheckpointError(
                f"uses extension code {argument}, which can stand for any function"
            )
        if opcode.name in _OUT_OF_BAND:
            raise CheckpointError(f"uses the opcode {opcode.name}, which torch never writes")
        if count >= MAX_OPCODES or stream.tell() - start > MAX_BYTES:
            raise CheckpointError(f"is longer than {MAX_OPCODES} opcodes or {MAX_BYTES} bytes")
        if opcode.name in _STORE and not 0 <= argument <= count:
            raise CheckpointError(f"uses memo slot {argument} after {count} opcodes")
        stack.step(opcode, argument)


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
        else:
            self._combine(opcode)

    def _combine(self, opcode: pickletools.OpcodeInfo) -> None:
        """Replace what the opcode takes by one value that contains it all."""
        weight = 1
        taken = opcode.stack_before
        if pickletools.markobject in taken:
            while (value := self._pop()) != _MARK:
                weight += value
            taken = taken[: taken.index(pickletools.markobject)]
        for _ in taken:
            weight += max(self._pop(), 0)
        if opcode.name in _TUPLES and weight > MAX_TUPLE:
            raise CheckpointError(f"nests or repeats {weight} values inside of a tuple")
        if opcode.stack_after:
            # Appending a container to itself doubles the count each time: keep the integer small.
            self._stack.append(min(weight, 2**62))

    def _top(self) -> int:
        if not self._stack:
            raise CheckpointError("takes a value from an empty stack")
        return self._stack[-1]

    def _pop(self) -> int:
        top = self._top()
        self._stack.pop()
        return top
