"""docs/cli.md: the reference is that of the application, the variables are those of the code."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "cli.md"
INTERNAL = {"Y7EDGE_TRAIN_STORE"}  # between the processes of one training


@pytest.fixture
def commands():
    """The script docs/commands.py, as a module."""
    spec = importlib.util.spec_from_file_location("commands", ROOT / "docs" / "commands.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_reference_is_up_to_date(commands):
    """Run docs/commands.py if this fails."""
    assert PAGE.read_text(encoding="utf-8") == commands.page()


def test_every_environment_variable_is_listed():
    used = set()
    for folder in ("y7edge", "export", "runtimes"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    used |= {node.value} & set(re.findall("Y7EDGE_[A-Z_]+[A-Z]", node.value))
    listed = set(re.findall(r"\bY7EDGE_[A-Z_]+[A-Z]\b", PAGE.read_text(encoding="utf-8")))
    assert used - INTERNAL <= listed
    assert "Y7EDGE_CACHE" in used


def test_files_that_completion_changes():
    """The table of the page names what typer's installation names."""
    import inspect

    import typer.completion

    page = PAGE.read_text(encoding="utf-8")
    try:
        from typer import _completion_shared as shared
    except ImportError:
        shared = typer.completion
    source = inspect.getsource(shared)
    for part in (".bash_completions", ".bashrc", ".zshrc", ".zfunc/_", ".config/fish/completions/"):
        assert part in source
        assert part in page
    for line in ("fpath+=~/.zfunc; autoload -Uz compinit; compinit", "':completion:*' menu select"):
        assert line in source
        assert line in page
