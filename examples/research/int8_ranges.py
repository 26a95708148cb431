"""Compare the methods that choose ranges, with and without bias correction.

    python -m examples.research.int8_ranges best.safetensors data.yaml

Prints a table: for each profile and method the errors of boxes and scores of the whole graph, as
`y7edge sensitivity` defines them, in percent. The graph is calibrated with images of the split
"train", and compared with the float graph on images of the split "val".
"""

from __future__ import annotations

import argparse
import copy
import itertools

from y7edge.artifact.description import describe
from y7edge.cli.console import table
from y7edge.data import dataset
from y7edge.data.images import read_image
from y7edge.detect.preprocess import Preprocessor
from y7edge.export.calibration import choose_images
from y7edge.export.folding import fold_checkpoint
from y7edge.export.graph.build import build_graph
from y7edge.export.graph.quantize import PROFILES
from y7edge.export.graph.quantize_ranges import METHODS
from y7edge.export.quantization import Quantizer
from y7edge.export.sensitivity import Comparison
from y7edge.models.registry import folded
from y7edge.nn.source import open_checkpoint


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("data")
    parser.add_argument("--profiles", nargs="+", default=["u8s8", "s8s8", "u16s8"])
    parser.add_argument("--calib-images", type=int, default=64)
    parser.add_argument("--images", type=int, default=40)
    options = parser.parse_args()
    checkpoint = open_checkpoint(options.checkpoint)
    spec, (height, width) = folded(checkpoint.spec), checkpoint.imgsz
    manifest = describe(checkpoint, spec, (height, width), batch=1, target="onnx", tools={})
    graph = build_graph(fold_checkpoint(checkpoint), height=height, width=width)
    calibration = choose_images(options.data, checkpoint.names, count=options.calib_images)
    preprocess, images = Preprocessor(manifest.input), []
    for sample in dataset.load(options.data, ["val"]).split("val")[: options.images]:
        preprocess(read_image(sample.path, manifest.input.levels))
        images.append(preprocess.tensor.copy())
    comparison = Comparison(graph, images, manifest.levels, manifest.nc, threads=1)
    rows: list[tuple[object, ...]] = [("profile", "ranges", "biases", "boxes %", "scores %")]
    for profile in options.profiles:
        quantizer = Quantizer(graph, calibration.inputs(manifest.input), PROFILES[profile].name)
        for method, corrected in itertools.product(METHODS, (False, True)):
            variant = copy.copy(quantizer)
            variant.method = method
            variant.means = quantizer.means if corrected else {}
            boxes, scores = comparison.errors(variant.quantized())
            biases = "corrected" if corrected else ""
            errors = (f"{100 * error:.2f}" for error in (boxes, scores))
            rows.append((profile, method, biases, *errors))
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
