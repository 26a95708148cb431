"""Run the command line as ``python -m y7edge``, without the script ``y7edge``."""

from __future__ import annotations

import sys

from y7edge.cli import main

if __name__ == "__main__":
    sys.exit(main())
