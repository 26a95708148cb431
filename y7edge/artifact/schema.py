"""Decode JSON and YAML into dataclasses, and check arguments of public functions.

Types are taken from annotations. Each dataclass checks the ranges of its fields itself, in
``__post_init__``.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, wraps
from pathlib import Path
from typing import (
    Any,
    Literal,
    NoReturn,
    ParamSpec,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import numpy as np

from y7edge.artifact.bounds import MAX_DEPTH
from y7edge.errors import ConfigError, Y7EdgeError

T = TypeVar("T")
P = ParamSpec("P")

_WORDS = {
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    str: "text",
    Path: "a path",
    tuple: "a list",
    Sequence: "a list",
    Iterable: "several values",
    Mapping: "named entries",
    Callable: "a function",
    type(None): "null",
}


class _MisfitError(Exception):
    """A value has the wrong type; ``place`` is its path, such as ``input.width``."""

    def __init__(self, place: str, problem: str) -> None:
        super().__init__(f"{place}: {problem}" if place else problem)


def decode(kind: type[T], values: object, *, origin: str, error: type[Y7EdgeError]) -> T:
    """Decode parsed JSON or YAML into the dataclass ``kind``.

    Fields may be dataclasses, ``int``, ``float``, ``bool``, ``str``, ``Path``, ``Any``,
    ``Literal`` of strings, tuples, mappings with string keys, and unions. An int is accepted as a
    float, a bool is not accepted as a number. For missing keys, the field's default is used.

    Raises:
        error: a key is unknown or missing, a value has the wrong type, or ``__post_init__`` raised
            an error. The message begins with ``origin`` and the path, such as ``input.width``.
    """
    try:
        made: T = _dataclass(kind, values, "")
    except _MisfitError as problem:
        raise error(f"{origin}: {problem}") from problem.__cause__
    return made


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a public function to check the types of its arguments at every call.

    Raises:
        ConfigError: an argument has the wrong type; the message begins with its name.
        TypeError: an argument is missing or unknown.
    """
    signature = inspect.signature(function)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        require_fit(function, signature.bind(*args, **kwargs).arguments)
        return function(*args, **kwargs)

    return call


def require_fit(owner: Any, values: Mapping[str, object]) -> None:
    """Raise ConfigError unless each value has the type that ``owner`` annotates for its name.

    ``owner``: a function or class. ``values``: arguments or fields of ``owner``, by name. Numpy
    scalars are accepted as numbers.
    """
    hints = _hints(owner)
    for name, value in values.items():
        try:
            _value(hints.get(name, Any), value, name)
        except _MisfitError as problem:
            raise ConfigError(str(problem)) from problem.__cause__


def nearest(name: object, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: ", did you mean 'x'?" or all names."""
    text, known = str(name)[:64].lower(), list(known)
    score = {k: difflib.SequenceMatcher(None, k, text).ratio() for k in known}
    best = max(score.values())
    if best < 0.6:
        return f"; known are {', '.join(known)}"
    return f", did you mean {' or '.join(repr(k) for k in known if score[k] == best)}?"


def parse(text: str | bytes) -> Any:
    """Parse JSON.

    Raises:
        ValueError: the JSON is invalid, nested too deeply, or contains NaN or infinity.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError(_DEEP) from None


_DEEP = f"its entries are nested more than {MAX_DEPTH} deep"


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"expected finite numbers, found {name}")


def texts(value: Any, depth: int = 0) -> Iterator[str]:
    """Yield all strings in parsed JSON, also keys; raise ValueError if it is nested too deeply."""
    if depth > MAX_DEPTH:
        raise ValueError(_DEEP)
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        if isinstance(value, Mapping):
            yield from (key for key in value if isinstance(key, str))
            value = value.values()
        for item in value:
            if isinstance(item, str | Mapping | list | tuple):
                yield from texts(item, depth + 1)


def _dataclass(kind: Any, values: object, place: str) -> Any:
    if isinstance(values, kind):
        return values
    if not isinstance(values, dict):
        raise _MisfitError(place, f"expected {_WORDS[Mapping]}, found {repr(values)[:60]}")
    hints = _hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    for name in values:
        if name not in fields:
            raise _MisfitError(place, f"there is no {str(name)[:64]!r}{nearest(name, fields)}")
    for name, field in fields.items():
        required = field.default is field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise _MisfitError(place, f"expected an entry {name!r}, found none")
    decoded = {
        name: _value(hints[name], value, f"{place}.{name}".lstrip("."))
        for name, value in values.items()
    }
    try:
        return kind(**decoded)
    except Y7EdgeError as error:
        raise _MisfitError(place, str(error)) from error


_hints = cache(get_type_hints)  # resolving annotations is slow


def _value(kind: Any, value: object, place: str) -> Any:
    """Convert ``value`` to the annotated type ``kind``."""
    origin, inner = get_origin(kind), get_args(kind)
    value = value.item() if isinstance(value, np.generic) else value
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, value, place)
    if origin in (Union, types.UnionType):
        return _union(inner, value, place)
    if origin in (tuple, Sequence) and isinstance(value, list | tuple):
        kinds = inner[:1] * len(value) if inner[-1] is ... or origin is Sequence else inner
        if len(kinds) == len(value):
            pairs = enumerate(zip(kinds, value, strict=True))
            return tuple(_value(k, item, f"{place}[{i}]") for i, (k, item) in pairs)
    elif origin is Mapping and isinstance(value, Mapping):
        return {
            _value(inner[0], key, f"a key of {place}"): _value(inner[1], item, f"{place}.{key}")
            for key, item in value.items()
        }
    elif kind is Any or (origin is Literal and isinstance(value, str) and value in inner):
        return value
    elif kind in (int, float) and isinstance(value, int | kind) and not isinstance(value, bool):
        if abs(value) <= sys.float_info.max or kind is int:  # a comparison with NaN is False
            return kind(value)
    elif kind is Path and isinstance(value, str | Path):
        return Path(value)
    elif kind not in (int, float) and isinstance(value, _class(kind)):
        return value
    raise _MisfitError(place, f"expected {_words(kind)}, found {repr(value)[:60]}")


def _class(kind: Any) -> type:
    """Return the class of a simple type, for ``isinstance``.

    Tuples, sequences and mappings are handled elsewhere: for these, return a class that no value
    has. The items of an ``Iterable`` are not checked, because it may be a generator.
    """
    kind = get_origin(kind) or kind
    return kind if isinstance(kind, type) and kind not in (tuple, Sequence, Mapping) else type(...)


def _union(kinds: tuple[Any, ...], value: object, place: str) -> Any:
    """Convert ``value`` to the first of ``kinds`` that fits."""
    if value is None and type(None) in kinds:
        return None
    present = [kind for kind in kinds if kind is not type(None)]
    if len(present) == 1:  # the error of `_value` names the exact place of the problem
        return _value(present[0], value, place)
    for kind in present:
        try:
            return _value(kind, value, place)
        except _MisfitError:
            continue
    words = " or ".join(_words(kind) for kind in kinds)
    raise _MisfitError(place, f"expected {words}, found {repr(value)[:60]}")


def _words(kind: Any) -> str:
    """Describe a type for a message."""
    if get_origin(kind) is Literal:
        return " or ".join(repr(choice) for choice in get_args(kind))
    if get_origin(kind) is tuple and get_args(kind)[-1] is not ...:
        return f"a list of {len(get_args(kind))}"
    return _WORDS.get(get_origin(kind) or kind, str(kind))
