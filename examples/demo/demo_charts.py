"""Draw the charts of the demo's report as inline SVG, without scripts, fonts or image files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

# In pixels. The charts are narrow, so that text stays legible when a phone shrinks them.
_WIDTH, _HEIGHT = 420, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 10, 28, 30
COLOURS = ("#0f766e", "#b45309", "#4f46e5", "#be185d")


@dataclass(frozen=True)
class _Frame:
    """The axes of a chart: ``x`` and ``y`` are their ranges, (lowest, highest)."""

    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return the position of a point in pixels; y is clipped to its range."""
        across = (x - self.x[0]) / ((self.x[1] - self.x[0]) or 1)
        up = min(max((y - self.y[0]) / ((self.y[1] - self.y[0]) or 1), 0), 1)
        return (
            _LEFT + across * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM),
        )


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x_label: str,
    top: float | None = None,
    goal: tuple[float, str] | None = None,
) -> str:
    """Draw a line chart, whose y axis starts at 0.

    Args:
        series: points (x, y) of each line, by name; the names form the legend.
        x_label: label of the x axis.
        top: upper end of the y axis; None: the largest value.
        goal: y of a horizontal line, and its label.
    """
    points = [point for values in series.values() for point in values]
    high = top or max((y for _, y in points), default=1.0)
    ticks = _ticks(high)
    frame = _Frame(
        (min(x for x, _ in points), max(x for x, _ in points)), (0, max(high, ticks[-1]))
    )
    parts = _grid(frame, {tick: f"{tick:g}" for tick in ticks})
    if goal is not None:
        parts += _goal(frame, *goal)
    for index, (name, values) in enumerate(series.items()):
        colour = COLOURS[index % len(COLOURS)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (frame.at(*value) for value in values))
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"'
            ' stroke-linejoin="round"/>'
        )
        if len(values) <= 30:
            parts += [
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>'
                for x, y in (frame.at(*value) for value in values)
            ]
        parts.append(_text(_LEFT + 6 + 110 * index, 16, f"● {name}", colour=colour))
    parts += _x_ends(frame, x_label)
    return _svg(parts, f"{', '.join(series)} over {x_label}")


def bars(
    values: Sequence[float], *, x_label: str, goal: tuple[float, str], decades: tuple[int, int]
) -> str:
    """Draw positive values as bars on a logarithmic axis.

    Args:
        values: height of each bar; there is no bar for values below the axis.
        x_label: label of the x axis.
        goal: y of a horizontal line, and its label.
        decades: range of the y axis, as exponents of ten.
    """
    frame = _Frame((0, len(values)), decades)
    ticks = {float(e): f"1e{e}" for e in range(decades[0], decades[1] + 1)}
    parts = _grid(frame, ticks)
    for index, value in enumerate(values):
        height = math.log10(value) if value > 0 else decades[0]
        (left, top), (right, bottom) = frame.at(index + 0.15, height), frame.at(index + 0.85, -99)
        parts.append(
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}"'
            f' height="{bottom - top:.1f}" fill="{COLOURS[0]}"/>'
        )
    parts += _goal(frame, math.log10(goal[0]), goal[1])
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 10, x_label, anchor="middle"))
    return _svg(parts, x_label)


def _ticks(high: float) -> list[float]:
    """Return round ticks from 0 to ``high`` or slightly above."""
    power = 10 ** math.floor(math.log10(high)) if high > 0 else 1.0
    step = next(power * f for f in (0.2, 0.25, 0.5, 1, 2) if high / (power * f) <= 6)
    return [round(step * index, 10) for index in range(max(math.ceil(high / step - 1e-9), 1) + 1)]


def _grid(frame: _Frame, ticks: Mapping[float, str]) -> list[str]:
    parts = []
    for tick, label in ticks.items():
        _, y = frame.at(frame.x[0], tick)
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"'
            ' stroke="#e2e8f0"/>'
        )
        parts.append(_text(_LEFT - 6, y + 4, label, anchor="end"))
    return parts


def _goal(frame: _Frame, level: float, name: str) -> list[str]:
    _, y = frame.at(frame.x[0], level)
    return [
        f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#94a3b8"'
        ' stroke-dasharray="4 3"/>',
        _text(_WIDTH - _RIGHT - 4, y - 5, name, anchor="end"),
    ]


def _x_ends(frame: _Frame, label: str) -> list[str]:
    low, high = frame.x
    y = _HEIGHT - 10
    return [
        _text(_LEFT, y, f"{low:g}"),
        _text((_LEFT + _WIDTH - _RIGHT) / 2, y, label, anchor="middle"),
        _text(_WIDTH - _RIGHT, y, f"{high:g}", anchor="end"),
    ]


def _text(x: float, y: float, words: str, *, anchor: str = "start", colour: str = "#475569") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="12" fill="{colour}">'
        f"{escape(words)}</text>"
    )


def _svg(parts: Sequence[str], description: str) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(description)}">'
        f"{''.join(parts)}</svg>"
    )
