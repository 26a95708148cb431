"""Target litert: the interpreter of its own, and the committed artifacts."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.runtimes.conftest import SIZE, committed, unavailable
from y7edge.detect.selftest import selftest
from y7edge.errors import ExportError, RuntimeMissing
from y7edge.export import converters, export
from y7edge.export.targets import litert_file
from y7edge.models import registry as models
from y7edge.models.scaling import scale
from y7edge.nn.random_weights import random_weights
from y7edge.runtimes import registry
from y7edge.runtimes.base import SessionOptions

VARIABLE = "Y7EDGE_LITERT_PYTHON"
KEPT = [
    {},
    {"precision": "fp16"},
    {"batch": 2},
    {"batch": 8, "imgsz": 320},
    {"outputs": "decoded"},
]


def narrowest():
    """The model of the committed artifacts."""
    spec = scale(models.get("yolov7-tiny", nc=3), width=0.03)
    return replace(random_weights(spec, seed=3), names=("nut", "washer", "screw"))


@pytest.fixture
def program(monkeypatch, tmp_path):
    """Stand in for the interpreter with litert-torch: a shell script that answers for it."""

    def install(convert):
        path = tmp_path / "python with blanks"
        versions = '{"litert-torch": "1", "litert-converter": "1", "ai-edge-quantizer": "1",'
        path.write_text(
            f'#!/bin/sh\nif [ "$2" = "-c" ]; then echo \'{versions} "torch": "1"}}\'; exit; fi\n'
            f"{convert}\n"
        )
        path.chmod(0o755)
        monkeypatch.setenv(VARIABLE, str(path))
        converters._versions.cache_clear()
        return path

    yield install
    converters._versions.cache_clear()


def exported(narrow_tiny, tmp_path):
    out = tmp_path / "out" / "m.tflite"
    try:
        return export(narrow_tiny, out, target="litert", imgsz=SIZE)
    finally:
        assert not out.exists()


def test_without_an_interpreter_the_recipe_is_named_before_the_work(
    narrow_tiny, tmp_path, monkeypatch
):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(converters, "find_spec", lambda _: None)
    with pytest.raises(
        RuntimeMissing, match=rf"pip install litert-torch.*set {VARIABLE}="
    ) as found:
        exported(narrow_tiny, tmp_path)
    assert "\n" not in str(found.value)


def test_this_interpreter_is_used_if_it_has_the_package(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(converters, "find_spec", lambda _: True)
    assert os.access(litert_file._interpreter(), os.X_OK)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "does not exist|expected a Python interpreter"),
        ("#!/bin/sh\necho '{}'\n", "does not have litert-torch, litert-converter"),
        ("#!/bin/sh\necho hello\n", "is not a Python interpreter"),
        ("#!/bin/sh\nexit 3\n", "is not a Python interpreter"),
    ],
)
def test_an_unusable_interpreter_is_named(narrow_tiny, tmp_path, monkeypatch, text, problem):
    path = tmp_path / "python"
    if text:
        path.write_text(text)
        path.chmod(0o755)
    monkeypatch.setenv(VARIABLE, str(path))
    converters._versions.cache_clear()
    with pytest.raises(RuntimeMissing, match=problem):
        exported(narrow_tiny, tmp_path)
    converters._versions.cache_clear()


def test_the_converters_last_words_are_in_the_error(narrow_tiny, tmp_path, program, capfd):
    program("echo noise; echo first >&2; echo 'ValueError: no such  op' >&2; exit 1")
    with pytest.raises(ExportError, match=r"cannot .*: ValueError: no such op .code 1"):
        exported(narrow_tiny, tmp_path)
    assert "noise" not in "".join(capfd.readouterr())


def test_a_converter_that_writes_nothing_fails(narrow_tiny, tmp_path, program):
    program("exit 0")
    with pytest.raises(ExportError, match=r"no message .code 0"):
        exported(narrow_tiny, tmp_path)


def test_a_converter_that_hangs_is_ended(narrow_tiny, tmp_path, program, monkeypatch):
    program("exec sleep 60")
    monkeypatch.setattr(litert_file, "_SECONDS", 0.5)
    with pytest.raises(ExportError, match="timed out"):
        exported(narrow_tiny, tmp_path)


def test_the_converter_is_offline_and_has_no_home(narrow_tiny, tmp_path, program):
    program(
        'test "$HF_HUB_OFFLINE" = 1 && test "$HOME" = "$PWD" && test "$TMPDIR" = "$PWD"'
        ' && test "$1" = -I && test -s "$3" && test "$5" = fp32 || exit 1\n'
        'echo "it was called right" >&2; exit 9'
    )
    with pytest.raises(ExportError, match="called right"):
        exported(narrow_tiny, tmp_path)


@pytest.mark.parametrize("options", KEPT, ids=str)
def test_committed_artifacts_pass_their_proof(options):
    path = committed(litert_file, options)
    artifact = registry.load(path)
    assert selftest(path).status == "passed"
    assert artifact.manifest.input.layout == "NHWC"
    assert {output.dtype for output in artifact.manifest.outputs} == {"float32"}


@pytest.mark.slow
@pytest.mark.parametrize("options", KEPT, ids=str)
def test_conversion_gives_the_committed_artifact(options, tmp_path):
    if VARIABLE not in os.environ:
        pytest.skip(f"{VARIABLE} is not set")
    assert not unavailable(litert_file)
    kept = registry.load(committed(litert_file, options))
    made = export(
        narrowest(), tmp_path / kept.path.name, target="litert", **{"imgsz": SIZE, **options}
    )
    if all(made.manifest.tools[k] == kept.manifest.tools[k] for k in litert_file._PACKAGES):
        assert made.manifest.payload_digest == kept.manifest.payload_digest
    shape = made.manifest.input.shape
    images = np.random.default_rng(0).random(shape, dtype=np.float32)
    results = []
    for artifact in (kept, made):
        session = registry.open_session(artifact, SessionOptions("cpu", 1))
        results.append(session.infer({"images": images}))
    for name, array in results[0].items():
        scale_of = np.abs(array).max()
        np.testing.assert_allclose(results[1][name], array, atol=1e-4 * scale_of)


def write_committed() -> None:
    """Write the committed artifacts again; see tests/reference/README.md."""
    for options in KEPT:
        out = committed(litert_file, options)
        made = export(narrowest(), out, target="litert", **{"imgsz": SIZE, **options})
        print(Path(out).name, made.size)
