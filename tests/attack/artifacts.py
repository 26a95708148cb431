"""Inputs: ONNX artifacts, with manifests whose digests match."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.attack import mutate
from tests.attack.base import Attack, Make, Place

Manifest = dict[str, Any]
Edit = Callable[[Manifest], object]


def seal(manifest: Any) -> str:
    """Return canonical JSON with a matching digest of its content."""

    def canonical(value: object) -> str:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    if not isinstance(manifest, dict):
        return canonical(manifest)
    body = {key: value for key, value in manifest.items() if key != "digest"}
    try:
        digest = hashlib.sha256(canonical(body).encode("utf-8", "surrogatepass")).hexdigest()
        return canonical({**body, "digest": digest})
    except (TypeError, ValueError, RecursionError):
        return mutate.dumps(body)


def manifest_of(place: Place, name: str = "model.onnx") -> Manifest:
    from y7edge.runtimes import registry

    return dict(json.loads(registry.load(place.material / name).manifest.to_json()))


def _onnx(place: Place, manifest: object, payload: bytes | None = None) -> Path:
    """Write an .onnx file from a manifest (object or text) and a payload; fix its digest."""
    from y7edge.runtimes import _modelproto, onnxrt

    path = place.inside / "a.onnx"
    if payload is None:
        payload = _modelproto.without_metadata(place.material / "model.onnx")
    elif isinstance(manifest, dict):
        path.write_bytes(payload)
        try:
            manifest = {**manifest, "payload_digest": onnxrt.payload_digest((path,))}
        except Exception:  # not protobuf fields: any digest is accepted
            manifest = {**manifest, "payload_digest": "0" * 64}
    text = manifest if isinstance(manifest, str) else seal(manifest)
    raw = text.encode("utf-8", "surrogatepass")
    entry = _bytes(1, b"y7edge") + _bytes(2, raw)
    path.write_bytes(payload + _bytes(14, entry))
    return path


def _bytes(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def _edited(edit: Edit) -> Make:
    def make(place: Place) -> Path:
        manifest = manifest_of(place)
        edit(manifest)
        return _onnx(place, manifest)

    return make


def _text(text: str) -> Make:
    return lambda place: _onnx(place, text)


def _graph(edit: Callable[[Any], object]) -> Make:
    """Write another graph, with a matching payload digest."""

    def make(place: Place) -> Path:
        import onnx

        model = onnx.load(place.material / "model.onnx")
        del model.metadata_props[:]
        edit(model)
        return _onnx(place, manifest_of(place), model.SerializeToString())

    return make


def _external(location: str) -> Callable[[Any], None]:
    def edit(model: Any) -> None:
        tensor = max(model.graph.initializer, key=lambda t: len(t.raw_data))
        tensor.ClearField("raw_data")
        tensor.data_location = 1
        for key, value in (("location", location), ("offset", "0")):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value

    return edit


def _external_attribute(location: str) -> Callable[[Any], None]:
    """Put external data into a tensor attribute of a node."""

    def edit(model: Any) -> None:
        node = model.graph.node.add()
        node.op_type, node.name = "Constant", "x"
        node.output.append("unused")
        attribute = node.attribute.add()
        attribute.name, attribute.type = "value", 4
        attribute.t.data_type = 1
        attribute.t.dims.append(4)
        attribute.t.data_location = 1
        entry = attribute.t.external_data.add()
        entry.key, entry.value = "location", location

    return edit


def _operator(domain: str, kind: str) -> Callable[[Any], None]:
    def edit(model: Any) -> None:
        node = model.graph.node.add()
        node.op_type, node.domain = kind, domain
        node.input.append(model.graph.input[0].name)
        node.output.append("unused")
        if domain:
            imported = model.opset_import.add()
            imported.domain, imported.version = domain, 1

    return edit


def _constant_bomb(model: Any) -> None:
    """Make a graph that creates a tensor of 40 GB."""
    import onnx

    shape = onnx.helper.make_tensor("bomb", 7, [2], [100_000, 100_000])
    model.graph.initializer.append(shape)
    node = onnx.helper.make_node("ConstantOfShape", ["bomb"], ["made"])
    total = onnx.helper.make_node("ReduceSum", ["made"], ["sum"], keepdims=0)
    first = model.graph.output[0].name
    renamed = onnx.helper.make_node("Add", [f"{first}_", "sum"], [first])
    for each in model.graph.node:
        each.output[:] = [f"{name}_" if name == first else name for name in each.output]
    model.graph.node.extend([node, total, renamed])


def _loop(model: Any) -> None:
    """Make a graph with a loop of 2**62 iterations."""
    import onnx

    helper = onnx.helper
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["again"]),
            helper.make_node("Add", ["x", "x"], ["y"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", 7, []),
            helper.make_tensor_value_info("go", 9, []),
            helper.make_tensor_value_info("x", 1, []),
        ],
        [helper.make_tensor_value_info("again", 9, []), helper.make_tensor_value_info("y", 1, [])],
    )
    model.graph.initializer.extend(
        [
            helper.make_tensor("rounds", 7, [], [2**62]),
            helper.make_tensor("yes", 9, [], [True]),
            helper.make_tensor("zero", 1, [], [0.0]),
        ]
    )
    first = model.graph.output[0].name
    for each in model.graph.node:
        each.output[:] = [f"{name}_" if name == first else name for name in each.output]
    model.graph.node.extend(
        [
            helper.make_node("Loop", ["rounds", "yes", "zero"], ["looped"], body=body),
            helper.make_node("Add", [f"{first}_", "looped"], [first]),
        ]
    )


_VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    10**30,
    10**400,
    1.5,
    "x",
    "",
    [],
    {},
    [None],
    "\x1b[2J",
)
_KEYS = (
    "model",
    "nc",
    "names",
    "input",
    "outputs",
    "levels",
    "source",
    "precision",
    "target",
    "opset",
    "payload_digest",
    "thresholds",
    "licence",
    "tools",
    "parity",
    "probes",
    "schema",
)
PARITIES: tuple[Any, ...] = (
    {"status": 5},
    {"status": ["passed"]},
    {"status": "unverified", "reason": ["\n"]},
    {"status": "unverified", "reason": "\x1b[2J"},
    {"status": "passed", "measured": 5},
    {"problems": 1},
    {"status": "unverified", "reason": "x" * 10**6},
    {"status": "passed\n"},
    {str(i): i for i in range(9999)},
    {"a": mutate.deep(30)},
    {"a": mutate.deep(500)},
)


def _set(value: Any, *way: Any) -> Edit:
    def edit(manifest: Manifest) -> None:
        holder: Any = manifest
        for key in way[:-1]:
            holder = holder[key]
        holder[way[-1]] = value

    return edit


MANIFESTS: dict[str, Edit] = {
    **{f"{key} is {str(value)[:12]!a}": _set(value, key) for key in _KEYS for value in _VALUES},
    **{f"parity {mutate.dumps(value)[:24]}": _set(value, "parity") for value in PARITIES},
    "probe of batch 1024": _set(1024, "probes", 0, "batch"),
    "probe of an odd recipe": _set("__import__", "probes", 0, "recipe"),
    "probe of another output": _set("x", "probes", 0, "samples", 0, "output"),
    "indices beyond": _set([10**12], "probes", 0, "samples", 0, "indices"),
    "scale is 1e308": _set(1e308, "probes", 0, "samples", 0, "scale"),
    "values are 1e308": lambda m: m["probes"][0]["samples"][0].update(
        values=[1e308] * len(m["probes"][0]["samples"][0]["values"])
    ),
    "tolerance is tiny": _set(1e-300, "probes", 0, "tolerance"),
    "input of 16384": lambda m: m["input"].update(height=16384, width=16384),
    "input scale is 255": _set(255.0, "input", "scale"),
    "input is int8": _set("int8", "input", "dtype"),
    "input is NHWC": _set("NHWC", "input", "layout"),
    "input name": _set("x", "input", "name"),
    "batch is dynamic": lambda m: [
        _set("dynamic", "input", "batch")(m),
        [o["shape"].__setitem__(0, "dynamic") for o in m["outputs"]],
    ],
    "batch is 1024": lambda m: [
        _set(1024, "input", "batch")(m),
        [o["shape"].__setitem__(0, 1024) for o in m["outputs"]],
    ],
    "anchors are 1e5": lambda m: [level.update(anchors=[[1e5, 1e5]] * 3) for level in m["levels"]],
    "activation is none": lambda m: [o.update(activation="sigmoid") for o in m["outputs"]],
    "quantised outputs": lambda m: [
        o.update(dtype="int8", scale=0.0, zero_point=10**9) for o in m["outputs"]
    ],
    "scale of outputs is NaN": lambda m: [o.update(scale=float("nan")) for o in m["outputs"]],
    "max_det of 10**5": _set(100_000, "thresholds", "max_det"),
    "conf of 0": _set(0.0, "thresholds", "conf"),
    "schema 1": _set(1, "schema"),
    "schema 1 of lists": lambda m: m.update(schema=1, outputs=[1], input=[]),
    "schema 10**400": _set(10**400, "schema"),
    **{
        f"name {ascii(name)[:24]}": lambda m, n=name: m["names"].__setitem__(0, n)  # type: ignore[misc]
        for name in mutate.NAMES
    },
    **{f"licence {ascii(name)[:24]}": _set(name, "licence") for name in mutate.NAMES[:30]},
}
TEXTS = {
    "deep": "[" * 100_000,
    "deep objects": '{"a":' * 50_000,
    "digits": "9" * 10_000,
    "nothing": "",
    "a list": "[]",
    "NaN": '{"a":NaN}',
    "5 MB": '{"a":"' + "x" * 5_000_000 + '"}',
    "two keys": '{"a":1,"a":2}',
    "surrogate": '{"a":"\\ud800"}',
}


def _put(value: Any, name: str, *messages: Any) -> None:
    for message in messages:
        setattr(message, name, value)


def _weights(change: Callable[[bytes], bytes]) -> Callable[[Any], None]:
    def edit(model: Any) -> None:
        for tensor in model.graph.initializer:
            if tensor.raw_data:
                tensor.raw_data = change(tensor.raw_data)

    return edit


GRAPHS: dict[str, Callable[[Any], object]] = {
    "external data in the secret": _external("../outside/secret.bin"),
    "external data absolute": _external("/etc/passwd"),
    "external data of a device": _external("/dev/zero"),
    "external data of itself": _external("a.onnx"),
    "external data with a zero": _external("a\0b"),
    "external data of nothing": _external(""),
    "external data in an attribute": _external_attribute("../outside/secret.bin"),
    "a custom operator": _operator("y7edge_canary", "Run"),
    "an operator of Microsoft": _operator("com.microsoft", "FusedConv"),
    "an unknown operator": _operator("", "Exec"),
    "a tensor of 40 GB": _constant_bomb,
    "an endless loop": _loop,
    "no nodes": lambda m: m.graph.ClearField("node"),
    "no outputs": lambda m: m.graph.ClearField("output"),
    "no inputs": lambda m: m.graph.ClearField("input"),
    "opset 0": lambda m: _put(0, "version", m.opset_import[0]),
    "opset 2**62": lambda m: _put(2**62, "version", m.opset_import[0]),
    "ir version 2**62": lambda m: _put(2**62, "ir_version", m),
    "names of escapes": lambda m: _put("\x1b[2J\n", "name", *m.graph.node),
    "an operator of escapes": _operator("", "\x1b[2J\u202e"),
    "weights are NaN": _weights(lambda data: b"\xff" * len(data)),
    "initializers are cut": _weights(lambda data: data[:-1]),
    "dimensions of 2**62": lambda m: [t.dims.append(2**62) for t in m.graph.initializer[:1]],
    "dimensions of -1": lambda m: [t.dims.append(-1) for t in m.graph.initializer[:1]],
    "a cycle": lambda m: m.graph.node[0].input.append(m.graph.node[-1].output[0]),
    "twice the output": lambda m: m.graph.node.append(m.graph.node[0]),
}


def _prefixed(data: bytes) -> Make:
    """Put extra fields before a valid model."""
    from y7edge.runtimes import _modelproto

    return lambda place: _onnx(
        place,
        manifest_of(place),
        data + _modelproto.without_metadata(place.material / "model.onnx"),
    )


RAW: dict[str, Make] = {
    "a million empty fields": _prefixed(b"\x12\0" * 1_000_000),
    "five million empty fields": _prefixed(b"\x12\0" * 5_000_000),
    "300,000 metadata entries": _prefixed(_bytes(14, _bytes(1, b"a")) * 300_000),
    "metadata of 20 million fields": _prefixed(_bytes(14, b"\x08\x01" * 2_000_000)),
    "a number without an end": _prefixed(b"\x08" + b"\x80" * 20),
    "field 0": _prefixed(b"\x00\x00"),
    "a group": _prefixed(b"\x0b"),
    "a length of 2**63": _prefixed(b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\x7f"),
    "two graphs": _prefixed(_bytes(7, b"")),
    "a nested graph": _prefixed(_bytes(7, b"\x0a\0" * 100_000)),
    "functions": _prefixed(_bytes(25, _bytes(1, b"f")) * 1000),
}


def _onnx_mutated(place: Place) -> Path:
    rng = place.rng
    what = rng.random()
    if what < 0.6:
        return _onnx(place, mutate.tree(rng, manifest_of(place)))
    if what < 0.9:
        from y7edge.runtimes import _modelproto

        payload = _modelproto.without_metadata(place.material / "model.onnx")
        edge = rng.choice((64, 400, 4000, len(payload)))
        head, tail = (payload[:edge], payload[edge:])
        return _onnx(place, manifest_of(place), mutate.raw(rng, head) + tail)
    path = place.copy("model.onnx")
    mutate.file(rng, path)
    return path


# --- readers --------------------------------------------------------------------------------------


def info(path: Path) -> None:
    """Describe the artifact, as JSON and as text."""
    from y7edge.cli.info import info as describe

    describe(str(path), as_json=True)
    describe(str(path))


def detect(path: Path) -> None:
    """Open the artifact and run detection."""
    import warnings

    from y7edge import Detector

    with warnings.catch_warnings(record=True) as said, Detector(path) as detector:
        found = detector(np.full((40, 60, 3), 99, np.uint8))
        json.dumps(found.to_dict(), allow_nan=False)
    assert all(len(str(w.message)) < 3000 for w in said), "a long warning"


def selftest(path: Path) -> None:
    """Run the probes of the artifact."""
    from y7edge.detect.selftest import selftest as repeat

    json.dumps(repeat(path).to_dict())


def digest(path: Path) -> None:
    """Load the artifact and check its payload."""
    from y7edge.runtimes import registry

    registry.check_payload(registry.load(path))


def gate(path: Path) -> None:
    """Prepare a benchmark of the code around the engine."""
    from y7edge.benchmark.hotpath import busy_outputs
    from y7edge.runtimes import registry

    busy_outputs(registry.load(path).manifest, 0)


COMMANDS = (
    "info {}",
    "info {} --json",
    "selftest {} --json",
    "verify {} --against {material}/model.safetensors",
    "predict {} {material}/images --json",
    "benchmark {} --runs 1 --warmup 1 --json --threads 1",
    "build {} --target openvino --out {out}.xml",
    "val {} --data {material}/yolo --json --save {out}",
)
ATTACKS = (
    Attack(
        "onnx",
        620,
        {
            **{k: _edited(v) for k, v in MANIFESTS.items()},
            **{k: _text(v) for k, v in TEXTS.items()},
            **{k: _graph(v) for k, v in GRAPHS.items()},
            **RAW,
        },
        _onnx_mutated,
        {"info": info, "detect": detect, "selftest": selftest, "digest": digest, "gate": gate},
        COMMANDS,
    ),
)
