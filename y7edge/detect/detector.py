"""The Detector: find objects in images with any engine, without torch and onnx.

It letterboxes an image into the network's input, runs the engine's ``Session``, and decodes the raw
outputs to boxes in pixels of the image. The artifact's manifest describes input and outputs.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from y7edge.artifact.description import Size
from y7edge.artifact.manifest import Manifest
from y7edge.artifact.schema import checked
from y7edge.detect.criteria import Conf, require_candidates
from y7edge.detect.detections import Detections
from y7edge.detect.images import Given, given, given_batch
from y7edge.detect.inference import Found
from y7edge.detect.model import OpenModel
from y7edge.detect.opening import WARMUP_RUNS, Choices, warn_if_unverified
from y7edge.detect.postprocess import EVALUATION, Criteria
from y7edge.detect.preprocess import Color, as_image, place
from y7edge.detect.regions import Roi, Tiling
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
from y7edge.errors import ConfigError, DeviceError
from y7edge.frames import Frame
from y7edge.runtimes.base import Session, SessionOptions, refuse_copy, require_process

_log = logging.getLogger(__name__)
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
        choices = Choices(backend, options, imgsz, names, conf, iou, max_det, classes, agnostic)
        self._set_up(choices, lambda: choices.open(source), tile, overlap, queue)
        # The caller: `checked` adds a frame.
        warn_if_unverified(source, self.manifest, stacklevel=3)

    @classmethod
    def from_session(cls, session: Session, manifest: Manifest, **options: Any) -> Detector:
        """Create a detector for an open session; its ``close`` closes the session too.

        ``swap`` opens other models with the default backend and device.

        ``options``: conf, iou, max_det, classes, agnostic, tile, overlap and queue as for
        ``Detector``, and ``clock``, a function that returns nanoseconds, for ``timing``.
        """
        own = {name: options.pop(name) for name in ("tile", "overlap", "queue") if name in options}
        detector, choices = cls.__new__(cls), Choices(**options)
        detector._set_up(choices, lambda: choices.use(session, manifest), **own)
        return detector

    @checked
    def _set_up(
        self,
        choices: Choices,
        open_first: Callable[[], OpenModel],
        tile: int | None = None,
        overlap: float = 0.2,
        queue: int = 4,
    ) -> None:
        self.tiling = Tiling(tile, overlap)
        if not 1 <= queue <= MAX_QUEUE:
            raise ConfigError(f"queue is {queue}, expected 1 to {MAX_QUEUE}")
        self._queue_size = queue
        self._queue: FrameQueue[Detections] | None = None
        self._waiting = ThreadPoolExecutor(1)  # asyncio frames that wait for a place in the queue
        self._choices = choices
        self._closed = False
        self._clock = choices.clock
        self._lock = threading.Lock()  # held while a batch runs, and while models are exchanged
        self._queue_lock = threading.Lock()
        self._swap_lock = threading.Lock()
        self._process = os.getpid()
        self._model = open_first()
        _log.info("opened %s", self._model)

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
            return self._detect([image], None, roi)[0]
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
        return self._detect(given_batch(frames, color, origins), None, roi)

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
        levels = self.manifest.input.levels
        return Stream(source, options, detect, lambda: self._model, wait, levels)

    def detect_for_evaluation(self, frame: NDArray[np.uint8]) -> Detections:
        """Detect objects in a BGR image with ``EVALUATION``, the thresholds for mAP.

        Raises:
            ConfigError: the artifact returns boxes after NMS; see ``require_candidates``.
        """
        self.require_candidates()
        return self._detect([given(frame, "bgr")], EVALUATION)[0]

    def require_candidates(self) -> None:
        """Raise ConfigError if the model cannot be evaluated, because NMS is part of its graph."""
        require_candidates(self.manifest)

    @checked
    def warmup(self, runs: int = WARMUP_RUNS) -> None:
        """Detect objects in a grey image, because engines may be slow on first use.

        Raises:
            DetectorClosed: the detector was closed.
            DeviceError: the engine failed.
        """
        grey = self._opened().grey()
        for _ in range(runs):
            self(grey)

    @checked
    def swap(
        self, source: str | Path, *, check: Callable[[Manifest], object] | None = None
    ) -> None:
        """Exchange the model while other threads detect; if this fails, nothing changes.

        The new model is opened with the options of this detector; thresholds that are None become
        those of its manifest. Its digest is checked, its probes are repeated (see ``selftest``),
        and it is warmed up, while the old one is used; both are in memory then. They are exchanged
        between two calls, and the old one is closed. Frames that wait after ``submit``, and those
        of streams, are run by one of the two: ``Detections.model_id`` and ``names`` say by which.

        Args:
            source: the new model, as for ``Detector``. Size of the input, classes, outputs and
                precision may differ.
            check: is called with the new manifest before the exchange; it may raise an exception.

        Raises:
            ParityError: the outputs of the new model differ from those of its proof.
            DigestError, ArtifactError, ConfigError, RuntimeMissing: as for ``Detector``;
                ConfigError also if 16-bit images have other levels.
            DeviceError: the engine failed, or another thread exchanges the model.
            DetectorClosed: the detector was closed.
        """
        require_process(self._process, "the detector")
        self._opened()
        if not self._swap_lock.acquire(blocking=False):
            raise DeviceError("the model is being exchanged by another thread: wait for its end")
        unused = None
        try:
            unused = new = self._choices.open_proved(source, self.manifest)
            if check is not None:
                check(new.manifest)
            warn_if_unverified(source, new.manifest, stacklevel=3)  # may raise, as a filter says
            with self._lock:
                self._opened()
                unused, self._model = self._model, new
        finally:
            self._swap_lock.release()
            if unused is not None:
                unused.session.close()
        _log.info(
            "%s replaces %s (%s), from %s", new, unused.manifest.model, unused.model_id, source
        )

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
                self._model.session.close()
            finally:
                self._lock.release()

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
        return self._model.manifest.names

    @property
    def manifest(self) -> Manifest:
        """The artifact's manifest."""
        return self._model.manifest

    @property
    def info(self) -> dict[str, Any]:
        """Model, device and thresholds, as JSON values for logs.

        Raises:
            DetectorClosed: the detector was closed.
        """
        return self._opened().info

    @property
    def session(self) -> Session:
        """The open session. Calls of the session do not wait for calls of the detector.

        ``swap`` closes it.

        Raises:
            DetectorClosed: the detector was closed.
        """
        return self._opened().session

    def _opened(self) -> OpenModel:
        if self._closed:
            raise closed_error()
        return self._model

    def _submit(
        self,
        image: Given,
        drop: Drop,
        roi: Roi | None,
        timeout: float | None = None,
        future: Future[Detections] | None = None,
    ) -> Future[Detections]:
        require_process(self._process, "the detector")
        network = self.manifest.input
        place(*as_image(image.pixels, image.color, network, host=False, cut=False), network)
        with self._queue_lock:
            self._opened()
            if self._queue is None:
                self._queue = FrameQueue(self._queue_size)
            queue = self._queue
        call = partial(self._detect, [image], None, roi)
        return queue.put(lambda: call()[0], drop, timeout, future)

    def _detect(
        self, images: Sequence[Given], criteria: Criteria | None, roi: Roi | None = None
    ) -> list[Detections]:
        """Detect objects in images; ``criteria``: None for those of the model."""
        require_process(self._process, "the detector")  # a forked child may never get the lock
        called = self._clock()
        found: list[Found] | None = None
        while found is None:
            model = self._opened()
            prepared = model.prepare(images, roi, self.tiling)
            with self._lock:
                if self._opened() is not model:  # it was exchanged: prepare the images for the new
                    continue
                wait = (self._clock() - called) / 1e6
                try:
                    found = model.run(prepared, criteria)
                finally:
                    if self._closed:  # ``close`` has stopped waiting for this call
                        model.session.close()
        return model.results(prepared, found, criteria, wait)
