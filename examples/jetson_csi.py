"""Detect objects with the CSI camera of a Jetson and a TensorRT engine. Not run on a Jetson yet.

    y7edge build mine.onnx --target tensorrt --out mine.engine     # once, on the board
    python examples/jetson_csi.py --model mine.engine

Without a Jetson: --model mine.onnx --source test://scenes. The camera's frames stay NV12: the GPU
converts and letterboxes them. Stop with Ctrl+C or SIGTERM, not SIGKILL: a camera whose program was
killed cannot be opened again before ``sudo systemctl restart nvargus-daemon``.
"""

import argparse
import itertools
import math
import signal
import sys
import time

from y7edge import Detector, Y7EdgeError

CAMERA = "csi://0?width=1280&height=720&rate=30"


def main() -> None:
    """Print rate, frame age and number of objects every 30 frames."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mine.engine", help="TensorRT engine, or any model")
    parser.add_argument("--source", default=CAMERA, help=f"camera; default: {CAMERA}")
    parser.add_argument("--frames", type=int, default=0, help="stop after N frames; 0: never")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))  # of systemd or docker

    with Detector(args.model) as detector:
        detector.warmup()  # before the camera opens, since the first calls are slow
        info = detector.info
        print(f"{info['device']}; images: {info.get('frames', 'scaled on the CPU')}", flush=True)
        since, stream = time.monotonic(), detector.stream(args.source)
        limited = itertools.islice(stream, max(0, args.frames) or None)
        for count, (frame, detections) in enumerate(limited, 1):
            if count % 30 == 0:
                rate, since = 30 / (time.monotonic() - since), time.monotonic()
                ages = stream.ages[stream.names[0]].summary()  # from the capture to the result
                p50, p99 = (ages.get(key, math.nan) for key in ("p50_ms", "p99_ms"))
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
