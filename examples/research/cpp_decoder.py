"""Time the decoder of examples/cpp beside numpy's post-processing, on the heads of one artifact.

    python examples/research/cpp_decoder.py model.onnx IMAGES_FOLDER --images 20

Both get the same heads, and both decode, apply NMS, and map boxes to the image. The boxes must be
equal within rounding. One line of JSON per threshold has the median times in microseconds. g++ is
needed.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import time
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from y7edge.artifact.c_header import c_header
from y7edge.artifact.manifest import Manifest
from y7edge.data.images import read_image
from y7edge.detect.postprocess import Criteria, Postprocessor
from y7edge.detect.preprocess import Geometry, Preprocessor
from y7edge.runtimes import registry

CPP = Path(__file__).parents[1] / "cpp"
FLAGS = ("-std=c++11", "-O3", "-ffp-contract=off")
CONFIDENCES = (0.25, 0.001)


def outputs_of(path: Path, images: list[Path]) -> list[tuple[Geometry, list[NDArray[Any]]]]:
    """Return the letterbox and the heads of each image."""
    artifact, found = registry.load(path), []
    image = artifact.manifest.input
    place = Preprocessor(image)
    with closing(registry.open_session(artifact)) as session:
        for file in images:
            geometry = place(read_image(file))
            result = session.infer({image.name: place.tensor})
            found.append((geometry, [result[o.name].copy() for o in artifact.manifest.outputs]))
    return found


def in_numpy(
    decoder: Postprocessor, heads: list[NDArray[Any]], geometry: Geometry, criteria: Criteria
) -> tuple[NDArray[np.float64], float]:
    """Return rows x0, y0, x1, y1, score, class of the boxes, and the median time."""
    times = []
    for _ in range(50):
        started = time.perf_counter()
        (boxes,) = decoder.heads(heads, criteria)
        corners = geometry.to_source(boxes.xyxy)
        kept = (corners[:, 2:] > corners[:, :2]).all(axis=1)
        times.append(1e6 * (time.perf_counter() - started))
    rows = np.column_stack([corners, boxes.score, boxes.class_id])[kept]
    return rows.astype(np.float64), statistics.median(times)


def in_cpp(
    program: Path, heads: list[NDArray[Any]], geometry: Geometry, criteria: Criteria
) -> tuple[NDArray[np.float64], float]:
    """Return the same of the program."""
    files = [program.with_name(f"head{index}.bin") for index in range(len(heads))]
    for file, head in zip(files, heads, strict=True):
        head.tofile(file)
    height, width = geometry.image_hw
    options = {"--image": f"{width}x{height}", "--conf": criteria.conf, "--iou": criteria.iou}
    words = [str(word) for pair in {**options, "--bench": 50}.items() for word in pair]
    done = subprocess.run([program, *words, *files], capture_output=True, text=True, check=True)
    rows = [
        (*box["xyxy"], box["confidence"], box["class_id"])
        for box in json.loads(done.stdout)["detections"]
    ]
    (found,) = re.findall(r"([0-9.]+) us", done.stderr)
    return np.array(rows, np.float64).reshape(-1, 6), float(found)


def compile_program(manifest: Manifest, folder: Path) -> Path:
    """Compile the example for a model."""
    (folder / "model.h").write_text(c_header(manifest), "ascii")
    program = folder / "decode"
    include = (f"-I{folder}", f"-I{CPP}")
    subprocess.run(
        ["g++", *FLAGS, *include, str(CPP / "decode.cpp"), "-o", str(program)], check=True
    )
    return program


def measure(path: Path, images: list[Path], folder: Path, confidence: float) -> dict[str, Any]:
    """Return the record of one threshold."""
    manifest = registry.load(path).manifest
    heads = manifest.outputs
    quantization = [None if h.scale is None else (h.scale, h.zero_point or 0) for h in heads]
    first = heads[0]
    decoder = Postprocessor(
        manifest.levels, manifest.nc, first.activation or "logit", quantization, first.layout
    )
    program = compile_program(manifest, folder)
    criteria = Criteria(conf=confidence, iou=0.45, max_det=manifest.thresholds.max_det)
    numpy, cpp, count, worst = [], [], 0, 0.0
    for geometry, outputs in outputs_of(path, images):
        expected, took = in_numpy(decoder, outputs, geometry, criteria)
        numpy.append(took)
        found, took = in_cpp(program, outputs, geometry, criteria)
        cpp.append(took)
        if found.shape != expected.shape:
            raise SystemExit(f"numpy has {len(expected)} boxes, C++ has {len(found)}")
        # Boxes of nearly equal scores may have another order.
        apart = np.abs(found[:, None] - expected).max(axis=2)
        worst = max(worst, float(apart.min(axis=1, initial=np.inf).max(initial=0)))
        count += len(expected)
    return {
        "model": manifest.model,
        "input": [manifest.input.height, manifest.input.width],
        "conf": confidence,
        "images": len(images),
        "boxes": count,
        "largest_difference_pixels": worst,
        "numpy_us": round(statistics.median(numpy), 1),
        "cpp_us": round(statistics.median(cpp), 1),
    }


def main() -> None:
    """Print one line for each threshold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=20)
    given = parser.parse_args()
    cv2.setNumThreads(1)
    images = sorted(p for p in given.folder.rglob("*") if p.suffix.lower() in (".jpg", ".png"))
    images = images[: given.images]
    if not images:
        raise SystemExit(f"{given.folder} has no .jpg or .png images")
    for confidence in CONFIDENCES:
        with TemporaryDirectory() as folder:
            print(json.dumps(measure(given.artifact, images, Path(folder), confidence)))


if __name__ == "__main__":
    main()
