"""Compare the methods that choose ranges, with and without bias correction.

    python examples/research/int8_ranges.py best.safetensors data.yaml

Prints a table: for each profile and method the errors of boxes and scores of the whole graph, as
`y7edge sensitivity` defines them, in percent. The graph is calibrated with images of the split
"train", and compared with the float graph on images of the split "val".
"""

from __future__ import annotations

import argparse
import copy
import itertools

from int8_table import Model

from y7edge.cli.console import table
from y7edge.export.graph.quantize import PROFILES
from y7edge.export.graph.quantize_ranges import METHODS
from y7edge.export.sensitivity import Comparison


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("data")
    parser.add_argument(
        "--profiles", nargs="+", choices=tuple(PROFILES), default=["u8s8", "s8s8", "u16s8"]
    )
    parser.add_argument("--calib-images", type=int, default=64)
    parser.add_argument("--images", type=int, default=40)
    options = parser.parse_args()
    model = Model(options.checkpoint, options.data, images=options.calib_images)
    images, manifest = model.others(options.images), model.manifest
    comparison = Comparison(model.graph, images, manifest.levels, manifest.nc, threads=1)
    rows: list[tuple[object, ...]] = [("profile", "ranges", "biases", "boxes %", "scores %")]
    for profile in options.profiles:
        for method, corrected in itertools.product(METHODS, (False, True)):
            quantizer = model.quantizer(profile, method)
            variant = copy.copy(quantizer)
            variant.means = quantizer.means if corrected else {}
            boxes, scores = comparison.errors(variant.quantized())
            biases = "corrected" if corrected else ""
            errors = (f"{100 * error:.2f}" for error in (boxes, scores))
            rows.append((profile, method, biases, *errors))
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
