"""Print audits: lines for a terminal or a text file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from y7edge.export.audit.chips import Verdict
from y7edge.export.audit.verdicts import Audit, Row
from y7edge.text import printable

WORDS: Mapping[Verdict, str] = {
    "runs": "runs",
    "cpu": "CPU",
    "refused": "refused",
    "unknown": "unknown",
}
"""Verdicts in tables."""

_ORDER: tuple[Verdict, ...] = ("refused", "cpu", "unknown", "runs")
_COUNTED: Mapping[Verdict, str] = {
    "refused": "are refused",
    "cpu": "run on the CPU",
    "unknown": "are unknown",
}
_FEW = 3  # names of nodes that a group shows


def verdict(audit: Audit) -> str:
    """Return the verdict on a model in a few words; ``helps`` says what leads to it."""
    if audit.fits:
        return "fits"
    if audit.best.fits:
        return "fits with rewrites"
    if any(change.outcome == "fits" for change in audit.advice):
        trained = all(change.training for change in audit.advice)
        return "fits if trained anew" if trained else "fits with other options"
    words = {"refused": "refused", "unknown": "unknown", "cpu": "partly on the CPU", "fits": ""}
    return words[audit.best.outcome]


def helps(audit: Audit) -> str:
    """Return what makes a model fit, or more of its nodes run; empty if nothing does."""
    rewrites = " ".join(f"--rewrite {name}" for name in audit.rewrites)
    if audit.best.fits or not audit.advice:
        return rewrites
    return " or ".join(map(str, audit.advice))


def problems(audit: Audit) -> str:
    """Return which operators do not run even with the rewrites, in a few words."""
    found: dict[Verdict, dict[str, None]] = {}
    for row in audit.best.rows:
        if row.verdict != "runs":
            found.setdefault(row.verdict, {})[row.op or row.node] = None
    return "; ".join(f"{WORDS[v]}: {', '.join(found[v])}" for v in _ORDER if v in found)


def lines(audit: Audit, *, nodes: bool = False) -> list[str]:
    """Return the audit as text: the verdict, a table, what helps, and the source.

    Args:
        audit: the audit.
        nodes: list the nodes one by one instead of grouping equal ones.
    """
    chip, counts = audit.chip, audit.counts
    applied = f", graph with {', '.join(audit.applied)}" if audit.applied else ""
    found = [
        f"{chip.title}{applied}: {verdict(audit)}",
        ", ".join(
            [
                f"{counts['runs']} of {len(audit.nodes)} nodes run on the accelerator",
                *(f"{counts[v]} {_COUNTED[v]}" for v in _ORDER if counts[v] and v in _COUNTED),
            ]
        ),
        "",
        *aligned([("operator", "nodes", "verdict", "why", "cure"), *_groups(audit, nodes)]),
        "",
    ]
    if audit.cured is not None:
        rewrites = " ".join(f"--rewrite {name}" for name in audit.rewrites)
        left = "fits" if audit.cured.fits else f"better, but {problems(audit)}"
        found.append(f"with {rewrites}: {left}")
    for change in audit.advice:
        found.append(f"{change}: {'fits' if change.outcome == 'fits' else 'better, does not fit'}")
    if built_in := [name for name in audit.applied if name in chip.built_in]:
        found.append(f"note: every file for this chip is written with {', '.join(built_in)}")
    found += [f"note: {remark}" for remark in audit.remarks]
    sources = dict.fromkeys(
        rule.source
        for row in audit.nodes
        for rule in chip.operations.get(row.op, ())
        if rule.source
    )
    found.append(f"source: {'; '.join((chip.source, *sources))}")
    return [printable(line) for line in found]


def _groups(audit: Audit, nodes: bool) -> Iterator[tuple[str, ...]]:
    """Yield the rows of the table: equal verdicts of an operator in one row, what runs last."""
    if nodes:
        for row in audit.rows:
            yield row.op or row.node, row.node, WORDS[row.verdict], row.why, row.cure
        return
    groups: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in sorted(audit.rows, key=lambda row: _ORDER.index(row.verdict)):
        key = (row.op or row.node, WORDS[row.verdict], row.why, row.cure)
        groups.setdefault(key, []).append(row)
    for (op, verdict, why, cure), rows in groups.items():
        count = str(len(rows)) if rows[0].op else ""
        if verdict != WORDS["runs"] and len(rows) <= _FEW and rows[0].op:
            count += f" ({', '.join(row.node for row in rows)})"
        yield op, count, verdict, why, cure


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Format rows as lines with aligned columns; the first row is the header."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
