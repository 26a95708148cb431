"""Train models (needs torch).

The functions are imported on first use::

    from y7edge.train import TrainConfig, for_terminal, train

    config = TrainConfig(data="data.yaml", model="yolov7-tiny", imgsz=320, epochs=60)
    result = train(config, progress=for_terminal())
    print(result.best, result.metrics.map50_95)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from y7edge.errors import public_name

if TYPE_CHECKING:
    from y7edge.train.run.loop import TrainResult, resume, train
    from y7edge.train.run.progress import for_terminal
    from y7edge.train.settings.config import TrainConfig
    from y7edge.train.settings.recipes import RECIPES

__all__ = ["RECIPES", "TrainConfig", "TrainResult", "for_terminal", "resume", "train"]

_ELSEWHERE = {
    "RECIPES": "y7edge.train.settings.recipes",
    "TrainConfig": "y7edge.train.settings.config",
    "TrainResult": "y7edge.train.run.loop",
    "for_terminal": "y7edge.train.run.progress",
    "resume": "y7edge.train.run.loop",
    "train": "y7edge.train.run.loop",
}


def __getattr__(name: str) -> Any:
    return public_name(__name__, _ELSEWHERE, name, "train")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
