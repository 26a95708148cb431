"""Faithful published files: what `torch.save` makes of a model object in the published layout.

The classes carry the published names and hold real torch modules under the published attribute
names. They compute nothing, and their modules exist in `sys.modules` only while a file is written.
"""

from __future__ import annotations

import re
import sys
import types
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from y7edge.models.published.keys import published_key
from y7edge.models.shapes import downc_members, input_channels, sppcspc_members, weight_shapes
from y7edge.models.spec import Row, Spec

COMMON = (
    *("Conv", "Concat", "MP", "SP", "ReOrg", "DownC", "SPPCSPC", "RepConv", "Shortcut"),
    *("ImplicitA", "ImplicitM"),
)
YOLO = ("Model", "Detect", "IDetect", "IAuxDetect")
CLASSES = {
    name: type(name, (nn.Module,), {"__module__": f"models.{module}"})
    for module, names in (("common", COMMON), ("yolo", YOLO))
    for name in names
}


def values(spec: Spec, seed: int = 0) -> dict[str, torch.Tensor]:
    """Half-precision weights under published keys, exact in half; all are views of one storage."""
    shapes = weight_shapes(spec)
    largest = max(int(np.prod(shape)) for shape in shapes.values())
    generator = torch.Generator().manual_seed(seed)
    pool = (torch.rand(largest + 64, generator=generator) + 0.25).half()
    tensors = {}
    for number, (key, shape) in enumerate(shapes.items()):
        count = int(np.prod(shape))
        if key.endswith("num_batches_tracked"):
            tensor = torch.tensor(number)
        else:
            tensor = pool[number % 64 : number % 64 + count].view(shape)
        tensors[published_key(key)] = tensor
    anchors = torch.tensor(spec.anchors)
    head = f"model.{spec.head.index}"
    tensors[f"{head}.anchors"] = (anchors / torch.tensor(spec.strides)[:, None, None]).half()
    tensors[f"{head}.anchor_grid"] = anchors[:, None, :, None, None, :].half()
    return tensors


