"""Runtime and target qnn, with stand-ins for Qualcomm's package."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.runtimes import fake_qnn
from tests.tampering import flip
from y7edge.artifact.artifact import Artifact
from y7edge.detect.selftest import selftest
from y7edge.errors import (
    ArtifactError,
    ArtifactMissing,
    ConfigError,
    DeviceError,
    DigestError,
    ExportError,
    RuntimeMissing,
)
from y7edge.export import export
from y7edge.export.proof.verify import verify
from y7edge.export.targets import qnn as target
from y7edge.runtimes import qnn, registry
from y7edge.runtimes.base import SessionOptions

SIZE = (64, 96)


@pytest.fixture
def engine(monkeypatch):
    monkeypatch.setattr(qnn.platform, "machine", lambda: "x86_64")
    return fake_qnn.install(monkeypatch)


@pytest.fixture(scope="module")
def exported(narrow_tiny, tmp_path_factory):
    """An artifact, and another one of the same model; not to be changed."""
    folder = tmp_path_factory.mktemp("qnn")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qnn.platform, "machine", lambda: "x86_64")
        fake_qnn.install(patch)
        return [
            export(
                narrow_tiny,
                folder / outputs / "robot.qnn.onnx",
                target="qnn",
                outputs=outputs,
                imgsz=SIZE,
            )
            for outputs in ("heads", "heads-sigmoid")
        ]


@pytest.fixture
def made(engine, exported, tmp_path):
    return registry.load(moved(exported[0], tmp_path / "made", "robot.qnn.onnx"))


def images():
    return {"images": np.random.default_rng(0).random((1, 3, *SIZE), np.float32)}


def moved(artifact, folder, name):
    """Both files under another name."""
    folder.mkdir()
    main, binary = qnn.files(folder / name)
    shutil.copyfile(artifact.path, main)
    shutil.copyfile(artifact.side_files[0], binary)
    return main


# --- the target ----------------------------------------------------------------------------------


def test_an_artifact_is_two_files_that_are_proved(made, narrow_tiny):
    main, binary = made.files
    assert (main.name, binary.name) == ("robot.qnn.onnx", "robot.qnn.bin")
    assert set(main.parent.iterdir()) == {main, binary}
    assert made.manifest.precision == "fp16"
    assert made.manifest.parity["status"] == "passed"
    assert made.manifest.parity["arithmetic"] == "float16 (QNN, emulated HTP v73)"
    assert made.manifest.engine == {"htp_arch": "v73", "soc_model": 0, "qairt": "2.51.0"}
    assert selftest(main).status == "passed"
    assert verify(main, narrow_tiny).status == "passed"


def test_the_file_refers_to_the_binary_and_keeps_the_providers_metadata(made):
    proto = onnx.load(made.path, load_external_data=False)
    (node,) = proto.graph.node
    values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert values.pop("ep_cache_context") == b"robot.qnn.bin"
    expected = {k: v.encode() if isinstance(v, str) else v for k, v in fake_qnn.ATTRIBUTES.items()}
    assert values == expected
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    assert set(metadata) == {*fake_qnn.METADATA, "y7edge"}
    assert metadata["y7edge"] == made.manifest.to_json()


def test_the_compiler_gets_the_options_and_never_uses_the_cpu(engine, narrow_tiny, tmp_path):
    options = {"htp-arch": "v81", "soc-model": "87"}
    lines: list[str] = []
    export(
        narrow_tiny,
        tmp_path / "a.qnn.onnx",
        target="qnn",
        imgsz=SIZE,
        options=options,
        progress=lines.append,
    )
    compiled, *opened = engine.opened
    assert compiled.provider == {
        "backend_path": "/packages/libQnnHtp.so",
        "htp_arch": "81",
        "soc_model": "87",
        "htp_graph_finalization_optimization_mode": "3",
        "offload_graph_io_quantization": "0",
    }
    assert compiled.entries["ep.context_enable"] == "1"
    assert compiled.entries["ep.context_embed_mode"] == "0"
    assert opened and all(options.provider.keys() == {"backend_path"} for options in opened)
    for options in engine.opened:
        assert options.entries["session.disable_cpu_ep_fallback"] == "1"
        assert [device.device.type for device in options.devices] == ["npu"]
    (line,) = (line for line in lines if "HTP v81" in line and "compiled" in line)
    assert "an evaluation of 100 images" in line


def test_equal_requests_give_equal_bytes(engine, made, narrow_tiny, tmp_path):
    again = export(narrow_tiny, tmp_path / "robot.qnn.onnx", target="qnn", imgsz=SIZE)
    assert [f.read_bytes() for f in made.files] == [f.read_bytes() for f in again.files]


def test_fp32_is_refused_with_the_reason(engine, narrow_tiny, tmp_path):
    with pytest.raises(ConfigError, match="'fp32': the HTP computes in integers or float16"):
        export(narrow_tiny, tmp_path / "a.qnn.onnx", target="qnn", precision="fp32")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"htp-arch": "v99"}, "htp-arch is 'v99', expected v68"),
        ({"htp-arch": "73"}, "expected v68"),
        ({"htp-arch": "v73\n" + "x" * 99}, "htp-arch is"),
        ({"soc-model": "SM8550"}, "soc-model is 'SM8550', expected a number"),
        ({"soc-model": "-1"}, "expected a number"),
        ({"soc-model": "43\n"}, "expected a number"),
        ({"soc-model": "٤٣"}, "expected a number"),
        ({"soc-model": ""}, "expected a number"),
    ],
)
def test_options_are_checked(engine, narrow_tiny, tmp_path, options, words):
    with pytest.raises(ConfigError, match=words) as caught:
        export(narrow_tiny, tmp_path / "a.qnn.onnx", target="qnn", imgsz=SIZE, options=options)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_name_that_the_provider_refuses_is_refused_first(engine, narrow_tiny, tmp_path):
    with pytest.raises(ArtifactError, match="two dots"):
        export(narrow_tiny, tmp_path / "a..b.qnn.onnx", target="qnn", imgsz=SIZE)


def test_a_refused_node_is_an_error(engine, narrow_tiny, tmp_path):
    engine.refusal = "nodes are assigned to the default CPU EP, but fallback to CPU EP has been ..."
    with pytest.raises(ExportError, match="the HTP refuses nodes of the graph"):
        export(narrow_tiny, tmp_path / "a.qnn.onnx", target="qnn", imgsz=SIZE)
    assert not list(tmp_path.iterdir())


def test_decoded_boxes_are_not_quantised(engine, narrow_tiny, tmp_path):
    arguments = {"target": "qnn", "precision": "int8", "unverified": "a test", "calib": "x"}
    with pytest.raises(ConfigError, match="decoded"):
        export(narrow_tiny, tmp_path / "a.qnn.onnx", outputs="decoded", **arguments)


def test_int8_takes_no_bytes(engine, made, tmp_path):
    image = replace(made.manifest.input, dtype="uint8", layout="NHWC")
    manifest = replace(made.manifest, precision="int8", input=image)
    request = target.BuildRequest(tmp_path / "x.onnx", None, manifest, tmp_path, "a.qnn.onnx")
    with pytest.raises(ConfigError, match="no uint8 input in int8"):
        target.build(request)


# --- files ---------------------------------------------------------------------------------------


def test_renamed_files_open(engine, made, tmp_path):
    path = moved(made, tmp_path / "other place", "schraube mit Öse.qnn.onnx")
    artifact = registry.load(path)
    assert artifact.side_files == (path.with_suffix(".bin"),)
    session = registry.open_session(artifact)
    assert session.infer(images())["head0"].dtype == np.float16
    assert engine.opened[-1].entries["ep.context_file_path"] == str(path)


def test_other_files_that_the_node_names_are_not_read(engine, made, tmp_path):
    """The engine only ever gets the name of the file whose digest was checked."""
    proto = onnx.load(made.path, load_external_data=False)
    for attribute in proto.graph.node[0].attribute:
        if attribute.name == "ep_cache_context":
            attribute.s = b"../../secret.bin"
    made.path.write_bytes(proto.SerializeToString())
    qnn.write_manifest(made)
    session = registry.open_session(made, SessionOptions(check_payload=False))
    session.infer(images())


def test_dots_in_a_renamed_file(engine, made, tmp_path):
    path = moved(made, tmp_path / "b", "a..b.qnn.onnx")
    with pytest.raises(ArtifactError, match=r"a\.\.b\.qnn\.bin: QNN opens no name"):
        registry.open_session(registry.load(path))


@pytest.mark.parametrize("which", [0, 1], ids=["onnx", "bin"])
@pytest.mark.parametrize("where", [0.1, 0.6, 0.9])
def test_a_changed_file_is_refused_before_the_engine_sees_it(engine, made, which, where):
    path = made.files[which]
    size = len(qnn._modelproto.without_manifest(path)) if which == 0 else path.stat().st_size
    flip(path, path, int(size * where))
    engine.opened.clear()
    with pytest.raises(ArtifactError) as caught:
        registry.open_session(registry.load(made.path))
    assert "\n" not in str(caught.value)
    with pytest.raises(ArtifactError):
        selftest(made.path)
    assert not engine.opened


def test_changed_metadata_of_the_provider_is_noticed(engine, made):
    raw = made.path.read_bytes().replace(b"v2:6:2.51.0", b"v2:6:9.51.0")
    made.path.write_bytes(raw)
    with pytest.raises(DigestError):
        registry.open_session(registry.load(made.path))


@pytest.mark.parametrize("keep", [0, 0.5])
def test_a_truncated_binary_is_refused(engine, made, keep):
    binary = made.side_files[0]
    data = binary.read_bytes()
    binary.write_bytes(data[: int(len(data) * keep)])
    engine.opened.clear()
    with pytest.raises(DigestError, match="were changed after it was proved"):
        registry.open_session(made)
    assert not engine.opened


def test_a_missing_binary_is_named(engine, made):
    made.side_files[0].unlink()
    with pytest.raises(ArtifactMissing, match=r"robot\.qnn\.bin"):
        registry.open_session(registry.load(made.path))


def test_binaries_of_two_artifacts_are_not_mixed_up(engine, made, exported):
    other = exported[1]
    shutil.copyfile(other.side_files[0], made.side_files[0])
    with pytest.raises(DigestError, match="do not belong together"):
        registry.open_session(made)


def test_a_changed_artifact_may_be_replaced_and_another_one_not(engine, made, narrow_tiny):
    flip(made.side_files[0], made.side_files[0], 100)
    export(narrow_tiny, made.path, target="qnn", imgsz=SIZE)
    assert selftest(made.path).status == "passed"
    other = made.path.with_name("note.qnn.bin")
    other.write_text("mine")
    with pytest.raises(ConfigError, match="does not belong to the artifact"):
        export(narrow_tiny, made.path.with_name("note.qnn.onnx"), target="qnn", imgsz=SIZE)
    assert other.read_text() == "mine"


def test_an_onnx_artifact_with_this_suffix_runs_in_onnx_runtime(engine, artifact_path, tmp_path):
    path = tmp_path / "plain.qnn.onnx"
    shutil.copyfile(artifact_path, path)
    assert registry.name_of(registry.find(path)) == "onnxrt"
    assert registry.name_of(registry.find(artifact_path)) == "onnxrt"


# --- sessions ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("machine", "device"), [("AMD64", "emulator"), ("aarch64", "npu")])
def test_devices(engine, made, monkeypatch, machine, device):
    monkeypatch.setattr(qnn.platform, "machine", lambda: machine)
    assert qnn.available_devices() == [device]
    for name in ("auto", device):
        session = registry.open_session(made, SessionOptions(name))
        assert session.device == device
        assert ("emulated" in session.arithmetic) == (device == "emulator")
    (other,) = set(qnn.DEVICES) - {device}
    with pytest.raises(DeviceError, match=f"'{other}' is not available"):
        registry.open_session(made, SessionOptions(other))
    with pytest.raises(ConfigError, match="expected auto, npu or emulator"):
        registry.open_session(made, SessionOptions("cuda"))


def test_a_machine_without_a_device(engine, made):
    engine.devices = []
    assert qnn.available_devices() == []
    with pytest.raises(DeviceError, match="finds no device"):
        registry.open_session(made)


@pytest.mark.parametrize("version", ["2.50.0", "2.52.0"])
def test_another_version_of_the_sdk_is_refused(engine, made, monkeypatch, version):
    monkeypatch.setitem(fake_qnn.sys.modules, "onnxruntime_qnn", fake_qnn.package(version))
    engine.opened.clear()
    words = rf"compiled by QAIRT 2\.51\.0.*contains QAIRT {version}.*onnxruntime-qnn==2\.7\.0"
    with pytest.raises(DeviceError, match=words):
        registry.open_session(made)
    assert not engine.opened


@pytest.mark.parametrize("arch", [None, 73, "v" * 5000, "v73; v75"])
def test_a_manifest_without_a_version_of_the_htp(engine, made, arch):
    changed = replace(made.manifest, engine={**made.manifest.engine, "htp_arch": arch})
    with pytest.raises(ArtifactError, match=r"was compiled for HTP .{1,50} expected a version"):
        registry.open_session(replace(made, manifest=changed), SessionOptions(check_payload=False))


def test_a_version_in_the_manifest_cannot_extend_the_proposed_command(engine, made):
    manifest = made.manifest
    tools = {**manifest.tools, "onnxruntime-qnn": "2.7.0 other-package"}
    changed = replace(manifest, tools=tools, engine={**manifest.engine, "qairt": "1"})
    with pytest.raises(DeviceError, match="pip install onnxruntime-qnn==VERSION, or"):
        registry.open_session(replace(made, manifest=changed), SessionOptions(check_payload=False))


def test_options_of_the_user(engine, made):
    given = {"htp_performance_mode": "burst", "qnn_context_priority": "high"}
    registry.open_session(made, SessionOptions(provider_options=given))
    assert engine.opened[-1].provider == {"backend_path": "/packages/libQnnHtp.so", **given}
    for name, value in (
        ("enable_htp_fp16_precision", "1"),
        ("backend_path", "/tmp/libQnnHtp.so"),
        ("htp_performance_mode", "fast"),
        ("htp_performance_mode", ["burst"]),
    ):
        with pytest.raises(ConfigError, match=name):
            registry.open_session(made, SessionOptions(provider_options={name: value}))


def test_the_library_is_registered_once(engine, made):
    registry.open_session(made)
    registry.open_session(made)
    assert engine.registered == {qnn.PROVIDER: "/packages/libonnxruntime_providers_qnn.so"}
    assert engine.loaded == ["/packages/libQnnHtp.so"]


def test_an_old_onnx_runtime(engine, made, monkeypatch):
    monkeypatch.delattr(fake_qnn.Engine, "register_execution_provider_library")
    with pytest.raises(RuntimeMissing, match=r"no plugin execution providers: .*1\.24\.2"):
        registry.open_session(made)


def test_a_refusal_of_the_engine_is_one_line(engine, made):
    engine.refusal = "Failed to load from EpContext model.\n  Code: 5005"
    words = r"QNN cannot open .*: Failed to load from EpContext model\. Code: 5005"
    with pytest.raises(DeviceError, match=words):
        registry.open_session(made)


def test_without_the_package(artifact_path, tmp_path, narrow_tiny):
    if not registry.missing(qnn.NEEDS):
        pytest.skip("onnxruntime-qnn is installed")
    manifest = replace(registry.load(artifact_path).manifest, target="qnn")
    main, binary = qnn.files(tmp_path / "a.qnn.onnx")
    shutil.copyfile(artifact_path, main)
    binary.write_bytes(b"context")
    qnn.write_manifest(Artifact(main, manifest))
    with pytest.raises(RuntimeMissing, match=r'pip install "y7edge\[qnn\]"'):
        registry.open_session(registry.load(main))
    with pytest.raises(RuntimeMissing, match=r'pip install "y7edge\[qnn\]"'):
        export(narrow_tiny, tmp_path / "b.qnn.onnx", target="qnn")


def test_a_file_without_manifest(engine, tmp_path):
    path = Path(tmp_path / "a.qnn.onnx")
    path.write_bytes(b"garbage")
    with pytest.raises(ArtifactError, match="not a whole ONNX file"):
        registry.load(path)
