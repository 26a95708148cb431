"""docs/detector.md: its tables agree with the code."""

from __future__ import annotations

import re
from pathlib import Path

from y7edge.detect.ages import WINDOW, Ages
from y7edge.detect.streaming import Stream

TEXT = (Path(__file__).parents[2] / "docs" / "detector.md").read_text(encoding="utf-8")


def test_members_of_a_stream():
    members = re.findall(r"^\| `stream\.(\w+)", TEXT, re.MULTILINE)
    assert members == ["names", "current", "ages", "status", "close"]
    assert all(hasattr(Stream, name) for name in members)
    assert f"over the last {WINDOW} frames" in TEXT
    ages = Ages()
    ages.add(1)
    assert set(ages.summary()) <= set(re.findall(r"`(\w+)`", TEXT))
