"""Read the tables of chips: the operators that an accelerator runs, and their limits.

A table is a YAML file of ``y7edge/export/chips``, or of the user. Adding a chip needs no code. A
limit names a fact of an operator (``facts.WORDS``)::

    title: Example X1
    vendor: Example
    source: "Example SDK 2.1 operator list (2026-03)"
    target: null
    others: cpu
    operations:
      Conv: {limits: {kernel: {max: 7}, stride: {among: [1, 2]}}}
      LeakyRelu: {verdict: refused, why: "no such operator"}
      MaxPool: [{limits: {kernel: {max: 3}}}, {verdict: cpu, why: "only 3x3 windows"}]

A table that begins with ``like: NAME`` is the table NAME of the same folder with some entries
replaced.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from y7edge.artifact.schema import decode, nearest, texts
from y7edge.data.formats.plain_yaml import as_value, read_yaml
from y7edge.errors import ConfigError
from y7edge.export.audit.facts import WORDS
from y7edge.export.graph.rewrites import REWRITES
from y7edge.files import is_file
from y7edge.text import is_printable

FOLDER = Path(__file__).parents[1] / "chips"
"""The folder of the tables that are part of the package."""

SUFFIX = ".yaml"
Verdict = Literal["runs", "cpu", "refused", "unknown"]
"""What happens to a node: it runs on the accelerator, the CPU runs it, the vendor's converter or
the target refuses the model, or the documents of the chip do not say."""

_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")
_OPERATOR = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_LONGEST = 600  # characters of a text
_MOST = 1e12  # of a number


@dataclass(frozen=True)
class Limit:
    """The values that a fact may have. At least one field is given.

    Attributes:
        min: smallest value.
        max: largest value.
        among: all values.
        multiple: a number that divides all values.
    """

    min: float | None = None
    max: float | None = None
    among: tuple[float | str, ...] | None = None
    multiple: int | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError if the limit has no field, or an impossible one."""
        if all(value is None for value in (self.min, self.max, self.among, self.multiple)):
            raise ConfigError("expected min, max, among or multiple, found none")
        if self.among == ():
            raise ConfigError("among is empty, expected the values that are allowed")
        if self.multiple is not None and self.multiple < 1:
            raise ConfigError(f"multiple is {self.multiple}, expected 1 or more")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ConfigError(f"min {self.min:g} is larger than max {self.max:g}")

    def holds(self, value: float | str) -> bool:
        """Return whether a value is within the limit."""
        if self.among is not None and value not in self.among:
            return False
        if isinstance(value, str):
            return self.min is None and self.max is None and self.multiple is None
        return (
            (self.min is None or value >= self.min)
            and (self.max is None or value <= self.max)
            and (self.multiple is None or value % self.multiple == 0)
        )

    def __str__(self) -> str:
        parts = []
        if self.min is not None:
            parts.append(f"at least {self.min:g}")
        if self.max is not None:
            parts.append(f"at most {self.max:g}")
        if self.among is not None:
            values = [v if isinstance(v, str) else f"{v:g}" for v in self.among]
            parts.append(" or ".join(values))
        if self.multiple is not None:
            parts.append(f"a multiple of {self.multiple}")
        return ", ".join(parts)


@dataclass(frozen=True)
class Rule:
    """What a chip does with nodes of one type within some limits.

    Attributes:
        verdict: Of nodes within the limits.
        limits: Name of a fact -> its limit; all must hold.
        beyond: Verdict of nodes outside of the limits of all rules; only the first rule's is used.
            None: the table's ``others``.
        why: Reason, if the verdict is not "runs"; otherwise a remark on the limits.
        source: The document, if it is not that of the table.
    """

    verdict: Verdict = "runs"
    limits: Mapping[str, Limit] = field(default_factory=dict)
    beyond: Verdict | None = None
    why: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        """Raise ConfigError for unknown facts, and for a verdict without a reason."""
        for name in self.limits:
            if name not in WORDS:
                hint = nearest(name, WORDS)
                raise ConfigError(f"limits: there is no fact {name[:64]!r}{hint}")
        if self.verdict != "runs" and not self.why:
            raise ConfigError(f"the verdict is {self.verdict}: expected a reason in `why`")


