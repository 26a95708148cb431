"""The ROS 2 node: its package; and the node itself with rclpy over loopback, in `make test-all`."""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml

from y7edge.data.synthetic.scenes import scene
from y7edge.detect.detector import Detector

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "examples" / "ros2_node"
PEER = Path(__file__).parent / "ros2" / "peer.py"
SETUP = Path(os.environ.get("Y7EDGE_ROS_SETUP") or ROOT / ".venv" / "ros" / "setup.bash")
IN_NODE = "exec \"$(python3 -c 'from ament_index_python.packages import get_package_prefix as p;"
IN_NODE += 'print(p("y7edge_ros2"))\')"/lib/y7edge_ros2/detector'
MESSAGES = {"rclpy", "rcl_interfaces", "sensor_msgs", "vision_msgs", "diagnostic_msgs"}


# --- the package ---


def test_each_file_is_short():
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 60, path


def test_the_package_is_complete(monkeypatch):
    """package.xml, setup.py and the files that colcon installs fit each other."""
    calls = []
    stand_in = ModuleType("setuptools")
    stand_in.setup = lambda **keywords: calls.append(keywords)
    monkeypatch.setitem(sys.modules, "setuptools", stand_in)
    exec(compile((PACKAGE / "setup.py").read_text(), "setup.py", "exec"), {"__name__": "setup"})
    (setup,) = calls
    tree = ElementTree.parse(PACKAGE / "package.xml").getroot()
    assert tree.findtext("name") == setup["name"] == "y7edge_ros2"
    assert tree.findtext("version") == setup["version"]
    assert tree.findtext("export/build_type") == "ament_python"
    places = dict(setup["data_files"])
    assert places["share/ament_index/resource_index/packages"] == ["resource/y7edge_ros2"]
    assert "package.xml" in places["share/y7edge_ros2"]
    files = {name for names in places.values() for name in names}
    assert all((PACKAGE / name).is_file() for name in files)
    installed = {str(p.relative_to(PACKAGE)) for p in PACKAGE.glob("[lc]*/*")}
    assert installed == {name for name in files if "/" in name and "resource" not in name}
    (script,) = setup["entry_points"]["console_scripts"]
    module, function = re.fullmatch(r"detector = y7edge_ros2\.(\w+):(\w+)", script).groups()
    source = ast.parse((PACKAGE / "y7edge_ros2" / f"{module}.py").read_text())
    assert function in {n.name for n in source.body if isinstance(n, ast.FunctionDef)}
    config = (PACKAGE / "setup.cfg").read_text()
    assert config.count("$base/lib/y7edge_ros2") == 2
    # Each package of ROS that is imported is a dependency.
    text = "".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    depends = {element.text for element in tree.iter("exec_depend")}
    assert {name for name in MESSAGES if re.search(rf"(from|import) {name}\b", text)} <= depends
    assert {"launch", "launch_ros", "ament_index_python"} <= depends


def declared():
    """The names of the parameters, and their default values."""
    tree = ast.parse((PACKAGE / "y7edge_ros2" / "parameters.py").read_text())
    tables = {
        node.target.id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.AnnAssign)
    }
    return {name: default for name, (default, _) in {**tables["FIXED"], **tables["LIVE"]}.items()}


def test_the_configuration_has_every_parameter():
    config = yaml.safe_load((PACKAGE / "config" / "detector.yaml").read_text())
    values = config["/**"]["ros__parameters"]
    expected = {name: value for name, value in declared().items() if name != "model"}
    assert values == expected
    assert {name: type(value) for name, value in values.items()} == {
        name: type(value)
        for name, value in expected.items()  # 0 is no value for a double
    }


def test_every_parameter_is_documented():
    text = (ROOT / "docs" / "ros2.md").read_text()
    for name in declared():
        assert f"| `{name}` |" in text, name


def argument(name, **keywords):
    return SimpleNamespace(name=name, **keywords)


