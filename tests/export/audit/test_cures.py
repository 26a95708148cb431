"""What makes models fit chips: each cure is audited itself."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from y7edge.errors import ConfigError
from y7edge.export.audit import chips
from y7edge.export.audit.chips import load
from y7edge.export.audit.cures import AUTO, Subject, audit_spec, rewrites_for
from y7edge.export.audit.facts import load_structure
from y7edge.export.audit.report import helps, lines, verdict
from y7edge.export.audit.verdicts import audit_structure
from y7edge.models import registry

_SUBJECTS: dict[tuple[object, ...], Subject] = {}


def subject(name, size=320, outputs="heads"):
    key = (name, size, outputs)
    if key not in _SUBJECTS:
        _SUBJECTS[key] = Subject(registry.get(name), size, size, outputs)
    return _SUBJECTS[key]


def cured(name, chip, *rewrites, **options):
    return audit_spec(subject(name, **options), load(chip), rewrites)


@pytest.mark.parametrize(
    ("name", "chip", "expected"),
    [
        ("yolov7-tiny", "kl520", ()),
        ("yolov7-tiny", "kl720", ("resize-per-axis",)),
        ("yolov7-w6", "kl720", ("reorg-conv6", "resize-per-axis")),
        ("yolov7", "kl630", ()),
        ("yolov7-w6", "kl730", ("reorg-conv6",)),
        ("yolov7-w6", "rk3588", ()),
        ("yolov7-w6", "hailo8", ()),
        ("yolov7-tiny", "edgetpu", ()),
        ("yolov7-tiny", "ethos-u55", ()),
        ("yolov7", "ethos-u55", ()),
        ("yolov7-tiny", "am68a", ("pool3x3",)),
        ("yolov7", "tda4vm", ("pool3x3",)),
        ("yolov7-tiny", "artpec-8", ()),
        ("yolov7-tiny", "orin-dla", ()),
        ("yolov7-w6", "orin-dla", ("reorg-conv6",)),
    ],
)
def test_rewrites_after_which_a_model_fits(name, chip, expected) -> None:
    found = cured(name, chip)
    assert found.rewrites == expected
    assert found.best.fits
    assert verdict(found) == ("fits with rewrites" if expected else "fits")
    assert helps(found) == " ".join(f"--rewrite {name}" for name in expected)


def test_rewrites_that_would_be_refused_are_not_offered() -> None:
    """The KL520 has neither Mul nor Max, so LeakyReLU must not become max(x, 0.1 x)."""
    assert "leaky-max" not in cured("yolov7-tiny", "kl520").rewrites
    assert cured("yolov7-w6", "artpec-9").rewrites == ("reorg-conv7",)


# The operators of a table that is like another are the same, or nearly.
_DIFFERENT = [
    name
    for name in chips.names()
    if not (chips.FOLDER / f"{name}{chips.SUFFIX}").read_text().startswith("like: ")
]


@pytest.mark.parametrize("name", ["yolov7-tiny", "yolov7-w6"])
@pytest.mark.parametrize("chip", _DIFFERENT)
def test_no_cure_makes_it_worse(name: str, chip: str) -> None:
    found = cured(name, chip)
    if found.cured is not None:
        before, after = found.counts, found.cured.counts
        assert after["refused"] <= before["refused"]
        assert (
            after["refused"] + after["cpu"] + after["unknown"]
            <= before["refused"] + before["cpu"] + before["unknown"]
        )
        again = audit_structure(subject(name).structure(found.rewrites), load(chip))
        assert again.rows == found.cured.rows
    for row in found.rows:
        assert not row.cure or row.verdict != "runs"


def test_rewrites_that_all_files_for_a_chip_have() -> None:
    found = cured("yolov7-tiny", "ethos-u55")
    assert found.fits
    assert found.applied == ("leaky-max",)
    assert "note: every file for this chip is written with leaky-max" in lines(found)
    assert cured("yolov7", "ethos-u55").applied == ()


@pytest.mark.parametrize("chip", ["k230", "intel-npu4000", "stm32n6", "k210"])
def test_nothing_is_recommended_for_a_chip_of_which_little_is_known(chip) -> None:
    """Fewer nodes of unknown verdict are no improvement."""
    found = cured("yolov7-w6", chip)
    assert (found.rewrites, found.advice, found.cured) == ((), (), None)
    assert found.outcome == ("refused" if chip == "k210" else "unknown")


def test_the_cure_of_a_row_is_the_rewrite_that_removes_its_problem() -> None:
    found = cured("yolov7-w6", "kl720")
    assert {(row.op, row.cure) for row in found.rows if row.cure} == {
        ("Slice", "--rewrite reorg-conv6"),
        ("Resize", "--rewrite resize-per-axis"),
    }
    assert not any(row.cure for row in cured("yolov7", "kl520").rows)


def test_another_activation() -> None:
    found = cured("yolov7", "kl520")
    assert found.outcome == "refused"
    assert verdict(found) == "fits if trained anew"
    leaky = next(change for change in found.advice if change.training == "--act leaky")
    assert (leaky.outcome, leaky.options) == ("fits", "")
    assert str(leaky) == "train with --act leaky"
    # Whether the ARTPEC-9 runs Relu is as unknown as Mul and Sigmoid.
    assert cured("yolov7", "artpec-9").advice == ()
    # A model that is refused for its size is refused with every activation and input size.
    assert cured("yolov7-w6", "edgetpu", size=640).advice == ()
    w6 = cured("yolov7-w6", "kl520")
    assert any("--rewrite reorg-conv6" in change.options for change in w6.advice)


def test_another_size_and_other_outputs() -> None:
    tiny = cured("yolov7-tiny", "edgetpu", size=640)
    (change,) = tiny.advice
    assert (change.options, change.training) == ("--imgsz 320", "")
    assert verdict(tiny) == "fits with other options"
    decoded = cured("yolov7-tiny", "kl720", outputs="decoded")
    (change,) = decoded.advice
    assert change.options == "--outputs heads --rewrite resize-per-axis"


def test_given_rewrites_and_auto() -> None:
    given = cured("yolov7-w6", "kl720", "reorg-conv7")
    assert given.applied == ("reorg-conv7",)
    assert given.rewrites == ("resize-per-axis",)
    auto = cured("yolov7-w6", "kl720", AUTO)
    assert auto.fits
    assert auto.applied == ("reorg-conv6", "resize-per-axis")
    with pytest.raises(ConfigError, match="does not apply"):
        cured("yolov7", "kl720", "leaky-max")
    with pytest.raises(ConfigError, match="no rewrite"):
        cured("yolov7", "kl720", "leaky")


def target(name, *options):
    return SimpleNamespace(NAME=name, OPTIONS=dict.fromkeys(options, ""))


def test_auto_in_an_export() -> None:
    spec = registry.get("yolov7-tiny")
    kneron = target("kneron", "chip")
    assert rewrites_for(spec, kneron, {}, ["pool3x3"]) == ("pool3x3",)
    assert rewrites_for(spec, kneron, {"chip": "kl720"}, [AUTO]) == ("resize-per-axis",)
    assert rewrites_for(spec, kneron, {"chip": "kl520"}, [AUTO, "pool3x3"]) == ("pool3x3",)
    # All chips of a target that need the same do not have to be named.
    w6 = registry.get("yolov7-w6")
    assert rewrites_for(w6, target("tensorrt"), {}, [AUTO]) == ("reorg-conv6",)
    # Targets that convert the checkpoint take none.
    assert rewrites_for(w6, target("coreml"), {}, [AUTO]) == ()
    assert rewrites_for(w6, target("edgetpu"), {}, [AUTO]) == ()
    # The files of the target have leaky-max without being asked.
    assert rewrites_for(spec, target("ethosu"), {}, [AUTO]) == ()
    with pytest.raises(ConfigError, match=r"several, .* rewrites \(kl520.*--option chip="):
        rewrites_for(spec, kneron, {}, [AUTO])
    with pytest.raises(ConfigError, match="no table of one: give --rewrite NAME"):
        rewrites_for(spec, target("onnx"), {}, [AUTO])
    ethos = {"accelerator": "ethos-u55-128", "cpu": "allow"}
    assert rewrites_for(spec, target("ethosu"), ethos, [AUTO]) == ()
    assert rewrites_for(w6, target("qnn"), {"htp-arch": "v75"}, [AUTO]) == ()
    with pytest.raises(ConfigError, match="belongs to target edgetpu"):
        rewrites_for(spec, kneron, {"chip": "edgetpu"}, [AUTO])
    with pytest.raises(ConfigError, match="did you mean"):
        rewrites_for(spec, kneron, {"chip": "kl72"}, [AUTO])


def test_export_with_auto(narrow_tiny, tmp_path) -> None:
    from y7edge.export import export

    with pytest.raises(ConfigError, match="--rewrite auto needs a chip"):
        export(narrow_tiny, tmp_path / "a.onnx", imgsz=64, rewrites=[AUTO])


def test_an_export_for_a_chip_is_rewritten(narrow_tiny, tmp_path) -> None:
    from y7edge.export import export

    images = tmp_path / "images"
    images.mkdir()
    for index in range(2):
        pixels = np.full((64, 64, 3), 60 * index, np.uint8)
        assert cv2.imwrite(str(images / f"{index}.png"), pixels)
    made = export(
        narrow_tiny,
        tmp_path / "a.kneron.handover",
        target="kneron",
        imgsz=64,
        options={"chip": "kl720"},
        rewrites=[AUTO],
        calib=images,
        calib_images=2,
    )
    assert made.manifest.tools["rewrites"] == "resize-per-axis"
    assert audit_structure(load_structure(made.path), load("kl720")).fits


_ALL = """
import time
from pathlib import Path
from y7edge.export.audit.chips import load_all
from y7edge.export.audit.cures import Subject, audit_spec
from y7edge.models import registry
start = time.process_time()
for name in registry.names():
    spec = registry.get(name)
    subject = Subject(spec, spec.imgsz, spec.imgsz)
    for chip in load_all():
        audit_spec(subject, chip)
seconds = time.process_time() - start
# Not ru_maxrss, which starts with the memory of the process that started this one.
peak = next(n for n in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in n)
print(seconds, int(peak.split()[1]) / 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc for the memory")
def test_all_variants_over_all_chips_take_a_minute_and_little_memory() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _ALL], capture_output=True, text=True, timeout=600, check=True
    )
    seconds, mebibytes = map(float, done.stdout.split())
    assert seconds < 60
    assert mebibytes < 400


def test_the_largest_variant_is_audited_without_its_weights() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    assert cured("yolov7-e6e", "kl730").best.fits
    assert time.process_time() - start < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024
