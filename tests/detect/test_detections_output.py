"""Artifacts whose graph returns the boxes after NMS."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests import tampering
from y7edge import Detector
from y7edge.artifact.artifact import Artifact
from y7edge.artifact.manifest import Thresholds
from y7edge.cli import main
from y7edge.data.synthetic import scenes
from y7edge.detect.postprocess import Criteria, Postprocessor
from y7edge.detect.selftest import selftest
from y7edge.errors import ArtifactError, ConfigError, DataError, ParityError
from y7edge.export import build, export, verify
from y7edge.models import weights
from y7edge.runtimes import onnxrt, registry

CHECKPOINT = weights.load(Path(__file__).parents[1] / "reference" / "demo.safetensors")
SIZE = 160


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Artifacts of a trained checkpoint with a dynamic batch, by their outputs."""
    folder = tmp_path_factory.mktemp("nms")
    return {
        outputs: export(
            CHECKPOINT, folder / f"{outputs}.onnx", imgsz=SIZE, outputs=outputs, dynamic=True
        )
        for outputs in ("decoded", "nms")
    }


@pytest.fixture(scope="module")
def frames():
    return [scenes.scene(seed, (240, 320)).image for seed in range(5)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"conf": 0.05, "iou": 0.2},
        {"conf": 0.01, "iou": 1.0, "max_det": 30},
        {"conf": 0.05, "classes": [0]},
        {"conf": 0.05, "classes": [1, 2], "max_det": 2},
        {"conf": 0.9999},
    ],
    ids=str,
)
def test_boxes_equal_those_of_the_decoded_outputs(made, frames, options):
    expected = Detector(made["decoded"].path, **options)
    detector = Detector(made["nms"].path, **options)
    for found, wanted in zip(detector.batch(frames), expected.batch(frames), strict=True):
        np.testing.assert_array_equal(found.xyxy, wanted.xyxy)
        np.testing.assert_array_equal(found.confidence, wanted.confidence)
        np.testing.assert_array_equal(found.class_id, wanted.class_id)
    counts = [len(wanted) for wanted in expected.batch(frames)]
    assert sum(counts) > 4 or options.get("conf") == 0.9999


def test_a_fixed_batch_ignores_the_images_that_fill_it(made, frames, tmp_path):
    path = export(CHECKPOINT, tmp_path / "b.onnx", imgsz=SIZE, outputs="nms", batch=3).path
    expected = Detector(made["decoded"].path).batch(frames)
    for found, wanted in zip(Detector(path).batch(frames), expected, strict=True):
        np.testing.assert_allclose(found.xyxy, wanted.xyxy, atol=1e-3)


def test_the_manifest_describes_the_graph(made):
    manifest = made["nms"].manifest
    (output,) = manifest.outputs
    assert (output.role, output.shape, output.layout) == ("detections", ("dynamic", 7), "NC")
    assert manifest.threshold_inputs == ("conf", "iou", "max_det")
    assert set(manifest.parity["outputs"]) == {"detections"}
    assert manifest.parity["candidates"]["count"] >= 100
    assert manifest.parity["batches"] == [1, 3]
    assert registry.load(made["nms"].path) == made["nms"]
    with pytest.raises(ArtifactError, match="and layout NC"):
        replace(output, layout="NWC")
    with pytest.raises(ArtifactError, match="threshold inputs are"):
        replace(manifest, threshold_inputs=("conf",))
    with pytest.raises(ArtifactError, match="threshold inputs are"):
        replace(made["decoded"].manifest, threshold_inputs=("conf", "iou", "max_det"))


def test_other_programs_may_leave_the_thresholds_out(made, frames):
    session = registry.open_session(made["nms"])
    assert [(spec.name, spec.optional) for spec in session.inputs] == [
        ("images", False),
        ("conf", True),
        ("iou", True),
        ("max_det", True),
    ]
    pixels = {"images": np.random.default_rng(0).random((2, 3, SIZE, SIZE), np.float32)}
    defaults = made["nms"].manifest.thresholds
    rows = session.infer(pixels)["detections"]
    given = {"conf": np.array(defaults.conf, np.float32), "iou": np.array(0.45, np.float32)}
    np.testing.assert_array_equal(session.infer({**pixels, **given})["detections"], rows)
    (only,) = session.infer({**pixels, "conf": np.array(0, np.float32), "max_det": np.array(1)})
    assert only == "detections"
    for wrong in ({"conf": np.array(0.5)}, {"conf": np.array([0.5], np.float32)}, {"x": rows}):
        with pytest.raises(ConfigError, match=r"conf is float|takes images, conf"):
            session.infer({**pixels, **wrong})
    with pytest.raises(ConfigError, match="takes images, conf, iou, max_det; got conf"):
        session.infer(given | {"conf": np.array(0.5, np.float32)})


