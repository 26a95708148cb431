"""Train a narrow YOLOv7-W6 with two assigners for its auxiliary heads; fold, export, evaluate.

    python examples/research/coarse_to_fine.py                     # about half an hour on one core

In the paper (arXiv 2207.02696, section 4.2), the positives of the auxiliary heads are selected by
the predictions of the lead head, and there are more of them for each object (coarse labels). This
script trains with this assigner, and with one in which an auxiliary head selects its own positives,
on the same synthetic images with the same seed. Then it checks that

* gradients reach the auxiliary rows;
* the two assigners lead to different models;
* the folded model has no auxiliary rows;
* the exported artifact is proved, and detects parts in images from other seeds.

The exit code is 4 if one of these is not true.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from y7edge import Detector
from y7edge.data.dataset import Dataset, load
from y7edge.data.synthetic.scenes import generate
from y7edge.errors import GateError, Y7EdgeError
from y7edge.evaluation.evaluate import Metrics, evaluate
from y7edge.export import export
from y7edge.export.folding import fold_checkpoint, inventory
from y7edge.files import atomic_write
from y7edge.models import weights
from y7edge.models.checkpoint import Checkpoint
from y7edge.nn.build import from_checkpoint
from y7edge.train.loading.dataset import TrainingSet, collate
from y7edge.train.loss.loss import TrainingLoss
from y7edge.train.run.loop import train
from y7edge.train.run.progress import for_terminal
from y7edge.train.settings.config import TrainConfig
from y7edge.train.settings.recipes import P6

LEAST_MAP = 0.8  # minimum mAP@0.5 of the artifact on images from other seeds
SEED, OTHER_SEED, EVALUATED = 0, 1, 150


def main() -> int:
    """Run the script; return the exit code."""
    options = parse()
    try:
        run(options)
    except Y7EdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/coarse_to_fine"))
    parser.add_argument("--images", type=int, default=800, help="number of training images")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--imgsz", type=int, default=192, help="a multiple of 64, at least 128")
    parser.add_argument("--width", type=float, default=0.25)
    return parser.parse_args()


def run(options: argparse.Namespace) -> None:
    """Train both models, compare, fold, export and evaluate.

    Raises:
        GateError: a check failed. ``result.json`` is written nevertheless.
    """
    out: Path = options.out
    data = load(generate(out / "data", options.images, 80, seed=SEED))
    evaluated = load(generate(out / "judged", 0, EVALUATED, seed=OTHER_SEED), ["val"])
    trained = {name: _train(name, data, options) for name in ("coarse-to-fine", "independent")}
    guided, independent = trained.values()
    gradients = auxiliary_gradients(guided, data)
    difference = distance(guided, independent)
    before, after = inventory(guided), inventory(fold_checkpoint(guided))
    artifact = export(guided, out / "coarse_to_fine.onnx")
    found = {
        "artifact": _score(artifact.path, evaluated),
        **{name: _score(out / name / "best.safetensors", evaluated) for name in trained},
    }
    result = {
        "map50": {name: metrics.map50 for name, metrics in found.items()},
        "map50_95": {name: metrics.map50_95 for name, metrics in found.items()},
        "auxiliary_gradients": gradients,
        "distance_of_lead_weights": difference,
        "auxiliary_convolutions": {"trained": before["auxiliary"], "folded": after["auxiliary"]},
        "proof": artifact.manifest.parity["status"],
    }
    with atomic_write(out / "result.json") as temporary:
        temporary.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    _require(all(norm > 0 for norm in gradients.values()), "an auxiliary row has no gradient")
    _require(difference > 1e-3, "both assigners gave the same model")
    _require(before["auxiliary"] > 0 == after["auxiliary"], "the fold left auxiliary rows")
    _require(found["artifact"].map50 >= LEAST_MAP, f"mAP@0.5 is below {LEAST_MAP}")


def _require(passed: bool, problem: str) -> None:
    if not passed:
        raise GateError(problem)


def _train(assigner: str, data: Dataset, options: argparse.Namespace) -> Checkpoint:
    # As in the demo: no mosaic, many steps with small batches, and larger gains, because the
    # published rule scales them down for few classes and small images. Gradients are clipped: the
    # loss of a level is averaged over its positives, so a coarse level with a single positive has
    # a very large gradient.
    recipe = replace(
        P6,
        augmentation=replace(P6.augmentation, mosaic=0.0, scale=0.3, translate=0.1, flipud=0.5),
        lr0=0.02,
        lrf=0.01,
        ema_decay=0.99,
        ema_tau=100.0,
        clip_norm=10.0,
        box=0.2,
        obj=6.0,
        cls=6.0,
    )
    config = TrainConfig(
        data=data.source,
        out=options.out / assigner,
        model="yolov7-w6",
        width=options.width,
        imgsz=options.imgsz,
        epochs=options.epochs,
        batch=8,
        nominal_batch=8,
        val_every=5,
        seed=SEED,
        recipe=recipe,
        assigner=assigner,
        licence="Apache-2.0",
    )
    return weights.load(train(config, progress=for_terminal()).best)


def auxiliary_gradients(checkpoint: Checkpoint, data: Dataset) -> dict[str, float]:
    """Return the gradient norm, in one batch, of each auxiliary row and of the auxiliary heads."""
    side = checkpoint.meta["imgsz"]
    samples = TrainingSet(data.split("train")[:8], side)
    images, targets = collate([samples[index] for index in range(8)])
    model = from_checkpoint(checkpoint).train()
    loss = TrainingLoss(model.spec, model.head.anchors, P6, side, assigner="coarse-to-fine")
    loss(model(images.float() / 255), targets).total.backward()
    head = model.spec.head
    places = {f"row {row}": f"rows.{row}." for row in head.inputs[model.spec.levels :]}
    places["heads"] = f"rows.{head.index}.aux."
    return {
        name: float(
            torch.stack(
                [
                    parameter.grad.norm()
                    for key, parameter in model.named_parameters()
                    if key.startswith(prefix) and parameter.grad is not None
                ]
            ).norm()
        )
        for name, prefix in places.items()
    }


def distance(one: Checkpoint, other: Checkpoint) -> float:
    """Return the relative Euclidean distance between the lead heads' weights of two models."""
    keys = [key for key in one.arrays if ".lead." in key and key.endswith(".weight")]
    a, b = (np.concatenate([c.arrays[key].ravel() for key in keys]) for c in (one, other))
    return float(np.linalg.norm(a - b) / np.linalg.norm(a))


def _score(path: Path, evaluated: Dataset) -> Metrics:
    with Detector(path) as detector:
        return evaluate(detector.detect_for_evaluation, evaluated.split("val"), evaluated.names)


if __name__ == "__main__":
    sys.exit(main())