class Layout:
    """The published module tree of a spec, without weights yet."""

    def __init__(self, spec: Spec, *, norm: str = "BatchNorm2d", eps: float = 1e-3) -> None:
        self.spec, self.norm, self.eps = spec, norm, eps
        self.activation = nn.SiLU() if spec.activation == "silu" else nn.LeakyReLU(0.1)

    def model(self, tensors: Mapping[str, torch.Tensor], names: Any = None) -> nn.Module:
        """The whole model object with the given weights under published keys."""
        with torch.device("meta"):
            rows = []
            for row in self.spec.rows:
                module = self._row(row)
                module.i, module.f, module.np = row.index, list(row.inputs), 0
                module.type = f"models.common.{type(module).__name__}"
                rows.append(module)
            model = CLASSES["Model"]()
            model.yaml = {"nc": self.spec.nc, "ch": 3, "depth_multiple": 1.0}
            model.model = nn.Sequential(*rows)
        model.save, model.traced, model.hyp, model.gr = [4, 5], False, {"lr0": 0.01}, 1.0
        model.stride = torch.tensor([float(stride) for stride in self.spec.strides])
        model.class_weights = torch.ones(self.spec.nc, dtype=torch.float64)
        model.names = names if names is not None else [f"kind {i}" for i in range(self.spec.nc)]
        model.load_state_dict(dict(tensors), strict=True, assign=True)
        return model

    def _row(self, row: Row) -> nn.Module:
        cin = input_channels(self.spec, row)[0]
        if row.block == "conv":
            return self._conv(cin, row.out, row.kernel, row.stride)
        if row.block == "repconv":
            module = CLASSES["RepConv"]()
            module.rbr_identity = None
            module.rbr_dense = nn.Sequential(self._plain(cin, row.out, 3, 1), self._norm(row.out))
            module.rbr_1x1 = nn.Sequential(self._plain(cin, row.out, 1, 1), self._norm(row.out))
            module.act = self.activation
            return module
        if row.block in ("downc", "sppcspc"):
            return self._composite(row, cin)
        if row.block == "head":
            return self._head()
        if row.block == "upsample":
            return nn.Upsample(scale_factor=2, mode="nearest")
        kinds = {"concat": "Concat", "sum": "Shortcut", "reorg": "ReOrg"}
        kind = kinds.get(row.block, "MP" if row.kernel == 2 else "SP")
        module = CLASSES[kind]()
        if row.block == "maxpool":
            module.m = nn.MaxPool2d(row.kernel, row.stride)
        return module

    def _composite(self, row: Row, cin: int) -> nn.Module:
        if row.block == "downc":
            module = CLASSES["DownC"]()
            for name, (source, out, kernel, stride) in downc_members(cin, row.out).items():
                setattr(module, name, self._conv(source, out, kernel, stride))
            module.mp = nn.MaxPool2d(2, 2)
            return module
        module = CLASSES["SPPCSPC"]()
        for name, (source, out, kernel) in sppcspc_members(cin, row.out).items():
            setattr(module, name, self._conv(source, out, kernel, 1))
        module.m = nn.ModuleList(nn.MaxPool2d(k, 1, k // 2) for k in (5, 9, 13))
        return module

    def _conv(self, cin: int, cout: int, kernel: int, stride: int) -> nn.Module:
        module = CLASSES["Conv"]()
        module.conv = self._plain(cin, cout, kernel, stride)
        module.bn = self._norm(cout)
        module.act = self.activation
        return module

    @staticmethod
    def _plain(cin: int, cout: int, kernel: int, stride: int) -> nn.Module:
        return nn.Conv2d(cin, cout, kernel, stride, kernel // 2, bias=False)

    def _norm(self, width: int) -> nn.Module:
        return getattr(nn, self.norm)(width, eps=self.eps, momentum=0.03)

    def _head(self) -> nn.Module:
        spec = self.spec
        kind = "IAuxDetect" if spec.has_aux else "IDetect" if spec.implicit else "Detect"
        head = CLASSES[kind]()
        head.nc, head.no, head.nl, head.na = spec.nc, 5 + spec.nc, spec.levels, 3
        head.grid = [torch.zeros(1, device="cpu")] * spec.levels
        head.register_buffer("anchors", torch.empty(spec.levels, 3, 2))
        head.register_buffer("anchor_grid", torch.empty(spec.levels, 1, 3, 1, 1, 2))
        out = 3 * (5 + spec.nc)
        widths = [spec.rows[i].out for i in spec.head.inputs]
        lead, aux = widths[: spec.levels], widths[spec.levels :]
        head.m = nn.ModuleList(nn.Conv2d(width, out, 1) for width in lead)
        if aux:
            head.m2 = nn.ModuleList(nn.Conv2d(width, out, 1) for width in aux)
        if spec.implicit:
            head.ia = nn.ModuleList(_implicit("ImplicitA", width) for width in lead)
            head.im = nn.ModuleList(_implicit("ImplicitM", out) for _ in lead)
        return head


def _implicit(kind: str, width: int) -> nn.Module:
    module = CLASSES[kind]()
    module.implicit = nn.Parameter(torch.empty(1, width, 1, 1))
    return module


@contextmanager
def published_modules() -> Iterator[None]:
    """Provide `models.common` and `models.yolo` for the pickler."""
    made = {name: types.ModuleType(name) for name in ("models", "models.common", "models.yolo")}
    for name, kind in CLASSES.items():
        setattr(made[kind.__module__], name, kind)
    sys.modules.update(made)
    try:
        yield
    finally:
        for name in made:
            del sys.modules[name]


def write(path: Path, value: Any, *, legacy: bool = False, protocol: int = 2) -> Path:
    """`torch.save` in either container."""
    with published_modules(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the legacy stream looks for the classes' source text
        torch.save(
            value,
            path,
            _use_new_zipfile_serialization=not legacy,
            pickle_protocol=protocol,
        )
    return path


def while_training(model: nn.Module, ema: nn.Module | None) -> dict[str, Any]:
    """The dictionary of last.pt and best.pt."""
    return {
        "epoch": 7,
        "best_fitness": np.array([0.625]),
        "training_results": "0/29 1.2G 0.1",
        "model": model,
        "ema": ema,
        "updates": 1234,
        "optimizer": {
            "state": {0: {"momentum_buffer": torch.zeros(4)}},
            "param_groups": [{"lr": 0.01, "nesterov": True, "params": [0]}],
        },
        "wandb_id": None,
    }


def stripped(model: nn.Module) -> dict[str, Any]:
    """Return the dictionary after the final strip, as in most published files."""
    empty = dict.fromkeys(("optimizer", "training_results", "wandb_id", "ema", "updates"))
    return {**empty, "epoch": -1, "best_fitness": np.float64(0.5), "model": model}


def to_deploy(training: Mapping[str, Any], head: int, deploy_head: int) -> OrderedDict[str, Any]:
    """Keys of the deploy form: auxiliary rows and implicit tensors gone, the head moved up."""
    kept: OrderedDict[str, Any] = OrderedDict()
    for key, value in training.items():
        row = int(key.split(".")[1])
        if deploy_head <= row < head or re.search(r"\.(m2|ia|im)\.\d", key):
            continue
        renamed = key.replace(f"model.{head}.", f"model.{deploy_head}.") if row == head else key
        kept[renamed] = value
    return kept
