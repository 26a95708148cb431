"""The manifest: round trip, canonical JSON, and refused content."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest

from y7edge.artifact import bounds
from y7edge.artifact.manifest import (
    MAX_BYTES,
    InputInfo,
    LevelInfo,
    Manifest,
    OutputInfo,
    Probe,
    Quantization,
    Samples,
    Source,
    Thresholds,
)
from y7edge.errors import ArtifactError, DigestError

ANCHORS = ((10.0, 13.5), (16.0, 30.0))


def manifest(batch=1):
    return Manifest(
        model="yolov7-tiny",
        nc=2,
        names=("nut", "Öse"),
        input=InputInfo("images", batch, 64, 96),
        outputs=(
            OutputInfo("head0", "head", (batch, 14, 8, 12), level=0),
            OutputInfo(
                "head1",
                "head",
                (batch, 4, 6, 14),
                level=1,
                dtype="float16",
                layout="NHWC",
                activation="sigmoid",
            ),
        ),
        levels=(LevelInfo(8, ANCHORS), LevelInfo(16, ANCHORS)),
        source=Source("a" * 64, "training", 6_000_000, 13.2),
        precision="fp32",
        target="onnx",
        opset=17,
        payload_digest="b" * 64,
        licence="Apache-2.0",
        tools={"onnx": "1.2"},
        parity={"status": "passed", "problems": [], "deviation": 1e-05, "nothing": None},
        probes=(Probe("blocks", "a", 1, 7, 1e-4, (Samples("head0", 2.5, (0, 9), (0.5, -2.5)),)),),
        quantization=Quantization("u8s8", "mse", "c" * 64, ("a.jpg",), ("/row0/Conv",), 0.97),
    )


def sealed(data):
    """Canonical JSON of changed content with a digest that fits it."""
    body = {key: value for key, value in data.items() if key != "digest"}

    def dump(value):
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    return dump({**body, "digest": hashlib.sha256(dump(body).encode()).hexdigest()})


@pytest.mark.parametrize("batch", [1, 4, "dynamic"])
def test_round_trip(batch):
    written = manifest(batch)
    assert Manifest.from_json(written.to_json()) == written
    assert Manifest.from_json(written.to_json()).to_json() == written.to_json()


def test_digest_covers_canonical_body():
    assert manifest().to_json() == sealed(json.loads(manifest().to_json()))
    assert json.loads(manifest().to_json())["digest"] == manifest().digest
    assert replace(manifest(), names=("nut", "Ose")).digest != manifest().digest


@pytest.mark.parametrize("mask", [0x01, 0x20, 0x80])
def test_every_flipped_byte_is_refused(mask):
    raw = manifest().to_json().encode()
    for position in range(len(raw)):
        changed = bytearray(raw)
        changed[position] ^= mask
        with pytest.raises(DigestError, match=r"manifest of m\.onnx was changed"):
            Manifest.from_json(bytes(changed), "m.onnx")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{}",
        '{"a":NaN}',
        '{"a":1e999}',
        '{"a":1,"a":1}',
        "[" * 100_000,
        manifest().to_json() + " ",
        manifest().to_json()[:-1],
    ],
    ids=lambda text: text[:12] or "empty",
)
def test_invalid_texts_are_refused(text):
    with pytest.raises(DigestError):
        Manifest.from_json(text)


def test_large_text_is_refused():
    with pytest.raises(ArtifactError, match=f"expected at most {MAX_BYTES}"):
        Manifest.from_json(" " * (MAX_BYTES + 1))


def test_newer_schema_is_refused():
    data = {**json.loads(manifest().to_json()), "schema": 3, "something": "new"}
    with pytest.raises(ArtifactError, match="made by a newer y7edge") as caught:
        Manifest.from_json(sealed(data), "m.onnx")
    assert not isinstance(caught.value, DigestError)


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        (("names",), ["nut"], "nc is 2"),
        (("names", 0), 3, r"names\[0\]"),
        (("names", 0), "n" * 300, "256 characters"),
        (("nc",), 2.0, "nc"),
        (("nc",), True, "nc"),
        (("schema",), 0, "schema"),
        (("input", "batch"), "many", "batch"),
        (("input", "batch"), 0, "batch"),
        (("input", "height"), 72, "multiple of 16"),
        (("input", "width"), 1 << 20, "side"),
        (("input", "color"), "hsv", "color"),
        (("input", "dtype"), "float31", "dtype"),
        (("input", "scale"), 0, "scale"),
        (("input", "letterbox", "pad"), 300, "pad"),
        (("input", "letterbox"), None, "letterbox"),
        (("outputs",), [], "outputs"),
        (("outputs", 0, "shape"), [1, 14, 8, 11], "head0 is"),
        (("outputs", 0, "role"), "boxes", "boxes"),
        (("outputs", 0, "level"), 1, "levels"),
        (("outputs", 0, "activation"), None, "activation"),
        (("outputs", 0, "activation"), "relu", "activation"),
        (("outputs", 0, "layout"), "NWC", "layout"),
        (("outputs", 0, "layout"), "NHWC", r"head0 is \(1, 14, 8, 12\), expected \(1, 8, 12, 14\)"),
        (("input", "layout"), "NWHC", "layout"),
        (("levels", 0, "anchors", 0), [10.0], "anchor"),
        (("levels", 0, "anchors", 0), [10.0, -1.0], "anchor"),
        (("levels", 0, "stride"), 16, "finest first"),
        (("thresholds", "conf"), 1.5, "conf"),
        (("thresholds", "max_det"), 0, "max_det"),
        (("source", "digest"), "abc", "SHA-256"),
        (("precision",), "fp8", "precision"),
        (("payload_digest",), "B" * 64, "payload_digest"),
        (("tools", "onnx"), 1.2, "tools.onnx"),
        (("probes", 0, "tolerance"), 0.0, "tolerance"),
        (("probes", 0, "samples", 0, "indices"), [0], "indices"),
        (("probes", 0, "samples", 0, "scale"), 0.0, "scale"),
        (("quantization", "calibration"), "c" * 63, "calibration is not a SHA-256"),
        (("quantization", "images"), [], "0 calibration images, expected 1 to 10000"),
        (("quantization", "images"), ["a"] * 10_001, "10001 calibration images"),
        (("quantization", "share"), 1.5, "share is 1.5, expected 0 to 1"),
        (("quantization", "kept"), [1], r"kept\[0\]"),
        (("quantization", "kept"), ["n" * 300], "a name has more than 256 characters"),
        (("quantization", "profile"), "n" * 300, "a name has more than 256 characters"),
        (("quantization", "corrections"), ["n" * 300], "a name has more than 256 characters"),
        (("extra",), 1, "extra"),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_invalid_content_is_refused(path, value, problem):
    data = json.loads(manifest().to_json())
    place = data
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(ArtifactError, match=problem):
        Manifest.from_json(sealed(data), "m.onnx")


ODD = (
    *(None, True, -1, 0, 1, 10**9, 10**400, 1.5, -0.5, 1e300, "", "x", "a" * 5000, "\x1b[2J"),
    *([], {}, [[]], [1], ["x"], {"x": 1}, [None], [[[[1]]]], [10**9] * 4),
)


def places(value, path=()):
    """Every place in parsed JSON."""
    if isinstance(value, dict | list):
        for step, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield (*path, step)
            yield from places(item, (*path, step))


def test_odd_values_are_refused_or_valid():
    refused = 0
    for path in places(json.loads(manifest().to_json())):
        for value in ODD:
            data = json.loads(manifest().to_json())
            place = data
            for step in path[:-1]:
                place = place[step]
            place[path[-1]] = value
            try:
                made = Manifest.from_json(sealed(data), "m.onnx")
            except ArtifactError as error:
                refused += 1
                assert "m.onnx" in str(error) and "\n" not in str(error)
            else:
                assert made.input.images * made.input.pixels <= bounds.MAX_BATCH_PIXELS
    assert refused > 2000


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"batch": 1024, "height": 640, "width": 640}, "1024 images of 640x640"),
        ({"height": 16384, "width": 16384}, "1 images of 16384x16384"),
        ({"batch": "dynamic", "height": 16384, "width": 4096}, "of 16384x4096"),
        ({"batch": 0}, "batch is 0"),
        ({"batch": 1025}, "batch is 1025"),
        ({"height": 2**40}, "a side has"),
    ],
)
def test_huge_inputs_are_refused(change, problem):
    with pytest.raises(ArtifactError, match=problem):
        InputInfo("images", **{"batch": 1, "height": 64, "width": 96, **change})


def test_huge_outputs_and_probes_are_refused():
    names = tuple(str(index) for index in range(65_000))
    image = InputInfo("images", 1, 4096, 4096)
    with pytest.raises(ArtifactError, match=r"outputs have .* values per image"):
        replace(manifest(), nc=len(names), names=names, input=image)
    wide = replace(manifest("dynamic").probes[0], batch=1024)
    with pytest.raises(ArtifactError, match="a probe has 1024 images"):
        replace(manifest("dynamic"), input=InputInfo("images", "dynamic", 640, 640), probes=(wide,))
    with pytest.raises(ArtifactError, match="65 probes, expected at most 8"):
        replace(manifest(), probes=manifest().probes * 65)


def test_the_input_has_the_shape_of_its_layout():
    image = InputInfo("images", 1, 64, 96)
    assert image.shape == (1, 3, 64, 96)
    assert replace(image, layout="NHWC").shape == (1, 64, 96, 3)


def in_schema_1(data):
    """What the first version wrote of the same artifact."""
    outputs = [
        {k: v for k, v in output.items() if k != "activation"} | {"layout": "NCHW"}
        for output in data["outputs"]
    ]
    outputs[1]["shape"] = [1, 14, 4, 6]
    letterbox = {"pad": 100, "scaleup": True, "align": "center"}
    image = {**data["input"], "letterbox": letterbox}
    return {**data, "schema": 1, "input": image, "outputs": outputs}


def test_schema_1_is_read_as_schema_2():
    old = in_schema_1(json.loads(manifest().to_json()))
    read = Manifest.from_json(sealed(old))
    assert read.schema == 2
    assert [output.activation for output in read.outputs] == ["logit", "logit"]
    assert read.input.letterbox.pad == 100
    assert Manifest.from_json(read.to_json()) == read
    with pytest.raises(DigestError):  # the digest is that of the bytes in the file
        Manifest.from_json(sealed(old).replace("1.2", "1.3"))
    for key in ("input", "outputs"):
        with pytest.raises(ArtifactError, match=r"m\.onnx cannot be used.*schema 1"):
            Manifest.from_json(sealed({**old, key: None}), "m.onnx")


def test_a_missing_entry_is_named():
    data = json.loads(manifest().to_json())
    del data["levels"]
    with pytest.raises(ArtifactError, match=r"m\.onnx.*levels"):
        Manifest.from_json(sealed(data), "m.onnx")


@pytest.mark.parametrize(
    ("meta", "conf"),
    [
        ({"thresholds": {"conf": 0.4}}, 0.4),
        ({"thresholds": {"conf": 0}}, 0.0),
        ({}, 0.25),
        ({"thresholds": {}}, 0.25),
        ({"thresholds": {"conf": None}}, 0.25),
        ({"thresholds": {"conf": 7}}, 0.25),
        ({"thresholds": {"conf": float("nan")}}, 0.25),
        ({"thresholds": {"conf": True}}, 0.25),
        ({"thresholds": [0.4]}, 0.25),
    ],
)
def test_threshold_of_a_checkpoint(meta, conf):
    assert Thresholds.of_checkpoint(meta) == Thresholds(conf=conf)


UNPRINTABLE = ("a\nb", "\x1b[31mred", "\x85", "\ud800", "\uffff", "\u2028")


@pytest.mark.parametrize("text", UNPRINTABLE, ids=ascii)
@pytest.mark.parametrize("field", ["names", "licence", "model"])
def test_control_characters_are_refused(text, field):
    value = (text, "b") if field == "names" else text
    with pytest.raises(ArtifactError, match="cannot be printed") as caught:
        replace(manifest(), **{field: value})
    assert str(caught.value).isprintable()


def test_deeply_nested_manifest_is_refused():
    nested = {}
    for _ in range(100):
        nested = {"a": nested}
    with pytest.raises(ArtifactError, match="nested more than"):
        Manifest.from_json(replace(manifest(), parity=nested).to_json())


@pytest.mark.parametrize("schema", [None, True, "2"])
def test_schema_must_be_a_number(schema):
    body = json.loads(manifest().to_json())
    del body["digest"], body["schema"]
    if schema is not None:
        body["schema"] = schema
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    body["digest"] = hashlib.sha256(text.encode()).hexdigest()
    sealed = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    with pytest.raises(ArtifactError, match="has no schema number"):
        Manifest.from_json(sealed)
