"""Detect objects in one image, and save the image with boxes.

    python examples/image.py --model mine.onnx --source tray.jpg

``make demo`` makes the default model; the default source is a synthetic image of its parts.
"""

import argparse
import sys

import cv2

from y7edge import Detector, Y7EdgeError, draw, open_source


def main() -> None:
    """Detect, print one line per object, and save the drawing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="runs/demo/parts.onnx", help="an exported model")
    parser.add_argument("--source", default="test://scenes", help="image, folder, video, camera")
    parser.add_argument("--conf", type=float, help="least confidence; default: the model's")
    parser.add_argument("--save", default="found.jpg", help="file for the image with boxes")
    args = parser.parse_args()

    # Classes, anchors and input size are in the model's file.
    with Detector(args.model, conf=args.conf) as detector, open_source(args.source) as source:
        frame = source.read()  # the first image, of any kind of source
        if frame is None:
            sys.exit(f"error: {args.source} has no image")
        detections = detector(frame)

    for found in detections:  # best first; coordinates are pixels of the image
        x, y = found.center
        print(f"{found.class_name} {found.confidence:.2f} at ({x:.0f}, {y:.0f})")
    if not cv2.imwrite(args.save, draw(frame, detections)):
        sys.exit(f"error: cannot write {args.save}")
    print(f"{len(detections)} objects in {args.source}: {args.save}")


if __name__ == "__main__":
    try:
        main()
    except (Y7EdgeError, cv2.error) as error:  # one line: what was wrong, what to do
        sys.exit(f"error: {error}")
