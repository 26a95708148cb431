"""``y7edge live``: detect in cameras and streams; show the result in a browser or a window."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from y7edge.cli.console import note, show
from y7edge.cli.models import open_detector
from y7edge.cli.options import (
    Backend,
    Classes,
    Conf,
    Device,
    Iou,
    Json,
    MaxDet,
    Model,
    Names,
    Size,
    Threads,
    UsageError,
    finite,
    out_folder,
)
from y7edge.errors import needing
from y7edge.text import printable

if TYPE_CHECKING:
    from y7edge.detect.detections import Detections
    from y7edge.detect.detector import Detector
    from y7edge.detect.streaming import Stream
    from y7edge.frames import Frame
    from y7edge.live.access import Guard, Listener
    from y7edge.live.feed import Limits
    from y7edge.live.loop import Loop
    from y7edge.live.outputs import Outputs
    from y7edge.live.server import Server
    from y7edge.live.window import Window

_NOTE_SECONDS = 60.0  # between two lines about the state, if standard error is not a terminal
_PAGE, _RESULTS = "Page in the browser", "Results"

_Sources = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCE",
        help="Cameras, streams, videos or test patterns: csi://0, /dev/video0, rtsp://..., "
        "test://scenes; several are detected together.",
    ),
]
_Web = Annotated[
    str | None,
    typer.Option(
        "--web",
        metavar="[HOST:]PORT",
        help="Serve a page with the images; the host is 127.0.0.1 by default, :0 is any port.",
        rich_help_panel=_PAGE,
    ),
]
_Token = Annotated[
    str | None,
    typer.Option(
        metavar="TOKEN",
        envvar="Y7EDGE_TOKEN",
        show_envvar=False,
        help="Secret that viewers need, at least 16 characters; auto: a new one. Required for a "
        "host that other machines reach. Also read from Y7EDGE_TOKEN.",
        rich_help_panel=_PAGE,
    ),
]
_Width = Annotated[
    int,
    typer.Option(
        "--web-width",
        min=64,
        max=8192,
        help="Maximum width of an image, pixels.",
        rich_help_panel=_PAGE,
    ),
]
_Quality = Annotated[
    int,
    typer.Option("--web-quality", min=1, max=100, help="JPEG quality.", rich_help_panel=_PAGE),
]
_Rate = Annotated[
    float,
    typer.Option(
        "--web-rate",
        min=0.1,
        max=120,
        callback=finite,
        help="Maximum images per second of a source.",
        rich_help_panel=_PAGE,
    ),
]
_Track = Annotated[
    bool,
    typer.Option(
        "--track",
        help="Track objects: each keeps its id from frame to frame.",
        rich_help_panel=_RESULTS,
    ),
]
_Save = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        callback=out_folder,
        help="Folder for videos with boxes, and their detections as JSON Lines.",
        rich_help_panel=_RESULTS,
    ),
]
_Record = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        callback=out_folder,
        help="Folder for frames without boxes, with capture times, for replay://FOLDER.",
        rich_help_panel=_RESULTS,
    ),
]
_SaveHard = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        callback=out_folder,
        help="Folder for frames that the model is unsure about, as a data set to be labelled.",
        rich_help_panel=_RESULTS,
    ),
]
_Duration = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS", min=0, callback=finite, help="End after this time; default: run on."
    ),
]


def live(
    model: Model,
    sources: _Sources,
    web: _Web = None,
    token: _Token = None,
    web_width: _Width = 960,
    web_quality: _Quality = 80,
    web_rate: _Rate = 15.0,
    track: _Track = False,
    save: _Save = None,
    record: _Record = None,
    save_hard: _SaveHard = None,
    duration: _Duration = None,
    conf: Conf = None,
    iou: Iou = None,
    max_det: MaxDet = None,
    classes: Classes = None,
    names: Names = None,
    imgsz: Size = None,
    backend: Backend = "auto",
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Detect in cameras and streams, always in the newest frame.

    With --web, a page shows images, boxes, rates and frame ages, and has a slider for the
    confidence threshold. Otherwise there is a window if the machine has a display (keys: q ends,
    space pauses, + and - change the threshold), else a line of status.

    --json prints one object for each frame, as `predict` does, with "timestamp_ns", "clock" (what
    the timestamp is) and "age_ms" (from the capture until now). Ctrl-C ends the program and prints
    a summary; the exit code is 130, but 0 at the end of a file and after --duration.
    """
    if web is None and token is not None and "Y7EDGE_TOKEN" not in os.environ:
        raise UsageError("--token is for the page: add --web")
    from y7edge.live.feed import Limits
    from y7edge.live.loop import Loop, Threshold, opening_conf
    from y7edge.live.outputs import Outputs

    with ExitStack() as stack:
        page = None if web is None else stack.enter_context(_Page.open(web, token))
        detector = stack.enter_context(
            open_detector(
                model,
                imgsz=imgsz,
                names=names,
                backend=backend,
                device=device,
                threads=threads,
                conf=opening_conf(conf),
                iou=iou,
                max_det=max_det,
                classes=classes or None,
            )
        )
        threshold = Threshold.of(detector.manifest, conf)
        stream = stack.enter_context(detector.stream(list(sources)))
        loop = Loop(stream, threshold, _tracking(stream) if track else None)
        outputs = Outputs(stream.names, detector.names, save, record, save_hard)
        stack.callback(_print_summary, outputs)  # after the files are complete
        stack.enter_context(outputs)
        loop.sinks.append(outputs.add)
        if as_json:
            loop.sinks.append(lambda _, frame, found, __: _print_record(frame, found))
        view: Window | _StatusLine | None = None
        started = ""
        if page is not None:
            limits = Limits(web_width, web_quality, web_rate)
            kept = {"videos": save, "frames": record, "frames to be labelled": save_hard}
            about = {**_about(detector), "recording": ", ".join(k for k, v in kept.items() if v)}
            server = page.serve(stack, loop, outputs, about, limits)
            loop.sinks.append(lambda name, frame, found, _: server.offer(name, frame, found))
            started = f"open {server.url}"
        elif not as_json:
            view = _window(loop)
        view = view or _StatusLine(loop, detector.names, as_json)
        _watch(loop, view, outputs, duration, started)


