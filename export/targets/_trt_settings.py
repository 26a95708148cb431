"""Settings of a TensorRT build: options, rules of the DLA, workspace, cache key, trtexec command.

Nothing here needs TensorRT.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from y7edge import __version__
from y7edge.artifact.bounds import MAX_BATCH
from y7edge.artifact.description import kind_of_outputs
from y7edge.artifact.manifest import Manifest
from y7edge.errors import ConfigError, DeviceError
from y7edge.export.targets.base import BuildRequest
from y7edge.runtimes import _trt_versions as versions
from y7edge.runtimes import trt as runtime
from y7edge.runtimes.base import parse_device

OPTIONS: Mapping[str, str] = {
    "profile": "smallest, usual and largest batch of a dynamic graph; default 1,4,8",
    "workspace": "memory for the build in MiB; default: half of the free memory, 2048 at most on "
    "boards with up to 8 GB",
    "version-compatible": "yes: the engine also runs on later versions of TensorRT; default no",
    "cache": "no: build again, even if an equal engine is in the cache; default yes",
    "trtexec": "yes: print the equivalent trtexec command; default no",
}
LEAST_WORKSPACE = 128
"""MiB; a build that needs less does not exist, so no smaller value is tried."""

DLA_LOCAL_DRAM, DLA_GLOBAL_DRAM = 512, 256
"""MiB of the memory pools of a DLA on small boards; TensorRT's defaults are 1024 and 512."""

_MIB = 1 << 20
_SMALL_BOARD = 9 << 30  # boards with "8 GB" have less than this
_SMALL_LIMIT = 2048  # MiB
# The proof of a dynamic graph runs batches of 1 and 3 images.
_PROVED = (1, 3)


