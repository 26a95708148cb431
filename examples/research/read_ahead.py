"""Measure what reading ahead gains, as `y7edge predict --out FOLDER` does it.

    python examples/research/read_ahead.py mine.onnx images/ --threads 1

Detects in all images with 0, 1, 2 and 4 reading threads in turns, and prints the median of the
images per second, and the median of the ratios to no reading thread of the same round.
"""

import argparse
import statistics
import time
from collections import defaultdict

from y7edge import Detector, open_source
from y7edge.sources.files import Files, read_ahead


def rate(detector: Detector, files: Files, threads: int) -> float:
    """Return images per second."""
    began = time.perf_counter()
    if threads:
        paths = map(str, files.paths)
        count = sum(
            1 for _, frames in read_ahead(paths, None, threads) for _ in map(detector, frames)
        )
    else:
        count = sum(1 for _ in map(detector, Files(files.name, files.paths)))
    return count / (time.perf_counter() - began)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("images")
    parser.add_argument("--threads", type=int, help="threads of the engine")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    files = open_source(args.images)
    if not isinstance(files, Files):
        parser.error("expected a folder of images")
    rates, ratios = defaultdict(list), defaultdict(list)
    with Detector(args.model, threads=args.threads) as detector:
        detector.warmup()
        for _ in range(args.rounds):
            for threads in (0, 1, 2, 4):
                rates[threads].append(rate(detector, files, threads))
                ratios[threads].append(rates[threads][-1] / rates[0][-1])
    print("reading threads  images/s  ratio")
    for threads, found in rates.items():
        middle = statistics.median(ratios[threads])
        print(f"{threads:15}  {statistics.median(found):8.1f}  {middle:5.2f}")


if __name__ == "__main__":
    main()
