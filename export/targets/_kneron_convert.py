"""Convert the model in this folder for a Kneron NPU, inside Kneron's toolchain container.

    docker run --rm -it -v "$PWD":/data1 kneron/toolchain:latest
    cd /data1 && conda activate onnx1.13 && python convert.py

Writes into ``kneron/``: the ONNX files that the toolchain read, its reports, and the .nef file for
the chip. Uses the Python API of toolchain 0.25 and later, environment ``onnx1.13``
(https://doc.kneron.com/docs/toolchain/manual_3_onnx/ and the two chapters after it).

The model's input is pixel / 255. The chip's preprocessing (KP_NORMALIZE_KNERON) gives
pixel / 256 - 0.5, which fills the range of int8. A BatchNormalization in front of the model
converts one to the other. Merged into the first convolution, its bias would not be applied to the
zeros that this convolution pads, and outputs near the border would be wrong.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SCALE, BIAS = 256 / 255, 128 / 255  # (pixel / 256 - 0.5) * SCALE + BIAS = pixel / 255


def normalized(model: Any, name: str, channels: int = 3) -> Any:
    """Return the model for inputs of pixel / 256 - 0.5; the input keeps its name."""
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    graph, inner = model.graph, f"{name}/unit"
    for node in graph.node:
        node.input[:] = [inner if text == name else text for text in node.input]
    # The operator adds epsilon to the variance.
    epsilon = 1e-5
    values = {"scale": SCALE, "bias": BIAS, "mean": 0.0, "variance": 1.0 - epsilon}
    constants = []
    for key, value in values.items():
        array = np.full(channels, value, np.float32)
        constants.append(numpy_helper.from_array(array, f"{name}/{key}"))
    node = helper.make_node(
        "BatchNormalization",
        [name, *(constant.name for constant in constants)],
        [inner],
        name=f"{name}/BatchNormalization",
        epsilon=epsilon,
    )
    graph.node.insert(0, node)
    graph.initializer.extend(constants)
    onnx.checker.check_model(model, full_check=True)
    return model


def images(folder: Path) -> list[Any]:
    """Return the calibration images as the chip's preprocessing writes them, (1, 3, H, W)."""
    import numpy as np
    from PIL import Image

    arrays = []
    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"), np.float32)
        arrays.append((pixels / 256 - 0.5).transpose(2, 0, 1)[None])
    if not arrays:
        raise SystemExit(f"{folder}: expected calibration images (*.png), found none")
    return arrays


def compared(expected: Any, found: Any) -> str:
    """Return cosine and largest difference of two outputs, as text."""
    import numpy as np

    a = np.asarray(expected, np.float64).ravel()
    b = np.asarray(found, np.float64).ravel()
    if a.shape != b.shape:
        return f"{a.size} values expected, {b.size} found"
    length = math.sqrt(float(a @ a) * float(b @ b))
    cosine = float(a @ b) / length if length else float(not a.any() and not b.any())
    return f"cosine {cosine:.5f}, largest difference {np.abs(a - b).max():.4f}"


def main() -> None:
    """Optimise, evaluate, quantise, simulate and compile."""
    settings = json.loads((HERE / "convert.json").read_text("utf-8"))
    asked = _arguments()

    import kneronnxopt
    import ktc
    import onnx

    name, chip, out = settings["input"], settings["platform"], HERE / "kneron"
    out.mkdir(exist_ok=True)
    model = normalized(onnx.load(str(HERE / "model.onnx")), name)
    onnx.save(model, str(out / "normalized.onnx"))
    # Compares both graphs in ONNX Runtime, so that a wrong fusion is noticed.
    model = kneronnxopt.optimize(model)
    onnx.save(model, str(out / "optimized.onnx"))

    bits = _bits(asked.bits)
    config = ktc.ModelConfig(asked.id, "0001", chip, onnx_model=model)
    print(config.evaluate(output_dir=str(out), **({} if asked.bits == "mixbw" else bits)))

    arrays = images(HERE / "calibration" / "images")
    print(f"quantise with {len(arrays)} images")
    bie = config.analysis(
        {name: arrays},
        output_dir=str(out),
        threads=asked.threads,
        quantize_mode=asked.quantize_mode,
        datapath_range_method=asked.range_method,
        percentage=asked.percentage,
        optimize=asked.optimize,
        **bits,
    )
    first = {"input_names": [name], "platform": int(chip)}
    expected = ktc.kneron_inference(
        [arrays[0]], onnx_file=str(out / "optimized.onnx"), input_names=[name]
    )
    found = ktc.kneron_inference([arrays[0]], bie_file=str(bie), **first)
    for index, output in enumerate(settings["outputs"]):
        print(f"{output}, quantised: {compared(expected[index], found[index])}")
    print("compile")
    nef = ktc.compile([config], output_dir=str(out))
    print(f"written to {nef}")


def _bits(mode: str | None) -> dict[str, str]:
    """Return the arguments for a number of bits, as Kneron's chapter on quantisation advises."""
    if mode is None:
        return {}
    bits = {"datapath_bitwidth_mode": mode, "weight_bitwidth_mode": mode}
    if mode != "mixbw":
        outer = mode if mode == "int8" else "int16"
        for part in ("model_in", "model_out", "cpu_node"):
            bits[f"{part}_bitwidth_mode"] = outer
    return bits


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Convert the model for a Kneron NPU.")
    parser.add_argument("--id", type=int, default=32769, help="id of the model in the .nef file")
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument(
        "--quantize-mode",
        default="post_sigmoid",
        choices=["default", "post_sigmoid"],
        help="post_sigmoid: the outputs are logits, whose sigmoids are computed later",
    )
    parser.add_argument("--range-method", default="percentage", choices=["percentage", "mmse"])
    parser.add_argument(
        "--percentage", type=float, default=1.0, help="range of activations, with percentage"
    )
    parser.add_argument("--optimize", type=int, default=0, choices=range(5))
    parser.add_argument(
        "--bits",
        choices=["int8", "mix light", "mix balance", "mixbw", "int16"],
        help="default: the toolchain's; the KL520 computes in int8 only",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
