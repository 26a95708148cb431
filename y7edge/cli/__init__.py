"""The command line: one file per command, nothing heavy imported before it is needed."""

from __future__ import annotations

import os
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``y7edge`` with ``argv``, default the process's arguments; return the exit code.

    0 ok, 1 any other error, 2 usage, 3 missing dependency, 4 a gate failed (parity, mAP, digest,
    speed), 130 interrupted.
    """
    from y7edge.cli.app import run

    # What OpenCV and FFmpeg print about damaged files names their own source; ours names the file.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "FATAL")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    return run(argv)
