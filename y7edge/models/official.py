"""Public alias of ``y7edge.models.published.official``."""

from y7edge.models.published.official import convert, load

__all__ = ["convert", "load"]
