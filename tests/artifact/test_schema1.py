"""Artifacts with a manifest of schema 1 open, detect and pass the self-test."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from y7edge import Detector
from y7edge.data.synthetic import scenes
from y7edge.detect.selftest import selftest
from y7edge.runtimes import registry

FILE = Path(__file__).parents[1] / "reference" / "schema1.onnx"
# What the code that wrote the file detected in scene 0, at the thresholds of its manifest.
CONFIDENCE = [0.708069, 0.591365, 0.397952, 0.387367, 0.34701, 0.336628]
CLASSES = [0, 2, 2, 0, 2, 2]
LAST_BOX = [525.153, 0.0, 640.0, 480.0]


def test_schema_1_gives_the_same_detections():
    with Detector(FILE) as detector:
        found = detector(scenes.scene(0, (480, 640)).image)
    assert found.class_id.tolist() == CLASSES
    np.testing.assert_allclose(found.confidence, CONFIDENCE, atol=1e-4)
    np.testing.assert_allclose(found.xyxy[-1], LAST_BOX, atol=0.05)


def test_a_file_of_schema_1_repeats_its_probes():
    selftest(FILE)  # raises unless every probe passes


def test_the_file_is_of_schema_1():
    assert b'"schema":1' in FILE.read_bytes()
    assert registry.load(FILE).manifest.names == ("nut", "washer", "screw")
