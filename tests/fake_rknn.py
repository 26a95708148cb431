"""A stand-in for rknn-toolkit2, in a stand-in for its interpreter.

``install`` makes a program that runs scripts as the interpreter with rknn-toolkit2 would. Its
``RKNN`` runs graphs in ONNX Runtime. It takes the same keywords as the real one, which a slow test
compares (``tests/export/test_rknn_toolkit.py``), and appends each call to a file. The environment
variable ``FAKE_RKNN`` makes it fail; with ``answer:HEX``, the simulator answers these bytes.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

VARIABLE = "Y7EDGE_RKNN_PYTHON"

_PROGRAM = """#!{python}
import json, os, runpy, sys, time
if sys.argv[2] == "-c":
    known = {{"rknn-toolkit2": "2.5.0", "onnx": "1.18.0"}}
    print(json.dumps({{name: known[name] for name in sys.argv[4:]}}))
    sys.exit()
assert sys.argv[1] == "-I", sys.argv
fault, _, text = os.environ.get("FAKE_RKNN", "").partition(":")
if fault == "answer" and sys.argv[3] == "simulate":
    sys.stdout.buffer.write(bytes.fromhex(text))
    sys.stdout.flush()
    time.sleep(3600)
sys.path[:0] = [{folder!r}]
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def install(folder: Path) -> Path:
    """Make the package and the interpreter in a new folder; return the interpreter's path."""
    package = folder / "rknn"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "api.py").write_text(Path(__file__).read_text())
    described = folder / "rknn_toolkit2-2.5.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: rknn-toolkit2\nVersion: 2.5.0\n"
    )
    program = folder / "python"
    program.write_text(_PROGRAM.format(python=sys.executable, folder=str(folder)))
    program.chmod(0o755)
    return program


def calls(folder: Path) -> list[tuple[str, dict]]:
    """Return the calls that were made, each the name of a method and its keywords."""
    path = folder / "calls"
    return [tuple(json.loads(line)) for line in path.read_text().splitlines()]


class RKNN:
    """The part of ``rknn.api.RKNN`` that is used."""

    def __init__(self, verbose=False):
        self._fault = os.environ.get("FAKE_RKNN", "")
        self._platform = self._model = self._session = None
        print("I rknn-toolkit2 version: 2.5.0")  # on stdout, as the real one

    def _call(self, name, **keywords):
        with (Path(__file__).parents[1] / "calls").open("a") as stream:
            print(json.dumps([name, keywords]), file=stream)
        if self._fault == f"refuse {name}":
            colours = "\x1b[1;31mE\x1b[0m \x1b[1;31m{}\x1b[0m"
            print(colours.format(f"{name}: The Conv('/row1/Conv') is not supported!"))
            print(colours.format("rknn-toolkit2 version: 2.5.0"))
            return -1
        if self._fault == f"abort {name}":
            print("E RKNN: [18:35:10.480] Meet unsupported conv", flush=True)
            os.abort()
        if self._fault == f"raise {name}":
            raise ValueError("Traceback:\n  a line\nthe last line")
        if self._fault == f"hang {name}":
            time.sleep(3600)
        return 0

    def config(self, mean_values=None, std_values=None, target_platform=None):
        self._platform = target_platform
        return self._call(
            "config",
            mean_values=mean_values,
            std_values=std_values,
            target_platform=target_platform,
        )

    def load_onnx(self, model):
        self._model = Path(model).read_bytes()
        return self._call("load_onnx", model=model)

    def build(self, do_quantization=True):
        return self._call("build", do_quantization=do_quantization)

    def export_rknn(self, export_path):
        end = json.dumps({"target_platform": [self._platform]}).replace(" ", "").encode()
        broken = {"cut file": b"", "other file": end.replace(b"rk3588", b"rk3566")}
        begin = b"PK" if self._fault == "foreign file" else b"RKNN"
        content = begin + bytes(100) + self._model + broken.get(self._fault, end)
        if self._fault != "no file":
            Path(export_path).write_bytes(content)
        return self._call("export_rknn")

    def init_runtime(self):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(self._model, options)
        return self._call("init_runtime")

    def inference(self, inputs, data_format=None):
        import numpy as np

        (pixels,) = inputs
        assert pixels.dtype == np.uint8
        code = self._call("inference", inputs=[list(pixels.shape)], data_format=data_format)
        image = pixels.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
        found = self._session.run(None, {self._session.get_inputs()[0].name: image})
        if self._fault == "other shape":
            return [array[:, 1:] for array in found]
        if self._fault == "fewer outputs":
            return found[1:]
        return None if code else found
