"""``y7edge.models.published.official``, under the name that scripts rely on."""

from y7edge.models.published.official import convert, load

__all__ = ["convert", "load"]
