"""Capture and restore the state of a run, so that a resumed run gives bit-identical weights.

The order of images, augmentation, learning rates and input sizes are computed from configuration
and batch number. The state contains everything else: weights, averaged weights, momenta,
accumulated gradients, gradient scaler of fp16, random generators, losses of the epoch, image
weights and results.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from y7edge.errors import CheckpointError, ConfigError, DataError, TrainingError
from y7edge.train.output.folder import CONFIG
from y7edge.train.output.results import Written
from y7edge.train.run.state import Facts, Identity, Position, State
from y7edge.train.run.steps import scaler_of
from y7edge.train.setup.parts import Parts

# Settings that a resumed run may change
_FREE = {
    *("data", "weights", "out", "command", "licence", "patience", "checkpoint_minutes", "profile"),
    *("report", "device", "devices", "nodes", "sync_bn", "compile", "workers", "cache"),
}

_ON_GPU = "run.generator_cuda"


def capture(parts: Parts, position: Position) -> State:
    """Return the state of a run between two batches; call this on all ranks."""
    steps = parts.steps
    average, counts = steps.average.state()
    optimizer = steps.optimizer.state_dict()["state"]
    scaler = scaler_of(steps.fabric)
    state = State(
        Facts(
            replace(position),
            identity(parts),
            began=parts.start.began(),
            average=counts,
            scaler=scaler.state_dict() if scaler else {},
            gathered=steps.accumulator.gathered,
            written=parts.writer.state() if parts.writer else Written(),
        )
    )
    state.put("model", steps.model.state_dict())
    state.put("average", average)
    state.put("gradients", _gradients(parts))
    for index, values in optimizer.items():
        state.put(f"optimizer.{index}", {k: v for k, v in values.items() if v is not None})
    state.put("run", {"generator": torch.get_rng_state()})
    if (device := steps.fabric.device).type == "cuda":
        state.put("run", {"generator_cuda": torch.cuda.get_rng_state(device)})
    if parts.plan.weights is not None:
        state.put("run", {"image_weights": torch.from_numpy(parts.plan.weights)})
    return state


def restore(parts: Parts, state: State) -> Position:
    """Restore a state and return its position; check it with ``require_fitting`` before."""
    steps, facts = parts.steps, state.facts
    steps.model.load_state_dict(state.take("model"))
    steps.average.load(state.take("average"), facts.average)
    steps.accumulator.gathered = facts.gathered
    if scaler := scaler_of(steps.fabric):
        scaler.load_state_dict(dict(facts.scaler) or scaler.state_dict())
    if parts.writer:
        parts.writer.restore(facts.written)
    parameters = dict(steps.model.named_parameters())
    for name, gradient in state.take("gradients").items():
        parameters[name].grad = _in_layout_of(parameters[name], gradient)
    _restore_optimizer(steps.optimizer, state)
    run = state.take("run")
    torch.set_rng_state(run["generator"])
    if (device := steps.fabric.device).type == "cuda" and "generator_cuda" in run:
        torch.cuda.set_rng_state(run["generator_cuda"], device)
    if "image_weights" in run:
        parts.plan.weights = run["image_weights"].numpy()
    return replace(facts.position)


def require_fitting(parts: Parts, state: State) -> None:
    """Check that the values of a state fit the run.

    Raises:
        CheckpointError: an array is missing, unexpected, not finite, or has a wrong shape or type;
            the position is past the end of the run; or values of the gradient scaler are invalid.
    """
    position, written = state.facts.position, state.facts.written
    epochs, batches = parts.config.epochs, len(parts.plan)
    problem: str | None
    if position.epoch > epochs + 1 or position.batch > batches:
        problem = f"it is at {position}, but the run has {epochs} epochs of {batches} batches"
    elif len(written.rows) != position.epoch - 1:
        problem = f"it has results of {len(written.rows)} epochs, but is in epoch {position.epoch}"
    else:
        problem = _misfit(parts, state) or _scaler_misfit(parts, state)
    if problem:
        raise CheckpointError(f"{parts.folder}: a state does not fit the run: {problem}")


def _misfit(parts: Parts, state: State) -> str | None:
    """Describe the first array of a state that does not fit the run; None if all fit."""
    arrays, needed = state.arrays, capture(parts, Position()).arrays
    trained = [p for group in parts.steps.optimizer.param_groups for p in group["params"]]
    tensors = {f"gradients.{name}": p for name, p in parts.steps.model.named_parameters()}
    tensors |= {f"optimizer.{index}.momentum_buffer": p for index, p in enumerate(trained)}
    allowed = {name: np.empty(p.shape, np.float32) for name, p in tensors.items()}
    for name in (*needed, *arrays):
        if name == _ON_GPU and not (name in needed and name in arrays):
            continue  # the run began on another kind of device
        if name not in arrays:
            return f"{name} is missing"
        array, like = arrays[name], needed.get(name, allowed.get(name))
        if like is None:
            return f"{name} is unexpected"
        if array.shape != like.shape or array.dtype != like.dtype:
            return f"{name} is {array.dtype} {array.shape}, expected {like.dtype} {like.shape}"
        if name.endswith(".anchors") and name in needed and not np.allclose(array, like):
            return f"{name} differs from the anchors at the start of the run"
        # Gradients are not checked, since those of fp16 may overflow.
        if name in needed and array.dtype.kind == "f" and not np.isfinite(array).all():
            return f"{name} is not finite"
    weights = arrays.get("run.image_weights")
    if weights is not None and (weights.min() < 0 or not np.isclose(weights.sum(), 1)):
        return "run.image_weights are not probabilities"
    run = state.take("run")
    try:
        torch.Generator().set_state(run["generator"])
        if _ON_GPU in needed and _ON_GPU in arrays:
            torch.Generator(parts.fabric.device).set_state(run["generator_cuda"])
    except RuntimeError as error:
        return f"run.generator is invalid: {error}"
    return None


def _scaler_misfit(parts: Parts, state: State) -> str | None:
    """Describe invalid values of fp16's gradient scaler; None if they are valid."""
    scaler, values = scaler_of(parts.steps.fabric), state.facts.scaler
    if not scaler or not values:  # empty if the run began on a CPU
        return None
    fits = values.keys() == scaler.state_dict().keys() and all(
        0 <= value < (2**31 if isinstance(value, int) else 3e38) for value in values.values()
    )
    return None if fits else f"the gradient scaler of fp16 has invalid values: {dict(values)}"


