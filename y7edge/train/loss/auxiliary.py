"""How the lead and the auxiliary head of a model are assigned together.

    assigner = by_name("coarse-to-fine")
    lead, aux = assigner(lead_heads, aux_heads, targets, anchors)

The three of YOLOv7 (arXiv 2207.02696, section 4.2 and figure 5). They differ in whose predictions
decide what the auxiliary head learns, and in how many cells it may learn it:

* `Independent` (figure 5 c): its own, as if it were alone;
* `LeadGuided` (d): the lead's, and the very cells of the lead;
* `CoarseToFine` (e), the published training: the lead's, with all four neighbours of a cell as
  candidates. The auxiliary head, which learns less well, is to find everything, the lead to be
  exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from y7edge.errors import ConfigError
from y7edge.train.loss.assign import SimOTA
from y7edge.train.loss.candidates import Assignment

FINE, COARSE = 0.5, 1.0  # cells that a target may reach beyond its own

# The published training sums 20 IoUs for k with an auxiliary head, for both heads; 10 without.
_Q0 = 20


class Guided(Protocol):
    """Decides which cells of both heads answer for which targets."""

    def __call__(
        self,
        lead_heads: Sequence[Tensor],
        aux_heads: Sequence[Tensor],
        targets: Tensor,
        anchors: Tensor,
    ) -> tuple[Assignment, Assignment]:
        """Assign targets to cells of the lead head and to cells of the auxiliary head.

        Args:
            lead_heads: per level raw logits (B, A, H, W, 5 + nc), finest level first.
            aux_heads: the same of the auxiliary head.
            targets: (n, 6) image, class, cx, cy, w, h; boxes normalised to the network's input.
            anchors: (L, A, 2) width and height in grid units of their level.
        """
        ...


@dataclass(frozen=True)
class Independent:
    """Each head by its own predictions, both on fine cells."""

    anchor_t: float = 4.0  # largest ratio of sides between a target and its anchors
    q0: int = _Q0  # IoUs that are summed for k

    def __call__(
        self,
        lead_heads: Sequence[Tensor],
        aux_heads: Sequence[Tensor],
        targets: Tensor,
        anchors: Tensor,
    ) -> tuple[Assignment, Assignment]:
        """Assign the heads apart; see `Guided`."""
        assign = SimOTA(self.anchor_t, FINE, self.q0)
        return assign(lead_heads, targets, anchors), assign(aux_heads, targets, anchors)


@dataclass(frozen=True)
class LeadGuided:
    """The lead's positives for both heads."""

    anchor_t: float = 4.0  # largest ratio of sides between a target and its anchors
    q0: int = _Q0  # IoUs that are summed for k

    def __call__(
        self,
        lead_heads: Sequence[Tensor],
        aux_heads: Sequence[Tensor],
        targets: Tensor,
        anchors: Tensor,
    ) -> tuple[Assignment, Assignment]:
        """Assign the lead and use it twice; see `Guided`."""
        lead = SimOTA(self.anchor_t, FINE, self.q0)(lead_heads, targets, anchors)
        return lead, lead


@dataclass(frozen=True)
class CoarseToFine:
    """Both by the lead's predictions: the lead on fine cells, the auxiliary head on coarse ones.

    IoU, cost and k of the coarse cells come from the lead too, so that one cost serves both.
    """

    anchor_t: float = 4.0  # largest ratio of sides between a target and its anchors
    q0: int = _Q0  # IoUs that are summed for k

    def __call__(
        self,
        lead_heads: Sequence[Tensor],
        aux_heads: Sequence[Tensor],
        targets: Tensor,
        anchors: Tensor,
    ) -> tuple[Assignment, Assignment]:
        """Assign twice by one cost; see `Guided`."""
        assign = SimOTA(self.anchor_t, q0=self.q0)
        lead, aux = assign.reaching((FINE, COARSE), lead_heads, targets, anchors)
        return lead, aux


_KNOWN: dict[str, Callable[..., Guided]] = {
    "coarse-to-fine": CoarseToFine,
    "lead-guided": LeadGuided,
    "independent": Independent,
}


def names() -> list[str]:
    """The assigners of an auxiliary head, the published one first."""
    return list(_KNOWN)


def by_name(name: str, *, anchor_t: float = 4.0) -> Guided:
    """An assigner of lead and auxiliary head.

    Raises:
        ConfigError: it is none of :func:`names`.
    """
    if name not in _KNOWN:
        raise ConfigError(
            f"unknown assigner {name!r} of an auxiliary head; known: {', '.join(_KNOWN)}"
        )
    return _KNOWN[name](anchor_t=anchor_t)
