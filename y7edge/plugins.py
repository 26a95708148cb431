"""Extension modules: found by listing a folder, or announced by other packages as entry points.

Runtimes and targets are found this way (``y7edge.runtimes.registry``,
``y7edge.export.targets.registry``). A module of the folder cannot be replaced by another package,
and one that is announced and cannot be imported is an error only for whoever asks for it.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType

from y7edge.errors import ConfigError, RuntimeMissing

_NOT_PLUGINS = ("base", "registry")


@dataclass(frozen=True)
class Plugins:
    """The modules of one folder and of one entry-point group.

    ``name_in`` is the constant that holds a module's name; None: the file's name.
    """

    package: str
    group: str
    noun: str
    name_in: str | None = None

    def names(self) -> list[str]:
        """All names: the folder's, sorted, then those of other packages."""
        own = _own(self.package, self.name_in)
        return [*sorted(own), *sorted(set(_announced(self.group)) - set(own))]

    def get(self, name: str) -> ModuleType:
        """Import the module called ``name``.

        Raises:
            ConfigError: no module has this name.
            RuntimeMissing: another package announces it and it cannot be imported.
        """
        own = _own(self.package, self.name_in)
        if name in own:
            return import_module(own[name])
        if name not in _announced(self.group):
            raise ConfigError(f"no {self.noun} {name!r}; choose from {', '.join(self.names())}")
        point = _announced(self.group)[name]
        try:
            module: ModuleType = point.load()
        except (ImportError, AttributeError) as error:
            raise RuntimeMissing(
                f"{self.noun} {name!r} is announced by an installed package as {point.value}, "
                f"which cannot be imported ({error}): reinstall that package"
            ) from error
        return module

    def loadable(self) -> Iterator[ModuleType]:
        """All modules but those that another package announces and cannot deliver."""
        for name in self.names():
            with suppress(RuntimeMissing):
                yield self.get(name)


@cache
def _own(package: str, name_in: str | None) -> dict[str, str]:
    """Name -> import name of the modules in a folder; those that start with ``_`` are private."""
    found = pkgutil.iter_modules(import_module(package).__path__)
    stems = [m.name for m in found if m.name not in _NOT_PLUGINS and not m.name.startswith("_")]
    modules = [f"{package}.{stem}" for stem in stems]
    if name_in is None:
        return dict(zip(stems, modules, strict=True))
    return {getattr(import_module(module), name_in): module for module in modules}


@cache
def _announced(group: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=group)}
