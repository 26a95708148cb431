"""Audit all published variants for all chips, and write the page docs/chips.md.

    python examples/research/chip_table.py --out docs/chips.md
    python examples/research/chip_table.py --json

Each variant is audited at its published input size, with raw heads. No weights are loaded; all
variants take less than a minute and 100 MB of memory. Chips of one vendor with equal results share
a row.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from y7edge.cli.console import to_json
from y7edge.export.audit.chips import Chip, load_all
from y7edge.export.audit.cures import Subject, audit_spec
from y7edge.export.audit.report import WORDS, helps, problems, verdict
from y7edge.export.audit.verdicts import Audit
from y7edge.files import write_text
from y7edge.models import registry

CELLS = {
    "fits": "fits",
    "fits with rewrites": "rewrites",
    "fits with other options": "options",
    "fits if trained anew": "train",
    "partly on the CPU": "CPU",
    "unknown": "unknown",
    "refused": "refused",
}
INTRODUCTION = """\
# Which variants fit which chip

`y7edge audit` compares the operators of a graph with a table of each chip's operators and
limits, made from the vendor's documents. It needs neither the chip nor the vendor's software, and
it is no proof: the vendor's converter decides. This page has the result for the published variants
at their published sizes (640 px; w6, e6, d6 and e6e: 1280 px), with raw heads. It was written by

```sh
python examples/research/chip_table.py --out docs/chips.md
```

| word | meaning |
|---|---|
| fits | every operator runs on the accelerator |
| rewrites | fits with `--rewrite`; `y7edge export ... --rewrite auto` applies what the chip needs |
| options | fits with other options of the export, such as a smaller input |
| train | fits with another activation: `y7edge train --act ...` |
| CPU | the CPU runs a part of the model |
| unknown | the documents that were read do not say whether an operator runs |
| refused | the vendor's converter, or the target of y7edge, refuses the model |

Every rewrite, option and activation named below was checked: the changed graph was written and
audited. Rewrites do not change what a model computes, and the export proves this like everything
else. For your own model, and for the reasons node by node:

```sh
y7edge audit best.safetensors                      # all chips
y7edge audit best.safetensors --target kl720       # why, what helps, the command to export
```

For another chip, write a table. `limits` name facts of an operator; nodes outside of them get the
verdict `beyond`, or that of `others`. The tables of this page are in `export/chips/`, and
`export/audit/chips.py` describes all entries.

```sh
cat > mine.yaml <<'END'
title: Example X1
vendor: Example
source: Example SDK 2.1, list of operators (2026-03)
others: cpu                      # operators that are not listed: refused, cpu or unknown
others_why: not in the list of the SDK
input: [{limits: {side: {max: 640}, batch: {max: 1}}}]
operations:
  Conv: {limits: {kernel: {max: 7}, stride: {among: [1, 2]}}, beyond: refused}
  LeakyRelu: {verdict: refused, why: no such operator}
  Relu: {}
  Concat: {limits: {channels: {multiple: 16}}}
  MaxPool: [{limits: {kernel: {max: 3}}}, {verdict: unknown, why: only 3x3 is validated}]
  Resize: {limits: {mode: {among: [nearest]}, axes: {max: 1}}}
END
y7edge audit best.safetensors --target mine.yaml || test $? = 4     # 4: refused
```

"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the page to this file")
    parser.add_argument("--json", action="store_true", help="print the audits as JSON")
    options = parser.parse_args(argv)
    audits = list(audited())
    if options.json:
        print(to_json([{"model": name, **audit.to_dict()} for name, audit in audits]))
        return 0
    page = written(audits)
    if options.out is None:
        print(page, end="")
    else:
        write_text(options.out, page)
    return 0


def audited() -> Iterable[tuple[str, Audit]]:
    """Yield the name of each variant and its audit for each chip."""
    for name in registry.names():
        print(name, file=sys.stderr)
        spec = registry.get(name)
        subject = Subject(spec, spec.imgsz, spec.imgsz)
        yield from ((name, audit_spec(subject, chip)) for chip in load_all())


