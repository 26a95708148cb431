"""Outputs of the unfolded training model, which every artifact is compared with.

It runs in torch, float32, on the CPU, once for each checkpoint and input; answers are kept on disk,
in ``$Y7EDGE_CACHE``, else ``~/.cache/y7edge``. The key of an answer covers weights, input, torch
and the sources of the model, so that no other model's answer is taken for this one's.
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
from y7edge.files import atomic_write, cache_folder
from y7edge.models.weights import Checkpoint
from y7edge.runtimes.base import require

if TYPE_CHECKING:
    from torch import Tensor, nn

    from y7edge.nn.build import Model

CACHE_BYTES = 2 << 30
"""The cache keeps its newest answers up to this size."""

_SOURCES = ("nn", "models")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """Reference outputs for one input.

    ``heads``: per level (B, anchors x (5 + nc), H, W) float32, in the layout of an exported graph.
    ``peak``: largest magnitude that any activation takes between two layers, before its
    non-linearity; ``peak_at`` names the layer.
    """

    heads: tuple[NDArray[np.float32], ...]
    peak: float
    peak_at: str


class Reference:
    """A checkpoint as it was trained: BatchNorm, branches and implicit knowledge in place."""

    def __init__(self, checkpoint: Checkpoint, folder: Path | None = None) -> None:
        """Nothing runs yet; RuntimeMissing if torch is not installed."""
        require({"torch": "y7edge[export]"}, "a proof")
        self.checkpoint = checkpoint
        self._folder = folder or cache_folder("reference")

    @property
    def description(self) -> str:
        """The reference, for reports."""
        form = self.checkpoint.form
        state = "folded already" if form == "folded" else f"{form} form, not folded"
        return f"{state}, float32, torch {version('torch')}"

    def answer(self, pixels: NDArray[np.float32]) -> Answer:
        """What the model gives for an input (B, 3, H, W), from the cache if it was asked before.

        Raises:
            ParityError: NaN or infinity, with which nothing can be compared.
        """
        path = self._folder / f"{self._key(pixels)}.npz"
        kept = _read(path, self.checkpoint.spec.levels)
        if kept is not None:
            return kept
        answer = _run(self._model, pixels)
        for level, head in enumerate(answer.heads):
            if not np.isfinite(head).all():
                problem = f"inconclusive, head{level} of the checkpoint itself is NaN or infinite"
                report = ParityReport("inconclusive", (problem,))
                raise ParityError(f"{problem}: train again, or take another checkpoint", report)
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
    heads = tuple(_as_convolution(raw) for raw in raws)
    for level, head in enumerate(heads):
        peaks[f"head{level}"] = float(np.abs(head).max())
    peak_at = max(peaks, key=lambda name: peaks[name])
    return Answer(heads, peaks[peak_at], peak_at)


def _as_convolution(raw: NDArray[np.float32]) -> NDArray[np.float32]:
    """(B, A, H, W, 5 + nc) to (B, A x (5 + nc), H, W)."""
    batch, anchors, height, width, values = raw.shape
    planes = raw.transpose(0, 1, 4, 2, 3)
    return np.ascontiguousarray(planes).reshape(batch, anchors * values, height, width)


def _watch(name: str, module: nn.Module, peaks: dict[str, float]) -> list[Any]:
    """Hooks that note the largest magnitude of what a folded graph computes at this module.

    A folded convolution gives what goes into the activation here; sums are the only other place
    where values grow.
    """
    from torch import nn

    from y7edge.nn.blocks import Sum

    layer = name.removesuffix(".act")

    def note(tensor: Tensor) -> None:
        peaks[layer] = max(peaks.get(layer, 0.0), float(tensor.abs().max()))

    if isinstance(module, nn.SiLU | nn.LeakyReLU):
        return [module.register_forward_pre_hook(lambda _, inputs: note(inputs[0]))]
    if isinstance(module, Sum):
        return [module.register_forward_hook(lambda _, __, output: note(output))]
    return []


# --- the cache -----------------------------------------------------------------------------------


@cache
def _code() -> str:
    """Digest of the sources that make the reference, and of torch's version."""
    state = hashlib.sha256(version("torch").encode())
    root = Path(y7edge.__file__).parent
    for folder in _SOURCES:
        for path in sorted((root / folder).glob("*.py")):
            state.update(path.name.encode() + path.read_bytes())
    return state.hexdigest()


def _read(path: Path, levels: int) -> Answer | None:
    """A kept answer; None if there is none or it is damaged (the archive holds check sums)."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            heads = tuple(kept[f"head{level}"] for level in range(levels))
            answer = Answer(heads, float(kept["peak"]), str(kept["peak_at"]))
        path.touch()
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        _log.info("%s cannot be used and is made again: %s", path, error)
        return None
    return answer


def _keep(path: Path, answer: Answer) -> None:
    """Write an answer; without a writable folder the proof only takes longer next time."""
    heads: dict[str, Any] = {f"head{level}": head for level, head in enumerate(answer.heads)}
    try:
        with atomic_write(path) as temporary, temporary.open("wb") as stream:
            np.savez(stream, peak=answer.peak, peak_at=answer.peak_at, **heads)
        _prune(path.parent)
    except OSError as error:
        _log.info("%s cannot be written: %s", path, error)


def _prune(folder: Path) -> None:
    """Remove the answers that were used least recently, beyond ``CACHE_BYTES``."""
    files = [(path.stat(), path) for path in folder.glob("*.npz")]
    total = 0
    for stat, path in sorted(files, key=lambda item: -item[0].st_mtime):
        total += stat.st_size
        if total > CACHE_BYTES:
            path.unlink(missing_ok=True)
