"""``y7edge live``: detect in cameras and streams; show the result in a browser or a window."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from y7edge.cli.console import note, show
from y7edge.cli.logs import REMARKS, Level, logging_to
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
    out_file,
    out_folder,
)
from y7edge.cli.service import Service
from y7edge.cli.status_line import StatusLine
from y7edge.errors import ConfigError, needing
from y7edge.text import printable

if TYPE_CHECKING:
    from y7edge.artifact.manifest import Manifest
    from y7edge.detect.detections import Detections
    from y7edge.detect.detector import Detector
    from y7edge.detect.streaming import Stream
    from y7edge.frames import Frame
    from y7edge.live.access import Guard, Listener
    from y7edge.live.board import Board
    from y7edge.live.feed import Limits
    from y7edge.live.loop import Loop
    from y7edge.live.operation import Operation
    from y7edge.live.outputs import Outputs
    from y7edge.live.server import Server
    from y7edge.live.window import Window

_PAGE, _RESULTS, _SERVICE = "Page in the browser", "Results", "Long runs"
_log = logging.getLogger(REMARKS)

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
_Health = Annotated[
    str | None,
    typer.Option(
        "--health",
        metavar="[HOST:]PORT",
        help="Answer GET /health with 200, or with 503 if detection has stopped; the host is "
        "127.0.0.1 by default.",
        rich_help_panel=_SERVICE,
    ),
]
_Silence = Annotated[
    float,
    typer.Option(
        metavar="SECONDS",
        min=0.1,
        callback=finite,
        help="Time without a result of a source after which it is not healthy.",
        rich_help_panel=_SERVICE,
    ),
]
_LogFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        callback=out_file,
        help="Also log to this file; at 5 MB it is renamed, and 5 older files are kept.",
        rich_help_panel=_SERVICE,
    ),
]
_LogLevel = Annotated[
    Level | None,
    typer.Option(
        help="Least level that is logged; default: info in the file, warning on standard error.",
        rich_help_panel=_SERVICE,
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
    health: _Health = None,
    silence: _Silence = 10.0,
    log_file: _LogFile = None,
    log_level: _LogLevel = None,
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
    if web is health is None and token is not None and "Y7EDGE_TOKEN" not in os.environ:
        raise UsageError("--token is for the page and for the health: add --web or --health")
    if token == "auto" and web is None and health is not None:
        raise UsageError("--token auto is printed with the address of the page: choose a token")
    from y7edge.live.access import new_token
    from y7edge.live.feed import Limits
    from y7edge.live.loop import opening_conf

    token = new_token() if token == "auto" else token  # the same for both
    with ExitStack() as stack:
        stack.enter_context(logging_to(log_file, log_level))
        service = stack.enter_context(Service.open(health, token, silence))
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
        limits = Limits(web_width, web_quality, web_rate)
        kept = _Kept(save, record, save_hard)
        program = _Program(stack, model, detector, conf, list(sources), track, kept, as_json)
        program.run(page, limits, service, duration)


@dataclass(frozen=True)
class _Kept:
    """The folders in which results are kept."""

    save: Path | None
    record: Path | None
    save_hard: Path | None

    def __str__(self) -> str:
        names = {
            "videos": self.save,
            "frames": self.record,
            "frames to be labelled": self.save_hard,
        }
        return ", ".join(name for name, folder in names.items() if folder)


class _Program:
    """The detector, its sources, and what becomes of the results."""

    def __init__(
        self,
        stack: ExitStack,
        model: str,
        detector: Detector,
        conf: float | None,
        sources: list[str],
        track: bool,
        kept: _Kept,
        as_json: bool,
    ) -> None:
        from y7edge.live.loop import Loop, Threshold
        from y7edge.live.outputs import Outputs

        self._stack, self._model, self._conf, self._kept = stack, model, conf, kept
        self._detector, self._as_json = detector, as_json
        threshold = Threshold.of(detector.manifest, conf)
        self.stream = stack.enter_context(detector.stream(sources))
        self.loop = Loop(self.stream, threshold, _tracking(self.stream) if track else None)
        self.outputs = Outputs(
            self.stream.names, detector.names, kept.save, kept.record, kept.save_hard
        )
        stack.callback(_print_summary, self.outputs)  # after the files are complete
        stack.enter_context(self.outputs)
        self.loop.sinks.append(self.outputs.add)
        if as_json:
            self.loop.sinks.append(lambda _, frame, found, __: _print_record(frame, found))
        self._server: Server | None = None

    def run(
        self, page: _Page | None, limits: Limits, service: Service, duration: float | None
    ) -> None:
        """Show the results until the end."""
        from y7edge.live.board import Board

        loop, board = self.loop, self._stack.enter_context(Board())
        view: Window | StatusLine | None = None
        started = ""
        if page is not None:
            self._server = server = page.serve(
                self._stack, loop, self.outputs, self._about(), limits, board
            )
            loop.sinks.append(lambda name, frame, found, _: server.offer(name, frame, found))
            started = f"open {server.url}"
        elif not self._as_json:
            view = _window(loop)
        view = view or StatusLine(loop, self._as_json)
        operation = service.serve(
            self._stack,
            self.stream,
            self.reload,
            lambda: {"problems": self.outputs.problems(), "board": board.read()},
        )
        _watch(loop, view, self.outputs, duration, started, operation)

    def reload(self) -> None:
        """Load the model again from its path; the links in it may name another folder now."""
        from y7edge.live.loop import Threshold

        path = Path(self._model)
        if path.exists():  # all its files are then of one folder; a link to a file keeps its suffix
            path = path.parent.resolve() / path.name
        self._detector.swap(path, check=self._check)
        self.loop.threshold.adopt(Threshold.of(self._detector.manifest, self._conf))
        if self._server is not None:
            self._server.show_model(self._about())

    def _check(self, manifest: Manifest) -> None:
        """Raise ConfigError if a new model does not fit to the options."""
        from y7edge.live.loop import Threshold

        Threshold.of(manifest, self._conf)
        if self._kept.save_hard is not None and manifest.names != self._detector.names:
            raise ConfigError(
                f"the classes of {manifest.model} differ from those of the data set "
                f"{self._kept.save_hard}: start the program again with another --save-hard"
            )

    def _about(self) -> dict[str, Any]:
        return {**_about(self._detector), "recording": str(self._kept)}


def _print_record(frame: Frame, found: Detections) -> None:
    age = frame.age_ns()
    record = {**found.to_dict(), "clock": frame.clock}
    show(record if age is None else {**record, "age_ms": round(age / 1e6, 1)}, [], as_json=True)


def _print_summary(outputs: Outputs) -> None:
    for line in outputs.summary():
        _log.info(line)


def _watch(
    loop: Loop,
    view: Window | StatusLine,
    outputs: Outputs,
    duration: float | None,
    started: str,
    operation: Operation,
) -> None:
    """Run until the sources end, the time is over, or the user ends it; print a summary.

    ``started`` is printed at the start.
    """
    end = math.inf if duration is None else time.monotonic() + duration
    known: set[str] = set()
    try:
        loop.start()
        if started:
            note(started)  # not to the log, because the address may contain the token
        while not loop.wait(min(view.interval, max(0.0, end - time.monotonic()))):
            if not view.update() or time.monotonic() >= end:
                break
            operation.tick()
            for problem in set(outputs.problems()) - known:
                known.add(problem)
                _log.warning("%s; detection continues", problem)
    finally:
        view.close()  # first: a second Ctrl-C must not leave a terminal without a cursor
        has_ended = loop.stop()
        for line in loop.summary():
            _log.info(line)
        if not has_ended:
            _log.info("the engine is still running, and was not waited for")
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
        board: Board,
    ) -> Server:
        """Start the server; it stops with the stack."""
        from y7edge.live.server import Server

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
        "model_id": info["model_id"],
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
