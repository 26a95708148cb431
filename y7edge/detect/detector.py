"""The Detector: find objects in images with any engine, without torch and onnx.

It letterboxes an image into the network's input, runs the engine's ``Session``, and decodes the raw
outputs to boxes in pixels of the image. The artifact's manifest describes input and outputs.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from y7edge.artifact.description import Size
from y7edge.artifact.manifest import Manifest
from y7edge.artifact.schema import checked
from y7edge.detect.criteria import Conf, criteria_for, require_candidates
from y7edge.detect.detections import Detections, Timing
from y7edge.detect.images import Given, Origin, given, given_batch
from y7edge.detect.inference import Found, Inference
from y7edge.detect.opening import describe, open_model, warn_if_unverified
from y7edge.detect.postprocess import EVALUATION, Criteria
from y7edge.detect.preprocess import Color, as_image, place, size_of
from y7edge.detect.regions import Region, Roi, Tiling, merged, regions
from y7edge.detect.streaming import Stream, Streamed
from y7edge.detect.submission import (
    MAX_QUEUE,
    Drop,
    FrameQueue,
    check_timeout,
    closed_error,
    result_by,
    wait_for,
)
from y7edge.errors import ConfigError
from y7edge.frames import Frame
from y7edge.runtimes.base import Session, SessionOptions, refuse_copy, require_process

_CLOSE_SECONDS = 5.0  # how long ``close`` waits for a running call


class Detector:
    """Find objects in images.

    Can be used as a context manager. Thread-safe: concurrent calls run one after the other, and
    ``timing.wait`` is the time that a call waited.

    Args:
        source: an artifact (``model.onnx``), an ONNX file of another exporter (see
            ``y7edge.artifact.foreign``), a checkpoint (``best.safetensors``, ``yolov7.pt``), or a
            variant's name, for random weights. Checkpoints and variants need torch.
        backend: a runtime's name; "auto": the one for the artifact's file format.
        device: "auto", or a device of the runtime, such as "cpu", "cuda" or "cuda:1".
        conf: keep boxes with a greater score; None: the manifest's default. A mapping from class
            names or ids to scores applies to these classes; all others have the default.
        iou: suppress a box if its IoU with a better box is greater; None: the manifest's default.
        max_det: maximum number of objects per image; None: the manifest's default.
        classes: the classes to find, by name or id (see ``class_ids``); None: all.
        agnostic: in NMS, compare boxes of different classes too.
        tile: side of square tiles in pixels of the image, for small objects. The image is also run
            tile by tile, then NMS is applied to all boxes together. None: only the whole image.
        overlap: fraction of a tile's side that neighbours share.
        queue: largest number of frames that wait after ``submit``.
        threads: number of engine threads; None: the physical cores that this process may use.
        imgsz: input size of a checkpoint, one side or (height, width); artifacts have a fixed size.
        names: class names of a file of another exporter; None: from its metadata, else numbers.
        provider_options: options of the engine; see the module of its runtime.

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
        conf: Conf | None = None,
        iou: float | None = None,
        max_det: int | None = None,
        classes: str | Iterable[int | str] | None = None,
        *,
        agnostic: bool = False,
        tile: int | None = None,
        overlap: float = 0.2,
        queue: int = 4,
        threads: int | None = None,
        imgsz: Size | None = None,
        names: Sequence[str] | None = None,
        provider_options: Mapping[str, Any] | None = None,
    ) -> None:
        options = SessionOptions(device, threads, provider_options or {})
        session, manifest = open_model(source, backend, options, imgsz, names)
        try:
            self._set_up(
                session, manifest, conf, iou, max_det, classes, agnostic, tile, overlap, queue
            )
        except BaseException:
            session.close()
            raise
        warn_if_unverified(source, manifest, stacklevel=3)  # the caller: `checked` adds a frame

    @classmethod
    def from_session(cls, session: Session, manifest: Manifest, **options: Any) -> Detector:
        """Create a detector for an open session; its ``close`` closes the session too.

        ``options``: conf, iou, max_det, classes, agnostic, tile, overlap and queue as for
        ``Detector``, and ``clock``, a function that returns nanoseconds, for ``timing``.
        """
        detector = cls.__new__(cls)
        detector._set_up(session, manifest, **options)
        return detector

    @checked
    def _set_up(
        self,
        session: Session,
        manifest: Manifest,
        conf: Conf | None = None,
        iou: float | None = None,
        max_det: int | None = None,
        classes: str | Iterable[int | str] | None = None,
        agnostic: bool = False,
        tile: int | None = None,
        overlap: float = 0.2,
        queue: int = 4,
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self._manifest = manifest
        self._criteria = criteria_for(manifest, conf, iou, max_det, classes, agnostic)
        self._tiling = Tiling(tile, overlap)
        if not 1 <= queue <= MAX_QUEUE:
            raise ConfigError(f"queue is {queue}, expected 1 to {MAX_QUEUE}")
        self._queue_size = queue
        self._queue: FrameQueue[Detections] | None = None
        self._waiting = ThreadPoolExecutor(1)  # asyncio frames that wait for a place in the queue
        self._inference = Inference(manifest, self._criteria, clock)
        self._model_id = manifest.payload_digest[:16]
        self._session: Session | None = session
        self._closed = False
        self._clock = clock
        self._lock = threading.Lock()  # held while a batch runs
        self._queue_lock = threading.Lock()
        self._process = os.getpid()

    def __call__(
        self,
        frame: NDArray[np.uint8] | Frame,
        color: Color | None = None,
        *,
        timestamp_ns: int | None = None,
        frame_id: int | None = None,
        source: str | None = None,
        roi: Roi | None = None,
        timeout: float | None = None,
    ) -> Detections:
        """Detect objects in one image, best first.

        Args:
            frame: (H, W, 3) uint8, or (H, W) grey, or (H, W, 4) with alpha; also uint16 if the
                manifest's input has ``levels``. With a TensorRT engine also an array on its GPU
                that has a ``__cuda_array_interface__``, which is not copied. Or a ``Frame``, whose
                format, capture time, sequence and source are used for arguments that are None.
            color: order of the channels; "nv12" for an array (3 H / 2, W). None: that of the
                ``Frame``, and "bgr" for an array.
            timestamp_ns: capture time; copied to the result, like ``frame_id`` and ``source``.
            frame_id: number of the frame in its source.
            source: name of the source.
            roi: region of interest (left, top, right, bottom) in pixels; boxes are in pixels of
                the whole image. None: the whole image.
            timeout: seconds to wait for the result; None: no limit. An engine cannot be
                interrupted: after a timeout it continues in the background, and its result is
                discarded. The next call of the detector waits until the engine has finished.

        Raises:
            ConfigError: ``color`` is unknown, or differs from the format of the ``Frame``.
            DataError: the frame is not an image, or ``roi`` contains no pixel of it.
            DetectorClosed: the detector was closed.
            DeviceError: the engine failed, or there was no result within ``timeout``.
        """
        image = given(frame, color, timestamp_ns, frame_id, source)
        if timeout is None:
            return self._detect([image], self._criteria, roi)[0]
        timeout = check_timeout(timeout)
        end = time.monotonic() + timeout
        return result_by(end, self._submit(image, "block", roi, timeout), timeout)

    def submit(
        self,
        frame: NDArray[np.uint8] | Frame,
        color: Color | None = None,
        *,
        drop: Drop = "block",
        timestamp_ns: int | None = None,
        frame_id: int | None = None,
        source: str | None = None,
        roi: Roi | None = None,
    ) -> Future[Detections]:
        """Detect objects in a background thread; return a future of the result.

        Frames are run in the order of submission. The frame is not copied: do not overwrite it
        before the future is done. ``close`` cancels the futures of frames that wait.

        Args:
            frame: the image, as for a call.
            color: order of the channels, as for a call.
            drop: if the queue is full, "block" waits for a place, "oldest" drops the frame that
                has waited longest, and "newest" drops this frame. The future of a dropped frame
                raises FrameDropped.
            timestamp_ns: capture time.
            frame_id: number of the frame in its source.
            source: name of the source.
            roi: region of interest.

        Raises:
            ConfigError: ``drop`` or ``color`` is unknown, or ``color`` differs from the ``Frame``.
            DataError: the frame is not an image.
            DetectorClosed: the detector was closed.
            DeviceError: the queue is full, and a callback of a future would wait for a place.
        """
        return self._submit(given(frame, color, timestamp_ns, frame_id, source), drop, roi)

    async def detect(
        self,
        frame: NDArray[np.uint8] | Frame,
        color: Color | None = None,
        *,
        drop: Drop = "block",
        timestamp_ns: int | None = None,
        frame_id: int | None = None,
        source: str | None = None,
        roi: Roi | None = None,
    ) -> Detections:
        """Detect objects in one image from asyncio: ``await detector.detect(frame)``.

        Arguments and errors are as for ``submit``; the event loop is not blocked. If the task is
        cancelled while its frame waits, the frame is removed from the queue. A frame that waits
        when the detector is closed raises DetectorClosed.
        """
        image = given(frame, color, timestamp_ns, frame_id, source)
        future: Future[Detections] = Future()
        put = partial(self._submit, image, drop, roi, future=future)
        waiting = asyncio.get_running_loop().run_in_executor
        try:
            await waiting(self._waiting, put) if drop == "block" else put()
        except asyncio.CancelledError:
            future.cancel()
            raise
        return await wait_for(future)

    def batch(
        self,
        frames: Sequence[NDArray[np.uint8] | Frame],
        color: Color | None = None,
        *,
        timestamp_ns: Sequence[int | None] | None = None,
        frame_id: Sequence[int | None] | None = None,
        source: Sequence[str | None] | None = None,
        roi: Roi | None = None,
    ) -> list[Detections]:
        """Detect objects in several images of any sizes, in batches of the artifact's batch size.

        Arguments are as for one image. ``timestamp_ns``, ``frame_id`` and ``source`` are lists with
        one value for each image; ``color`` and ``roi`` apply to all. Each ``Frame`` has its own
        format.

        Raises:
            ConfigError: ``color`` is unknown, or differs from the format of a ``Frame``.
            DataError: ``frames`` is not a list of images, or another list has a wrong length.
            DetectorClosed: the detector was closed.
            DeviceError: the engine failed.
        """
        origins = {"timestamp_ns": timestamp_ns, "frame_id": frame_id, "source": source}
        return self._detect(given_batch(frames, color, origins), self._criteria, roi)

    def stream(
        self,
        source: Streamed,
        *,
        roi: Roi | None = None,
        wait: float | None = None,
        **options: str | int | float,
    ) -> Stream:
        """Detect in the frames of a camera, stream, video or folder, or of several at once.

        For example:

            for frame, detections in detector.stream("csi://0"):
                print(frame.sequence, len(detections))

        Of a camera, the newest frame is always used: frames that arrive while the engine or the
        caller is busy are dropped. Of files, every frame is used. Frames of several sources are run
        in one batch if the artifact's batch size allows it, else in turn.

        Args:
            source: a URI, path or number as for ``open_source``; an open ``Source``, which stays
                open; a list of these; or an iterable of frames or BGR arrays.
            roi: region of interest of all frames, as for a call.
            wait: seconds after which ``next(stream)`` raises SourceTimeout if there is no frame, so
                that a robot can stop; the following call waits again. None: wait without limit
                while a source is opened again.
            options: options for ``open_source``.

        Returns:
            An iterator of pairs of ``Frame`` and ``Detections``, with the ages of the frames and
            the state of the sources. It closes the sources that it has opened at the end, after an
            error, and when nothing refers to it, such as a loop that was left; else call ``close``.

        Raises:
            ConfigError: ``source`` is not a source, or an option is unknown.
            SourceError: a source cannot be opened.
        """
        detect = partial(self.batch, roi=roi)
        levels = self._manifest.input.levels
        return Stream(source, options, detect, self._inference.batch, wait, levels)

    def detect_for_evaluation(self, frame: NDArray[np.uint8]) -> Detections:
        """Detect objects in a BGR image with ``EVALUATION``, the thresholds for mAP.

        Raises:
            ConfigError: the artifact returns boxes after NMS; see ``require_candidates``.
        """
        self.require_candidates()
        return self._detect([given(frame, "bgr")], EVALUATION)[0]

    def require_candidates(self) -> None:
        """Raise ConfigError if the model cannot be evaluated, because NMS is part of its graph."""
        require_candidates(self._manifest)

    @checked
    def warmup(self, runs: int = 3) -> None:
        """Detect objects in a grey image, because engines may be slow on first use.

        Raises:
            DetectorClosed: the detector was closed.
            DeviceError: the engine failed.
        """
        image = self._manifest.input
        grey = np.full((image.height, image.width, 3), image.letterbox.pad, np.uint8)
        for _ in range(runs):
            self(grey)

    def close(self) -> None:
        """Close the session; can be called twice. Do nothing in a forked child.

        The futures of waiting frames are cancelled. A running call gets 5 seconds to finish; if it
        takes longer, ``close`` returns before, and the session is closed after the call.
        """
        if os.getpid() != self._process:
            return
        self._closed = True
        with self._queue_lock:
            if self._queue is not None:
                self._queue.close()
        if self._lock.acquire(timeout=_CLOSE_SECONDS):
            try:
                self._free()
            finally:
                self._lock.release()

    def _free(self) -> None:
        """Close the session. The caller holds the lock."""
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
        """Model, device and thresholds, as JSON values for logs.

        Raises:
            DetectorClosed: the detector was closed.
        """
        criteria = asdict(self._criteria)
        del criteria["multi_label"]
        return {**describe(self._opened(), self._manifest), **criteria}

    @property
    def session(self) -> Session:
        """The open session. Calls of the session do not wait for calls of the detector.

        Raises:
            DetectorClosed: the detector was closed.
        """
        return self._opened()

    def _ms_since(self, started_ns: int) -> float:
        return (self._clock() - started_ns) / 1e6

    def _opened(self) -> Session:
        if self._session is None or self._closed:
            raise closed_error()
        return self._session

    def _submit(
        self,
        image: Given,
        drop: Drop,
        roi: Roi | None,
        timeout: float | None = None,
        future: Future[Detections] | None = None,
    ) -> Future[Detections]:
        require_process(self._process, "the detector")
        network = self._manifest.input
        place(*as_image(image.pixels, image.color, network, host=False, cut=False), network)
        with self._queue_lock:
            self._opened()
            if self._queue is None:
                self._queue = FrameQueue(self._queue_size)
            queue = self._queue
        call = partial(self._detect, [image], self._criteria, roi)
        return queue.put(lambda: call()[0], drop, timeout, future)

    def _detect(
        self, images: Sequence[Given], criteria: Criteria, roi: Roi | None = None
    ) -> list[Detections]:
        """Cut the images into regions, run these in batches, and merge the boxes of each image."""
        require_process(self._process, "the detector")  # a forked child may never get the lock
        called = self._clock()
        cut = roi is not None or self._tiling.tile is not None
        host = cut or self._opened().on_device is None
        network = self._manifest.input
        whole = [as_image(one.pixels, one.color, network, host=host, cut=cut) for one in images]
        parts = [regions(i, roi, self._tiling) if cut else [Region(i, 0, 0)] for i, _ in whole]
        with self._lock:
            wait = self._ms_since(called)
            try:
                run = [
                    (region.pixels, color)
                    for part, (_, color) in zip(parts, whole, strict=True)
                    for region in part
                ]
                found = iter(self._inference(self._opened(), run, criteria))
            finally:
                if self._closed:  # ``close`` has stopped waiting for this call
                    self._free()
        return [
            self._detections(
                [next(found) for _ in part], part, size_of(*image), criteria, wait, one.origin
            )
            for one, image, part in zip(images, whole, parts, strict=True)
        ]

    def _detections(
        self,
        found: Sequence[Found],
        parts: Sequence[Region],
        image_wh: tuple[int, int],
        criteria: Criteria,
        wait: float,
        origin: Origin,
    ) -> Detections:
        """Make the result of one image from the boxes of its regions."""
        started = self._clock()
        boxes = merged([one.boxes for one in found], parts, criteria)
        pre, post = (sum(one.ms[i] for one in found) for i in (0, 2))
        infer = sum({one.batch: one.ms[1] for one in found}.values())  # each batch once
        post += self._ms_since(started) if len(parts) > 1 else 0.0
        return Detections(
            *boxes,
            image_wh,
            self._manifest.names,
            timing=Timing(wait, pre, infer, post),
            model_id=self._model_id,
            **origin,
        )
