"""Inputs: names and paths, special files, videos."""

from __future__ import annotations

import csv
import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.attack import mutate
from tests.attack.base import Attack, Make, Place
from tests.attack.sets import check, fix, load
from y7edge.sources.replay import INDEX

# --- names of files and folders -------------------------------------------------------------------

_FILE_NAMES = [
    *(
        "a\nb",
        "a\tb",
        "\x1b[2J\x07",
        "\u202egpj",
        "\u2028",
        "-rf",
        "--help",
        "=cmd|A0",
        "a,b;c",
        "a'b",
    ),
    *('a"b', "a b", " ", "a\\b", "%s%n", "{0}", "$HOME", "`id`", "é" * 60, "🚀", "\ufeff", "\x7f"),
    *(
        "\udcff\udcfe",
        "caf\udce9",
        "x" * 240,
        "..a",
        "...",
        "~",
        "a:b",
        "C:",
        "con",
        "nul",
        "[a-z]*",
    ),
    *(
        "<b>a",
        "&amp;",
        "#1",
        "http:",
        "concat:a|b",
        "file:",
        "%00",
        "a\x9b31m",
        "\u200d\u200b",
        "@a",
    ),
]


def _named(name: str, place: str) -> Make:
    def make(at: Place) -> Path:
        root = at.copy("yolo")
        safe = name.replace("/", "_")
        if place == "images":
            for kind, suffix in (("images", ".jpg"), ("labels", ".txt")):
                path = root / kind / "train" / f"train0{suffix}"
                path.rename(path.with_name(f"{safe}{suffix}"))
        elif place == "folder":
            (root / "images/train").rename(root / "images" / safe)
            (root / "labels/train").rename(root / "labels" / safe)
            (root / "data.yaml").write_text("train: images\nval: images/val\nnames: [a, b, c]\n")
        elif place == "root":
            return Path(shutil.move(root, at.inside / safe))
        else:
            (root / "images/train" / safe).write_bytes(b"something")
            (root / "labels/train" / f"{safe}.txt").write_bytes(b"0 0.5 0.5 0.2 0.2\n")
        return root

    return make


NAMES: dict[str, Make] = {
    f"{place} {ascii(name)[:20]}": _named(name, place)
    for name in _FILE_NAMES
    for place in ("images", "folder", "root", "others")
}


def evaluate(path: Path) -> None:
    """Evaluate an artifact on the data set and save all outputs."""
    from y7edge.cli import val

    val.val(
        str(_material(path) / "model.onnx"),
        data=path,
        split="val",
        imgsz=None,
        backend="auto",
        device="auto",
        threads=1,
        save=Path("made"),
        coco_ids=False,
        as_json=True,
    )
    for table in Path("made").rglob("*.csv"):
        with table.open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
            cells = [cell for row in csv.reader(stream) for cell in row]
        assert not any(cell.startswith(("=", "+", "@", "\t")) for cell in cells), "a formula in CSV"


def _material(path: Path) -> Path:
    inputs = next(parent for parent in path.absolute().parents if parent.name == "inputs")
    return inputs.parent / "material"


# --- special files --------------------------------------------------------------------------------


def _socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)
    try:
        socket.socket(socket.AF_UNIX).bind(path.name[:90])
    finally:
        os.chdir(here)


