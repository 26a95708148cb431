"""Find out which operators of a graph an accelerator runs, before anyone owns one.

``chips`` reads the tables of ``y7edge/export/chips``, ``facts`` reads a graph, ``verdicts``
compares both, and ``cures`` finds the rewrites, or the activation, that make a model fit::

    from y7edge.export.audit import audit, chips

    found = audit(onnx_model, chips.load("kl720"))
"""

from y7edge.export.audit.verdicts import Audit, Row, audit

__all__ = ["Audit", "Row", "audit"]
