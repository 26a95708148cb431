"""Write ONNX nodes and initializers by name.

By default a tensor has the name of its node, so a name in an engine's log identifies the row.
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
    """Collect the nodes and initializers of a graph, in the order of writing."""

    def __init__(self, dtype: npt.DTypeLike = np.float32) -> None:
        """Create an empty graph with weights and activations of ``dtype``, float32 or float16."""
        self.dtype = np.dtype(dtype)
        self.nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}

    @property
    def initializers(self) -> list[onnx.TensorProto]:
        """The initializers, in the order of first use."""
        return list(self._initializers.values())

    def node(
        self, name: str, op: str, inputs: Sequence[str], output: str = "", **attributes: Any
    ) -> str:
        """Append a node; return the name of its output, by default the node's name."""
        output = output or name
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=name, **attributes))
        return output

    def constant(self, name: str, values: npt.ArrayLike, dtype: npt.DTypeLike) -> str:
        """Write an initializer, unless one of this name exists; return the name."""
        if name not in self._initializers:
            array = np.ascontiguousarray(values, np.dtype(dtype).newbyteorder("<"))
            self._initializers[name] = numpy_helper.from_array(array, name)
        return name

    def scalar(self, name: str, value: float, dtype: npt.DTypeLike) -> str:
        """Write an initializer of rank 0, where ``constant`` writes rank 1; return the name."""
        array = np.array(value, np.dtype(dtype).newbyteorder("<"))
        self._initializers.setdefault(name, numpy_helper.from_array(array, name))
        return name

    def weight(self, name: str, values: npt.NDArray[Any]) -> str:
        """Write a weight as an initializer in the graph's precision; return the name.

        Raises:
            ExportError: a value is not finite, or too large for the precision.
        """
        with np.errstate(over="ignore"):
            cast = np.asarray(values).astype(self.dtype, copy=False)
        if not np.isfinite(cast).all():
            largest = float(np.max(np.abs(np.asarray(values, np.float64))))
            raise ExportError(
                f"weight {name}: expected finite values in {self.dtype.name}, found {largest:.3g}; "
                "export in fp32; if that fails too, use another checkpoint"
            )
        return self.constant(name, cast, self.dtype)

    def cast(self, name: str, source: str, dtype: npt.DTypeLike) -> str:
        """Write a conversion of ``source`` to ``dtype``; return the name of the output."""
        to = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self.node(name, "Cast", [source], to=to)


class StructureWriter(NodeWriter):
    """Write a graph without the values of its weights, as if they were in another file."""

    def weight(self, name: str, values: npt.NDArray[Any]) -> str:
        """Declare a weight by its type and shape; return the name."""
        tensor = onnx.TensorProto(
            name=name,
            data_type=helper.np_dtype_to_tensor_dtype(self.dtype),
            dims=values.shape,
            data_location=onnx.TensorProto.EXTERNAL,
        )
        self._initializers.setdefault(name, tensor)
        return name
