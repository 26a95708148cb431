"""What gets installed: every package on disk is listed; the wheel holds our names and no others."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
import zipfile
from itertools import chain
from pathlib import Path

import pytest

from y7edge import __version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

ROOT = Path(__file__).parents[1]


def _setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def _mapping() -> dict[str, str]:
    lines = _setup()["options"]["package_dir"].split("\n")
    return dict(re.split(r"\s*=\s*", line) for line in lines if line)


def _packages() -> set[str]:
    return set(_setup()["options"]["packages"].split())


def _packages_on_disk() -> set[str]:
    found = set()
    for name, folder in _mapping().items():
        for init in (ROOT / folder).rglob("__init__.py"):
            parts = init.parent.relative_to(ROOT / folder).parts
            # The links y7edge/export and y7edge/runtimes show the same files again.
            if name != "y7edge" or parts[:1] not in (("export",), ("runtimes",)):
                found.add(".".join((name, *parts)))
    return found


def test_every_package_on_disk_is_listed() -> None:
    # An editable install works without the line; the wheel would silently lack the package.
    assert _packages() == _packages_on_disk()


def test_every_folder_with_modules_is_a_package() -> None:
    for folder in ("y7edge", "export", "runtimes"):
        for module in (ROOT / folder).rglob("*.py"):
            assert (module.parent / "__init__.py").is_file(), module


@pytest.mark.parametrize(("link", "target"), [("export", "../export"), ("runtimes", "../runtimes")])
def test_links_are_relative(link: str, target: str) -> None:
    assert (ROOT / "y7edge" / link).readlink() == Path(target)


def test_tests_are_not_packages() -> None:
    # tests/export/__init__.py would become a top-level module `export`.
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_version_is_stated_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == __version__


def test_base_install_needs_no_engine() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[<>=!~ ]", line)[0] for line in project["dependencies"]}
    assert names == {"numpy", "typer", "rich"}


def test_constraints_pin_all_that_is_asked_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = dict(project["optional-dependencies"])
    for name in ("tensorrt", "coreml"):
        del extras[name]  # the tests were not run with it
    asked = chain(project["dependencies"], *extras.values())
    names = {re.split(r"[\[<>=!~ ]", line)[0].lower() for line in asked} - {"y7edge"}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split(" ;")[0].split("==") for line in lines if not line.startswith("#"))
    assert names <= set(pins)
    assert not [pin for pin in pins.values() if "+" in pin or "/" in pin]


def test_source_distribution_holds_whole_folders_and_files() -> None:
    lines = (ROOT / "MANIFEST.in").read_text().splitlines()
    words = set(" ".join(line for line in lines if line.startswith(("graft", "inc"))).split())
    # What setuptools takes without being told, and what is not in Git or only for it.
    taken = {"y7edge", "export", "runtimes", "pyproject.toml", "setup.cfg", "MANIFEST.in"}
    taken |= {"README.md", "LICENSE", "NOTICE", ".git", ".gitignore", ".venv"}
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()}
    names = {path.name for path in ROOT.iterdir()} - taken - ignored
    assert {name for name in names if not name.endswith((".egg-info", "cache"))} <= words


@pytest.mark.slow
def test_wheel_holds_our_names_only(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(tmp_path)]
    source = tmp_path / "source"
    _copy_checkout(source)
    subprocess.run([*command, str(source)], check=True, capture_output=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"y7edge"}
    folders = {str(Path(name).parent).replace("/", ".") for name in names if name.endswith(".py")}
    assert folders == _packages()
    assert "y7edge/py.typed" in names
    assert {"y7edge/runtimes/_cuda_kernels.cu", "y7edge/runtimes/_cuda_kernels.ptx"} <= set(names)
    page = {"index.html", "app.js", "style.css", "icon.svg"}
    assert {f"y7edge/live/page/{name}" for name in page} <= set(names)
    assert {Path(name).name for name in names if "/licenses/" in name} == {"LICENSE", "NOTICE"}


def _copy_checkout(destination: Path) -> None:
    """Copy what a build needs, links kept as links; a build/ folder of old is left behind."""
    for folder in ("y7edge", "export", "runtimes"):
        shutil.copytree(ROOT / folder, destination / folder, symlinks=True)
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, destination / name)
