"""Train, fold, export, prove, benchmark and detect on synthetic images.

    make demo            # or: python examples/demo/demo.py

Generates images of small parts on a tray, trains a narrow YOLOv7-tiny on them, folds it, exports
ONNX files with proofs, measures the latency, and evaluates one file on images from other seeds. All
results are written to ``runs/demo``; ``report.html`` shows them. The exit code is 4 if a result
misses its limit. Takes about eight minutes on two cores, mostly for training.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from demo_checks import detect_without_torch, shuffle_head
from demo_report import Drawn, Findings, FoldProof, Step, write
from numpy.typing import NDArray

from y7edge import Detector, draw
from y7edge.artifact.artifact import Artifact
from y7edge.artifact.manifest import InputInfo
from y7edge.benchmark.measure import Report, benchmark
from y7edge.data.dataset import Dataset, load
from y7edge.data.images import read_image
from y7edge.data.sample import Sample
from y7edge.data.synthetic.scenes import generate, scene
from y7edge.detect.detections import Detections
from y7edge.detect.preprocess import Preprocessor
from y7edge.detect.selftest import selftest
from y7edge.errors import DigestError, GateError, Y7EdgeError
from y7edge.evaluation.evaluate import Metrics, evaluate
from y7edge.evaluation.predictions import labels
from y7edge.export import export, verify
from y7edge.export.folding import deviation, fold_checkpoint, inventory
from y7edge.files import atomic_write
from y7edge.models import shapes, weights
from y7edge.models.checkpoint import Checkpoint
from y7edge.train.output.results import read_csv
from y7edge.train.run.loop import TrainResult, train
from y7edge.train.run.progress import describe, for_terminal
from y7edge.train.settings.config import TINY, TrainConfig

FOLDER = Path("runs/demo")
TRAIN, VAL, EVALUATED, FRESH = 800, 80, 150, 6  # numbers of images
SEED, OTHER_SEED, FRESH_SEED = 0, 1, 2  # of images for training, evaluation and detection
FRESH_SIZE = (640, 640)

Image = NDArray[np.uint8]
Say = Callable[[str], None]


def training(data: Path, out: Path) -> TrainConfig:
    """Return the settings of the training, with comments on changes to the published recipe."""
    # No mosaic: in a mosaic of trays at 160 px, parts would have only a few pixels.
    augmentation = replace(TINY.augmentation, mosaic=0.0, scale=0.3, flipud=0.5)
    recipe = replace(
        TINY,
        augmentation=augmentation,
        lr0=0.02,
        # The published recipe averages over more steps than the 3000 of this run.
        ema_decay=0.99,
        ema_tau=100.0,
        # The published gains are for 80 classes at 640 px. They are scaled down for fewer classes
        # (cls) and smaller images (obj), which would leave too little weight here. Long, slanted
        # parts need a larger box gain.
        box=0.15,
        obj=4.0,
        cls=4.0,
    )
    return TrainConfig(
        data=data,
        out=out,
        model="yolov7-tiny",
        width=0.5,
        imgsz=160,
        epochs=30,
        batch=8,
        nominal_batch=8,  # a short run needs many small steps
        val_every=5,
        seed=SEED,
        recipe=recipe,
        licence="Apache-2.0",
    )


class Journal:
    """Print the results and the duration of each step, and store them for the report."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    @contextmanager
    def step(self, title: str) -> Iterator[Say]:
        """Measure the duration of a step; yield a function that prints and stores a line."""
        lines: list[str] = []

        def say(line: str) -> None:
            lines.append(line)
            print(f"   {line}", flush=True)

        print(f"\n{len(self.steps) + 1}. {title}", flush=True)
        start = time.perf_counter()
        yield say
        seconds = time.perf_counter() - start
        self.steps.append(Step(title, tuple(lines), seconds))
        print(f"   ({seconds:.1f} s)", flush=True)


@dataclass(frozen=True)
class Evaluation:
    """Results on the evaluation images.

    Attributes:
        artifact: Metrics of the artifact.
        checkpoint: Metrics of the checkpoint that was exported.
        shuffled: Metrics of a copy of the artifact whose head has shuffled weights.
        moved: Number of weights that differ in the copy.
        refusal: Message of the self-test for the copy.
    """

    artifact: Metrics
    checkpoint: Metrics
    shuffled: Metrics
    moved: int
    refusal: str


