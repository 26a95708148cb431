"""Gates: commands that prove, report, and exit with 4 when the figures are beyond tolerance."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from y7edge.cli.console import table, to_json
from y7edge.errors import ParityError


@contextmanager
def report_even_if_failed(as_json: bool) -> Iterator[None]:
    """Print the report that a failed proof carries before its error ends the command."""
    try:
        yield
    except ParityError as error:
        if as_json and error.report:
            print(to_json(error.report), flush=True)
        elif "outputs" in error.report:
            print("\n".join(parity_lines(error.report)), file=sys.stderr, flush=True)
        raise


def parity_lines(report: Mapping[str, Any]) -> list[str]:
    """A parity report for people: what was compared, outputs, candidates, arithmetic."""
    pictures, candidates, limits = report["pictures"], report["candidates"], report["tolerance"]
    rows = [
        (name, found["deviation"], found["cosine"]) for name, found in report["outputs"].items()
    ]
    allowed = ("allowed", limits["deviation"], limits["cosine"])
    return [
        f"compared with {report['reference']}, on {pictures['count']} pictures of",
        f"{pictures['source']}",
        *table([("output", "deviation", "cosine"), *rows, allowed]),
        f"{candidates['count']} best candidates: least IoU {candidates['iou']:.6f} "
        f"(allowed {limits['iou']}), largest difference of scores "
        f"{candidates['score_difference']:.1e} (allowed {limits['score']}), "
        f"scores spread over {candidates['score_spread']:.2f}",
        f"computed in {report['arithmetic']}",
    ]