@dataclass(frozen=True)
class Memory:
    """The memory for the parameters of a network.

    Attributes:
        parameters: Bytes for parameters on the chip. What is beyond is read from another memory for
            every image.
        most: Bytes of parameters beyond which a network is refused; None if it never is.
        bytes_per_parameter: 1 in int8, 2 in fp16.
        source: The document, if it is not that of the table.
    """

    parameters: int
    most: int | None = None
    bytes_per_parameter: float = 1
    source: str = ""


@dataclass(frozen=True)
class Chip:
    """The table of one chip.

    Attributes:
        title: Name of the chip, for readers.
        vendor: Its vendor.
        source: Document with version or date.
        others: Verdict of operators that are not listed, and of nodes outside of limits. Inputs
            outside of limits are refused, unless their rule says otherwise.
        target: The export target that hands over to the vendor's converter; None if there is none.
        options: Options of the target that select the chip.
        device: Value of ``--device`` for the export; empty for the default.
        built_in: Rewrites that every file for this chip has, without being asked for.
        others_why: What the documents say of operators that are not listed.
        qdq: Whether the converter reads QDQ graphs; None if it is not known.
        opsets: Oldest and newest opset that the converter reads.
        precisions: Precisions that the chip computes in.
        input: Rules for the input (facts ``side`` and ``batch``), all of which must hold.
        memory: Memory for parameters.
        single_split: Whether all nodes after the first one on the CPU also run there.
        remarks: What else a user should know.
        operations: Operator -> rules for its nodes. The first rule whose limits hold decides.
        name: Name of the table.
    """

    title: str
    vendor: str
    source: str
    others: Verdict
    operations: Mapping[str, tuple[Rule, ...]]
    target: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    device: str = ""
    built_in: tuple[str, ...] = ()
    others_why: str = ""
    qdq: bool | None = None
    opsets: tuple[int, int] | None = None
    precisions: tuple[str, ...] = ()
    input: tuple[Rule, ...] = ()
    memory: Memory | None = None
    single_split: bool = False
    remarks: tuple[str, ...] = ()
    name: str = ""

    def __post_init__(self) -> None:
        """Raise ConfigError for entries that are empty or out of range."""
        for name in ("title", "vendor", "source"):
            if not getattr(self, name).strip():
                raise ConfigError(f"{name} is empty")
        for name, rules in self.operations.items():
            if not _OPERATOR.fullmatch(name) or not rules:
                raise ConfigError(f"operations: {name[:64]!r} is not an operator with rules")
        for rule in self.input:
            if not rule.limits.keys() <= {"side", "batch"}:
                raise ConfigError("input: expected limits on side and batch only")
        if self.opsets is not None and not 1 <= self.opsets[0] <= self.opsets[1]:
            raise ConfigError(f"opsets are {self.opsets}, expected the oldest and the newest")
        if self.memory is not None:
            size, most = self.memory.parameters, self.memory.most
            if size < 1:
                raise ConfigError(f"memory.parameters is {size}, expected bytes")
            if most is not None and most < size:
                raise ConfigError(f"memory.most is {most}, expected at least parameters, {size}")
        for name in self.built_in:
            if name not in REWRITES:
                raise ConfigError(f"built_in: no rewrite {name[:64]!r}{nearest(name, REWRITES)}")
        if self.options and self.target is None:
            raise ConfigError("there are options, but no target")

    @property
    def largest_side(self) -> float | None:
        """Largest side of the input in pixels; None if it is not limited."""
        sides = [rule.limits["side"].max for rule in self.input if "side" in rule.limits]
        return min((side for side in sides if side is not None), default=None)


