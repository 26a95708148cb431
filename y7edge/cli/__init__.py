"""The command line ``y7edge``: one module per command, with heavy imports on first use."""

from __future__ import annotations

import os
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``y7edge`` with ``argv``, by default the process's arguments; return the exit code.

    0 success, 1 any other error, 2 usage, 3 missing dependency, 4 a gate failed (parity, mAP,
    digest, speed), 130 interrupted.
    """
    from y7edge.cli.app import run

    # Our messages name the damaged file; those of OpenCV and FFmpeg do not.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "FATAL")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    return run(argv)
