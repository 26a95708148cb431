"""Fixtures that several areas share: a small checkpoint, an artifact of it, a private cache."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

SIZE = (96, 128)
NAMES = ("nut", "washer", "schraube mit Öse")


# Shells start programs in the background with an ignored SIGINT, and all processes of tests would
# inherit it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory):
    """Reference outputs are kept apart from the user's, and are new in every run."""
    before = os.environ.get("Y7EDGE_CACHE")
    os.environ["Y7EDGE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["Y7EDGE_CACHE"]
    else:
        os.environ["Y7EDGE_CACHE"] = before


@pytest.fixture(scope="session")
def narrow_tiny():
    """yolov7-tiny with a quarter of its channels, three classes, seeded random weights."""
    from y7edge.models import registry
    from y7edge.models.scaling import scale
    from y7edge.nn.random_weights import random_weights

    spec = scale(registry.get("yolov7-tiny", nc=len(NAMES)), width=0.25)
    return replace(random_weights(spec, seed=2), names=NAMES)


@pytest.fixture(scope="session")
def artifact_path(narrow_tiny, tmp_path_factory):
    """An exported fp32 artifact with raw heads; not to be changed."""
    from y7edge.export import export

    path = tmp_path_factory.mktemp("artifact") / "narrow.onnx"
    return export(narrow_tiny, path, imgsz=SIZE).path


@pytest.fixture(scope="session")
def parts_model(tmp_path_factory):
    """The trained model of `make demo` as an ONNX artifact; it detects `test://scenes`."""
    from y7edge.export import export
    from y7edge.models import weights

    checkpoint = weights.load(Path(__file__).parent / "reference" / "demo.safetensors")
    return export(checkpoint, tmp_path_factory.mktemp("model") / "parts.onnx").path
