"""y7edge: train YOLOv7, export it with a proof of equal outputs, and run it on edge devices.

Public names are imported on first use (PEP 562). So ``import y7edge`` is fast: it does not import
an engine, OpenCV or torch::

    from y7edge import Detector

    with Detector("yolov7-tiny.onnx") as detector:
        for detection in detector(frame):
            print(detection.class_name, detection.confidence, detection.xyxy)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from y7edge.adapters.tracking import Tracker
    from y7edge.detect.detections import Detection, Detections, Timing
    from y7edge.detect.detector import Detector
    from y7edge.detect.drawing import draw
    from y7edge.errors import (
        ArtifactError,
        ArtifactMissing,
        CheckpointError,
        ConfigError,
        DataError,
        DetectorClosed,
        DeviceError,
        DigestError,
        ExportError,
        FrameDropped,
        GateError,
        ManifestMissing,
        OutputError,
        ParityError,
        RuntimeMissing,
        SourceError,
        SourceSkipped,
        SourceTimeout,
        TrainingError,
        Y7EdgeError,
    )
    from y7edge.frames import Frame
    from y7edge.sources.uri import open_source

__version__ = "0.1.0"

__all__ = [
    "ArtifactError",
    "ArtifactMissing",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "Detection",
    "Detections",
    "Detector",
    "DetectorClosed",
    "DeviceError",
    "DigestError",
    "ExportError",
    "Frame",
    "FrameDropped",
    "GateError",
    "ManifestMissing",
    "OutputError",
    "ParityError",
    "RuntimeMissing",
    "SourceError",
    "SourceSkipped",
    "SourceTimeout",
    "Timing",
    "Tracker",
    "TrainingError",
    "Y7EdgeError",
    "__version__",
    "draw",
    "open_source",
]

_DEFINED_IN = {  # all other public names are in y7edge.errors
    "Detection": "y7edge.detect.detections",
    "Detections": "y7edge.detect.detections",
    "Detector": "y7edge.detect.detector",
    "Frame": "y7edge.frames",
    "Timing": "y7edge.detect.detections",
    "Tracker": "y7edge.adapters.tracking",
    "draw": "y7edge.detect.drawing",
    "open_source": "y7edge.sources.uri",
}


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it."""
    if name not in __all__:
        raise AttributeError(f"module 'y7edge' has no attribute {name!r}")
    try:
        value = getattr(import_module(_DEFINED_IN.get(name, "y7edge.errors")), name)
    except ModuleNotFoundError as error:
        if error.name != "cv2":
            raise
        from y7edge.errors import RuntimeMissing

        raise RuntimeMissing(
            f"y7edge.{name} needs OpenCV, which is not installed: pip install 'y7edge[cpu]' for it "
            "and ONNX Runtime; on a Jetson it is part of JetPack"
        ) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
