"""docs/chips.md is what its script writes from the tables of chips and the variants."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_the_page_is_that_of_the_script(tmp_path):
    """Run examples/research/chip_table.py --out docs/chips.md if this fails."""
    script = ROOT / "examples" / "research" / "chip_table.py"
    page = tmp_path / "chips.md"
    subprocess.run([sys.executable, script, "--out", page], cwd=ROOT, check=True)
    assert page.read_bytes() == (ROOT / "docs" / "chips.md").read_bytes()
