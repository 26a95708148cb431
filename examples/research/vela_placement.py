"""Compile models for several Arm Ethos-U NPUs, and print where their operators run, as a table.

    export Y7EDGE_LITERT_PYTHON=ENV/bin/python Y7EDGE_ETHOSU_PYTHON=VELA/bin/python
    python examples/research/vela_placement.py yolov7-tiny yolov7 --imgsz 320
    python examples/research/vela_placement.py yolov7-w6 yolov7-e6e --imgsz 128 --width 0.125

Random weights are enough for the placement and the memory; compressed weights of a trained model
are smaller. ``--width`` is a factor on the channels of variants, for a fast look at the operators
of large ones. Cycles are those of Vela's performance model, not measured. The ranges come from
synthetic scenes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2

from y7edge.data.synthetic import scenes
from y7edge.export import export
from y7edge.export.targets import ethosu
from y7edge.interpreters import find_interpreter
from y7edge.models.checkpoint import Checkpoint
from y7edge.models.scaling import scale
from y7edge.nn.random_weights import random_weights
from y7edge.nn.source import open_checkpoint

ACCELERATORS = ("ethos-u55-128", "ethos-u55-256", "ethos-u65-256", "ethos-u65-512", "ethos-u85-512")


def main() -> None:
    """Print one row for each model and accelerator."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--accelerator", nargs="+", default=ACCELERATORS)
    parser.add_argument("--width", type=float)
    options = parser.parse_args()
    python = find_interpreter(ethosu.NAME, "ethosu", "pip install ethos-u-vela==5.2.0")
    print("| model | NPU | operators on NPU, CPU | memory | estimated cycles, ms at clock |")
    print("|---|---|---:|---|---:|", flush=True)
    for model in options.models:
        with TemporaryDirectory() as name:
            checkpoint = open_checkpoint(model)
            if options.width:
                checkpoint = random_weights(scale(checkpoint.spec, width=options.width), seed=0)
            source = _integers(checkpoint, options.imgsz, Path(name))
            for accelerator in options.accelerator:
                setup = ethosu.setup_of({"accelerator": accelerator})
                found = ethosu.compile_model(python, source, Path(name) / "made.tflite", setup)
                print(_row(model, accelerator, found), flush=True)


def _integers(checkpoint: Checkpoint, imgsz: int, folder: Path) -> Path:
    """Export a model in integers; return the .tflite file."""
    images = folder / "images"
    images.mkdir()
    for seed in range(4):
        cv2.imwrite(str(images / f"{seed}.png"), scenes.scene(seed, (imgsz, imgsz)).image)
    out = folder / f"model{ethosu.SUFFIX}"
    made = export(
        checkpoint,
        out,
        target=ethosu.NAME,
        imgsz=imgsz,
        calib=images,
        ranges="minmax",
        options={"cpu": "allow"},
        unverified="only the placement is wanted",
    )
    return made.path / ethosu.MODEL


def _row(model: str, accelerator: str, found: ethosu.Placement) -> str:
    cells = (model, accelerator, f"{found.npu}, {len(found.cpu)}", found.used(), found.estimate())
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
