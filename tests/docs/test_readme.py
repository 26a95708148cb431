"""README.md: its numbers are those of the code and of docs/benchmarks.md."""

from __future__ import annotations

import re

from tests.docs.blocks import read
from y7edge.cli import main
from y7edge.export.audit import chips

TEXT = read("README.md")


def cells(line):
    return [cell.strip(" `") for cell in line.strip("|").split("|")]


def test_the_table_is_that_of_info(capsys):
    """Spaces separate thousands in the page only."""
    assert main(["info"]) == 0
    printed = [line.split(maxsplit=4) for line in capsys.readouterr().out.splitlines()]
    printed = [words for words in printed if words and words[0].startswith("yolov7")]
    rows = [cells(line) for line in TEXT.splitlines() if line.startswith("| `yolov7")]
    assert len(rows) == 8
    for (name, parameters, gflops, side, strides), other in zip(rows, printed, strict=True):
        assert [name, parameters.replace(" ", ""), gflops, side, strides] == other


def test_the_number_of_chips():
    assert re.findall(r"which of (\d+) chips", TEXT) == [str(len(chips.names()))] * 2


def test_the_ratios_are_those_of_the_benchmarks():
    lines = [line for line in read("docs/benchmarks.md").splitlines() if line.count("|") == 13]
    rows = [row for line in lines if re.fullmatch(r"[\d.]+", (row := cells(line))[4])]
    words = TEXT.replace("\n", " ")
    for engine, pattern in {
        "openvino": r"OpenVINO takes ([\d.]+) to ([\d.]+) times",
        "ncnn": r"ncnn ([\d.]+) to ([\d.]+) times",
    }.items():
        ratios = [
            float(row[4]) for row in rows if row[1].startswith(engine) and row[2:4] == ["fp32", "1"]
        ]
        assert re.search(pattern, words).groups() == (f"{min(ratios):.2f}", f"{max(ratios):.2f}")
    limit = float(re.search(r"at most (\d+) % longer", words)[1])
    assert max(float(row[9]) for row in rows) <= 1 + limit / 100
