"""``y7edge info``: describe a variant, checkpoint or artifact, without torch and onnx."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from y7edge.cli.console import facts, note, show, table
from y7edge.cli.gate import accuracy_lines
from y7edge.cli.models import kind_of
from y7edge.cli.options import Json, Names, Size, out_file, variants
from y7edge.errors import ArtifactError, ConfigError
from y7edge.files import write_text, writing

if TYPE_CHECKING:
    from y7edge.artifact.artifact import Artifact
    from y7edge.artifact.manifest import Manifest
    from y7edge.models import Spec

_Subject = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        autocompletion=variants,
        help="A variant's name, a checkpoint or an artifact.",
    ),
]
_CHeader = Annotated[
    Path | None,
    typer.Option(
        "--c-header",
        metavar="FILE",
        help="Write the constants of an artifact as a C header for examples/cpp/y7edge.h; "
        "-: print it.",
        callback=out_file,
    ),
]


def info(
    model: _Subject = None,
    names: Names = None,
    imgsz: Size = None,
    c_header: _CHeader = None,
    as_json: Json = False,
) -> None:
    """Describe a variant, a checkpoint or an artifact.

    Without MODEL, lists the published variants. GFLOPs are 2 x the multiply-accumulates of the
    convolutions, for an input of --imgsz or of the model's own size. For an ONNX file of another
    exporter, prints what is assumed about it.
    """
    if c_header is not None:
        if as_json and str(c_header) == "-":
            raise ConfigError("--c-header - prints the header: omit --json, or name a file")
        _write_header(model, names, imgsz, c_header)
        if str(c_header) == "-":
            return
    if model is None:
        variants = _variants()
        rows = [
            (v["name"], v["parameters"], v["gflops"], v["imgsz"][0], _joined(v["strides"]))
            for v in variants
        ]
        lines = table([("name", "parameters", "GFLOPs", "at", "strides"), *rows])
        show({"variants": variants}, lines, as_json=as_json)
        return
    kind = kind_of(model)
    if kind == "artifact":
        record = _artifact(Path(model), names, imgsz)
    elif kind == "checkpoint":
        record = _checkpoint(Path(model), imgsz)
    else:
        from y7edge.models import registry

        record = {"kind": "variant", **_of_spec(registry.get(model), imgsz)}
    show(record, _lines(record), as_json=as_json)


def _write_header(
    model: str | None, names: list[str] | None, size: tuple[int, int] | None, file: Path
) -> None:
    from y7edge.artifact.c_header import c_header
    from y7edge.runtimes import registry as runtimes

    if model is None or kind_of(model) != "artifact":
        raise ConfigError(
            "--c-header describes an artifact: export one with `y7edge export`, and give its path"
        )
    text = c_header(runtimes.load_any(Path(model), names=names, imgsz=size).manifest)
    if str(file) == "-":
        print(text, end="")
        return
    with writing("the header", file):
        write_text(file, text)
    note(f"written to {file}")


def _variants() -> list[dict[str, Any]]:
    from y7edge.models import registry

    keys = ("name", "parameters", "gflops", "strides", "imgsz")
    records = [_of_spec(registry.get(name), None) for name in registry.names()]
    return [{key: record[key] for key in keys} for record in records]


def _of_spec(spec: Spec, size: tuple[int, int] | None) -> dict[str, Any]:
    """Return the record of a model, for an input of ``size`` (height, width)."""
    from y7edge.artifact.description import require_size
    from y7edge.models import shapes

    height, width = size or (spec.imgsz, spec.imgsz)
    require_size(spec, (height, width))
    channels = [len(a) * spec.outputs_per_anchor for a in spec.anchors]
    return {
        "name": spec.name,
        "form": spec.form,
        "activation": spec.activation,
        "parameters": shapes.parameters(spec),
        "gflops": round(shapes.gflops(spec, height, width), 3),
        "strides": spec.strides,
        "nc": spec.nc,
        "names": [str(i) for i in range(spec.nc)],
        "inputs": [{"name": "images", "shape": ["dynamic", 3, height, width], "dtype": "float32"}],
        "outputs": [
            {
                "name": f"head{level}",
                "shape": ["dynamic", channels[level], height // stride, width // stride],
                "dtype": "float32",
            }
            for level, stride in enumerate(spec.strides)
        ],
        "opset": None,
        "precision": "fp32",
        "parity": None,
        "imgsz": [height, width],
    }


def _checkpoint(path: Path, size: tuple[int, int] | None) -> dict[str, Any]:
    from y7edge.artifact.manifest import Thresholds
    from y7edge.models import weights

    checkpoint = weights.load(path)
    meta = dict(checkpoint.meta)
    return {
        "kind": "checkpoint",
        **_of_spec(checkpoint.spec, size or checkpoint.imgsz),
        "names": list(checkpoint.names),
        "thresholds": asdict(Thresholds.of_checkpoint(meta)),
        "licence": meta.pop("licence", None),
        "digest": checkpoint.digest,
        "meta": meta,
    }


def _artifact(path: Path, names: list[str] | None, size: tuple[int, int] | None) -> dict[str, Any]:
    from y7edge.runtimes import registry as runtimes

    artifact = runtimes.load_any(path, names=names, imgsz=size)
    manifest, foreign = artifact.manifest, artifact.foreign
    record = {**_described(manifest), **_backend(path)}
    record["files"] = _files(artifact, read=record["backend"] is not None)
    if foreign is None:
        return record
    if "suppression" in foreign.assumed:
        record |= {"strides": [], "thresholds": None}
    unknown = dict.fromkeys(("form", "parameters", "gflops", "source", "opset"))
    return {**record, **unknown, "layout": foreign.form, "assumed": foreign.assumed}


def _files(artifact: Artifact, *, read: bool) -> list[Path]:
    """Return all files of an artifact. ``read``: whether a runtime reads it, and named them."""
    from y7edge.artifact.artifact import sidecar

    return [*artifact.files, *(() if read else (sidecar(artifact.path),))]


def _described(manifest: Manifest) -> dict[str, Any]:
    return {
        "kind": "artifact",
        "name": manifest.model,
        "form": "folded",
        "parameters": manifest.source.parameters,
        "gflops": manifest.source.gflops,
        "strides": manifest.strides,
        "nc": manifest.nc,
        "names": list(manifest.names),
        "inputs": [{**asdict(manifest.input), "shape": manifest.input.shape}],
        "outputs": [asdict(output) for output in manifest.outputs],
        "opset": manifest.opset,
        "precision": manifest.precision,
        "parity": manifest.parity,
        "imgsz": [manifest.input.height, manifest.input.width],
        "target": manifest.target,
        "thresholds": asdict(manifest.thresholds),
        "licence": manifest.licence,
        "tools": manifest.tools,
        "engine": manifest.engine,
        "quantization": manifest.quantization and asdict(manifest.quantization),
        "source": asdict(manifest.source),
        "payload_digest": manifest.payload_digest,
        "digest": manifest.digest,
    }


def _backend(path: Path) -> dict[str, str | None]:
    """Return the name of the runtime that opens an artifact, and why."""
    from y7edge.runtimes import registry as runtimes

    try:
        runtime, why = runtimes.choose(path)
    except ArtifactError as error:  # artifacts without a proof may have no runtime
        return {"backend": None, "why": str(error)}
    return {"backend": runtimes.name_of(runtime), "why": why}


def _lines(record: dict[str, Any]) -> list[str]:
    """Format a record as lines of text, one for each value."""
    parity = record["parity"] or {}
    unverified = parity.get("status") == "unverified"
    flat = {
        **record,
        "strides": _joined(record["strides"]),
        "names": _joined(record["names"], at_most=12),
        "imgsz": "x".join(map(str, record["imgsz"])) + " (height x width)",
        "inputs": _tensors(record["inputs"]),
        "outputs": _tensors(record["outputs"]),
        "parity": f"unverified: {parity.get('reason')}" if unverified else parity.get("status"),
        "accuracy": _accuracy(parity),
        "thresholds": _thresholds(record.get("thresholds")),
        "licence": record.get("licence") or "not stated",
        "engine": _entries(record.get("engine")),
        "quantization": _quantization(record.get("quantization")),
    }
    if "files" in record:
        flat["files"] = " ".join(file.name for file in record["files"])
    if assumed := flat.pop("assumed", None):
        flat |= {f"assumed {subject}": text for subject, text in assumed.items()}
    hidden = ("tools", "source", "meta")
    return facts({key: value for key, value in flat.items() if key not in hidden})


def _accuracy(parity: dict[str, Any]) -> str | None:
    if not parity.get("accuracy"):
        return None
    from y7edge.artifact.reports import ParityReport

    return accuracy_lines(ParityReport.from_dict(parity))[0]


def _entries(values: dict[str, Any] | None) -> str | None:
    """Format what the file is tied to, without the entries that do not apply."""
    given = {key: value for key, value in (values or {}).items() if value not in (None, False, [])}
    return ", ".join(f"{key} {value}" for key, value in given.items()) or None


def _quantization(values: dict[str, Any] | None) -> str | None:
    if not values:
        return None
    kept = _joined(values["kept"]) or "no convolution"
    return (
        f"profile {values['profile']}, {values['share']:.1%} of the multiplications, ranges by "
        f"{values['ranges']} of {len(values['images'])} images; in float: {kept}"
    )


def _thresholds(values: dict[str, Any] | None) -> str | None:
    return f"confidence {values['conf']:g}, NMS IoU {values['iou']:g}" if values else None


def _tensors(tensors: list[dict[str, Any]]) -> str:
    return ", ".join(
        f"{t['name']} {_joined(t['shape'], 'x')} {t['dtype']}"
        + (" sigmoid" if t.get("activation") == "sigmoid" else "")
        for t in tensors
    )


def _joined(values: Any, separator: str = ", ", at_most: int = 100) -> str:
    texts = [str(value) for value in values]
    rest = f"{separator}... ({len(texts)})" if len(texts) > at_most else ""
    return separator.join(texts[:at_most]) + rest
