"""Find plugins (runtimes, targets): modules of our packages, and entry points of other packages.

Our own module takes precedence over an entry point of the same name. An entry point that cannot be
imported raises an error only when it is used.
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
    """All plugins of one kind."""

    package: str  # its modules are plugins, such as "y7edge.runtimes"
    group: str  # entry-point group for plugins of other packages
    noun: str  # the kind in messages, such as "target"
    name_in: str | None = None  # module constant with the plugin's name; None: the module's name

    def names(self) -> list[str]:
        """Return all names: our own modules sorted by name, then the sorted entry points."""
        own = _own(self.package, self.name_in)
        return [*sorted(own), *sorted(set(_announced(self.group)) - set(own))]

    def get(self, name: str) -> ModuleType:
        """Import the module called ``name``.

        Raises:
            ConfigError: there is no plugin of this name.
            RuntimeMissing: the plugin of another package cannot be imported.
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
                f"{self.noun} {name!r} cannot be imported from {point.value} ({error}): reinstall "
                "the package that contains it"
            ) from error
        return module

    def loadable(self) -> Iterator[ModuleType]:
        """Yield all modules that can be imported."""
        for name in self.names():
            with suppress(RuntimeMissing):
                yield self.get(name)


@cache
def _own(package: str, name_in: str | None) -> dict[str, str]:
    """Return the import names of a package's public modules by plugin name."""
    found = pkgutil.iter_modules(import_module(package).__path__)
    stems = [m.name for m in found if m.name not in _NOT_PLUGINS and not m.name.startswith("_")]
    modules = [f"{package}.{stem}" for stem in stems]
    if name_in is None:
        return dict(zip(stems, modules, strict=True))
    return {getattr(import_module(module), name_in): module for module in modules}


@cache
def _announced(group: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=group)}
