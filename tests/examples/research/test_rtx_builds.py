"""TensorRT-RTX builds engines of our graphs, if its interpreter is named."""

from __future__ import annotations

import pytest

from examples.research import rtx_builds
from y7edge.errors import RuntimeMissing
from y7edge.export import converters


def test_cases():
    found = list(rtx_builds.cases(["a", "b"], ["heads", "decoded"], 64))
    assert len(found) == len(set(found)) == 2 * 3 * 2 + 2
    assert [case for case in found if rtx_builds.refused(case)] == found[-2:]


def test_rows():
    case = rtx_builds.Case("m", 64, "fp16", "heads", (1, "dynamic"))
    cells = rtx_builds.row(case, [{"bytes": 1_500_000, "seconds": 2.04}, {"error": "a |\nb"}])
    assert cells == ("m", "64", "fp16", "heads", "1.5 MB, 2.0 s", "refused: a / b")
    assert rtx_builds.row(case, [{"error": "a"}])[-1] == "-"


@pytest.mark.slow
def test_the_builder_accepts_our_graphs(monkeypatch, capsys):
    try:
        converters.find_interpreter("rtx", "tensorrt_rtx", rtx_builds.RECIPE)
    except RuntimeMissing as error:
        pytest.skip(str(error))
    words = ["--model", "yolov7-tiny", "--size", "64", "--outputs", "heads"]
    monkeypatch.setattr("sys.argv", ["rtx_builds.py", *words])
    assert rtx_builds.main() == 0
    shown = capsys.readouterr().out
    assert shown.count(" MB, ") == 6
    assert "Non-zero zero point is not supported" in shown
    assert "8 graphs, 0 with another result than expected" in shown
