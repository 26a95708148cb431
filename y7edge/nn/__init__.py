"""Models as torch modules: blocks, head, builder, seeded random weights."""

from y7edge.nn.build import Model, create, from_checkpoint, to_checkpoint

__all__ = ["Model", "create", "from_checkpoint", "to_checkpoint"]
