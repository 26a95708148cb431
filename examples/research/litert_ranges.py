"""Compare ranges of int8 artifacts for LiteRT: ours, and those of ai-edge-quantizer.

All files are written by ai-edge-quantizer, in integers from the input to the heads. The ranges are
our own (``mse``, ``percentile``, ``minmax``), or found by ai-edge-quantizer on the same images:
moving averages, which are its default, or the smallest and largest values.

    Y7EDGE_LITERT_PYTHON=ENV/bin/python python examples/research/litert_ranges.py MODEL --data D
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from y7edge import Detector
from y7edge.artifact.artifact import Artifact
from y7edge.data import dataset
from y7edge.evaluation.evaluate import evaluate
from y7edge.export import export
from y7edge.export.calibration import Calibration, choose_images
from y7edge.export.graph.quantize_ranges import METHODS
from y7edge.interpreters import find_interpreter
from y7edge.models.checkpoint import Checkpoint
from y7edge.nn.source import open_checkpoint
from y7edge.runtimes import registry, tflite

# Arguments: the float file, the images (uint8, NHWC), the result, and the kind of ranges.
PROGRAM = """
import sys
import numpy as np
from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer import calibrator, quantizer, recipe
from ai_edge_quantizer.recipe_manager import RecipeManager
from ai_edge_quantizer.utils.qsv_utils import min_max_update

source, images, out, kind = sys.argv[1:]
pixels = np.load(images, mmap_mode="r")
plan = RecipeManager()
plan.load_quantization_recipe(recipe.static_wi8_ai8())
interpreter = Interpreter(source)
(key,) = interpreter.get_signature_list()
update = {"qsv_update_func": min_max_update} if kind == "minmax" else {}
work = calibrator.Calibrator(open(source, "rb").read(), num_threads=1, **update)
feeds = [{"images": image[None].astype("f4") / np.float32(255)} for image in pixels]
work.calibrate({key: feeds}, plan)
found = work.get_model_qsvs()
limits = found[interpreter.get_input_details()[0]["name"]]
for name, value in (("min", 0), ("max", 1)):
    limits[name] = np.full_like(limits[name], value)
chosen = quantizer.Quantizer(source, recipe.static_wi8_ai8())
chosen.quantize(found, enable_progress_report=False).export_model(out, overwrite=True)
"""


def main() -> None:
    """Print the mAP of each artifact."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=256)
    options = parser.parse_args()
    checkpoint = open_checkpoint(options.checkpoint)
    images = choose_images(options.data, checkpoint.names, count=options.images)
    loaded = dataset.load(options.data)
    print("| ranges | mAP@0.5:0.95 |\n|---|---:|")
    with TemporaryDirectory() as name:
        for label, path in artifacts(checkpoint, images, Path(name)):
            with closing(Detector(path, threads=1)) as detector:
                found = evaluate(detector.detect_for_evaluation, loaded.split("val"), loaded.names)
            print(f"| {label} | {found.map50_95:.4f} |", flush=True)


def artifacts(
    checkpoint: Checkpoint, images: Calibration, folder: Path
) -> Iterator[tuple[str, Path]]:
    """Yield the name and the file of each artifact."""
    plain = export(checkpoint, folder / "fp32.tflite", target="litert")
    yield "fp32", plain.path
    integers = {"precision": "int8", "quantize_heads": True, "calib": images, "unverified": "test"}
    for method in METHODS:
        out = folder / f"{method}.tflite"
        made = export(checkpoint, out, target="litert", ranges=method, **integers)
        yield f"y7edge, {method}", made.path
    pixels = folder / "images.npy"
    image = replace(made.manifest.input, dtype="uint8", zero_point=0)
    np.save(pixels, np.concatenate(list(images.inputs(image))))
    python = find_interpreter("litert", "litert_torch", "see docs/int8-litert.md")
    for kind in ("average", "minmax"):
        out = folder / f"theirs-{kind}.tflite"
        command = [str(python), "-c", PROGRAM, str(plain.path), str(pixels), str(out), kind]
        subprocess.run(command, check=True, capture_output=True)
        yield f"ai-edge-quantizer, {kind}", described(out, made)


def described(path: Path, like: Artifact) -> Path:
    """Write a manifest beside a file: that of another artifact, with the scales of this file."""
    found = tflite.quantization(path)
    outputs = tuple(replace(o, **found[o.name]._asdict()) for o in like.manifest.outputs)
    digest = tflite.payload_digest([path])
    manifest = replace(like.manifest, outputs=outputs, payload_digest=digest, probes=())
    tflite.write_manifest(Artifact(path, manifest))
    return registry.load(path).path


if __name__ == "__main__":
    main()
