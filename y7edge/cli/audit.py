"""``y7edge audit``: find out which operators of a model run on a chip, without the chip."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from y7edge.cli.console import show, table, to_json
from y7edge.cli.models import kind_of
from y7edge.cli.options import ImageSize, Json, Model, Size, completion, out_file
from y7edge.errors import ConfigError, GateError
from y7edge.files import write_text, writing
from y7edge.text import printable

if TYPE_CHECKING:
    from y7edge.export.audit.chips import Chip
    from y7edge.export.audit.verdicts import Audit


def _chips(incomplete: str) -> list[str]:
    from y7edge.export.audit.chips import names

    return [name for name in names() if name.startswith(incomplete)]


_Chip = Annotated[
    str | None,
    typer.Option(
        "--target",
        metavar="CHIP",
        autocompletion=_chips,
        help="Name of a chip, such as kl520, or a table of your own (.yaml); default: all chips.",
    ),
]
_Chips = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Folder with tables of your own.")
]
_Outputs = Annotated[
    str | None,
    typer.Option(
        metavar="OUTPUTS",
        autocompletion=completion("outputs"),
        help="Outputs of the graph: {outputs}; default: heads.",
    ),
]
_Rewrites = Annotated[
    list[str] | None,
    typer.Option(
        "--rewrite",
        metavar="NAME",
        autocompletion=completion("rewrites"),
        help="Rewrite a part of the graph; repeatable: {rewrites}, or auto: what the chip needs.",
    ),
]
_Nodes = Annotated[bool, typer.Option("--nodes", help="List every node.")]
_Out = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Also write the result to this file.", callback=out_file),
]


def audit(
    model: Model,
    target: _Chip = None,
    imgsz: Size = None,
    outputs: _Outputs = None,
    rewrite: _Rewrites = None,
    nodes: _Nodes = False,
    chips: _Chips = None,
    out: _Out = None,
    as_json: Json = False,
) -> None:
    """Find out which operators of a model run on a chip.

    The others are run by the CPU, or the vendor's converter refuses the graph. The verdicts come
    from tables made from the vendors' documents. No vendor's software is needed. For a variant or a
    checkpoint, also finds the rewrites, activation or input size after which the model fits, and
    checks them. For an artifact or an ONNX file, only the graph is read.

    With --target, prints one line for each kind of operator, and the export command to run next;
    the exit code is 4 if the vendor's converter, or the target, refuses the graph. Without
    --target, prints one line for each chip. "unknown": the vendor's document does not say.
    """
    from y7edge.export.audit.chips import FOLDER, load, load_all
    from y7edge.export.audit.report import lines

    folder = chips or FOLDER
    audited = _auditor(model, imgsz, outputs, rewrite or [])
    one = None if target is None else audited(load(target, folder))
    if one is None:
        found = [audited(chip) for chip in load_all(folder)]
        record: dict[str, Any] = {"model": model, "chips": [_short(each) for each in found]}
        text = _overview(found)
    else:
        record = {"model": model, **one.to_dict()}
        text = [*lines(one, nodes=nodes), *_command(model, one, imgsz, outputs)]
    if out is not None:
        content = to_json(record) if as_json else "\n".join(map(printable, text))
        with writing("the result", out):
            write_text(out, f"{content}\n")
    show(record, text, as_json=as_json)
    if one is not None and one.outcome == "refused":
        raise GateError(f"{model} is refused by {one.chip.title}: {_way_out(one)}")


def _auditor(
    model: str, imgsz: ImageSize | None, outputs: str | None, rewrites: list[str]
) -> Callable[[Chip], Audit]:
    """Return a function that audits the model for a chip; read the model once."""
    from y7edge.artifact.description import Outputs, require_size
    from y7edge.export.audit.cures import Subject, audit_spec
    from y7edge.export.audit.facts import load_structure
    from y7edge.export.audit.verdicts import audit_structure
    from y7edge.models import registry, weights

    kind = kind_of(model)
    if kind == "artifact":
        for option, value in (("--imgsz", imgsz), ("--outputs", outputs), ("--rewrite", rewrites)):
            if value:
                raise ConfigError(f"{model} is a finished graph: omit {option}")
        structure = load_structure(Path(model))
        return lambda chip: audit_structure(structure, chip)
    outputs = outputs or get_args(Outputs)[0]
    if outputs not in get_args(Outputs):
        raise ConfigError(f"no outputs {outputs!r}; choose from {', '.join(get_args(Outputs))}")
    if kind == "name":
        spec, trained = registry.get(model), None
    else:
        checkpoint = weights.load(Path(model))
        spec, trained = checkpoint.spec, checkpoint.imgsz
    size = imgsz or trained or (spec.imgsz, spec.imgsz)
    require_size(spec, size)
    subject = Subject(spec, *size, outputs)
    return lambda chip: audit_spec(subject, chip, rewrites)


def _short(audit: Audit) -> dict[str, Any]:
    """Return an audit as JSON values, without the rows of its nodes."""
    from y7edge.export.audit.report import helps, problems, verdict

    whole = audit.to_dict()
    record = {key: whole[key] for key in whole if key not in ("rows", "with_rewrites")}
    words = {"verdict": verdict(audit), "helps": helps(audit), "problems": problems(audit)}
    return {**record, **words, "outcome_with_rewrites": audit.best.outcome}


def _overview(found: list[Audit]) -> list[str]:
    """Return one line for each chip."""
    from y7edge.export.audit.report import helps, problems, verdict

    head = ("chip", "vendor", "verdict", "nodes", "of", "% of MACs", "what helps", "what is left")
    rows = [
        (
            audit.chip.name,
            audit.chip.vendor,
            verdict(audit),
            audit.best.counts["runs"],
            len(audit.best.nodes),
            f"{100 * audit.best.share:.0f}",
            helps(audit),
            problems(audit),
        )
        for audit in found
    ]
    return [*table([head, *rows]), "", "`y7edge audit MODEL --target CHIP` says why"]


def _command(model: str, audit: Audit, imgsz: ImageSize | None, outputs: str | None) -> list[str]:
    """Return the export command to run next, if a target hands over to the chip's converter."""
    from y7edge.export.audit.chips import names
    from y7edge.export.targets import registry as targets

    chip = audit.chip
    if kind_of(model) == "artifact":
        hint = "to find what helps, audit the checkpoint or the variant instead of the graph"
        return [] if audit.fits else [hint]
    if chip.target is None and chip.name not in names():
        return []
    if chip.target is None:
        return ["export: no target writes files for this chip; docs/audit-only.md has its commands"]
    if chip.target not in targets.names() or audit.best.outcome == "refused":
        return []
    target = targets.get(chip.target)
    asked = [name for name in audit.applied if name not in chip.built_in]
    if asked and target.NEEDS_CHECKPOINT:
        return [f"export: target {chip.target} reads no graph, so it takes no --rewrite"]
    words = ["y7edge export", quote(model), f"--target {chip.target}"]
    words += [f"--option {name}={value}" for name, value in chip.options.items()]
    words += [f"--device {chip.device}"] if chip.device else []
    easy = next((change.options for change in audit.advice if not change.training), "")
    if imgsz and "--imgsz" not in easy:
        words.append(f"--imgsz {imgsz.height}x{imgsz.width}")
    if outputs and "--outputs" not in easy:
        words.append(f"--outputs {outputs}")
    rewrites = [f"--rewrite {name}" for name in (*asked, *audit.rewrites)]
    words += [easy] if easy else rewrites
    usual = next(iter(target.PRECISIONS))
    precision = next((name for name in target.PRECISIONS if name in chip.precisions), usual)
    words += [f"--precision {precision}"] if precision != usual else []
    if precision == "int8":
        integers = not target.INT8_HEADS and not {"fp16", "bf16", "fp32"} & {*chip.precisions}
        words += ["--quantize-heads --data DATA"] if integers else ["--data DATA"]
    words += ["--calib DATA"] if target.CALIBRATES else []
    words += [] if isinstance(target.RUNTIME, str) else ["--unverified REASON"]
    return [f"export: {' '.join(words)}"]


def _way_out(audit: Audit) -> str:
    """Return what helps a refused model, or why the graph is refused."""
    from y7edge.export.audit.report import helps

    row = next(row for row in audit.rows if row.verdict == "refused")
    return helps(audit) or f"{row.op or row.node}: {row.why}"
