"""Decide which tensors of a graph are quantised, and which of them share a scale.

The rules depend only on the operators of the graph and on the profile:

* A tensor is quantised if a convolution in integers reads it, directly or through operators that
  are not convolutions. It gets one QuantizeLinear and one DequantizeLinear for all its readers.
* Max-pooling, resizing and slicing only select values, so their inputs and outputs have one scale.
* In a profile with ``fused`` activations, a convolution and its activation are one operator, and
  the tensors between them stay in float. Otherwise these are quantised too, because ONNX Runtime
  and Qualcomm's engine compute an operator in integers only between a DequantizeLinear and a
  QuantizeLinear.
* A ReLU is one operator with its convolution in all profiles, and the tensor behind it is quantised
  instead: the smallest quantised value is 0, so the QuantizeLinear clips negative values too.
* In a profile with ``shared`` scales, the inputs and the output of a Concat have one scale, and so
  do those of an Add. TensorRT then needs no kernel for the Concat
  (https://github.com/NVIDIA-AI-IOT/yolo_deepstream, yolov7_qat).
* The inputs and the output of a Max have one scale, which TensorFlow Lite requires.
* The tensors between a convolution in float and its activation stay in float.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import onnx

from y7edge.errors import ExportError

SELECTING = frozenset({"MaxPool", "Resize", "Slice"})
"""Operators whose output has only values of their input."""

REPEATING = SELECTING | {"Concat"}
"""Operators whose output has only values of their inputs."""

_JOINING = frozenset({"Concat", "Add"})
_POINTWISE = frozenset({"HardSwish", "LeakyRelu", "Max", "Mul", "Relu", "Sigmoid"})
_PASSED = SELECTING | _JOINING | _POINTWISE


class Wiring:
    """The nodes of a graph by the tensors that they write and read.

    Attributes:
        nodes: The nodes, in the order of computation.
        convolutions: Those of type Conv.
        producer: Tensor -> the node that writes it.
        readers: Tensor -> the nodes that read it.
        constants: Names of the initializers.
        inputs: Names of the graph's inputs.
        outputs: Names of the graph's outputs.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        """Index the graph of ``model``."""
        graph = model.graph
        self.nodes: list[onnx.NodeProto] = list(graph.node)
        self.convolutions = [node for node in self.nodes if node.op_type == "Conv"]
        self.constants = {tensor.name for tensor in graph.initializer}
        self.inputs = [value.name for value in graph.input if value.name not in self.constants]
        self.outputs = [value.name for value in graph.output]
        self.producer = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in self.sources(node):
                self.readers.setdefault(name, []).append(node)

    def sources(self, node: onnx.NodeProto) -> list[str]:
        """Return the tensors that a node reads, each once, without constants."""
        return [n for n in dict.fromkeys(node.input) if n and n not in self.constants]

    def activation(self, convolution: onnx.NodeProto) -> tuple[list[onnx.NodeProto], str]:
        """Return the nodes of a convolution's activation, and the tensor behind it.

        An activation is one pointwise node that only reads the convolution's output, or two nodes
        of which the second also reads the first: ``Mul(x, Sigmoid(x))``, ``Max(x, Mul(x, 0.1))``.
        Without activation: an empty list, and the output of the convolution.
        """
        start = convolution.output[0]
        readers = self.readers.get(start, [])
        if start in self.outputs or not 1 <= len(readers) <= 2:
            return [], start
        inner = {start, *(node.output[0] for node in readers[:-1])}
        whole = all(
            node.op_type in _POINTWISE and inner >= set(self.sources(node)) for node in readers
        )
        private = all(self.readers.get(name) == [readers[-1]] for name in inner - {start})
        if not (whole and private):
            return [], start
        return readers, readers[-1].output[0]

    def heads(self) -> list[str]:
        """Return the names of the convolutions that write the outputs."""
        return [c.name for c in self.convolutions if self.activation(c)[1] in self.outputs]


