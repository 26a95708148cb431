"""Check the demo's artifact with a shuffled head, and in a process without torch.

With shuffled weights in the head, the model must not detect parts, and the self-test must refuse
the file. Detection must work in a process that cannot import torch.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from y7edge.errors import ArtifactError, GateError
from y7edge.files import atomic_write

# An entry of None in sys.modules makes the import fail.
_CHILD = """
import json, sys
sys.modules.update(dict.fromkeys(("torch", "onnx", "onnxsim", "safetensors")))
import cv2
from y7edge import Detector
with Detector(sys.argv[1]) as detector:
    for path in sys.argv[2:]:
        print(json.dumps(detector(cv2.imread(path)).to_dict()["detections"]))
"""


def shuffle_head(artifact: Path, out: Path, seed: int = 0) -> int:
    """Write a copy of an ONNX artifact with the weights of each head convolution shuffled.

    Args:
        artifact: an artifact with outputs ``heads``.
        out: the file to write.
        seed: seed of the permutation.

    Returns:
        Number of weights that changed.

    Raises:
        ArtifactError: an output does not come from a convolution with stored weights.
    """
    model = onnx.load(str(artifact))
    rng = np.random.default_rng(seed)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    made_by = {name: node for node in model.graph.node for name in node.output}
    moved = 0
    for output in model.graph.output:
        node = made_by.get(output.name)
        if node is None or node.op_type != "Conv" or node.input[1] not in stored:
            raise ArtifactError(
                f"{artifact}: output {output.name} does not come from a convolution with stored "
                "weights; export it with outputs heads"
            )
        tensor = stored[node.input[1]]
        weights = onnx.numpy_helper.to_array(tensor)
        shuffled = rng.permutation(weights.ravel()).reshape(weights.shape)
        moved += int((shuffled != weights).sum())
        tensor.CopyFrom(onnx.numpy_helper.from_array(shuffled, tensor.name))
    with atomic_write(out) as temporary:
        temporary.write_bytes(model.SerializeToString())
    return moved


def detect_without_torch(artifact: Path, images: Sequence[Path]) -> list[list[dict[str, Any]]]:
    """Detect objects in images, in a process that can import neither torch nor onnx.

    Returns the detections of each image, as in ``Detections.to_dict``.

    Raises:
        GateError: the process failed; the message ends with its last line of output.
    """
    command = [sys.executable, "-c", _CHILD, str(artifact), *map(str, images)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise GateError(f"{artifact}: expected detection without torch and onnx, found: {last}")
    return [json.loads(line) for line in done.stdout.splitlines()]