KINDS: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "socket": _socket,
    "folder": Path.mkdir,
    "link to itself": lambda path: path.symlink_to(path.name),
    "link to nothing": lambda path: path.symlink_to("nothing"),
    "link to zero": lambda path: path.symlink_to("/dev/zero"),
    "link to null": lambda path: path.symlink_to("/dev/null"),
    "link to random": lambda path: path.symlink_to("/dev/urandom"),
    "link to memory": lambda path: path.symlink_to("/proc/self/mem"),
    "link to the parent": lambda path: path.symlink_to(".."),
    "link to the root": lambda path: path.symlink_to("/proc/self/root/proc/self/fd"),
    "sparse file of 1 TB": lambda path: _sparse(path, 1 << 40),
    "sparse file of 3 GB": lambda path: _sparse(path, 3 << 30),
    "empty file": lambda path: path.write_bytes(b""),
}
PLACES = {
    "a label": "yolo/labels/train/train0.txt",
    "an image": "yolo/images/train/train0.jpg",
    "a folder of images": "yolo/images/train",
    "a folder of labels": "yolo/labels/train",
    "data.yaml": "yolo/data.yaml",
    "a COCO file": "coco/annotations/instances_train.json",
    "a VOC file": "voc/Annotations/train0.xml",
    "a VOC list": "voc/ImageSets/Main/train.txt",
}
FILES = (
    "model.safetensors",
    "zip.pt",
    "model.onnx",
    "model.xml",
    "model.bin",
    "recipe.yaml",
    "a.mp4",
    "a.gif",
    "a.jpg",
    "a.json",
    "a.txt",
    "a.engine",
    "a.engine.json",
)


