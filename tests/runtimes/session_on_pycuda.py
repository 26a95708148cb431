"""Run sessions with the real pycuda and cuda-python on ``fake_driver.c``; see ``test_pycuda``.

Prints a line for each kernel, and at last a report as JSON.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
import tempfile
import warnings
from collections import defaultdict
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from tests.fake_model import make_manifest
from tests.runtimes import fake_cuda
from tests.runtimes.test_trt import build
from y7edge import Detector
from y7edge.errors import Y7EdgeError


class Idle(fake_cuda.Machine):
    """The fake TensorRT, whose engines do nothing."""

    stack = ("the context",)


def main() -> None:
    """Detect with all kinds of sessions, and again with an error of each call."""
    driver = ctypes.CDLL("libcuda.so.1")
    machine = Idle(capability=(8, 6))
    machine.streams = defaultdict(lambda: SimpleNamespace(add=lambda work: None))
    tensorrt = fake_cuda._tensorrt(machine)
    tensorrt.__spec__ = ModuleSpec("tensorrt", None)
    sys.modules["tensorrt"] = tensorrt
    folder, report = Path(tempfile.mkdtemp()), {"executions": [], "injected": 0, "wrong": []}
    for batch in (1, 4, "dynamic"):
        for kernels in (True, False):
            model = build(
                folder, f"{batch}-{kernels}", machine=machine, manifest=make_manifest(batch)
            )
            report["executions"].append(detect(model.path, kernels))
            report["wrong"] += left(driver, "no error")
            for number in range(1, driver.fake_reset(0) + 1):
                driver.fake_reset(number)
                try:
                    detect(model.path, kernels)
                except Y7EdgeError:
                    report["injected"] += 1
                gc.collect()
                driver.fake_reset(0)
                report["wrong"] += left(driver, f"batch {batch}, {kernels=}, error of {number}")
    print(json.dumps({**report, "problems": machine.problems}))


def detect(path: Path, kernels: bool) -> str:
    """Detect objects in two images; return how the engine was run."""
    options = {} if kernels else {"kernels": False}
    with Detector(path, provider_options=options) as detector:
        detector(np.zeros((100, 150, 3), np.uint8))
        detector.batch([np.zeros((64, 96, 3), np.uint8)] * 2)
        return detector.info["execution"]


def left(driver: ctypes.CDLL, when: str) -> list[str]:
    """Return what is alive, and whether a context is still current."""
    gc.collect()
    found = driver.fake_alive(), driver.fake_depth()
    return [] if found == (0, 0) else [f"{when}: {found[0]} objects, {found[1]} contexts"]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
