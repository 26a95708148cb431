"""Convert a proved ONNX artifact to another target. Needs neither torch nor onnx.

The new artifact is proved with the probes of the ONNX artifact: generated inputs, for which the
ONNX artifact stores samples of the original model's outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import gettempdir
from typing import cast

import numpy as np

from y7edge import __version__
from y7edge.artifact.artifact import Artifact
from y7edge.artifact.description import kind_of_outputs
from y7edge.artifact.manifest import Precision
from y7edge.artifact.reports import (
    CandidateDifference,
    ImageSource,
    Measured,
    ParityReport,
    Peak,
    TensorDifference,
    Tolerance,
)
from y7edge.artifact.schema import checked
from y7edge.detect.selftest import load_undamaged, run_probe
from y7edge.errors import ConfigError
from y7edge.export.delivery import deliver, require_destination, seal
from y7edge.export.graph.rewrites import lacking
from y7edge.export.proof import parity
from y7edge.export.proof.accuracy import Baseline, MapGate, gated, limit_of
from y7edge.export.proof.probes import adapted_probes, own_probes
from y7edge.export.proof.verify import require_rules
from y7edge.export.targets import registry as targets
from y7edge.export.targets.base import (
    BuildRequest,
    Target,
    Unprovable,
    require_device,
    require_fit,
    require_offered,
)
from y7edge.files import temporary_folder, writing
from y7edge.runtimes import registry
from y7edge.runtimes.base import SessionOptions, missing, require

_SOURCE = "onnx"


@checked
def build(
    source: Path | str,
    out: Path | str,
    *,
    target: str,
    precision: str | None = None,
    device: str = "auto",
    options: Mapping[str, str] | None = None,
    data: Path | str | Baseline | None = None,
    max_map_drop: float | None = None,
    unverified: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> Artifact:
    """Convert a proved ONNX artifact to another target, and prove the result with the probes.

    Args:
        source: the ONNX artifact.
        out: path of the new artifact's main file. It is written only if the proof passes.
        target: a name from ``y7edge.export.targets.registry.names()``.
        precision: a precision that the target supports; None: that of ``source``.
        device: the device that the artifact is built for and proved on.
        options: options of the target, by name.
        data: a data set. After the proof, the ONNX artifact and the new one are evaluated on its
            split "val". Or a ``Baseline`` of the ONNX artifact. Required in int8: what the ONNX
            artifact lost before is added to the drop of its mAP.
        max_map_drop: largest accepted drop of the mAP@0.5:0.95; None: 0.005 in int8, and only
            measure it in other precisions.
        unverified: why an int8 artifact is not evaluated; only without ``data``.
        progress: called with one line for each step.

    Raises:
        ConfigError: this artifact cannot be converted to this target.
        DigestError: the ONNX artifact was changed after it was proved.
        RuntimeMissing: a package is not installed.
        DataError: the data set cannot be used.
        ParityError: an output deviates by more than the tolerance, or the mAP drops by more than
            ``max_map_drop``; the error's ``report`` has the numbers.
        ExportError: any other failure.
    """
    destination, chosen = Path(out), targets.get(target)
    tell = progress or (lambda _: None)
    proved = load_undamaged(source)
    precision = precision or proved.manifest.precision
    _check(proved, chosen, precision, options or {}, unverified is not None)
    earlier = _earlier(proved, precision, data is not None, unverified)
    registry.check_payload(proved)
    _require(chosen, destination, device)
    draft = replace(
        proved.manifest,
        target=target,
        precision=cast(Precision, precision),
        tools={**proved.manifest.tools, "y7edge": __version__, **chosen.versions()},
        parity={},
    )
    require_fit(chosen, draft, options or {})
    _require_rules(proved, tell)
    gate = MapGate.create(proved, data, limit_of(precision, max_map_drop, data), tell)
    gate = gate and replace(gate, earlier=earlier)
    with writing("temporary files", gettempdir()), temporary_folder() as folder:
        for name in lacking(proved.manifest.tools, chosen.REWRITES):
            tell(f"the graph lacks the rewrite {name}; `y7edge export` uses it if it applies")
        tell(f"build the {target} artifact")
        request = BuildRequest(
            model=proved.path,
            checkpoint=None,
            manifest=draft,
            folder=folder,
            name=destination.name,
            device=device,
            options=options or {},
            progress=tell,
        )
        made, report = _proved(request, chosen, proved, destination, gate)
        if unverified is not None:
            report = replace(report, status="unverified", reason=unverified)
        manifest = replace(made.manifest, parity=report.to_dict())
        made = deliver(replace(made, manifest=manifest), chosen, destination)
    tell(f"{'proved' if unverified is None else 'not proved'}; written to {destination}")
    return made


def _require(target: Target, destination: Path, device: str) -> None:
    """Check that the destination can be written, and that device and packages are known."""
    require_destination(destination, target.NAME, target)
    require_device(target, device)
    require(target.NEEDS, f"target {target.NAME}", getattr(target, "misplaced", None))


def _proved(
    request: BuildRequest,
    target: Target,
    source: Artifact,
    destination: Path,
    gate: MapGate | None,
) -> tuple[Artifact, ParityReport]:
    """Build the artifact in a temporary folder, repeat the probes of ``source``, and evaluate it.

    Raises:
        ParityError: an output deviates by more than the tolerance, or the mAP drops too much.
    """
    built = seal(target.build(request), target)
    runtime, precision = cast(str, target.RUNTIME), built.manifest.precision
    limits = parity.tolerance(precision, registry.get(runtime).DEVIATION)
    probes = adapted_probes(source.manifest, built.manifest, limits.probe)
    built = replace(built, manifest=replace(built.manifest, probes=probes))
    request.progress("repeat the probes")
    report = _repeat(built, runtime, request.device, limits, source.path.name)
    subject = f"nothing was written to {destination}: the artifact"
    parity.require_passed(report, subject)
    report = gated(report, gate, built, runtime, request.device, subject, request.progress)
    if precision == "int8":  # those of this engine have smaller deviations on other machines
        own = own_probes(built, runtime, request.device)
        built = replace(built, manifest=replace(built.manifest, probes=own))
    return built, report


def _check(
    proved: Artifact,
    target: Target,
    precision: str,
    options: Mapping[str, str],
    unverified: bool,
) -> None:
    """Raise ConfigError if this artifact cannot be converted to this target.

    ``unverified``: whether an int8 artifact that was not evaluated is accepted.
    """
    manifest = proved.manifest
    proofs = ("passed", "unverified") if unverified and precision == "int8" else ("passed",)
    if manifest.target != _SOURCE or manifest.parity.get("status") not in proofs:
        raise ConfigError(
            f"{proved.path} has target {manifest.target} and a proof with status "
            f"{manifest.parity.get('status')!r}, expected target {_SOURCE} and status 'passed': "
            "use an artifact of `y7edge export --target onnx`"
        )
    if not manifest.probes:
        raise ConfigError(f"{proved.path} has no probes, which the proof needs: export it again")
    if target.NAME == _SOURCE:
        raise ConfigError(f"{proved.path} already has target {_SOURCE}: choose another target")
    if target.NEEDS_CHECKPOINT:
        raise ConfigError(
            f"target {target.NAME} converts checkpoints, not ONNX files: use `y7edge export` with "
            "the checkpoint"
        )
    if target.CALIBRATES:
        raise ConfigError(
            f"target {target.NAME} hands over calibration images, which {proved.path.name} does "
            "not contain: use `y7edge export` with the checkpoint and --calib DATA"
        )
    if isinstance(target.RUNTIME, Unprovable):
        raise ConfigError(
            f"artifacts of target {target.NAME} cannot be proved ({target.RUNTIME.reason}): use "
            "`y7edge export --unverified REASON`"
        )
    image, outputs = manifest.input, kind_of_outputs(manifest)
    require_offered(target, image.dtype, outputs, precision, image.batch, options)
    needed = target.PRECISIONS[precision]
    if manifest.precision != needed:
        raise ConfigError(
            f"target {target.NAME} converts {needed} ONNX files to precision {precision}; "
            f"{proved.path} has precision {manifest.precision}: export one with --precision "
            f"{needed}, or choose another precision with --precision"
        )
    profile = manifest.quantization and manifest.quantization.profile
    if precision == "int8" and profile not in target.PROFILES:
        known = " or ".join(target.PROFILES) or "none"
        raise ConfigError(
            f"target {target.NAME} takes int8 graphs of profile {known}, and {proved.path} has "
            f"profile {profile}: export one with --profile"
        )


def _earlier(proved: Artifact, precision: str, evaluated: bool, unverified: str | None) -> float:
    """Return the drop of the mAP that an int8 artifact had at its export; 0 in other precisions.

    Raises:
        ConfigError: an int8 artifact is to be built without data set and without ``unverified``,
            or the drop of the ONNX artifact is not known; or ``unverified`` does not apply.
    """
    if unverified is not None and (precision != "int8" or evaluated):
        raise ConfigError(
            "unverified is for int8 artifacts that are not evaluated: omit --unverified"
        )
    if precision != "int8" or unverified is not None:
        return 0.0
    if not evaluated:
        raise ConfigError(
            "an int8 artifact is accepted by its mAP: give a labelled data set (--data DATA), or "
            "pass --unverified REASON to build one whose accuracy is not known"
        )
    found = ParityReport.from_dict(proved.manifest.parity).accuracy
    if found is None:
        raise ConfigError(
            f"{proved.path} does not say how far its mAP is below the float model's: export it "
            "again with --data"
        )
    return found.drop


def _require_rules(proved: Artifact, tell: Callable[[str], None]) -> None:
    """Check the rules of a QDQ graph if onnx is installed, which robots need not have."""
    if proved.manifest.quantization is None:
        return
    if missing({"onnx": ""}):
        tell("the rules of the quantised graph are not checked, because onnx is not installed")
        return
    require_rules(proved)


def _repeat(
    built: Artifact, backend: str, device: str, limits: Tolerance, source: str
) -> ParityReport:
    """Run the probes in the artifact's engine, and return the report.

    ``source``: file name of the ONNX artifact.
    """
    session = registry.open_session(built, SessionOptions(device, check_payload=False), backend)
    try:
        probes = tuple(run_probe(p, session, built.manifest) for p in built.manifest.probes)
    finally:
        session.close()
    # A deviation of None means NaN or infinity, so it is treated as the largest.
    of = "its own outputs" if built.manifest.precision == "int8" else "the reference"
    worst = {
        name: max((p.outputs[name] for p in probes), key=lambda v: math.inf if v is None else v)
        for name in probes[0].outputs
    }
    measured = Measured(
        reference=f"samples of {of} in {source}",
        pictures=ImageSource(len(probes), "probes"),
        batches=tuple(dict.fromkeys(probe.batch for probe in probes)),
        outputs={name: TensorDifference(value, None) for name, value in worst.items()},
        candidates=CandidateDifference(0, None, None, None),
        probes=probes,
        activations=Peak(None, ""),
        tolerance=limits,
        engine=backend,
        device=session.device,
        arithmetic=session.arithmetic,
        versions={"y7edge": __version__, "numpy": np.__version__, **session.versions},
    )
    problems = tuple(
        f"{probe.key} deviates by {probe.deviation}, tolerance {probe.tolerance}"
        for probe in probes
        if not probe.passed
    )
    return ParityReport("failed" if problems else "passed", problems, measured=measured)
