"""Build a graph for a Rockchip NPU with rknn-toolkit2, and write it or run it in the simulator.

The target and the runtime for RKNN run this file as a separate program, in the interpreter that has
rknn-toolkit2. The file does not import y7edge, because y7edge need not be installed there.

    python -I _rknn_child.py build PLATFORM GRAPH.onnx OUT.rknn
    python -I _rknn_child.py simulate PLATFORM GRAPH.onnx PARENT BATCH HEIGHT WIDTH

Both build the graph with the same settings, because the simulator runs only graphs that the same
process has built, and no .rknn files. All that the toolkit prints goes to the file ``log`` in the
working directory.

``simulate`` writes messages to stdout: four bytes with the length of a JSON object (big endian),
and the object. The first message has the versions. Then it reads images from stdin, each as
batch x height x width x 3 bytes (RGB), and writes a message with the shapes of the outputs,
followed by their values as float32 (little endian). It ends when stdin ends, or PARENT, the process
that started it.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import threading
import time
from importlib.metadata import version
from typing import Any, BinaryIO

_TICK_S = 1.0  # between two looks at the parent process


def built(platform: str, graph: str) -> Any:
    """Return the toolkit with a graph that it has built; quantised as the graph says.

    The toolkit divides the pixel values (0 to 255) by 255, as the graph expects.

    Raises:
        RuntimeError: a step failed; the log has the reason.
    """
    from rknn.api import RKNN

    tool = RKNN(verbose=False)
    settings = {"mean_values": [[0, 0, 0]], "std_values": [[255, 255, 255]]}
    _require("config", tool.config(**settings, target_platform=platform))
    _require("load_onnx", tool.load_onnx(model=graph))
    _require("build", tool.build(do_quantization=False))
    return tool


def build(platform: str, graph: str, out: str) -> None:
    """Write a .rknn file."""
    _require("export_rknn", built(platform, graph).export_rknn(out))


def simulate(platform: str, graph: str, shape: tuple[int, int, int], answers: BinaryIO) -> None:
    """Run images in the simulator until stdin ends. ``shape``: batch, height, width."""
    import numpy as np

    tool = built(platform, graph)
    _require("init_runtime", tool.init_runtime())  # without a target: the simulator
    _answer(answers, {"versions": {"rknn-toolkit2": version("rknn-toolkit2")}})
    batch, height, width = shape
    size = batch * height * width * 3
    while len(data := sys.stdin.buffer.read(size)) == size:
        pixels = np.frombuffer(data, np.uint8).reshape(batch, height, width, 3)
        found = tool.inference(inputs=[pixels], data_format=["nhwc"])
        if found is None:
            raise RuntimeError("inference returned nothing")
        arrays = [np.ascontiguousarray(array, "<f4") for array in found]
        _answer(answers, {"shapes": [array.shape for array in arrays]})
        for array in arrays:
            answers.write(array.tobytes())
        answers.flush()


def _answer(answers: BinaryIO, message: dict[str, Any]) -> None:
    data = json.dumps(message).encode()
    answers.write(struct.pack(">I", len(data)) + data)
    answers.flush()


def _require(step: str, code: int) -> None:
    if code != 0:
        raise RuntimeError(f"{step} failed with code {code}")


def _end_with(parent: int) -> None:
    """End this process when its parent ends, also while the toolkit computes."""
    while os.getppid() == parent:
        time.sleep(_TICK_S)
    os._exit(1)


def main(command: str, platform: str, graph: str, *more: str) -> int:
    """Run a command; report a failure as one line on standard error."""
    answers, errors = os.fdopen(os.dup(1), "wb"), os.fdopen(os.dup(2), "w")
    log = os.open("log", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        if command == "build":
            build(platform, graph, *more)
        else:
            parent, *shape = map(int, more)
            threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
            batch, height, width = shape
            simulate(platform, graph, (batch, height, width), answers)
    except (Exception, SystemExit) as error:  # the toolkit has no exception class of its own
        line = (str(error).strip().splitlines() or [""])[-1][:300]
        print(f"{type(error).__name__}: {line}", file=errors, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
