"""A window with the newest image of each source, drawn by OpenCV."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from contextlib import suppress

import cv2

from y7edge.detect.detections import Detections
from y7edge.detect.drawing import draw
from y7edge.frames import Frame
from y7edge.live.loop import Threshold
from y7edge.text import printable

_STEP = 0.05  # of the threshold, by the keys + and -
_QUIT = "q\x1b"  # and Esc
_LARGEST = 1280  # pixels, of the window when it opens


# Without a core file, because the library Qt aborts if it cannot open the display.
_TRIAL = """
import resource, cv2
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
cv2.namedWindow("y7edge")
"""
_TRIAL_SECONDS = 20.0


def can_open() -> bool:
    """Return whether there is a display, and this OpenCV can open windows there."""
    try:
        framework = cv2.currentUIFramework()
    except (AttributeError, cv2.error):  # OpenCV before 4.5.5, or without windows
        return False
    displays = ("DISPLAY", "WAYLAND_DISPLAY")
    has_display = not sys.platform.startswith("linux") or any(map(os.environ.get, displays))
    if not framework or not has_display:
        return False
    if not (works := not sys.platform.startswith("linux") or _try()):
        logging.getLogger(__name__).warning(
            "no window, because OpenCV cannot open the display; --web 8080 serves a page"
        )
    return works


def _try() -> bool:
    """Open a window in another process, which may be aborted."""
    command = [sys.executable, "-c", _TRIAL]
    quiet = subprocess.DEVNULL
    try:
        done = subprocess.run(
            command, stdin=quiet, stdout=quiet, stderr=quiet, timeout=_TRIAL_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


class Window:
    """Show images with boxes; keys: q or Esc ends, space pauses, + and - change the threshold.

    ``offer`` may be called by any thread, all other methods by the main thread only, because
    windows belong to it on some systems.
    """

    interval = 0.01
    """Seconds between two calls of ``update``."""

    def __init__(self, threshold: Threshold) -> None:
        self._threshold = threshold
        self._paused = False
        self._lock = threading.Lock()
        self._newest: dict[str, tuple[Frame, Detections]] = {}
        self._opened: set[str] = set()
        self._visible: set[str] = set()

    def offer(self, source: str, frame: Frame, found: Detections) -> None:
        """Show a frame of a source and its detections at the next ``update``."""
        with self._lock:
            self._newest[printable(source)] = frame, found

    def update(self) -> bool:
        """Draw what is new, and obey the keys; return False if the user wants to end."""
        with self._lock:
            newest, self._newest = self._newest, {}
        for title, (frame, found) in ({} if self._paused else newest).items():
            image = draw(frame, found)
            if title not in self._opened:
                self._open(title, image.shape[1], image.shape[0])
            cv2.imshow(title, image)
        if not self._opened:
            return True
        key = cv2.waitKey(1)
        return not self._obey(chr(key & 0xFF) if key >= 0 else "") and not self._is_closed()

    def _obey(self, key: str) -> bool:
        """Carry out a key; return whether the user wants to end."""
        if key == " ":
            self._paused = not self._paused
        elif key and key in "+=-":  # = is + without the shift key
            value = self._threshold.value + (-_STEP if key == "-" else _STEP)
            self._threshold.set(min(max(round(value, 2), self._threshold.floor), 1.0))
        return bool(key) and key in _QUIT

    def _is_closed(self) -> bool:
        """Return whether the user has closed a window; new ones are not visible at once."""
        titles = self._opened
        visible = {t for t in titles if cv2.getWindowProperty(t, cv2.WND_PROP_VISIBLE) >= 1}
        is_closed = bool(self._visible - visible)
        self._visible |= visible
        return is_closed

    def _open(self, title: str, width: int, height: int) -> None:
        cv2.namedWindow(title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)
        scale = min(1.0, _LARGEST / max(width, height))
        cv2.resizeWindow(title, round(width * scale), round(height * scale))
        self._opened.add(title)

    def close(self) -> None:
        """Close all windows."""
        for title in self._opened:
            with suppress(cv2.error):  # the user has closed it
                cv2.destroyWindow(title)
        self._opened.clear()