def identity(parts: Parts) -> Identity:
    """Return the properties that must not change for a resumed run to give the same result."""
    settings = {k: v for k, v in parts.config.to_dict().items() if k not in _FREE}
    return Identity(
        settings=json.loads(json.dumps(settings)),
        data=parts.data.digest,
        torch=str(torch.__version__),
        threads=torch.get_num_threads(),
        processes=parts.ranks.world,
        device=parts.fabric.device.type,
        machine=platform.machine(),
    )


def check(then: Identity, now: Identity, source: str, log: Callable[[str], None]) -> None:
    """Check that a run with the identity ``then`` can be resumed under the identity ``now``.

    ``source`` names the data in messages. ``log`` reports differences that only affect rounding,
    such as another version of torch.

    Raises:
        DataError: the data have changed.
        ConfigError: a setting has changed.
    """
    if changed := _changes(_flat(then.settings), _flat(now.settings)):
        raise ConfigError(
            f"{CONFIG} has changed since the run began ({changed}): restore it, or start a new run "
            "with --weights"
        )
    if then.data != now.data:
        raise DataError(
            f"{source}: the data have changed since the run began (digest {now.data[:16]}, "
            f"before {then.data[:16]}): restore them, or start a new run with --weights"
        )
    if changed := _changes(asdict(replace(then, settings=now.settings)), asdict(now)):
        log(f"the result will not be bit-identical: {changed}")


def _changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """List the values of ``now`` that differ from those of ``then``, for a message."""
    return "; ".join(
        f"{name} is {value!r}, was {then.get(name)!r}"
        for name, value in now.items()
        if value != then.get(name)
    )


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Move the nested values of recipe and augmentation to the top level."""
    flat = dict(settings)
    for inner in ("recipe", "augmentation"):
        values = flat.pop(inner, {})
        flat |= values if isinstance(values, Mapping) else {inner: values}
    return flat


def require_finite(model: nn.Module) -> None:
    """Raise TrainingError if a weight is not finite."""
    weights = {k: v for k, v in model.state_dict().items() if v.is_floating_point()}
    if not bool(torch.stack([value.isfinite().all() for value in weights.values()]).all()):
        name = next(name for name, value in weights.items() if not bool(value.isfinite().all()))
        raise TrainingError(
            f"the weights are not finite (first: {name}): lower lr0, lengthen the warm-up or "
            "use --precision fp32; the last state with finite weights is kept"
        )


def _gradients(parts: Parts) -> dict[str, Tensor]:
    """Return the accumulated gradients by parameter name, averaged over the ranks."""
    if not parts.steps.accumulator.gathered:
        return {}
    ranks = parts.ranks
    return {
        name: ranks.sum(p.grad) / ranks.world if ranks.world > 1 else p.grad
        for name, p in parts.steps.model.named_parameters()
        if p.grad is not None
    }


def _restore_optimizer(optimizer: torch.optim.Optimizer, state: State) -> None:
    """Restore momenta; fused kernels need them in the memory layout of their parameters."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, parameter in enumerate(parameters):
        if values := state.take(f"optimizer.{index}"):
            optimizer.state[parameter] = {
                name: _in_layout_of(parameter, value) for name, value in values.items()
            }


def _in_layout_of(parameter: Tensor, value: Tensor) -> Tensor:
    """Copy a value to the device and the memory layout of its parameter."""
    like = torch.empty_like(parameter, memory_format=torch.preserve_format, requires_grad=False)
    return like.copy_(value)
