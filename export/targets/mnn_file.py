"""Target ``mnn``: one .mnn file with graph and weights.

The converter is the extension module ``_tools`` of the package ``mnn``. The usual way to call it,
``MNN.tools``, is not used here, because that installs packages and uploads usage logs.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import UUID

from y7edge.artifact.artifact import Artifact
from y7edge.export import converters
from y7edge.export.targets.base import BuildRequest
from y7edge.runtimes import mnnrt
from y7edge.runtimes._modelproto import without_metadata

NAME = "mnn"
SUFFIX = ".mnn"
NEEDS = mnnrt.NEEDS
# The converter would truncate float32 weights instead of rounding them. Therefore the graph already
# has float16 weights. They are the only float16 tensors of the artifact.
PRECISIONS = {"fp32": "fp32", "fp16": "fp16"}
PROFILES: tuple[str, ...] = ()
INPUTS = ("float32", "uint8")
OUTPUTS = ("heads", "heads-sigmoid", "decoded")
BATCHES = ("1", "N", "dynamic")
RUNTIME = "mnnrt"
OPTIONS: Mapping[str, str] = {}
REWRITES: tuple[str, ...] = ()
INT8_HEADS = False
CALIBRATES = False
NEEDS_CHECKPOINT = False

_SECONDS = 600
# If the converter cannot convert, it neither fails nor returns False, and its message goes to
# standard output. This program moves the message to standard error, where ``converters.run``
# reads it.
_PROGRAM = """
import os, sys
import _tools
os.dup2(os.open("log", os.O_CREAT | os.O_WRONLY), 1)
_tools.mnnconvert(["mnnconvert", *sys.argv[2:]])
if not os.path.exists(sys.argv[1]):
    import ctypes
    ctypes.CDLL("ucrtbase" if os.name == "nt" else None).fflush(None)
    with open("log", errors="replace") as log:
        lines = [line.strip() for line in log if line.strip()]
    sys.exit("; ".join(lines[-2:]) or "no message")
"""


def build(request: BuildRequest) -> Artifact:
    """Convert the graph without its metadata, which MNN would copy into the file.

    Raises:
        ExportError: MNN cannot convert the graph.
    """
    manifest = request.manifest
    with TemporaryDirectory(prefix=".y7edge-", dir=request.folder) as name:
        folder = Path(name)
        graph = folder / "graph.onnx"
        graph.write_bytes(without_metadata(request.model))
        made = folder / "graph.mnn"
        command = [
            *(sys.executable, "-c", _PROGRAM, made.name),
            *("-f", "ONNX", "--modelFile", graph.name),
            *("--MNNModel", made.name, "--bizCode", "y7edge"),
            *(("--fp16",) if manifest.precision == "fp16" else ()),
        ]
        converters.run(command, folder, "MNN", made, _SECONDS)
        request.path.write_bytes(_reproducible(made))
    outputs = tuple(replace(output, dtype="float32") for output in manifest.outputs)
    return Artifact(request.path, replace(manifest, outputs=outputs, opset=None))


def versions() -> dict[str, str]:
    """Return the version of the converter."""
    return mnnrt.versions()


def _reproducible(path: Path) -> bytes:
    """Return the bytes of an .mnn file, with its random identifier replaced.

    The converter writes a random identifier (UUID) into the field ``mnn_uuid``. The new one is
    computed from the other bytes of the file.
    """
    data = path.read_bytes()
    identifier = str(mnnrt.load_engine().get_model_uuid(str(path))).encode()
    rest = data.replace(identifier, bytes(len(identifier)), 1)
    return data.replace(identifier, str(UUID(bytes=sha256(rest).digest()[:16])).encode(), 1)
