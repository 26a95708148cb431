"""Run the unfolded model, which is the reference of proofs.

The model runs in torch, in float32 on the CPU. Its outputs are cached on disk (``$Y7EDGE_CACHE``,
by default ``~/.cache/y7edge``). The cache key covers the weights, the input, the version of torch
and the model's source code.
"""

from __future__ import annotations

import hashlib
import logging
import zipfile
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import y7edge
from y7edge.artifact.reports import ParityReport
from y7edge.errors import ParityError
from y7edge.files import atomic_write, cache_folder, open_regular
from y7edge.models.weights import Checkpoint
from y7edge.runtimes.base import require

if TYPE_CHECKING:
    from torch import Tensor, nn

    from y7edge.nn.build import Model

CACHE_BYTES = 2 << 30
"""Size limit of the cache; the least recently used outputs are removed."""

_SOURCES = ("nn", "models")  # packages whose code is part of the cache key
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """Outputs of the reference for one input.

    Attributes:
        heads: Logits of each level, (B, A * (5 + nc), H, W) float32, as in an exported graph.
        peak: Largest magnitude of an intermediate value of the folded graph.
        peak_at: Name of the layer with the largest magnitude.
    """

    heads: tuple[NDArray[np.float32], ...]
    peak: float
    peak_at: str


class Reference:
    """The unfolded model of a checkpoint, with BatchNorm, branches and implicit knowledge."""

    def __init__(self, checkpoint: Checkpoint, folder: Path | None = None) -> None:
        """Store the checkpoint. The model is built when the first output is computed.

        Args:
            checkpoint: a checkpoint of any form.
            folder: folder of the cached outputs; None: the default.

        Raises:
            RuntimeMissing: torch is not installed.
        """
        require({"torch": "y7edge[export]"}, "a proof")
        self.checkpoint = checkpoint
        self._folder = folder or cache_folder("reference")

    @property
    def description(self) -> str:
        """Form, precision and torch version of the reference, for reports."""
        form = self.checkpoint.form
        state = "already folded" if form == "folded" else f"{form} form, not folded"
        return f"{state}, float32, torch {version('torch')}"

    def answer(self, pixels: NDArray[np.float32]) -> Answer:
        """Return the outputs for an input (B, 3, H, W), from the cache if possible.

        Raises:
            ParityError: an output is NaN or infinite.
        """
        path = self._folder / f"{self._key(pixels)}.npz"
        kept = _read(path, self.checkpoint.spec.levels)
        if kept is not None:
            return kept
        answer = _run(self._model, pixels)
        for level, head in enumerate(answer.heads):
            if not np.isfinite(head).all():
                problem = f"inconclusive, head{level} of the checkpoint is NaN or infinite"
                report = ParityReport("inconclusive", (problem,))
                raise ParityError(f"{problem}: train again, or use another checkpoint", report)
        _keep(path, answer)
        return answer

    @cached_property
    def _model(self) -> Model:
        from y7edge.nn.build import from_checkpoint

        return from_checkpoint(self.checkpoint)

    def _key(self, pixels: NDArray[np.float32]) -> str:
        state = hashlib.sha256(f"{self.checkpoint.digest} {pixels.shape} {_code()}".encode())
        state.update(np.ascontiguousarray(pixels, "<f4").tobytes())
        return state.hexdigest()[:40]


def _run(model: Model, pixels: NDArray[np.float32]) -> Answer:
    """Run the model on an input (B, 3, H, W)."""
    import torch

    peaks: dict[str, float] = {}
    handles = [
        hook for name, module in model.named_modules() for hook in _watch(name, module, peaks)
    ]
    try:
        with torch.inference_mode():
            raws = [raw.numpy() for raw in model.eval()(torch.from_numpy(pixels))]
    finally:
        for handle in handles:
            handle.remove()
    # (B, A, H, W, 5 + nc) to (B, A x (5 + nc), H, W)
    planes = [np.ascontiguousarray(raw.transpose(0, 1, 4, 2, 3)) for raw in raws]
    heads = tuple(p.reshape(len(p), -1, *p.shape[3:]) for p in planes)
    for level, head in enumerate(heads):
        peaks[f"head{level}"] = float(np.abs(head).max())
    peak_at = max(peaks, key=lambda name: peaks[name])
    return Answer(heads, peaks[peak_at], peak_at)


def _watch(name: str, module: nn.Module, peaks: dict[str, float]) -> list[Any]:
    """Add hooks to a module that record, in ``peaks``, its largest intermediate magnitude.

    Only values that exist in the folded graph are recorded: the inputs of activation functions,
    which are the outputs of folded convolutions, and sums. No other layer has larger values.
    """
    from y7edge.nn.blocks import Sum, is_activation

    layer = name.removesuffix(".act")

    def note(tensor: Tensor) -> None:
        peaks[layer] = max(peaks.get(layer, 0.0), float(tensor.abs().max()))

    if is_activation(module):
        return [module.register_forward_pre_hook(lambda _, inputs: note(inputs[0]))]
    if isinstance(module, Sum):
        return [module.register_forward_hook(lambda _, __, output: note(output))]
    return []


# --- the cache -----------------------------------------------------------------------------------


@cache
def _code() -> str:
    """Return a digest of the model's source code and of torch's version."""
    state = hashlib.sha256(version("torch").encode())
    root = Path(y7edge.__file__).parent
    for folder in _SOURCES:
        for path in sorted((root / folder).glob("*.py")):
            state.update(path.name.encode() + path.read_bytes())
    return state.hexdigest()


def _read(path: Path, levels: int) -> Answer | None:
    """Read an answer from the cache; None if the file does not exist or is damaged."""
    try:
        with open_regular(path) as stream, np.load(stream, allow_pickle=False) as kept:
            heads = tuple(kept[f"head{level}"] for level in range(levels))
            answer = Answer(heads, float(kept["peak"]), str(kept["peak_at"]))
        path.touch()
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        _log.info("%s cannot be used and is computed again: %s", path, error)
        return None
    return answer


def _keep(path: Path, answer: Answer) -> None:
    """Write an answer to the cache. A failure is only logged, because the cache is optional."""
    heads: dict[str, Any] = {f"head{level}": head for level, head in enumerate(answer.heads)}
    try:
        with atomic_write(path) as temporary, temporary.open("wb") as stream:
            np.savez(stream, peak=answer.peak, peak_at=answer.peak_at, **heads)
        _prune(path.parent)
    except OSError as error:
        _log.info("%s cannot be written: %s", path, error)


def _prune(folder: Path) -> None:
    """Remove the least recently used files if all together exceed ``CACHE_BYTES``."""
    files = [(path.stat(), path) for path in folder.glob("*.npz")]
    total = 0
    for stat, path in sorted(files, key=lambda item: -item[0].st_mtime):
        total += stat.st_size
        if total > CACHE_BYTES:
            path.unlink(missing_ok=True)
