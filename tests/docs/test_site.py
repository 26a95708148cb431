"""The site: it is built without warnings, loads nothing from other servers, and has every name."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser

import pytest

import y7edge
from tests.docs.blocks import ROOT

DOCUMENTED = Counter(
    name
    for page in (ROOT / "docs" / "api").glob("*.md")
    for name in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
)


def listed(package: str) -> list[str]:
    """The names of ``__all__`` of a package, which is not imported, because that may need torch."""
    tree = ast.parse((ROOT / package / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    raise AssertionError(package)


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("y7edge", [name for name in y7edge.__all__ if name != "__version__"]),
        ("y7edge.models", listed("y7edge/models")),
        ("y7edge.models.official", ["load", "convert"]),
        ("y7edge.nn", listed("y7edge/nn")),
        ("y7edge.export", listed("export")),
        ("y7edge.data.dataset", ["load"]),
        ("y7edge.runtimes.base", ["Runtime", "Session", "SessionOptions"]),
        ("y7edge.export.targets.base", ["Target", "BuildRequest"]),
    ],
)
def test_every_public_name_is_documented_once(module, names):
    assert {name: DOCUMENTED[f"{module}.{name}"] for name in names} == dict.fromkeys(names, 1)


def test_no_name_is_documented_twice():
    assert [name for name, count in DOCUMENTED.items() if count > 1] == []


class Loaded(HTMLParser):
    """Collect what a browser loads when it shows a page."""

    def __init__(self):
        super().__init__()
        self.addresses = []
        self.classes = set()

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.classes |= set((values.get("class") or "").split())
        names = {"link": ["href"], "a": [], "form": []}.get(tag, ["src", "srcset", "href", "data"])
        self.addresses += [values[name] for name in names if values.get(name)]


class Text(HTMLParser):
    """Collect the texts between tags."""

    def __init__(self):
        super().__init__()
        self.texts = []

    def handle_data(self, data):
        self.texts.append(data)


def test_what_a_page_loads_is_found():
    page = Loaded()
    page.feed('<a href="https://a.org"><link href="//b.org/c.css"><img src="d.png"><script src=e>')
    assert page.addresses == ["//b.org/c.css", "d.png", "e"]


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The folder of the site, built in a copy, because the checkout may be read-only."""
    pytest.importorskip("zensical", reason="the package zensical is not installed")
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "docs", folder / "docs")
    shutil.copy(ROOT / "zensical.toml", folder)
    for package in ("y7edge", "export", "runtimes"):
        (folder / package).symlink_to(ROOT / package)
    closed = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "[::1]:9")
    built = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict", "--clean"],
        cwd=folder,
        env={**os.environ, **closed, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
    )
    printed = re.sub(r"\x1b\[[\d;]*m", "", built.stdout + built.stderr).partition("Traceback")[0]
    if built.returncode != 0 or "No issues found" not in printed:
        pytest.fail(printed, pytrace=False)
    return folder / "build" / "site"


@pytest.mark.slow
def test_pages_load_nothing_from_other_servers(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > len(list((ROOT / "docs").rglob("*.md"))) - 2
    for path in pages:
        page = Loaded()
        page.feed(path.read_text(encoding="utf-8"))
        elsewhere = [one for one in page.addresses if re.match(r"(?:\w+:)?//", one)]
        assert elsewhere == [], path.name
        # A script of the theme would load what draws diagrams and formulas.
        assert not page.classes & {"mermaid", "arithmatex"}, path.name
    for path in site.rglob("*.css"):
        text = path.read_text(encoding="utf-8")
        loaded = re.findall(r"(?:url\(|@import)\s*[\"']?((?:\w+:)?//[^\"')]+)", text)
        assert loaded == [], path.name


@pytest.mark.slow
def test_only_pages_and_images_are_published(site):
    published = {path.suffix for path in site.rglob("*") if path.is_file()}
    assert not published & {".py", ".md", ".jsonl"}


@pytest.mark.slow
def test_the_reference_has_signatures_and_members(site):
    text = (site / "api" / "detect.html").read_text(encoding="utf-8")
    for anchor in ("y7edge.Detector", "y7edge.Detector.stream", "y7edge.Detections.to_supervision"):
        assert f'id="{anchor}"' in text
    assert "Thread-safe: concurrent calls run one after the other" in text
    # Sections of docstrings that were not understood would be text.
    sections = re.compile(r"^(?:Args|Attributes|Example|Raises|Returns|Yields):", re.MULTILINE)
    for path in (site / "api").glob("*.html"):
        page = Text()
        page.feed(path.read_text(encoding="utf-8"))
        assert not [one for one in page.texts if sections.search(one.strip()) and "\n" in one]
    # Comments of fields, and attributes of the docstring.
    text = (site / "api" / "artifact.html").read_text(encoding="utf-8")
    assert "the main file or folder" in text
