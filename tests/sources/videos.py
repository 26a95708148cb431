"""Small videos for tests, and reading of all frames."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from y7edge import Frame, open_source


def write_video(path: Path, frames: int, rate: float = 10.0, codec: str = "MJPG") -> None:
    """Write a video of 32 x 24 pixels."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), rate, (32, 24))
    assert writer.isOpened()
    for index in range(frames):
        # Noise, so that a file is frames rather than headers and indices.
        writer.write(np.random.default_rng(index).integers(0, 256, (24, 32, 3), np.uint8))
    writer.release()


def read_all(source: Path | str) -> list[Frame]:
    """Return all frames of a source that ends."""
    with open_source(str(source)) as opened:
        return list(opened)
