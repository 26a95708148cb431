"""A page with a made source, and the demo's model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from y7edge.detect.detections import Detections
from y7edge.frames import Frame
from y7edge.live.access import Address, Guard
from y7edge.live.feed import Limits
from y7edge.live.loop import Threshold

NAMES = ("nut", "washer", "schraube mit Öse")
ROW = {
    "name": "cam",
    "state": "running",
    "problem": None,
    "rate": 29.6,
    "silent": None,
    "stated_rate": 30.0,
    "results": 5,
    "frames": 7,
    "dropped": 2,
    "reconnects": 0,
    "age": {"count": 5.0, "p50_ms": 12.0, "p95_ms": 20.0, "p99_ms": 31.0, "max_ms": 40.0},
    "objects": {0: 1},
    "model_id": None,
}
BOARD = {"sensor": "cpu", "celsius": 51.5}
ABOUT = {
    "model": "demo",
    "model_id": None,
    "engine": "onnxruntime 1",
    "device": "cpu",
    "precision": "fp32",
    "input": "160 x 160",
    "proof": "passed",
    "recording": "",
    "names": list(NAMES),
    "colours": [[255, 0, 0], [0, 0, 255], [0, 128, 0]],
}


def make_result(number: int = 0, size: tuple[int, int] = (320, 240), boxes: int = 2):
    """A frame whose grey is its number, and detections with falling confidence."""
    width, height = size
    image = np.full((height, width, 3), number % 256, np.uint8)
    left = np.arange(boxes, dtype=np.float32) * 40
    xyxy = np.stack([left, left + 10, left + 30, left + 60], axis=1)
    found = Detections(
        xyxy,
        0.9 - 0.2 * np.arange(boxes),
        np.arange(boxes) % len(NAMES),
        size,
        NAMES,
        frame_id=number,
        source="cam",
    )
    return Frame(image, sequence=number, source="cam"), found


class Page:
    """A server, and what it was made of."""

    def __init__(self, server: Any, threshold: Threshold, guard: Guard, facts: dict) -> None:
        self.server, self.threshold, self.guard, self.facts = server, threshold, guard, facts
        self.rows: list[dict] = facts["sources"]

    @property
    def url(self) -> str:
        """The address without the token."""
        return self.server.url.partition("?")[0].rstrip("/")

    @property
    def port(self) -> int:
        """The port."""
        return int(self.url.rsplit(":", 1)[1])

    def offer(self, number: int = 0, **options: Any) -> None:
        """Offer a frame of the first source."""
        self.server.offer(self.rows[0]["name"], *make_result(number, **options))


@pytest.fixture
def open_page() -> Iterator[Callable[..., Page]]:
    """Return a function that starts a server on a free port; they stop after the test."""
    pytest.importorskip("aiohttp")
    from y7edge.live.server import Server

    with ExitStack() as stack:

        def start(
            token: str | None = None,
            sources: tuple[str, ...] = ("cam",),
            address: str = "127.0.0.1:0",
            about: Mapping[str, Any] = ABOUT,
            **limits: Any,
        ) -> Page:
            place, threshold = Address.parse(address), Threshold(0.25, 0.05)
            guard = Guard(place, token)
            rows = [{**ROW, "name": name} for name in sources]
            facts = {"sources": rows, "problems": [], "board": BOARD}
            server = Server(
                place.listen(),
                guard,
                threshold,
                about,
                list(sources),
                lambda: facts,
                Limits(**{"rate": 100, **limits}),
            )
            return Page(stack.enter_context(server), threshold, guard, facts)

        yield start


@pytest.fixture(scope="session")
def demo_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's model, exported."""
    from y7edge.export import export
    from y7edge.models import weights

    path = tmp_path_factory.mktemp("demo") / "demo.onnx"
    checkpoint = weights.load(Path(__file__).parents[1] / "reference" / "demo.safetensors")
    return export(checkpoint, path, imgsz=(160, 160)).path
