"""Memory for intermediate pictures, used again and again.

A picture of a megabyte that is allocated for each step is given back to the system and cleared by
it each time, which costs as much as the step.
"""

from __future__ import annotations

import math
import threading

import numpy as np
from numpy.typing import NDArray


class _Buffers(threading.local):
    def __init__(self) -> None:
        self.by_name: dict[str, NDArray[np.uint8]] = {}


_buffers = _Buffers()


def scratch(name: str, *shape: int) -> NDArray[np.uint8]:
    """An uint8 array of any content; each thread has its own.

    It is good until the same thread asks for ``name`` again: never to be kept or returned.
    """
    size = math.prod(shape)
    buffer = _buffers.by_name.get(name)
    if buffer is None or buffer.size < size:
        buffer = _buffers.by_name[name] = np.empty(size, np.uint8)
    return buffer[:size].reshape(shape)
