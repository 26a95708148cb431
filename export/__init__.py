"""Export checkpoints as artifacts, and prove that the artifacts equal the model.

The functions are imported on first use, so that ``fold`` works without onnx::

    from y7edge.export import export, verify

    artifact = export(checkpoint, "yolov7-tiny.onnx", imgsz=640)
    report = verify("yolov7-tiny.onnx", checkpoint)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from y7edge.errors import public_name

if TYPE_CHECKING:
    from y7edge.export.conversion import build
    from y7edge.export.everything import ExportPlan, export_all
    from y7edge.export.folding import fold
    from y7edge.export.pipeline import export
    from y7edge.export.proof.diff import diff
    from y7edge.export.proof.verify import verify

__all__ = ["ExportPlan", "build", "diff", "export", "export_all", "fold", "verify"]

_ELSEWHERE = {
    "ExportPlan": "y7edge.export.everything",
    "build": "y7edge.export.conversion",
    "diff": "y7edge.export.proof.diff",
    "export": "y7edge.export.pipeline",
    "export_all": "y7edge.export.everything",
    "fold": "y7edge.export.folding",
    "verify": "y7edge.export.proof.verify",
}


def __getattr__(name: str) -> Any:
    return public_name(__name__, _ELSEWHERE, name, "export")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
