"""Configure a quantisation-aware training."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from y7edge.artifact.schema import require_fit
from y7edge.train.settings.ranges import FROM_ONE, POSITIVE, Range, check_ranges, within

ROUNDS = 10
"""Number of evaluations: one after each tenth of the iterations."""

_FULL = 8  # parts with the full learning rate
_SEED = Range("a whole number from 0, below 2**63", high=2**63 - 1, whole=True)
_ITERATIONS = Range(f"a whole number from {ROUNDS}", low=ROUNDS, whole=True)
_SIDE = replace(FROM_ONE, optional=True)


@dataclass(frozen=True, slots=True)
class QatConfig:
    """Configuration of one run.

    The optimizer is Adam, as in NVIDIA's training of YOLOv7
    (https://github.com/NVIDIA-AI-IOT/yolo_deepstream, yolov7_qat), with the same learning rate of
    the weights, and a tenth of it in the last two of ten parts. NVIDIA's training does not change
    the ranges, and has 2000 iterations.

    Raises:
        ConfigError: a field is out of its range.
    """

    checkpoint: Path | str  # the float checkpoint, of any form
    data: Path | str  # a data set, or a folder of images without labels
    profile: str = "u8s8"  # of the quantised graph
    ranges: str | None = None  # method that chooses ranges of activations; None: the default
    calib_images: int = within(FROM_ONE, 256)  # images for these ranges
    quantize_heads: bool = False  # also quantise the convolutions that write the outputs
    imgsz: int | None = within(_SIDE, None)  # side of the input, pixels; None: the checkpoint's
    iterations: int = within(_ITERATIONS, 400)
    batch: int = within(FROM_ONE, 10)
    lr: float = within(POSITIVE, 1e-5)  # of weights and biases
    ranges_lr: float = within(POSITIVE, 5e-3)  # of the logarithms of the ranges
    device: str = "auto"  # auto, cpu, cuda, cuda:N
    out: Path | str | None = None  # folder of the run; None: the next free runs/trainN
    checkpoint_minutes: float = within(POSITIVE, 10.0)  # between saved states
    seed: int = within(_SEED, 0)

    def __post_init__(self) -> None:
        require_fit(QatConfig, {f.name: getattr(self, f.name) for f in fields(self)})
        check_ranges(self)

    def ends(self, part: int) -> int:
        """Return the number of iterations after ``part`` of the ``ROUNDS`` parts."""
        return self.iterations * part // ROUNDS

    def learning_rates(self, part: int) -> tuple[float, float]:
        """Return the learning rates of weights and ranges in a part, counted from 0."""
        factor = 1.0 if part < _FULL else 0.1
        return factor * self.lr, factor * self.ranges_lr

    def to_dict(self) -> dict[str, Any]:
        """Return values for YAML."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}
