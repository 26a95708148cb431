"""A model in use by a Detector, as one object: it is exchanged as a whole, never in parts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from y7edge.artifact.manifest import Manifest
from y7edge.detect.detections import Detections, Timing
from y7edge.detect.images import Given
from y7edge.detect.inference import Coloured, Found, Inference
from y7edge.detect.postprocess import Criteria
from y7edge.detect.preprocess import as_image, size_of
from y7edge.detect.regions import Region, Roi, Tiling, merged, regions
from y7edge.frames import CudaFrame
from y7edge.runtimes.base import Session


class Prepared(NamedTuple):
    """An image for a model, and the regions that it is cut into."""

    given: Given
    image: NDArray[Any] | CudaFrame
    color: Any
    parts: list[Region]


@dataclass(frozen=True, eq=False)
class OpenModel:
    """A model in use. Only one thread may run it at a time.

    Attributes:
        session: the open session.
        manifest: the description of the model.
        criteria: the thresholds of the user, and those of the manifest for all others.
        inference: runs the model.
        on_device: whether the session pre-processes images on its device.
        opened: when it was opened, as of ``time.monotonic()``.
    """

    session: Session
    manifest: Manifest
    criteria: Criteria
    inference: Inference
    on_device: bool
    opened: float = field(default_factory=time.monotonic)

    def __str__(self) -> str:
        """Return the model and where it runs, for logs."""
        where = f"{self.session.backend} on {self.session.device}".strip()
        return f"{self.manifest.model} ({self.model_id}, {self.manifest.precision}, {where})"

    @property
    def model_id(self) -> str:
        """The first 16 digits of the payload digest."""
        return self.manifest.payload_digest[:16]

    @property
    def info(self) -> dict[str, Any]:
        """Model, device and thresholds, as JSON values for logs."""
        criteria = asdict(self.criteria)
        del criteria["multi_label"]
        image = self.manifest.input
        return {
            "model": self.manifest.model,
            "model_id": self.model_id,
            "nc": self.manifest.nc,
            "names": list(self.manifest.names),
            "imgsz": [image.height, image.width],
            "batch": image.batch,
            "precision": self.manifest.precision,
            "target": self.manifest.target,
            **self.session.info,
            "licence": self.manifest.licence,
            "parity": self.manifest.parity.get("status"),
            **criteria,
        }

    def grey(self) -> NDArray[np.uint8]:
        """Return a grey image (H, W, 3) of the input's size, for a warm-up."""
        image = self.manifest.input
        return np.full((image.height, image.width, 3), image.letterbox.pad, np.uint8)

    def prepare(self, images: Sequence[Given], roi: Roi | None, tiling: Tiling) -> list[Prepared]:
        """Cut images into regions; may run in any thread.

        Raises:
            DataError: an object is not an image, or ``roi`` contains no pixel of it.
        """
        cut = roi is not None or tiling.tile is not None
        host = cut or not self.on_device
        prepared = []
        for one in images:
            image, color = as_image(one.pixels, one.color, self.manifest.input, host=host, cut=cut)
            parts = regions(image, roi, tiling) if cut else [Region(image, 0, 0)]
            prepared.append(Prepared(one, image, color, parts))
        return prepared

    def run(self, prepared: Sequence[Prepared], criteria: Criteria | None) -> list[Found]:
        """Run all regions in batches; ``criteria``: None for those of the model.

        Raises:
            DeviceError: the engine failed.
        """
        images: list[Coloured] = [
            (region.pixels, one.color) for one in prepared for region in one.parts
        ]
        return self.inference(self.session, images, criteria or self.criteria)

    def results(
        self,
        prepared: Sequence[Prepared],
        found: Sequence[Found],
        criteria: Criteria | None,
        wait: float,
    ) -> list[Detections]:
        """Merge the boxes of the regions of each image; ``wait``: of the call in milliseconds."""
        rest = iter(found)
        return [
            self._result(one, [next(rest) for _ in one.parts], criteria or self.criteria, wait)
            for one in prepared
        ]

    def _result(
        self, one: Prepared, found: Sequence[Found], criteria: Criteria, wait: float
    ) -> Detections:
        clock = self.inference.clock
        started = clock()
        boxes = merged([part.boxes for part in found], one.parts, criteria)
        pre, post = (sum(part.ms[i] for part in found) for i in (0, 2))
        infer = sum({part.batch: part.ms[1] for part in found}.values())  # each batch once
        post += (clock() - started) / 1e6 if len(one.parts) > 1 else 0.0
        return Detections(
            *boxes,
            size_of(one.image, one.color),
            self.manifest.names,
            timing=Timing(wait, pre, infer, post),
            model_id=self.model_id,
            **one.given.origin,
        )
