"""Count the objects that cross a line in a network camera's image, by class.

    pip install "y7edge[tracking]"
    python examples/rtsp_counter.py --model mine.onnx --source rtsp://user:password@camera/stream

The tracker gives each object a number, so that it is counted once. If the camera fails, the source
opens it again, at growing intervals; an object that crossed the line meanwhile is not counted.
"""

import argparse
import json
import sys

import supervision as sv

from y7edge import Detector, Tracker, Y7EdgeError, open_source


def main() -> None:
    """Print a line for each crossing, and the counts in the end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="runs/demo/parts.onnx", help="an exported model")
    parser.add_argument("--source", required=True, help="rtsp://..., a camera, a video")
    parser.add_argument("--line", type=float, default=0.5, help="its place, 0 (left) to 1 (right)")
    parser.add_argument("--conf", type=float, help="least confidence; default: the model's")
    parser.add_argument("--frames", type=int, default=0, help="stop after N frames; 0: never")
    args = parser.parse_args()

    zone, count = None, 0
    with Detector(args.model, conf=args.conf) as detector, open_source(args.source) as source:
        tracker = Tracker(rate=source.status.rate)
        try:
            for count, (frame, found) in enumerate(detector.stream(source), 1):
                if zone is None:  # a vertical line, of which the size of the image is needed
                    width, height = frame.size
                    x = args.line * width
                    ends = sv.Point(x, 0), sv.Point(x, height)
                    # A box that trembles on the line has crossed after 3 frames on a side.
                    zone = sv.LineZone(*ends, (sv.Position.CENTER,), minimum_crossing_threshold=3)
                tracked = tracker.update(found)
                rightward, leftward = zone.trigger(tracked.to_supervision())
                for row in tracked[rightward | leftward]:
                    print(f"frame {frame.sequence}: {row.class_name} #{row.tracker_id}", flush=True)
                if count == args.frames:
                    break
        except KeyboardInterrupt:
            print("stopped")
        reconnects, names = source.status.reconnects, detector.names
    sides = (zone.in_count_per_class, zone.out_count_per_class) if zone else ({}, {})
    right, left = ({names[kind]: number for kind, number in side.items()} for side in sides)
    print(json.dumps({"right": right, "left": left, "frames": count, "reconnects": reconnects}))


if __name__ == "__main__":
    try:
        main()
    except Y7EdgeError as error:
        sys.exit(f"error: {error}")
