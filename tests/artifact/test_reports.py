"""Reports: their JSON record, and decoding it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from y7edge.artifact.reports import Origin, ParityReport
from y7edge.errors import ArtifactError
from y7edge.export.proof.verify import verify
from y7edge.runtimes import registry

KEYS = {
    *("status", "problems", "reference", "pictures", "batches", "outputs", "candidates"),
    *("probes", "activations", "tolerance", "engine", "device", "arithmetic", "versions"),
}


def test_keys_of_a_proof_are_stable(artifact_path, narrow_tiny):
    record = registry.load(artifact_path).manifest.parity
    assert set(record) >= KEYS | {"simplifier"}
    again = verify(artifact_path, narrow_tiny).to_dict()
    assert set(again) >= KEYS | {"artifact", "payload_digest", "source_digest"}
    assert json.loads(json.dumps(again, allow_nan=False)) == again
    assert set(record["candidates"]) == {"count", "iou", "score_difference", "score_spread"}
    assert set(record["outputs"]["head0"]) == {"deviation", "cosine"}


def test_report_round_trip(artifact_path):
    record = registry.load(artifact_path).manifest.parity
    report = ParityReport.from_dict(record)
    assert report.measured.outputs["head0"].deviation == record["outputs"]["head0"]["deviation"]
    assert report.to_dict() == record


def test_the_proof_in_a_file_of_schema_1_is_read():
    path = Path(__file__).parents[1] / "reference" / "schema1.onnx"
    report = ParityReport.from_dict(registry.load(path).manifest.parity)
    assert (report.status, report.measured.pictures.count) == ("passed", 8)


def test_a_report_without_numbers():
    unverified = ParityReport("unverified", reason="no engine for it here")
    record = {"status": "unverified", "problems": [], "reason": "no engine for it here"}
    assert unverified.to_dict() == record
    assert ParityReport.from_dict(record) == unverified
    failed = ParityReport("failed", ("anchors",), origin=Origin("m.onnx"))
    assert failed.to_dict() == {
        "artifact": "m.onnx",
        "payload_digest": None,
        "source_digest": None,
        "status": "failed",
        "problems": ["anchors"],
    }


@pytest.mark.parametrize("record", [{}, {"status": "source"}, {"status": "passed", "peak": 3}])
def test_other_records_are_refused(record):
    with pytest.raises(ArtifactError, match="the parity report: "):
        ParityReport.from_dict(record)
