"""Compare a graph with the table of a chip: which nodes run, which do not, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import onnx

from y7edge.export.audit.chips import Chip, Limit, Verdict
from y7edge.export.audit.facts import WORDS, Node, Structure, Values, read_structure

Outcome = Literal["fits", "cpu", "unknown", "refused"]
"""What happens to a model: everything runs on the accelerator, the CPU runs a part, nobody knows,
or the vendor's converter or the target refuses the model."""

QDQ = ("QuantizeLinear", "DequantizeLinear")

_NO_QDQ = "the vendor's converter quantises itself: give it a float graph"
_QDQ_UNKNOWN = "whether the converter reads QDQ graphs is not known"
_WORST: tuple[Verdict, ...] = ("refused", "unknown", "cpu", "runs")


@dataclass(frozen=True)
class Row:
    """The verdict on one node, or on the whole graph if ``op`` is empty.

    Attributes:
        node: Name of the node; of a row on the graph, what the row is about, such as "input".
        op: Operator.
        verdict: What happens to the node.
        why: The reason, if it does not run; a remark otherwise.
        cure: Rewrite, activation or option after which the node runs; empty if none is known.
        products: Multiplications of the node for one image.
    """

    node: str
    op: str
    verdict: Verdict
    why: str = ""
    cure: str = ""
    products: int = 0


@dataclass(frozen=True)
class Change:
    """A change of the model or the export, checked by an audit of the changed graph.

    Attributes:
        options: For ``y7edge export``, such as "--imgsz 320 --rewrite leaky-max".
        training: For ``y7edge train``, such as "--act leaky"; empty if the weights can stay.
        outcome: Of the changed graph.
    """

    options: str
    training: str
    outcome: Outcome

    def __str__(self) -> str:
        parts = [f"train with {self.training}"] if self.training else []
        parts += [f"export with {self.options}"] if self.options else []
        return ", ".join(parts)


@dataclass(frozen=True)
class Audit:
    """The verdicts on a graph.

    Attributes:
        chip: The table.
        rows: One for each node in the order of computation, then those on the whole graph that are
            not "runs".
        remarks: Of the table, and on the memory for parameters.
        rewrites: Rewrites that make more nodes run, for ``--rewrite``; those that the graph already
            has are not repeated.
        cured: The audit of the graph with ``rewrites``; None if there are none.
        advice: Other changes that help where rewrites alone do not: an activation, outputs, another
            input size. Those that make the model fit come first.
        applied: Rewrites that the graph has, if the caller chose them.
    """

    chip: Chip
    rows: tuple[Row, ...]
    remarks: tuple[str, ...] = ()
    rewrites: tuple[str, ...] = ()
    cured: Audit | None = None
    advice: tuple[Change, ...] = ()
    applied: tuple[str, ...] = ()

    @property
    def outcome(self) -> Outcome:
        """The worst verdict of all rows."""
        found = {row.verdict for row in self.rows}
        worst = next(verdict for verdict in _WORST if verdict in found or verdict == "runs")
        return "fits" if worst == "runs" else worst

    @property
    def fits(self) -> bool:
        """Whether all nodes run on the accelerator."""
        return self.outcome == "fits"

    @property
    def best(self) -> Audit:
        """The audit with the rewrites, if there are any."""
        return self.cured or self

    @property
    def nodes(self) -> tuple[Row, ...]:
        """The rows of nodes, without QuantizeLinear and DequantizeLinear."""
        return tuple(row for row in self.rows if row.op and row.op not in QDQ)

    @property
    def share(self) -> float:
        """The fraction of the multiplications that run on the accelerator, 0 to 1."""
        total = sum(row.products for row in self.nodes)
        running = sum(row.products for row in self.nodes if row.verdict == "runs")
        return running / total if total else float(self.fits)

    @property
    def counts(self) -> dict[Verdict, int]:
        """Verdict -> number of nodes."""
        found = Counter(row.verdict for row in self.nodes)
        return {verdict: found[verdict] for verdict in _WORST}

    def to_dict(self) -> dict[str, Any]:
        """Return the audit as JSON values."""
        return {
            "chip": self.chip.name,
            "vendor": self.chip.vendor,
            "title": self.chip.title,
            "source": self.chip.source,
            "target": self.chip.target,
            "outcome": self.outcome,
            "nodes": len(self.nodes),
            "counts": self.counts,
            "share_of_multiplications": round(self.share, 6),
            "applied": list(self.applied),
            "rewrites": list(self.rewrites),
            "advice": [asdict(change) for change in self.advice],
            "remarks": list(self.remarks),
            "rows": [
                {
                    "node": row.node,
                    "op": row.op,
                    "verdict": row.verdict,
                    "why": row.why,
                    "cure": row.cure,
                }
                for row in self.rows
            ],
            "with_rewrites": None if self.cured is None else self.cured.to_dict(),
        }


