"""Printed results: strict JSON, and tables."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from y7edge.cli.console import facts, show, table, to_json


@dataclass(frozen=True)
class _Record:
    path: Path
    size: tuple[int, int]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), None),  # NaN is not JSON
        (np.float32("inf"), None),
        (np.float32(0.5), 0.5),
        (np.arange(3), [0, 1, 2]),
        (np.array([1.0, np.nan]), [1.0, None]),
        (Path("a/b"), "a/b"),
        ({1: (2, Path("c"))}, {"1": [2, "c"]}),
        (_Record(Path("d"), (3, 4)), {"path": "d", "size": [3, 4]}),
        ("ä", "ä"),
        (None, None),
        (True, True),
    ],
)
def test_json_is_strict_and_plain(value: object, expected: object) -> None:
    assert json.loads(to_json({"x": value})) == {"x": expected}


def test_json_is_one_line() -> None:
    assert "\n" not in to_json({"x": ["a\nb"] * 100})


def test_show(capsys: pytest.CaptureFixture[str]) -> None:
    show({"a": 1}, ["one", "two"], as_json=True)
    show({"a": 1}, ["one", "two"], as_json=False)
    assert capsys.readouterr().out == '{"a": 1}\none\ntwo\n'


def test_table_aligns_text_left_and_numbers_right() -> None:
    rows = [("name", "count", "AP"), ("nut", 12, 0.98765), ("washer", 3, None)]
    assert table(rows) == [
        "name    count      AP",
        "nut        12  0.9877",
        "washer      3       -",
    ]


def test_facts_leave_out_what_is_not_there() -> None:
    assert facts({"a": 1, "long": "x", "no": None}) == ["a     1", "long  x"]
