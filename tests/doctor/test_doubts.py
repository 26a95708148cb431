"""Data that says two things at once: the copy keeps what is clear, and never makes up the rest."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from y7edge.data.dataset import Dataset, load
from y7edge.doctor.examine import examine
from y7edge.doctor.mend import Mended, mend


def messages(root: Path, check: str) -> list[str]:
    return [finding.message for finding in examine(root).findings if finding.check == check]


def fixed(root: Path, out: Path) -> tuple[Mended, Dataset]:
    mended = mend(examine(root), out)
    return mended, load(out / "data.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "round, square, ring, bar",
        "round,square,ring,bar,",
        "'[round, square, ring, bar]'",
        "\"['round', 'square', 'ring', 'bar']\"",
        "round; square; ring; bar",
        "|\n  round\n  square\n  ring\n  bar",
        "round square ring bar",
    ],
)
def test_names_in_one_text_are_separated(text: str, yolo: Path, tmp_path: Path) -> None:
    rest = re.sub(r"(?ms)^names:.*?(?=^\w|\Z)", "", (yolo / "data.yaml").read_text())
    (yolo / "data.yaml").write_text(f"{rest}\nnc: 4\nnames: {text}\n")
    assert "write ['round', 'square', 'ring', 'bar']" in messages(yolo, "names")[0]
    assert fixed(yolo, tmp_path / "out")[1].names == ("round", "square", "ring", "bar")


def test_names_of_several_words_between_commas(yolo: Path, tmp_path: Path) -> None:
    rest = re.sub(r"(?ms)^names:.*?(?=^\w|\Z)", "", (yolo / "data.yaml").read_text())
    (yolo / "data.yaml").write_text(f"{rest}\nnc: 4\nnames: hard hat, vest, head, left hand\n")
    names = ("hard hat", "vest", "head", "left hand")
    assert fixed(yolo, tmp_path / "out")[1].names == names
