"""Target coreml: the package, its manifest, and the interpreter of its own.

Core ML runs on macOS only. Without coremltools, these tests read the committed package and compute
its program with torch. With it (`Y7EDGE_COREML_PYTHON`), slow tests convert the model again.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.export.coreml_program import Program
from tests.export.test_litert_file import narrowest
from tests.runtimes import fake_coremltools
from tests.runtimes.conftest import SIZE, committed, skip_unless_built_here
from y7edge import interpreters
from y7edge.artifact.artifact import digest_files, sidecar
from y7edge.cli import main
from y7edge.detect.selftest import RECIPE, RECIPE_8BIT, as_input, compare_samples, probe_input
from y7edge.errors import ConfigError, ExportError, RuntimeMissing
from y7edge.export import export
from y7edge.export.targets import coreml_package
from y7edge.export.targets.base import BuildRequest
from y7edge.models import registry as models
from y7edge.models.scaling import scale
from y7edge.nn.random_weights import random_weights
from y7edge.runtimes import coreml, registry
from y7edge.runtimes.base import TensorSpec

PACKAGE = committed(coreml_package, {})
MODEL, WEIGHTS, MANIFEST = (
    "Data/com.apple.CoreML/model.mlmodel",
    "Data/com.apple.CoreML/weights/weight.bin",
    "Manifest.json",
)
EXAMPLES = Path(__file__).parents[2] / "examples"
REASON = "Core ML runs on macOS only"
VARIABLE = "Y7EDGE_COREML_PYTHON"


def narrow_export(out, **options):
    """Export the model of the committed artifacts."""
    options = {"imgsz": SIZE, "unverified": REASON, **options}
    return export(narrowest(), out, target="coreml", **options)


def write_committed() -> None:
    """Write the committed package again; see tests/reference/README.md."""
    PACKAGE.parent.mkdir(parents=True, exist_ok=True)
    narrow_export(PACKAGE)


def deviations(path):
    """Compute a package's program on its probes; return the largest deviation and the tolerance."""
    manifest, program = registry.load(path).manifest, Program(path)
    image, worst = manifest.input, []
    specs = tuple(TensorSpec(o.name, o.shape, o.dtype, o.role, o.layout) for o in manifest.outputs)
    for probe in manifest.probes:
        pixels = probe_input(probe.recipe, probe.key, (1, 3, image.height, image.width))
        given = as_input(pixels, image).astype(np.float32)
        given = given.transpose(0, 3, 1, 2) if image.layout == "NHWC" else given
        outputs = program.run(torch.from_numpy(np.ascontiguousarray(given)))
        worst += compare_samples(probe, outputs, specs).values()
    return max(worst), manifest.probes[0].tolerance


# --- the committed package -----------------------------------------------------------------------


def test_the_specification():
    """An ML program of iOS 16 with an image input, named outputs, and what apps need to decode."""
    manifest, program = registry.load(PACKAGE).manifest, Program(PACKAGE)
    assert program.version == 7  # iOS 16, macOS 13
    (image,) = program.inputs
    assert (image.name, image.kind, image.shape, image.code) == ("images", "image", SIZE, 20)
    assert [(o.name, o.shape, o.code) for o in program.outputs] == [
        (o.name, o.shape, 65568) for o in manifest.outputs
    ]
    assert program.results == ["head0", "head1", "head2"]
    assert set(program.counts) == {
        *("const", "mul", "cast", "conv", "leaky_relu", "max_pool", "concat"),
        "upsample_nearest_neighbor",
    }
    assert program.counts["cast"] == 4  # the input to float16, the outputs to float32
    metadata = {key.removeprefix("y7edge."): text for key, text in program.metadata.items()}
    assert metadata["checkpoint"] == manifest.source.digest
    assert json.loads(metadata["names"]) == list(manifest.names)
    assert [(one["stride"], one["anchors"][0]) for one in json.loads(metadata["levels"])] == [
        (level.stride, list(level.anchors[0])) for level in manifest.levels
    ]
    assert (metadata["activation"], metadata["letterbox"]) == ("logit", "114")
    assert len(program.metadata) == 6  # no date


def test_the_manifest_of_the_artifact():
    manifest = registry.load(PACKAGE).manifest
    image = manifest.input
    assert (image.dtype, image.layout, image.scale, image.color) == ("uint8", "NHWC", 1, "rgb")
    assert (manifest.target, manifest.precision, manifest.opset) == ("coreml", "fp16", None)
    assert manifest.parity["status"] == "unverified" and manifest.parity["reason"] == REASON
    assert {probe.recipe for probe in manifest.probes} == {RECIPE_8BIT}
    assert {o.dtype for o in manifest.outputs} == {"float32"}
    assert registry.load(PACKAGE).files == (PACKAGE, sidecar(PACKAGE))
    registry.check_payload(registry.load(PACKAGE))


def test_the_program_computes_the_outputs_of_the_reference():
    worst, tolerance = deviations(PACKAGE)
    assert 1e-4 < worst < 0.005 < tolerance


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


