"""Export a checkpoint to every target that this machine can build, and print a table.

    python examples/export_all.py best.safetensors --out all
    python examples/export_all.py best.safetensors --data data.yaml   # also int8, and the mAP

Each artifact is proved before its file is written; the table says how far, or why there is none.
`y7edge export --target all-here` does the same. Needs torch: pip install "y7edge[export]".
"""

import argparse
import sys
from pathlib import Path

from y7edge import Y7EdgeError
from y7edge.export import ExportPlan, export_all
from y7edge.models import weights

ROW = "{:<10} {:<9} {:<11} {:>8} {:>8} {:>7}  {}"


def main() -> int:
    """Export everything; return 4 if a proof failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help=".safetensors, or a published .pt")
    parser.add_argument("--data", help="data set for the mAP and to calibrate int8")
    parser.add_argument("--only", nargs="+", metavar="TARGET", help="default: all targets")
    parser.add_argument("--threads", type=int, help="threads of the measurement of latency")
    parser.add_argument("--out", type=Path, default=Path("all"), help="folder for the artifacts")
    args = parser.parse_args()

    checkpoint = weights.load(args.checkpoint)
    made = export_all(
        ExportPlan(
            checkpoint,
            args.out,
            args.checkpoint.stem,
            data=args.data,
            only=args.only,
            threads=args.threads,
        ),
        progress=lambda line: print(line, file=sys.stderr),
    )
    print(
        ROW.format("target", "precision", "state", "MB", "mAP", "ms", "file, or why there is none")
    )
    for one in made:
        values = (one.megabytes, one.map50_95, one.ms)
        shown = ["-" if value is None else f"{value:.3f}" for value in values]
        print(ROW.format(one.target, one.precision, one.state, *shown, one.path or one.problem))
    return 4 if any(one.state == "refused" for one in made) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Y7EdgeError as error:
        sys.exit(f"error: {error}")
