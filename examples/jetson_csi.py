"""Detect objects with the CSI camera of a Jetson and a TensorRT engine. Not run on a Jetson yet.

    y7edge build mine.onnx --target tensorrt --out mine.engine     # once, on the board
    python examples/jetson_csi.py --model mine.engine

Without a Jetson: --model mine.onnx --source test://scenes. The camera's frames stay NV12: the GPU
converts and letterboxes them. Stop with Ctrl+C or SIGTERM, not SIGKILL: a camera whose program was
killed cannot be opened again before ``sudo systemctl restart nvargus-daemon``.
"""

import argparse
import itertools
import signal
import sys
import time
from collections import deque

import numpy as np

from y7edge import Detector, Y7EdgeError

CAMERA = "csi://0?width=1280&height=720&rate=30"


def main() -> None:
    """Print rate, frame age and number of objects every 30 frames."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", default="mine.engine", help="a TensorRT engine, or another model"
    )
    parser.add_argument("--source", default=CAMERA, help=f"camera; default: {CAMERA}")
    parser.add_argument("--frames", type=int, default=0, help="stop after N frames; 0: never")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # systemd and docker stop by SIGTERM

    with Detector(args.model) as detector:
        detector.warmup()  # before the camera opens, since the first calls are slow
        print(f"{args.model} on {detector.info['device']}", flush=True)
        ages: deque[float] = deque(maxlen=300)  # ms from the capture to the result
        since = time.monotonic()
        stream = itertools.islice(detector.stream(args.source), args.frames or None)
        for count, (frame, detections) in enumerate(stream, 1):
            age = frame.age_ns(time.monotonic_ns())
            ages.append(np.nan if age is None else age / 1e6)  # None: a video file
            if count % 30 == 0:
                p50, p99 = np.percentile(ages, (50, 99))
                rate, since = 30 / (time.monotonic() - since), time.monotonic()
                print(
                    f"{rate:.1f} frames/s, age {p50:.1f} ms (p99 {p99:.1f}), {frame.dropped} "
                    f"dropped, {len(detections)} objects",
                    flush=True,
                )


if __name__ == "__main__":
    try:
        main()
    except (KeyboardInterrupt, Y7EdgeError) as error:
        sys.exit(f"error: {error}" if isinstance(error, Y7EdgeError) else 0)
