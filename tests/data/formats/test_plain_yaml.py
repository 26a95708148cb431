"""The YAML reader: limits, tags and scalars."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import yaml

from y7edge.data.dataset import open_scan
from y7edge.data.formats.plain_yaml import as_text, as_value, read_yaml
from y7edge.errors import ConfigError, DataError
from y7edge.train.settings import configfile

LEVELS = range(1, 30)
GROWING = {
    "lists": "a0: &a0 [x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in LEVELS),
    "mappings": "a0: &a0 {k: x}\n" + "".join(
        f"a{i}: &a{i} {{b: *a{i - 1}, c: *a{i - 1}, d: *a{i - 1}}}\n" for i in LEVELS),
    "merges": "a0: &a0 {k: x}\n" + "".join(
        f"a{i}: &a{i}\n  <<: [*a{i - 1}, *a{i - 1}, *a{i - 1}, *a{i - 1}]\n  k{i}: x\n"
        for i in LEVELS),
    "wide": "a: &a [" + "x, " * 2000 + "]\nb: [" + "*a, " * 2000 + "]\n",
    "wide merge": "a: &a {" + ", ".join(f"k{i}: x" for i in range(2000)) + "}\n"
        + "b:\n" + "- <<: *a\n" * 2000,
    "values": "b: [" + "x," * 211_000 + "]",
    "keys": "".join(f"k{i}:\n" for i in range(106_000)),
}  # fmt: skip
DEEP = {
    "lists": "a: " + "[" * 100_000,
    "mappings": "a: " + "{b: " * 100_000,
    "dashes": "- " * 100_000,
    "indented": "".join(f"{' ' * i}a:\n" for i in range(2000)),
    "closed": "a: " + "[" * 900 + "]" * 900,
}
REFUSED = {
    "itself": "&a [*a]",
    "itself, later": "a: &a\n  b: {c: *a}\n",
    "no anchor": "a: *b\n",
    "object": "a: !!python/object/apply:os.system [true]\n",
    "name": "a: !!python/name:os.system\n",
    "own": "a: !mine x\n",
    "set": "a: !!set {x, y}\n",
    "pairs": "a: !!omap [x: 1]\n",
    "bytes": "a: !!binary aGVsbG8=\n",
    "time": "a: !!timestamp 2020-01-01\n",
    "merged": "a: !!merge x\n",
    "documents": "a: 1\n---\nb: 2\n",
    "list as key": "? [a, b]\n: 1\n",
    "alias as key": "a: &a b\n*a : 1\n",
    "merge of text": "<<: x\n",
    "tab": "a:\n\t- b\n",
    "zero": "a: \x00\n",
    "size": f"a: 1\n{'#' * (5 << 20)}\n",
}


@pytest.fixture(params=["libyaml", "python"])
def loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "python":
        monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    elif not yaml.__with_libyaml__:
        pytest.skip("PyYAML without libyaml")
    return request.param


@pytest.mark.parametrize("case", [*GROWING, *(f"deep {k}" for k in DEEP), *REFUSED])
@pytest.mark.usefixtures("loader")
def test_unsafe_yaml_is_refused(case: str, tmp_path: Path) -> None:
    text = {**GROWING, **{f"deep {k}": v for k, v in DEEP.items()}, **REFUSED}[case]
    path = tmp_path / "data.yaml"
    path.write_text(text)
    start = time.process_time()
    with pytest.raises(DataError, match=r"data\.yaml: expected a data.yaml") as data:
        open_scan(path)
    assert time.process_time() - start < 10
    if case == "keys":
        return
    with pytest.raises(ConfigError, match=r"data\.yaml: ") as run:
        configfile.read(path)
    assert str(run.value).split(": ", 1)[1] == str(data.value).split("a data.yaml: ", 1)[1]


@pytest.mark.parametrize("file", ["recipe", "run", "data"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_special_files_are_refused(kind: str, file: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    read = {
        "recipe": lambda: configfile.choose(str(path), "yolov7"),
        "run": lambda: configfile.read(path),
        "data": lambda: open_scan(path),
    }[file]
    with pytest.raises((ConfigError, DataError), match=rf"x\.yaml: .*(a {kind}|no image)"):
        read()


SURPRISES = ["no", "on", "Yes", "off", "y", "1_000", "2020-01-01", "0x10", "010", "0b1", "~",
             "null", "1:30", "1e3", ".inf", "!", "=", "<", "12:30:45", "True", "1."]  # fmt: skip


@pytest.mark.usefixtures("loader")
def test_class_names_are_texts(tmp_path: Path) -> None:
    path, names = tmp_path / "data.yaml", [n for n in SURPRISES if n != "!"]
    path.write_text("train: .\nnames:\n" + "".join(f"  - {name}\n" for name in names))
    assert open_scan(path).names == names
    path.write_text("train: .\nnames:\n" + "".join(f"  {i}: {n}\n" for i, n in enumerate(names)))
    assert open_scan(path).names == names


@pytest.mark.parametrize(
    ("text", "value"),
    [("10", 10), ("010", 10), ("-7", -7), ("1e-3", 1e-3), ("5.", 5.0), (".5", 0.5), ("on", True),
     ("No", False), ("~", None), ("", None), ("null", None), ("0x10", "0x10"), ("'5'", "5"),
     ("1_000", "1_000"), ("2020-01-01", "2020-01-01"), ("1:30", "1:30"), ("!!str 5", "5"),
     (".inf", float("inf")), ("-.INF", float("-inf")), ("1e999", float("inf")), ("! 5", "5"),
     ("9" * 5000, float("inf")), ("\u0663", "\u0663"), ("nan", "nan"), ("infinity", "infinity")],
)  # fmt: skip
@pytest.mark.usefixtures("loader")
def test_scalar_values(text: str, value: object, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(f"a: {text}\n", encoding="utf-8")
    (found,) = read_yaml(tmp_path / "x.yaml", as_value).content.values()
    assert (found, type(found)) == (value, type(value))


@pytest.mark.usefixtures("loader")
def test_aliases_and_merges(tmp_path: Path) -> None:
    text = "base: &b {x: 1, y: 2}\nother:\n  <<: *b\n  y: 3\nlist: &l [p, q]\nsame: *l\n"
    (tmp_path / "x.yaml").write_text(text)
    tree = read_yaml(tmp_path / "x.yaml", as_text)
    assert tree.content["other"] == {"x": "1", "y": "3"}
    assert tree.content["same"] == ["p", "q"]
    assert tree.lines == {"base": 1, "other": 2, "list": 5, "same": 6}


@pytest.mark.usefixtures("loader")
def test_twenty_thousand_names(tmp_path: Path) -> None:
    path = tmp_path / "data.yaml"
    path.write_text("train: .\nnames:\n" + "".join(f"  {i}: class {i}\n" for i in range(20_000)))
    start = time.process_time()
    assert len(open_scan(path).names) == 20_000
    assert time.process_time() - start < 10


@pytest.mark.usefixtures("loader")
def test_escaped_emoji(tmp_path: Path) -> None:
    path = tmp_path / "data.yaml"
    path.write_text('train: .\nnames: ["\\ud83d\\ude00", "\\U0001F600"]\n')
    assert open_scan(path).names == ["\U0001f600"] * 2
