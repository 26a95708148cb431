"""Decoding into dataclasses: accepted values, and messages for others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from y7edge.artifact.schema import decode
from y7edge.errors import ArtifactError, CheckpointError, ConfigError

Number = float  # an alias: the spelling of an annotation says nothing


@dataclass(frozen=True)
class Inner:
    side: int
    scale: Number = 1.0

    def __post_init__(self):
        if self.side < 0:
            raise ConfigError(f"side is {self.side}, expected 0 or more")


@dataclass(frozen=True)
class Outer:
    text: str
    inner: Inner
    many: tuple[Inner, ...] = ()
    pair: tuple[int, float] = (0, 0.0)
    kind: Literal["a", "b"] = "a"
    dim: int | Literal["dynamic"] = 1
    maybe: Number | None = None
    path: Path | str | None = None
    flag: bool = False
    tools: Mapping[str, str] = field(default_factory=dict)
    free: Any = None


def outer(error=ArtifactError, **values):
    return decode(Outer, {"text": "t", "inner": {"side": 1}} | values, origin="f", error=error)


def test_every_kind_is_decoded_and_defaults_fill_the_rest():
    assert outer() == Outer("t", Inner(1))
    assert outer(
        many=[{"side": 2, "scale": 3}],
        pair=[1, 2],
        kind="b",
        dim="dynamic",
        maybe=4,
        path="a/b",
        flag=True,
        tools={"onnx": "1"},
        free=[{"any": None}],
    ) == Outer(
        "t", Inner(1), (Inner(2, 3.0),), (1, 2.0), "b", "dynamic", 4.0, Path("a/b"), True,
        {"onnx": "1"}, [{"any": None}],
    )  # fmt: skip
    assert isinstance(outer(maybe=4).maybe, float)
    assert outer(inner=Inner(7)).inner == Inner(7)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"txet": 1}, "f: there is no 'txet', did you mean 'text'?"),
        ({"inner": {"sid": 1}}, "f: inner: there is no 'sid', did you mean 'side'?"),
        ({"inner": {}}, "f: inner: expected an entry 'side', found none"),
        ({"inner": None}, "f: inner: expected named entries, found None"),
        ({"inner": {"side": -1}}, "f: inner: side is -1, expected 0 or more"),
        ({"many": [{"side": 1}, {"side": True}]}, "f: many[1].side: expected a whole number, "),
        ({"inner": {"side": 1.0}}, "f: inner.side: expected a whole number, found 1.0"),
        ({"inner": {"side": 1, "scale": float("nan")}}, "f: inner.scale: expected a finite number"),
        ({"maybe": float("inf")}, "f: maybe: expected a finite number, found inf"),
        ({"maybe": 10**400}, "f: maybe: expected a finite number, found 1000"),
        ({"maybe": True}, "f: maybe: expected a finite number, found True"),
        ({"maybe": "1"}, "f: maybe: expected a finite number, found '1'"),
        ({"flag": 1}, "f: flag: expected true or false, found 1"),
        ({"text": None}, "f: text: expected text, found None"),
        ({"kind": "c"}, "f: kind: expected 'a' or 'b', found 'c'"),
        ({"kind": ["a"]}, "f: kind: expected 'a' or 'b', found ['a']"),
        ({"dim": "open"}, "f: dim: expected a whole number or 'dynamic', found 'open'"),
        ({"path": 3}, "f: path: expected a path or text or null, found 3"),
        ({"pair": [1]}, "f: pair: expected a list of 2, found [1]"),
        ({"many": "ab"}, "f: many: expected a list, found 'ab'"),
        ({"tools": {1: "a"}}, "f: a key of tools: expected text, found 1"),
        ({"tools": [1]}, "f: tools: expected named entries, found [1]"),
        ({"tools": {"a": 1}}, "f: tools.a: expected text, found 1"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("error", [ArtifactError, CheckpointError, ConfigError])
def test_invalid_values_are_named_by_place(values, message, error):
    with pytest.raises(error) as caught:
        outer(error, **values)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("value", [None, [], "text", 1])
def test_dataclass_needs_named_entries(value):
    with pytest.raises(ArtifactError, match=r"^f: expected named entries, found"):
        decode(Outer, value, origin="f", error=ArtifactError)