def test_what_the_graph_cannot_do_is_refused(made, frames, tmp_path, capsys):
    path = made["nms"].path
    with pytest.raises(ConfigError, match=r"agnostic is True, but the graph of .* each class"):
        Detector(path, agnostic=True)
    with pytest.raises(ConfigError, match=r"mAP needs every class .* above confidence 0\.001"):
        Detector(path).detect_for_evaluation(frames[0])
    with pytest.raises(ConfigError, match="target openvino has no outputs 'nms'"):
        build(path, tmp_path / "m.xml", target="openvino")
    (tmp_path / "val.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    cv2.imwrite(str(tmp_path / "val.png"), frames[0])
    data, save = tmp_path / "data.yaml", tmp_path / "saved"
    data.write_text("train: val.png\nval: val.png\nnames: [a, b, c]\n")
    assert main(["val", str(path), "--data", str(data), "--save", str(save)]) == 1
    assert "boxes after NMS" in capsys.readouterr().err
    assert not save.exists()


def test_rows_of_an_engine_are_checked():
    post = Postprocessor([], 3)
    rows = np.zeros((2, 7), np.float32)
    rows[:, 6] = 0.5
    rows[1, 5] = 3
    with pytest.raises(DataError, match="detections have class 3, expected 0 to 2"):
        post.detections(rows, 1, Criteria())
    with pytest.raises(DataError, match=r"detections are \(2, 6\), expected \(K, 7\)"):
        post.detections(rows[:, :6], 1, Criteria())
    rows[1] = np.nan
    (found,) = post.detections(rows, 1, Criteria())
    assert len(found.score) == 1
    assert len(post.detections(rows, 1, Criteria(conf=0.5))[0].score) == 0


# --- the proof -----------------------------------------------------------------------------------


@pytest.mark.parametrize("index", range(0, 58, 6))
def test_a_changed_convolution_fails_selftest_and_proof(made, tmp_path, index):
    names = tampering.convolutions_of(made["nms"].path)
    path, name = made["nms"].path, names[index % len(names)]
    changed = tampering.scale_weight(path, tmp_path / "m.onnx", name, seal=True)
    with pytest.raises(ParityError, match="deviates by"):
        selftest(changed, threads=1)
    with pytest.raises(ParityError, match="deviates by"):
        verify(changed, CHECKPOINT, threads=1, ignore_digests=True)


def altered(path, out, change):
    """The artifact with another graph, and the digest of that graph."""
    import onnx

    manifest = registry.load(path).manifest
    model = onnx.load(path)
    del model.metadata_props[:]
    change({node.name.rpartition("/nms/")[2]: node for node in model.graph.node}, model)
    onnx.save(model, out)
    digest = onnxrt.payload_digest((out,))
    onnxrt.write_manifest(Artifact(out, replace(manifest, payload_digest=digest)))
    return out


def no_suppression(nodes, model):
    one = onnx_constant("never", np.array(1, np.float32))
    model.graph.initializer.append(one)
    nodes["NonMaxSuppression"].input[3] = "never"


def no_threshold(nodes, model):
    model.graph.initializer.append(onnx_constant("always", np.array(2, np.float32)))
    nodes["above"].input[1] = "always"


def other_corners(nodes, model):
    nodes["high"].op_type = "Sub"


def worst_class(nodes, model):
    nodes["class_id"].op_type = "ArgMin"


def onnx_constant(name, value):
    from onnx import numpy_helper

    return numpy_helper.from_array(value, name)


@pytest.mark.parametrize("change", [no_suppression, no_threshold, other_corners, worst_class])
def test_a_wrong_graph_fails_the_proof(made, tmp_path, change):
    path = altered(made["nms"].path, tmp_path / "m.onnx", change)
    with pytest.raises(ParityError):
        verify(path, CHECKPOINT, threads=1, ignore_digests=True)
    with pytest.raises(ParityError, match="deviates by"):
        selftest(path)


def test_equal_classes_are_inconclusive(tmp_path):
    arrays = {
        key: value * np.float32("lead" not in key or "anchors" in key)
        for key, value in CHECKPOINT.arrays.items()
    }
    with pytest.raises(ParityError, match="inconclusive, the scores of a probe's classes"):
        export(replace(CHECKPOINT, arrays=arrays), tmp_path / "m.onnx", imgsz=SIZE, outputs="nms")
    assert not list(tmp_path.iterdir())


def test_an_empty_result_fails_the_probe(made, tmp_path):
    probes = made["nms"].manifest.probes
    assert all(probe.thresholds.iou == 0.45 for probe in probes)
    assert all(len(probe.samples[0].values) % 7 == 0 for probe in probes)
    assert all(len(probe.samples[0].values) >= 3 * 7 * probe.batch for probe in probes)
    deaf = tuple(replace(p, thresholds=Thresholds(conf=1.0)) for p in probes)
    path = tampering.rewrite(made["nms"].path, tmp_path / "m.onnx", probes=deaf)
    with pytest.raises(ParityError, match="deviates by None") as caught:
        selftest(path)
    assert caught.value.report.probes[0].outputs == {"detections": None}


def test_the_budget_is_measured_with_prepared_rows(made):
    from y7edge.benchmark.hotpath import busy_outputs, measure_gate

    gate = measure_gate(made["nms"].manifest, blocks=1)
    assert gate.post > 0
    (rows,) = busy_outputs(made["nms"].manifest, 0).values()
    assert rows.shape[1] == 7
    assert len(rows) > 20
