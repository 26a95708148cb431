"""Model descriptions, compound scaling, RepConv planning and checkpoints, without torch."""

from y7edge.models.registry import get, names
from y7edge.models.scaling import scale
from y7edge.models.spec import Row, Spec

__all__ = ["Row", "Spec", "get", "names", "scale"]
