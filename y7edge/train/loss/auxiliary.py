"""Assign targets to the lead head and to the auxiliary head of a model.

    assign = by_name("coarse-to-fine")
    assignment = assign([*lead_heads, *aux_heads], targets, anchors)   # the lead's levels first

The three of YOLOv7 (arXiv 2207.02696, section 4.2 and figure 5). They differ in whose predictions
decide what the auxiliary head learns, and in how many cells it may learn it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from y7edge.errors import ConfigError
from y7edge.train.loss.assign import SimOTA
from y7edge.train.loss.candidates import Assigner, Assignment, join

FINE, COARSE = 0.5, 1.0  # cells that a target may reach beyond its own

# The published training sums 20 IoUs for k with an auxiliary head, for both heads; 10 without.
_Q0 = 20


def coarse_to_fine(
    assign: SimOTA, heads: Sequence[Tensor], targets: Tensor, anchors: Tensor
) -> Assignment:
    """Assign both heads by the lead's predictions (figure 5 e), as the published training does.

    The lead gets fine cells; the auxiliary head, which learns less well and is to find everything,
    gets all four neighbours of a cell as candidates. One IoU and cost serve both.
    """
    return join(assign.reaching((FINE, COARSE), heads[: len(anchors)], targets, anchors))


def lead_guided(
    assign: SimOTA, heads: Sequence[Tensor], targets: Tensor, anchors: Tensor
) -> Assignment:
    """Assign the lead by its own predictions, and the same cells to the auxiliary head (d)."""
    return join([assign(heads[: len(anchors)], targets, anchors)] * 2)


def independent(
    assign: SimOTA, heads: Sequence[Tensor], targets: Tensor, anchors: Tensor
) -> Assignment:
    """Assign each head by its own predictions (c)."""
    levels = len(anchors)
    return join([assign(part, targets, anchors) for part in (heads[:levels], heads[levels:])])


_KNOWN = {
    "coarse-to-fine": coarse_to_fine,
    "lead-guided": lead_guided,
    "independent": independent,
}


def names() -> list[str]:
    """The assigners of an auxiliary head, the published one first."""
    return list(_KNOWN)


def by_name(name: str, *, anchor_t: float = 4.0) -> Assigner:
    """An assigner of lead and auxiliary head.

    Args:
        name: one of :func:`names`.
        anchor_t: largest ratio of sides between a target and its anchors.

    Raises:
        ConfigError: an unknown name.
    """
    if name not in _KNOWN:
        raise ConfigError(
            f"unknown assigner {name!r} of an auxiliary head; known: {', '.join(_KNOWN)}"
        )
    return partial(_KNOWN[name], SimOTA(anchor_t, FINE, _Q0))
