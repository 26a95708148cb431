"""Show the detections of a camera in a window, or in the terminal where there is no screen.

    python examples/webcam.py --model mine.onnx                         # the first camera
    python examples/webcam.py --model mine.onnx --source test://scenes  # without a camera

Press q or Esc in the window, or Ctrl+C in the terminal, to stop.
"""

import argparse
import itertools
import os
import sys
import time

import cv2

from y7edge import Detector, Y7EdgeError, draw


def main() -> None:
    """Detect in the newest frame until the user stops."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="runs/demo/parts.onnx", help="an exported model")
    parser.add_argument("--source", default="0", help="camera number, device, or any URI")
    parser.add_argument("--conf", type=float, help="least confidence; default: the model's")
    parser.add_argument("--frames", type=int, default=0, help="stop after N frames; 0: never")
    parser.add_argument("--headless", action="store_true", help="print lines, open no window")
    args = parser.parse_args()
    # Without a display, OpenCV's windows would end the program, and no exception be raised.
    window = not args.headless and bool(
        sys.platform != "linux" or {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()
    )

    with Detector(args.model, conf=args.conf) as detector:
        detector.warmup()  # the first call of an engine can take long
        # A frame that is not read in time is dropped, so results are never old.
        stream = detector.stream(args.source)
        for frame, detections in itertools.islice(stream, max(0, args.frames) or None):
            if window:
                cv2.imshow("y7edge", draw(frame, detections))
                if cv2.waitKey(1) in (27, ord("q")):
                    break
            else:
                names = ", ".join(f"{row.class_name} {row.confidence:.2f}" for row in detections)
                age = frame.age_ns(time.monotonic_ns())  # None for a video file
                old = "" if age is None else f", {age / 1e6:.0f} ms old"
                print(f"frame {frame.sequence}{old}: {names or 'nothing'}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("stopped")
    except cv2.error as error:
        sys.exit(f"error: OpenCV: {error.err}; opencv-python-headless needs --headless")
    except Y7EdgeError as error:
        sys.exit(f"error: {error}")