CHANGES = {
    "model": lambda package: flip(package / MODEL),
    "weights": lambda package: flip(package / WEIGHTS),
    "listing": lambda package: flip(package / MANIFEST),
    "renamed": lambda package: (package / WEIGHTS).rename((package / WEIGHTS).with_name("b.bin")),
    "moved": lambda package: (package / WEIGHTS).rename(package / "weight.bin"),
    "removed": lambda package: (package / WEIGHTS).unlink(),
    "added": lambda package: (package / "Data" / "empty").touch(),
    "cut": lambda package: os.truncate(package / WEIGHTS, 1000),
    "emptied": lambda package: shutil.rmtree(package / "Data"),
    "manifest": lambda package: flip(sidecar(package)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_package_is_refused(change, tmp_path, capsys):
    """Self-test and verification notice any change, without Core ML."""
    package = tmp_path / "m.mlpackage"
    shutil.copytree(PACKAGE, package)
    shutil.copyfile(sidecar(PACKAGE), sidecar(package))
    registry.check_payload(registry.load(package))
    CHANGES[change](package)
    demo = Path(__file__).parents[1] / "reference" / "demo.safetensors"
    for command in (["selftest", package], ["verify", package, "--against", demo]):
        assert main(list(map(str, command))) == 4
        assert "changed after it was proved" in capsys.readouterr().err


# --- exports -------------------------------------------------------------------------------------


def stand_in(tmp_path, monkeypatch, convert):
    """Install a shell script as the interpreter with coremltools; ``convert`` is what it runs."""
    path = tmp_path / "python with blanks"
    path.write_text(
        "#!/bin/sh\n"
        'if [ "$2" = -c ]; then echo \'{"coremltools": "9.0", "torch": "2"}\'; exit; fi\n'
        f"{convert}\n"
    )
    path.chmod(0o755)
    monkeypatch.setenv(VARIABLE, str(path))
    interpreters._versions.cache_clear()


def test_a_failed_conversion_leaves_nothing(tmp_path, monkeypatch):
    stand_in(tmp_path, monkeypatch, "echo 'one\ntwo: no such operation' >&2; exit 3")
    (tmp_path / "out").mkdir()
    with pytest.raises(ExportError, match=r"two: no such operation \(code 3\)"):
        narrow_export(tmp_path / "out" / "m.mlpackage")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("convert", "message"),
    [
        ("kill -9 $$", "coremltools cannot convert the model: it was killed"),
        ("mkdir $4", "ended without an error, but wrote no file"),
        ("cp -r $PACKAGE $4; rm $4/$SPEC", r"wrote 0 bytes of model\.mlmodel"),
        (
            "cp -r $PACKAGE $4; truncate -s 30000 $4/$WEIGHTS",
            r"30000 bytes of weight\.bin, expected",
        ),
        ("cp -r $PACKAGE $4; truncate -s 3000 $4/$SPEC", r"a broken model\.mlmodel"),
        ("cp -r $PACKAGE $4", None),
    ],
)
def test_broken_packages_are_noticed(convert, message, tmp_path, monkeypatch):
    """No engine would notice that a part is missing."""
    stand_in(tmp_path, monkeypatch, convert)
    monkeypatch.setattr(coreml_package, "_export", lambda *_: None)
    for name, path in {"PACKAGE": PACKAGE, "SPEC": MODEL, "WEIGHTS": WEIGHTS}.items():
        monkeypatch.setenv(name, str(path))
    manifest = registry.load(PACKAGE).manifest
    request = BuildRequest(tmp_path, None, manifest, tmp_path, "m.mlpackage")
    if message is None:
        assert digest_files([coreml_package.build(request).path]) == digest_files([PACKAGE])
        return
    with pytest.raises(ExportError, match=message):
        coreml_package.build(request)
    assert not (tmp_path / "m.mlpackage").exists()


def test_the_interpreter_is_named_in_the_error(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none"))
    with pytest.raises(RuntimeMissing, match=r"COREML_PYTHON is .*pip install coremltools==9\.0"):
        narrow_export(tmp_path / "m.mlpackage")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unverified": None}, r"cannot be proved here \(Core ML runs on macOS only\)"),
        ({"outputs": "decoded"}, "has no outputs 'decoded'"),
        ({"precision": "int8"}, "has no precision 'int8'"),
        ({"batch": 2}, "has no batch size"),
        ({"options": {"x": "y"}}, "has no option 'x'"),
    ],
)
def test_refused_options(options, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        narrow_export(tmp_path / "m.mlpackage", **options)


@pytest.mark.slow
def test_conversion_gives_the_committed_package(tmp_path):
    skip_unless_built_here(coreml_package)
    made, kept = narrow_export(tmp_path / "narrow.mlpackage"), registry.load(PACKAGE)
    if made.manifest.source.digest == kept.manifest.source.digest:
        assert digest_files([made.path]) == digest_files([PACKAGE])
    # The last bits of random weights differ between machines.
    pixels = torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(0)) * 255
    programs = [Program(artifact.path) for artifact in (made, kept)]
    assert programs[0].counts == programs[1].counts
    found, expected = (program.run(pixels) for program in programs)
    for name, head in expected.items():
        np.testing.assert_allclose(found[name], head, atol=5e-3 * np.abs(head).max())


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"precision": "fp32"},
        {"input": "float32", "outputs": "heads-sigmoid"},
        {"precision": "fp32", "input": "float32"},
    ],
    ids=str,
)
def test_other_kinds(options, tmp_path):
    """The programs of all kinds compute the reference's outputs."""
    skip_unless_built_here(coreml_package)
    made = narrow_export(tmp_path / "m.mlpackage", **options)
    recipe = RECIPE if options.get("input") == "float32" else RECIPE_8BIT
    assert {probe.recipe for probe in made.manifest.probes} == {recipe}
    worst, tolerance = deviations(made.path)
    assert worst < (1e-5 if options.get("precision") == "fp32" else 0.005) < tolerance


