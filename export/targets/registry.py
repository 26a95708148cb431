"""Which targets exist: the files of this folder."""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module
from typing import cast

import y7edge.export.targets
from y7edge.errors import ConfigError
from y7edge.export.targets.base import Target

_NOT_TARGETS = ("base", "registry")


@cache
def _all() -> dict[str, Target]:
    package = y7edge.export.targets
    files = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    modules = [import_module(f"{package.__name__}.{n}") for n in files if n not in _NOT_TARGETS]
    return {module.NAME: cast(Target, module) for module in modules}


def names() -> list[str]:
    """All targets, whether what they need is installed or not."""
    return list(_all())


def get(name: str) -> Target:
    """The target module ``name``.

    Raises:
        ConfigError: there is none of this name.
    """
    if name not in _all():
        raise ConfigError(f"there is no target {name!r}; choose from {', '.join(names())}")
    return _all()[name]
