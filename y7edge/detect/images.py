"""The images that a Detector is called with, arrays or frames of a source, and their origin.

A ``Frame`` has a format, capture time, number and source; arguments of the call replace them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from y7edge.detect.preprocess import Color
from y7edge.errors import ConfigError, DataError
from y7edge.frames import Frame

Origin = Mapping[str, Any]
"""``timestamp_ns``, ``frame_id`` and ``source`` of an image, if they are known."""


class Given(NamedTuple):
    """An image, the order of its channels, and its origin."""

    pixels: Any  # an array, which was not checked yet
    color: Color
    origin: Origin


def given(
    frame: object,
    color: Color | None,
    timestamp_ns: int | None = None,
    frame_id: int | None = None,
    source: str | None = None,
) -> Given:
    """Return the image of a call, with the values of the frame where an argument is None.

    Raises:
        ConfigError: ``color`` is not the format of the frame.
    """
    if isinstance(frame, Frame):
        if color is not None and not (isinstance(color, str) and color == frame.format):
            raise ConfigError(
                f"color is {color!r}, but the format of the frame is {frame.format!r}: omit color"
            )
        color = frame.format
        timestamp_ns = frame.timestamp_ns if timestamp_ns is None else timestamp_ns
        frame_id = frame.sequence if frame_id is None else frame_id
        source = frame.source if source is None else source
        frame = frame.image
    origin = {"timestamp_ns": timestamp_ns, "frame_id": frame_id, "source": source}
    return Given(frame, "bgr" if color is None else color, origin)


def given_batch(
    frames: object, color: Color | None, arguments: Mapping[str, Sequence[Any] | None]
) -> list[Given]:
    """Return the images of a batch; ``arguments``: a list for each value of their origins, or None.

    Raises:
        DataError: ``frames`` is not a list, or an argument has not one value for each image.
        ConfigError: ``color`` is not the format of a frame.
    """
    if isinstance(frames, np.ndarray) or not isinstance(frames, Sequence):
        raise DataError(
            f"batch() takes a list of images, not {type(frames).__name__}: "
            "call the detector itself for one image"
        )
    known = {name: values for name, values in arguments.items() if values is not None}
    for name, values in known.items():
        values = values.tolist() if isinstance(values, np.ndarray) else values
        listed = isinstance(values, Sequence) and not isinstance(values, str)
        if not listed or len(values) != len(frames):
            raise DataError(
                f"{name} is {values!r}, expected a list of {len(frames)}, one per image"
            )
    return [
        given(frame, color, **{name: values[index] for name, values in known.items()})
        for index, frame in enumerate(frames)
    ]
