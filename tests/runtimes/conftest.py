"""Artifacts of every target, each in the runtime that proves it; used by the contract tests."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import pytest

from y7edge.artifact.artifact import Artifact
from y7edge.errors import RuntimeMissing
from y7edge.export.targets import registry as targets
from y7edge.export.targets.base import Target
from y7edge.runtimes import registry
from y7edge.runtimes.base import missing

SIZE = (64, 96)
# Hand-overs are folders, run by the runtime of the model in them: see test_handover.py. RKNN takes
# uint8 images and has no fp32: see test_rknnrt.py.
HANDOVERS = [name for name in targets.names() if targets.get(name).RUNTIME == "handover"]
WITH_RUNTIME = [
    name
    for name in targets.names()
    if isinstance(targets.get(name).RUNTIME, str) and name not in (*HANDOVERS, "rknn")
]
# Target -> packages of its runtime that are missing here; ``test_contract`` reports them.
ABSENT = {
    name: absent
    for name in WITH_RUNTIME
    if (absent := missing(registry.get(targets.get(name).RUNTIME).NEEDS))
}
PROVABLE = [name for name in WITH_RUNTIME if name not in ABSENT]
COMMITTED = Path(__file__).parents[1] / "reference" / "artifacts"


def unavailable(target: Target) -> str:
    """Why a target cannot be built here; empty if it can."""
    if absent := missing(target.NEEDS):
        return f"target {target.NAME}: {', '.join(absent)} is not installed"
    try:
        target.versions()
    except RuntimeMissing as error:
        return str(error)
    return ""


def skip_unless_built_here(target: Target) -> None:
    if reason := unavailable(target):
        pytest.skip(reason)


def committed(target: Target, options: dict) -> Path:
    """Where an artifact of the narrow model is kept, for targets whose converter may be missing."""
    words = [f"{name}-{value}" for name, value in sorted(options.items())]
    return COMMITTED / target.NAME / f"{'-'.join(('narrow', *words))}{target.SUFFIX}"


@dataclass(frozen=True)
class Made:
    """An exported artifact and the runtime that opens it."""

    artifact: Artifact
    backend: str
    runtime: ModuleType

    def copy(self, folder: Path, name: str = "copy") -> Artifact:
        """All of its files under another name."""
        folder.mkdir(exist_ok=True)
        path = self.artifact.path
        suffix = next(form for form in self.runtime.FORMATS if path.name.endswith(form))
        main = folder / f"{name}{suffix}"
        copied = self.runtime.files(main)
        for source, destination in zip(self.artifact.files, copied, strict=True):
            if source.is_dir():
                shutil.copytree(source, destination)
            else:
                shutil.copyfile(source, destination)
        return replace(self.artifact, path=main, side_files=copied[1:])

    @property
    def device(self) -> str:
        """Where the contract is tested: the CPU, the first GPU, or the device of the machine."""
        first, *others = self.runtime.DEVICES
        if "cpu" in (first, *others):
            return "cpu"
        return f"{first}:0" if f"{first}:N" in others else self.runtime.available_devices()[0]

    @property
    def manifest_file(self) -> int:
        """Which of the files holds the manifest: the one that a changed manifest changes."""
        with tempfile.TemporaryDirectory() as folder:
            copy = self.copy(Path(folder))
            before = [file.read_bytes() for file in copy.files]
            changed = replace(copy.manifest, licence="changed")
            self.runtime.write_manifest(replace(copy, manifest=changed))
            after = [file.read_bytes() for file in copy.files]
        (index,) = [i for i in range(len(before)) if before[i] != after[i]]
        return index

    @property
    def weights_file(self) -> int:
        """Which of the files holds the weights: the largest one."""
        sizes = [file.stat().st_size for file in self.artifact.files]
        return sizes.index(max(sizes))


@pytest.fixture(scope="session")
def make(narrow_tiny, tmp_path_factory) -> Callable[..., Made]:
    """Export the narrow model once for each target and set of options, or copy a committed one."""
    made: dict[tuple, Made] = {}

    def export_once(target: str, **options) -> Made:
        from y7edge.export import export

        module = targets.get(target)
        runtime = registry.get(module.RUNTIME)
        if absent := missing(runtime.NEEDS):
            pytest.skip(f"runtime {module.RUNTIME}: {', '.join(absent)} is not installed")
        key = (target, *sorted(options.items()))
        if key not in made:
            out = tmp_path_factory.mktemp(target) / f"narrow{module.SUFFIX}"
            kept = committed(module, options)
            if kept.exists() and unavailable(module):
                found = Made(registry.load(kept, module.RUNTIME), module.RUNTIME, runtime)
                found.copy(out.parent, "narrow")
                artifact = registry.load(out, module.RUNTIME)
            else:
                try:
                    artifact = export(narrow_tiny, out, target=target, **{"imgsz": SIZE, **options})
                except RuntimeMissing as error:
                    pytest.skip(str(error))
            made[key] = Made(artifact, module.RUNTIME, runtime)
        return made[key]

    return export_once


@pytest.fixture(params=PROVABLE)
def made(request, make) -> Made:
    """An fp32 artifact with heads, of each target in turn; not to be changed."""
    return make(request.param)
