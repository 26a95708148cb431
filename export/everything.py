"""Export a checkpoint to all targets that can be built on this machine.

Unlike ``optimize``, which looks for the fastest artifact of this machine, this also makes files for
other devices, and says of each how far it was proved.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

from y7edge.artifact.artifact import Artifact
from y7edge.artifact.description import Size
from y7edge.artifact.reports import ParityReport
from y7edge.benchmark.measure import compare_files
from y7edge.errors import GateError, ParityError, Y7EdgeError
from y7edge.export.delivery import require_destination
from y7edge.export.pipeline import export
from y7edge.export.proof.accuracy import Baseline
from y7edge.export.proof.images import Images
from y7edge.export.targets import registry as targets
from y7edge.export.targets.base import Target, Unprovable, is_handover
from y7edge.models.checkpoint import Checkpoint
from y7edge.runtimes import registry
from y7edge.runtimes.base import is_simulated

_UNKNOWN = "no labelled data set was given"

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Made:
    """One kind of artifact: how far it was proved, or why it was not made.

    Attributes:
        target: Name of the target.
        precision: Precision of the artifact.
        state: "run": in its own engine on this machine. "emulated": in the vendor's emulator or
            simulator of the device. "handed over": the model in the folder was run on the CPU, and
            the vendor's converter was not. "not run": nothing here runs the file. "refused": its
            proof failed. "not made": ``problem`` says why.
        path: Main file or folder; None if it was not made.
        problem: Why it was not made or not run, in one line.
        megabytes: Size of all files.
        seconds: Time of export and proof, with the evaluation if there is an mAP.
        parity: The proof in a few words.
        where: Arithmetic, engine and device of the proof.
        map50_95: mAP@0.5:0.95 of the artifact on the data set; None if it was not measured.
        drop: How much lower that is than the checkpoint's.
        ms: Median time from image to boxes, in milliseconds, of artifacts with state "run".
    """

    target: str
    precision: str
    state: str = "not made"
    path: Path | None = None
    problem: str = ""
    megabytes: float | None = None
    seconds: float | None = None
    parity: str = ""
    where: str = ""
    map50_95: float | None = None
    drop: float | None = None
    ms: float | None = None


@dataclass(frozen=True)
class ExportPlan:
    """What ``export_all`` makes.

    Attributes:
        checkpoint: A checkpoint of any form.
        folder: Folder for the artifacts.
        stem: Common beginning of their names.
        imgsz: Input size; None: the size of the training.
        data: Data set for the mAP and for calibration images, or a ``Baseline``, for another split;
            None: int8 artifacts need ``calib``, and have no mAP.
        calib: Data set or folder with calibration images.
        calib_images: Number of calibration images; None: 256.
        images: Images for the proofs.
        only: Names of targets; None: all.
        threads: Threads of the measurement of latency.
        runs: Number of measured rounds.
    """

    checkpoint: Checkpoint
    folder: Path
    stem: str = "model"
    imgsz: Size | None = None
    data: Path | str | Baseline | None = None
    calib: Path | str | None = None
    calib_images: int | None = None
    images: Images | None = None
    only: Collection[str] | None = None
    threads: int | None = None
    runs: int = 30


def export_all(plan: ExportPlan, progress: Progress | None = None) -> tuple[Made, ...]:
    """Export, prove and measure one artifact for each target and precision.

    Each is made with the target's first outputs and default options. The mAP is measured for
    artifacts that run in their own engine, and for int8 models that are handed over; not in
    emulators, which take seconds for each image.

    Raises:
        ConfigError: a target does not exist, or a file in the folder does not belong to an artifact
            of the same name.
    """
    tell = progress or (lambda _: None)
    found: list[Made] = []
    kinds = [
        (targets.get(name), precision)
        for name in (targets.names() if plan.only is None else dict.fromkeys(plan.only))
        for precision in targets.get(name).PRECISIONS
    ]
    for target, precision in kinds:
        require_destination(_path(plan, target, precision), target.NAME, target)
    data = plan.data
    if isinstance(data, str | Path):  # the checkpoint is evaluated once for all
        data = Baseline(plan.checkpoint, data, progress=tell)
    for number, (target, precision) in enumerate(kinds, 1):
        tell(f"--- {number} of {len(kinds)}: {target.NAME} {precision}")
        one = _make(plan, data, target, precision, tell)
        if one.problem:
            tell(f"{one.state}: {one.problem}")
        found.append(one)
    return _measured(plan, found, tell)


def require_none_refused(found: Collection[Made]) -> None:
    """Raise GateError if the proof of an artifact failed."""
    refused = [f"{one.target} {one.precision}" for one in found if one.state == "refused"]
    if refused:
        raise GateError(f"the proof failed for {', '.join(refused)}: see the table")


def _path(plan: ExportPlan, target: Target, precision: str) -> Path:
    # Side files of two targets may have the same suffix; that of a hand-over contains its target.
    kind = precision if is_handover(target) else f"{target.NAME}-{precision}"
    return plan.folder / f"{plan.stem}-{kind}{target.SUFFIX}"


def _make(
    plan: ExportPlan, data: Baseline | None, target: Target, precision: str, tell: Progress
) -> Made:
    """Export one kind of artifact with its proof."""
    made, int8 = Made(target.NAME, precision), precision == "int8"
    emulated = isinstance(target.RUNTIME, str) and is_simulated(registry.get(target.RUNTIME))
    calibrates = int8 or target.CALIBRATES
    source = plan.calib or (data.data if data else None)
    if calibrates and source is None:
        return replace(made, problem="calibration images are missing: give --data or --calib")
    evaluated = unverified = None
    if isinstance(target.RUNTIME, Unprovable):
        unverified = target.RUNTIME.reason
    elif not emulated and (int8 or not is_handover(target)):
        evaluated = data
        unverified = _UNKNOWN if int8 and evaluated is None else None
    elif int8:
        unverified = "not evaluated in an emulator"
    begun = time.perf_counter()
    try:
        artifact = export(
            plan.checkpoint,
            _path(plan, target, precision),
            target=target.NAME,
            precision=precision,
            imgsz=plan.imgsz,
            images=plan.images,
            data=evaluated,
            calib=source if calibrates else None,
            calib_images=plan.calib_images if calibrates else None,
            unverified=unverified,
            progress=tell,
        )
    except ParityError as error:
        return replace(made, state="refused", problem=str(error))
    except Y7EdgeError as error:  # the others are made all the same
        return replace(made, problem=str(error))
    return replace(
        _described(made, artifact, target, emulated=emulated),
        seconds=round(time.perf_counter() - begun, 1),
    )


def _described(made: Made, artifact: Artifact, target: Target, *, emulated: bool) -> Made:
    """Add what is known of an artifact."""
    report = ParityReport.from_dict(artifact.manifest.parity)
    accuracy = report.accuracy
    state = "emulated" if emulated else "handed over" if is_handover(target) else "run"
    if isinstance(target.RUNTIME, Unprovable):
        state = "not run"
    return replace(
        made,
        state=state,
        path=artifact.path,
        megabytes=round(artifact.size / 1e6, 1),
        problem=target.RUNTIME.reason if isinstance(target.RUNTIME, Unprovable) else "",
        parity=_parity(report),
        where=report.measured.arithmetic if report.measured else "",
        map50_95=accuracy.artifact if accuracy else None,
        drop=accuracy.drop if accuracy else None,
    )


def _parity(report: ParityReport) -> str:
    """Describe a proof: the largest deviation of an output in fp32, else the least cosine."""
    if report.measured is None:
        return report.status
    outputs = report.measured.outputs.values()
    limits, iou = report.measured.tolerance, report.measured.candidates.iou
    overlap = "" if iou is None else f", IoU {iou:.4f}"
    if limits.deviation is not None:
        worst = max((one.deviation for one in outputs if one.deviation is not None), default=None)
        return report.status if worst is None else f"deviation {worst:.1e}{overlap}"
    least = min((one.cosine for one in outputs if one.cosine is not None), default=None)
    return report.status if least is None else f"cosine {least:.4f}{overlap}"


def _measured(plan: ExportPlan, found: list[Made], tell: Progress) -> tuple[Made, ...]:
    """Measure the latency of the artifacts that run in their own engine, in turns."""
    paths = [one.path for one in found if one.state == "run" and one.path is not None]
    if not paths:
        return tuple(found)
    tell("measure the latency of the artifacts that run here, in turns")
    try:
        reports = compare_files(paths, threads=plan.threads, runs=plan.runs)
    except Y7EdgeError as error:
        tell(f"the latency was not measured: {error}")
        return tuple(found)
    times: dict[Path | None, float] = {
        path: round(report.end_to_end_ms["p50"], 2)
        for path, report in zip(paths, reports, strict=True)
    }
    return tuple(replace(one, ms=times.get(one.path)) for one in found)
