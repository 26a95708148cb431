"""Build a TensorRT-RTX engine for GPUs that this machine may not have; print a line of JSON.

    ENV/bin/python examples/research/rtx_build.py model.onnx SM80,SM86,SM89 1,4,8

Needs only the package tensorrt-rtx, and no GPU. ``rtx_builds.py`` runs it for many graphs. The last
argument is the smallest, usual and largest batch, for a graph with a dynamic batch. The engine is
not kept.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any


def main() -> int:
    """Build one engine; print ``version``, ``seconds`` and ``bytes``, or ``error``."""
    import tensorrt_rtx as trt

    class Logger(trt.ILogger):
        """Keep the errors."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(" ".join(text.split()))

    logger = Logger()
    model, capabilities, batches = sys.argv[1:]
    began = time.perf_counter()
    plan = build(trt, logger, Path(model).read_bytes(), capabilities.split(","), batches)
    record: dict[str, Any] = {"version": trt.__version__}
    if isinstance(plan, str) or plan is None:
        record["error"] = plan or "; ".join(logger.errors) or "no message"
    else:
        record.update(seconds=round(time.perf_counter() - began, 2), bytes=plan.nbytes)
    print(json.dumps(record))
    return 0


def build(trt: Any, logger: Any, model: bytes, capabilities: list[str], batches: str) -> Any:
    """Return the plan; the parser's message if it refuses the graph; None if the builder fails."""
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        return "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    config.num_compute_capabilities = len(capabilities)
    for index, name in enumerate(capabilities):
        config.set_compute_capability(getattr(trt.ComputeCapability, name), index)
    image = network.get_input(0)
    if image.shape[0] == -1:
        profile = builder.create_optimization_profile()
        rest = tuple(image.shape)[1:]
        profile.set_shape(image.name, *((int(size), *rest) for size in batches.split(",")))
        config.add_optimization_profile(profile)
    return builder.build_serialized_network(network, config)


if __name__ == "__main__":
    sys.exit(main())
