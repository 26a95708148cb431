"""The self-test, without torch, onnx and checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from tests import tampering
from y7edge.detect.selftest import RECIPE, RECIPE_8BIT, probe_input, selftest
from y7edge.errors import ArtifactError, DigestError, ParityError
from y7edge.runtimes import onnxrt

EXPECTED = [0.33785757, 0.4537662, 0.35262746]


def test_passes_on_exported_artifacts(artifact_path):
    report = selftest(artifact_path)
    assert (report.status, report.parity) == ("passed", "passed")
    assert report.payload_digest == onnxrt.read_manifest(artifact_path).payload_digest
    assert len(report.probes) == 2
    for probe in report.probes:
        assert set(probe.outputs) == {"head0", "head1", "head2"}
        assert 0 < probe.deviation < 1e-5
    assert {"y7edge", "numpy", "onnxruntime"} <= set(report.versions)
    json.dumps(report.to_dict())


def test_needs_neither_torch_nor_onnx(artifact_path):
    script = (
        "import sys; sys.modules.update(torch=None, onnx=None, cv2=None)\n"
        "from y7edge.detect.selftest import selftest\n"
        f"print(selftest({str(artifact_path)!r}).status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "passed"


def test_every_changed_convolution_is_detected(artifact_path, tmp_path):
    names = tampering.convolutions_of(artifact_path)
    assert len(names) == 58
    for name in names:
        changed = tampering.scale_weight(artifact_path, tmp_path / "m.onnx", name, seal=True)
        with pytest.raises(ParityError, match="deviates by") as caught:
            selftest(changed, threads=1)
        assert caught.value.report.status == "failed"
        assert max(p.deviation for p in caught.value.report.probes) > 10 * 1e-4, name


def test_a_changed_weight_is_refused_by_digest(artifact_path, tmp_path):
    name = tampering.convolutions_of(artifact_path)[0]
    changed = tampering.scale_weight(
        artifact_path, tmp_path / "m.onnx", name, 1.0000001, seal=False
    )
    with pytest.raises(DigestError, match="payload digest"):
        selftest(changed)


def test_a_flipped_byte_anywhere_is_refused(artifact_path, tmp_path):
    size = artifact_path.stat().st_size
    for position in [*range(64), *range(64, size, size // 60), *range(size - 64, size)]:
        with pytest.raises(DigestError) as caught:
            selftest(tampering.flip(artifact_path, tmp_path / "m.onnx", position))
        assert "\n" not in str(caught.value)
        assert caught.value.exit_code == 4


@pytest.mark.parametrize("text", [b'"anchors"', b'"names"', b'"washer"', b'"conf"', b'"values"'])
def test_a_changed_manifest_is_refused(artifact_path, tmp_path, text):
    position = artifact_path.read_bytes().rindex(text) + len(text) + 4
    with pytest.raises(DigestError, match="manifest"):
        selftest(tampering.flip(artifact_path, tmp_path / "m.onnx", position, 0x01))


def test_artifact_without_probes_is_refused(artifact_path, tmp_path):
    copy = tampering.rewrite(artifact_path, tmp_path / "m.onnx", probes=())
    with pytest.raises(ParityError, match="no probes"):
        selftest(copy)


def test_irreproducible_input_is_refused(artifact_path, tmp_path):
    probe = onnxrt.read_manifest(artifact_path).probes[0]
    probe = replace(probe, crc32=probe.crc32 ^ 1)
    copy = tampering.rewrite(artifact_path, tmp_path / "m.onnx", probes=(probe,))
    with pytest.raises(ArtifactError, match="numpy"):
        selftest(copy)


def test_missing_file_is_not_a_failed_gate(tmp_path):
    with pytest.raises(ArtifactError) as caught:
        selftest(tmp_path / "none.onnx")
    assert not isinstance(caught.value, DigestError)


def test_inputs_are_fixed_by_their_key():
    pixels = probe_input(RECIPE, "probe0-batch1", (1, 3, 64, 96))
    assert pixels.dtype == np.float32
    assert 0 <= pixels.min() < 0.1 and 0.9 < pixels.max() <= 1
    # These numbers are in the manifests of all artifacts in the field: they may never change.
    np.testing.assert_allclose(
        pixels[0, [0, 1, 2], [0, 31, 63], [0, 50, 95]], EXPECTED, rtol=0, atol=1e-7
    )
    other = probe_input(RECIPE, "probe1-batch1", (1, 3, 64, 96))
    assert np.abs(pixels - other).max() > 0.3
    with pytest.raises(ArtifactError, match="recipe"):
        probe_input("waves", "a", (1, 3, 64, 64))


def test_inputs_of_8_bits_are_the_same_values_rounded():
    shape = (2, 3, 64, 96)
    pixels, eight = (probe_input(recipe, "a", shape) for recipe in (RECIPE, RECIPE_8BIT))
    assert eight.dtype == np.float32
    assert 0 < np.abs(eight - pixels).max() < 0.501 / 255
    whole = np.rint(eight * 255).astype(np.uint8)
    np.testing.assert_array_equal(whole.astype(np.float32) / np.float32(255), eight)
    assert len(np.unique(whole)) > 240
    # Also fixed by the artifacts in the field.
    first = probe_input(RECIPE_8BIT, "probe0-batch1", (1, 3, 64, 96))
    taken = first[0, [0, 1, 2], [0, 31, 63], [0, 50, 95]] * 255
    np.testing.assert_allclose(taken, [86, 116, 90], rtol=0, atol=1e-4)


@pytest.mark.parametrize("cell", [8, 32])
def test_inputs_vary_at_the_scale_of_deep_maps(cell):
    pixels = probe_input(RECIPE, "a", (1, 3, 256, 256))[0]
    means = pixels.reshape(3, 256 // cell, cell, 256 // cell, cell).mean((2, 4))
    assert means.std() > 0.08
    assert all(a.tobytes() != b.tobytes() for a, b in pairwise(means[0]))
