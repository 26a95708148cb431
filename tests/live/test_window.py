"""The window, with OpenCV's functions replaced: there is no display here."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from tests.live.conftest import make_result
from y7edge.frames import Frame
from y7edge.live import window as module
from y7edge.live.loop import Threshold
from y7edge.live.window import Window, can_open


class Display:
    """Windows by title, and the keys that are pressed next."""

    def __init__(self) -> None:
        self.shown: dict[str, np.ndarray] = {}
        self.sizes: dict[str, tuple[int, int]] = {}
        self.keys: list[str] = []
        self.visible: set[str] = set()

    def show(self, title, image):
        self.shown[title] = image
        self.visible.add(title)

    def wait(self, _):
        return ord(self.keys.pop(0)) if self.keys else -1


@pytest.fixture
def display(monkeypatch):
    made = Display()
    monkeypatch.setattr(cv2, "imshow", made.show)
    monkeypatch.setattr(cv2, "waitKey", made.wait)
    monkeypatch.setattr(cv2, "namedWindow", lambda *_: None)
    monkeypatch.setattr(cv2, "resizeWindow", lambda t, w, h: made.sizes.update({t: (w, h)}))
    monkeypatch.setattr(cv2, "getWindowProperty", lambda t, _: float(t in made.visible))
    monkeypatch.setattr(cv2, "destroyWindow", lambda title: made.shown.pop(title))
    return made


def test_each_source_has_a_window_with_the_newest_image(display):
    window = Window(Threshold(0.25, 0.05))
    assert window.update()
    for number in (10, 20):
        window.offer("cam", *make_result(number, size=(2560, 1440), boxes=0))
    nv12 = Frame(np.full((96, 64), 128, np.uint8), "nv12")
    window.offer("nv12\x1b", nv12, make_result(size=(64, 64))[1])
    assert window.update()
    assert set(display.shown) == {"cam", "nv12\\x1b"}
    assert display.shown["cam"][0, 0].tolist() == [20, 20, 20]
    assert display.sizes["cam"] == (1280, 720)
    assert len(np.unique(display.shown["nv12\\x1b"])) > 3, "no boxes"
    window.close()
    assert not display.shown


def test_keys(display):
    threshold = Threshold(0.25, 0.05)
    window = Window(threshold)
    window.offer("cam", *make_result(1))
    for key, value in (("+", 0.3), ("=", 0.35), ("-", 0.3), ("x", 0.3)):
        display.keys.append(key)
        assert window.update()
        assert threshold.value == value
    display.keys = ["-"] * 30
    while display.keys:
        assert window.update()
    assert threshold.value == 0.05
    display.keys.append(" ")
    assert window.update()
    window.offer("cam", *make_result(2, boxes=0))
    assert window.update()
    assert display.shown["cam"][0, 0, 0] == 1, "paused"
    display.keys.append(" ")
    window.update()
    window.offer("cam", *make_result(3, boxes=0))
    window.update()
    assert display.shown["cam"][0, 0, 0] == 3


@pytest.mark.parametrize("key", ["q", "\x1b"])
def test_a_key_ends_it(display, key):
    window = Window(Threshold(0.25, 0.05))
    window.offer("cam", *make_result())
    display.keys.append(key)
    assert not window.update()


def test_closing_the_window_ends_it(display):
    window = Window(Threshold(0.25, 0.05))
    window.offer("cam", *make_result())
    assert window.update()
    display.visible.clear()
    assert not window.update()


def test_a_window_needs_a_display(monkeypatch):
    monkeypatch.setattr(cv2, "currentUIFramework", lambda: "QT")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert not can_open()
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(module, "_TRIAL", "")
    assert can_open()
    monkeypatch.setattr(cv2, "currentUIFramework", lambda: "")  # opencv-python-headless
    assert not can_open()


@pytest.mark.parametrize(
    "trial", [module._TRIAL, "import os; os.abort()", "import time; time.sleep(99)"]
)
def test_a_display_that_cannot_be_opened_does_not_end_the_program(trial, monkeypatch, caplog):
    """OpenCV's windows abort the process then, for example after ssh without -X."""
    monkeypatch.setattr(cv2, "currentUIFramework", lambda: "QT")
    monkeypatch.setenv("DISPLAY", ":987")
    monkeypatch.setattr(module, "_TRIAL", trial)
    monkeypatch.setattr(module, "_TRIAL_SECONDS", 20.0 if "cv2" in trial else 0.5)
    assert not can_open()
    assert "OpenCV cannot open the display" in caplog.text