def names(folder: Path = FOLDER) -> list[str]:
    """Return the names of the tables in a folder, in alphabetical order.

    Raises:
        ConfigError: the folder cannot be read, or has no tables.
    """
    try:
        found = sorted(path.stem for path in folder.iterdir() if path.suffix == SUFFIX)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot list the tables of chips: {error.strerror}") from error
    if not found:
        raise ConfigError(f"{folder}: expected tables of chips (*{SUFFIX}), found none")
    return found


def load(name: str, folder: Path = FOLDER) -> Chip:
    """Return the table of a chip.

    Args:
        name: name of a table of ``folder``, or the path of a YAML file.
        folder: folder with the tables.

    Raises:
        ConfigError: there is no such table, or it has invalid entries.
    """
    path = Path(name)
    if path.suffix.lower() not in (SUFFIX, ".yml"):
        if name not in (known := names(folder)):
            raise ConfigError(f"there is no table of a chip {name[:64]!r}{nearest(name, known)}")
        path = folder / f"{name}{SUFFIX}"
    elif not is_file(path):
        raise ConfigError(f"{name}: there is no such file, expected the table of a chip")
    return _known(path) if path.parent == FOLDER else _read(path)


def _read(path: Path) -> Chip:
    values = _values(path)
    if "like" in values:
        values = _extended(path, values)
    if isinstance(values.get("operations"), dict):  # a single rule may be given without a list
        rules = {op: [r] if isinstance(r, dict) else r for op, r in values["operations"].items()}
        values = {**values, "operations": rules}
    chip: Chip = decode(Chip, {**values, "name": path.stem}, origin=str(path), error=ConfigError)
    return chip


_known = cache(_read)  # the tables of the package do not change


def load_all(folder: Path = FOLDER) -> Iterator[Chip]:
    """Yield the tables of a folder in alphabetical order of vendors and names."""
    chips = [load(name, folder) for name in names(folder)]
    yield from sorted(chips, key=lambda chip: (chip.vendor.lower(), chip.name))


def _values(path: Path) -> dict[str, Any]:
    """Read a table; raise ConfigError if it is not a mapping of printable texts and numbers."""
    try:
        tree = read_yaml(path, as_value)
        found = list(texts(tree.content))
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    if tree.repeated:
        key, first, second = tree.repeated[0]
        raise ConfigError(f"{path}: {key[:64]!r} is given twice, in lines {first} and {second}")
    if not isinstance(tree.content, dict):
        raise ConfigError(f"{path}: expected the table of a chip, found {repr(tree.content)[:60]}")
    for text in found:
        if len(text) > _LONGEST or not is_printable(text):
            raise ConfigError(
                f"{path}: expected printable texts of at most {_LONGEST} characters, found "
                f"{text[:60]!r}"
            )
    if "name" in tree.content:
        raise ConfigError(f"{path}: the name of a table is that of its file; remove the entry name")
    if not _NAME.fullmatch(path.stem):
        raise ConfigError(
            f"{path}: expected a name of lower-case letters, digits, dots and hyphens, such as "
            f"my-chip{SUFFIX}"
        )
    return tree.content


def _extended(path: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the table that ``like`` names, replaced by those of ``values``."""
    name = values["like"]
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(f"{path}: like is {repr(name)[:60]}, expected the name of a table")
    base = path.with_name(f"{name}{SUFFIX}")
    if not is_file(base):
        raise ConfigError(f"{path}: like is {name}, but there is no {base.name} beside it")
    found = _values(base)
    if "like" in found:
        raise ConfigError(f"{path}: like is {name}, which is itself like {found['like']!r:.60}")
    merged = {**found, **values}
    del merged["like"]
    before, after = found.get("operations"), values.get("operations", {})
    if isinstance(before, dict) and isinstance(after, dict):
        merged["operations"] = {**before, **after}
    return merged
