"""Detector: a picture in, objects out; the same on every engine, without torch and without onnx.

A picture is letterboxed into the network's input, an engine's ``Session`` turns it into raw
outputs, and numpy turns these into boxes in the picture's own pixels. What the network needs to be
told (names, anchors, sizes, thresholds) comes from the artifact's manifest.
"""

from __future__ import annotations

import difflib
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from y7edge.artifact.artifact import Artifact
from y7edge.artifact.manifest import Manifest
from y7edge.detect.detections import Detections, Timing
from y7edge.detect.postprocess import EVALUATION, Boxes, Criteria, Postprocessor
from y7edge.detect.preprocess import Color, Geometry, Preprocessor
from y7edge.errors import ConfigError, DataError, DeviceError, RuntimeMissing
from y7edge.models import registry as variants
from y7edge.runtimes import registry
from y7edge.runtimes.base import Session, SessionOptions

CHECKPOINTS = (".safetensors", ".pt", ".pth")
"""Suffixes of files that are run with torch; everything else is an artifact."""

_MOST_AT_ONCE = 16  # pictures of a dynamic batch; a longer list would only cost memory


class Detector:
    """Finds objects in pictures.

    Thread-safe: calls are serialised, and the time a call waited is in its result's ``timing``.
    A context manager; after ``close`` every call is a DeviceError.

    Args:
        source: an artifact (``model.onnx``), a checkpoint (``best.safetensors``, ``yolov7.pt``) or
            the name of a variant, which gets random weights; the last two need torch.
        backend: a runtime's name; "auto" lets the artifact decide.
        device: "auto", "cpu", "cuda", "cuda:1".
        conf: least score, exclusive; None: the manifest's.
        iou: boxes are suppressed above this IoU with a better one; None: the manifest's.
        max_det: most objects in a picture.
        classes: ids or names of the classes to look for; None: all.
        agnostic: suppress across classes.
        threads: of the engine; None: its own choice.
        imgsz: input (height, width) of a checkpoint, or its side; that of an artifact is fixed.
        provider_options: handed to the engine as they are.

    Raises:
        ConfigError: an option that cannot be used.
        ArtifactError, DigestError, CheckpointError: a file that cannot be used.
        RuntimeMissing: the engine is not installed.
        DeviceError: the device does not exist.
    """

    def __init__(
        self,
        source: str | Path,
        backend: str = "auto",
        device: str = "auto",
        conf: float | None = None,
        iou: float | None = None,
        max_det: int = 300,
        classes: Iterable[int | str] | None = None,
        *,
        agnostic: bool = False,
        threads: int | None = None,
        imgsz: int | tuple[int, int] | None = None,
        provider_options: Mapping[str, Any] | None = None,
    ) -> None:
        options = SessionOptions(device, threads, provider_options or {})
        session, manifest = _open(source, backend, options, imgsz)
        try:
            self._set_up(session, manifest, conf, iou, max_det, classes, agnostic)
        except BaseException:
            session.close()
            raise
        if manifest.parity.get("status") == "unverified":
            reason = manifest.parity.get("reason", "no reason given")
            warnings.warn(
                f"{source} was never compared with the model it came from ({reason}): "
                "run `y7edge selftest` or `y7edge verify` where its engine is",
                stacklevel=2,
            )

    @classmethod
    def from_session(
        cls,
        session: Session,
        manifest: Manifest,
        *,
        conf: float | None = None,
        iou: float | None = None,
        max_det: int = 300,
        classes: Iterable[int | str] | None = None,
        agnostic: bool = False,
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> Detector:
        """A detector over a session that is already open; it closes it in the end.

        ``clock`` is what ``timing`` is measured with, in nanoseconds.
        """
        detector = cls.__new__(cls)
        detector._set_up(session, manifest, conf, iou, max_det, classes, agnostic, clock)
        return detector

    def _set_up(
        self,
        session: Session,
        manifest: Manifest,
        conf: float | None,
        iou: float | None,
        max_det: int,
        classes: Iterable[int | str] | None,
        agnostic: bool,
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self._manifest = manifest
        self._criteria = Criteria(
            conf=manifest.thresholds.conf if conf is None else conf,
            iou=manifest.thresholds.iou if iou is None else iou,
            max_det=max_det,
            classes=None if classes is None else _class_ids(classes, manifest.names),
            agnostic=agnostic,
        )
        image = manifest.input
        self._preprocess = Preprocessor(
            image.height,
            image.width,
            pad=image.letterbox.pad,
            order=image.color,
            scale=image.scale,
        )
        self._postprocess = Postprocessor(manifest.levels, manifest.nc)
        self._heads = [output.name for output in manifest.outputs if output.role == "head"]
        self._roles = {output.role: output.name for output in manifest.outputs}
        self._batch: NDArray[np.float32] = self._preprocess.tensor
        self._model_id = manifest.payload_digest[:16]
        self._session: Session | None = session
        self._clock = clock
        self._lock = threading.Lock()

    def __call__(self, frame: NDArray[np.uint8], color: Color = "bgr") -> Detections:
        """Objects in one picture, best first.

        Args:
            frame: (H, W, 3) uint8; grey (H, W) and four channels with alpha are understood too.
            color: order of its channels, "bgr" as OpenCV has it, or "rgb".

        Raises:
            DataError: not a picture.
            DeviceError: the engine failed, or the detector was closed.
        """
        return self._detect([frame], color, self._criteria)[0]

    def batch(self, frames: Sequence[NDArray[np.uint8]], color: Color = "bgr") -> list[Detections]:
        """Objects in each of several pictures, of any sizes; a list for any list, also of none.

        They go to the engine together if the artifact's batch is dynamic, else one by one.

        Raises:
            DataError: not a list, or not pictures.
            DeviceError: the engine failed, or the detector was closed.
        """
        if isinstance(frames, np.ndarray) or not isinstance(frames, Sequence):
            raise DataError(
                f"batch() takes a list of pictures, not {type(frames).__name__}: "
                "call the detector itself for one picture"
            )
        return self._detect(frames, color, self._criteria)

    def detect_for_evaluation(self, frame: NDArray[np.uint8], color: Color = "bgr") -> Detections:
        """Objects by the protocol that mAP is measured by, whatever thresholds the detector has.

        Confidence above 0.001, every class of a box and not only its best, IoU 0.65, 300 boxes.
        """
        return self._detect([frame], color, EVALUATION)[0]

    def warmup(self, runs: int = 3) -> None:
        """Run on a grey picture, so that engines which plan on first use have done so.

        Raises:
            DeviceError: the engine failed, or the detector was closed.
        """
        image = self._manifest.input
        grey = np.full((image.height, image.width, 3), image.letterbox.pad, np.uint8)
        for _ in range(runs):
            self(grey)

    def close(self) -> None:
        """Free the engine; closing twice is allowed."""
        with self._lock:
            session, self._session = self._session, None
            if session is not None:
                session.close()

    def __enter__(self) -> Detector:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def names(self) -> tuple[str, ...]:
        """Class names, by class id."""
        return self._manifest.names

    @property
    def manifest(self) -> Manifest:
        """All that the artifact says about itself."""
        return self._manifest

    @property
    def info(self) -> dict[str, Any]:
        """What runs here, where, and with which thresholds: plain values for logs.

        Raises:
            DeviceError: the detector was closed.
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
            raise DeviceError("the detector was closed: open a new one")
        return self._session

    def _detect(
        self, frames: Sequence[NDArray[np.uint8]], color: Color, criteria: Criteria
    ) -> list[Detections]:
        """Pictures in, results out, as many at once as the engine takes."""
        called = self._clock()
        fixed = self._manifest.input.batch
        step = _MOST_AT_ONCE if fixed == "dynamic" else fixed
        with self._lock:
            wait = self._ms_since(called)
            session = self._opened()
            results = []
            for start in range(0, len(frames), step):
                chunk = frames[start : start + step]
                results += self._run(session, chunk, color, criteria, wait)
        return results

    def _run(
        self,
        session: Session,
        frames: Sequence[NDArray[np.uint8]],
        color: Color,
        criteria: Criteria,
        wait: float,
    ) -> list[Detections]:
        """One call of the engine. The lock is held: buffers are shared between calls."""
        pixels = self._input_for(len(frames))
        # In a tensor of its own the preprocessor skips the grey border where it stayed the same.
        alone = pixels is self._preprocess.tensor
        started = self._clock()
        geometries = [
            self._preprocess(frame, color, None if alone else pixels[index])
            for index, frame in enumerate(frames)
        ]
        pre = self._ms_since(started) / len(frames)
        started = self._clock()
        outputs = session.infer({self._manifest.input.name: pixels})
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
            )
            for boxes, geometry in zip(placed, geometries, strict=True)
        ]

    def _input_for(self, count: int) -> NDArray[np.float32]:
        """The input for ``count`` pictures: a reused buffer, as large as the engine wants it."""
        fixed = self._manifest.input.batch
        size = count if fixed == "dynamic" else fixed
        if size == 1:
            return self._preprocess.tensor
        if len(self._batch) < size:
            self._batch = np.zeros((size, *self._preprocess.tensor.shape[1:]), np.float32)
        return self._batch[:size]

    def _boxes(
        self, outputs: Mapping[str, NDArray[Any]], count: int, criteria: Criteria
    ) -> list[Boxes]:
        """Boxes of the first ``count`` pictures; a fixed batch may have had empty places."""
        if self._heads:
            heads = [outputs[name][:count] for name in self._heads]
            return self._postprocess.heads(heads, criteria)
        boxes, scores = (outputs[self._roles[role]][:count] for role in ("boxes", "scores"))
        return self._postprocess.decoded(boxes, scores, criteria)


def _placed(boxes: Boxes, geometry: Geometry) -> Boxes:
    """Boxes in the picture's own pixels; what lies wholly in the letterbox's border goes."""
    corners = geometry.to_source(boxes.xyxy)
    inside = (corners[:, 2:] > corners[:, :2]).all(axis=1)
    if inside.all():
        return Boxes(corners, boxes.score, boxes.class_id)
    return Boxes(corners[inside], boxes.score[inside], boxes.class_id[inside])


def _open(
    source: str | Path,
    backend: str,
    options: SessionOptions,
    imgsz: int | tuple[int, int] | None,
) -> tuple[Session, Manifest]:
    """A session for an artifact, or with torch for a checkpoint or a variant's name."""
    path = Path(source)
    if not path.is_file() and path.name == str(source) and not path.suffix:
        variants.get(path.name)  # a ConfigError that lists the names, if it is none of them
    elif path.suffix.lower() not in CHECKPOINTS:
        artifact = registry.load(path, backend)
        _require_size(artifact, imgsz)
        return registry.open_session(artifact, options, backend), artifact.manifest
    # By its dotted name: the one runtime that needs torch must not be imported with this module.
    try:
        eager = import_module("y7edge.nn.eager")
    except ImportError as error:
        raise RuntimeMissing(
            f'{source} is not an exported artifact and needs torch: pip install "y7edge[export]", '
            "or export it with `y7edge export` where torch is"
        ) from error
    session = eager.open(source, options, **({} if imgsz is None else {"imgsz": _pair(imgsz)}))
    return session, session.manifest


def _require_size(artifact: Artifact, imgsz: int | tuple[int, int] | None) -> None:
    image = artifact.manifest.input
    if imgsz is not None and _pair(imgsz) != (image.height, image.width):
        height, width = _pair(imgsz)
        raise ConfigError(
            f"{artifact.path} has an input of {image.height}x{image.width}, which is fixed: "
            f"export it again with --imgsz {height}x{width}"
        )


def _pair(imgsz: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a size that may be the side of a square."""
    height, width = (imgsz, imgsz) if isinstance(imgsz, int) else imgsz
    return height, width


def _class_ids(classes: Iterable[int | str], names: tuple[str, ...]) -> tuple[int, ...]:
    """Class ids of ids and names mixed, ascending; ConfigError for one that does not exist."""
    given = [classes] if isinstance(classes, str) else list(classes)
    return tuple(sorted({_class_id(item, names) for item in given}))


def _class_id(item: int | str, names: tuple[str, ...]) -> int:
    if isinstance(item, str):
        if item in names:
            return names.index(item)
        near = difflib.get_close_matches(item, names, n=1, cutoff=0.0)
        raise ConfigError(f"the model has no class {item!r}; the nearest is {near[0]!r}")
    if isinstance(item, bool) or not isinstance(item, (int, np.integer)):
        raise ConfigError(f"a class is given by id or name, not as {item!r}")
    if not 0 <= item < len(names):
        raise ConfigError(f"the model has no class {item}; ids go from 0 to {len(names) - 1}")
    return int(item)
