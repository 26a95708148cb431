"""Detect objects in many images on a Ray cluster, with one Detector in each actor.

python examples/scale/ray_batch.py mine.onnx images/ found/ --workers 4   # Parquet files in found/
"""

import argparse
import os
import sys
from pathlib import Path

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # before the import: Ray sends no statistics
import pyarrow
import ray

from y7edge import DataError, Detector
from y7edge.adapters import rows
from y7edge.data.images import read_image
from y7edge.data.sample import IMAGE_SUFFIXES


class Detect:
    """Opens the artifact once in each actor, and converts batches of files to rows."""

    def __init__(self, model: str, device: str) -> None:
        self.detector = Detector(model, device=device, threads=1)

    def __call__(self, batch: dict[str, list]) -> pyarrow.Table:
        """Return the rows of the images; a file that cannot be decoded has a row with its error."""
        images, paths, found = [], [], []
        for content, path in zip(batch["bytes"], batch["path"], strict=True):
            try:
                images.append(read_image(path, content=content))  # BGR; upright, as EXIF says
                paths.append(path)
            except DataError as error:
                found.append(rows.error_row(path, str(error)))
        for detections in self.detector.batch(images, source=paths):
            found += rows.frame_rows(detections)
        return rows.arrow_table(found, every_frame=True)


parser = argparse.ArgumentParser()
parser.add_argument("model", type=Path, help="a path on every machine")
parser.add_argument("images", help="a folder, with its subfolders, or s3://...")
parser.add_argument("out", help="a new folder, or s3://...")
parser.add_argument("--workers", type=int, default=2, help="number of actors, with a CPU each")
parser.add_argument("--gpus", type=float, default=0, help="GPUs of each actor")
args = parser.parse_args()
if not args.model.exists():
    parser.error(f"there is no file {args.model}")
ray.init(include_dashboard=False)
model, n = (str(args.model.absolute()), "auto" if args.gpus else "cpu"), args.workers
actors = {"compute": ray.data.ActorPoolStrategy(size=n), "num_cpus": 1, "num_gpus": args.gpus}
# Reading and writing reserve no CPU, so that the actors may have all of them.
read = {"file_extensions": [s[1:] for s in IMAGE_SUFFIXES], "num_cpus": 0, "concurrency": n}
try:
    files = ray.data.read_binary_files(args.images, include_paths=True, **read)
    found = files.map_batches(Detect, batch_size=16, fn_constructor_args=model, **actors)
    found.write_parquet(args.out, mode="error", concurrency=n, ray_remote_args={"num_cpus": 0})
except (OSError, ValueError) as error:  # such as a folder that does not exist
    sys.exit(f"error: {error}")
