"""Read published ``.pt`` checkpoints without torch and without executing their pickle.

Such a file contains the pickled model object. ``y7edge.models.published.unpickle`` loads it with
inert objects in place of torch modules. This module collects the weights in these objects as torch
does (``_modules``, ``_parameters``, ``_buffers``). ``y7edge.models.published.keys`` translates
the names of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from y7edge.errors import CheckpointError
from y7edge.files import sha256_file
from y7edge.models import registry
from y7edge.models.checkpoint import COUNTER, Checkpoint, check, check_names, default_names
from y7edge.models.published.container import Container, opened
from y7edge.models.published.keys import identify, translate
from y7edge.models.published.unpickle import PickledArray, StandIn, Tensor
from y7edge.models.spec import BN_EPS, LEAKY_SLOPE, Anchors, Spec

MAX_DEPTH = 16  # of nested modules; published models have 6
MAX_MODULES = 50_000  # visited in one model; yolov7-e6e has about 1100

LICENCE = "not stated in the file; the weights that the YOLOv7 authors publish are under GPL-3.0"

_ACTIVATIONS = {"silu": "SiLU", "leaky_relu": "LeakyReLU"}  # ours to torch's
_BATCHNORM = "torch.nn.modules.batchnorm."
_ACTIVATION = "torch.nn.modules.activation."


@dataclass
class _Model:
    """Data that is collected from a file."""

    source: str
    entry: str  # "ema", "model", "bare model" or "state dict"
    tensors: dict[str, Tensor] = field(default_factory=dict)  # by published key
    activations: set[str] = field(default_factory=set)  # torch classes, such as "SiLU"
    names: object = None  # of the classes that the model detects
    modules: int = 0  # visited so far


def convert(state_dict: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Rename the keys of a published state dict to those of ``y7edge.nn.create(name, form=...)``.

    The form and the number of classes follow from the weights. Values (tensors or arrays) are not
    changed; ``anchor_grid`` is dropped, and missing BatchNorm counters become zero. ``name`` is one
    of ``y7edge.models.names``.

    Raises:
        CheckpointError: the keys or shapes differ from those of the variant.
        ConfigError: ``name`` is unknown.
    """
    return translate(state_dict, name, "the state dict")[1]


def load(path: Path | str) -> Checkpoint:
    """Read a published ``.pt`` file: a checkpoint of a training, a model or a state dict.

    The exponential moving average is used if there is one. float16 weights become float32.

    Raises:
        CheckpointError: the file is missing, damaged, unsafe, or contains an unsupported model.
    """
    path = Path(path)
    with opened(path) as container:
        model = _model(container.value, str(path))
        variant = _variant(model)
        spec, tensors = translate(model.tensors, variant, str(path))
        arrays = _arrays(container, tensors)
        spec = replace(spec, anchors=_anchors(spec, arrays, container, model))
        meta = _meta(path, container, model)
    checkpoint = Checkpoint(spec, arrays, _names(model, spec.nc), meta)
    check(checkpoint, str(path))
    return checkpoint


def _model(value: Any, source: str) -> _Model:
    """Collect the model from the unpickled value of a file.

    The entry ``ema`` is used if there is one, else the entry ``model``, else the value itself.
    """
    entry, content = "bare model", value
    if isinstance(value, dict):
        entry = next((entry for entry in ("ema", "model") if value.get(entry)), "state dict")
        content = value.get(entry, value)
    if isinstance(content, StandIn):
        model = _Model(source, entry, names=content.attributes.get("names"))
        _walk(model, content, "", 0)
        return model
    entries = content.items() if isinstance(content, dict) else ()
    if entries and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in entries):
        return _Model(source, "state dict", tensors=dict(entries))
    found = f"a {type(value).__name__}"
    if isinstance(value, dict):
        found = f"the entries {[str(key)[:40] for key in list(value)[:8] if isinstance(key, str)]}"
    raise CheckpointError(
        f"{source} contains no model: found {found}, expected a model, a state dict, or a "
        "dictionary with 'ema' or 'model'"
    )


def _walk(model: _Model, module: StandIn, prefix: str, depth: int) -> None:
    """Collect the tensors of a module and its children, and check the settings of each."""
    model.modules += 1
    if depth > MAX_DEPTH or model.modules > MAX_MODULES:
        raise CheckpointError(
            f"{model.source}: more than {MAX_MODULES} modules, or nested deeper than {MAX_DEPTH}; "
            "expected a YOLOv7 model"
        )
    _check_settings(model, module, prefix)
    for group in ("_parameters", "_buffers"):
        for name, tensor in _members(model, module, group, prefix):
            if not isinstance(tensor, Tensor):
                raise CheckpointError(f"{model.source}: {prefix + name!r} is not a tensor")
            model.tensors[prefix + name] = tensor
    for name, child in _members(model, module, "_modules", prefix):
        if not isinstance(child, StandIn):
            raise CheckpointError(f"{model.source}: {prefix + name!r} is not a module")
        _walk(model, child, f"{prefix}{name}.", depth + 1)