def audit(model: onnx.ModelProto, chip: Chip) -> Audit:
    """Audit an ONNX model, without looking for rewrites (``cures.audit_spec`` does).

    The weights of ``model`` may be missing.

    Raises:
        ExportError: the shapes of the graph cannot be inferred.
    """
    return audit_structure(read_structure(model), chip)


def audit_structure(structure: Structure, chip: Chip) -> Audit:
    """Audit a graph whose facts have been read."""
    rows = [_row(node, chip) for node in structure.nodes]
    if chip.single_split:
        rows = list(_split(rows, structure.nodes))
    rows += _whole(structure, chip)
    return Audit(chip, tuple(rows), (*_memory(structure, chip), *chip.remarks))


def _row(node: Node, chip: Chip) -> Row:
    verdict, why = _judge(node, chip)
    return Row(node.name, node.op, verdict, why, products=node.products)


def _judge(node: Node, chip: Chip) -> tuple[Verdict, str]:
    """Return the verdict on a node, and the reason."""
    rules = chip.operations.get(node.op)
    if rules is None:
        if node.op in QDQ:
            return _judge_qdq(chip)
        return chip.others, chip.others_why or f"{node.op} is not in the vendor's list"
    failures = []
    for rule in rules:
        missing, why = _beyond(node.facts, rule.limits)
        if not why:
            return rule.verdict, "" if rule.verdict == "runs" else rule.why
        failures.append((missing, why))
    # A rule that only lacks a fact may hold; otherwise the first rule has the usual limits.
    missing, why = next((failure for failure in failures if failure[0]), failures[0])
    remark = f"; {rules[0].why}" if rules[0].why and rules[0].verdict == "runs" else ""
    return missing or rules[0].beyond or chip.others, why + remark


def _judge_qdq(chip: Chip) -> tuple[Verdict, str]:
    if chip.qdq is None:
        return "unknown", _QDQ_UNKNOWN
    return ("runs", "") if chip.qdq else ("refused", _NO_QDQ)


def _beyond(
    facts: Mapping[str, Values], limits: Mapping[str, Limit]
) -> tuple[Literal["unknown"] | None, str]:
    """Return why facts are not within limits; the reason is empty if they are.

    "unknown" is returned if the only problem is that facts cannot be read.
    """
    missing = [name for name in limits if name not in facts]
    for name, limit in limits.items():
        bad = [value for value in facts.get(name, ()) if not limit.holds(value)]
        if bad:
            found = ", ".join(_shown(value) for value in dict.fromkeys(bad))
            return None, f"{WORDS[name]} {found}, expected {limit}"
    if missing:
        names = ", ".join(WORDS[name] for name in missing)
        return "unknown", f"{names} cannot be read from the graph"
    return None, ""


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.7g}"


def _split(rows: Iterable[Row], nodes: Iterable[Node]) -> Iterator[Row]:
    """Yield rows, of which those after the first one on the CPU are on the CPU too."""
    first = ""
    for row, _ in zip(rows, nodes, strict=True):
        if row.verdict == "cpu" and not first:
            first = row.node
            yield row
        elif row.verdict == "runs" and first:
            why = f"after {first}, the first node on the CPU: the graph is split only once"
            yield replace(row, verdict="cpu", why=why)
        else:
            yield row


def _whole(structure: Structure, chip: Chip) -> Iterator[Row]:
    """Yield the rows on the whole graph: input, opset and memory."""
    for rule in chip.input:
        missing, why = _beyond(structure.input, rule.limits)
        if why:
            remark = f"; {rule.why}" if rule.why else ""
            yield Row("input", "", missing or rule.beyond or "refused", why + remark)
    if chip.opsets is not None and not chip.opsets[0] <= structure.opset <= chip.opsets[1]:
        why = f"opset {structure.opset}, expected {chip.opsets[0]} to {chip.opsets[1]}"
        yield Row("opset", "", "refused", why)
    memory = chip.memory
    if memory is not None and memory.most is not None:
        needed = structure.parameters * memory.bytes_per_parameter
        if needed > memory.most:
            why = f"parameters of {_mb(needed)}, expected at most {_mb(memory.most)}"
            yield Row("memory", "", "refused", why)


def _memory(structure: Structure, chip: Chip) -> Iterator[str]:
    """Yield a remark if the parameters do not fit on the chip."""
    memory = chip.memory
    if memory is None:
        return
    needed = structure.parameters * memory.bytes_per_parameter
    if memory.parameters < needed <= (memory.most or needed):
        rest = needed - memory.parameters
        yield (
            f"parameters: {_mb(needed)}, of which {_mb(memory.parameters)} fit on the chip; "
            f"{_mb(rest)} are read again for every image"
        )


def _mb(size: float) -> str:
    return f"{size / 1e6:.3g} MB"
