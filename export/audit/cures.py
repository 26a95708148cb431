"""Find what makes a model fit a chip: rewrites of the graph, another activation, other outputs.

Every cure is checked: the graph with the cure is written and audited like any other, so a rewrite
that would be refused itself is not offered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import get_args

from y7edge.export.audit.chips import Chip
from y7edge.export.audit.facts import Structure, read_structure
from y7edge.export.audit.verdicts import Audit, Row, audit_structure
from y7edge.export.graph.build import build_structure
from y7edge.export.graph.rewrites import REWRITES, choose, reorg_window
from y7edge.models.registry import folded
from y7edge.models.spec import Activation, Spec


@dataclass(frozen=True)
class Subject:
    """A model whose graph can be written in several forms. Their facts are read only once.

    Attributes:
        spec: The model, of any form.
        height: Height of the input in pixels.
        width: Width of the input in pixels.
        outputs: Outputs of the graph, such as "heads".
    """

    spec: Spec
    height: int
    width: int
    outputs: str = "heads"
    _known: dict[tuple[str, str, tuple[str, ...]], Structure] = field(
        default_factory=dict, repr=False, compare=False
    )

    def structure(
        self, rewrites: Sequence[str] = (), *, activation: str = "", outputs: str = ""
    ) -> Structure:
        """Return the facts of the graph with these rewrites, activation and outputs."""
        activation, outputs = activation or self.spec.activation, outputs or self.outputs
        key = (activation, outputs, tuple(rewrites))
        if key not in self._known:
            spec = _with_activation(folded(self.spec), activation)
            model = build_structure(
                spec, outputs=outputs, height=self.height, width=self.width, rewrites=rewrites
            )
            self._known[key] = read_structure(model)
        return self._known[key]

    def applicable(self, activation: str = "") -> list[str]:
        """Return the rewrites that change a part of the model."""
        spec = _with_activation(folded(self.spec), activation or self.spec.activation)
        return [name for name, rewrite in REWRITES.items() if rewrite.applies(spec)]


def _with_activation(spec: Spec, activation: str) -> Spec:
    known: Mapping[str, Activation] = {name: name for name in get_args(Activation)}
    return replace(spec, activation=known[activation])


def audit_spec(subject: Subject, chip: Chip, rewrites: Sequence[str] = ()) -> Audit:
    """Audit the graph of a model, and find what makes more of its nodes run.

    Args:
        subject: the model.
        chip: the table of the chip.
        rewrites: rewrites that the graph shall have in any case.

    Raises:
        ConfigError: a rewrite is unknown or does not apply to the model.
    """
    given = choose(folded(subject.spec), rewrites, ())
    plain = audit_structure(subject.structure(given), chip)
    if plain.fits:
        return plain
    found = _rewrites(subject, chip, given)
    added = tuple(name for name in found if name not in given)
    cured = audit_structure(subject.structure(found), chip) if added else None
    rows = _with_cures(subject, chip, plain, given, added)
    advice = tuple(_advice(subject, chip, cured or plain, given))
    return replace(plain, rows=rows, rewrites=added, cured=cured, advice=advice)


def _badness(audit: Audit) -> tuple[int, int, float]:
    """Return numbers of nodes that are refused or unknown, and the work of the CPU: less is better.

    The work of the CPU is measured in multiplications, then in nodes.
    """
    found = Counter(row.verdict for row in audit.rows)
    return found["refused"], found["unknown"], found["cpu"] + (1 - audit.share) * len(audit.rows)


def _rewrites(
    subject: Subject, chip: Chip, given: Sequence[str], activation: str = ""
) -> tuple[str, ...]:
    """Return ``given`` and all rewrites that make more nodes run.

    Rewrites change different parts of the graph, so they are tried one after the other; each is
    kept if the audit improves.
    """
    kept = tuple(given)
    best = _badness(audit_structure(subject.structure(kept, activation=activation), chip))
    for name in subject.applicable(activation):
        if name in kept or (name.startswith("reorg") and reorg_window(kept)):
            continue
        tried = tuple(rewrite for rewrite in REWRITES if rewrite in {*kept, name})
        found = _badness(audit_structure(subject.structure(tried, activation=activation), chip))
        if found < best:
            kept, best = tried, found
    return kept


def _with_cures(
    subject: Subject, chip: Chip, plain: Audit, given: Sequence[str], added: Sequence[str]
) -> tuple[Row, ...]:
    """Name in each row the rewrite whose graph does not have the row's problem."""
    cures: dict[tuple[str, str], str] = {}
    for name in added:
        tried = tuple(rewrite for rewrite in REWRITES if rewrite in {*given, name})
        rows = audit_structure(subject.structure(tried), chip).rows
        left = {_problem(row) for row in rows if row.verdict != "runs"}
        for row in plain.rows:
            if row.verdict != "runs" and _problem(row) not in left:
                cures.setdefault(_problem(row), f"--rewrite {name}")
    return tuple(
        row if row.verdict == "runs" else replace(row, cure=cures.get(_problem(row), ""))
        for row in plain.rows
    )


def _problem(row: Row) -> tuple[str, str]:
    return row.op, row.why


def _advice(subject: Subject, chip: Chip, best: Audit, given: Sequence[str]) -> Iterator[str]:
    """Yield changes beside rewrites after which the model fits, each checked by an audit."""
    if best.fits:
        return
    kept = (*given, *best.rewrites)
    whole = [row for row in best.rows if not row.op and row.node == "input"]
    if whole and chip.max_side is not None and "side" in whole[0].why:
        yield f"--imgsz {chip.max_side // max(subject.spec.strides) * max(subject.spec.strides)}"
    now = _badness(best)
    if subject.outputs not in ("heads", "heads-sigmoid"):
        heads = audit_structure(subject.structure(kept, outputs="heads"), chip)
        if _badness(heads) < now:
            yield "--outputs heads"
    for activation in get_args(Activation):
        if activation != subject.spec.activation:
            names = _rewrites(subject, chip, given, activation)
            names = tuple(name for name in names if name in subject.applicable(activation))
            changed = audit_structure(subject.structure(names, activation=activation), chip)
            if _badness(changed) < now:
                fits = "fits" if changed.fits else "is better"
                also = "".join(f" --rewrite {name}" for name in names)
                yield f"a model trained with --act {_ACT.get(activation, activation)} {fits}{also}"


_ACT = {"leaky_relu": "leaky"}
"""Activation -> its name for ``y7edge train --act``, if it is another."""