def _members(model: _Model, module: StandIn, group: str, prefix: str) -> list[tuple[str, Any]]:
    members = module.attributes.get(group, {})
    if not isinstance(members, dict) or not all(isinstance(name, str) for name in members):
        raise CheckpointError(f"{model.source}: {prefix + group!r} is not a dictionary of names")
    return [(name, member) for name, member in members.items() if member is not None]


def _check_settings(model: _Model, module: StandIn, prefix: str) -> None:
    """Check the eps of BatchNorm and the slope of LeakyReLU, and collect the activation."""
    kind = module.qualified_name
    if kind.startswith(_BATCHNORM):
        expected, setting = BN_EPS, "eps"
    elif kind.startswith(_ACTIVATION):
        model.activations.add(kind.removeprefix(_ACTIVATION))
        if not kind.endswith(".LeakyReLU"):
            return
        expected, setting = LEAKY_SLOPE, "negative_slope"
    else:
        return
    value = module.attributes.get(setting, expected)
    if not isinstance(value, float) or not math.isclose(value, expected, rel_tol=1e-6):
        shown = value if isinstance(value, float) else f"of type {type(value).__name__}"
        raise CheckpointError(
            f"{model.source}: {prefix.removesuffix('.')!r} has {setting} {shown}, expected "
            f"{expected} as in every YOLOv7; fine-tune the model with {expected}"
        )


def _variant(model: _Model) -> str:
    """Return the variant's name; the two tiny variants differ by their activation."""
    names, _ = identify(model.tensors, model.source)
    expected = {name: _ACTIVATIONS[registry.get(name).activation] for name in names}
    fitting = [name for name in names if model.activations <= {expected[name]}]
    if not fitting:
        raise CheckpointError(
            f"{model.source}: activations {', '.join(sorted(model.activations))[:200]}, expected "
            f"only {' or '.join(expected.values())} for {' or '.join(names)}; changed "
            "configurations are not supported"
        )
    return fitting[0]


def _arrays(container: Container, tensors: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Read the tensors as float32 (counters int64), in the given order."""

    def place(key: str) -> tuple[str, int]:
        tensor = tensors[key]
        return (tensor.storage.key, tensor.offset) if isinstance(tensor, Tensor) else ("", 0)

    arrays = {}
    for key in sorted(tensors, key=place):  # by storage: the container caches only the last one
        value = tensors[key]
        array = container.array(value) if isinstance(value, Tensor) else value
        # Values beyond float32 become infinity, which ``check`` reports.
        with np.errstate(over="ignore"):
            arrays[key] = array.astype(np.int64 if key.endswith(COUNTER) else np.float32)
    return {key: arrays[key] for key in tensors}


def _anchors(
    spec: Spec, arrays: Mapping[str, NDArray[Any]], container: Container, model: _Model
) -> Anchors:
    """Return the anchors in the file, in pixels; auto-anchor may have changed them.

    If the file also has an ``anchor_grid``, with which published models decode, its values must be
    equal to the anchors.
    """
    grid = arrays[f"rows.{spec.head.index}.anchors"].astype(np.float64)
    pixels = grid * np.array(spec.strides, dtype=np.float64)[:, None, None]
    stored = model.tensors.get(f"model.{spec.head.index}.anchor_grid")
    if stored is not None:
        decoding = container.array(stored).astype(np.float64)
        if decoding.size != pixels.size or not np.allclose(decoding.ravel(), pixels.ravel(), 1e-2):
            raise CheckpointError(
                f"{model.source}: anchor_grid (in pixels) and anchors (in cells) differ; save the "
                "model again with equal ones"
            )
    return tuple(tuple((float(w), float(h)) for w, h in level) for level in pixels)


def _names(model: _Model, nc: int) -> tuple[str, ...]:
    """Return the class names from the model's list or dictionary; "0", "1", ... by default."""
    names = model.names
    if isinstance(names, dict):
        names = [names.get(index) for index in range(len(names))]
    if not names:
        return default_names(nc)
    if not isinstance(names, list | tuple):
        raise CheckpointError(f"{model.source}: its class names are not a list")
    # YAML reads unquoted names such as 7 and no as numbers and booleans.
    texts = tuple(str(n) if isinstance(n, int) and abs(n) < 2**31 else n for n in names)
    check_names(texts, nc, model.source)
    return texts


def _meta(path: Path, container: Container, model: _Model) -> dict[str, Any]:
    meta: dict[str, Any] = {
        "licence": LICENCE,
        "provenance": {
            "file": path.name,
            "sha256": sha256_file(path),
            "container": container.kind,
            "entry": model.entry,
        },
    }
    if isinstance(container.value, dict):
        epoch, fitness = container.value.get("epoch"), container.value.get("best_fitness")
        if type(epoch) is int:
            meta["epoch"] = epoch
        if isinstance(fitness, PickledArray) and fitness.values.size == 1:
            fitness = fitness.values[0].item()
        if isinstance(fitness, float) and math.isfinite(fitness):
            meta["best_fitness"] = fitness
    return meta
