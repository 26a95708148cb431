"""The published implementation's numbers for single operations (tests/reference/golden/ops.*)."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parents[1] / "reference" / "golden"


@cache
def table() -> dict:
    return json.loads((FOLDER / "ops.json").read_text())


@cache
def arrays():
    return np.load(FOLDER / "ops.npz")
