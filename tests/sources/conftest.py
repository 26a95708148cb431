"""Cameras that are closed after each test, and grabbers of these tests."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from tests.sources import processes
from y7edge.sources import child, supervisor
from y7edge.sources.capture import Camera

GRABBERS = Path(__file__).parent / "grabbers"


@pytest.fixture
def camera():
    """Open test patterns, or other grabbers of ``kind``; they are closed after the test."""
    # Processes that hung in another test.
    until(lambda: not [t for t in threading.enumerate() if t.name == "y7edge camera"])
    supervisor._killed.clear()
    processes.OTHERS[:] = processes.all_children()
    opened = []

    def open_camera(kind="pattern", name="test://pattern", **options):
        own = ("rate", "open_timeout", "retries")
        arguments = {key: options.pop(key) for key in own if key in options}
        opened.append(Camera(name, kind, options, **arguments))
        return opened[-1]

    yield open_camera
    for one in opened:
        one.close()


@pytest.fixture
def grabbers(monkeypatch):
    """Let child processes find the grabbers in tests/sources/grabbers."""
    ours = f"import y7edge.sources; y7edge.sources.__path__.append({str(GRABBERS)!r});"
    code = child._CODE.replace("from y7edge.sources.worker", ours + "from y7edge.sources.worker")
    assert ours in code
    monkeypatch.setattr(child, "_CODE", code)


@pytest.fixture
def quick(monkeypatch):
    """Shorten the times after which a process that hangs is ended, and the device opened again."""
    monkeypatch.setattr(child, "TERM_S", 1.2)
    monkeypatch.setattr(child, "KILL_S", 1.6)
    monkeypatch.setattr(supervisor, "_FIRST_DELAY_S", 0.1)


def until(condition, seconds=20.0):
    """Wait for a condition; return its value."""
    end = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < end:
        time.sleep(0.01)
    assert value, "the condition did not become true in time"
    return value


@pytest.fixture(name="until")
def until_fixture():
    return until
