"""``y7edge build``: other targets from a proved ONNX artifact, without torch and onnx."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests import tampering
from tests.blocking import BLOCKER
from tests.runtimes.conftest import HANDOVERS
from y7edge import Detector
from y7edge.artifact.artifact import Artifact
from y7edge.artifact.description import kind_of_outputs
from y7edge.artifact.manifest import in_layout
from y7edge.artifact.reports import ParityReport
from y7edge.cli import main
from y7edge.detect.selftest import selftest
from y7edge.errors import ConfigError, DigestError, ParityError
from y7edge.export import build, export, verify
from y7edge.export.targets import registry as targets
from y7edge.export.targets.base import Unprovable
from y7edge.runtimes import onnxrt, registry
from y7edge.runtimes.base import missing

OTHERS = [
    name
    for name in targets.names()
    if name != "onnx"
    and not targets.get(name).NEEDS_CHECKPOINT
    and not targets.get(name).CALIBRATES
    and not isinstance(targets.get(name).RUNTIME, Unprovable)
    and "fp32" in targets.get(name).PRECISIONS  # precision and outputs of the ONNX artifact
    and "heads" in targets.get(name).OUTPUTS
]


@pytest.mark.parametrize("name", OTHERS)
def test_build_equals_export(name, artifact_path, narrow_tiny, tmp_path):
    target = targets.get(name)
    if absent := missing(target.NEEDS):
        pytest.skip(f"target {name}: {', '.join(absent)} is not installed")
    lines = []
    made = build(artifact_path, tmp_path / f"b{target.SUFFIX}", target=name, progress=lines.append)
    assert registry.load(made.path) == made
    assert "written to" in lines[-1]
    source = registry.load(artifact_path).manifest
    assert made.manifest.target == name
    assert made.manifest.source == source.source
    assert made.manifest.payload_digest != source.payload_digest
    report = ParityReport.from_dict(made.manifest.parity)
    assert report.status == "passed"
    assert report.measured.engine == target.RUNTIME
    assert set(report.measured.outputs) == {output.name for output in made.manifest.outputs}
    assert selftest(made.path).status == "passed"
    assert verify(made.path, narrow_tiny).status == "passed"
    frame = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    expected, found = (Detector(p, conf=0.05)(frame) for p in (artifact_path, made.path))
    np.testing.assert_allclose(found.xyxy, expected.xyxy, atol=0.01)
    np.testing.assert_array_equal(found.class_id, expected.class_id)


@pytest.mark.parametrize("name", OTHERS)
def test_build_needs_neither_torch_nor_onnx(name, artifact_path, tmp_path):
    target = targets.get(name)
    if absent := missing(target.NEEDS):
        pytest.skip(f"target {name}: {', '.join(absent)} is not installed")
    blocked = {"torch", "onnx", "onnxsim", "safetensors"}
    out = tmp_path / f"b{target.SUFFIX}"
    words = ["build", str(artifact_path), "--target", name, "--out", str(out), "--json"]
    script = f"from y7edge.cli import main; sys.exit(main({words!r}))"
    done = subprocess.run(
        [sys.executable, "-c", BLOCKER.format(blocked=blocked) + script],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["parity"]["status"] == "passed"
    assert out.exists()


@pytest.fixture
def rotten(monkeypatch):
    """A target ``rotten`` in the registry: an .onnx file with one weight changed on the way."""

    def converted(request):
        name = tampering.convolutions_of(request.model)[0]
        tampering.scale_weight(request.model, request.path, name, 1.5)
        return Artifact(request.path, request.manifest)

    onnx = targets.get("onnx")
    fields = {name: getattr(onnx, name) for name in dir(onnx) if name.isupper()}
    target = SimpleNamespace(
        **{**fields, "NAME": "rotten"}, build=converted, versions=lambda: {"rotten": "1"}
    )
    real = targets.get
    monkeypatch.setattr(targets, "get", lambda name: target if name == "rotten" else real(name))
    return target


def turned(path, activated):
    """The graph with its heads in NHWC, under other names, perhaps behind a sigmoid."""
    model = onnx.load(path)
    del model.metadata_props[:]
    for level, head in enumerate(model.graph.output):
        source, name = head.name, f"output{level}"
        if activated:
            model.graph.node.append(helper.make_node("Sigmoid", [source], [f"{source}/s"]))
            source = f"{source}/s"
        model.graph.node.append(helper.make_node("Transpose", [source], [name], perm=[0, 2, 3, 1]))
        batch, channels, rows, columns = (d.dim_value for d in head.type.tensor_type.shape.dim)
        head.CopyFrom(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, rows, columns, channels])
        )
    return model


@pytest.mark.parametrize("activated", [False, True])
def test_targets_may_change_names_layouts_and_activations(
    rotten, artifact_path, tmp_path, activated
):
    def converted(request):
        request.path.write_bytes(turned(request.model, activated).SerializeToString())
        outputs = tuple(
            replace(
                output,
                name=f"output{output.level}",
                layout="NHWC",
                shape=in_layout(output.shape, "NHWC"),
                activation="sigmoid" if activated else "logit",
            )
            for output in request.manifest.outputs
        )
        return Artifact(request.path, replace(request.manifest, outputs=outputs))

    rotten.build = converted
    made = build(artifact_path, tmp_path / "m.onnx", target="rotten")
    assert selftest(made.path).status == "passed"
    frame = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    expected, found = (Detector(p, conf=0.05)(frame) for p in (artifact_path, made.path))
    np.testing.assert_allclose(found.xyxy, expected.xyxy, atol=0.01)


@pytest.fixture(scope="module")
def unusual(narrow_tiny, tmp_path_factory):
    """Artifacts with sigmoids and another form of the graph, by their input."""
    folder, options = tmp_path_factory.mktemp("unusual"), {"imgsz": (64, 96)}
    options |= {"outputs": "heads-sigmoid", "rewrites": ["pool3x3"]}
    return {
        kind: export(narrow_tiny, folder / f"{kind}.onnx", input=kind, **options)
        for kind in ("float32", "uint8")
    }


@pytest.mark.parametrize("kind", ["float32", "uint8"])
@pytest.mark.parametrize("name", OTHERS)
def test_outputs_input_and_rewrites_are_kept(name, kind, unusual, tmp_path):
    target = targets.get(name)
    if absent := missing(target.NEEDS):
        pytest.skip(f"target {name}: {', '.join(absent)} is not installed")
    source, out = unusual[kind], tmp_path / f"b{target.SUFFIX}"
    if kind not in target.INPUTS:
        with pytest.raises(ConfigError, match=f"target {name} has no input '{kind}'"):
            build(source.path, out, target=name)
        return
    made = build(source.path, out, target=name).manifest
    assert made.input == source.manifest.input
    assert kind_of_outputs(made) == "heads-sigmoid"
    assert made.tools["rewrites"] == "pool3x3"
    assert made.parity["status"] == selftest(out).status == "passed"


def test_rewrites_that_a_target_misses_are_reported(rotten, artifact_path, tmp_path):
    lines = []
    rotten.REWRITES = ("leaky-max", "pool3x3")
    with pytest.raises(ParityError):
        build(artifact_path, tmp_path / "m.onnx", target="rotten", progress=lines.append)
    assert [line.split(";")[0] for line in lines[:2]] == [
        "the graph lacks the rewrite leaky-max",
        "the graph lacks the rewrite pool3x3",
    ]


@pytest.mark.parametrize("name", [name for name in OTHERS if name not in HANDOVERS])
def test_metadata_is_not_copied(name, artifact_path, narrow_tiny, tmp_path):
    """What is built from an artifact is what is built from its graph alone."""
    target = targets.get(name)
    if absent := missing(target.NEEDS):
        pytest.skip(f"target {name}: {', '.join(absent)} is not installed")
    image = registry.load(artifact_path).manifest.input
    size = (image.height, image.width)
    made = build(artifact_path, tmp_path / f"a{target.SUFFIX}", target=name)
    same = export(narrow_tiny, tmp_path / f"b{target.SUFFIX}", target=name, imgsz=size)
    assert made.manifest.payload_digest == same.manifest.payload_digest


def test_deviating_artifact_is_not_written(rotten, artifact_path, tmp_path):
    with pytest.raises(ParityError, match=r"nothing was written.*probe0-batch1 deviates") as caught:
        build(artifact_path, tmp_path / "m.onnx", target="rotten")
    assert caught.value.report.status == "failed"
    assert list(tmp_path.iterdir()) == []


def test_unsupported_targets_are_refused(rotten, artifact_path, tmp_path):
    out = tmp_path / "m.onnx"

    def rejected(problem, source=artifact_path, **changes):
        for name, value in changes.items():
            setattr(rotten, name, value)
        with pytest.raises(ConfigError, match=problem):
            build(source, out, target="rotten")

    rejected("converts checkpoints, not ONNX files", NEEDS_CHECKPOINT=True)
    rejected("hands over calibration images", NEEDS_CHECKPOINT=False, CALIBRATES=True)
    rejected("cannot be proved .no engine", CALIBRATES=False, RUNTIME=Unprovable("no engine"))
    rejected("no precision 'fp32'; choose from fp16", RUNTIME="onnxrt", PRECISIONS={"fp16": "fp16"})
    rejected("no outputs 'heads'", PRECISIONS={"fp32": "fp32"}, OUTPUTS=("decoded",))
    rotten.OUTPUTS = ("heads",)
    parity = {"status": "unverified", "problems": [], "reason": "x"}
    unproved = tampering.rewrite(artifact_path, tmp_path / "unproved.onnx", parity=parity)
    rejected("status 'unverified', expected .* 'passed'", source=unproved)
    bare = tampering.rewrite(artifact_path, tmp_path / "bare.onnx", probes=())
    rejected("has no probes", source=bare)
    assert not out.exists()


def test_an_artifact_is_not_built_from_itself(artifact_path, tmp_path):
    with pytest.raises(ConfigError, match="already has target onnx"):
        build(artifact_path, tmp_path / "m.onnx", target="onnx")


def test_a_changed_source_is_refused(rotten, artifact_path, tmp_path):
    name = tampering.convolutions_of(artifact_path)[0]
    changed = tampering.scale_weight(artifact_path, tmp_path / "changed.onnx", name)
    with pytest.raises(DigestError, match="changed after it was proved"):
        build(changed, tmp_path / "m.onnx", target="rotten")


def test_the_command(artifact_path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if missing(targets.get("openvino").NEEDS):
        pytest.skip("openvino is not installed")
    assert main(["build", str(artifact_path), "--target", "openvino"]) == 0
    assert "narrow.xml" in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["narrow.bin", "narrow.xml"]
    assert main(["build", str(artifact_path), "--target", "openvino", "--option", "fast"]) == 2
    assert main(["build", str(artifact_path), "--target", "openvino", "--option", "a=b"]) == 1
    assert "no option 'a'" in capsys.readouterr().err


def test_a_probe_that_is_not_finite_fails(rotten, artifact_path, tmp_path, monkeypatch):
    real = onnxrt._OnnxSession._run

    def broken(self, feeds):
        return {name: array * np.nan for name, array in real(self, feeds).items()}

    monkeypatch.setattr(onnxrt._OnnxSession, "_run", broken)
    with pytest.raises(ParityError) as caught:
        build(artifact_path, tmp_path / "m.onnx", target="rotten")
    assert caught.value.report.measured.outputs["head0"].deviation is None
    assert replace(caught.value.report).to_dict()["status"] == "failed"