@dataclass(frozen=True)
class Device:
    """A GPU, and its memory in bytes. On a Jetson, the CPU uses the same memory."""

    name: str
    compute_capability: str  # such as "8.7"
    free: int
    total: int
    integrated: bool

    @property
    def workspace(self) -> int:
        """Default workspace in MiB.

        On some 8 GB boards, an allocation of 4 GiB fails although 5 GiB are free (L4T 36.4.7).
        """
        most = _SMALL_LIMIT if self.small else self.free // _MIB
        return max(LEAST_WORKSPACE, min(self.free // 2 // _MIB, most))

    @property
    def small(self) -> bool:
        """Whether this is a board with up to 8 GB for CPU and GPU together."""
        return self.integrated and self.total < _SMALL_BOARD


@dataclass(frozen=True)
class Settings:
    """What to build.

    Attributes:
        gpu: Index of the GPU; a DLA belongs to GPU 0.
        dla: Core of the DLA; None: the GPU.
        precision: "fp32", "fp16" or "int8".
        profile: Smallest, usual and largest batch; None: the batch size is fixed.
        workspace: MiB; None: chosen by the free memory.
        version_compatible: Whether later versions of TensorRT can run the engine.
        cache: Whether to use an equal engine from the cache.
        trtexec: Whether to print the equivalent command.
    """

    gpu: int
    dla: int | None
    precision: str
    profile: tuple[int, int, int] | None
    workspace: int | None
    version_compatible: bool
    cache: bool
    trtexec: bool

    @classmethod
    def of(cls, manifest: Manifest, options: Mapping[str, str], device: str = "auto") -> Settings:
        """Read the settings of a build; raise ConfigError if they are invalid."""
        dynamic = manifest.input.batch == "dynamic"
        kind, index = parse_device(device, runtime.DEVICES)
        if "profile" in options and not dynamic:
            raise ConfigError("option profile is for graphs with a dynamic batch: omit it")
        workspace = options.get("workspace")
        if workspace is not None and not re.fullmatch(r"[0-9]{1,6}", workspace):
            raise ConfigError(f"option workspace is {workspace[:32]!r}, expected a number of MiB")
        if workspace is not None and int(workspace) < LEAST_WORKSPACE:
            raise ConfigError(
                f"option workspace is {workspace}, expected {LEAST_WORKSPACE} or more"
            )
        return cls(
            gpu=0 if kind == "dla" else index or 0,
            dla=index if kind == "dla" else None,
            precision=manifest.precision,
            profile=_profile(options.get("profile", "1,4,8")) if dynamic else None,
            workspace=None if workspace is None else int(workspace),
            version_compatible=_switch(options, "version-compatible", "no"),
            cache=_switch(options, "cache", "yes"),
            trtexec=_switch(options, "trtexec", "no"),
        )

    def typing(self, version: str) -> str:
        """Return how a version of TensorRT chooses the precision: by "flags" or by the "graph".

        Raises:
            DeviceError: the version is too old, or does not support the DLA.
        """
        if self.dla is None:
            return versions.value("precision", version)
        typing = versions.value("precision on DLA", version)
        if typing == "none":
            raise DeviceError(
                f"TensorRT {version} does not support the DLA of Orin, expected up to 10.7 "
                "(JetPack 6) or 11.4.1 (JetPack 7.2.2) and later: build for the GPU with --device "
                "cuda"
            )
        return typing

    def key(self, payload: str, version: str, device: Device) -> str:
        """Return the key of the engine in the cache.

        ``payload``: the payload digest of the graph.
        """
        chosen = {name: value for name, value in asdict(self).items() if name in _IN_KEY}
        place = (version, device.compute_capability, device.name, versions.this_platform())
        # Another version of y7edge may build another engine from the same graph.
        text = json.dumps([__version__, payload, place, chosen], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


_IN_KEY = ("dla", "precision", "profile", "workspace", "version_compatible")


def require_dla(manifest: Manifest) -> None:
    """Raise ConfigError if a DLA cannot run a graph of this kind."""
    outputs = kind_of_outputs(manifest)
    for problem, advice in (
        (manifest.precision == "fp32" and "fp32", "fp16 or int8, see --precision"),
        (outputs != "heads" and f"outputs {outputs}", "outputs heads: export with --outputs heads"),
        (manifest.input.batch == "dynamic" and "a dynamic batch", "a fixed batch size"),
    ):
        if problem:
            raise ConfigError(f"a DLA cannot run a graph with {problem}, expected {advice}")


def tie(
    settings: Settings, version: str, device: Device, workspace: int, counts: Mapping[str, int]
) -> dict[str, Any]:
    """Return the field ``engine`` of the manifest.

    ``counts``: number of convolutions by the precision in which the engine computes them.
    """
    profile = settings.profile
    return {
        "tensorrt": version,
        "compute_capability": device.compute_capability,
        "device": device.name,
        "platform": versions.this_platform(),
        "version_compatible": settings.version_compatible,
        "dla": settings.dla,
        "profile": profile and dict(zip(("min", "opt", "max"), profile, strict=True)),
        "workspace_mb": workspace,
        "convolutions": dict(counts),
    }


def trtexec(
    request: BuildRequest, settings: Settings, version: str, device: Device, workspace: int
) -> str:
    """Return the trtexec command that builds the same network, for comparisons."""
    typing, image = settings.typing(version), request.manifest.input
    words = [f"--onnx={request.model}", f"--saveEngine={Path(request.name).stem}.plan"]
    if typing == "flags" and settings.dla is not None and settings.precision == "int8":
        return (
            "trtexec has no equivalent command: y7edge removes the Q/DQ nodes, and sets their "
            "ranges in the network"
        )
    if typing == "flags" and settings.precision != "fp32":
        words += [f"--{settings.precision}"]
        if settings.precision == "fp16":
            words += ["--precisionConstraints=obey", "--layerPrecisions=*:fp16"]
    elif typing == "graph" and versions.value("typed network flag", version):
        words.append("--stronglyTyped")
    pools = {"workspace": workspace}
    if settings.dla is not None and device.small:
        pools |= {"dlaLocalDRAM": DLA_LOCAL_DRAM, "dlaGlobalDRAM": DLA_GLOBAL_DRAM}
    sizes = ",".join(f"{name}:{size}" for name, size in pools.items())
    words += ["--noTF32", f"--memPoolSize={sizes}", "--profilingVerbosity=detailed"]
    for name, batch in zip(("min", "opt", "max"), settings.profile or (), strict=False):
        shape = "x".join(map(str, (batch, *image.shape[1:])))
        words.append(f"--{name}Shapes={image.name}:{shape}")
    if settings.version_compatible:
        words.append("--versionCompatible")
    if settings.dla is not None:
        words += [f"--useDLACore={settings.dla}", "--allowGPUFallback"]
    return shlex.join(["trtexec", *words])


def _profile(text: str) -> tuple[int, int, int]:
    """Parse "1,4,8"; raise ConfigError unless the numbers ascend and include the proved batches."""
    if re.fullmatch(r"[0-9]{1,4}(,[0-9]{1,4}){2}", text):
        least, usual, most = (int(number) for number in text.split(","))
        if 1 == least <= usual <= most <= MAX_BATCH and most >= max(_PROVED):
            return least, usual, most
    raise ConfigError(
        f"option profile is {text[:32]!r}, expected the smallest, usual and largest batch, such as "
        f"1,4,8: the smallest is 1, the largest {max(_PROVED)} to {MAX_BATCH}, because the proof "
        f"runs batches of {_PROVED[0]} and {_PROVED[1]}"
    )


def _switch(options: Mapping[str, str], name: str, default: str) -> bool:
    """Return whether an option is "yes"; raise ConfigError unless it is "yes" or "no"."""
    found = options.get(name, default)
    if found not in ("yes", "no"):
        raise ConfigError(f"option {name} is {found[:32]!r}, expected yes or no")
    return found == "yes"
