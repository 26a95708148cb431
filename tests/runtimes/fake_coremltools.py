"""A stand-in for coremltools on a Mac: packages are computed with torch, on the CPU."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.export.coreml_program import Feature, Program


class ComputeUnit:
    """The members that `tests/export/test_coreml_package.py` finds in the package."""

    ALL, CPU_AND_GPU, CPU_ONLY, CPU_AND_NE = "ALL", "CPU_AND_GPU", "CPU_ONLY", "CPU_AND_NE"


class MLModel:
    """A model that checks its inputs as coremltools does, and records its arguments."""

    opened: list[tuple[str, Any]] = []  # noqa: RUF012

    def __init__(self, model: str, *, compute_units: Any = ComputeUnit.ALL) -> None:
        self.program = Program(Path(model))
        self.opened.append((model, compute_units))

    def get_spec(self) -> SimpleNamespace:
        """Return what the runtime reads of a specification."""
        inputs, outputs = map(_described, (self.program.inputs, self.program.outputs))
        return SimpleNamespace(description=SimpleNamespace(input=inputs, output=outputs))

    def predict(self, data: dict[str, Any]) -> dict[str, Any]:
        """Compute the outputs."""
        (given,) = self.program.inputs
        value = data[given.name]
        if given.kind == "image":
            assert isinstance(value, Image.Image) and value.mode == "RGB"
            assert value.size == given.shape[::-1]
            value = np.asarray(value, np.float32).transpose(2, 0, 1)[None]
        assert value.dtype == np.float32
        with torch.no_grad():
            return self.program.run(torch.from_numpy(np.ascontiguousarray(value)))


def _described(features: Iterable[Feature]) -> list[SimpleNamespace]:
    found = []
    for one in features:
        kind = {"image": "imageType", "array": "multiArrayType"}[one.kind]
        fields = (
            {"height": one.shape[0], "width": one.shape[1], "colorSpace": one.code}
            if one.kind == "image"
            else {"shape": one.shape, "dataType": one.code}
        )
        which = {kind: SimpleNamespace(**fields), "WhichOneof": lambda _, kind=kind: kind}
        found.append(SimpleNamespace(name=one.name, type=SimpleNamespace(**which)))
    return found


class MLCPUComputeDevice:
    """The CPU."""


class MLNeuralEngineComputeDevice:
    """The Neural Engine."""


def install(monkeypatch: pytest.MonkeyPatch) -> type[MLModel]:
    """Install the stand-in for one test, on a system that says it is macOS."""
    device = SimpleNamespace(
        get_all_compute_devices=lambda: [MLCPUComputeDevice(), MLNeuralEngineComputeDevice()]
    )
    members: dict[str, dict[str, Any]] = {
        "coremltools": {"ComputeUnit": ComputeUnit},
        "coremltools.models": {"MLModel": MLModel},
        "coremltools.models.compute_device": {"MLComputeDevice": device},
    }
    for name, values in members.items():
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], last, module)
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.setattr(MLModel, "opened", [])
    return MLModel
