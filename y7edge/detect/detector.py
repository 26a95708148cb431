"""The Detector, which finds objects in images with any engine, without torch and onnx.

It letterboxes an image into the network's input, runs the engine's ``Session``, and decodes the raw
outputs into boxes in pixels of the image. The artifact's manifest describes input and outputs.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from y7edge.artifact.description import Size
from y7edge.artifact.manifest import Manifest
from y7edge.artifact.schema import checked
from y7edge.detect.detections import Detections, Timing, class_ids
from y7edge.detect.opening import open_model, warn_if_unverified
from y7edge.detect.postprocess import (
    EVALUATION,
    Boxes,
    Criteria,
    Postprocessor,
    require_supported,
    threshold_feeds,
)
from y7edge.detect.preprocess import Color, Geometry, Preprocessor
from y7edge.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    DetectorClosed,
)
from y7edge.runtimes.base import Session, SessionOptions, refuse_copy, require_process

_MAX_BATCH = 16  # images of a dynamic batch; larger batches only cost memory

_Origin = Mapping[str, Any]  # timestamp_ns, frame_id and source of an image


class Detector:
    """Find objects in images.

    Can be used as a context manager. Thread-safe: concurrent calls run one after the other, and
    ``timing.wait`` is the time that a call waited.

    Args:
        source: an artifact (``model.onnx``), an ONNX file of another exporter in one of the forms
            of ``y7edge.artifact.foreign``, a checkpoint (``best.safetensors``, ``yolov7.pt``) or a
            variant's name, which gets random weights; the last two need torch.
        backend: a runtime's name; "auto": chosen by the artifact.
        device: "auto", or a device of the runtime, such as "cpu", "cuda" or "cuda:1".
        conf: keep boxes with a greater score; None: the manifest's default.
        iou: suppress boxes with a greater IoU with a better box; None: the manifest's default.
        max_det: maximum number of objects per image; None: the manifest's default.
        classes: the classes to find, by name or id (see ``class_ids``); None: all.
        agnostic: suppress across classes.
        threads: number of engine threads; None: the engine's default.
        imgsz: input size of a checkpoint, a side or (height, width); an artifact's is fixed.
        names: class names of a file of another exporter; None: from its metadata, else numbers.
        provider_options: passed to the engine unchanged.

    Raises:
        ConfigError: an option, input or output is not supported.
        ArtifactMissing: the file does not exist.
        ArtifactError, DigestError, CheckpointError: the file cannot be used.
        RuntimeMissing: the engine is not installed.
        DeviceError: the device does not exist.
    """

    @checked
    def __init__(
        self,
        source: str | Path,
        backend: str = "auto",
        device: str = "auto",
        conf: float | None = None,
        iou: float | None = None,
        max_det: int | None = None,
        classes: str | Iterable[int | str] | None = None,
        *,
        agnostic: bool = False,
        threads: int | None = None,
        imgsz: Size | None = None,
        names: Sequence[str] | None = None,
        provider_options: Mapping[str, Any] | None = None,
    ) -> None:
        options = SessionOptions(device, threads, provider_options or {})
        session, manifest = open_model(source, backend, options, imgsz, names)
        try:
            self._set_up(session, manifest, conf, iou, max_det, classes, agnostic)
        except BaseException:
            session.close()
            raise
        warn_if_unverified(source, manifest, stacklevel=3)  # behind `checked`

    @classmethod
    def from_session(cls, session: Session, manifest: Manifest, **options: Any) -> Detector:
        """Make a detector for an open session; ``close`` closes the session too.

        ``options``: conf, iou, max_det, classes and agnostic as for ``Detector``; ``clock``: a
        function that returns nanoseconds, for ``timing``.
        """
        detector = cls.__new__(cls)
        detector._set_up(session, manifest, **options)
        return detector

    @checked
    def _set_up(
        self,
        session: Session,
        manifest: Manifest,
        conf: float | None = None,
        iou: float | None = None,
        max_det: int | None = None,
        classes: str | Iterable[int | str] | None = None,
        agnostic: bool = False,
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self._manifest = manifest
        defaults = manifest.thresholds
        self._criteria = Criteria(
            conf=defaults.conf if conf is None else conf,
            iou=defaults.iou if iou is None else iou,
            max_det=defaults.max_det if max_det is None else max_det,
            classes=None if classes is None else class_ids(classes, manifest.names),
            agnostic=agnostic,
        )
        require_supported(manifest, self._criteria, changed=iou is not None)
        self._thresholds = threshold_feeds(manifest, self._criteria)
        self._preprocess = Preprocessor(manifest.input)
        self._postprocess = _postprocessor(manifest)
        self._heads = [output.name for output in manifest.outputs if output.role == "head"]
        self._roles = {output.role: output.name for output in manifest.outputs}
        self._batch: NDArray[Any] = self._preprocess.tensor
        self._model_id = manifest.payload_digest[:16]
        self._session: Session | None = session
        self._clock = clock
        self._lock = threading.Lock()
        self._process = os.getpid()

    def __call__(
        self,
        frame: NDArray[np.uint8],
        color: Color = "bgr",
        *,
        timestamp_ns: int | None = None,
        frame_id: int | None = None,
        source: str | None = None,
    ) -> Detections:
        """Detect objects in one image, best first.

        Args:
            frame: (H, W, 3) uint8; also (H, W) grey and (H, W, 4) with alpha. uint16 if the
                manifest's input has ``levels``, which it is scaled by.
            color: order of the channels.
            timestamp_ns: capture time; copied to the result, like ``frame_id`` and ``source``.
            frame_id: number of the frame in its source.
            source: name of the source.

        Raises:
            DataError: the frame is not an image.
            DetectorClosed: the detector was closed.
            DeviceError: the engine failed.
        """
        origin = {"timestamp_ns": timestamp_ns, "frame_id": frame_id, "source": source}
        return self._detect([frame], color, self._criteria, [origin])[0]

    def batch(
        self,
        frames: Sequence[NDArray[np.uint8]],
        color: Color = "bgr",
        *,
        timestamp_ns: Sequence[int | None] | None = None,
        frame_id: Sequence[int | None] | None = None,
        source: Sequence[str | None] | None = None,
    ) -> list[Detections]:
        """Detect objects in several images of any sizes, in batches of the artifact's size.

        Arguments are as for a call; ``timestamp_ns``, ``frame_id`` and ``source`` have one value
        for each image.

        Raises:
            DataError: an argument is not a list with one image or value for each image.
            DetectorClosed: the detector was closed.
            DeviceError: the engine failed.
        """
        if isinstance(frames, np.ndarray) or not isinstance(frames, Sequence):
            raise DataError(
                f"batch() takes a list of images, not {type(frames).__name__}: "
                "call the detector itself for one image"
            )
        given = {"timestamp_ns": timestamp_ns, "frame_id": frame_id, "source": source}
        frames = list(frames)  # not every sequence supports slices
        return self._detect(frames, color, self._criteria, _for_each(len(frames), given))

    def detect_for_evaluation(self, frame: NDArray[np.uint8]) -> Detections:
        """Detect objects in a BGR image with the thresholds for mAP, ``EVALUATION``.

        Raises:
            ConfigError: the artifact returns boxes after NMS; see ``require_candidates``.
        """
        self.require_candidates()
        return self._detect([frame], "bgr", EVALUATION, [{}])[0]

    def require_candidates(self) -> None:
        """Raise ConfigError if the model cannot be evaluated, because NMS is part of its graph."""
        if "detections" in self._roles:
            raise ConfigError(
                f"{self._manifest.model} returns boxes after NMS, each with its best class only; "
                f"mAP needs every class of every box above confidence {EVALUATION.conf}: evaluate "
                "the checkpoint, or an artifact with outputs heads or decoded"
            )

    @checked
    def warmup(self, runs: int = 3) -> None:
        """Run on a grey image, for engines that are slow on first use.

        Raises:
            DetectorClosed: the detector was closed.
            DeviceError: the engine failed.
        """
        image = self._manifest.input
        grey = np.full((image.height, image.width, 3), image.letterbox.pad, np.uint8)
        for _ in range(runs):
            self(grey)

    def close(self) -> None:
        """Close the session; closing twice is allowed. Do nothing in a forked child."""
        if os.getpid() != self._process:
            return
        with self._lock:
            session, self._session = self._session, None
            if session is not None:
                session.close()

    def __reduce__(self) -> NoReturn:
        """Raise DeviceError: a detector cannot be pickled or copied."""
        refuse_copy("a detector")

    def __enter__(self) -> Detector:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def names(self) -> tuple[str, ...]:
        """Class names, by class id."""
        return self._manifest.names

    @property
    def manifest(self) -> Manifest:
        """The artifact's manifest."""
        return self._manifest

    @property
    def info(self) -> dict[str, Any]:
        """Model, device and thresholds, as plain values for logs.

        Raises:
            DetectorClosed: the detector was closed.
        """
        session, manifest = self._opened(), self._manifest
        criteria = asdict(self._criteria)
        del criteria["multi_label"]
        return {
            "model": manifest.model,
            "model_id": self._model_id,
            "nc": manifest.nc,
            "names": list(manifest.names),
            "imgsz": [manifest.input.height, manifest.input.width],
            "batch": manifest.input.batch,
            "precision": manifest.precision,
            "target": manifest.target,
            "device": session.device,
            "arithmetic": session.arithmetic,
            "versions": dict(session.versions),
            "licence": manifest.licence,
            "parity": manifest.parity.get("status"),
            **criteria,
        }

    def _ms_since(self, started_ns: int) -> float:
        return (self._clock() - started_ns) / 1e6

    def _opened(self) -> Session:
        if self._session is None:
            raise DetectorClosed("the detector was closed: open a new one")
        return self._session

    def _detect(
        self,
        frames: Sequence[NDArray[np.uint8]],
        color: Color,
        criteria: Criteria,
        origins: Sequence[_Origin],
    ) -> list[Detections]:
        """Split the images into batches and run them."""
        # Check before taking the lock: in a forked child it may be held forever.
        require_process(self._process, "the detector")
        called = self._clock()
        fixed = self._manifest.input.batch
        step = _MAX_BATCH if fixed == "dynamic" else fixed
        with self._lock:
            wait = self._ms_since(called)
            session = self._opened()
            results = []
            for start in range(0, len(frames), step):
                part = slice(start, start + step)
                results += self._run(session, frames[part], color, criteria, origins[part], wait)
        return results

    def _run(
        self,
        session: Session,
        frames: Sequence[NDArray[np.uint8]],
        color: Color,
        criteria: Criteria,
        origins: Sequence[_Origin],
        wait: float,
    ) -> list[Detections]:
        """Run one batch. The caller holds the lock, because buffers are reused."""
        pixels = self._input_for(len(frames))
        # The preprocessor does not repaint the border of its own tensor.
        alone = pixels is self._preprocess.tensor
        started = self._clock()
        geometries = [
            self._preprocess(frame, color, None if alone else pixels[index])
            for index, frame in enumerate(frames)
        ]
        pre = self._ms_since(started) / len(frames)
        started = self._clock()
        outputs = session.infer({self._manifest.input.name: pixels, **self._thresholds})
        infer = self._ms_since(started)
        started = self._clock()
        found = self._boxes(outputs, len(frames), criteria)
        placed = [_placed(boxes, g) for boxes, g in zip(found, geometries, strict=True)]
        timing = Timing(wait, pre, infer, self._ms_since(started) / len(frames))
        return [
            Detections(
                *boxes,
                (geometry.image_hw[1], geometry.image_hw[0]),
                self._manifest.names,
                timing=timing,
                model_id=self._model_id,
                **origin,
            )
            for boxes, geometry, origin in zip(placed, geometries, origins, strict=True)
        ]

    def _input_for(self, count: int) -> NDArray[Any]:
        """Return the input buffer for ``count`` images; a fixed batch keeps its size."""
        fixed = self._manifest.input.batch
        size = count if fixed == "dynamic" else fixed
        if size == 1:
            return self._preprocess.tensor
        if len(self._batch) < size:
            tensor = self._preprocess.tensor
            self._batch = np.zeros((size, *tensor.shape[1:]), tensor.dtype)
        return self._batch[:size]

    def _boxes(
        self, outputs: Mapping[str, NDArray[Any]], count: int, criteria: Criteria
    ) -> list[Boxes]:
        """Decode the first ``count`` images; the rest of a fixed batch is unused."""
        if self._heads:
            heads = [outputs[name][:count] for name in self._heads]
            return self._postprocess.heads(heads, criteria)
        if "detections" in self._roles:
            return self._postprocess.detections(outputs[self._roles["detections"]], count, criteria)
        boxes, scores = (outputs[self._roles[role]][:count] for role in ("boxes", "scores"))
        return self._postprocess.decoded(boxes, scores, criteria)