def test_the_launch_file(monkeypatch):
    """With stand-ins for launch and launch_ros, which PyPI does not have."""
    parts = {
        "launch": {"LaunchDescription": lambda entities: entities},
        "launch.actions": {
            "DeclareLaunchArgument": lambda name, **k: SimpleNamespace(name=name, **k)
        },
        "launch.substitutions": {"LaunchConfiguration": lambda name: f"<{name}>"},
        "launch_ros": {},
        "launch_ros.actions": {"Node": lambda **k: SimpleNamespace(**k)},
        "launch_ros.parameter_descriptions": {"ParameterValue": lambda value, value_type: value},
        "ament_index_python": {},
        "ament_index_python.packages": {"get_package_share_directory": lambda name: str(PACKAGE)},
    }
    for name, members in parts.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    found = {}
    exec((PACKAGE / "launch" / "detector.launch.py").read_text(), found)
    *arguments, node = found["generate_launch_description"]()
    defaults = {one.name: one.default_value for one in arguments}
    assert defaults["model"] is None  # required
    assert Path(defaults["config"]).is_file()
    assert (node.package, node.executable) == ("y7edge_ros2", "detector")
    config, values = node.parameters
    assert config == "<config>"
    assert values == {"model": "<model>", "image_topic": "<image>"}
    assert set(values) <= set(declared())


def main_with(monkeypatch, **members):
    """Return the node's ``main``, with a stand-in for rclpy."""
    errors = "NameValidationException", "ParameterException", "ExternalShutdownException"
    parts = {
        "rclpy": {"try_shutdown": lambda: None, **members},
        "rclpy.exceptions": {name: type(name, (Exception,), {}) for name in errors[:2]},
        "rclpy.executors": {errors[2]: type(errors[2], (Exception,), {})},
        "rclpy.logging": {"get_logger": None},
        "y7edge_ros2.node": {"DetectorNode": members.get("start")},
        "y7edge_ros2": {},
    }
    for name, content in parts.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    found = {"__name__": "main"}
    exec((PACKAGE / "y7edge_ros2" / "main.py").read_text(), found)
    return found["main"]


def fail():
    raise RuntimeError("rcl: invalid")


def test_a_signal_while_the_model_is_opened(monkeypatch):
    assert main_with(monkeypatch, init=lambda: None, start=fail, ok=lambda: False)() == 0
    with pytest.raises(RuntimeError):
        main_with(monkeypatch, init=lambda: None, start=fail, ok=lambda: True)()


def test_wrong_arguments_of_ros(monkeypatch, capsys):
    assert main_with(monkeypatch, init=fail)() == 1
    assert capsys.readouterr().err == "y7edge: rcl: invalid\n"


# --- the node, over loopback ---


