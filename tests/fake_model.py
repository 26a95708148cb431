"""A model without an engine: a manifest, and a session that finds bright places in the image."""

from __future__ import annotations

import numpy as np

from y7edge.artifact.manifest import (
    InputInfo,
    LevelInfo,
    Manifest,
    OutputInfo,
    Source,
    expected_shapes,
)
from y7edge.runtimes.base import Session

NAMES = ("nut", "washer", "screw")
LEVELS = (LevelInfo(8, ((16.0, 16.0),)), LevelInfo(16, ((32.0, 32.0),)))


def make_manifest(batch=1, outputs="heads", size=(64, 96), **changes) -> Manifest:
    image = InputInfo("images", batch, *size)
    shapes = expected_shapes(image, LEVELS, len(NAMES))
    if outputs == "heads":
        tensors = tuple(
            OutputInfo(f"head{i}", "head", shapes[f"head{i}"], level=i) for i in range(2)
        )
    else:
        tensors = tuple(
            OutputInfo(role, role, shapes[role], layout="NWC", activation=None)
            for role in ("boxes", "scores")
        )
    fields = {
        "model": "fake",
        "nc": len(NAMES),
        "names": NAMES,
        "input": image,
        "outputs": tensors,
        "levels": LEVELS,
        "source": Source("0" * 64, "folded", 1, 0.1),
        "precision": "fp32",
        "target": "onnx",
        "opset": 17,
        "payload_digest": "ab" * 32,
        "parity": {"status": "passed"},
    }
    return Manifest(**{**fields, **changes})


class FakeSession(Session):
    """Sees an object of class 1, as large as an anchor, in every 8 x 8 cell that is white."""

    ENGINE = "nothing"

    def __init__(self, manifest: Manifest) -> None:
        super().__init__("fake", manifest, device="cpu", arithmetic="none", versions={"fake": "1"})
        self.manifest = manifest
        self.batches: list[int] = []
        self.closed = 0
        self.fail = False

    def _run(self, feeds):
        images = feeds["images"]
        if self.fail:
            raise RuntimeError("the engine failed")
        self.batches.append(len(images))
        assert images.min() >= 0
        assert images.max() <= 1
        count, _, height, width = images.shape
        cells = images.reshape(count, 3, height // 8, 8, width // 8, 8).min(axis=(1, 3, 5))
        fine = np.full((count, 8, height // 8, width // 8), -9, np.float32)
        fine[:, :4] = 0  # centre of the cell, size of the anchor
        fine[:, 4] = np.where(cells == 1, 4, -9)
        fine[:, 6] = 5
        coarse = np.full((count, 8, height // 16, width // 16), -9, np.float32)
        if self.manifest.outputs[0].role == "head":
            return {"head0": fine, "head1": coarse}
        return self._decoded(fine, coarse)

    def _decoded(self, fine, coarse):
        boxes, scores = [], []
        for head, level in zip((fine, coarse), LEVELS, strict=True):
            probability = 1 / (1 + np.exp(-head))
            rows, columns = np.indices(head.shape[2:])
            centre = (2 * probability[:, :2] - 0.5 + np.stack([columns, rows])) * level.stride
            size = (2 * probability[:, 2:4]) ** 2 * level.anchors[0][0]
            boxes.append(np.concatenate([centre, size], 1).reshape(len(head), 4, -1))
            scores.append((probability[:, 4:5] * probability[:, 5:]).reshape(len(head), 3, -1))
        return {
            "boxes": np.concatenate(boxes, 2).transpose(0, 2, 1).astype(np.float32),
            "scores": np.concatenate(scores, 2).transpose(0, 2, 1).astype(np.float32),
        }

    def _close(self) -> None:
        self.closed += 1