@pytest.mark.slow
@pytest.mark.parametrize("name", models.names())
def test_all_variants(name, tmp_path):
    """The programs of all variants, with few channels, compute the reference's outputs."""
    skip_unless_built_here(coreml_package)
    spec = scale(models.get(name, nc=3), width=0.0625)
    out, options = tmp_path / "m.mlpackage", {"target": "coreml", "unverified": REASON}
    made = export(random_weights(spec, seed=1), out, imgsz=128, **options)
    worst, tolerance = deviations(made.path)
    assert worst < 0.006 < tolerance


@pytest.mark.slow
def test_an_export_on_a_mac_is_proved(tmp_path, monkeypatch):
    """On macOS, the export runs the package; here in a stand-in for coremltools."""
    skip_unless_built_here(coreml_package)
    fake_coremltools.install(monkeypatch)
    monkeypatch.setattr(coreml_package, "RUNTIME", "coreml")
    made = narrow_export(tmp_path / "m.mlpackage", unverified=None)
    assert made.manifest.parity["status"] == "passed"
    assert main(["selftest", str(made.path)]) == 0


CALLS = """
import inspect, json, sys
import coremltools as ct
from coremltools.models.compute_device import MLComputeDevice
from coremltools.models import compute_plan
from coremltools.models.compute_plan import MLComputePlan
spec = ct.models.MLModel(sys.argv[1], skip_model_load=True).get_spec()
kinds = ct.proto.FeatureTypes_pb2
print(json.dumps({
    "units": sorted(unit.name for unit in ct.ComputeUnit),
    "opens": sorted(inspect.signature(ct.models.MLModel.__init__).parameters),
    "predicts": sorted(inspect.signature(ct.models.MLModel.predict).parameters),
    "devices": callable(MLComputeDevice.get_all_compute_devices),
    "plan": sorted(inspect.signature(MLComputePlan.load_from_path).parameters),
    "members": [name for kind in vars(compute_plan).values() if inspect.isclass(kind)
                for name in (*dir(kind), *getattr(kind, "__annotations__", {}))],
    "compiles": callable(ct.models.utils.compile_model),
    "names": [cls.__name__ for cls in MLComputeDevice.__subclasses__()],
    "dtypes": {kinds.ArrayFeatureType.ArrayDataType.Name(n): n for n in
               kinds.ArrayFeatureType.ArrayDataType.values()},
    "colors": {kinds.ImageFeatureType.ColorSpace.Name(n): n for n in
               kinds.ImageFeatureType.ColorSpace.values()},
    "input": spec.description.input[0].type.WhichOneof("Type"),
}))
"""


@pytest.mark.slow
def test_calls_exist_in_coremltools():
    """What the runtime and its stand-in use of coremltools is what the package has."""
    skip_unless_built_here(coreml_package)
    command = [coreml_package._interpreter(), "-I", "-c", CALLS, str(PACKAGE)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    unit = fake_coremltools.ComputeUnit
    assert set(coreml._UNITS.values()) <= set(found["units"])
    assert {name for name in vars(unit) if name.isupper()} == set(found["units"])
    assert {"self", "model", "compute_units"} <= set(found["opens"])
    assert {"self", "data"} <= set(found["predicts"])
    assert found["devices"] and found["compiles"] and {"path"} <= set(found["plan"])
    example = (EXAMPLES / "coreml_placement.py").read_text()
    used = re.findall(r"\b(?:plan|structure|program|block|operation|usage|cost)\.(\w+)", example)
    assert len(used) > 6 and set(used) <= {*found["members"], "load_from_path"}
    assert set(found["names"]) == set(coreml._KINDS)
    for code, dtype in coreml._DTYPES.items():
        assert found["dtypes"][dtype.upper()] == code
    for code, color in coreml._COLORS.items():
        assert found["colors"][color.upper()] == code
    assert found["input"] == "imageType"
