"""Compare orders in which layers go back to float: the damage that is left, and the time it costs.

    y7edge sensitivity best.safetensors --data data.yaml --out sensitivity
    python examples/research/fallback_order.py best.safetensors data.yaml sensitivity

Prints a table: for each order and number of layers in float besides the heads, the damage of the
whole graph (as `y7edge sensitivity` defines it), and the milliseconds that int8 no longer saves.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from pathlib import Path

from int8_table import Model

from y7edge.cli.console import table
from y7edge.export.sensitivity import Comparison, LayerDamage

COUNTS = (0, 1, 2, 4, 8, 16, 32)


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("data")
    parser.add_argument("folder", type=Path, help="what `y7edge sensitivity` wrote")
    parser.add_argument("--images", type=int, default=16)
    options = parser.parse_args()
    record = json.loads((options.folder / "sensitivity.json").read_text())
    layers = {one["name"]: LayerDamage(**one) for one in record["layers"]}
    height, width = record["imgsz"]
    model = Model(options.checkpoint, options.data, (height, width))
    quantizer = model.quantizer(record["profile"], record["ranges"])
    images, manifest = list(itertools.islice(model.inputs(), options.images)), model.manifest
    comparison = Comparison(model.graph, images, manifest.levels, manifest.nc, threads=1)
    by_rate = list(record["order"])
    orders = {
        "damage for each ms": by_rate,
        "damage": sorted(by_rate, key=lambda name: -layers[name].damage),
        "random": random.Random(0).sample(by_rate, len(by_rate)),
    }
    rows: list[tuple[object, ...]] = [("order", "in float", "damage", "ms", "% of MACs in int8")]
    for title, order in orders.items():
        for count in COUNTS:
            kept = quantizer.heads.union(order[:count])
            damage = sum(comparison.errors(quantizer.quantized(kept)))
            ms = sum(layers[name].ms_saved for name in order[:count])
            percent = f"{100 * quantizer.share(kept):.1f}"
            rows.append((title, count, f"{damage:.4f}", f"{ms:.2f}", percent))
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