@dataclass(frozen=True)
class Placement:
    """Where a graph is quantised.

    Attributes:
        group: Quantised tensor -> name of its group, in the order of computation. All tensors of a
            group have one scale.
        integer: Names of the convolutions that are computed in integers.
        activated: Quantised output of a convolution -> the tensor behind its activation.
    """

    group: Mapping[str, str]
    integer: frozenset[str]
    activated: Mapping[str, str]

    def groups(self) -> dict[str, list[str]]:
        """Return the tensors of each group."""
        found: dict[str, list[str]] = {}
        for tensor, group in self.group.items():
            found.setdefault(group, []).append(tensor)
        return found


def place(
    model: onnx.ModelProto, *, fused: bool, shared: bool, kept: Collection[str] = ()
) -> Placement:
    """Choose the tensors of a float graph that are quantised.

    Args:
        model: an fp32 graph with the outputs "heads" or "heads-sigmoid".
        fused: leave the tensors between a convolution and its activation in float.
        shared: use one scale for all tensors of a Concat, and of an Add.
        kept: names of convolutions that stay in float.

    Raises:
        ExportError: ``kept`` names a node that is not a convolution of the graph.
    """
    wiring = Wiring(model)
    known = {node.name for node in wiring.convolutions}
    if unknown := sorted(set(kept) - known):
        raise ExportError(f"{unknown[0]!r} is not a convolution of the graph")
    integer = frozenset(known - set(kept))
    reaching = _reaching(wiring, integer)
    inside: set[str] = set()  # stay in float
    always: set[str] = set()
    activated: dict[str, str] = {}
    for node in wiring.convolutions:
        nodes, end = wiring.activation(node)
        start, inner = node.output[0], {n.output[0] for n in nodes[:-1]}
        clips = [n.op_type for n in nodes] == ["Relu"]
        if fused or clips or node.name not in integer:
            inside |= {start, *inner} - {end}
            always |= {end} if clips and not fused and node.name in integer else set()
        else:
            always.add(start)
            activated |= {start: end} if nodes else {}
    tensors = dict.fromkeys([*wiring.inputs, *wiring.producer])
    chosen = [t for t in tensors if (t in reaching or t in always) and t not in inside]
    groups = _Groups(chosen)
    for node in wiring.nodes:
        if (
            node.op_type in SELECTING
            or node.op_type == "Max"
            or (shared and node.op_type in _JOINING)
        ):
            groups.join([*wiring.sources(node), *node.output])
    return Placement(groups.names(), integer, activated)


def _reaching(wiring: Wiring, integer: Collection[str]) -> set[str]:
    """Return the tensors that a convolution in integers reads, directly or through other nodes."""
    found: set[str] = set()
    for node in reversed(wiring.nodes):
        passes = node.op_type in _PASSED and not found.isdisjoint(node.output)
        if node.name in integer or passes:
            found |= set(wiring.sources(node))
    return found


class _Groups:
    """Disjoint sets of tensors; each has the name of its first tensor."""

    def __init__(self, tensors: Iterable[str]) -> None:
        self._order = {tensor: index for index, tensor in enumerate(tensors)}
        self._parent = {tensor: tensor for tensor in self._order}

    def join(self, tensors: Iterable[str]) -> None:
        """Merge the sets of these tensors; those that are not quantised are ignored."""
        roots = {self._root(tensor) for tensor in tensors if tensor in self._parent}
        first = min(roots, key=lambda root: self._order[root], default=None)
        for root in roots:
            self._parent[root] = first or root

    def names(self) -> dict[str, str]:
        """Return tensor -> name of its set."""
        return {tensor: self._root(tensor) for tensor in self._order}

    def _root(self, tensor: str) -> str:
        while (parent := self._parent[tensor]) != tensor:
            self._parent[tensor] = self._parent[parent]  # halves the way of the next search
            tensor = parent
        return tensor
