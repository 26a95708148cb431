"""Run ncnn artifacts on CPUs (https://github.com/Tencent/ncnn).

An artifact is a .param file (the graph as text), a .bin file (the weights), and the manifest in a
.param.json file. ncnn runs one image at a time. The artifact's precision decides whether ncnn
computes in float32, or stores values between layers in 16 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from y7edge.artifact.artifact import (
    Artifact,
    digest_files,
    read_sidecar,
    sidecar,
    write_sidecar,
)
from y7edge.errors import ArtifactError, ConfigError, DeviceError
from y7edge.runtimes._openmp import openmp_waits_briefly
from y7edge.runtimes.base import (
    Session,
    SessionOptions,
    claim_engine,
    installed_versions,
    parse_device,
)

FORMATS = (".param",)
TARGETS = ("ncnn",)
NEEDS = {"ncnn": "y7edge[ncnn]"}
DEVICES = ("cpu",)
DEVIATION = 1e-4

# The manifest is in the file beside the artifact.
read_manifest, write_manifest = read_sidecar, write_sidecar

# The switches that lower the precision. ncnn turns most of them on by default.
_SWITCHES = {
    "fp32": (),
    "fp16": ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic"),
    "bf16": ("use_bf16_packed", "use_bf16_storage"),
}
_ALL_SWITCHES = (*_SWITCHES["fp16"], *_SWITCHES["bf16"])
_FIXED = (*_ALL_SWITCHES, "use_vulkan_compute")  # users cannot set these
_MEMORY_FACTOR = 7  # memory of an open model over its file's size; 320 to 640 pixels take 3 to 7


def load_engine() -> Any:
    """Import ncnn, which has no telemetry, with OpenMP threads that soon sleep while they wait."""
    with openmp_waits_briefly():
        import ncnn
    return ncnn


def files(path: Path) -> tuple[Path, ...]:
    """Return the .param file, the .bin file of the same name, and the manifest."""
    return (path, path.with_suffix(".bin"), sidecar(path))


def payload_digest(files: Sequence[Path]) -> str:
    """Return the SHA-256 of the .param and the .bin file."""
    return digest_files(files[:2])


def versions() -> dict[str, str]:
    """Return the version of the installed ncnn package."""
    return installed_versions("ncnn")


def available_devices() -> list[str]:
    """Return the only device."""
    return ["cpu"]


def open(artifact: Artifact, options: SessionOptions) -> Session:
    """Open a session in ncnn; device "auto" is the CPU."""
    return _NcnnSession(artifact, options)


class _NcnnSession(Session):
    """One ``ncnn.Net``; an extractor is made for every run."""

    ENGINE = "ncnn"

    def __init__(self, artifact: Artifact, options: SessionOptions) -> None:
        parse_device(options.device, DEVICES)
        claim_engine("ncnn")  # all sessions share OpenMP's threads
        manifest = artifact.manifest
        if manifest.input.batch != 1:
            raise ArtifactError(
                f"{artifact.path} has batch {manifest.input.batch}, expected 1: export it again"
            )
        super().__init__(
            str(artifact.path),
            manifest,
            device="cpu",
            arithmetic=_arithmetic(manifest.precision),
            versions=versions(),
            threads=options.thread_count,
        )
        self._engine: Any = load_engine()
        self._net: Any = self._load(artifact, options)
        found = sorted(self._net.input_names()), sorted(self._net.output_names())
        expected = [manifest.input.name], sorted(spec.name for spec in self.outputs)
        if found != expected:
            raise ArtifactError(
                f"{artifact.path} has the tensors {found}, its manifest has {expected}: export it "
                "again"
            )

    def _load(self, artifact: Artifact, options: SessionOptions) -> Any:
        net = self._engine.Net()
        net.opt.use_vulkan_compute = False
        for switch in _ALL_SWITCHES:
            setattr(net.opt, switch, switch in _SWITCHES[artifact.manifest.precision])
        net.opt.num_threads = options.thread_count
        for name, value in options.provider_options.items():
            if name in _FIXED or not name.startswith("use_") or not hasattr(net.opt, name):
                raise ConfigError(
                    f"ncnn has no option {name!r} that can be set; expected one of ncnn.Option's "
                    "use_* options that keep the precision and the device"
                )
            if not isinstance(value, bool):
                raise ConfigError(f"ncnn's option {name} is {value!r}, expected True or False")
            setattr(net.opt, name, value)
        _require_memory(artifact.files[1])
        graph, weights = (str(file) for file in artifact.files[:2])
        if net.load_param(graph) or net.load_model(weights):
            raise DeviceError(f"ncnn cannot open {artifact.path}: export it again")
        return net

    def bare(self, feeds: Mapping[str, NDArray[Any]]) -> Callable[[], object]:
        """Return a function that makes an extractor, and extracts all outputs."""
        (name,) = feeds
        net, engine, pixels = self._net, self._engine, np.ascontiguousarray(feeds[name][0])
        outputs = [spec.name for spec in self.outputs]

        def run() -> object:
            extractor = net.create_extractor()
            extractor.input(name, engine.Mat(pixels))
            return [np.asarray(extractor.extract(output)[1]) for output in outputs]

        return run

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        (name,) = feeds
        pixels = np.ascontiguousarray(feeds[name][0])
        with self._net.create_extractor() as extractor:
            self._require(extractor.input(name, self._engine.Mat(pixels)), name)
            return {spec.name: self._extract(extractor, spec.name) for spec in self.outputs}

    def _extract(self, extractor: Any, name: str) -> NDArray[Any]:
        status, mat = extractor.extract(name)
        self._require(status, name)
        return np.asarray(mat)[None]  # the array keeps the memory of ``mat`` alive

    def _require(self, status: int, name: str) -> None:
        if status:
            raise DeviceError(f"ncnn failed with status {status} at {name}")

    def _close(self) -> None:
        self._net = None


def _require_memory(weights: Path) -> None:
    """Raise DeviceError if there is no memory for a model, because ncnn would end the process."""
    needed = _MEMORY_FACTOR * weights.stat().st_size
    try:
        np.empty(needed, np.uint8)  # not written, so that this takes no time
    except MemoryError as error:
        raise DeviceError(
            f"there is no memory for {weights}: ncnn needs about {needed / 1e6:.0f} MB; close "
            "other models, or use a smaller one"
        ) from error


def _arithmetic(precision: str) -> str:
    """Describe the arithmetic for an artifact of this precision."""
    if precision == "fp32":
        return "float32 (ncnn, cpu)"
    if precision == "bf16":
        return "bfloat16 values between layers, float32 arithmetic (ncnn, cpu)"
    # ncnn uses float16 arithmetic if the CPU has it: ARM since v8.2, x86-64 only with AVX512-FP16.
    return "float16 weights, float16 arithmetic if the CPU has it (ncnn, cpu)"
