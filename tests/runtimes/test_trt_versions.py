"""The table of TensorRT versions, and the recognition of engines that cannot run here."""

from __future__ import annotations

import os

import pytest

from y7edge.errors import DeviceError
from y7edge.runtimes import _trt_versions as versions

HERE = {
    "tensorrt": "10.16.2.10",
    "compute_capability": "11.0",
    "device": "Thor",
    "platform": "linux aarch64",
}


def test_every_line_has_a_source_and_is_reached():
    lines = versions.DIFFERENCES
    assert all(line.source for line in lines)
    for line in lines:
        first = ".".join(map(str, line.since))
        assert versions.value(line.topic, first) == line.value
    for topic in {line.topic for line in lines}:
        since = [line.since for line in lines if line.topic == topic]
        assert since == sorted(set(since)) and since[0] == versions.OLDEST


@pytest.mark.parametrize(
    ("version", "flag", "typed", "precision", "dla", "progress"),
    [
        ("8.6.2.3", "EXPLICIT_BATCH", "", "flags", "flags", "no"),
        ("10.3.0.30", "", "STRONGLY_TYPED", "graph", "flags", "yes"),
        ("10.7.0", "", "STRONGLY_TYPED", "graph", "flags", "yes"),
        ("10.16.2.10", "", "STRONGLY_TYPED", "graph", "none", "yes"),
        ("11.4.0.106", "", "", "graph", "none", "yes"),
        ("11.4.1", "", "", "graph", "graph", "yes"),
        ("13.0", "", "", "graph", "graph", "yes"),
    ],
)
def test_values(version, flag, typed, precision, dla, progress):
    assert versions.value("network flag", version) == flag
    assert versions.value("typed network flag", version) == typed
    assert versions.value("precision", version) == precision
    assert versions.value("precision on DLA", version) == dla
    assert versions.value("progress monitor", version) == progress


@pytest.mark.parametrize("text", ["", "11", "eleven", "v10.3", "10.", "-1.2"])
def test_texts_that_are_no_version(text):
    with pytest.raises(DeviceError, match="expected numbers such as"):
        versions.parse(text)


def test_unknown_versions():
    assert versions.unknown("11.4.9") is None
    assert versions.unknown("8.6.1") is None
    assert "TensorRT 11.5.0 is newer than 11.4" in str(versions.unknown("11.5.0"))
    with pytest.raises(DeviceError, match=r"TensorRT 8\.5\.3 is too old, expected 8\.6"):
        versions.value("precision", "8.5.3")


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({}, None),
        ({"device": "another Thor"}, None),
        ({"tensorrt": "10.16.2.9"}, "sm_110 (Thor, linux aarch64) with TensorRT 10.16.2.9, this"),
        ({"tensorrt": "10.3.0", "version_compatible": True}, None),
        ({"tensorrt": "8.6.2", "version_compatible": True}, None),
        ({"tensorrt": "10.16.2.11", "version_compatible": True}, "with TensorRT 10.16.2.11"),
        ({"tensorrt": "11.0", "version_compatible": True}, "with TensorRT 11.0"),
        ({"tensorrt": "10.3.0", "version_compatible": "yes"}, "with TensorRT 10.3.0"),
        ({"compute_capability": "8.7", "device": "Orin"}, "built for sm_87 (Orin, linux aarch64)"),
        ({"platform": "linux x86_64"}, "sm_110 (Thor, linux x86_64)"),
        ({"tensorrt": None}, "does not say for which TensorRT and GPU"),
        ({"compute_capability": 8.7}, "does not say for which TensorRT and GPU"),
    ],
)
def test_engines_that_cannot_run_here(changed, problem):
    found = versions.mismatch({**HERE, **changed}, HERE)
    if problem is None:
        assert found is None
    else:
        assert problem in found
        assert found.endswith("run `y7edge build MODEL.onnx --target tensorrt` on this machine")


def test_the_whole_message():
    built = {"tensorrt": "10.3.0.30", "compute_capability": "8.7"}
    assert versions.mismatch(built, HERE) == (
        "built for sm_87 with TensorRT 10.3.0.30, this is sm_110 (Thor, linux aarch64) with "
        "TensorRT 10.16.2.10: run `y7edge build MODEL.onnx --target tensorrt` on this machine"
    )
    assert "does not say" in versions.mismatch({}, HERE)


def test_messages_are_short():
    long = {"tensorrt": "1" * 9999, "compute_capability": "8" * 9999, "device": ["x"] * 9999}
    assert len(versions.mismatch(long, HERE)) < 500


@pytest.mark.skipif(os.name == "nt", reason="no owners")
def test_files_of_other_users(tmp_path, monkeypatch):
    file = tmp_path / "m.engine"
    file.write_bytes(b"")
    owner = os.geteuid()
    assert versions.foreign(file) is None
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    assert (versions.foreign(file) is None) == (owner == 0)


@pytest.mark.skipif(os.name == "nt", reason="no mode bits")
def test_files_that_others_can_write(tmp_path):
    file = tmp_path / "m.engine"
    file.write_bytes(b"")
    tmp_path.chmod(0o755)
    assert versions.exposed(file) is None
    file.chmod(0o646)
    assert f"chmod o-w {file}" in str(versions.exposed(file))
    file.chmod(0o644)
    tmp_path.chmod(0o757)
    assert f"chmod o-w {tmp_path}" in str(versions.exposed(file))
    tmp_path.chmod(0o1777)  # like /tmp: others cannot replace the file
    assert versions.exposed(file) is None
