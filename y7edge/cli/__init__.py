"""The command line ``y7edge``: one module per command, with heavy imports on first use."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from y7edge.packages import hidden_behind


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``y7edge`` with ``argv``, by default the process's arguments; return the exit code.

    0 success, 1 any other error, 2 usage, 3 missing dependency, 4 a gate failed (parity, mAP,
    digest, speed), 130 interrupted.
    """
    try:
        from y7edge.cli.app import run
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:  # of any kind, if a file hides a package
        found = hidden_behind(error)
        if found is None:
            raise
        print(f"error: {found}", file=sys.stderr)
        return found.exit_code

    # Our messages name the damaged file; those of OpenCV and FFmpeg do not.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "FATAL")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    return run(argv)