def _print_record(frame: Frame, found: Detections) -> None:
    age = frame.age_ns()
    record = {**found.to_dict(), "clock": frame.clock}
    show(record if age is None else {**record, "age_ms": round(age / 1e6, 1)}, [], as_json=True)


def _print_summary(outputs: Outputs) -> None:
    for line in outputs.summary():
        note(line)


def _watch(
    loop: Loop,
    view: Window | _StatusLine,
    outputs: Outputs,
    duration: float | None,
    started: str,
) -> None:
    """Run until the sources end, the time is over, or the user ends it; print a summary.

    ``started`` is printed at the start.
    """
    end = math.inf if duration is None else time.monotonic() + duration
    known: set[str] = set()
    try:
        loop.start()
        if started:
            note(started)
        while not loop.wait(min(view.interval, max(0.0, end - time.monotonic()))):
            if not view.update() or time.monotonic() >= end:
                break
            for problem in set(outputs.problems()) - known:
                known.add(problem)
                note(f"warning: {problem}; the detection goes on")
    finally:
        view.close()  # first: a second Ctrl-C must not leave a terminal without a cursor
        has_ended = loop.stop()
        for line in loop.summary():
            note(line)
        if not has_ended:
            note("the engine is still running, and was not waited for")
    loop.wait(0)  # raises what happened in the meantime


