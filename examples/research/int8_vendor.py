"""Run one graph in a vendor's tool, for ``int8_vendors.py``; read and print lines of JSON.

    ENV/bin/python -I examples/research/int8_vendor.py qnn graph.onnx '{"chip": "75"}'

This script runs in the vendor's own environment, which has numpy but not y7edge. The first line
that it prints has the versions and the seconds of the preparation, or an error. Then it reads lines
from stdin: each is the path of a .npy file, an image (1, 3, H, W) float32, RGB, 0 to 1. The outputs
are written beside it as .npz, in the order of the graph's outputs.

* qnn: Qualcomm's execution provider for ONNX Runtime, in the emulation of the HTP that its wheel
  for x86-64 contains. The fallback to the CPU is switched off.
* rknn: Rockchip's toolkit and its simulator. The option ``dataset`` is a file with the paths of
  calibration images, (1, 3, H, W) uint8 in .npy files: the toolkit then quantises the graph itself.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

Run = Callable[[Any], list[Any]]


def qnn(path: str, options: Mapping[str, str]) -> tuple[Run, dict[str, str]]:
    """Open a graph in the emulation of the HTP."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime
    import onnxruntime_qnn  # type: ignore[import-not-found]

    onnxruntime.register_execution_provider_library(
        onnxruntime_qnn.EP_NAME, onnxruntime_qnn.get_library_path()
    )
    devices = [d for d in onnxruntime.get_ep_devices() if d.ep_name == onnxruntime_qnn.EP_NAME]
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    provider = {
        "backend_path": onnxruntime_qnn.get_qnn_htp_path(),
        "htp_arch": options["chip"],
        "offload_graph_io_quantization": "0",
    }
    settings.add_provider_for_devices(devices[:1], provider)
    session = onnxruntime.InferenceSession(path, settings)
    (image,) = session.get_inputs()
    names = ("onnxruntime", "onnxruntime-qnn")
    return lambda pixels: session.run(None, {image.name: pixels}), _versions(names)


def rknn(path: str, options: Mapping[str, str]) -> tuple[Run, dict[str, str]]:
    """Convert a graph for an NPU of Rockchip, and open it in the simulator."""
    from rknn.api import RKNN  # type: ignore[import-not-found]

    tool = RKNN(verbose=False)
    tool.config(
        mean_values=[[0, 0, 0]], std_values=[[255, 255, 255]], target_platform=options["chip"]
    )
    dataset = options.get("dataset")
    quantise = dataset is not None
    _require("load_onnx", tool.load_onnx(model=path))
    _require("build", tool.build(do_quantization=quantise, dataset=dataset))
    _require("init_runtime", tool.init_runtime())  # without a target: the simulator

    def run(pixels: Any) -> list[Any]:
        grey = np.rint(pixels * 255).astype(np.uint8).transpose(0, 2, 3, 1)
        found = tool.inference(inputs=[np.ascontiguousarray(grey)], data_format=["nhwc"])
        if found is None:
            raise RuntimeError("inference failed, see the messages above")
        return list(found)

    return run, _versions(("rknn-toolkit2",))


def _require(step: str, code: int) -> None:
    if code != 0:
        raise RuntimeError(f"{step} failed with code {code}, see the messages on stderr")


def _versions(names: tuple[str, ...]) -> dict[str, str]:
    return {name: version(name) for name in names}


def main() -> int:
    """Open the graph, then run it for each line of stdin."""
    # The libraries print on stdout: give them stderr, and keep stdout for the lines of JSON.
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    began = time.perf_counter()
    vendor, path, options = sys.argv[1:]
    try:
        run, versions = {"qnn": qnn, "rknn": rknn}[vendor](path, json.loads(options))
    except (Exception, SystemExit) as error:  # the tools have no common exception class
        text = " ".join(str(error).split()) or type(error).__name__
        # Rockchip's messages begin with a traceback.
        print(json.dumps({"error": text.rpartition("Error: ")[2][:300]}), file=lines)
        return 1
    seconds = round(time.perf_counter() - began, 2)
    print(json.dumps({"versions": versions, "seconds": seconds}), file=lines)
    for line in sys.stdin:
        image, began = Path(line.strip()), time.perf_counter()
        np.savez(image.with_suffix(".npz"), *run(np.load(image)))
        print(json.dumps({"seconds": round(time.perf_counter() - began, 2)}), file=lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