@pytest.fixture(scope="module")
def ros():
    """Start a command in the environment of ROS 2, in a domain of this test process."""
    if not SETUP.is_file():
        pytest.skip(f"ROS 2 is not installed ({SETUP}): make ros-env, or set Y7EDGE_ROS_SETUP")
    worker = int(re.sub(r"\D", "", os.environ.get("PYTEST_XDIST_WORKER", "")) or 0)
    environment = os.environ | {
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "ROS_DOMAIN_ID": str(1 + os.getppid() % 12 * 8 + worker % 8),
        "PYTHONWARNINGS": "ignore",  # of setuptools in the installed script
        "RCUTILS_COLORIZED_OUTPUT": "0",
    }
    environment.pop("PYTHONPATH", None)

    def start(command, *arguments, log):
        return subprocess.Popen(
            ["bash", "-c", f'. "{SETUP}" && {command} "$@"', "bash", *map(str, arguments)],
            env=environment | {"ROS_LOG_DIR": str(log), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return start


@pytest.fixture
def node(ros, parts_model, tmp_path):
    """Start the node; `node(...)` runs steps of the peer, and returns what each has printed."""
    running = []

    def start(*parameters, file=True):
        arguments = ["--ros-args"]
        if file:
            arguments += ["--params-file", PACKAGE / "config" / "detector.yaml"]
        for one in (f"model:={parts_model}", "image_topic:=/camera/image_raw", *parameters):
            arguments += ["-p", one]
        running.append(ros(IN_NODE, *arguments, log=tmp_path))
        return running[-1]

    def talk(steps, *, reliable_images=True, reliable_results=True, compressed=False):
        options = {
            "reliable_images": reliable_images,
            "reliable_results": reliable_results,
            "compressed": compressed,
        }
        texts = json.dumps(options), json.dumps(steps)
        peer = ros(f'exec python3 "{PEER}"', *texts, log=tmp_path)
        running.append(peer)
        out, err = peer.communicate(timeout=240)
        assert peer.returncode == 0, err
        return [json.loads(line) for line in out.splitlines()]

    yield SimpleNamespace(start=start, talk=talk)
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate()


def end(process, number=signal.SIGINT):
    """Interrupt the node; return what it has written."""
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    return err


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Files with images (H, W, 3) in BGR, and the images."""
    folder = tmp_path_factory.mktemp("images")
    pixels = [scene(seed, (240, 320)).image for seed in range(4)]
    paths = [folder / f"{index}.npy" for index in range(4)]
    for path, one in zip(paths, pixels, strict=True):
        np.save(path, one)
    return [str(path) for path in paths], pixels


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["bgr8", "rgb8"])
def test_images_become_detections(node, images, parts_model, encoding):
    process = node.start()
    paths, pixels = images
    (sent, found), reports = node.talk(
        [{"each": paths, "encoding": encoding}, {"wait": "diagnostics", "more": 1, "seconds": 30}]
    )
    assert [one["header"] for one in found] == sent
    assert [frame_id for _, _, frame_id in sent] == [f"camera_{number}" for number in range(4)]
    with Detector(parts_model) as detector:
        for one, image in zip(found, pixels, strict=True):
            expected = detector(image)
            assert len(expected)
            assert [d["header"] for d in one["detections"]] == [one["header"]] * len(expected)
            assert [d["class"] for d in one["detections"]] == [d.class_name for d in expected]
            assert [d["score"] for d in one["detections"]] == expected.confidence.tolist()
            centres = np.array([d["centre"] for d in one["detections"]])
            halves = np.array([d["size"] for d in one["detections"]]) / 2
            corners = np.hstack([centres - halves, centres + halves])
            np.testing.assert_allclose(corners, expected.xyxy, atol=1e-4)
        model_id = detector.info["model_id"]
    last = reports[-1]
    assert (last["level"], last["name"]) == (0, "y7edge: /camera/image_raw")
    assert abs(last["stamp"] - time.time()) < 300
    counts = [int(last[name]) for name in ("received", "results", "dropped", "errors")]
    assert counts == [4, 4, 0, 0]
    assert (last["model_id"], last["device"], last["parity"]) == (model_id, "cpu", "passed")
    assert "images from /camera/image_raw" in end(process)
    print("\n", *reports[-2:], sep="\n")


@pytest.mark.slow
def test_best_effort(node, images):
    """A best-effort camera is heard; best-effort results are heard by such subscriptions only."""
    process = node.start("reliable:=false", "track:=false")
    paths, _ = images
    burst = {"publish": paths[:1] * 3, "every": 0.5}
    _, nothing, reports = node.talk(
        [
            burst,
            {"wait": "results", "more": 1, "seconds": 3},
            {"wait": "diagnostics", "more": 2, "seconds": 30},
        ],
        reliable_images=False,
        reliable_results=True,
    )
    assert nothing == []
    assert 0 < int(reports[-1]["results"]) <= 3  # but not to a reliable subscription
    sent, found = node.talk(
        [burst, {"wait": "results", "more": 1, "seconds": 5}],
        reliable_images=False,
        reliable_results=False,
    )
    heard = [one["header"] for one in found]
    assert heard
    assert heard == [header for header in sent if header in heard]
    end(process, signal.SIGTERM)


@pytest.fixture(scope="module")
def slow_model(tmp_path_factory):
    """The model of the demo with an input of 16 times the pixels."""
    from y7edge.export import export
    from y7edge.models import weights

    checkpoint = weights.load(ROOT / "tests" / "reference" / "demo.safetensors")
    return export(checkpoint, tmp_path_factory.mktemp("model") / "slow.onnx", imgsz=640).path


@pytest.mark.slow
def test_a_camera_that_is_faster_than_the_engine(node, images, slow_model):
    """Images are dropped and counted, and the newest one is detected."""
    process = node.start("track:=true", f"model:={slow_model}")
    paths, _ = images
    sent, found, (_, followed), reports = node.talk(
        [
            {"publish": [paths[0]] * 100, "every": 0.01},
            {"wait": "results", "more": 10_000, "seconds": 5},
            {"each": [paths[0]] * 4},
            {"wait": "diagnostics", "more": 2, "seconds": 30},
        ]
    )
    numbers = [int(one["header"][2].removeprefix("camera_")) for one in found]
    assert [one["header"] for one in found] == [sent[number] for number in numbers]
    assert numbers == sorted(set(numbers))  # in order, none twice
    assert numbers[-1] == len(sent) - 1  # the newest one
    assert len(found) < len(sent)
    last = reports[-1]
    received, results, dropped = (int(last[name]) for name in ("received", "results", "dropped"))
    assert received == results + dropped
    assert received <= len(sent) + 4
    assert (results, last["errors"]) == (len(found) + 4, "0")
    assert dropped > 0
    ids = {one["id"] for one in followed[-1]["detections"]}
    assert ids - {""}  # tracked
    end(process)
    print(f"\nsent {len(sent) + 4}, received {received} = {results} results + {dropped} dropped")


@pytest.mark.slow
def test_parameters_while_it_runs(node, images, parts_model):
    process = node.start()
    paths, pixels = images
    with Detector(parts_model) as detector:
        name = detector(pixels[0])[0].class_name
    one = {"each": paths[:1]}
    steps = [
        one,
        {"set": {"conf": 0.99}},
        one,
        {"set": {"conf": 0.0, "classes": [name]}},
        one,
        {"set": {"classes": ["cat"]}},
        {"set": {"conf": 1.5}},
        {"set": {"model": "other.onnx"}},
        one,
    ]
    before, yes, fewer, also, chosen, cat, out_of_range, fixed, after = node.talk(steps)
    assert yes + also == [[True, ""]] * 3
    count = [len(found[0]["detections"]) for _, found in (before, fewer, chosen, after)]
    assert count[0] > count[1]
    assert {found["class"] for found in chosen[1][0]["detections"]} == {name}
    assert count[2] == count[3]  # refused changes change nothing
    assert not cat[0][0]
    assert "the model has no class 'cat'" in cat[0][1]
    assert not out_of_range[0][0]
    assert not fixed[0][0]
    end(process)


@pytest.mark.slow
def test_compressed_images_and_faults(node, images, tmp_path):
    """An image that cannot be read is reported; the next one is detected."""
    process = node.start("compressed:=true", "encoding:=nv12")
    paths, _ = images
    _, reports = node.talk(
        [{"publish": paths[:1]}, {"wait": "diagnostics", "more": 2, "seconds": 30}], compressed=True
    )
    worst = max(reports, key=lambda one: one["level"])
    assert worst["level"] == 2
    assert "encoding is 'nv12', expected rgb8 or bgr8" in worst["message"]
    assert "encoding is 'nv12', expected rgb8 or bgr8" in end(process)
    process = node.start("compressed:=true")
    ((sent, found),) = node.talk([{"each": paths}], compressed=True)
    assert [one["header"] for one in found] == sent
    assert all(one["detections"] for one in found)
    assert "/camera/image_raw/compressed" in end(process)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        (["model:=''"], "the parameter model is not set"),
        (["model:=/missing/mine.onnx"], "/missing/mine.onnx"),
        (["queue:=0"], "queue"),
        (["conf:=2.0"], "conf"),
        (["conf:=high"], "conf"),
        (["image_topic:='a b'"], "a b"),
        (["encoding:=rgb"], "encoding is 'rgb', expected one of bgr8"),
        (["classes:=['cat']"], "the model has no class 'cat'"),
        (["conf"], "-p conf"),
    ],
)
def test_mistakes_are_one_line(node, parameters, text):
    # Without the file: rcl ignores a value whose type differs from that in a file.
    process = node.start(*parameters, file=False)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert text in err
    assert "Traceback" not in err