@dataclass(frozen=True)
class _Page:
    """The address of the page: opened first, because an occupied port is noticed at once."""

    listener: Listener
    guard: Guard

    @classmethod
    @contextmanager
    def open(cls, web: str, token: str | None) -> Iterator[_Page]:
        """Listen on an address; without the package aiohttp, raise RuntimeMissing."""
        from y7edge.live.access import Address, Guard

        with needing("aiohttp", "web", "--web"):
            import y7edge.live.server  # noqa: F401

        address = Address.parse(web)
        guard = Guard(address, token)
        with address.listen() as listener:
            yield cls(listener, guard)

    def serve(
        self,
        stack: ExitStack,
        loop: Loop,
        outputs: Outputs,
        about: Mapping[str, Any],
        limits: Limits,
    ) -> Server:
        """Start the server; it stops with the stack."""
        from y7edge.live.board import Board
        from y7edge.live.server import Server

        board = stack.enter_context(Board())
        server = Server(
            self.listener,
            self.guard,
            loop.threshold,
            about,
            list(loop.names),
            lambda: {
                "sources": loop.facts(),
                "board": board.read(),
                "problems": outputs.problems(),
            },
            limits,
        )
        return stack.enter_context(server)


def _about(detector: Detector) -> dict[str, Any]:
    """Return what the page shows of the model."""
    from y7edge.detect.drawing import class_colour

    info = detector.info
    height, width = info["imgsz"]
    versions = ", ".join(f"{name} {version}" for name, version in info["versions"].items())
    return {
        "model": printable(str(info["model"]))[:100],
        "engine": versions or info["backend"],
        "device": info["device"],
        "precision": info["precision"],
        "input": f"{width} x {height}",
        "proof": info["parity"],
        "names": [printable(name)[:60] for name in detector.names],
        "colours": [class_colour(i)[::-1] for i in range(len(detector.names))],
    }


def _tracking(stream: Stream) -> Callable[[str, Detections], Detections]:
    from y7edge.adapters.tracking import Tracker

    trackers = {name: Tracker(status.rate) for name, status in stream.status.items()}

    def track(name: str, found: Detections) -> Detections:
        # The files of a folder are one sequence, although each is the source of its frames.
        return replace(trackers[name].update(replace(found, source=name)), source=found.source)

    return track


def _window(loop: Loop) -> Window | None:
    """Return a window that shows the results; None if there is no display."""
    from y7edge.live.window import Window, can_open

    if not can_open():
        return None
    window = Window(loop.threshold)
    loop.sinks.append(lambda name, frame, found, _: window.offer(name, frame, found))
    return window


class _StatusLine:
    """One line for each source on standard error, refreshed if that is a terminal."""

    interval = 0.25

    def __init__(self, loop: Loop, names: Sequence[str], quiet: bool) -> None:
        from rich.console import Console
        from rich.live import Live

        console = Console(stderr=True)
        # Records on the same terminal would be mixed with lines that move.
        moves = sys.stderr.isatty() and not (quiet and sys.stdout.isatty())
        # Records on standard output are not redirected to the terminal.
        self._live = (
            Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False)
            if moves
            else None
        )
        self._loop, self._names = loop, names
        self._next = time.monotonic() + _NOTE_SECONDS

    def update(self) -> bool:
        """Print the state."""
        from rich.text import Text

        if self._live is not None:
            self._live.start()  # does nothing later
            self._live.update(Text("\n".join(self._lines()), no_wrap=True, overflow="ellipsis"))
            self._live.refresh()
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + _NOTE_SECONDS
            for line in self._lines():
                note(line)
        return True

    def _lines(self) -> Iterator[str]:
        rows = self._loop.facts()
        for row in rows:
            age = row["age"]
            objects = (f"{count} {self._names[i]}" for i, count in row["objects"].items())
            # A terminal may cut the end: the name of the only source is known.
            parts = [
                row["state"],
                ", ".join(objects) or "no objects",
                *([f"no result for {row['silent']:.0f} s"] if row["silent"] else []),
                f"{row['rate']:.1f} frames/s",
                *([f"age p50 {age['p50_ms']:.0f}, p99 {age['p99_ms']:.0f} ms"] if age else []),
                f"{row['dropped']} dropped",
                *([row["problem"]] if row["problem"] and row["state"] != "running" else []),
            ]
            start = f"{row['name']}: " if len(rows) > 1 else ""
            yield printable(start + " · ".join(parts))

    def close(self) -> None:
        """Remove the line."""
        if self._live is not None:
            self._live.stop()
