"""``python -m y7edge.cli``: the command line where the ``y7edge`` script is not on the path."""

from __future__ import annotations

import sys

from y7edge.cli import main

if __name__ == "__main__":
    sys.exit(main())
