"""Find what makes a model fit a chip: rewrites of the graph, another activation, other outputs.

Every cure is checked: the graph with the cure is written and audited like any other, so a rewrite
that would be refused itself is not offered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from y7edge.errors import ConfigError
from y7edge.export.audit.chips import Chip, load, load_all
from y7edge.export.audit.facts import Structure, read_structure
from y7edge.export.audit.verdicts import Audit, Change, Row, audit_structure
from y7edge.export.graph.build import build_structure
from y7edge.export.graph.rewrites import REWRITES, choose
from y7edge.export.targets.base import Target
from y7edge.models.registry import folded
from y7edge.models.spec import ACTS, Spec

AUTO = "auto"
"""In a list of rewrites: those that a chip needs."""

_CHIP = "chip"  # option of targets with several chips


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
    _known: dict[tuple[object, ...], Structure] = field(
        default_factory=dict, repr=False, compare=False
    )

    def structure(self, rewrites: Sequence[str] = ()) -> Structure:
        """Return the facts of the graph with these rewrites."""
        key = (self.spec.activation, self.height, self.width, self.outputs, *rewrites)
        if key not in self._known:
            model = build_structure(
                folded(self.spec),
                outputs=self.outputs,
                height=self.height,
                width=self.width,
                rewrites=rewrites,
            )
            self._known[key] = read_structure(model)
        return self._known[key]

    def applicable(self, chip: Chip) -> list[str]:
        """Return the rewrites that change a part of the model, in an export for a chip."""
        from y7edge.export.targets import registry  # which imports targets that audit

        if chip.target in registry.names() and registry.get(chip.target).NEEDS_CHECKPOINT:
            return []  # the target does not read graphs
        spec = folded(self.spec)
        return [name for name, rewrite in REWRITES.items() if rewrite.applies(spec)]


def audit_spec(subject: Subject, chip: Chip, rewrites: Sequence[str] = ()) -> Audit:
    """Audit the graph of a model, and find what makes more of its nodes run.

    Args:
        subject: the model.
        chip: the table of the chip.
        rewrites: rewrites that the graph shall have in any case. With ``AUTO``, the graph also gets
            those that the chip needs.

    Raises:
        ConfigError: a rewrite is unknown or does not apply to the model.
    """
    names = [name for name in rewrites if name != AUTO]
    given = choose(folded(subject.spec), names, chip.built_in)
    if len(names) < len(rewrites):
        given = _rewrites(subject, chip, given)
    plain = replace(audit_structure(subject.structure(given), chip), applied=given)
    if plain.fits or not plain.share:  # without convolutions that are known to run, nothing helps
        return plain
    found = _rewrites(subject, chip, given)
    added = tuple(name for name in found if name not in given)
    cured = audit_structure(subject.structure(found), chip) if added else None
    rows = _with_cures(subject, chip, plain, given, added)
    advice = tuple(_advice(subject, chip, cured or plain, given))
    return replace(plain, rows=rows, rewrites=added, cured=cured, advice=advice)


def rewrites_for(
    spec: Spec, target: Target, options: Mapping[str, str], rewrites: Sequence[str]
) -> tuple[str, ...]:
    """Replace ``AUTO`` in a list of rewrites by those that a chip needs.

    The chip is the one that the target's options select. If they select none, all chips of the
    target must need the same rewrites.

    Args:
        spec: the model.
        target: the target of the export.
        options: options of the target.
        rewrites: names of rewrites, and perhaps ``AUTO``.

    Raises:
        ConfigError: the chip is not known or belongs to another target; or the target has no chips,
            or several that need different rewrites.
    """
    given = tuple(name for name in rewrites if name != AUTO)
    if len(given) == len(rewrites):
        return given
    own = [chip for chip in load_all() if chip.target == target.NAME]
    chips = [chip for chip in own if chip.options and chip.options.items() <= options.items()]
    if _CHIP in options and not chips:
        chips = [load(options[_CHIP])]
        if chips[0].target != target.NAME:
            raise ConfigError(
                f"chip {chips[0].name} belongs to target {chips[0].target}, expected one of "
                f"{target.NAME}"
            )
    side = spec.imgsz  # no rewrite depends on the size of the input
    subject = Subject(spec, side, side)
    found = {audit_spec(subject, chip, given).rewrites for chip in chips or own}
    if len(found) != 1:
        known = ", ".join(chip.name for chip in own)
        has = f"several, which need different rewrites ({known})" if own else "no table of one"
        keys = dict.fromkeys(key for chip in own for key in chip.options)
        way = " or ".join([*(f"--option {key}=..." for key in keys), "--rewrite NAME"])
        raise ConfigError(
            f"--rewrite {AUTO} needs a chip, but target {target.NAME} has {has}: give {way}"
        )
    return (*given, *found.pop())


def _badness(audit: Audit) -> tuple[int, float, int]:
    """Return a measure of what does not run: less is better.

    It has the number of refused nodes; the number of other nodes that do not run or may not run,
    and their fraction of the multiplications; and how many of them the CPU runs for certain.
    """
    found = Counter(row.verdict for row in audit.rows)
    others = found["cpu"] + found["unknown"]
    return found["refused"], others + (1 - audit.share) * len(audit.rows), found["cpu"]


def _rewrites(subject: Subject, chip: Chip, given: Sequence[str]) -> tuple[str, ...]:
    """Return ``given`` and all rewrites that make more nodes run.

    Rewrites change different parts of the graph, so they are tried one after the other; each is
    kept if the audit improves. Two rewrites of the same part replace each other.
    """
    kept = tuple(given)
    best = _badness(audit_structure(subject.structure(kept), chip))
    for name in subject.applicable(chip):
        same = {other for other in kept if REWRITES[other].subject == REWRITES[name].subject}
        if same & set(given):
            continue
        tried = tuple(r for r in REWRITES if r == name or (r in kept and r not in same))
        found = _badness(audit_structure(subject.structure(tried), chip))
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
        left = {(row.op, row.why) for row in rows if row.verdict != "runs"}
        for row in plain.rows:
            if row.verdict != "runs" and (row.op, row.why) not in left:
                cures.setdefault((row.op, row.why), f"--rewrite {name}")
    return tuple(
        row if row.verdict == "runs" else replace(row, cure=cures.get((row.op, row.why), ""))
        for row in plain.rows
    )


def _advice(subject: Subject, chip: Chip, best: Audit, given: Sequence[str]) -> Iterator[Change]:
    """Yield changes after which more nodes run than with rewrites alone.

    These are the smallest change that makes the model fit; if it needs another activation, the
    smallest change for each activation; or, if nothing makes it fit, the best change. A change
    after which the model is still refused, or an activation of which nobody knows whether it runs,
    is none.
    """
    if best.fits:
        return
    found, known = [], _problems(best)
    for changed in _changed(subject, chip):
        asked = [name for name in given if name in changed.applicable(chip)]
        fixed = choose(folded(changed.spec), asked, chip.built_in)
        names = _rewrites(changed, chip, fixed)
        audit = audit_structure(changed.structure(names), chip)
        if audit.outcome == "refused" or not _problems(audit) <= known:
            continue
        if (badness := _badness(audit)) < _badness(best):
            names = tuple(name for name in names if name not in chip.built_in)
            found.append((not audit.fits, badness, _change(subject, changed, names, audit)))
    fitting = [change for unfit, _, change in found if not unfit]
    if kept := [change for change in fitting if not change.training]:
        yield kept[0]
    elif fitting:
        yield from {change.training: change for change in reversed(fitting)}.values()
    elif found:
        yield min(found, key=lambda entry: entry[1])[2]


def _problems(audit: Audit) -> set[str]:
    return {row.op or row.node for row in audit.rows if row.verdict != "runs"}


def _changed(subject: Subject, chip: Chip) -> Iterator[Subject]:
    """Yield the model with other sizes, outputs and activations, the smallest changes first."""
    sizes = [(subject.height, subject.width)]
    if (largest := chip.largest_side) is not None and largest < max(sizes[0]):
        step = max(subject.spec.strides)
        if (side := int(largest) // step * step) > 0:
            sizes.append((side, side))
    outputs = [subject.outputs]
    if subject.outputs not in ("heads", "heads-sigmoid"):
        outputs.append("heads")
    own = subject.spec.activation
    for activation in (own, *(other for other in ACTS.values() if other != own)):
        spec = replace(subject.spec, activation=activation)
        for kind in outputs:
            for height, width in sizes:
                changed = replace(subject, spec=spec, height=height, width=width, outputs=kind)
                if changed != subject:
                    yield changed


def _change(subject: Subject, changed: Subject, rewrites: Sequence[str], audit: Audit) -> Change:
    options = []
    if changed.height != subject.height or changed.width != subject.width:
        options.append(f"--imgsz {changed.height}")
    if changed.outputs != subject.outputs:
        options.append(f"--outputs {changed.outputs}")
    options += [f"--rewrite {name}" for name in rewrites]
    activation = changed.spec.activation
    name = next(act for act, found in ACTS.items() if found == activation)
    training = "" if activation == subject.spec.activation else f"--act {name}"
    return Change(" ".join(options), training, audit.outcome)
