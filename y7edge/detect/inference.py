"""Run images through a model: pre-processing, the engine, post-processing, in batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from y7edge.artifact.manifest import Manifest
from y7edge.detect.postprocess import (
    Boxes,
    Criteria,
    Postprocessor,
    detected,
    threshold_feeds,
)
from y7edge.detect.preprocess import Color, Geometry, Preprocessor, place
from y7edge.errors import ArtifactError, DeviceError
from y7edge.frames import CudaFrame
from y7edge.runtimes.base import Session

_MAX_BATCH = 16  # images of a dynamic batch; larger batches only cost memory
Coloured = tuple[NDArray[np.uint8] | CudaFrame, Color]
"""An image, and the order of its channels."""


class Found(NamedTuple):
    """The boxes of one image, and milliseconds of pre-processing, inference, post-processing.

    Inference is that of its whole batch; ``batch`` counts the batches of a call.
    """

    boxes: Boxes
    ms: tuple[float, float, float]
    batch: int = 0


class Inference:
    """Find boxes in images with one model. Not thread-safe, because buffers are reused.

    Args:
        manifest: the description of the model.
        criteria: thresholds for a graph with NMS, which has them as inputs.
        clock: returns nanoseconds; also an attribute.

    Raises:
        ConfigError, ArtifactError: an input or output is not supported.
    """

    def __init__(self, manifest: Manifest, criteria: Criteria, clock: Callable[[], int]) -> None:
        self._input = manifest.input
        self._is_checkpoint = manifest.parity.get("status") == "source"
        self._preprocess = Preprocessor(manifest.input)
        self._postprocess = _postprocessor(manifest)
        self._heads = [output.name for output in manifest.outputs if output.role == "head"]
        self._roles = {output.role: output.name for output in manifest.outputs}
        self._thresholds = threshold_feeds(manifest, criteria)
        self._fields = 5 + manifest.nc
        self._channels_last = manifest.outputs[0].layout == "NHWC"
        self._batch: NDArray[Any] = self._preprocess.tensor
        self.clock = clock

    @property
    def batch(self) -> int:
        """The number of images that the engine runs at once."""
        fixed = self._input.batch
        return _MAX_BATCH if fixed == "dynamic" else fixed

    def __call__(
        self,
        session: Session,
        images: Sequence[Coloured],
        criteria: Criteria,
    ) -> list[Found]:
        """Run images of any sizes in batches; boxes are in pixels of each image.

        If the session pre-processes images on its device, this counts as inference.

        Raises:
            DataError: an array is not an image.
            DeviceError: the engine failed.
        """
        step = self.batch
        run = self._run if session.on_device is None else self._run_on_device
        found: list[Found] = []
        for number, start in enumerate(range(0, len(images), step)):
            batch = run(session, images[start : start + step], criteria)
            found += [one._replace(batch=number) for one in batch]
        return found

    def _run(
        self,
        session: Session,
        images: Sequence[Coloured],
        criteria: Criteria,
    ) -> list[Found]:
        """Run one batch."""
        pixels = self._input_for(len(images))
        # If `out` is None, the preprocessor paints the border only when the geometry changes.
        alone = pixels is self._preprocess.tensor
        started = self.clock()
        geometries = [
            self._preprocess(image, color, None if alone else pixels[index])
            for index, (image, color) in enumerate(images)
        ]
        pre = self._ms_since(started) / len(images)
        started = self.clock()
        outputs = session.infer({self._input.name: pixels, **self._thresholds})
        infer = self._ms_since(started)
        started = self.clock()
        self._require_numbers(outputs)
        boxes = self._boxes(outputs, len(images), criteria)
        placed = [_placed(one, g) for one, g in zip(boxes, geometries, strict=True)]
        ms = (pre, infer, self._ms_since(started) / len(images))
        return [Found(one, ms) for one in placed]

    def _run_on_device(
        self,
        session: Session,
        images: Sequence[Coloured],
        criteria: Criteria,
    ) -> list[Found]:
        """Run one batch in a session that pre-processes images and selects candidates itself."""
        assert session.on_device is not None
        started = self.clock()
        placed, geometries = zip(
            *(place(image, color, self._input) for image, color in images), strict=True
        )
        pre = self._ms_since(started) / len(images)
        started = self.clock()
        selects = self._heads and not criteria.multi_label
        result = session.on_device.run(placed, criteria.conf if selects else None)
        infer = self._ms_since(started)
        started = self.clock()
        if isinstance(result, dict):
            self._require_numbers(result)
            boxes = self._boxes(result, len(images), criteria)
        else:
            boxes = [detected(Boxes(*one), criteria) for one in result]
        found = [_placed(one, g) for one, g in zip(boxes, geometries, strict=True)]
        ms = (pre, infer, self._ms_since(started) / len(images))
        return [Found(one, ms) for one in found]

    def _input_for(self, count: int) -> NDArray[Any]:
        """Return the input buffer for ``count`` images, with the batch size of the artifact."""
        fixed = self._input.batch
        size = count if fixed == "dynamic" else fixed
        if size == 1:
            return self._preprocess.tensor
        if len(self._batch) < size:
            tensor = self._preprocess.tensor
            self._batch = np.zeros((size, *tensor.shape[1:]), tensor.dtype)
        return self._batch[:size]

    def _ms_since(self, started_ns: int) -> float:
        return (self.clock() - started_ns) / 1e6

    def _require_numbers(self, outputs: Mapping[str, NDArray[Any]]) -> None:
        """Raise DeviceError if an objectness is NaN; post-processing would find no object there.

        In decoded outputs, the scores of the first class are checked.
        """
        if "detections" in self._roles:
            checked = {name: outputs[name] for name in self._roles.values()}
        elif not self._heads:
            checked = {"scores": outputs[self._roles["scores"]][..., 0]}
        elif self._channels_last:
            checked = {name: outputs[name][..., 4 :: self._fields] for name in self._heads}
        else:
            checked = {name: outputs[name][:, 4 :: self._fields] for name in self._heads}
        for name, values in checked.items():
            if values.dtype.kind == "f" and np.isnan(values.sum(dtype=np.float32)):
                if self._is_checkpoint:
                    raise DeviceError(
                        f"the model computes NaN in {name}: its training has diverged; train again "
                        "with a lower lr0, a longer warm-up or --precision fp32"
                    )
                raise DeviceError(
                    f"the engine returned NaN in {name}: use an artifact of another precision or "
                    "target, or another device; `y7edge selftest` repeats the artifact's proof"
                )

    def _boxes(
        self, outputs: Mapping[str, NDArray[Any]], count: int, criteria: Criteria
    ) -> list[Boxes]:
        """Decode the outputs of the first ``count`` images; the rest of a fixed batch is unused."""
        if self._heads:
            heads = [outputs[name][:count] for name in self._heads]
            return self._postprocess.heads(heads, criteria)
        if "detections" in self._roles:
            return self._postprocess.detections(outputs[self._roles["detections"]], count, criteria)
        boxes, scores = (outputs[self._roles[role]][:count] for role in ("boxes", "scores"))
        return self._postprocess.decoded(boxes, scores, criteria)


def _postprocessor(manifest: Manifest) -> Postprocessor:
    """Create the decoder for an artifact's outputs; raise ArtifactError for unsupported outputs."""
    for output in manifest.outputs:
        real = output.dtype in ("float32", "float16")
        if real != (output.scale is None) or not (real or output.role == "head"):
            raise ArtifactError(
                f"output {output.name} ({output.role}) is {output.dtype} with scale "
                f"{output.scale}, expected float32 or float16 without a scale, or a head of "
                "integers with a scale: export it again"
            )
    heads = [output for output in manifest.outputs if output.role == "head"]
    options: dict[str, Any] = {}
    if len({(head.layout, head.activation) for head in heads}) > 1:
        raise ArtifactError(
            "the heads have different layouts or activations, expected equal ones: export it again"
        )
    if heads:
        options["layout"] = heads[0].layout
        options["activation"] = heads[0].activation
        options["quantization"] = [
            None if head.scale is None else (head.scale, head.zero_point or 0) for head in heads
        ]
    return Postprocessor(manifest.levels, manifest.nc, **options)


def _placed(boxes: Boxes, geometry: Geometry) -> Boxes:
    """Map boxes to pixels of the image; drop boxes that lie in the border of the letterbox."""
    corners = geometry.to_source(boxes.xyxy)
    extended = corners[:, 2:] > corners[:, :2]
    if extended.all():
        return Boxes(corners, boxes.score, boxes.class_id)
    inside = extended.all(axis=1)
    return Boxes(corners[inside], boxes.score[inside], boxes.class_id[inside])