def main(argv: Sequence[str] = ()) -> int:
    """Run the demo; return the exit code."""
    about = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=about).parse_args(argv)
    try:
        run(FOLDER)
    except Y7EdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def run(folder: Path) -> None:
    """Run all steps of the demo, and write the report.

    Raises:
        GateError: a result misses its limit. The report is written nevertheless.
        ParityError: an export could not be proved.
    """
    journal = Journal()
    with journal.step("Make images") as say:
        data, others = make_data(folder, say)
    with journal.step("Train") as say:
        config = training(data.source, folder / "train")
        result = train(config, progress=for_terminal())
        checkpoint = weights.load(result.best)
        say(_trained(checkpoint, result))
    with journal.step("Fold") as say:
        fold = prove_fold(checkpoint, others.split("val"), say)
    with journal.step("Export and prove") as say:
        artifacts = make_artifacts(checkpoint, folder, say)
    artifact = artifacts[0].path
    with journal.step("Repeat the proof") as say:
        repeat_proof(artifact, checkpoint, say)
    with journal.step("Measure the speed") as say:
        speed = measure(artifact, say)
    with journal.step("Evaluate on images from other seeds") as say:
        evaluation = compare(artifact, result.best, others, say)
    with journal.step("Detect in fresh images") as say:
        fresh, without_torch = detect_fresh(artifact, folder, say)
    drawn = show(artifact, _shuffled(artifact), others, fresh)
    findings = Findings(
        config=config,
        counts={"train": TRAIN, "val": VAL, "evaluation": EVALUATED},
        epochs=read_csv(folder / "train" / "results.csv"),
        best=result.metrics,
        parameters=shapes.parameters(checkpoint.spec),
        gflops=shapes.gflops(checkpoint.spec, config.imgsz, config.imgsz),
        fold=fold,
        artifacts=artifacts,
        benchmark=speed,
        metrics=evaluation.artifact,
        checkpoint_metrics=evaluation.checkpoint,
        shuffled_metrics=evaluation.shuffled,
        moved=evaluation.moved,
        refusal=evaluation.refusal,
        without_torch=without_torch,
        drawn=drawn,
        steps=journal.steps,
    )
    finish(findings, folder)


def make_data(folder: Path, say: Say) -> tuple[Dataset, Dataset]:
    """Generate the images for training and validation, and other images for evaluation."""
    for name in ("data", "judged", "train", "fresh", "found"):
        shutil.rmtree(folder / name, ignore_errors=True)
    data = load(generate(folder / "data", TRAIN, VAL, seed=SEED))
    others = load(generate(folder / "judged", 0, EVALUATED, seed=OTHER_SEED), ["val"])
    say(f"{TRAIN} images for training and {VAL} to select the best epoch: {data.source}")
    say(f"{EVALUATED} images from other seeds for evaluation: {others.source}")
    return data, others


def _trained(checkpoint: Checkpoint, result: TrainResult) -> str:
    return (
        f"{shapes.parameters(checkpoint.spec):,} parameters, {result.epochs} epochs of "
        f"{result.seconds_per_epoch:.1f} s; best on the validation split: "
        f"{describe(result.metrics)}"
    )


def prove_fold(checkpoint: Checkpoint, samples: Sequence[Sample], say: Say) -> FoldProof:
    """Fold a checkpoint; compare it with its folded form on four of the images ``samples``."""
    before, after = inventory(checkpoint), inventory(fold_checkpoint(checkpoint))
    side = checkpoint.meta["imgsz"]
    preprocess = Preprocessor(InputInfo("images", 1, side, side))
    images = np.empty((4, 3, side, side), np.float32)
    for index, sample in enumerate(samples[: len(images)]):
        preprocess(read_image(sample.path), out=images[index])
    single = deviation(checkpoint, images, by_layer=True)
    double = deviation(checkpoint, images, double=True)
    removed = ("batch_norms", "parallel_branches", "implicit", "auxiliary")
    say(", ".join(f"{name} {before[name]} -> {after[name]}" for name in ("convolutions", *removed)))
    say(f"largest deviation {single.deviation:.1e} in float32, {double.deviation:.1e} in float64")
    left = [name for name in removed if after[name]]
    if left:
        raise GateError(f"the fold left {', '.join(left)}: expected plain convolutions only")
    return FoldProof(before, after, single, double)


def make_artifacts(checkpoint: Checkpoint, folder: Path, say: Say) -> list[Artifact]:
    """Export the artifact for the following steps, and two artifacts with other options."""
    artifacts = [
        export(checkpoint, folder / "parts.onnx"),
        export(checkpoint, folder / "parts-decoded.onnx", outputs="decoded", dynamic=True),
        export(checkpoint, folder / "parts-fp16.onnx", precision="fp16"),
    ]
    for artifact in artifacts:
        proof, size = artifact.manifest.parity, artifact.path.stat().st_size / 1e6
        worst = max(output["deviation"] for output in proof["outputs"].values())
        say(
            f"{artifact.path}, {size:.2f} MB: {proof['status']}, deviation {worst:.1e}, candidates "
            f"IoU {proof['candidates']['iou']:.5f}, Δscore "
            f"{proof['candidates']['score_difference']:.1e}"
        )
    return artifacts


def repeat_proof(artifact: Path, checkpoint: Checkpoint, say: Say) -> None:
    """Repeat the proof with the checkpoint, and then without it, as on a robot."""
    say(f"verify, with the checkpoint: {verify(artifact, checkpoint).status}")
    report = selftest(artifact)
    worst = max(probe.deviation for probe in report.probes)
    say(f"selftest, without checkpoint and torch: {report.status}, deviation {worst:.1e}")


