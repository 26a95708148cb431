"""Runtime coreml, with a stand-in for coremltools; Core ML itself runs on macOS only."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from tests.runtimes import fake_coremltools
from tests.runtimes.conftest import COMMITTED
from y7edge import Detector
from y7edge.data.synthetic import scenes
from y7edge.detect.selftest import selftest
from y7edge.errors import ArtifactError, ConfigError, DeviceError, ParityError, RuntimeMissing
from y7edge.runtimes import coreml, registry
from y7edge.runtimes.base import SessionOptions, missing

PACKAGE = COMMITTED / "coreml" / "narrow.mlpackage"


@pytest.fixture
def mac(monkeypatch):
    """A Mac with a CPU and a Neural Engine; returns the class of models."""
    return fake_coremltools.install(monkeypatch)


def test_selftest_on_a_mac(mac):
    """The probes pass through the image input, and complete the proof of the package."""
    report = selftest(PACKAGE)
    assert report.status == "passed" and report.parity == "unverified"
    assert report.arithmetic == "float16 (Core ML, ALL)"
    worst = max(probe.deviation for probe in report.probes)
    assert 1e-4 < worst < 0.005 < report.probes[0].tolerance


def test_other_numbers_fail_the_selftest(mac, monkeypatch):
    """A device that computes something else does not pass."""
    right = mac.predict

    def wrong(self, data):
        return {name: head[:, :, ::-1] for name, head in right(self, data).items()}

    monkeypatch.setattr(mac, "predict", wrong)
    with pytest.raises(ParityError, match="differ from the reference"):
        selftest(PACKAGE)


@pytest.mark.filterwarnings("ignore:.* was exported without a proof")
def test_the_detector_feeds_images(mac):
    """An image of any size is letterboxed to RGB of 8 bits."""
    seen = []
    right = mac.predict
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mac, "predict", lambda self, data: seen.append(data) or right(self, data))
        with Detector(PACKAGE, conf=0.0) as detector:
            assert len(detector(scenes.scene(1, (120, 200)).image))
    (data,) = seen
    assert np.asarray(data["images"]).shape == (64, 96, 3)
    assert (np.asarray(data["images"])[0] == 114).all()  # the border


@pytest.mark.parametrize(
    ("device", "units"), [("auto", "ALL"), ("cpu", "CPU_ONLY"), ("npu", "CPU_AND_NE")]
)
def test_devices_choose_the_compute_units(mac, device, units):
    with closing(registry.open_session(registry.load(PACKAGE), SessionOptions(device))) as session:
        assert (session.device, session.backend) == (device, "coreml")
    assert mac.opened == [(str(PACKAGE), units)]


def test_a_device_that_the_mac_lacks(mac):
    with pytest.raises(DeviceError, match="'gpu', but Core ML finds only cpu, npu"):
        registry.open_session(registry.load(PACKAGE), SessionOptions("gpu"))
    with pytest.raises(ConfigError, match="Core ML has no option 'x'"):
        registry.open_session(registry.load(PACKAGE), SessionOptions(provider_options={"x": 1}))
    assert coreml.available_devices() == ["cpu", "npu"]


def test_refused_packages(mac, tmp_path):
    """A package that Core ML cannot open, or with other tensors than its manifest's."""
    artifact = registry.load(PACKAGE)
    (tmp_path / "empty.mlpackage").mkdir()
    with pytest.raises(DeviceError, match=r"Core ML cannot open .*empty"):
        coreml.open(replace(artifact, path=tmp_path / "empty.mlpackage"), SessionOptions())
    image = artifact.manifest.input
    for changed, message in (
        (replace(image, color="bgr"), "takes rgb, its manifest has bgr"),
        (replace(image, name="pixels"), r"has the tensor images uint8 \(1, 64, 96, 3\)"),
        (replace(image, dtype="float32", layout="NCHW", scale=1 / 255), "images uint8"),
    ):
        manifest = replace(artifact.manifest, input=changed)
        with pytest.raises(ArtifactError, match=message):
            coreml.open(replace(artifact, manifest=manifest), SessionOptions())
    outputs = (*artifact.manifest.outputs[:2], replace(artifact.manifest.outputs[2], name="last"))
    with pytest.raises(ArtifactError, match="head2 float32"):
        coreml.open(
            replace(artifact, manifest=replace(artifact.manifest, outputs=outputs)),
            SessionOptions(),
        )


def test_other_systems(monkeypatch):
    """Elsewhere, messages say where the package runs, whether coremltools is installed or not."""
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setattr(registry, "require", lambda *_: None)
    monkeypatch.setattr(coreml, "load_engine", lambda: None)
    with pytest.raises(DeviceError, match="Core ML runs on macOS only: run the package on a Mac"):
        registry.open_session(registry.load(PACKAGE), SessionOptions())
    assert coreml.available_devices() == []
    monkeypatch.undo()
    if missing(coreml.NEEDS):
        with pytest.raises(RuntimeMissing, match="but Core ML runs on macOS only"):
            selftest(PACKAGE)
