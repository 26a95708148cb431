"""The constants of an artifact as a C header; tests/examples/test_cpp_decoder.py compiles it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from y7edge.artifact.c_header import c_header
from y7edge.artifact.manifest import LevelInfo, OutputInfo
from y7edge.errors import ConfigError
from y7edge.runtimes import registry


@pytest.fixture(scope="module")
def manifest(artifact_path):
    return registry.load(artifact_path).manifest


def test_texts_are_escaped(manifest):
    """No text can end a string, a comment or a line."""
    names = ('"; } \\', "*/ ??/ 7", "Öse 7")
    outputs = (replace(manifest.outputs[0], name="head\n#error\x00"), *manifest.outputs[1:])
    text = c_header(replace(manifest, names=names, model="a*/b\\", outputs=outputs))
    assert text.isascii() and "#error" not in text
    for literal in (
        r'    "\042; \175 \134",',
        r'    "\052/ \077\077/ 7",',
        r'    "\303\226se 7",',
        r'    "a\052/b\134", /* model */',
        r'    {"head\012\043error\000", Y7EDGE_FLOAT32,',
    ):
        assert f"\n{literal}" in text


def test_numbers_are_exact(manifest):
    """Anchors have the digits of a float32, other numbers those of a double."""
    levels = (LevelInfo(8, ((0.1, 1e-30), (12, 373.0), (1 / 3, 1e5))), *manifest.levels[1:])
    text = c_header(replace(manifest, levels=levels))
    assert "{0.100000001f, 1e-30f, 12.0f, 373.0f, 0.333333343f, 100000.0f};" in text
    assert f"    {1 / 255!r}, /* scale of the input */" in text


def test_other_outputs_are_refused(manifest):
    """The decoder reads raw heads of known dtypes only."""
    count = sum(
        len(level.anchors) * (96 // level.stride) * (128 // level.stride)
        for level in manifest.levels
    )
    decoded = tuple(
        OutputInfo(role, role, (1, count, size), layout="NWC", activation=None)
        for role, size in (("boxes", 4), ("scores", 3))
    )
    with pytest.raises(ConfigError, match="has boxes and scores, expected raw heads"):
        c_header(replace(manifest, outputs=decoded))
    outputs = tuple(replace(head, dtype="int32", scale=0.5) for head in manifest.outputs)
    with pytest.raises(ConfigError, match="has int32 tensors, expected float32, "):
        c_header(replace(manifest, outputs=outputs))
