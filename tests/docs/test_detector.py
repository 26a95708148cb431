"""docs/detector.md: its examples of frames and streams run, and its tables agree with the code."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from tests.detect.test_detector import detector_over
from tests.detect.test_streaming import Fake
from y7edge.detect.ages import WINDOW, Ages
from y7edge.detect.streaming import Stream
from y7edge.sources import uri

TEXT = (Path(__file__).parents[2] / "docs" / "detector.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_examples_are_python(block):
    compile(block, "docs/detector.md", "exec", flags=0x2000)  # PyCF_ALLOW_TOP_LEVEL_AWAIT


def test_examples_of_streams_run(monkeypatch, capsys):
    monkeypatch.setattr(uri, "open_source", lambda address, **options: Fake(address))
    detector, _ = detector_over()
    streams = [block for block in BLOCKS if "detector.stream(" in block]
    assert len(streams) == 3
    for block in streams:
        exec(block, {"detector": detector})
    printed = capsys.readouterr().out.splitlines()
    assert printed[:3] == ["0 0 1", "1 0 1", "2 0 1"]
    assert "'count': 3.0" in printed[3]
    assert sorted(printed[4:]) == sorted(
        [f"{name} 1" for name in ("csi://0", "csi://1", "rtsp://gate/stream")] * 3
    )


def test_the_example_of_a_frame():
    (block,) = [block for block in BLOCKS if "Frame(buffer" in block]
    values = {"buffer": np.zeros((720 * 3 // 2, 1280), np.uint8), "captured": 5, "number": 7}
    exec(block, values)
    detector, _ = detector_over()
    found = detector(values["frame"])
    assert found.image_wh == (1278, 720)
    assert (found.timestamp_ns, found.frame_id, found.source) == (5, 7, "left")


def test_members_of_a_stream():
    members = re.findall(r"^\| `stream\.(\w+)", TEXT, re.MULTILINE)
    assert members == ["names", "current", "ages", "status", "close"]
    assert all(hasattr(Stream, name) for name in members)
    assert f"over the last {WINDOW} frames" in TEXT
    ages = Ages()
    ages.add(1)
    assert set(ages.summary()) <= set(re.findall(r"`(\w+)`", TEXT))
