r"""Measure what the activation of a model costs: time in two engines, mAP, mAP in int8.

    python examples/research/activation_table.py --imgsz 320 --out rows.jsonl
    python examples/research/activation_table.py --imgsz 640 --out rows.jsonl
    python examples/research/activation_table.py --checkpoints relu.safetensors silu.safetensors \
        --data DATA --imgsz 320 --out rows.jsonl
    python examples/research/activation_table.py --out rows.jsonl --page docs/activations.md

Without ``--checkpoints``, the time of a variant with random weights is measured, with each of the
four activations. All graphs of one input size are open in one process and run in turn, on one
thread. The time is that of the processor, of the faster quarter of the calls: other programs only
make calls slower. int8 graphs have the profile that the target takes by default, and their heads
are in float.

With ``--checkpoints``, the mAP@0.5:0.95 of each file on the split "val" of ``--data`` is measured,
in float and in int8, in each engine. The ranges come from images of the split "train".

Rows are appended to ``--out``. The tables of the last rows are printed, and with ``--page`` also
written into a Markdown file, between the lines ``<!-- time -->`` and ``<!-- mAP -->`` and the next
``<!-- end -->``.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
from int8_table import TARGETS, Bench, Model, Row, built, read

from y7edge.errors import ConfigError, Y7EdgeError
from y7edge.export.targets import registry as targets
from y7edge.files import atomic_write, reason, writing
from y7edge.machine import processor_model
from y7edge.models import registry, weights
from y7edge.models.spec import ACTS

FLOAT = "fp32"
_ENGINES = {"onnx": "ONNX Runtime", "openvino": "OpenVINO"}
_FAST = 0.25  # quantile of the times


def main() -> int:
    """Measure rows, and print or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="yolov7-tiny", help="the variant that is timed")
    parser.add_argument("--imgsz", type=int, help="input size in pixels; none: only the tables")
    parser.add_argument("--runs", type=int, default=40, help="timed calls of each graph")
    parser.add_argument("--checkpoints", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--data", help="data set with the splits train and val")
    parser.add_argument("--images", type=int, default=128, help="number of calibration images")
    parser.add_argument("--out", type=Path, required=True, help="file of the rows, JSON lines")
    parser.add_argument("--page", type=Path, help="write the tables into this Markdown file")
    options = parser.parse_args()
    try:
        if options.checkpoints:
            rows = [accuracy(path, options) for path in options.checkpoints]
        else:
            rows = times(options) if options.imgsz else []
        with options.out.open("a", encoding="utf-8") as stream:
            stream.writelines(f"{json.dumps(row)}\n" for row in rows)
        tables = {"time": time_table(read(options.out)), "mAP": map_table(read(options.out))}
        print("\n\n".join(tables.values()))
        if options.page:
            write(options.page, tables)
    except Y7EdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"error: {options.out}: {reason(error)}", file=sys.stderr)
        return 1
    return 0


def benches(model: Model, folder: Path, stack: ExitStack, *, data: bool) -> dict[str, Bench]:
    """Open the float and the int8 graph of a model in each engine, by "ENGINE PROFILE"."""
    opened = {}
    for target in TARGETS:
        profile = targets.get(target).PROFILES[0]
        integers = model.quantizer(profile, "mse").quantized()
        for name, graph in ((FLOAT, model.graph), (profile, integers)):
            print(f"{model.name}: {target} {name}", file=sys.stderr, flush=True)
            artifact = built(model, target, graph, folder / f"{model.name}-{target}-{name}")
            bench = stack.enter_context(closing(Bench.of(model, artifact, data=data)))
            opened[f"{_ENGINES[target]} {name}"] = bench
    return opened


def times(options: argparse.Namespace) -> list[Row]:
    """Time a variant with each activation; return one row for each graph."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        opened: dict[tuple[str, str], Bench] = {}
        for act in ACTS:
            name = registry.get(options.model, act=act).name
            model = Model(name, None, options.imgsz, images=8)
            found = benches(model, Path(folder), stack, data=False)
            opened |= {(graph, act): bench for graph, bench in found.items()}
        for bench in opened.values():
            bench.call()
        rounds = [[bench.call() for bench in opened.values()] for _ in range(options.runs)]
        fast = np.quantile(np.array(rounds), _FAST, axis=0)
        return [
            {
                **{"kind": "time", "model": options.model, "size": options.imgsz},
                **{"graph": graph, "act": act, "ms": float(ms)},
                **{"processor": processor_model(), "versions": dict(bench.session.versions)},
            }
            for ((graph, act), bench), ms in zip(opened.items(), fast, strict=True)
        ]


def accuracy(path: Path, options: argparse.Namespace) -> Row:
    """Evaluate a checkpoint in float and in int8."""
    if options.data is None:
        raise ConfigError("there is no data set to evaluate on: give --data")
    checkpoint = weights.load(path)
    act = next(act for act, known in ACTS.items() if known == checkpoint.spec.activation)
    model = Model(str(path), options.data, options.imgsz, options.images)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        found = benches(model, Path(folder), stack, data=True)
        return {
            **{"kind": "mAP", "model": checkpoint.spec.name, "act": act, "size": options.imgsz},
            **{"digest": checkpoint.digest, "epoch": checkpoint.meta.get("epoch")},
            "mAP": {graph: bench.map for graph, bench in found.items()},
        }


def time_table(rows: Iterable[Row]) -> str:
    """Return the times as a Markdown table: ratios to the activation of the published variant."""
    found: dict[tuple[Any, ...], dict[str, float]] = {}
    for row in rows:
        if row["kind"] == "time":
            found.setdefault((row["model"], row["size"], row["graph"]), {})[row["act"]] = row["ms"]
    lines = [
        f"| model | graph | {' | '.join(ACTS)} | ms of the usual one |",
        "|---" * (3 + len(ACTS)) + "|",
    ]
    for (name, size, graph), by_act in found.items():
        usual = next(a for a, known in ACTS.items() if known == registry.get(name).activation)
        ratios = [f"{by_act[act] / by_act[usual]:.2f}" if act in by_act else "-" for act in ACTS]
        cells = [f"{name}, {size} px", graph, *ratios, f"{by_act[usual]:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def map_table(rows: Iterable[Row]) -> str:
    """Return the mAP of the checkpoints as a Markdown table; a later row replaces an earlier."""
    found = {(row["act"], row["size"]): row for row in rows if row["kind"] == "mAP"}
    graphs = list(dict.fromkeys(graph for row in found.values() for graph in row["mAP"]))
    if not found:
        return "Not measured yet."
    lines = [
        f"| activation | model | epoch | {' | '.join(graphs)} |",
        "|---" * (3 + len(graphs)) + "|",
    ]
    for (act, size), row in sorted(found.items(), key=lambda item: list(ACTS).index(item[0][0])):
        values = [f"{row['mAP'][graph]:.4f}" if graph in row["mAP"] else "-" for graph in graphs]
        cells = [act, f"{row['model']}, {size} px", str(row["epoch"] or "-"), *values]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write(page: Path, tables: Mapping[str, str]) -> None:
    """Replace the tables of a page.

    Raises:
        ConfigError: the page lacks the lines that mark a table.
    """
    text = page.read_text(encoding="utf-8")
    for name, table in tables.items():
        before, start, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        if not end or start in after:
            raise ConfigError(f"{page}: expected <!-- {name} --> once, and then <!-- end -->")
        text = f"{before}{start}\n{table}\n\n{end}{after}"
    with writing("the page", page), atomic_write(page) as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
