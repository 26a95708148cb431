r"""Print the objects on a table as JSON, in millimetres, in the order in which to pick them.

    python examples/pick_and_place.py --model mine.onnx --source 0 \
        --pixels "102,80 530,82 610,470 30,465" --table "-200,0 200,0 200,300 -200,300"

Measure four points once, in images of ``--size``, by moving the tool to four marks on the table.
"""

import argparse
import itertools
import json
import sys

import cv2
import numpy as np

from y7edge import Detections, Detector, Y7EdgeError


def points(text: str) -> np.ndarray:
    """Read ``x,y x,y x,y x,y``."""
    return np.asarray_chkfinite([xy.split(",") for xy in text.split()], "f4").reshape(4, 2)


def picks(found: Detections, to_table: np.ndarray) -> list[dict[str, object]]:
    """Return whole objects in the image: those that no box covers first, then by confidence."""
    low = np.maximum(found.xyxy[:, None, :2], found.xyxy[None, :, :2])
    high = np.minimum(found.xyxy[:, None, 2:], found.xyxy[None, :, 2:])
    covered = np.clip(high - low, 0, None).prod(axis=2).sum(axis=1) / found.area  # 1: by itself
    order = np.lexsort((-found.confidence, covered.round(1)))
    whole = (found.xyxy[:, :2] > 2) & (found.xyxy[:, 2:] < np.array(found.image_wh) - 2)
    found = found[order[whole.all(axis=1)[order]]]
    centres = found.xyxy.reshape(-1, 1, 2, 2).mean(axis=2)
    places = cv2.perspectiveTransform(centres, to_table) if len(found) else centres
    return [
        {"class": row.class_name, "confidence": round(row.confidence, 3), "x_mm": x, "y_mm": y}
        for row, ((x, y),) in zip(found, places.astype(float).round(1).tolist(), strict=True)
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="runs/demo/parts.onnx", help="an exported model")
    parser.add_argument("--source", default="0", help="camera number, device, or any URI")
    parser.add_argument("--pixels", type=points, default="0,0 640,0 640,480 0,480")
    parser.add_argument("--table", type=points, default="0,0 400,0 400,300 0,300")
    parser.add_argument("--size", default="640x480", help="of the images of --pixels")
    parser.add_argument("--frames", type=int, default=0, help="stop after N frames; 0: never")
    args = parser.parse_args()
    mm = cv2.getPerspectiveTransform(args.pixels, args.table)
    if np.linalg.cond(mm) > 1e9:
        parser.error("three points of --pixels or --table are on a line")
    try:
        with Detector(args.model) as detector, detector.stream(args.source) as stream:
            for frame, found in itertools.islice(stream, max(0, args.frames) or None):
                if (size := "x".join(map(str, found.image_wh))) != args.size:
                    sys.exit(f"error: the images have {size} pixels, but --size is {args.size}")
                print(json.dumps({"frame": frame.sequence, "picks": picks(found, mm)}), flush=True)
    except (KeyboardInterrupt, Y7EdgeError) as error:
        sys.exit(f"error: {error}" if isinstance(error, Y7EdgeError) else 0)
