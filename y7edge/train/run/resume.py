"""Capture the state of a run and restore it, bit by bit.

Data, augmentation, learning rates and input sizes are functions of configuration and batch number.
The state is the rest: weights, their average, momenta, accumulated gradients, fp16's scaler,
generators, losses of the epoch, image weights, and results.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from y7edge.errors import ConfigError, DataError, TrainingError
from y7edge.train.output.folder import CONFIG
from y7edge.train.run.state import State
from y7edge.train.run.steps import scaler_of
from y7edge.train.setup.parts import Parts

# Settings that a resumed run may change
_FREE = {
    *("data", "weights", "out", "command", "licence", "patience", "checkpoint_minutes", "profile"),
    *("report", "device", "devices", "nodes", "sync_bn", "compile", "workers", "cache"),
}


@dataclass
class Position:
    """Progress of a run."""

    epoch: int = 1  # the current epoch
    batch: int = 0  # finished batches
    closed: bool = False  # the epoch is trained, and the average prepared
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])  # of box, obj and cls losses
    seconds: float = 0.0  # of the finished batches


def capture(parts: Parts, position: Position) -> State:
    """Capture the state between two batches; call it on all ranks."""
    steps = parts.steps
    average, average_facts = steps.average.state()
    optimizer = steps.optimizer.state_dict()["state"]
    scaler = scaler_of(steps.fabric)
    state = State(
        {
            **asdict(position),
            "gathered": steps.accumulator.gathered,
            "average": average_facts,
            "scaler": scaler.state_dict() if scaler else {},
            "writer": parts.writer.state() if parts.writer else {},
            "start": parts.start.facts(),
            "identity": identity(parts),
        }
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
    """Restore a state, and return its position."""
    steps, facts = parts.steps, state.facts
    steps.model.load_state_dict(state.take("model"))
    steps.average.load(state.take("average"), facts["average"])
    steps.accumulator.gathered = int(facts["gathered"])
    if scaler := scaler_of(steps.fabric):
        scaler.load_state_dict(facts["scaler"])
    if parts.writer:
        parts.writer.restore(facts["writer"])
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
    return Position(**{entry.name: facts[entry.name] for entry in fields(Position)})


def identity(parts: Parts) -> dict[str, Any]:
    """What must be equal for a resumed run to give the same result."""
    settings = {k: v for k, v in parts.config.to_dict().items() if k not in _FREE}
    return {
        "settings": json.loads(json.dumps(settings)),
        "data": parts.data.digest,
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "processes": parts.ranks.world,
        "device": parts.fabric.device.type,
        "machine": platform.machine(),
    }


def check(state: State, now: Mapping[str, Any], source: str, log: Callable[[str], None]) -> None:
    """Compare the state's :func:`identity` with the present one, ``now``.

    ``source`` names the data in messages; ``log`` is called with differences that only change the
    last bits.

    Raises:
        DataError: other data.
        ConfigError: a setting has changed.
    """
    then = state.facts["identity"]
    _require_settings(then.get("settings", now["settings"]), now["settings"])
    if then["data"] != now["data"]:
        raise DataError(
            f"{source}: the data have changed since the run began (digest {now['data'][:16]}, "
            f"then {then['data'][:16]}): restore them, or start a new run with --weights"
        )
    changed = [
        f"{name} {then.get(name)} then, {value} now"
        for name, value in now.items()
        if name != "settings" and then.get(name) != value
    ]
    if changed:
        log(f"the result will not be bit-identical: {'; '.join(changed)}")


def _require_settings(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse changed settings, including values of the recipe."""
    old, new = _flat(then), _flat(now)
    changed = [
        f"{name} {value!r}, then {old.get(name)!r}"
        for name, value in new.items()
        if value != old.get(name)
    ]
    if changed:
        raise ConfigError(
            f"{CONFIG} has changed since the run began ({'; '.join(changed)}): restore it, or "
            "start a new run with --weights"
        )


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Merge the values of the recipe into the settings."""
    flat = dict(settings)
    for inner in ("recipe", "augmentation"):
        flat |= flat.pop(inner)
    return flat


def require_finite(model: nn.Module) -> None:
    """Refuse to save weights that are not finite.

    Raises:
        TrainingError: a weight is not finite.
    """
    weights = {k: v for k, v in model.state_dict().items() if v.is_floating_point()}
    if not bool(torch.stack([value.isfinite().all() for value in weights.values()]).all()):
        name = next(name for name, value in weights.items() if not bool(value.isfinite().all()))
        raise TrainingError(
            f"the weights are not finite (first: {name}): lower lr0, lengthen the warm-up or "
            "train in 32-true; the last state with finite weights is kept"
        )


def _gradients(parts: Parts) -> dict[str, Tensor]:
    """Return accumulated gradients: means over the ranks, as the step will use them."""
    if not parts.steps.accumulator.gathered:
        return {}
    return {
        name: parts.ranks.sum(parameter.grad) / parts.ranks.world
        if parts.ranks.world > 1
        else parameter.grad
        for name, parameter in parts.steps.model.named_parameters()
        if parameter.grad is not None
    }


def _restore_optimizer(optimizer: torch.optim.Optimizer, state: State) -> None:
    """Restore momenta in the memory layout of their parameters, which fused kernels require."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, parameter in enumerate(parameters):
        values = state.take(f"optimizer.{index}")
        if values:
            optimizer.state[parameter] = {
                name: _in_layout_of(parameter, value) for name, value in values.items()
            }


def _in_layout_of(parameter: Tensor, value: Tensor) -> Tensor:
    if value.shape != parameter.shape:
        return value.to(parameter.device)
    like = torch.empty_like(parameter, memory_format=torch.preserve_format, requires_grad=False)
    return like.copy_(value)
