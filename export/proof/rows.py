"""Compare the output of each row of two models, which are ONNX artifacts or checkpoints.

The output of row N is the tensor ``/rowN`` of a graph. A temporary copy of the graph gets these
tensors as additional outputs, and runs in ONNX Runtime on the CPU. A checkpoint runs in torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from y7edge.artifact.reports import Cause, Stage
from y7edge.errors import ConfigError
from y7edge.export.proof.agreement import Floats
from y7edge.export.proof.sides import Limits, Opened, compare_tensors
from y7edge.files import temporary_folder
from y7edge.models.weights import Checkpoint
from y7edge.runtimes import onnxrt
from y7edge.runtimes.base import require

_ROW = re.compile(r"/row(\d+)")
_OF_ROW = re.compile(r"rows\.(\d+)\.")


def require_rows(a: Opened, b: Opened) -> None:
    """Raise ConfigError unless both models are our ONNX artifacts, or checkpoints.

    Raises:
        RuntimeMissing: onnx is not installed.
    """
    for side in (a, b):
        if side.is_foreign:
            raise ConfigError(
                f"{side.path} was made by another exporter, and its graph does not have our names "
                "of rows: omit --layers"
            )
        if not side.is_checkpoint and side.manifest.target != "onnx":
            raise ConfigError(
                f"{side.path} has target {side.manifest.target}, but --layers compares only ONNX "
                "artifacts and checkpoints: omit --layers, or use the ONNX artifact"
            )
    require({"onnx": "y7edge[export]"}, "--layers")


def compare_rows(
    a: Opened, b: Opened, fed: tuple[Floats, Floats], limits: Limits
) -> tuple[Stage, ...]:
    """Compare the output of every row that both models have, in the order of the rows."""
    first, second = (_outputs(side, pixels) for side, pixels in zip((a, b), fed, strict=True))
    stages = []
    for row in sorted(first.keys() & second.keys()):
        name, ours, theirs = f"/row{row}", first[row], second[row]
        if ours.shape != theirs.shape:
            at = f"the shapes are {ours.shape} and {theirs.shape}"
            stages.append(Stage(name, "differs", {}, at))
            continue
        with np.errstate(invalid="ignore"):
            index = np.unravel_index(int(np.abs(ours - theirs).argmax()), ours.shape)
        at = f"channel {index[1]}, row {index[2]}, column {index[3]}"
        stages.append(compare_tensors(name, ours, theirs, limits, at))
    return tuple(stages)


def of_weights(a: Opened, b: Opened) -> Cause | None:
    """Compare the weights of both models by name; None if they are equal."""
    first, second = _weights(a), _weights(b)
    kinds = [_stored(arrays.values()) for arrays in (first, second)]
    common = sorted((first.keys() & second.keys()), key=_position)
    changed = [key for key in common if _differs(first[key], second[key], kinds)]
    if changed:
        key = changed[0]
        ours, theirs = first[key].astype(np.float64), second[key].astype(np.float64)
        if ours.shape == theirs.shape:
            size = np.abs(ours - theirs).max() / max(np.abs(ours).max(), 1e-30)
            how = f"differs by {size:.2g} of its largest value"
        else:
            how = f"has the shapes {ours.shape} and {theirs.shape}"
        return Cause(
            "changed weights",
            f"{key} {how}; {len(changed)} of {len(common)} weight tensors differ",
        )
    if kinds[0] != kinds[1]:
        text = f"the weights of A have the precision of {kinds[0]}, those of B of {kinds[1]}"
        return Cause("precision", text)
    return None


def _position(key: str) -> tuple[int, str]:
    """Return the sort key of a weight's name: its row, then the name."""
    found = _OF_ROW.match(key)
    return (int(found[1]) if found else -1, key)


_STEPS = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
"""Type -> twice the largest rounding error of a weight, as a fraction of the weight."""


def _differs(a: Floats, b: Floats, kinds: Sequence[str]) -> bool:
    """Return whether two weights differ by more than the rounding to their precisions."""
    if a.shape != b.shape:
        return True
    step = max(_STEPS[kind] for kind in kinds)
    smallest = 2.0**-24 if "float16" in kinds else 0.0  # step of float16 near 0
    wide = a.astype(np.float64), b.astype(np.float64)
    return bool((np.abs(wide[0] - wide[1]) > step * np.abs(wide[0]) + smallest).any())


def _stored(arrays: Iterable[Floats]) -> str:
    """Return the name of the smallest float type that represents all values."""
    singles = [array.astype(np.float32) for array in arrays]
    if all(not (np.ascontiguousarray(v).view(np.uint32) & 0xFFFF).any() for v in singles):
        return "bfloat16"
    with np.errstate(over="ignore"):
        if all(np.array_equal(v.astype(np.float16).astype(np.float32), v) for v in singles):
            return "float16"
    return "float32"


# --- the two kinds of models ---------------------------------------------------------------------


def _outputs(side: Opened, fed: Floats) -> dict[int, Floats]:
    """Return the output of each row of the folded model, (1, C, H, W) float32."""
    if side.is_checkpoint:
        from y7edge.export.folding import row_outputs

        return row_outputs(_checkpoint(side), fed)
    import onnx

    image = side.manifest.input
    model = _graph(side)
    made = {name for node in model.graph.node for name in node.output}
    rows = {int(found[1]): name for name in made if (found := _ROW.fullmatch(name))}
    present = {output.name for output in model.graph.output}
    model.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in rows.values() if name not in present
    )
    feed = side.as_fed(fed)
    with temporary_folder() as folder:
        path = Path(folder) / "rows.onnx"
        path.write_bytes(model.SerializeToString())
        results = onnxrt.run_once(path, {image.name: feed})
    return {row: results[name][:1].astype(np.float32) for row, name in rows.items()}


def _weights(side: Opened) -> dict[str, Floats]:
    """Return the weights of the folded model, by name."""
    if side.is_checkpoint:
        from y7edge.export.folding import fold_checkpoint

        checkpoint = _checkpoint(side)
        folded = checkpoint if checkpoint.form == "folded" else fold_checkpoint(checkpoint)
        return {key: array for key, array in folded.arrays.items() if not key.endswith("anchors")}
    from onnx import numpy_helper

    tensors = _graph(side).graph.initializer
    return {t.name: numpy_helper.to_array(t) for t in tensors if _OF_ROW.match(t.name)}


def _graph(side: Opened) -> Any:
    """Read the ONNX file of an artifact; files of external data are not read."""
    import onnx

    return onnx.load(side.path, load_external_data=False)


def _checkpoint(side: Opened) -> Checkpoint:
    from y7edge.nn.source import open_checkpoint

    return open_checkpoint(side.path)
