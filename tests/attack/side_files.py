"""Inputs: artifacts of several files (OpenVINO, sidecar manifests) with matching digests."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from xml.sax.saxutils import quoteattr

from tests.attack import mutate
from tests.attack.artifacts import (
    COMMANDS,
    MANIFESTS,
    TEXTS,
    Edit,
    detect,
    digest,
    info,
    manifest_of,
    seal,
)
from tests.attack.base import Attack, Make, Place
from tests.attack.guard import MARK


def _xml(
    place: Place,
    manifest: object,
    edit: Callable[[str], str] = lambda t: t,
    weights: Callable[[bytes], bytes] = lambda d: d,
) -> Path:
    """Write an .xml and a .bin file with a manifest whose digests match."""
    from y7edge.artifact.artifact import digest_files

    path = place.inside / "a.xml"
    text = (place.material / "model.xml").read_text(encoding="utf-8")
    bare = edit(re.sub(r"<y7edge>.*?</y7edge>", "", text, flags=re.DOTALL))
    data = bare.encode("utf-8", "surrogateescape")
    path.with_suffix(".bin").write_bytes(weights((place.material / "model.bin").read_bytes()))
    path.write_bytes(data)
    if isinstance(manifest, dict) and manifest.get("payload_digest"):
        files = (path, path.with_suffix(".bin"))
        manifest = {**manifest, "payload_digest": digest_files(files, first=data)}
    sealed = manifest if isinstance(manifest, str) else seal(manifest)
    element = f"<y7edge><manifest value={quoteattr(sealed)}/></y7edge></rt_info>"
    at = bare.rfind("</rt_info>")
    whole = bare if at < 0 else bare[:at] + element + bare[at + len("</rt_info>") :]
    path.write_bytes(whole.encode("utf-8", "surrogatepass"))
    return path


def _ir(edit: Callable[[str], str]) -> Make:
    return lambda place: _xml(place, manifest_of(place, "model.xml"), edit)


def _ir_manifest(edit: Edit) -> Make:
    def make(place: Place) -> Path:
        manifest = manifest_of(place, "model.xml")
        edit(manifest)
        return _xml(place, manifest)

    return make


def _whole(text: str) -> Make:
    def make(place: Place) -> Path:
        path = place.inside / "a.xml"
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        path.with_suffix(".bin").write_bytes(bytes(100))
        return path

    return make


def _ir_mutated(place: Place) -> Path:
    rng, manifest = place.rng, manifest_of(place, "model.xml")
    what = rng.random()
    if what < 0.4:
        return _xml(place, mutate.tree(rng, manifest))
    if what < 0.7:
        return _xml(
            place, manifest, lambda t: mutate.text(rng, t.encode()).decode("utf-8", "replace")
        )
    if what < 0.8:
        return _xml(place, manifest, weights=lambda d: mutate.raw(rng, d))
    path = place.copy("model.xml")
    place.copy("model.bin")
    mutate.file(rng, path)
    return path


_LAUGHS = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 12))
IRS: dict[str, Make] = {
    "a billion laughs": _whole(f'<!DOCTYPE x [<!ENTITY a0 "ha">{_LAUGHS}]><net>&a11;</net>'),
    "external entity": _whole(
        '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><net>&a;</net>'
    ),
    "deep": _whole("<net>" + "<a>" * 200_000),
    "deep rt_info": _whole("<net>" + "<rt_info>" * 50_000),
    "another root": _whole("<html/>"),
    "unknown encoding": _whole('<?xml version="1.0" encoding="x-nothing"?><net/>'),
    "nothing": _whole(""),
    "a million attributes": _whole("<net " + " ".join(f'a{i}=""' for i in range(200_000)) + "/>"),
    "an attribute twice": _whole('<net a="1" a="2"/>'),
    "no layers": _ir(lambda t: re.sub(r"<layers>.*</layers>", "<layers/>", t, flags=re.DOTALL)),
    "no edges": _ir(lambda t: re.sub(r"<edges>.*</edges>", "<edges/>", t, flags=re.DOTALL)),
    "offsets of 2**62": _ir(lambda t: re.sub(r'offset="\d+"', f'offset="{2**62}"', t)),
    "sizes of 2**62": _ir(lambda t: re.sub(r'size="\d+"', f'size="{2**62}"', t)),
    "dimensions of 2**40": _ir(lambda t: re.sub(r"<dim>\d+</dim>", f"<dim>{2**40}</dim>", t)),
    "dimensions of -1": _ir(lambda t: re.sub(r"<dim>\d+</dim>", "<dim>-1</dim>", t)),
    "types are unknown": _ir(lambda t: t.replace('type="Convolution"', f'type="{MARK}"')),
    "versions are unknown": _ir(lambda t: t.replace('version="opset1"', 'version="opset99"')),
    "precision is unknown": _ir(lambda t: t.replace('"f32"', '"f99"')),
    "ids are texts": _ir(lambda t: re.sub(r'layer id="\d+"', 'layer id="x"', t)),
    "ids are equal": _ir(lambda t: re.sub(r'layer id="\d+"', 'layer id="1"', t)),
    "names of escapes": _ir(
        lambda t: re.sub(r'layer id="(\d+)" name="[^"]*"', r'layer id="\1" name="&#x9b;31m"', t)
    ),
    "pads of 2**31": _ir(lambda t: re.sub(r'pads_begin="[^"]*"', 'pads_begin="2147483647, 1"', t)),
    "strides of 0": _ir(lambda t: re.sub(r'strides="[^"]*"', 'strides="0, 0"', t)),
    "weights are short": lambda p: _xml(p, manifest_of(p, "model.xml"), weights=lambda d: d[:-100]),
    "weights are empty": lambda p: _xml(p, manifest_of(p, "model.xml"), weights=lambda d: b""),
    "weights are NaN": lambda p: _xml(
        p, manifest_of(p, "model.xml"), weights=lambda d: b"\xff" * len(d)
    ),
    **{name: _ir_manifest(edit) for name, edit in list(MANIFESTS.items())[::4]},
    **{name: (lambda p, t=text: _xml(p, t)) for name, text in TEXTS.items()},  # type: ignore[misc]
}


# --- sidecars -------------------------------------------------------------------------------------


def _sidecar(content: Callable[[Place], bytes]) -> Make:
    """Write a file of an unknown format with a manifest beside it."""

    def make(place: Place) -> Path:
        path = place.inside / "a.engine"
        path.write_bytes(b"payload")
        path.with_name("a.engine.json").write_bytes(content(place))
        return path

    return make


def _side_edit(edit: Edit) -> Make:
    def content(place: Place) -> bytes:
        manifest = manifest_of(place)
        edit(manifest)
        return seal(manifest).encode("utf-8", "surrogatepass")

    return _sidecar(content)


def _side_mutated(place: Place) -> Path:
    def content(place: Place) -> bytes:
        if place.rng.random() < 0.7:
            text = seal(mutate.tree(place.rng, manifest_of(place)))
            return text.encode("utf-8", "surrogatepass")
        return mutate.raw(place.rng, seal(manifest_of(place)).encode())

    return _sidecar(content)(place)


SIDECARS: dict[str, Make] = {
    **{name: _side_edit(edit) for name, edit in MANIFESTS.items()},
    **{
        name: _sidecar(lambda p, t=text: t.encode("utf-8", "surrogatepass"))  # type: ignore[misc]
        for name, text in TEXTS.items()
    },
}


ATTACKS = (
    Attack(
        "openvino",
        260,
        IRS,
        _ir_mutated,
        {"info": info, "digest": digest, "detect": detect},
        COMMANDS[:3],
    ),
    Attack("sidecar", 160, SIDECARS, _side_mutated, {"info": info}, COMMANDS[:2]),
)
