"""Stand-ins for onnxruntime-qnn, and for what plugins add to the API of ONNX Runtime.

``Engine`` is ONNX Runtime with an execution provider whose context binary is the ONNX file itself:
it "compiles" by copying, and runs on the CPU. ``tests/runtimes/test_qnn.py`` checks, where the real
packages are installed, that names and arguments are theirs.
"""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace

import onnx
import onnxruntime
from onnx import helper

from y7edge.errors import ExportError
from y7edge.export import converters
from y7edge.runtimes import base, onnxrt, qnn, registry

NAMES = ("EP_NAME", "get_library_path", "get_qnn_htp_path", "build_and_package_info")
"""What is used of onnxruntime_qnn."""
EXTENSIONS = ("register_execution_provider_library", "get_ep_devices", "OrtHardwareDeviceType")
"""What is used of the API for plugins of onnxruntime."""
ATTRIBUTES = {
    **{"main_context": 1, "embed_mode": 0, "source": "QNNExecutionProvider", "max_size": 0},
    **{"ep_sdk_version": "v2.51.0.260929181845", "partition_name": "QNNExecutionProvider_1_0"},
    **{"is_multi_soc_ep_context": 0},
}
"""Attributes of a node ``EPContext`` of onnxruntime-qnn 2.7.0, beside ``ep_cache_context``."""
METADATA = {
    "ep_compatibility_info.QNNExecutionProvider": "v2:6:2.51.0:5.51.0:73:0:0:0",
    "external_dependencies": "ep_context_binary",
}


class Options:
    """Records what is set."""

    def __init__(self):
        self.log_severity_level, self.entries, self.provider, self.devices = 2, {}, {}, []

    def add_session_config_entry(self, key, value):
        assert isinstance(key, str) and isinstance(value, str)
        self.entries[key] = value

    def add_provider_for_devices(self, devices, provider):
        assert all(isinstance(text, str) for pair in provider.items() for text in pair)
        self.devices, self.provider = devices, provider


class Engine(ModuleType):
    """ONNX Runtime with plugins; ``opened`` are the options of its sessions."""

    __version__ = "1.32.0"
    OrtHardwareDeviceType = SimpleNamespace(CPU="cpu", NPU="npu")
    SessionOptions = Options

    def __init__(self):
        super().__init__("onnxruntime")
        self.registered, self.loaded, self.opened, self.refusal = {}, [], [], None
        self.devices = [SimpleNamespace(type=kind) for kind in ("cpu", "npu")]

    def register_execution_provider_library(self, name, path):
        if name in self.registered:
            raise RuntimeError(f"EP library is already registered under {name}")
        self.registered[name] = path

    def get_ep_devices(self):
        return [
            SimpleNamespace(ep_name=name, device=device)
            for name in ("CPUExecutionProvider", *self.registered)
            for device in self.devices
        ]

    def InferenceSession(self, model, options):
        assert isinstance(model, bytes)
        self.opened.append(options)
        if self.refusal:
            raise RuntimeError(self.refusal)
        proto = onnx.load_from_string(model)
        path = Path(options.entries["ep.context_file_path"])
        if proto.graph.node[0].op_type == "EPContext":
            model = self._read(proto.graph.node[0], path.parent)
        else:
            assert options.entries["ep.context_enable"] == "1"
            self._write(model, proto, path)
        return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])

    def _write(self, model, proto, path):
        binary = path.with_name(f"{path.stem}_qnn.bin")
        binary.write_bytes(model)
        graph = proto.graph
        names = [[tensor.name for tensor in tensors] for tensors in (graph.input, graph.output)]
        attributes = {**ATTRIBUTES, "ep_cache_context": binary.name}
        node = helper.make_node("EPContext", *names, domain="com.microsoft", **attributes)
        made = helper.make_model(helper.make_graph([node], "g", graph.input, graph.output))
        helper.set_model_props(made, METADATA)
        path.write_bytes(made.SerializeToString(deterministic=True))

    def _read(self, node, folder):
        (name,) = (a.s.decode() for a in node.attribute if a.name == "ep_cache_context")
        assert "/" not in name and ".." not in name
        return (folder / name).read_bytes()


def package(version="2.51.0"):
    """Return a module like onnxruntime_qnn."""
    made = ModuleType("onnxruntime_qnn")
    made.EP_NAME = "QNNExecutionProvider"
    made.get_library_path = lambda: "/packages/libonnxruntime_providers_qnn.so"
    made.get_qnn_htp_path = lambda: "/packages/libQnnHtp.so"
    made.build_and_package_info = SimpleNamespace(qnn_version=version)
    return made


def install(monkeypatch) -> Engine:
    """Install them; targets compile in this process instead of in another one."""
    engine = Engine()
    monkeypatch.setitem(sys.modules, "onnxruntime_qnn", package())
    found = {"onnxruntime": "1.32.0", "onnxruntime-qnn": "2.7.0"}
    monkeypatch.setattr(qnn, "installed_versions", lambda *names: {n: found[n] for n in names})
    monkeypatch.setattr(qnn, "_REGISTERED", set())
    monkeypatch.setattr(qnn.ctypes, "CDLL", engine.loaded.append)
    monkeypatch.setattr(qnn, "silent_stdout", nullcontext)
    monkeypatch.setattr(qnn.os, "register_at_fork", lambda **_: None, raising=False)
    renamed = SimpleNamespace(load_engine=lambda: engine, tensors=onnxrt.tensors)
    monkeypatch.setattr(qnn, "onnxrt", renamed)
    for module in (base, registry):
        real = module.missing
        monkeypatch.setattr(module, "missing", lambda needs, real=real: real(_others(needs)))

    def run(command, folder, name, made, seconds):
        assert command[1:3] == ["-I", "-c"] and "compile_context(*sys.argv[2:])" in command[3]
        assert (Path(command[4]) / "y7edge" / "__init__.py").is_file()
        before = Path.cwd()
        os.chdir(folder)
        try:
            qnn.compile_context(*command[5:])
        except SystemExit as error:
            raise ExportError(f"{name} cannot convert the model: {error}") from error
        finally:
            os.chdir(before)
        assert made.is_file()

    monkeypatch.setattr(converters, "run", run)
    return engine


def _others(needs):
    return {name: extra for name, extra in needs.items() if name != "onnxruntime_qnn"}
