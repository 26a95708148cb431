"""Reused memory for intermediate images: allocating and clearing it costs as much as a step."""

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
    """An uint8 array of any content, valid until the same thread asks for ``name`` again."""
    size = math.prod(shape)
    buffer = _buffers.by_name.get(name)
    if buffer is None or buffer.size < size:
        buffer = _buffers.by_name[name] = np.empty(size, np.uint8)
    return buffer[:size].reshape(shape)
