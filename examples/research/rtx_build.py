"""Build an engine with TensorRT-RTX for GPUs that this machine does not have; print JSON.

    ENV/bin/python examples/research/rtx_build.py model.onnx SM80,SM86,SM89

``rtx_builds.py`` runs this for many graphs, in an interpreter that has y7edge and tensorrt-rtx. The
code of target tensorrt builds the engine, as with TensorRT 11, except that the compute capabilities
are given. The engine is neither opened nor kept. The manifest of the graph is ``model.onnx.json``.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from y7edge.artifact.artifact import read_sidecar
from y7edge.errors import ExportError
from y7edge.export.targets import trt as target
from y7edge.export.targets._trt_settings import Device, Settings
from y7edge.export.targets.base import BuildRequest

# TensorRT-RTX has its own version numbers, and the interface of TensorRT 11.
_LIKE = "11.4.0"
_WORKSPACE = 1024  # MiB


def main() -> int:
    """Build one engine; print its size and the time, or the errors."""
    import tensorrt_rtx as rtx

    path, capabilities = Path(sys.argv[1]), sys.argv[2].split(",")
    record: dict[str, Any] = {"version": rtx.__version__}

    class Builder(rtx.Builder):  # type: ignore[misc]
        """Give the compute capabilities, because there is no GPU to take them from."""

        def create_builder_config(self) -> Any:
            config = super().create_builder_config()
            config.num_compute_capabilities = len(capabilities)
            for index, name in enumerate(capabilities):
                config.set_compute_capability(getattr(rtx.ComputeCapability, name), index)
            return config

    rtx.Builder, rtx.__version__ = Builder, _LIKE
    request = BuildRequest(path, None, read_sidecar(path), path.parent, "model.engine")
    device = Device("none", ",".join(capabilities), 1 << 32, 1 << 33, False)
    logger, began = target.logger_of(rtx), time.perf_counter()
    try:
        target.require_graph(request)
    except ExportError as error:
        record["refused"] = str(error)
    try:
        build = target.Build(rtx, request, Settings.of(request), device)
        plan, asked, _ = build.attempt(logger, _WORKSPACE)
        if plan is None:
            record["error"] = logger.errors[-1] if logger.errors else "no message"
        else:
            seconds = round(time.perf_counter() - began, 2)
            record.update(seconds=seconds, bytes=len(plan), convolutions=Counter(asked.values()))
    except ExportError as error:
        record["error"] = str(error)
    print(json.dumps(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
