"""Measure the cost of loading a training image on one core, by stage.

    python examples/research/loader_speed.py --data data.yaml
    python examples/research/loader_speed.py --data data.yaml --imgsz 640 --recipe tiny --gate

The unit is the time of one ``cv2.imread`` of the same files in the same run, because milliseconds
depend on the machine. For each batch, reading the files, loading without cache and loading with
cache are measured in turn, in processor time of one thread. The fastest repeat of a batch counts.

* whole: loading an image without cache, from files to the batch;
* decoding: the part of ``whole`` that decodes files. A mosaic has several files; those out of view
  are not decoded;
* beyond: ``whole`` minus ``decoding``: resizing, augmentation, labels, batch;
* nominal: ``whole`` minus 5.25 units, the cost of decoding all images of an average mosaic (four or
  nine images, and those of mixup). ``nominal`` is less than ``beyond``, because some images are out
  of view;
* ram: loading with all decoded images in memory (``--cache ram`` of the training).

``--workers N`` measures images per second from N worker processes instead, with all images in
memory. Batches are passed in `BatchMemory` and in torch's shared memory, in alternating passes. The
fastest pass of each counts.

With ``--in-part``, colour jitter and mirroring are left out, as in a run on a GPU, which does both.

With ``--gate`` the exit code is 4 if a cost exceeds its budget: ``beyond`` 1.5 units, ``ram`` 2
units (for the recipe tiny at 640 on BCCD's images).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
import torch

from y7edge.data.dataset import load
from y7edge.data.sample import Sample
from y7edge.errors import GateError, Y7EdgeError
from y7edge.train.augment.settings import Augmentation
from y7edge.train.loading import dataset, image_cache
from y7edge.train.loading.dataset import TrainingSet, loader
from y7edge.train.loading.sampling import BatchPlan
from y7edge.train.loading.workers import batches
from y7edge.train.settings.configfile import choose

BUDGETS = {"beyond": 1.5, "ram": 2.0}
NOMINAL_DECODING = 5.25
BATCH = 16
REPEATS = 5


@dataclass(frozen=True)
class Speed:
    """Costs of one training image, in units of one ``cv2.imread`` (see the module)."""

    whole: float
    decoding: float
    beyond: float
    nominal: float
    ram: float
    decoded: float  # number of decoded files per training image
    imread_ms: float
    images: int  # number of measured images
    imgsz: int


class Clock:
    """Wrap ``decode`` to measure its processor time and count its calls."""

    def __init__(self, decode: Callable[..., Any]) -> None:
        self.decode = decode
        self.seconds, self.calls = 0.0, 0

    def __call__(self, *arguments: Any) -> Any:
        """Decode one image."""
        start = time.process_time()
        try:
            return self.decode(*arguments)
        finally:
            self.seconds += time.process_time() - start
            self.calls += 1


def inputs(data: Path | str, split: str, recipe: str) -> tuple[Sequence[Sample], Augmentation]:
    """Return the samples of a split, and the augmentation settings of a recipe."""
    return load(data, (split,)).split(split), choose(recipe, "yolov7-tiny").recipe.augmentation


def measure(
    samples: Sequence[Sample],
    size: int,
    settings: Augmentation,
    images: int,
    repeats: int,
    *,
    in_part: bool = False,
) -> Speed:
    """Measure the costs of loading ``images`` training images of ``size`` pixels.

    ``repeats``: number of measurements of each batch. ``in_part``: whether colour jitter and
    mirroring are left to the device.
    """
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    sets = [TrainingSet(samples, size, settings, cache=cache) for cache in ("none", "ram")]
    plan = BatchPlan(len(samples), min(BATCH, images, len(samples)))
    loaders = [loader(shown, plan, in_part=in_part) for shown in sets]
    clock = Clock(image_cache.decode)
    sums, files, shown, epoch = np.zeros(4), 0, 0, 0
    with patch.object(image_cache, "decode", clock):
        while shown < images:
            epoch += 1
            plan.set_epoch(epoch)
            count = min(len(plan), -(-(images - shown) // plan.batch))
            keys = [key for batch in islice(plan, count) for key in batch]
            before = clock.calls
            rounds = [_pass(samples, loaders, plan, count, clock) for _ in range(repeats)]
            sums += np.min(rounds, axis=0).sum(axis=0)
            files += (clock.calls - before) // repeats
            shown += len(keys)
    imread, whole, beyond, ram = sums
    return Speed(
        whole=whole / imread,
        decoding=(whole - beyond) / imread,
        beyond=beyond / imread,
        nominal=whole / imread - NOMINAL_DECODING,
        ram=ram / imread,
        decoded=files / shown,
        imread_ms=1e3 * imread / shown,
        images=shown,
        imgsz=size,
    )


def _pass(
    samples: Sequence[Sample],
    loaders: Sequence[Iterable[object]],
    plan: BatchPlan,
    count: int,
    clock: Clock,
) -> list[list[float]]:
    """Measure the first ``count`` batches of an epoch, in seconds.

    Returns four numbers for each batch: reading the files, loading without cache, loading without
    cache and without the time of decoding, loading with cache.
    """
    uncached, ram = map(iter, loaders)
    rows = []
    for keys in islice(plan, count):
        marks = [time.process_time()]
        for key in keys:
            cv2.imread(str(samples[key.index].path))
        marks.append(time.process_time())
        decoding = clock.seconds
        next(uncached)
        decoding = clock.seconds - decoding
        marks.append(time.process_time())
        next(ram)
        marks.append(time.process_time())
        reading, whole, cached = np.diff(marks).tolist()
        rows.append([reading, whole, whole - decoding, cached])
    return rows


def from_workers(
    samples: Sequence[Sample], size: int, settings: Augmentation, workers: int, repeats: int
) -> dict[str, float]:
    """Measure images per second from worker processes, for each kind of shared memory."""
    torch.set_num_threads(1)
    shown = TrainingSet(samples, size, settings, cache="ram")
    plan = BatchPlan(len(samples), min(BATCH, len(samples)))
    loaders = {"batch memory": loader(shown, plan, workers=workers)}
    with patch.object(dataset, "BatchMemory", lambda *_: None):
        loaders["torch's own"] = loader(shown, plan, workers=workers)
    seconds = {name: float("inf") for name in loaders}
    for number in range(repeats + 1):
        plan.set_epoch(number)
        for name, images in loaders.items():
            start = time.perf_counter()
            for _ in batches(images):
                continue
            if number:  # the first pass starts the workers
                seconds[name] = min(seconds[name], time.perf_counter() - start)
    return {name: len(samples) / best for name, best in seconds.items()}


def table(speed: Speed) -> str:
    """Format the results as lines of text."""
    lines = [
        f"{speed.images} images at {speed.imgsz} px, one thread; "
        f"unit: one cv2.imread, {speed.imread_ms:.2f} ms",
        f"whole item, no cache   {speed.whole:5.2f}",
        f"  decoding             {speed.decoding:5.2f}   of {speed.decoded:.2f} files",
        f"  beyond decoding      {speed.beyond:5.2f}   budget {BUDGETS['beyond']}",
        f"  whole - {NOMINAL_DECODING}         {speed.nominal:5.2f}",
        f"whole item, cache ram  {speed.ram:5.2f}   budget {BUDGETS['ram']}",
    ]
    return "\n".join(lines)


def gate(speed: Speed) -> None:
    """Compare the costs with their budgets.

    Raises:
        GateError: A cost exceeds its budget.
    """
    for name, budget in BUDGETS.items():
        found = getattr(speed, name)
        if found > budget:
            raise GateError(f"{name}: expected at most {budget} units, found {found:.2f}")


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, found {value}")
    return value


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True, help="data.yaml or data folder")
    parser.add_argument("--split", default="train")
    parser.add_argument("--imgsz", type=_count, default=640)
    parser.add_argument("--recipe", default="tiny", help="p5, p6, tiny, finetune or small-data")
    parser.add_argument("--images", type=_count, default=256, help="number of measured images")
    parser.add_argument(
        "--repeats", type=_count, default=REPEATS, help="measurements of each batch"
    )
    parser.add_argument("--workers", type=_count, help="measure images/s from worker processes")
    parser.add_argument("--in-part", action="store_true", help="leave colours to a GPU")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--gate", action="store_true", help="exit with 4 if a cost is too high")
    options = parser.parse_args()
    try:
        samples, settings = inputs(options.data, options.split, options.recipe)
        if options.workers:
            found = from_workers(samples, options.imgsz, settings, options.workers, options.repeats)
            lines = [f"{name:<14}{speed:8.0f} images/s" for name, speed in found.items()]
            print(json.dumps(found) if options.json else "\n".join(lines))
            return 0
        count, repeats = options.images, options.repeats
        speed = measure(samples, options.imgsz, settings, count, repeats, in_part=options.in_part)
        print(json.dumps(asdict(speed)) if options.json else table(speed))
        if options.gate:
            gate(speed)
    except Y7EdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
