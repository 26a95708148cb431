"""Target tensorrt, driven with a fake TensorRT of each version that Jetsons and desktops have."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest

from tests.blocking import BLOCKER
from tests.export import fake_tensorrt as fake
from tests.runtimes import fake_cuda
from y7edge import Detector
from y7edge.artifact.artifact import digest_files, read_sidecar, sidecar, write_sidecar
from y7edge.artifact.description import describe
from y7edge.cli import main
from y7edge.data.synthetic.scenes import scene
from y7edge.errors import ConfigError, DeviceError, ExportError, RuntimeMissing
from y7edge.export import build, export
from y7edge.export.folding import fold_checkpoint
from y7edge.export.graph import build as graph
from y7edge.export.graph.quantize import PROFILES, Profile, placement_of, quantize
from y7edge.export.graph.quantize_placement import Wiring
from y7edge.export.targets import _trt_cache, _trt_settings, trt
from y7edge.export.targets._trt_settings import Device, Settings
from y7edge.export.targets.base import BuildRequest
from y7edge.files import cache_folder
from y7edge.runtimes import _cuda, _modelproto, registry

SIZE = (64, 96)
VERSIONS = ("8.6.1", "10.3.0.30", "10.16.2.10", "11.4.1.5")
CONVOLUTIONS, HEADS = 58, 3  # of yolov7-tiny


def made_ranges(source: Path, profile: Profile = PROFILES["s8s8"]) -> dict[str, float]:
    """A largest value for each quantised tensor of a float graph; heads stay in float."""
    model = onnx.load(source)
    placement = placement_of(model, profile, Wiring(model).heads())
    largest = {group: 1.0 + number for number, group in enumerate(placement.groups())}
    return {tensor: largest[group] for tensor, group in placement.group.items()}


def quantised(source: Path, profile: Profile = PROFILES["s8s8"]) -> bytes:
    """The QDQ graph with these ranges."""
    model, ranges = onnx.load(source), made_ranges(source, profile)
    placement = placement_of(model, profile, Wiring(model).heads())
    made = quantize(model, placement, {g: (0, ranges[g]) for g in placement.groups()}, profile)
    return made.SerializeToString(deterministic=True)


@pytest.fixture(scope="module")
def graphs(narrow_tiny, tmp_path_factory):
    """Path and manifest of a graph, by precision, outputs and batch; each is written once."""
    folder, made = tmp_path_factory.mktemp("graphs"), {}
    checkpoint = fold_checkpoint(narrow_tiny)

    def write(precision, outputs="heads", batch=1):
        key = (precision, outputs, batch)
        if key not in made:
            path = folder / f"{'-'.join(map(str, key))}.onnx"
            plain = "fp16" if precision == "fp16" else "fp32"
            options = {"outputs": outputs, "precision": plain}
            model = graph.build_graph(
                checkpoint,
                height=SIZE[0],
                width=SIZE[1],
                batch=None if batch == "dynamic" else batch,
                **options,
            )
            path.write_bytes(model.SerializeToString(deterministic=True))
            if precision == "int8":
                path.write_bytes(quantised(path))
            draft = describe(
                checkpoint,
                checkpoint.spec,
                SIZE,
                batch=batch,
                target="tensorrt",
                tools={},
                **options,
            )
            made[key] = path, replace(draft, precision=precision)
        return made[key]

    return write


@pytest.fixture
def start(monkeypatch, tmp_path):
    """Install a fake TensorRT; its cache is empty."""
    monkeypatch.setenv("Y7EDGE_CACHE", str(tmp_path / "cache"))

    def install(version="10.3.0.30", **options):
        world = fake.World(version, **options)
        driver = fake.pycuda_driver(world)
        package = ModuleType("pycuda")
        package.driver, package.__spec__ = driver, ModuleSpec("pycuda", None)
        monkeypatch.setitem(sys.modules, "tensorrt", fake.tensorrt(world))
        monkeypatch.setitem(sys.modules, "pycuda", package)
        monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
        monkeypatch.setattr(_cuda, "_library", lambda: None)
        monkeypatch.setattr(_cuda, "_GPUS", {})
        return world

    return install


class Order:
    """Build graphs, each into a new folder; ``lines`` is what the last build said."""

    def __init__(self, graphs, folder):
        self.graphs, self.folder, self.lines, self.count = graphs, folder, [], 0

    def request(self, precision="fp32", outputs="heads", batch=1, device="auto", **options):
        path, manifest = self.graphs(precision, outputs, batch)
        self.lines = []
        self.count += 1
        folder = self.folder / f"out{self.count}"
        folder.mkdir()
        return BuildRequest(
            path,
            None,
            manifest,
            folder,
            "robot.engine",
            device=device,
            options={name.replace("_", "-"): value for name, value in options.items()},
            progress=self.lines.append,
        )

    def __call__(self, *args, **kwargs):
        return trt.build(self.request(*args, **kwargs))

    @property
    def text(self):
        return "\n".join(self.lines)


@pytest.fixture
def order(graphs, tmp_path):
    return Order(graphs, tmp_path)


# --- the precision -------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize(
    ("version", "typed"),
    [("8.6.1", False), ("10.3.0.30", True), ("10.16.2.10", True), ("11.4.1.5", True)],
)
def test_the_graph_decides_the_precision_where_the_version_can(
    start, order, version, typed, precision
):
    world = start(version)
    made = order(precision)
    (flags,) = world.did("create_network")[0]
    assert flags == {"8": 1, "10": 2, "11": 0}[version.split(".")[0]]
    _, config, network = world.did("build")[0]
    expected = {"fp32": set(), "fp16": {"FP16", "OBEY_PRECISION_CONSTRAINTS"}, "int8": {"INT8"}}
    assert config.flags == (set() if typed else expected[precision])  # TF32 is off in all
    forced = [hasattr(layer, "precision") for layer in network.layers]
    assert sum(forced) == (CONVOLUTIONS if not typed and precision == "fp16" else 0)
    assert config.profiling_verbosity == "DETAILED"
    counts = {"fp32": HEADS, "int8": CONVOLUTIONS - HEADS}
    counts = counts if precision == "int8" else {precision: CONVOLUTIONS}
    assert made.manifest.engine["convolutions"] == counts
    assert made.path.read_bytes() == fake.PLAN + _modelproto.without_metadata(
        order.graphs(precision)[0]
    )


def test_the_manifest_says_what_the_engine_is_tied_to(start, order):
    start("10.16.2.10")
    made = order("fp16", workspace="512")
    assert made.manifest.opset is None
    assert dict(made.manifest.engine) == {
        "tensorrt": "10.16.2.10",
        "compute_capability": "8.7",
        "device": "Orin",
        "platform": f"{sys.platform} {os.uname().machine}",
        "version_compatible": False,
        "dla": None,
        "profile": None,
        "workspace_mb": 512,
        "convolutions": {"fp16": CONVOLUTIONS},
    }
    write_sidecar(made)
    assert read_sidecar(made.path) == made.manifest
    assert sidecar(made.path).name == "robot.engine.json"


def test_a_convolution_in_another_precision_is_an_error(start, order):
    def inspector(built):
        found = json.loads(fake.computed(built))
        found["Layers"][3]["Weights"]["Type"] = "Float"
        return json.dumps(found)

    start(inspector=inspector)
    request = order.request("fp16")
    with pytest.raises(
        ExportError, match=r"computes 1 of 58 .* /row.*/Conv is computed in fp32, ex"
    ):
        trt.build(request)
    assert not list(request.folder.iterdir())
    assert not list(cache_folder("tensorrt").glob("*.engine"))


@pytest.mark.parametrize("text", ["", "{", '{"Layers": ["conv1", "conv2"]}', "[]", "[" * 100_000])
def test_an_inspector_without_precisions_is_reported(start, order, text):
    start(inspector=lambda built: text)
    made = order("fp16")
    assert made.manifest.engine["convolutions"] == {"unknown": CONVOLUTIONS}
    assert "does not give the precision of 58 of 58 convolutions" in order.text


@pytest.mark.parametrize("claimed", ["fp16", "fp32"])
def test_a_graph_in_another_precision_than_its_manifest(start, order, claimed):
    start()
    request = order.request({"fp16": "fp32", "fp32": "fp16"}[claimed])
    request = replace(request, manifest=replace(request.manifest, precision=claimed))
    with pytest.raises(ExportError, match=f"the {claimed} graph computes /row0/Conv in fp"):
        trt.build(request)


def test_quantised_graphs_are_recognised(start, order):
    start()
    request = order.request("int8")
    with pytest.raises(ExportError, match=r"precision fp32 and \d+ nodes that quantise"):
        trt.build(replace(request, manifest=replace(request.manifest, precision="fp32")))
    request = order.request("fp32")
    with pytest.raises(ExportError, match="precision int8 and none, expected Q/DQ"):
        trt.build(replace(request, manifest=replace(request.manifest, precision="int8")))


@pytest.mark.parametrize(
    ("profile", "problem"),
    [
        (PROFILES["u8s8"], "QuantizeLinear images/QuantizeLinear has the type uint8"),
        (replace(PROFILES["s8s8"], symmetric=False), "images/Quant.* a zero point other than 0"),
        (replace(PROFILES["s8s8"], int32_bias=True), "DequantizeLinear .* has the type int32"),
    ],
)
def test_graphs_of_other_profiles_are_refused_before_tensorrt(
    start, order, tmp_path, profile, problem
):
    world, wrong = start(), tmp_path / "wrong.onnx"
    wrong.write_bytes(quantised(order.graphs("fp32")[0], profile))
    request = replace(order.request("int8"), model=wrong)
    with pytest.raises(ExportError, match=problem):
        trt.build(request)
    assert world.calls == []


# --- the build -----------------------------------------------------------------------------------


def test_a_smaller_workspace_is_tried_when_memory_runs_out(start, order):
    world = start(memory=600, free=5 << 30, total=8 << 30, integrated=True)
    made = order("fp16")
    assert [call[0] for call in world.did("build")] == [2048, 1024, 512]
    assert made.manifest.engine["workspace_mb"] == 512
    assert "memory ran out with a workspace of 2048 MiB (Requested amount" in order.text
    assert "try 1024" in order.text


def test_the_workspace_has_a_lower_limit(start, order):
    world = start(memory=1)
    problem = r"cannot build robot\.engine: Requested amount of GPU.*; stop other programs"
    with pytest.raises(ExportError, match=problem):
        order("fp16", workspace="300")
    assert [call[0] for call in world.did("build")] == [300, 150]


def test_other_failures_are_not_repeated(start, order):
    world = start(builder_error="Error Code 10: could not find any implementation for node /row0")
    request = order.request()
    with pytest.raises(ExportError, match="could not find any implementation for node /row0"):
        trt.build(request)
    assert len(world.did("build")) == 1
    assert not list(request.folder.iterdir())
    assert world.contexts == 0


def test_the_parser_errors_are_reported(start, order):
    start(parser_errors=("No importer for Foo", "node 3"))
    with pytest.raises(ExportError, match="does not accept the graph: No importer for Foo; node 3"):
        order()


@pytest.mark.parametrize(
    ("gib", "integrated", "expected"),
    [((4, 8), True, 2048), ((1, 8), True, 512), ((8, 16), True, 4096), ((10, 12), False, 5120)],
)
def test_the_default_workspace(gib, integrated, expected):
    free, total = (number << 30 for number in gib)
    assert Device("x", "8.7", free, total, integrated).workspace == expected
    assert Device("x", "8.7", 0, total, integrated).workspace == 128


@pytest.mark.parametrize("version", VERSIONS)
def test_a_dynamic_batch_gets_a_profile(start, order, version):
    world = start(version)
    made = order("fp16", batch="dynamic", profile="1,2,16")
    assert made.manifest.engine["profile"] == {"min": 1, "opt": 2, "max": 16}
    (profile,) = world.did("build")[0][1].profiles
    shapes = tuple((batch, 3, *SIZE) for batch in (1, 2, 16))
    assert profile.shapes == ("images", *shapes)
    order("fp16")
    assert world.did("build")[1][1].profiles == []


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"profile": "2,4,8", "batch": "dynamic"}, "profile is '2,4,8'.*the smallest is 1"),
        ({"profile": "1,1,2", "batch": "dynamic"}, "the largest 3 to 1024"),
        ({"profile": "1,9,8", "batch": "dynamic"}, "profile is '1,9,8'"),
        ({"profile": "8", "batch": "dynamic"}, "profile is '8'"),
        ({"profile": "1,4,8"}, "for graphs with a dynamic batch"),
        ({"workspace": "1g"}, "workspace is '1g', expected a number of MiB"),
        ({"workspace": "16"}, "workspace is 16, expected 128 or more"),
        ({"cache": "true"}, "cache is 'true', expected yes or no"),
        ({"device": "cpu"}, "device is 'cpu', expected auto, cuda, cuda:N or dla:N"),
    ],
)
def test_invalid_options(start, order, options, problem):
    world = start()
    with pytest.raises(ConfigError, match=problem):
        order(**options)
    assert world.calls == []


def test_version_compatible_engines(start, order):
    world = start()
    made = order("fp16", version_compatible="yes")
    assert "VERSION_COMPATIBLE" in world.did("build")[0][1].flags
    assert world.did("deserialize")[0][1] is True  # the plan contains code
    assert made.manifest.engine["version_compatible"] is True
    order("fp16")
    assert world.did("deserialize")[1][1] is False


def test_unknown_newer_versions_warn_and_old_ones_are_refused(start, order):
    start("12.1.0")
    with pytest.warns(UserWarning, match=r"TensorRT 12\.1\.0 is newer than 11\.4"):
        order()
    start("8.5.2")
    with pytest.raises(DeviceError, match=r"TensorRT 8\.5\.2 is too old, expected 8\.6 or later"):
        order()
    start("11.4.1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        order()


def test_the_gpu_is_the_one_that_was_asked_for(start, order):
    world = start(gpus=2)
    order(device="cuda:1")
    assert world.did("Device") == [(1,)]
    with pytest.raises(DeviceError, match=r"cuda:2' is not available: this machine has cuda:0, cu"):
        order(device="cuda:2")
    start(gpus=0)
    with pytest.raises(DeviceError, match=r"driver does not work \(cuInit failed"):
        order()
    assert trt.versions() == {"tensorrt": "10.3.0.30"}


def on_a_terminal(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich writes as to a terminal
    monkeypatch.setenv("TERM", "xterm")


@pytest.mark.parametrize(("version", "shown"), [("8.6.1", False), ("10.3.0.30", True)])
def test_progress_on_a_terminal(start, order, monkeypatch, capfd, version, shown):
    on_a_terminal(monkeypatch)
    start(version)
    order()
    assert ("Building" in capfd.readouterr().err) == shown


def test_an_interrupted_build(monkeypatch):
    world = fake.World("10.3.0.30")

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    bars = SimpleNamespace(
        add_task=lambda *_, **__: 1, update=interrupt, remove_task=lambda _: None
    )
    stopped = []
    monitor = trt._monitor(fake.tensorrt(world), bars, stopped)
    monitor.phase_start("a", None, 3)
    assert monitor.step_complete("a", 0) is False  # TensorRT ends the build
    monitor.phase_finish("a")
    assert [type(error) for error in stopped] == [KeyboardInterrupt]


def test_an_error_in_the_display_ends_the_build(start, order, monkeypatch):
    on_a_terminal(monkeypatch)
    world = start()

    def fail(*_, **__):
        raise OSError("broken pipe")

    monkeypatch.setattr("rich.progress.Progress.add_task", fail)
    with pytest.raises(ExportError, match="broken pipe"):
        order()
    assert len(world.did("build")) == 1


def test_missing_packages(start, order, monkeypatch):
    start()
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    for action in (order, trt.versions):
        with pytest.raises(
            RuntimeMissing, match=r"TensorRT or pycuda cannot be imported: .*tensorrt"
        ):
            action()


# --- the whole command ---------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch, tmp_path, artifact_path):
    """A GPU whose engines compute what the ONNX artifact computes, and that builds such engines."""
    monkeypatch.setenv("Y7EDGE_CACHE", str(tmp_path / "cache"))
    made, world = fake_cuda.Machine(), fake.World("10.3.0", contexts=1)
    manifest = registry.load(artifact_path).manifest
    session = onnxruntime.InferenceSession(artifact_path, providers=["CPUExecutionProvider"])
    names = [output.name for output in manifest.outputs]
    made.network = lambda images: dict(
        zip(names, session.run(names, {"images": images}), strict=True)
    )
    made.install(monkeypatch)
    sys.modules["pycuda"].driver.mem_get_info = lambda: (4 << 30, 8 << 30)
    module = sys.modules["tensorrt"]
    running, building = module.Runtime, fake.tensorrt(world)

    class Builder(fake.Builder):
        def build_serialized_network(self, network, config):
            if super().build_serialized_network(network, config) is None:
                return None
            return memoryview(fake_cuda.plan(manifest))

    class Runtime(running):
        def deserialize_cuda_engine(self, plan):
            engine = super().deserialize_cuda_engine(plan)
            text = (world.inspector or fake.computed)(world.did("build")[-1][1:])
            inspector = SimpleNamespace(get_engine_information=lambda form: text)
            engine.create_engine_inspector = lambda: inspector
            return engine

    for name, member in vars(building).items():
        if not hasattr(module, name):
            setattr(module, name, member)
    module.Runtime, module.Builder = Runtime, lambda logger: Builder(world, logger)
    made.world = world
    yield made
    gc.collect()
    assert made.left() == []


def test_build_from_the_proved_onnx(machine, artifact_path, tmp_path, capsys):
    proved = registry.load(artifact_path).manifest
    out = tmp_path / "robot.engine"
    words = ["build", str(artifact_path), "--target", "tensorrt", "--out", str(out)]
    assert main([*words, "--option", "trtexec=yes", "--json"]) == 0
    said = capsys.readouterr().err
    assert "TensorRT 10.3.0, Fake GPU, workspace 2048 MiB" in said
    assert f"trtexec --onnx={artifact_path} --saveEngine=robot.plan --stronglyTyped" in said
    assert {path.name for path in tmp_path.glob("robot*")} == {"robot.engine", "robot.engine.json"}
    made = registry.load(out).manifest
    assert made.parity["status"] == "passed"
    assert made.parity["engine"] == "trt"
    assert made.engine["tensorrt"] == made.tools["tensorrt"] == "10.3.0"
    assert (made.source, made.outputs) == (proved.source, proved.outputs)
    assert main(["selftest", str(out)]) == 0
    capsys.readouterr()
    assert main(["info", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["engine"]["convolutions"] == {"fp32": CONVOLUTIONS}
    assert main(["info", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "engine          compute_capability 8.6, convolutions" in shown
    assert "dla" not in shown
    frame = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    host = {"provider_options": {"kernels": False}}  # the fake GPU has no kernels
    with Detector(out, conf=0.05, **host) as detector, Detector(artifact_path, conf=0.05) as other:
        found, expected = detector(frame), other(frame)
    np.testing.assert_allclose(found.xyxy, expected.xyxy, atol=0.01)


def test_build_from_an_int8_artifact(machine, narrow_tiny, artifact_path, tmp_path):
    images, quantised = tmp_path / "images", tmp_path / "int8.onnx"
    images.mkdir()
    for seed in range(2):
        cv2.imwrite(str(images / f"{seed}.png"), scene(seed, (96, 128)).image)
    image = registry.load(artifact_path).manifest.input
    given = {"precision": "int8", "calib": images, "imgsz": (image.height, image.width)}
    accepted = {"unverified": "a test without labels"}
    with pytest.raises(ConfigError, match="does not take profile 'u8s8'; it takes s8s8"):
        export(narrow_tiny, tmp_path / "m.engine", target="tensorrt", profile="u8s8", **given)
    export(narrow_tiny, quantised, profile="s8s8", **given, **accepted)
    session = onnxruntime.InferenceSession(quantised, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    machine.network = lambda images: dict(
        zip(names, session.run(names, {"images": images}), strict=True)
    )
    out = tmp_path / "robot.engine"
    build(quantised, out, target="tensorrt", **accepted)
    manifest = registry.load(out).manifest
    assert manifest.engine["convolutions"] == {"fp32": HEADS, "int8": CONVOLUTIONS - HEADS}
    assert (manifest.precision, manifest.parity["status"]) == ("int8", "unverified")


def test_an_engine_of_another_machine_is_built_again(machine, artifact_path, tmp_path, capsys):
    out = tmp_path / "robot.engine"
    words = ["build", str(artifact_path), "--target", "tensorrt", "--out", str(out)]
    assert main(words) == 0
    machine.capability = (8, 7)
    _cuda._GPUS.clear()
    before = machine.calls.count("deserialize_cuda_engine")
    assert main(["selftest", str(out)]) == 1
    problem = capsys.readouterr().err
    assert "built for sm_86 (Fake GPU" in problem and "this is sm_87" in problem
    assert "run `y7edge build MODEL.onnx --target tensorrt` on this machine" in problem
    assert machine.calls.count("deserialize_cuda_engine") == before
    assert main(words) == 0
    assert len(machine.world.did("build")) == 2
    assert main(["selftest", str(out)]) == 0


@pytest.mark.parametrize("fault", ["inspector", "builder", "deserialize_cuda_engine"])
def test_failed_builds_write_and_keep_nothing(machine, artifact_path, tmp_path, fault):
    def wrong(built):
        return fake.computed(built).replace("Float", "Half")

    if fault == "inspector":
        machine.world.inspector = wrong
    elif fault == "builder":
        machine.world.builder_error = "no kernel"
    else:
        machine.fail.add(fault)
    out = tmp_path / "robot.engine"
    with pytest.raises(ExportError, match=r"in another precision|no kernel|TensorRT cannot"):
        build(artifact_path, out, target="tensorrt")
    assert not list(tmp_path.glob("robot*"))


def test_torch_and_onnx_are_not_needed(artifact_path):
    """Up to the first call of TensorRT, and in the import of the modules behind it."""
    script = (
        "import sys\n"
        "from dataclasses import replace\n"
        "from pathlib import Path\n"
        "from y7edge.export.targets import trt\n"
        "from y7edge.export.targets._trt_settings import Settings\n"
        "from y7edge.export.targets.base import BuildRequest\n"
        "from y7edge.runtimes import registry\n"
        "path = Path(sys.argv[1])\n"
        "manifest = registry.load(path).manifest\n"
        "request = BuildRequest(path, None, manifest, path.parent, 'm.engine', device='cuda:0')\n"
        "trt.require_graph(request)\n"
        "print(Settings.of(manifest, {}, 'cuda:0').typing('10.3.0'))\n"
    )
    blocked = {"torch", "onnx", "onnxsim"}
    done = subprocess.run(
        [sys.executable, "-c", BLOCKER.format(blocked=blocked) + script, str(artifact_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "graph\n", done.stderr


# --- the cache -----------------------------------------------------------------------------------


def test_equal_requests_are_built_once(start, order):
    world = start()
    first = order("fp16")
    second = order("fp16")
    assert "comes from the cache" in order.text
    assert digest_files(first.files) == digest_files(second.files)
    assert first.manifest == second.manifest
    assert len(world.did("build")) == 1
    order("fp16", cache="no")
    assert len(world.did("build")) == 2


ORIN = Device("x", "8.7", 1, 1, True)


def test_what_the_key_of_an_engine_contains(order, monkeypatch):
    def key(payload="p", version="10.3.0", board=ORIN, **options):
        asked = order.request("fp16", **options)
        settings = Settings.of(asked.manifest, asked.options, asked.device)
        return settings.key(payload, version, board)

    keys = [
        key(),
        key(payload="q"),
        key(version="10.3.1"),
        key(board=replace(ORIN, compute_capability="8.6")),
        key(board=replace(ORIN, name="y")),
        key(batch="dynamic"),
        key(batch="dynamic", profile="1,1,8"),
        key(device="dla:0"),
        key(device="dla:1"),
        key(version_compatible="yes"),
        key(workspace="256"),
    ]
    assert len(set(keys)) == len(keys)
    assert key() == key(trtexec="yes") == key(board=replace(ORIN, free=9, total=9))
    before = key()
    monkeypatch.setattr(_trt_settings, "__version__", "0.0.1")
    assert key() != before


def test_a_changed_engine_in_the_cache_is_not_used(start, order):
    world = start()
    order("fp16")
    (engine,) = cache_folder("tensorrt").glob("*.engine")
    engine.write_bytes(engine.read_bytes() + b"!")
    order("fp16")
    assert "the engine in the cache is not used" in order.text
    assert "was changed" in order.text
    assert len(world.did("build")) == 2
    engine.chmod(0o666)
    order("fp16")
    assert "every user of this machine can change" in order.text
    assert len(world.did("build")) == 3


@pytest.mark.parametrize("notes", ["", "[]", "{}", '{"sha256": 1, "engine": 2}', "[" * 100_000])
def test_damaged_notes_in_the_cache(start, order, notes):
    start()
    order()
    (engine,) = cache_folder("tensorrt").glob("*.engine")
    engine.with_suffix(".json").write_text(notes)
    assert order().manifest.engine["tensorrt"] == "10.3.0.30"
    assert "the engine in the cache is not used" in order.text


@pytest.mark.skipif(os.name == "nt", reason="no owners")
def test_files_of_other_users_in_the_cache(start, order, monkeypatch):
    world = start()
    order()
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    for path in cache_folder("tensorrt").glob("*"):
        os.chown(path, mine + 2, -1) if mine == 0 else None
    order()
    assert "belongs to another user" in order.text
    assert len(world.did("build")) == 2
    assert world.did("set_timing_cache")[-1] == (b"", False)


def test_notes_without_the_workspace_in_the_cache(start, order):
    world = start()
    order()
    (notes,) = cache_folder("tensorrt").glob("*.json")
    found = json.loads(notes.read_text())
    del found["engine"]["workspace_mb"]
    notes.write_text(json.dumps(found))
    order(trtexec="yes")
    assert "are incomplete" in order.text
    assert len(world.did("build")) == 2


def test_timings_are_kept(start, order):
    world = start()
    order(cache="no")
    order(cache="no")
    assert [call[0] for call in world.did("set_timing_cache")] == [b"", b"timings+"]
    (file,) = cache_folder("tensorrt").glob("*.timings")
    assert file.name == "10.3.0.30-8.7-Orin.timings"
    for wrong in (b"damaged", b"of another driver"):
        file.write_bytes(wrong)
        order(cache="no")
        assert world.did("set_timing_cache")[-1] == (b"", False)
        assert file.read_bytes() == b"timings+"


def test_a_cache_that_cannot_be_written(start, order, monkeypatch, tmp_path):
    start()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("Y7EDGE_CACHE", str(tmp_path / "file"))
    assert order().path.exists()
    assert "the engine is not kept in the cache" in order.text
    assert "the timings are not kept in the cache" in order.text


def test_the_cache_keeps_a_limited_number(monkeypatch, tmp_path):
    monkeypatch.setenv("Y7EDGE_CACHE", str(tmp_path))
    for number in range(11):
        assert _trt_cache.write(f"key{number}", b"plan", {}) is None
        os.utime(tmp_path / "tensorrt" / f"key{number}.engine", (number, number))
    kept = {path.name for path in (tmp_path / "tensorrt").iterdir()}
    assert kept == {f"key{n}.{suffix}" for n in range(3, 11) for suffix in ("engine", "json")}


# --- the DLA -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "supported"),
    [
        ("8.6.1", True),
        ("10.3.0.30", True),
        ("10.7.0.23", True),
        ("10.8.0.43", False),
        ("10.16.2.10", False),
        ("11.4.0.106", False),
        ("11.4.1.5", True),
    ],
)
def test_the_versions_with_a_dla(start, order, version, supported):
    world = start(version, dla_cores=2)
    if not supported:
        with pytest.raises(DeviceError, match=rf"{version} does not support the DLA of Orin"):
            order("fp16", device="dla:1")
        return
    made = order("fp16", device="dla:1")
    config = world.did("build")[0][1]
    assert (config.default_device_type, config.DLA_core) == ("DLA", 1)
    weak = {"FP16", "OBEY_PRECISION_CONSTRAINTS"} if not version.startswith("11") else set()
    assert config.flags == {"GPU_FALLBACK", *weak}
    assert world.did("create_network")[0][0] == (1 if version.startswith("8") else 0)
    assert world.did("deserialize")[0][0] == 1
    assert (made.manifest.engine["dla"], made.manifest.engine["gpu_fallback"]) == (1, [])


def test_int8_on_a_dla_without_qdq_gets_ranges(start, order):
    world = start("10.3.0.30", dla_cores=1)
    made = order("int8", device="dla:0")
    _, config, network = world.did("build")[0]
    assert {"INT8", "FP16", "OBEY_PRECISION_CONSTRAINTS"} <= config.flags
    kinds = {layer.type for layer in network.layers}
    assert not kinds & {fake.LayerType.QUANTIZE, fake.LayerType.DEQUANTIZE}
    tensors = [network.image, *(t for layer in network.layers for t in layer.outputs)]
    found = {t.name: t.range for t in tensors if hasattr(t, "range")}
    assert all(low == -high for low, high in found.values())
    expected = made_ranges(order.graphs("fp32")[0])
    assert {name: high for name, (_, high) in found.items()} == pytest.approx(expected)
    assert len(expected) > CONVOLUTIONS
    assert made.manifest.engine["convolutions"] == {"fp16": HEADS, "int8": CONVOLUTIONS - HEADS}
    world = start("11.4.1.5", dla_cores=1)
    order("int8", device="dla:0")
    kinds = {layer.type for layer in world.did("build")[0][2].layers}
    assert fake.LayerType.QUANTIZE in kinds


def test_layers_that_fall_back_to_the_gpu_are_listed(start, order):
    start("10.3.0.30", dla_cores=1, runs_on_dla=lambda layer: "LeakyRelu" not in layer.name)
    made = order("fp16", device="dla:0")
    fallback = made.manifest.engine["gpu_fallback"]
    assert "/row0/LeakyRelu" in fallback
    assert f"on the GPU: {fallback[0]}" in order.lines
    assert "one core can hold 16" in order.text
    start("10.3.0.30", dla_cores=1, runs_on_dla=lambda layer: False)
    with pytest.raises(ExportError, match="the DLA can run no convolution of this graph"):
        order("fp16", device="dla:0", cache="no")


def test_a_small_board_gets_small_dla_pools(start, order):
    world = start("10.3.0.30", dla_cores=1, integrated=True, total=8 << 30)
    order("fp16", device="dla:0")
    pools = world.did("build")[0][1].pools
    assert (pools["DLA_LOCAL_DRAM"], pools["DLA_GLOBAL_DRAM"]) == (512 << 20, 256 << 20)


@pytest.mark.parametrize(
    ("precision", "options", "problem"),
    [
        ("fp32", {}, "with fp32, expected fp16 or int8"),
        ("fp16", {"outputs": "decoded"}, "with outputs decoded, expected outputs heads"),
        ("fp16", {"batch": "dynamic"}, "with a dynamic batch, expected a fixed batch size"),
    ],
)
def test_what_a_dla_cannot_run(start, order, precision, options, problem):
    start(dla_cores=1)
    with pytest.raises(ConfigError, match=f"a DLA cannot run a graph {problem}"):
        order(precision, device="dla:0", **options)


def test_dla_cores_are_asked_for(start, order):
    start(dla_cores=1)
    with pytest.raises(DeviceError, match="dla:1 does not exist: TensorRT finds 1 DLA cores"):
        order("fp16", device="dla:1")


# --- trtexec -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "options", "words"),
    [
        ("10.3.0.30", {}, "--stronglyTyped --noTF32 --memPoolSize=workspace:256"),
        ("8.6.1", {}, "--fp16 --precisionConstraints=obey '--layerPrecisions=*:fp16' --noTF32"),
        ("11.4.1.5", {}, "--noTF32"),
        ("11.4.1.5", {"batch": "dynamic"}, "--minShapes=images:1x3x64x96 --optShapes=images:4x3"),
        ("10.3.0.30", {"version_compatible": "yes"}, "--versionCompatible"),
    ],
)
def test_the_equivalent_trtexec_command(start, order, version, options, words):
    start(version)
    order("fp16", trtexec="yes", workspace="256", **options)
    (line,) = [line for line in order.lines if line.startswith("trtexec ")]
    assert words in line
    assert ("--stronglyTyped" in line) == version.startswith("10")
    order("fp16", **options)
    assert "trtexec" not in order.text


def test_trtexec_for_the_dla(start, order):
    start("10.3.0.30", dla_cores=1, integrated=True, total=8 << 30)
    order("fp16", device="dla:0", trtexec="yes", workspace="256")
    assert "--useDLACore=0 --allowGPUFallback" in order.text
    assert "--memPoolSize=workspace:256,dlaLocalDRAM:512,dlaGlobalDRAM:256 " in order.text
    order("int8", device="dla:0", trtexec="yes")
    assert "trtexec has no equivalent command" in order.text
