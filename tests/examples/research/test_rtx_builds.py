"""TensorRT-RTX builds engines of our graphs, if its interpreter is named."""

from __future__ import annotations

import pytest

from examples.research import rtx_builds
from y7edge import interpreters
from y7edge.errors import RuntimeMissing
from y7edge.export.graph.quantize import PROFILES

REFUSED = len(PROFILES)  # a uint8 input, and all profiles but one


def test_cases():
    found = list(rtx_builds.cases(["yolov7-tiny", "yolov7"], ["heads", "decoded"], 64))
    rewritten = [case for case in found if case.rewrites]
    assert len(found) == len(set(found)) == 2 * (2 * 2 + 2) + len(rewritten) + REFUSED
    assert {case.rewrites[0] for case in rewritten} >= {"leaky-max", "resize-per-axis"}
    assert [case for case in found if rtx_builds.refused(case)] == found[-REFUSED:]
    quantised = list(rtx_builds.cases(["yolov7-tiny"], ["heads", "decoded"], 64, int8=True))
    assert {case.precision for case in quantised[:-REFUSED]} == {"s8s8"}
    assert not any(case.outputs == "decoded" for case in quantised)


def test_rows():
    case = rtx_builds.Case("m", 64, "fp16", "heads")
    cells = rtx_builds.row(case, [{"bytes": 1_500_000, "seconds": 2.04}, {"error": "a |\nb"}])
    assert cells == ("m", "64", "fp16", "heads", "1.5 MB, 2.0 s", "refused: a / b")
    assert rtx_builds.row(case, [{"error": "a"}])[-1] == "-"
    case = case._replace(precision="s8s8", rewrites=("leaky-max",))
    assert rtx_builds.row(case, [{"error": "a"}])[2] == "s8s8, leaky-max"


@pytest.mark.parametrize(
    ("precision", "record", "expected"),
    [
        ("s8s8", {"convolutions": {"int8": 55, "fp32": 3}, "written": 55}, True),
        ("s8s8", {"convolutions": {"int8": 54, "fp32": 4}, "written": 55}, False),
        ("s8s8", {"error": "no", "convolutions": {"int8": 55}, "written": 55}, False),
        ("s8s8", {"refused": "no", "convolutions": {"int8": 55}, "written": 55}, False),
        ("fp16", {"convolutions": {"fp16": 58}, "written": 0}, True),
        ("u8s8", {"refused": "no", "error": "no", "written": 55}, True),
        ("u8s8", {"error": "no", "written": 55}, False),
        ("u8s8", {"refused": "no", "convolutions": {"int8": 55}, "written": 55}, False),
    ],
)
def test_expected_results(precision, record, expected):
    case = rtx_builds.Case("m", 64, precision, "heads")
    assert rtx_builds.as_expected(case, record) == expected


@pytest.mark.slow
def test_the_builder_accepts_our_graphs(monkeypatch, capsys):
    try:
        interpreters.find_interpreter("rtx", "tensorrt_rtx", rtx_builds.RECIPE)
    except RuntimeMissing as error:
        pytest.skip(str(error))
    words = ["--model", "yolov7-tiny", "--size", "64", "--outputs", "heads"]
    monkeypatch.setattr("sys.argv", ["rtx_builds.py", *words])
    assert rtx_builds.main() == 0
    shown = capsys.readouterr().out
    assert shown.count(" MB, ") == 14
    assert shown.count("refused: ") == REFUSED
    assert f"{14 + REFUSED} graphs, 0 with another result than expected" in shown
