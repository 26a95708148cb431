"""From a run to its state and back, bit by bit.

Nearly everything in a run is a function of its configuration and of the number of the batch: data,
augmentation, learning rates, input sizes. What is left is gathered here: weights, their average,
momenta, gradients that wait for an optimiser step, the scaler of fp16, generators, the sums of the
epoch so far, the weights of pictures, and the rows of the results.
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
from y7edge.train.loading.sampling import BatchPlan
from y7edge.train.output.folder import CONFIG
from y7edge.train.output.writer import RunWriter
from y7edge.train.run.distributed import Ranks
from y7edge.train.run.state import State
from y7edge.train.run.steps import Steps, scaler_of
from y7edge.train.settings.config import TrainConfig

# Settings that a run may be gone on with in another way: where and how fast, not what.
_FREE = {
    *("data", "weights", "out", "command", "licence", "patience", "checkpoint_minutes", "profile"),
    *("device", "devices", "nodes", "sync_bn", "compile", "workers", "cache"),
}


@dataclass
class Position:
    """How far a run has come.

    Attributes:
        epoch: the one at work, from 1.
        batch: how many of its batches are done.
        closed: the epoch's batches are done and the average is ready to be judged.
        sums: of the loss parts box, obj and cls over those batches.
        seconds: that those batches took.
    """

    epoch: int = 1
    batch: int = 0
    closed: bool = False
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    seconds: float = 0.0


@dataclass
class Live:
    """Everything of a run that changes while it trains, and what it began with.

    Attributes:
        ranks: its processes.
        steps: weights, average, momenta and gradients.
        plan: the weights of pictures.
        writer: its results; only rank 0 has one.
        position: how far it has come.
        start: facts of :class:`y7edge.train.setup.start.Start`.
    """

    ranks: Ranks
    steps: Steps
    plan: BatchPlan
    writer: RunWriter | None
    position: Position
    start: Mapping[str, Any]


def capture(live: Live, identity: Mapping[str, Any]) -> State:
    """The state of a run between two batches. Every rank has to call this together.

    Args:
        live: the run.
        identity: what the run is of, for :func:`check`.
    """
    steps, position = live.steps, live.position
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
            "writer": live.writer.state() if live.writer else {},
            "start": dict(live.start),
            "identity": dict(identity),
        }
    )
    state.put("model", steps.model.state_dict())
    state.put("average", average)
    state.put("gradients", _gradients(live))
    for index, values in optimizer.items():
        # A momentum that isn't there yet is None.
        state.put(f"optimizer.{index}", {k: v for k, v in values.items() if v is not None})
    state.put("run", _generators(steps.fabric.device))
    if live.plan.weights is not None:
        state.put("run", {"image_weights": torch.from_numpy(live.plan.weights)})
    return state


def restore(live: Live, state: State) -> None:
    """Put a run where a state was taken."""
    steps, facts = live.steps, state.facts
    steps.model.load_state_dict(state.take("model"))
    steps.average.load(state.take("average"), facts["average"])
    steps.accumulator.gathered = int(facts["gathered"])
    if scaler := scaler_of(steps.fabric):
        scaler.load_state_dict(facts["scaler"])
    if live.writer:
        live.writer.restore(facts["writer"])
    parameters = dict(steps.model.named_parameters())
    for name, gradient in state.take("gradients").items():
        parameters[name].grad = _laid_out_as(parameters[name], gradient)
    _restore_optimizer(steps.optimizer, state)
    kept = state.take("run")
    _restore_generators(steps.fabric.device, kept)
    if "image_weights" in kept:
        live.plan.weights = kept["image_weights"].numpy()
    live.position = Position(
        epoch=int(facts["epoch"]),
        batch=int(facts["batch"]),
        closed=bool(facts["closed"]),
        sums=[float(value) for value in facts["sums"]],
        seconds=float(facts["seconds"]),
    )


def identity(
    config: TrainConfig, data_digest: str, world: int, device: torch.device
) -> dict[str, Any]:
    """What has to be the same for a resumed run to give the same result."""
    settings = {k: v for k, v in config.to_dict().items() if k not in _FREE}
    return {
        "settings": json.loads(json.dumps(settings)),
        "data": data_digest,
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "processes": world,
        "device": device.type,
        "machine": platform.machine(),
    }


def check(state: State, now: Mapping[str, Any], source: str, say: Callable[[str], None]) -> None:
    """Compare what a run began with and what it is to go on with.

    Args:
        state: of the run.
        now: :func:`identity` of what is here.
        source: how the message calls the data.
        say: told of differences that only cost the last bits.

    Raises:
        DataError: the data are others.
        ConfigError: so is a setting, for somebody has edited the run's configuration.
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


def _gradients(live: Live) -> dict[str, Tensor]:
    """Gradients that wait for an optimiser step: means over the ranks, as the step will use."""
    if not live.steps.accumulator.gathered:
        return {}
    return {
        name: live.ranks.sum(parameter.grad) / live.ranks.world
        if live.ranks.world > 1
        else parameter.grad
        for name, parameter in live.steps.model.named_parameters()
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
