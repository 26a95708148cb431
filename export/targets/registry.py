"""List the targets: modules of this folder, and entry points of the group ``y7edge.targets``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

from y7edge.artifact.schema import checked
from y7edge.errors import RuntimeMissing
from y7edge.export.targets.base import Target, Unprovable
from y7edge.packages import hidden
from y7edge.plugins import Plugins
from y7edge.runtimes import registry as runtimes
from y7edge.runtimes.base import require

TARGETS = Plugins("y7edge.export.targets", "y7edge.targets", "target", name_in="NAME")


def names() -> list[str]:
    """Return the names of all targets, whether their packages are installed or not."""
    return TARGETS.names()


@checked
def get(name: str) -> Target:
    """Return the target module ``name``.

    Raises:
        ConfigError: no target has this name.
        RuntimeMissing: the entry point of another package names this target, but its module cannot
            be imported.
    """
    return cast(Target, TARGETS.get(name))


@dataclass(frozen=True, slots=True)
class Converter:
    """A target, and whether its artifacts can be built and proved on this machine.

    Attributes:
        target: Name of the target.
        suffix: Suffix of the main file; empty if the target cannot be imported.
        exports: Whether `y7edge export` can build it, from a checkpoint.
        builds: Whether `y7edge build` can build it, from a proved ONNX artifact.
        reason: Why or why not.
        versions: Versions of the converter's packages.
    """

    target: str
    suffix: str
    exports: bool
    builds: bool
    reason: str
    versions: dict[str, str] = field(default_factory=dict)


def converters(lacking: Sequence[str] = ()) -> list[Converter]:
    """Find out which targets can be built here. No converter is run or imported.

    ``lacking``: packages of `y7edge export` that are not installed (names on PyPI).
    """
    return [_converter(name, lacking) for name in names()]


def _converter(name: str, lacking: Sequence[str]) -> Converter:
    suffix = ""
    try:
        target = get(name)
        suffix = target.SUFFIX
        needs = dict(target.NEEDS)
        if isinstance(target.RUNTIME, str):
            needs |= runtimes.get(target.RUNTIME).NEEDS
        require(needs, f"target {name}", getattr(target, "misplaced", None))
        for problem in filter(None, map(hidden, needs)):
            raise RuntimeMissing(problem)
        versions = target.versions()
    except RuntimeMissing as error:
        return Converter(name, suffix, exports=False, builds=False, reason=str(error))
    # `build` starts from an ONNX artifact, and its result is proved by a runtime.
    provable = not isinstance(target.RUNTIME, Unprovable)
    onnx_only = not target.NEEDS_CHECKPOINT and not target.CALIBRATES
    builds = name != "onnx" and provable and onnx_only
    reason = f"builds {suffix} files"
    if lacking:
        needed = f"`y7edge export` needs {', '.join(lacking)}: pip install 'y7edge[export]'"
        reason = f"{reason} from ONNX artifacts only; {needed}" if builds else needed
    elif not provable:
        reason += ", without a proof (--unverified)"
    return Converter(name, suffix, not lacking, builds, reason, versions)