def measure(artifact: Path, say: Say) -> Report:
    """Measure the latency on one thread, and the cost of pre- and postprocessing."""
    with Detector(artifact, threads=1) as detector:
        report = benchmark(detector, str(artifact), threads=1, gate=True)
    model, whole = report.model_ms, report.end_to_end_ms
    say(
        f"on one thread: network {model['p50']:.2f} ms, end to end {whole['p50']:.2f} ms (medians; "
        f"95 % of the calls within {whole['p95']:.2f} ms), on {report.device}, {report.machine}"
    )
    if report.gate is not None:
        costs = (f"{key} {getattr(report.gate, key):.2f}" for key in report.gate.budget)
        say(f"code around the engine, in units of one cv2.resize: {', '.join(costs)}")
    return report


def compare(artifact: Path, checkpoint: Path, others: Dataset, say: Say) -> Evaluation:
    """Evaluate the artifact, the checkpoint, and a copy of the artifact with a shuffled head."""
    shuffled = _shuffled(artifact)
    moved = shuffle_head(artifact, shuffled)

    def score(path: Path, name: str) -> Metrics:
        with Detector(path) as detector:
            predict = detector.detect_for_evaluation
            metrics = evaluate(predict, others.split("val"), others.names)
        say(f"{name}: mAP@0.5 {metrics.map50:.4f}, mAP@0.5:0.95 {metrics.map50_95:.4f}")
        return metrics

    found = score(artifact, "ONNX file")
    before = score(checkpoint, "checkpoint")
    broken = score(shuffled, "ONNX file with a shuffled head")
    try:
        selftest(shuffled)
    except DigestError as error:
        return Evaluation(found, before, broken, moved, refusal=str(error))
    raise GateError(f"{shuffled}: expected the self-test to refuse it, but it passed")


def _shuffled(artifact: Path) -> Path:
    return artifact.with_name(f"{artifact.stem}-shuffled.onnx")


def detect_fresh(artifact: Path, folder: Path, say: Say) -> tuple[list[Image], int]:
    """Generate new images; detect parts in them, also in a process without torch.

    Returns:
        The images with boxes, and the number of detected parts.

    Raises:
        GateError: the detections of the two processes differ.
    """
    paths = []
    for number in range(FRESH):
        path = folder / "fresh" / f"{number}.jpg"
        with atomic_write(path) as temporary:
            temporary.write_bytes(_jpeg(scene((FRESH_SEED, number), FRESH_SIZE).image))
        paths.append(path)
    with Detector(artifact) as detector:
        found = [detector(read_image(path)) for path in paths]
    elsewhere = detect_without_torch(artifact, paths)
    if elsewhere != [detections.to_dict()["detections"] for detections in found]:
        raise GateError(f"{artifact}: detections differ in a process without torch and onnx")
    drawn = []
    for path, detections in zip(paths, found, strict=True):
        drawn.append(draw(read_image(path), detections))
        with atomic_write(folder / "found" / path.name) as temporary:
            temporary.write_bytes(_jpeg(drawn[-1]))
    count = sum(map(len, found))
    say(f"{count} parts in {FRESH} images, also where torch and onnx cannot be imported")
    say(f"images with boxes: {folder / 'found'}")
    return drawn, count


def show(artifact: Path, shuffled: Path, others: Dataset, fresh: Sequence[Image]) -> Drawn:
    """Draw boxes on the report's images: on six evaluation images; ``fresh`` has boxes already."""
    samples = others.split("val")
    beside, apart = [], []
    with Detector(artifact) as detector, Detector(shuffled) as broken:
        for index in np.linspace(0, len(samples) - 1, 6).round().astype(int):
            image = read_image(samples[index].path)
            truth = _large(image, labels(samples[index], image, others.names))
            found = _large(image, detector(image))
            beside.append((truth, found))
            apart.append((found, _large(image, broken(image))))
    return Drawn([_jpeg(image) for image in fresh], beside, apart[:4])


def _large(image: Image, detections: Detections) -> bytes:
    """Enlarge an image by 2, so that labels are legible, and draw its boxes; return a JPEG."""
    twice = replace(
        detections,
        xyxy=detections.xyxy * 2,
        image_wh=(2 * detections.image_wh[0], 2 * detections.image_wh[1]),
    )
    enlarged = cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    return _jpeg(draw(np.asarray(enlarged, np.uint8), twice))


def _jpeg(image: Image, quality: int = 85) -> bytes:
    return bytes(cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, quality))[1].tobytes())


def finish(findings: Findings, folder: Path) -> None:
    """Write the report and the README's image; raise GateError if a result misses its limit."""
    with atomic_write(folder / "report.html") as temporary:
        write(findings, temporary)
    first = [read_image(folder / "found" / f"{number}.jpg") for number in range(3)]
    strip = cv2.resize(np.hstack(first), (1350, 450), interpolation=cv2.INTER_AREA)
    with atomic_write(folder / "demo.jpg") as temporary:
        temporary.write_bytes(_jpeg(np.asarray(strip, np.uint8)))
    total = sum(step.seconds for step in findings.steps)
    print(f"\nreport: {folder / 'report.html'}; {total:.0f} s in total")
    if problems := findings.beyond():
        raise GateError("; ".join(problems))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