def _for_each(count: int, given: Mapping[str, Sequence[Any] | None]) -> list[_Origin]:
    """Group values by image; raise DataError unless there is one value for each image."""
    known = {name: values for name, values in given.items() if values is not None}
    for name, values in known.items():
        values = values.tolist() if isinstance(values, np.ndarray) else values
        listed = isinstance(values, Sequence) and not isinstance(values, str)
        if not listed or len(values) != count:
            raise DataError(f"{name} is {values!r}, expected a list of {count}, one per image")
    return [{name: values[index] for name, values in known.items()} for index in range(count)]


def _postprocessor(manifest: Manifest) -> Postprocessor:
    """Make the decoder for the artifact's outputs; ArtifactError if they are not supported."""
    for output in manifest.outputs:
        real = output.dtype in ("float32", "float16")
        if real != (output.scale is None) or not (real or output.role == "head"):
            raise ArtifactError(
                f"output {output.name} is a {output.role} of {output.dtype} with scale "
                f"{output.scale}, expected float32 or float16 without a scale, or a head of "
                "integers with one: export it again"
            )
    heads = [output for output in manifest.outputs if output.role == "head"]
    options: dict[str, Any] = {}
    if len({(head.layout, head.activation) for head in heads}) > 1:
        raise ArtifactError(
            "its heads have different layouts or activations, expected one: export it again"
        )
    if heads:
        options["layout"] = heads[0].layout
        options["activation"] = heads[0].activation
        options["quantization"] = [
            None if head.scale is None else (head.scale, head.zero_point or 0) for head in heads
        ]
    return Postprocessor(manifest.levels, manifest.nc, **options)


def _placed(boxes: Boxes, geometry: Geometry) -> Boxes:
    """Map boxes to pixels of the image; drop boxes that lie in the letterbox's border."""
    corners = geometry.to_source(boxes.xyxy)
    inside = (corners[:, 2:] > corners[:, :2]).all(axis=1)
    if inside.all():
        return Boxes(corners, boxes.score, boxes.class_id)
    return Boxes(corners[inside], boxes.score[inside], boxes.class_id[inside])
