"""Writing ONNX nodes by name: the small vocabulary in which the graph is written.

Nothing here knows of models. A tensor is called after the node that makes it, unless it is told
otherwise, so that a name in any engine's log leads back to the row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from y7edge.errors import ExportError


class NodeWriter:
    """Collects the nodes and initializers of one graph, in the order in which they are written."""

    def __init__(self, dtype: npt.DTypeLike = np.float32) -> None:
        """``dtype``: of weights and activations, float32 or float16."""
        self.dtype = np.dtype(dtype)
        self.nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}

    @property
    def initializers(self) -> list[onnx.TensorProto]:
        """The constants, in the order in which they were first used."""
        return list(self._initializers.values())

    def node(
        self, name: str, op: str, inputs: Sequence[str], output: str = "", **attributes: Any
    ) -> str:
        """Append one node; return the name of the tensor that it makes, by default its own."""
        output = output or name
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=name, **attributes))
        return output

    def constant(self, name: str, values: npt.ArrayLike, dtype: npt.DTypeLike) -> str:
        """An initializer; written once even if asked for again under the same name."""
        if name not in self._initializers:
            array = np.ascontiguousarray(values, np.dtype(dtype).newbyteorder("<"))
            self._initializers[name] = numpy_helper.from_array(array, name)
        return name

    def weight(self, name: str, values: npt.NDArray[Any]) -> str:
        """An initializer in the graph's precision, under the weight's own key.

        Raises:
            ExportError: a value is not finite, or too large for the precision.
        """
        with np.errstate(over="ignore"):
            cast = np.asarray(values).astype(self.dtype, copy=False)
        if not np.isfinite(cast).all():
            largest = float(np.max(np.abs(np.asarray(values, np.float64))))
            raise ExportError(
                f"weight {name}: expected finite values in {self.dtype.name}, found {largest:.3g}; "
                "export in fp32, or check the checkpoint if that fails too"
            )
        return self.constant(name, cast, self.dtype)

    def cast(self, name: str, source: str, dtype: npt.DTypeLike) -> str:
        """A conversion of ``source`` to ``dtype``."""
        to = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self.node(name, "Cast", [source], to=to)
