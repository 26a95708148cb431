"""Freeze rows: keep their weights and BatchNorm statistics constant in training.

The published training still updates the running statistics of frozen rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from torch import nn

from y7edge.errors import ConfigError
from y7edge.models.spec import Spec
from y7edge.nn.build import Model

BACKBONE = "backbone"


def parse(texts: Sequence[str], spec: Spec) -> tuple[int, ...]:
    """Return the indices of the rows that ``--freeze`` names.

    A single number n (``["50"]``) selects the first n rows (0 to n - 1), as published. Several
    numbers (``["3", "5"]`` or ``["3,5"]``) select those rows. ``0-50`` is a range that includes
    both ends. ``backbone`` selects the rows before the pooling pyramid.

    Raises:
        ConfigError: the text is invalid, or a row is not in the model.
    """
    parts = [part.strip() for text in texts for part in text.split(",") if part.strip()]
    if texts and not parts:
        raise ConfigError("freeze: expected rows, found none")
    rows: set[int] = set()
    for part in parts:
        if part.lower() == BACKBONE:
            rows.update(backbone(spec))
        elif part.isdecimal():
            rows.update(range(int(part)) if len(parts) == 1 else [int(part)])
        elif (match := re.fullmatch(r"(\d+)\s*-\s*(\d+)", part)) and int(match[1]) <= int(match[2]):
            rows.update(range(int(match[1]), int(match[2]) + 1))
        else:
            raise ConfigError(
                f"freeze takes a number of rows (50), rows (3,5), ranges (0-50) or {BACKBONE!r}, "
                f"not {part!r}"
            )
    check(rows, spec)
    return tuple(sorted(rows))


def check(rows: Iterable[int], spec: Spec) -> None:
    """Raise ConfigError if any of the rows is not in the model."""
    beyond = [row for row in rows if row >= len(spec.rows)]
    if beyond:
        raise ConfigError(
            f"freeze: {spec.name} has the rows 0 to {len(spec.rows) - 1}, not {min(beyond)}"
        )


def backbone(spec: Spec) -> tuple[int, ...]:
    """Return the rows before the pooling pyramid: 0 to 50 of yolov7.

    In every variant, the pyramid follows the last computational block before the first upsampling.
    The help text of the published training gives 50 rows for yolov7, which omits the last one.
    """
    top = next(row.index for row in spec.rows if row.block == "upsample")
    last = max(row.index for row in spec.rows[:top] if row.stage or row.block == "sum")
    return tuple(range(last + 1))


def freeze_rows(model: Model, rows: Iterable[int]) -> None:
    """Freeze rows; call ``apply`` after every ``model.train()``.

    Raises:
        ConfigError: a row is not in the model.
    """
    rows = tuple(rows)
    check(rows, model.spec)
    for row in rows:
        model.rows[row].requires_grad_(False)
    apply(model)


def apply(model: Model) -> None:
    """Set the BatchNorms of frozen rows to ``eval()``, which ``model.train()`` undoes."""
    for row in model.rows:
        if not any(parameter.requires_grad for parameter in row.parameters()):
            for module in row.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
