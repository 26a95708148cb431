"""Builds of targets that compile .tflite files, without litert-torch and the vendors' compilers."""

from __future__ import annotations

import shutil
from dataclasses import replace
from types import ModuleType

import pytest

from tests.runtimes.conftest import committed
from y7edge import interpreters
from y7edge.artifact.artifact import Artifact
from y7edge.detect.selftest import selftest
from y7edge.export import delivery
from y7edge.export.targets import litert_file
from y7edge.export.targets.base import BuildRequest
from y7edge.runtimes import handover, registry

FULL = committed(litert_file, {"precision": "int8", "quantize_heads": True})
FLOAT_HEADS = committed(litert_file, {"precision": "int8"})
FLOAT = committed(litert_file, {})


class Order:
    """A build of a committed .tflite file.

    Attributes:
        request: The request.
        lines: What the target reported.
    """

    def __init__(self, target: ModuleType, folder, monkeypatch, *, source=FULL, **options) -> None:
        pytest.importorskip("ai_edge_litert")
        manifest = replace(registry.load(source).manifest, target=target.NAME)
        if source == FLOAT_HEADS:  # as if its heads were quantised
            manifest = replace(
                manifest, quantization=replace(manifest.quantization, kept=(), share=1)
            )

        def convert(request, path):
            shutil.copyfile(source, path)
            return request.manifest

        monkeypatch.setattr(litert_file, "convert", convert)
        self.lines: list[str] = []
        self.target = target
        self.request = BuildRequest(
            model=folder / "none.onnx",
            checkpoint=None,
            manifest=manifest,
            folder=folder,
            name=f"robot{target.SUFFIX}",
            options={name.replace("_", "-"): value for name, value in options.items()},
            progress=self.lines.append,
        )

    def built(self) -> Artifact:
        """Build the hand-over, and load it as it is delivered."""
        made = delivery.seal(self.target.build(self.request), self.target)
        handover.write_manifest(made)
        assert made.path == self.request.path
        assert not [path for path in made.path.rglob("*") if path.name.startswith(".")]
        loaded = registry.load(made.path)
        assert loaded.manifest == made.manifest
        return loaded

    def proved(self) -> Artifact:
        """Build it, and run its probes."""
        made = self.built()
        assert selftest(made.path).status == "passed"
        return made


def program(path, text) -> str:
    """Write a shell script that stands in for a program."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    interpreters._versions.cache_clear()
    return str(path)
