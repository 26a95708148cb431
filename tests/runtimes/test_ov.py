"""OpenVINO: reading and writing .xml files without the engine, and precision."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from y7edge.errors import ArtifactError, ConfigError, DeviceError
from y7edge.runtimes import ov, registry
from y7edge.runtimes.base import SessionOptions

openvino = pytest.importorskip("openvino")


@pytest.fixture
def artifact(make):
    return make("openvino").artifact


def test_the_engine_reads_the_manifest_where_it_was_written(artifact):
    model = ov.open_core().read_model(str(artifact.path))
    assert model.get_rt_info(["y7edge", "manifest"]).value == artifact.manifest.to_json()
    assert "framework" not in model.rt_info, "another manifest would travel along"
    assert artifact.manifest.opset is None


def test_weights_keep_their_precision(make):
    sizes = [
        make("openvino", precision=p).artifact.files[1].stat().st_size for p in ("fp32", "fp16")
    ]
    assert 1.9 < sizes[0] / sizes[1] < 2.1


WHOLE = '<net name="x"><layers/><rt_info><y7edge><manifest value="{}"/></y7edge></rt_info></net>'


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("<net><layers/></net>", "no element net/rt_info"),
        ("<annotation><object/></annotation>", "its root is 'annotation'"),
        ('<!DOCTYPE net [<!ENTITY a "b">]><net><rt_info/></net>', "declares a document type"),
        ("<net><rt_info></net>", "mismatched tag"),
        (WHOLE.replace("/></y7edge>", "/>  </y7edge>"), "not written by y7edge"),
        (WHOLE.replace("</rt_info>", "<y7edge/></rt_info>"), "two elements rt_info/y7edge"),
        (
            WHOLE.replace('<manifest value="{}"/>', '<manifest value="{}"/>' * 2),
            "not written by y7edge",
        ),
        (WHOLE.replace('<manifest value="{}"/>', ""), "not written by y7edge"),
    ],
)
def test_other_xml_files_are_refused(tmp_path, text, problem):
    path = tmp_path / "m.xml"
    path.write_text(text)
    with pytest.raises(ArtifactError, match=problem) as caught:
        ov.read_manifest(path)
    assert str(path) in str(caught.value)


def test_ir_without_manifest_names_the_export(tmp_path):
    path = tmp_path / "foreign.xml"
    path.write_text("<net><layers/><rt_info></rt_info></net>")
    with pytest.raises(ArtifactError, match=r"no y7edge manifest.*--target openvino"):
        registry.load(path)


def test_a_very_large_xml_file_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(ov, "_MAX_XML", 100)
    path = tmp_path / "m.xml"
    path.write_text(WHOLE + " " * 100)
    with pytest.raises(ArtifactError, match="at most 100 bytes"):
        ov.read_manifest(path)


@pytest.mark.parametrize("inner", ["<a/>" * 600_000, "<a>" * 600_000], ids=["many", "deep"])
def test_too_many_elements_are_refused(tmp_path, inner):
    path = tmp_path / "m.xml"
    path.write_text(f"<net>{inner}")
    with pytest.raises(ArtifactError, match="more than 500000 elements"):
        ov.read_manifest(path)


class Compiled:
    """A compiled model that says it computes in another precision, as a CPU with AMX would."""

    def __init__(self, model, computed):
        self.model, self.computed = model, computed

    def get_property(self, name):
        return self.computed

    def __getattr__(self, name):
        return getattr(self.model, name)


class Recorder:
    """Stands in for openvino: notes what a model is compiled with, and compiles it for the CPU."""

    def __init__(self, monkeypatch, computed=None):
        self.asked, self.computed, self.core = [], computed, ov.open_core()
        self.available_devices = ["CPU", "GPU.0", "GPU.1"]
        self.read_model = self.core.read_model
        monkeypatch.setattr(ov, "open_core", lambda: self)

    def compile_model(self, model, name, settings):
        self.asked.append((name, settings))
        hint = settings["INFERENCE_PRECISION_HINT"]
        compiled = self.core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": hint})
        return Compiled(compiled, self.computed) if self.computed else compiled


def test_fp32_is_required(artifact, monkeypatch):
    recorder = Recorder(monkeypatch)
    session = ov.open(artifact, SessionOptions(threads=1))
    assert session.arithmetic == "float32 (OpenVINO, cpu)"
    (name, settings) = recorder.asked[0]
    assert name == "CPU"
    assert settings["INFERENCE_PRECISION_HINT"] == "f32"
    assert settings["INFERENCE_NUM_THREADS"] == 1
    Recorder(monkeypatch, computed=openvino.Type.bf16)
    with pytest.raises(DeviceError, match="would compute this fp32 artifact in bfloat16"):
        ov.open(artifact, SessionOptions())


def test_fp16_is_computed_in_float16_on_a_gpu_only(artifact, make, monkeypatch):
    half = make("openvino", precision="fp16").artifact
    recorder = Recorder(monkeypatch)
    assert ov.open(half, SessionOptions()).arithmetic == (
        "float16 weights, float32 (OpenVINO, cpu)"
    )
    assert ov.open(half, SessionOptions("gpu:1")).device == "gpu:1"
    (_, on_cpu), (name, on_gpu) = recorder.asked
    assert on_cpu["INFERENCE_PRECISION_HINT"] == "f32"
    assert (name, on_gpu["INFERENCE_PRECISION_HINT"]) == ("GPU.1", "f16")


@pytest.mark.parametrize("key", ["INFERENCE_PRECISION_HINT", "EXECUTION_MODE_HINT"])
def test_the_precision_is_not_an_option_of_the_call(artifact, key):
    with pytest.raises(ConfigError, match=f"{key} cannot be set"):
        ov.open(artifact, SessionOptions(provider_options={key: "bf16"}))


def test_other_options_reach_the_engine_and_unknown_ones_are_named(artifact):
    session = ov.open(artifact, SessionOptions(provider_options={"PERF_COUNT": True}))
    session.close()
    with pytest.raises(DeviceError, match="NO_SUCH_OPTION"):
        ov.open(artifact, SessionOptions(provider_options={"NO_SUCH_OPTION": 1}))


def test_throughput_runs_the_images_of_a_batch_in_several_requests(make, monkeypatch):
    dynamic = make("openvino", dynamic=True).artifact
    image = dynamic.manifest.input
    x = np.random.default_rng(0).random((5, 3, image.height, image.width), dtype=np.float32)
    expected = ov.open(dynamic, SessionOptions()).infer({"images": x})
    hint = {"PERFORMANCE_HINT": "THROUGHPUT"}
    session = ov.open(dynamic, SessionOptions(threads=2, provider_options=hint))
    assert len(session._queue) > 1
    for count in (5, 1, 2):
        found = session.infer({"images": x[:count]})
        for name, array in found.items():
            np.testing.assert_allclose(array, expected[name][:count], atol=1e-4)
            assert array.flags.writeable
    copy, copies = np.array, []

    def fail_once(*args, **more):
        copies.append(1)
        if len(copies) == 2:
            raise MemoryError("no memory for an output")
        return copy(*args, **more)

    monkeypatch.setattr(ov.np, "array", fail_once)
    with pytest.raises(DeviceError, match="no memory for an output"):
        session.infer({"images": x})
    again = session.infer({"images": x})
    np.testing.assert_allclose(again["head0"], expected["head0"], atol=1e-4)
    monkeypatch.setattr(session, "_tensor", lambda *_, **__: 1 / 0)
    with pytest.raises(DeviceError, match="failed in OpenVINO"):
        session.infer({"images": x})


def test_auto_is_openvinos_own_choice(artifact):
    session = ov.open(artifact, SessionOptions("AUTO"))
    image = artifact.manifest.input
    x = np.random.default_rng(0).random((1, 3, image.height, image.width), dtype=np.float32)
    expected = ov.open(artifact, SessionOptions()).infer({"images": x})
    for name, array in session.infer({"images": x}).items():
        np.testing.assert_allclose(array, expected[name], atol=1e-4)
    assert session.device == "AUTO"
    assert session.arithmetic == "float32 (OpenVINO, AUTO: cpu)"
    assert ov.open(artifact, SessionOptions("AUTO", threads=1)).threads == 1


def test_auto_computes_in_the_precision_of_the_artifact(artifact):
    own = {"INFERENCE_PRECISION_HINT": "bf16"}
    core = ov.open_core()
    compiled = core.compile_model(core.read_model(str(artifact.path)), "CPU", own)
    if compiled.get_property("INFERENCE_PRECISION_HINT") != openvino.Type.bf16:
        pytest.skip("this CPU does not compute in bfloat16")
    options = SessionOptions("AUTO", provider_options={"DEVICE_PROPERTIES": {"CPU": own}})
    with pytest.raises(DeviceError, match="would compute this fp32 artifact in bfloat16 on AUTO"):
        ov.open(artifact, options)


def test_a_graph_that_contradicts_its_manifest_does_not_open(artifact):
    heads = tuple(replace(o, shape=(1, 27, *o.shape[2:])) for o in artifact.manifest.outputs)
    changed = replace(artifact.manifest, names=("a", "b", "c", "d"), nc=4, outputs=heads)
    with pytest.raises(ArtifactError, match=r"head0 float32 \(1, 24, .*\(1, 27"):
        ov.open(replace(artifact, manifest=changed), SessionOptions())
