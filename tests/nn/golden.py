"""Regenerates weights and inputs of the golden files from their recipes (keys, kinds, scales)."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parents[1] / "reference" / "golden"


def array(key, shape, kind, a, b):
    """The value of a key: a function of its text, shape, kind and two numbers."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))
    normal = kind == "normal"
    base = (
        rng.standard_normal(shape, dtype="float32")
        if normal
        else rng.random(shape, dtype="float32")
    )
    return base * np.float32(b) + np.float32(a)


def description(name):
    return json.loads((GOLDEN / f"model_{name}.json").read_text())


def outputs(name):
    return np.load(GOLDEN / f"model_{name}.npz")


def state_dict(golden, overrides=None):
    """Published keys -> arrays; ``overrides`` replaces (a, b) of some keys."""
    values = {}
    for key, shape, _, kind, a, b in golden["state_dict"]:
        if kind == "zeros":
            values[key] = np.zeros(shape, np.int64)
        elif kind == "explicit":
            values[key] = np.asarray(golden["explicit"][key], np.float32).reshape(shape)
        else:
            a, b = (overrides or {}).get(key, (a, b))
            values[key] = array(key, shape, kind, a, b)
    return values


def image(key, shape):
    return array(key, shape, "uniform", 0.0, 1.0)
