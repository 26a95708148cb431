"""Find files that hide installed packages, such as a script ``cv2.py`` in the current folder.

Imports only the standard library, because any other package may be hidden.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType

from y7edge.errors import RuntimeMissing
from y7edge.text import one_line


def hidden(module: str) -> str | None:
    """Return a description of a file or folder that hides the package ``module``, or None.

    Python imports the first module of this name on ``sys.path``, such as a script ``cv2.py``. A
    package that pip or the system installed hides nothing: it may replace an older one.
    """
    places = _places(module)
    if not places or _is_installation(places[0].parent):
        return None
    if len(places) > 1:
        return f"{places[0]} hides {places[1]}: rename or remove one of them"
    folder = Path(sys.path[0] or ".").resolve()
    if places[0].is_relative_to(folder):
        from importlib import metadata  # its import is slow

        if not metadata.packages_distributions().get(module):
            return f"{places[0]} is found instead of an installed package: rename it"
    return None


def hidden_behind(error: BaseException) -> RuntimeMissing | None:
    """Return an error that names the file which hides a package, if ``error`` comes from there.

    The package is the one that could not be imported, that lacks an attribute, or whose code raised
    the exception. The causes of ``error`` are examined too, because engines wrap exceptions.
    """
    link: BaseException | None = error
    while link is not None:
        for module in _blamed(link):
            if problem := hidden(module):
                found = one_line(f"{type(link).__name__}: {link}")
                return RuntimeMissing(f"{problem} ({found})")
        link = link.__cause__ or link.__context__
    return None


def _blamed(error: BaseException) -> Iterator[str]:
    """Yield the names of the packages that an exception is about."""
    if isinstance(error, ImportError) and error.name:
        yield error.name.partition(".")[0]
    if isinstance(error, AttributeError) and isinstance(error.obj, ModuleType):
        yield error.obj.__name__.partition(".")[0]
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    raised_in = str(trace.tb_frame.f_globals.get("__name__")) if trace else ""
    package = raised_in.partition(".")[0]
    if package not in ("", "__main__", "y7edge") and len(_places(package)) > 1:
        yield package


def _is_installation(folder: Path) -> bool:
    """Return whether packages were installed into a folder."""
    installed = ("site-packages", "dist-packages")
    return folder.name in installed or any(folder.glob("*.dist-info"))


def _places(module: str) -> list[Path]:
    """Return the modules of this name on ``sys.path``, first the one that Python imports."""
    found: list[Path] = []
    folders: list[Path] = []  # without __init__.py: imported only if there is no module
    for entry in dict.fromkeys(sys.path):
        spec = PathFinder.find_spec(module, [entry or "."])
        if spec is None:
            continue
        if spec.origin:
            origin = Path(spec.origin).resolve()
            place = origin.parent if origin.stem == "__init__" else origin
        else:
            place = Path(next(iter(spec.submodule_search_locations or [entry]))).resolve()
        listed = found if spec.origin else folders
        if place not in listed:
            listed.append(place)
    return found or folders
