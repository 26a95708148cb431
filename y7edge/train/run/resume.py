"""Save the state of a run and restore it, bit by bit.

Data, augmentation, learning rates and input sizes are functions of the configuration and the number
of the batch. The state is the rest: weights, their average, momenta, gradients that wait for an
optimiser step, fp16's scaler, generators, sums of the epoch, image weights, rows of the results.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from y7edge.errors import ConfigError, DataError, TrainingError
from y7edge.train.output.folder import CONFIG
from y7edge.train.run.state import State
from y7edge.train.run.steps import scaler_of
from y7edge.train.setup.parts import Parts

# Settings that a resumed run may change: where and how fast, not what.
_FREE = {
    *("data", "weights", "out", "command", "licence", "patience", "checkpoint_minutes", "profile"),
    "report",
    *("device", "devices", "nodes", "sync_bn", "compile", "workers", "cache"),
}


@dataclass
class Position:
    """How far a run has come."""

    epoch: int = 1  # the current one
    batch: int = 0  # how many of its batches are done
    closed: bool = False  # all of them, and the average is ready to be evaluated
    # Of the loss parts box, obj and cls over those batches
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    seconds: float = 0.0  # that those batches took


def capture(parts: Parts, position: Position) -> State:
    """The state of a run between two batches. All ranks have to call this together."""
    steps = parts.steps
    average, average_facts = steps.average.state()
    optimizer = steps.optimizer.state_dict()["state"]
    scaler = scaler_of(steps.fabric)
    state = State(
        {
            "epoch": position.epoch,
            "batch": position.batch,
            "closed": position.closed,
            "sums": position.sums,
            "seconds": position.seconds,
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
        # A momentum that isn't there yet is None.
        state.put(f"optimizer.{index}", {k: v for k, v in values.items() if v is not None})
    state.put("run", _generators(steps.fabric.device))
    if parts.plan.weights is not None:
        state.put("run", {"image_weights": torch.from_numpy(parts.plan.weights)})
    return state


def restore(parts: Parts, state: State) -> Position:
    """Put a run where a state was taken."""
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
        parameters[name].grad = _laid_out_as(parameters[name], gradient)
    _restore_optimizer(steps.optimizer, state)
    kept = state.take("run")
    _restore_generators(steps.fabric.device, kept)
    if "image_weights" in kept:
        parts.plan.weights = kept["image_weights"].numpy()
    return Position(
        epoch=int(facts["epoch"]),
        batch=int(facts["batch"]),
        closed=bool(facts["closed"]),
        sums=[float(value) for value in facts["sums"]],
        seconds=float(facts["seconds"]),
    )


def identity(parts: Parts) -> dict[str, Any]:
    """What has to be the same for a resumed run to give the same result."""
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


def check(state: State, now: Mapping[str, Any], source: str, say: Callable[[str], None]) -> None:
    """Compare what a run began with and what it is resumed with.

    Args:
        state: of the run.
        now: :func:`identity` of the resumed run.
        source: name of the data in messages.
        say: is called with differences that only cost the last bits.

    Raises:
        DataError: other data.
        ConfigError: another setting in the run's configuration.
    """
    then = state.facts["identity"]
    _require_settings(then.get("settings", now["settings"]), now["settings"])
    if then["data"] != now["data"]:
        raise DataError(
            f"{source}: not the data that the run began with (digest {now['data'][:16]}, then "
            f"{then['data'][:16]}): bring the old files back, or start a new run with --weights"
        )
    changed = [
        f"{name} {then.get(name)} then, {value} now"
        for name, value in now.items()
        if name != "settings" and then.get(name) != value
    ]
    if changed:
        say(f"the result will not be the same to the last bit: {'; '.join(changed)}")


def _require_settings(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse what differs; of the recipe, say which of its values."""
    old, new = _flat(then), _flat(now)
    changed = [
        f"{name} {value!r}, then {old.get(name)!r}"
        for name, value in new.items()
        if value != old.get(name)
    ]
    if changed:
        raise ConfigError(
            f"{CONFIG} is not that of the run's start ({'; '.join(changed)}): put it back, or "
            "start a new run with --weights"
        )


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the values of the recipe among them."""
    flat = dict(settings)
    for inner in ("recipe", "augmentation"):
        flat |= flat.pop(inner)
    return flat


def require_finite(model: nn.Module) -> None:
    """Refuse to keep a state of no use.

    Raises:
        TrainingError: a weight is no longer a finite number.
    """
    weights = {k: v for k, v in model.state_dict().items() if v.is_floating_point()}
    if not bool(torch.stack([value.isfinite().all() for value in weights.values()]).all()):
        name = next(name for name, value in weights.items() if not bool(value.isfinite().all()))
        raise TrainingError(
            f"the weights are no longer numbers (first of them: {name}): lower lr0, lengthen the "
            "warm-up or train in 32-true; the last state with whole weights is kept"
        )


def _gradients(parts: Parts) -> dict[str, Tensor]:
    """Gradients that wait for an optimiser step: means over the ranks, as the step will use."""
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
    """Momenta, laid out in memory as their parameters are: fused kernels walk both alike."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, parameter in enumerate(parameters):
        values = state.take(f"optimizer.{index}")
        if values:
            optimizer.state[parameter] = {
                name: _laid_out_as(parameter, value) for name, value in values.items()
            }


def _laid_out_as(parameter: Tensor, value: Tensor) -> Tensor:
    if value.shape != parameter.shape:
        return value.to(parameter.device)
    like = torch.empty_like(parameter, memory_format=torch.preserve_format, requires_grad=False)
    return like.copy_(value)


def _generators(device: torch.device) -> dict[str, Tensor]:
    states = {"generator": torch.get_rng_state()}
    if device.type == "cuda":
        states["generator_cuda"] = torch.cuda.get_rng_state(device)
    return states


def _restore_generators(device: torch.device, kept: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(kept["generator"])
    if device.type == "cuda" and "generator_cuda" in kept:
        torch.cuda.set_rng_state(kept["generator_cuda"], device)
