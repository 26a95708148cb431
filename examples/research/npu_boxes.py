"""Compare the boxes of artifacts with those of the model that they were exported from.

    y7edge export tests/reference/demo.safetensors --target qnn --precision fp16 --out demo.qnn.onnx
    python examples/research/npu_boxes.py tests/reference/demo.safetensors demo.qnn.onnx
    python examples/research/npu_boxes.py best.safetensors *.rknn *.qnn.onnx --data DATA

Each artifact runs in its own runtime, of any target. The reference is the checkpoint, not folded,
in PyTorch on the CPU. The Detector decodes both, with the same thresholds.

A box of the reference is matched with the free box of the same class that overlaps most, best
score first, if their IoU is at least 0.5. The columns: boxes of the reference, those matched, boxes
of the artifact without a partner, and, of the matched pairs, the smallest and the mean IoU and the
largest difference of the scores. "missed" is the highest score of a box, of either side, without a
partner: one that is just above the threshold may be just below it on the other side.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from y7edge.artifact.artifact import Artifact
from y7edge.boxes import intersections
from y7edge.data import dataset
from y7edge.data.images import read_image
from y7edge.data.synthetic import scenes
from y7edge.detect.detections import Detections
from y7edge.detect.detector import Detector
from y7edge.errors import Y7EdgeError
from y7edge.models.checkpoint import Checkpoint
from y7edge.nn import eager
from y7edge.nn.build import from_checkpoint
from y7edge.nn.source import open_checkpoint
from y7edge.runtimes import registry
from y7edge.runtimes.base import SessionOptions

LEAST_IOU = 0.5  # of a matched pair
SEED = 2_000  # of the first scene; the training of the demo has others

Frame = NDArray[np.uint8]
TITLES = (
    *("artifact", "target", "precision", "device", "boxes", "matched", "extra"),
    *("smallest IoU", "mean IoU", "score difference", "missed", "s / image"),
)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", help="the checkpoint")
    parser.add_argument("artifacts", nargs="+", type=Path, help="artifacts of this checkpoint")
    parser.add_argument("--data", help="a data set; default: synthetic scenes of the demo")
    parser.add_argument("--split", default="val")
    parser.add_argument("--images", type=int, default=10, help="number of images")
    parser.add_argument("--conf", type=float, default=0.25)
    parser.add_argument("--device", default="auto", help="device of the artifacts")
    options = parser.parse_args()
    try:
        checkpoint = open_checkpoint(options.checkpoint)
        frames = list(images(options.data, options.split, options.images))
        reference = Reference(checkpoint, frames, options.conf)
        print(f"| {' | '.join(TITLES)} |", "|---" * len(TITLES) + "|", sep="\n")
        for path in options.artifacts:
            print(row(registry.load(path), reference, options.device), flush=True)
    except Y7EdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def images(data: str | None, split: str, count: int) -> Iterator[Frame]:
    """Yield the first images of a split, or synthetic scenes, BGR."""
    if data is None:
        yield from (scenes.scene(SEED + index).image for index in range(count))
        return
    for sample in dataset.load(data, splits=[split]).split(split)[:count]:
        yield read_image(sample.path)


class Reference:
    """The boxes of the checkpoint, by input size."""

    def __init__(self, checkpoint: Checkpoint, frames: Sequence[Frame], conf: float) -> None:
        self.digest, self.frames, self.conf = checkpoint.digest, frames, conf
        self._checkpoint = checkpoint
        self._found: dict[tuple[int, int], list[Detections]] = {}

    def boxes(self, imgsz: tuple[int, int]) -> list[Detections]:
        """Return the boxes in each image, for an input of this height and width."""
        if imgsz not in self._found:
            manifest = eager.describe(self._checkpoint, imgsz)
            model = from_checkpoint(self._checkpoint)
            session = eager.EagerSession(model, manifest, SessionOptions("cpu"))
            with closing(Detector.from_session(session, manifest, conf=self.conf)) as detector:
                self._found[imgsz] = [detector(frame) for frame in self.frames]
        return self._found[imgsz]


@dataclass
class Pairs:
    """The boxes of all images, matched."""

    ious: list[float] = field(default_factory=list)
    differences: list[float] = field(default_factory=list)  # of the scores of the pairs
    lost: list[float] = field(default_factory=list)  # scores of the reference's without a partner
    extra: list[float] = field(default_factory=list)  # scores of the artifact's without a partner

    def add(self, expected: Detections, found: Detections) -> None:
        """Match the boxes of one image."""
        free = set(range(len(found)))
        overlaps = iou(expected.xyxy, found.xyxy)
        for index in np.argsort(-expected.confidence, kind="stable"):
            same = [at for at in free if found.class_id[at] == expected.class_id[index]]
            fits, best = max(((float(overlaps[index, at]), at) for at in same), default=(0.0, -1))
            if fits < LEAST_IOU:
                self.lost.append(float(expected.confidence[index]))
                continue
            free.remove(best)
            self.ious.append(fits)
            difference = expected.confidence[index] - found.confidence[best]
            self.differences.append(abs(float(difference)))
        self.extra += [float(found.confidence[at]) for at in free]


def iou(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the IoU (n, m) of corner boxes (n, 4) and (m, 4)."""
    ours, theirs = first.astype(np.float64), second.astype(np.float64)
    common = intersections(ours, theirs)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (ours, theirs)]
    union = areas[0][:, None] + areas[1][None, :] - common
    return np.asarray(common / np.maximum(union, 1e-12))


def row(artifact: Artifact, reference: Reference, device: str) -> str:
    """Run an artifact on the images; return a row of the table."""
    manifest, name = artifact.manifest, artifact.path.name
    if manifest.source.digest != reference.digest:
        print(f"warning: {name} was exported from another checkpoint", file=sys.stderr)
    pairs, seconds = Pairs(), 0.0
    session = registry.open_session(artifact, SessionOptions(device))
    with closing(Detector.from_session(session, manifest, conf=reference.conf)) as detector:
        imgsz = (manifest.input.height, manifest.input.width)
        for frame, expected in zip(reference.frames, reference.boxes(imgsz), strict=True):
            began = time.perf_counter()
            found = detector(frame)
            seconds += time.perf_counter() - began
            pairs.add(expected, found)
        where = detector.session.device
    profile = f" {manifest.quantization.profile}" if manifest.quantization else ""
    missed = max((*pairs.lost, *pairs.extra), default=None)
    cells = (
        name,
        manifest.target,
        f"{manifest.precision}{profile}",
        where,
        len(pairs.ious) + len(pairs.lost),
        len(pairs.ious),
        len(pairs.extra),
        _number(min(pairs.ious, default=None)),
        _number(float(np.mean(pairs.ious)) if pairs.ious else None),
        _number(max(pairs.differences, default=None)),
        _number(missed),
        f"{seconds / max(len(reference.frames), 1):.2f}",
    )
    return f"| {' | '.join(map(str, cells))} |"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


if __name__ == "__main__":
    sys.exit(main())