def _sparse(path: Path, size: int) -> None:
    """Write a large sparse file."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, hard))
    with path.open("wb") as stream:
        stream.truncate(size)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _in_set(kind: Callable[[Path], object], inner: str) -> Make:
    def make(place: Place) -> Path:
        root = place.copy(inner.split("/")[0])
        path = place.inside / inner
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
        kind(path)
        return root

    return make


def _alone(kind: Callable[[Path], object], name: str) -> Make:
    def make(place: Place) -> Path:
        path = place.inside / name
        kind(path)
        if name == "model.bin":
            place.copy("model.xml")
            return path.with_suffix(".xml")
        if name == "a.engine.json":
            path.with_suffix("").write_bytes(b"x")
            return path.with_suffix("")
        return path

    return make


def _in_run(kind: Callable[[Path], object], name: str) -> Make:
    def make(place: Place) -> Path:
        folder = place.copy("run")
        (folder / name).unlink(missing_ok=True)
        (folder / "state-previous.safetensors").unlink(missing_ok=True)
        kind(folder / name)
        return folder

    return make


SPECIAL_SETS: dict[str, Make] = {
    f"{place} is a {name}": _in_set(kind, inner)
    for place, inner in PLACES.items()
    for name, kind in KINDS.items()
}
SPECIAL_FILES: dict[str, Make] = {
    f"{file} is a {name}": _alone(kind, file) for file in FILES for name, kind in KINDS.items()
}
SPECIAL_RUNS: dict[str, Make] = {
    f"{file} is a {name}": _in_run(kind, file)
    for file in ("state.safetensors", "config.yaml", "results.csv", "last.safetensors")
    for name, kind in KINDS.items()
}


def open_any(path: Path) -> None:
    """Open the file by its suffix."""
    from y7edge.data import dataset
    from y7edge.models import weights
    from y7edge.runtimes import registry
    from y7edge.sources.uri import open_source
    from y7edge.train.settings.configfile import choose

    suffix = path.suffix
    if suffix in (".safetensors", ".pt"):
        weights.load(path)
    elif suffix in (".onnx", ".xml", ".engine"):
        registry.check_payload(registry.load(path))
    elif suffix == ".yaml":
        choose(str(path), "yolov7")
    elif suffix in (".json", ".txt"):
        dataset.load(path)
    else:
        for _ in open_source(path):
            pass


def as_set(path: Path) -> None:
    """Read it as a data set."""
    from y7edge.data.check.examine import examine

    examine(path)


def as_model(path: Path) -> None:
    """Read it as a model."""
    from y7edge import Detector

    Detector(path).close()


def resume(path: Path) -> None:
    """Resume the run."""
    from tests.attack.runs import resume as go_on

    go_on(path)


# --- destinations ---------------------------------------------------------------------------------


def _destination(kind: Callable[[Path], object], name: str) -> Make:
    def make(place: Place) -> Path:
        path = place.inside / name
        kind(path)
        return path

    return make


DESTINATIONS: dict[str, Make] = {
    f"{name} is a {kind}": _destination(make, name)
    for name in ("out.onnx", "out.safetensors", "out", "out.html")
    for kind, make in KINDS.items()
    if "sparse" not in kind and kind != "link to the root"
}
DESTINATION_COMMANDS = (
    "export {material}/model.safetensors --imgsz 64x96 --out {}",
    "build {material}/model.onnx --target openvino --out {}",
    "data check {material}/yolo --fix {}",
    "data check {material}/yolo --save {}",
    "val {material}/model.onnx --data {material}/yolo --save {}",
    "predict {material}/model.onnx {material}/images/a.jpg --save {}",
    "train --data {material}/yolo --imgsz 32 --width 0.125 --epochs 1 --no-report --out {}",
)


# --- videos ---------------------------------------------------------------------------------------


def _video(place: Place) -> Path:
    source = place.rng.choice(sorted((place.material / "videos").iterdir()))
    path = place.inside / f"a{source.suffix}"
    path.write_bytes(mutate.raw(place.rng, source.read_bytes()))
    return path


def _renamed(name: str, source: str) -> Make:
    def make(place: Place) -> Path:
        path = place.inside / name
        shutil.copyfile(place.material / source, path)
        return path

    return make


def _bytes(name: str, content: bytes) -> Make:
    def make(place: Place) -> Path:
        path = place.inside / name
        path.write_bytes(content)
        return path

    return make


_PLAYLIST = b"#EXTM3U\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:10.0,\n{}\n#EXT-X-ENDLIST\n"
VIDEOS: dict[str, Make] = {
    **{
        f"{source} as {name}": _renamed(name, source)
        for name in ("a.mp4", "a.gif", "a.avi", "a.jpg", "a.y4m", "a.ts")
        for source in ("videos/v.avi", "videos/v.gif", "images/a.png", "model.onnx")
    },
    "playlist of a secret": _bytes("a.mp4", _PLAYLIST.replace(b"{}", b"file:///etc/passwd")),
    "playlist of the network": _bytes("a.ts", _PLAYLIST.replace(b"{}", b"http://127.0.0.1:1/a.ts")),
    "concat script": _bytes("a.mp4", b"ffconcat version 1.0\nfile /etc/passwd\n"),
    "y4m of 2**31": _bytes("a.y4m", b"YUV4MPEG2 W2147483647 H2147483647 F25:1\nFRAME\n"),
    "y4m of 16384": _bytes("a.y4m", b"YUV4MPEG2 W16384 H16384 F25:1\nFRAME\n" + bytes(1000)),
    "y4m of 0": _bytes("a.y4m", b"YUV4MPEG2 W0 H0 F0:0\nFRAME\n"),
    "y4m of rate 0": _bytes("a.y4m", b"YUV4MPEG2 W4 H4 F25:0\n" + b"FRAME\n" + bytes(24)),
    "y4m of 200,000 frames": _bytes(
        "a.y4m", b"YUV4MPEG2 W2 H2 F25:1\n" + (b"FRAME\n" + bytes(6)) * 200_000
    ),
    "gif of 65535": _bytes(
        "a.gif",
        b"GIF89a\xff\xff\xff\xff\x80\0\0" + bytes(6) + b",\0\0\0\0\xff\xff\xff\xff\0\2\2L\1\0;",
    ),
    "gif of many frames": _bytes(
        "a.gif",
        b"GIF89a\1\0\1\0\x80\0\0" + bytes(6) + b",\0\0\0\0\1\0\1\0\0\2\2D\1\0" * 50_000 + b";",
    ),
    "zeros": _bytes("a.mp4", bytes(100_000)),
    "nothing": _bytes("a.mkv", b""),
    "mp4 of huge boxes": _bytes(
        "a.mp4", b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom\0\0\0\1moov" + b"\xff" * 64
    ),
}


def frames(path: Path) -> None:
    """Read up to ten thousand frames."""
    from y7edge.sources.uri import open_source

    for index, image in enumerate(open_source(path)):
        assert image.image.ndim == 3
        assert image.image.dtype == np.uint8
        if index > 10_000:
            break


# --- recordings -----------------------------------------------------------------------------------


def _index(place: Place, **changed: object) -> bytes:
    """Return the lines of a recording of five frames, with the images beside them."""
    lines = []
    for number in range(5):
        shutil.copyfile(place.material / "images" / "a.png", place.inside / f"{number}.png")
        record = {
            "file": f"{number}.png",
            "timestamp_ns": 10**12 + 10**7 * number,
            "clock": "driver",
            "sequence": number,
            "format": "bgr",
            "source": "csi://0",
            "rate": 30.0,
        }
        lines.append(json.dumps(record | changed).encode() + b"\n")
    return b"".join(lines)


def _recording(place: Place) -> Path:
    (place.inside / INDEX).write_bytes(mutate.raw(place.rng, _index(place)))
    return place.inside


def _changed(**changed: object) -> Make:
    def make(place: Place) -> Path:
        (place.inside / INDEX).write_bytes(_index(place, **changed))
        return place.inside

    return make


def _lines(content: bytes) -> Make:
    def make(place: Place) -> Path:
        (place.inside / INDEX).write_bytes(content)
        return place.inside

    return make


def _link(place: Place) -> Path:
    (place.inside / INDEX).write_bytes(_index(place))
    (place.inside / "0.png").unlink()
    (place.inside / "0.png").symlink_to(place.outside)
    return place.inside


RECORDINGS: dict[str, Make] = {
    **{
        f"file is {name!a}": _changed(file=name)
        for name in (*_FILE_NAMES, "../0.png", "/etc/passwd")
    },
    **{
        f"{key} is {value!r:.40}": _changed(**{key: value})
        for key in ("timestamp_ns", "sequence", "rate", "source", "clock", "file")
        for value in (-1, 10**400, 1e308, "", None, [], {}, True, "\x1b[2J", "x" * 100_000)
    },
    "image is a link": _link,
    "no lines": _lines(b""),
    "zeros": _lines(bytes(100_000)),
    "one long line": _lines(b"[" * 1_000_000),
    "many lines": _lines(b"{}\n" * 20_000),
}


def replay(path: Path) -> None:
    """Read all frames of the recording, and report the others."""
    from y7edge.errors import SourceSkipped
    from y7edge.sources.uri import open_source

    with open_source(f"replay://{path}") as source:
        while True:
            try:
                frame = source.read()
            except SourceSkipped as error:
                assert "\n" not in str(error)
                continue
            if frame is None:
                return
            assert frame.image.ndim == 3
            assert frame.clock == "recorded"


ATTACKS = (
    Attack(
        "name",
        260,
        NAMES,
        None,
        {"load": load, "check": check, "fix": fix, "evaluate": evaluate},
        (
            "data check {}",
            "data check {} --fix {out} --save {out}.html --json",
            "predict {material}/model.onnx {}/images/train --save {out}",
            "val {material}/model.onnx --data {} --save {out}",
        ),
    ),
    Attack(
        "special set",
        170,
        SPECIAL_SETS,
        None,
        {"load": load, "check": check, "fix": fix},
        ("data check {}", "data check {} --fix {out}"),
    ),
    Attack(
        "special file",
        170,
        SPECIAL_FILES,
        None,
        {"open": open_any, "as a set": as_set, "as a model": as_model},
        (
            "info {}",
            "predict {} {material}/images/a.jpg",
            "predict {material}/model.onnx {}",
            "data check {}",
            "selftest {}",
            "val {} --data {}",
            "train --data {} --recipe {}",
        ),
    ),
    Attack("special run", 50, SPECIAL_RUNS, None, {"resume": resume}, ("train --resume {}",)),
    Attack("destination", 40, DESTINATIONS, None, {}, DESTINATION_COMMANDS),
    Attack(
        "video",
        220,
        VIDEOS,
        _video,
        {"frames": frames},
        ("predict {material}/model.onnx {} --json --save {out}",),
    ),
    Attack(
        "recording",
        120,
        RECORDINGS,
        _recording,
        {"replay": replay},
        ("predict {material}/model.onnx replay://{} --json --save {out}",),
    ),
)
