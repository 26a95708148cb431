"""Send an image to the model on the server, and print the detections.

pip install y7edge 'tritonclient[http]'
python client.py IMAGE [--url localhost:8000]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from y7edge.data.images import read_image
from y7edge.detect.postprocess import Criteria, Postprocessor
from y7edge.detect.preprocess import Preprocessor
from y7edge.runtimes.handover import model_file, read_manifest
from y7edge.runtimes.registry import load

HERE = Path(__file__).resolve().parent
TYPES = {"float32": "FP32", "uint8": "UINT8"}


def main() -> None:
    """Letterbox the image, run the model, decode its outputs."""
    import numpy as np
    from tritonclient.http import InferenceServerClient, InferInput

    parser = argparse.ArgumentParser(description="Send an image to the Triton Inference Server.")
    parser.add_argument("image", type=Path)
    parser.add_argument("--url", default="localhost:8000")
    asked = parser.parse_args()

    manifest = read_manifest(HERE)
    model = model_file(load(HERE)).parents[1].name
    preprocess = Preprocessor(manifest.input)
    geometry = preprocess(read_image(asked.image))
    batch = np.repeat(preprocess.tensor, manifest.input.images, axis=0)
    tensor = InferInput(manifest.input.name, list(batch.shape), TYPES[manifest.input.dtype])
    tensor.set_data_from_numpy(batch)
    result = InferenceServerClient(asked.url).infer(model, [tensor])
    outputs = [result.as_numpy(output.name) for output in manifest.outputs]

    first, thresholds = manifest.outputs[0], manifest.thresholds
    criteria = Criteria(conf=thresholds.conf, iou=thresholds.iou, max_det=thresholds.max_det)
    decode = Postprocessor(manifest.levels, manifest.nc, first.activation or "logit")
    found = (
        decode.heads(outputs, criteria)
        if first.role == "head"
        else decode.decoded(outputs[0], outputs[1], criteria)
    )[0]
    for xyxy, score, index in zip(
        geometry.to_source(found.xyxy), found.score, found.class_id, strict=True
    ):
        corners = " ".join(f"{value:.1f}" for value in xyxy)
        print(f"{manifest.names[index]} {score:.3f} {corners}")


if __name__ == "__main__":
    main()