def written(audits: Sequence[tuple[str, Audit]]) -> str:
    """Return the page."""
    by_chip: dict[str, dict[str, Audit]] = {}
    for name, audit in audits:
        by_chip.setdefault(audit.chip.name, {})[name] = audit
    groups: dict[tuple[object, ...], list[Chip]] = {}
    for found in by_chip.values():
        chip = next(iter(found.values())).chip
        words = tuple((verdict(a), helps(a), problems(a)) for a in found.values())
        groups.setdefault((chip.vendor, chip.target, words), []).append(chip)
    lines = [row("chip", *(short(name) for name in registry.names()), "target")]
    lines.append("|---" * (len(registry.names()) + 2) + "|")
    details = []
    for chips in groups.values():
        found = by_chip[chips[0].name]
        target = chips[0].target or "audit only"
        cells = [CELLS[verdict(audit)] for audit in found.values()]
        lines.append(row(f"**{chips[0].vendor}** {names(chips)}", *cells, target))
        details += detail(chips, found)
    return "\n".join([INTRODUCTION + "\n".join(lines), "", "## Why, and what helps", "", *details])


def detail(chips: Sequence[Chip], found: dict[str, Audit]) -> list[str]:
    """Return the section on chips with equal results."""
    lines = [f"### {chips[0].vendor}: {', '.join(short_title(chip) for chip in chips)}", ""]
    groups: dict[str, list[str]] = {}
    for name, audit in found.items():
        groups.setdefault(explained(audit), []).append(short(name))
    for text, variants in groups.items():
        every = len(variants) == len(found)
        lines.append(f"* {'all variants' if every else ', '.join(variants)}: {text}")
    memory: dict[str, list[str]] = {}
    for name, audit in found.items():
        for note in audit.remarks:
            if note not in audit.chip.remarks:  # on the parameters of this variant
                memory.setdefault(note, []).append(short(name))
    lines += [f"* {', '.join(variants)}: {note}" for note, variants in memory.items()]
    lines += shared("note", {chip.name: chip.remarks for chip in chips})
    return [*lines, *shared("source", {chip.name: (chip.source,) for chip in chips}), ""]


def shared(what: str, texts: Mapping[str, Sequence[str]]) -> list[str]:
    """Return each text once, with the names of its chips if not all chips have it."""
    owners: dict[str, list[str]] = {}
    for chip, own in texts.items():
        for text in own:
            owners.setdefault(text, []).append(chip)
    return [
        f"* {what}: {text}"
        if len(chips) == len(texts)
        else f"* {what} ({', '.join(chips)}): {text}"
        for text, chips in owners.items()
    ]


def explained(audit: Audit) -> str:
    """Return the verdict on a variant, what helps, and what is left."""
    words, help_ = verdict(audit), helps(audit)
    if audit.fits:
        return words
    if audit.best.fits:
        return f"fits with `{help_}`. Without it: {reasons(audit)}"
    if words.startswith("fits"):
        return f"fits if you {help_.replace(' or train', ', or train')}. Now: {reasons(audit.best)}"
    better = " ".join(f"--rewrite {name}" for name in audit.rewrites)
    start = f"with `{better}`, " if better else ""
    return ". ".join([f"{start}{reasons(audit.best)}", *(f"Better: {c}" for c in audit.advice)])


def reasons(audit: Audit) -> str:
    """Return which operators do not run, and why: equal reasons once."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for one in audit.rows:
        if one.verdict != "runs" and not one.why.startswith("after "):
            found.setdefault((WORDS[one.verdict], one.why), {})[one.op or one.node] = None
    return "; ".join(f"{', '.join(ops)} {word} ({why})" for (word, why), ops in found.items())


def row(*cells: str) -> str:
    """Return a line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def names(chips: Sequence[Chip]) -> str:
    """Return the names of chips, as ``--target`` takes them."""
    return ", ".join(f"`{chip.name}`" for chip in chips)


def short(name: str) -> str:
    """Return the name of a variant without what all have in common."""
    return name.removeprefix("yolov7-") if name != "yolov7" else name


def short_title(chip: Chip) -> str:
    """Return the title of a chip without its vendor."""
    return chip.title.removeprefix(f"{chip.vendor} ")


if __name__ == "__main__":
    sys.exit(main())
