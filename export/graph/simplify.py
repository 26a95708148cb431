"""Run onnx-simplifier; use its graph only if interface and results are bitwise equal.

The tool rarely changes the graphs that y7edge writes. It is run because engines are usually tested
with simplified graphs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from y7edge.errors import DeviceError
from y7edge.files import temporary_folder
from y7edge.runtimes import onnxrt
from y7edge.runtimes.base import missing, one_line

SEED = 0
DYNAMIC_BATCH = 2  # batch size of the comparison, if the graph has a dynamic batch


def simplify(model: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    """Simplify a model. Return the simplified model, or ``model`` if the two differ, and a note.

    The comparison covers opset and IR version, inputs and outputs (names, shapes, types), and the
    results of ONNX Runtime on a seeded input. Metadata and shapes that onnx-simplifier adds are
    removed. The note is one line that says what was done.
    """
    known = {tensor.name for tensor in model.graph.initializer}
    if optional := [value.name for value in model.graph.input if value.name in known]:
        return model, f"not simplified: this would remove the inputs {', '.join(optional)}"
    if missing(onnxrt.NEEDS):
        return model, "not simplified: ONNX Runtime, which compares the results, is not installed"
    try:
        onnxrt.load_engine()  # onnxsim would import it with its telemetry on
        import onnxsim

        simplified = onnxsim.simplify(model, check_n=0)[0]
        _clean(simplified, model)
        onnx.checker.check_model(simplified, full_check=True)
    except Exception as error:  # onnx-simplifier has no common exception class
        return model, f"not simplified: onnx-simplifier failed ({one_line(error)})"
    if simplified.graph == model.graph:
        return model, "simplified: nothing to remove"
    change = _change(model, simplified)
    if change:
        return model, f"not simplified: {change}"
    before, after = len(model.graph.node), len(simplified.graph.node)
    return simplified, f"simplified: {before} nodes to {after}, results equal to the bit"


def _clean(simplified: onnx.ModelProto, model: onnx.ModelProto) -> None:
    """Remove metadata, documentation and inferred shapes in place."""
    for owner in (simplified, simplified.graph, *simplified.graph.node):
        owner.ClearField("doc_string")
        if hasattr(owner, "metadata_props"):  # graphs and nodes have them since IR version 10
            owner.ClearField("metadata_props")
    simplified.graph.ClearField("value_info")
    simplified.producer_name = model.producer_name
    simplified.producer_version = model.producer_version


def _change(model: onnx.ModelProto, simplified: onnx.ModelProto) -> str:
    """Return a description of the difference between two models; "" if they are equal."""
    versions = [(one.ir_version, list(one.opset_import)) for one in (model, simplified)]
    if versions[0] != versions[1]:
        return "onnx-simplifier changed the opset or the IR version"
    for part in ("input", "output"):
        if list(getattr(model.graph, part)) != list(getattr(simplified.graph, part)):
            return f"onnx-simplifier changed the {part}s"
    feeds = _feeds(model)
    try:
        expected, actual = _run(model, feeds), _run(simplified, feeds)
    except DeviceError as error:
        return f"the results could not be compared ({one_line(error)})"
    changed = [name for name in expected if not np.array_equal(expected[name], actual[name])]
    return f"onnx-simplifier changed the results of {', '.join(changed)}" if changed else ""


def _feeds(model: onnx.ModelProto) -> dict[str, npt.NDArray[Any]]:
    """Return an array of seeded random values for every input: 0 to 1, or 0 to 255 for integers."""
    rng = np.random.default_rng(SEED)
    feeds = {}
    for value in model.graph.input:
        kind = value.type.tensor_type
        shape = [d.dim_value if d.HasField("dim_value") else DYNAMIC_BATCH for d in kind.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        largest = 1 if dtype.kind == "f" else 255
        feeds[value.name] = (rng.random(shape, np.float32) * largest).astype(dtype)
    return feeds


def _run(model: onnx.ModelProto, feeds: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    with temporary_folder() as folder:
        path = folder / "model.onnx"
        onnx.save_model(model, path)
        return onnxrt.run_once(path, feeds)
