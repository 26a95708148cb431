"""docs/diff.md: the output of the script, with every fault and its cause."""

from __future__ import annotations

from pathlib import Path

from tests.export.proof.test_diff import FAULTS

TEXT = (Path(__file__).parents[2] / "docs" / "diff.md").read_text(encoding="utf-8")


def test_every_fault_and_its_cause():
    """Run examples/research/planted_faults.py > docs/diff.md if this fails."""
    introduction, *sections = TEXT.split("\n## ")
    assert introduction.strip() == FAULTS.INTRODUCTION
    assert len(sections) == len(FAULTS.FAULTS)
    for section, fault in zip(sections, FAULTS.FAULTS.values(), strict=True):
        assert section.startswith(f"{fault.title}\n\n{fault.text}\n")
        assert f"cause: {fault.cause}: " in section
        assert f"Exit code: {fault.code}." in section
