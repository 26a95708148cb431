"""Measure what a program sees when its camera fails, and after how long.

    python examples/research/camera_faults.py                   # a Markdown table, a minute
    python examples/research/camera_faults.py --only stall hang-at-open

This is the table of docs/cameras.md. The faults are those of ``test://pattern``, at 30 frames per
second after 30 frames; the program reads with a time-out of 20 ms. Times are in seconds since the
last frame before the fault, or since the call that is named.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from y7edge.errors import SourceError, SourceTimeout
from y7edge.frames import Frame
from y7edge.sources.base import Source
from y7edge.sources.capture import Camera

DEVICE = "v4l2:///dev/video0"  # by its name, a device with one client
FPS, AFTER = 30, 30


class Row(NamedTuple):
    """A line of the table."""

    fault: str
    seen: str
    noticed: str
    again: str


def open_pattern(
    fault: str | None, after: int = AFTER, *, name: str | None = None, **arguments: Any
) -> Camera:
    """Open a test pattern with a fault."""
    name = name or f"test://pattern?fault={fault}&after={after}"
    options = {"fps": FPS, "fault": fault, "after": after}
    return Camera(name, "pattern", options, **arguments)


class Seen(NamedTuple):
    """What a program sees of a fault; times are in seconds since the last frame before it."""

    noticed: float  # until the state is not "running"
    state: str
    problem: str
    again: float  # until the next frame


def next_frame(source: Source) -> Frame:
    """Return the next frame of a camera that does not end."""
    frame = source.read(10)
    assert frame is not None
    return frame


def between(first: Frame, second: Frame) -> float:
    """Return the seconds between two frames."""
    return ((second.timestamp_ns or 0) - (first.timestamp_ns or 0)) / 1e9


def watch(source: Source, seconds: float = 40.0) -> Seen:
    """Read until there are frames again after a fault."""
    frames: list[Frame] = []
    noticed, state, problem = 0, "", ""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            frame = source.read(0.02)
        except SourceTimeout:
            status = source.status
            if frames and not state and status.state not in ("opening", "running"):
                noticed = frames[-1].age_ns(time.monotonic_ns()) or 0
                state, problem = status.state, status.problem or ""
            continue
        assert frame is not None
        if state:
            return Seen(noticed / 1e9, state, problem, between(frames[-1], frame))
        frames.append(frame)
    raise SystemExit(f"{source.name}: nothing happened within {seconds} s: {source.status}")


def reopened(fault: str, text: str, name: str | None = None) -> Row:
    """Measure a fault after which the source is opened again."""
    with open_pattern(fault, name=name) as source:
        seen = watch(source)
    state = f'state "{seen.state}", problem "{seen.problem}"'
    return Row(text, f"`SourceTimeout`; {state}", f"{seen.noticed:.1f}", f"{seen.again:.1f}")


def stall() -> Row:
    """No more frames."""
    return reopened("stall", "stalled: no more frames (`stall`)")


def hang() -> Row:
    """A call of the driver does not return; another client can open the stream."""
    return reopened("hang", "a call of the driver hangs; a network stream (`hang`)")


def hang_device() -> Row:
    """A call of the driver does not return; the device has one client."""
    return reopened(
        "hang", "a call of the driver hangs; a device with one client (CSI, V4L2)", DEVICE
    )


def crash() -> Row:
    """The process is killed."""
    return reopened("crash", "the driver or a library crashes (`crash`)")


def end() -> Row:
    """The stream ends."""
    return reopened("end", "the camera ends the stream (`end`)")


def error() -> Row:
    """The device reports an error."""
    return reopened("error", "the device reports an error, is unplugged (`error`)")


def corrupt() -> Row:
    """Frames have too few bytes."""
    return reopened(
        "corrupt", "frames have too few bytes; they are dropped and counted (`corrupt`)"
    )


def slow() -> Row:
    """A tenth of the rate."""
    with open_pattern("slow") as source:
        last = time.monotonic()
        while source.status.problem is None:
            if next_frame(source).sequence < AFTER:
                last = time.monotonic()
        seconds = time.monotonic() - last
        status = source.status
    seen = f'frames; state "{status.state}", problem "{status.problem}"'
    return Row("a tenth of the frames (`slow`)", seen, f"{seconds:.1f}", "-")


def resize() -> Row:
    """The resolution changes."""
    with open_pattern("resize") as source:
        frames = [next_frame(source)]
        while frames[-1].size == frames[0].size:
            frames.append(next_frame(source))
        seconds = between(frames[-2], frames[-1])
    return Row("the resolution changes (`resize`)", "frames of the new size", "-", f"{seconds:.2f}")


def failed(call: Callable[[], object]) -> tuple[str, float]:
    """Return the error of a call, and how long it took."""
    begin = time.monotonic()
    try:
        call()
    except SourceError as problem:
        return f"`SourceError`: {problem}", time.monotonic() - begin
    raise SystemExit("no SourceError was raised")


def missing() -> Row:
    """The device does not exist."""
    seen, seconds = failed(lambda: open_pattern("error", -1))
    return Row("the device cannot be opened", f"opening raises {seen}", f"{seconds:.1f}", "-")


def hang_at_open() -> Row:
    """The driver hangs while the device is opened."""
    seen, seconds = failed(lambda: open_pattern("hang", -1, open_timeout=2))
    text = "the driver hangs when the device is opened, `open_timeout=2`"
    return Row(text, f"opening raises {seen}", f"{seconds:.1f}", "-")


def no_frame() -> Row:
    """The device opens, and sends nothing."""
    with open_pattern("stall", 0, open_timeout=2) as source:
        seen, seconds = failed(source.read)
    text = "the device opens, but sends no frame, `open_timeout=2`"
    return Row(text, f"`read()` raises {seen}", f"{seconds:.1f}", "-")


def gone() -> Row:
    """The device fails again and again."""

    def read_all(source: Source) -> None:
        while True:
            source.read()

    with open_pattern("error", 1, retries=4) as source:
        seen, seconds = failed(lambda: read_all(source))
    return Row(
        "fails again and again, `retries=4`", f"`read()` raises {seen}", f"{seconds:.1f}", "-"
    )


def close_hanging() -> Row:
    """Close a camera whose driver hangs."""
    with open_pattern("hang", 1, name=DEVICE) as source:
        source.read(10)
        time.sleep(0.5)
        begin = time.monotonic()
    closed = time.monotonic() - begin
    with open_pattern(None, name=DEVICE) as following:
        opened = time.monotonic() - begin
        problem = following.status.problem
    return Row(
        "`close()` while a call of the driver hangs",
        f'`close()` returns; the process is killed; the next opening waits, problem "{problem}"',
        f"{closed:.1f}",
        f"{opened:.1f}",
    )


def is_running(process: str) -> bool:
    """Return whether a process has not ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def parent_killed() -> Row:
    """The program is killed by SIGKILL."""
    code = (
        "import time; from y7edge.sources.capture import Camera\n"
        "source = Camera('test://pattern', 'pattern', {}); source.read()\n"
        "print(source.status.state, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        program.stdout.readline()
        children = {
            number
            for tasks in Path(f"/proc/{program.pid}/task").glob("*/children")
            for number in tasks.read_text().split()
        }
        begin = time.monotonic()
        os.kill(program.pid, signal.SIGKILL)
        while any(map(is_running, children)):
            time.sleep(0.005)
    seconds = time.monotonic() - begin
    return Row(
        "the program is killed by SIGKILL", "the capture process ends", f"{seconds:.2f}", "-"
    )


def slow_reader() -> Row:
    """The program is ten times slower than the camera."""
    with open_pattern(None) as source:
        ages = []
        for _ in range(20):
            time.sleep(10 / FPS)
            frame = next_frame(source)
            ages.append((frame.age_ns(time.monotonic_ns()) or 0) / 1e6)
        status = source.status
    text = (
        f"the newest frame, {sorted(ages)[10]:.0f} ms old (median), at most {max(ages):.0f} ms; "
        f"{status.frames} made = {len(ages)} read + {status.dropped} dropped"
    )
    return Row("the program is ten times slower than the camera", text, "-", "-")


ROWS: dict[str, Callable[[], Row]] = {
    row.__name__.replace("_", "-"): row
    for row in (
        *(stall, slow, corrupt, resize, error, end, crash, hang, hang_device),
        *(missing, hang_at_open, no_frame, gone, close_hanging, parent_killed, slow_reader),
    )
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS))
    chosen = parser.parse_args().only
    logging.getLogger("y7edge.sources").addHandler(logging.NullHandler())  # the table says it all
    print("| fault | what the program sees | noticed after (s) | frames again after (s) |")
    print("|---|---|---|---|")
    for name in chosen:
        print(f"| {' | '.join(ROWS[name]())} |", flush=True)


if __name__ == "__main__":
    main()
