"""Ranges of numbers in settings, stored with the fields of dataclasses."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field, fields
from typing import Any

from y7edge.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Range:
    """The allowed values of a number, from ``low`` to ``high``."""

    words: str  # description for messages
    low: float = 0.0
    high: float = math.inf
    open_low: bool = False  # exclude `low`
    open_high: bool = False  # exclude `high`
    whole: bool = False  # only integers
    optional: bool = False  # allow None

    def __contains__(self, value: object) -> bool:
        if value is None:
            return self.optional
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            return False
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return abs(value) <= sys.float_info.max and above and below


POSITIVE = Range("a positive number", open_low=True)
NOT_NEGATIVE = Range("0 or more")
FRACTION = Range("a number from 0 to 1", high=1.0)
BELOW_ONE = Range("from 0 to below 1", high=1.0, open_high=True)
FROM_ZERO = Range("a whole number from 0", whole=True)
FROM_ONE = Range("a whole number from 1", low=1, whole=True)


def within(bounds: Range, default: float | None) -> Any:
    """Create a dataclass field with a range and a default."""
    return field(default=default, metadata={"range": bounds})


def ranges(settings: Any) -> dict[str, Range]:
    """Return the ranges of a dataclass, or of an instance, by field name."""
    return {f.name: f.metadata["range"] for f in fields(settings) if "range" in f.metadata}


def check_ranges(settings: Any) -> None:
    """Check all fields that have a range.

    Raises:
        ConfigError: a value is out of its range.
    """
    for name, bounds in ranges(settings).items():
        require(getattr(settings, name) in bounds, name, bounds.words, getattr(settings, name))


def require(fine: bool, name: str, expected: str, found: object) -> None:
    """Raise ConfigError, "``name`` must be ``expected``, not ``found``", unless ``fine``."""
    if not fine:
        raise ConfigError(f"{name} must be {expected}, not {found!r}")
