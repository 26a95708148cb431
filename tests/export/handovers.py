"""Build hand-over folders without the proof, which the contract tests of all targets cover."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnxruntime

from y7edge.artifact.artifact import Artifact
from y7edge.artifact.description import describe
from y7edge.artifact.manifest import Quantization
from y7edge.data.images import read_image
from y7edge.data.synthetic import scenes
from y7edge.detect.preprocess import Preprocessor
from y7edge.export.calibration import Calibration, choose_images
from y7edge.export.folding import fold_checkpoint
from y7edge.export.graph.build import build_graph
from y7edge.export.quantization import Quantizer
from y7edge.export.targets import registry as targets
from y7edge.export.targets.base import BuildRequest

SIZE = (96, 128)
COUNT = 3


def make_images(folder: Path) -> Calibration:
    """Write three scenes into a folder, and return a calibration with them."""
    folder.mkdir(parents=True)
    for seed in range(COUNT):
        cv2.imwrite(str(folder / f"{seed}.png"), scenes.scene(seed, (120, 160)).image)
    return choose_images(folder, ("any",))


def build(
    target: str,
    checkpoint,
    folder: Path,
    calibration: Calibration | None = None,
    *,
    options=None,
    imgsz=SIZE,
    profile: str | None = None,
    kept_heads: bool = False,
    rewrites=(),
    lines=None,
    **kinds,
) -> Artifact:
    """Build one folder; ``kinds``: outputs, input, batch, precision of the graph."""
    module, folded = targets.get(target), fold_checkpoint(checkpoint)
    kinds = {"outputs": module.OUTPUTS[0], "input": "float32", **kinds}
    manifest = describe(
        checkpoint, folded.spec, imgsz, batch=kinds.get("batch", 1) or "dynamic",
        outputs=kinds["outputs"], input=kinds["input"], precision=kinds.get("precision", "fp32"),
        target=target, opset=17, tools={"y7edge": "0"},
    )  # fmt: skip
    graph = build_graph(
        folded, height=imgsz[0], width=imgsz[1], rewrites=rewrites, **{"batch": 1, **kinds}
    )
    if profile is not None:
        quantizer = Quantizer(graph, calibration.inputs(manifest.input), profile)
        kept = quantizer.heads if kept_heads else ()
        graph = quantizer.quantized(kept)
        described = Quantization(
            profile, quantizer.method, calibration.digest, calibration.names, tuple(kept), 1.0
        )
        manifest = replace(manifest, precision="int8", quantization=described)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model = folder / "graph.onnx"
    model.write_bytes(graph.SerializeToString(deterministic=True))
    request = BuildRequest(
        model,
        folded,
        manifest,
        folder,
        f"robot{module.SUFFIX}",
        calibration if module.CALIBRATES else None,
        options=options or {},
        progress=(lines if lines is not None else []).append,
    )
    return module.build(request)


def run(model: Path, array: np.ndarray, *, optimize: bool = True) -> list[np.ndarray]:
    """Run an ONNX file on one input in ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: array})


def fed(calibration: Calibration, manifest, index: int = 0) -> np.ndarray:
    """The network's input for one calibration image."""
    preprocess = Preprocessor(manifest.input)
    preprocess(read_image(calibration.images[index]))
    return preprocess.tensor
