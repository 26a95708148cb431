"""Write the table of docs/install.md: which extras install from wheels, for each platform.

    python examples/research/install_table.py                               # all platforms, minutes
    python examples/research/install_table.py --only "Windows"
    python examples/research/install_table.py --sizes --write docs/install.md

Needs uv (`pip install uv`) and a connection to PyPI. Nothing is installed, except by --sizes, which
installs each extra into a temporary folder. uv resolves pyproject.toml for platforms and versions
of Python that this machine does not have; unlike `pip install --platform`, it evaluates the markers
of requirements for them too. Only wheels are accepted. A package without a wheel is taken out, and
the rest is resolved again, so that a cell names every one of them.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

import tomllib
from target_table import replaced

from y7edge.errors import ConfigError, Y7EdgeError
from y7edge.files import write_text

PROJECT = Path(__file__).parents[2] / "pyproject.toml"
INTERNAL = {"dev"}
# How uv's hints name the package: it has no wheel at all, or none for this platform or Python.
NO_WHEEL = re.compile(r"[Ww]heels (?:are required |are available )?for `([\w.-]+)`")


class Platform(NamedTuple):
    """A column: its title, uv's name of the platform, and the version of Python there."""

    title: str
    name: str
    python: str


PLATFORMS = (
    Platform("Linux x86-64", "x86_64-manylinux_2_28", "3.12"),
    Platform("Raspberry Pi OS 12", "aarch64-manylinux_2_36", "3.11"),
    Platform("Raspberry Pi OS 13", "aarch64-manylinux_2_40", "3.13"),
    Platform("JetPack 6, Ubuntu 22.04", "aarch64-manylinux_2_35", "3.10"),
    Platform("JetPack 7, Ubuntu 24.04", "aarch64-manylinux_2_39", "3.12"),
    Platform("macOS arm64", "aarch64-apple-darwin", "3.12"),
    Platform("Windows x64", "x86_64-pc-windows-msvc", "3.12"),
)
VERSIONS = ("numpy", "opencv-python", "onnxruntime", "torch")


class Resolved(NamedTuple):
    """The versions that would be installed, and the packages without a wheel."""

    versions: dict[str, str]
    lacking: tuple[str, ...]


def uv(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run uv without the settings of this machine, and without its own builds of Python."""
    command = ["uv", *map(str, arguments), "--no-config", "--no-python-downloads", "--quiet"]
    try:
        return subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise ConfigError("uv was not found: pip install uv") from None


def resolve(extra: str, platform: Platform, project: Path = PROJECT) -> Resolved:
    """Resolve y7edge with an extra for a platform, from wheels only.

    Raises:
        ConfigError: uv fails for another reason than a missing wheel.
    """
    lacking: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        overrides = Path(folder) / "overrides.txt"
        while True:
            # A marker that never holds takes a package out.
            overrides.write_text("".join(f"{p} ; python_version < '0'\n" for p in lacking))
            done = uv(
                *("pip", "compile", project, "--only-binary", ":all:", "--overrides", overrides),
                *("--python-platform", platform.name, "--python-version", platform.python),
                *("--no-header", "--no-annotate", *(["--extra", extra] if extra else [])),
            )
            if done.returncode == 0:
                versions = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", done.stdout, re.MULTILINE))
                return Resolved(versions, tuple(sorted(lacking)))
            found = NO_WHEEL.search(" ".join(done.stderr.split()))
            if found is None or found[1] in lacking:
                raise ConfigError(f"uv, {extra} for {platform.title}: {done.stderr.strip()}")
            lacking.append(found[1])


def sizes(extras: list[str]) -> dict[str, int]:
    """Return the MB that y7edge with each extra takes on this machine, Python not included."""
    found = {}
    for extra in extras:
        with tempfile.TemporaryDirectory() as folder:
            source = f"{PROJECT.parent}[{extra}]" if extra else f"{PROJECT.parent}"
            done = uv("pip", "install", "--python", sys.executable, "--target", folder, source)
            if done.returncode:
                raise ConfigError(f"uv, installing {extra}: {done.stderr.strip()}")
            files = (path for path in Path(folder).rglob("*") if path.is_file())
            found[extra] = round(sum(path.lstat().st_size for path in files) / 1e6)
    return found


def table(
    results: dict[tuple[str, str], Resolved], titles: list[str], measured: dict[str, int]
) -> list[str]:
    """Return the lines of the tables: extras by platforms, then versions by platforms."""
    extras = list(dict.fromkeys(extra for extra, _ in results))
    head = ["extra", *(["MB"] if measured else []), *titles]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for extra in extras:
        cells = [f"`{extra}`" if extra else "(none)"]
        if measured:
            cells.append(str(measured.get(extra, "")))
        for title in titles:
            lacking = results[extra, title].lacking
            cells.append(f"not {', '.join(lacking)}" if lacking else "wheels")
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"| newest version | {' | '.join(titles)} |", "|" + "---|" * (len(titles) + 1)]
    for name in VERSIONS:
        cells = [name]
        for title in titles:
            found = {
                results[e, title].versions[name]
                for e in extras
                if name in results[e, title].versions
            }
            cells.append(", ".join(sorted(found)) or "none")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> int:
    """Print the tables, or write them into a page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    titles = [platform.title for platform in PLATFORMS]
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="platforms whose title has it")
    parser.add_argument("--sizes", action="store_true", help="also install, and measure in MB")
    parser.add_argument("--write", type=Path, metavar="PAGE")
    options = parser.parse_args()
    chosen = [p for p in PLATFORMS if any(t in p.title for t in options.only or [""])]
    try:
        if not chosen:
            raise ConfigError(f"no platform has {options.only} in its title: {', '.join(titles)}")
        project = tomllib.loads(PROJECT.read_text("utf-8"))["project"]
        extras = ["", *(e for e in project["optional-dependencies"] if e not in INTERNAL)]
        results = {}
        for platform in chosen:
            for extra in extras:
                results[extra, platform.title] = resolve(extra, platform)
            print(f"{platform.title}: resolved", file=sys.stderr)
        # PyTorch with CUDA, which PyPI has for Linux, would take gigabytes.
        first = {extra: results[extra, chosen[0].title] for extra in extras}
        whole = [e for e, one in first.items() if not one.lacking and "torch" not in one.versions]
        measured = sizes(whole) if options.sizes else {}
        lines = table(results, [platform.title for platform in chosen], measured)
        lines += ["", provenance(chosen)]
        if options.write is None:
            print("\n".join(lines))
        else:
            text = options.write.read_text("utf-8")
            write_text(options.write, replaced(text, "\n".join(lines), options.write, "install"))
    except (Y7EdgeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def provenance(chosen: list[Platform]) -> str:
    """Return the sentence that says when and how the tables were made."""
    day = datetime.now(timezone.utc).date()
    asked = "; ".join(f"{p.title}: {p.name}, Python {p.python}" for p in chosen)
    version = uv("--version").stdout.strip()
    return f"Resolved on {day} by `examples/research/install_table.py` with {version}. {asked}."


if __name__ == "__main__":
    sys.exit(main())
