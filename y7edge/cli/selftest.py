"""``y7edge selftest``: repeat an artifact's proof without the checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from y7edge.cli.console import show
from y7edge.cli.gate import report_even_if_failed
from y7edge.cli.options import Artifact, Backend, Device, Json, Threads

if TYPE_CHECKING:
    from y7edge.artifact.reports import SelftestReport


def selftest(
    artifact: Artifact,
    backend: Backend = "auto",
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Repeat an artifact's proof on this machine.

    Checks that the artifact is unchanged and computes the proved outputs. Needs neither torch nor
    the checkpoint, because the artifact contains probes: generated inputs, and samples of the
    model's outputs for them. The exit code is 4 if the file was changed, or if an output deviates
    by more than the tolerance. It is 1 if the file has no proof to repeat.
    """
    from y7edge.detect.selftest import selftest as repeat

    with report_even_if_failed(as_json):
        report = repeat(artifact, backend=backend, device=device, threads=threads)
    show(report.to_dict(), _lines(report), as_json=as_json)


def _lines(report: SelftestReport) -> list[str]:
    unverified = report.parity == "unverified"
    return [
        f"{report.artifact}: {report.status}",
        f"payload  unchanged ({report.payload_digest[:16]}...)",
        *(
            f"probe {probe.key}  deviation {probe.deviation:.2e}, allowed {probe.tolerance:.0e}"
            for probe in report.probes
        ),
        *(["exported unverified: these probes are its only proof"] if unverified else []),
        f"computed in {report.arithmetic}",
    ]
