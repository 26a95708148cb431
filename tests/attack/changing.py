"""Inputs: files that another process truncates and rewrites while they are read."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from tests.attack.base import Attack, Make, Place, Read
from y7edge.errors import Y7EdgeError

ROUNDS, SECONDS = 12, 2.0


def _changing(name: str, inner: str = "", beside: str = "") -> Make:
    """Write a valid file that a process repeatedly truncates and rewrites."""

    def make(place: Place) -> Path:
        path = place.copy(name)
        if beside:
            place.copy(beside)
        target = path / inner if inner else path
        lengths = [place.rng.random() for _ in range(50)]
        content, parent = target.read_bytes(), os.getpid()
        if os.fork() == 0:
            try:
                until = time.monotonic() + 2 * SECONDS
                while time.monotonic() < until and os.getppid() == parent:
                    for length in lengths:
                        _rewrite(target, content, int(length * len(content)))
            finally:
                os._exit(0)
        return path

    return make


def _rewrite(path: Path, content: bytes, length: int) -> None:
    descriptor = os.open(path, os.O_RDWR)
    os.ftruncate(descriptor, length)
    time.sleep(0.001)
    os.pwrite(descriptor, content, 0)
    os.close(descriptor)
    time.sleep(0.002)


def _again(read: Callable[[Path], object]) -> Read:
    """Read several times; each time must give a result or a typed error."""

    def go(path: Path) -> None:
        until = time.monotonic() + SECONDS
        for _ in range(ROUNDS):
            try:
                read(path)
            except Y7EdgeError:
                continue
            if time.monotonic() > until:
                return

    return go


def load(path: Path) -> None:
    """Read the file by its kind."""
    from y7edge.data import dataset
    from y7edge.models import weights
    from y7edge.runtimes import registry
    from y7edge.train.run import state

    if path.suffix in (".safetensors", ".pt"):
        weights.load(path)
    elif path.suffix in (".onnx", ".xml"):
        registry.check_payload(registry.load(path))
    elif path.name == "run":
        state.load(path, lambda found: None, log=lambda line: None)
    else:
        dataset.load(path)


def use(path: Path) -> None:
    """Open the file for use."""
    import numpy as np

    from y7edge import Detector
    from y7edge.data.check.examine import examine

    if path.is_dir():
        if path.name != "run":
            examine(path)
        return
    imgsz = (64, 96) if path.suffix in (".safetensors", ".pt") else None
    with Detector(path, imgsz=imgsz) as detector:
        detector(np.zeros((40, 60, 3), np.uint8))


FILES: dict[str, Make] = {
    "a checkpoint": _changing("model.safetensors"),
    "a published checkpoint": _changing("zip.pt"),
    "an older published checkpoint": _changing("legacy.pt"),
    "an ONNX file": _changing("model.onnx"),
    "an OpenVINO graph": _changing("model.xml", beside="model.bin"),
    "a training state": _changing("run", "state.safetensors"),
    "an image": _changing("yolo", "images/train/train0.jpg"),
    "a label": _changing("yolo", "labels/train/train0.txt"),
    "a COCO file": _changing("coco", "annotations/instances_train.json"),
    "a data.yaml": _changing("yolo", "data.yaml"),
}
ATTACKS = (Attack("changing", 60, FILES, None, {"load": _again(load), "use": _again(use)}),)
