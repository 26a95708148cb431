"""List the targets: modules of this folder, and entry points of the group ``y7edge.targets``."""

from __future__ import annotations

from typing import cast

from y7edge.artifact.schema import checked
from y7edge.export.targets.base import Target
from y7edge.plugins import Plugins

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
