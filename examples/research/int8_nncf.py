"""Quantise a graph with NNCF, for ``int8_table.py``.

    ENV/bin/python -I examples/research/int8_nncf.py float.onnx images.npy model.xml [NODE ...]

``images.npy`` has the calibration images, (N, 3, H, W) float32. The convolutions NODE stay in
float. For a .xml file, NNCF quantises OpenVINO's model of the graph; for a .onnx file, the graph.
The script runs in an environment of its own, which has nncf, openvino and onnx but not y7edge.
"""

from __future__ import annotations

import re
import sys


def main() -> None:
    """Quantise the graph, and write it."""
    # Both packages send telemetry, unless this one cannot be imported.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import nncf  # type: ignore[import-not-found]
    import numpy as np
    import onnx
    import openvino

    source, images, out, *kept = sys.argv[1:]
    pixels = np.load(images, mmap_mode="r")
    is_onnx = out.endswith(".onnx")
    # One node of the ONNX graph can be several of OpenVINO's, with longer names.
    scope = nncf.IgnoredScope(patterns=[f"{re.escape(name)}(/.*)?" for name in kept])
    model = onnx.load(source) if is_onnx else openvino.Core().read_model(source)
    name = model.graph.input[0].name if is_onnx else 0
    made = nncf.quantize(
        model,
        nncf.Dataset(range(len(pixels)), lambda index: {name: np.array(pixels[index : index + 1])}),
        subset_size=len(pixels),
        ignored_scope=scope if kept else None,
    )
    if is_onnx:
        onnx.save(made, out)
        return
    for key in list(made.rt_info):  # the settings of the quantisation
        del made.rt_info[key]
    openvino.save_model(made, out, compress_to_fp16=False)


if __name__ == "__main__":
    main()
