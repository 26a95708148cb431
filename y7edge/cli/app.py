"""Register the commands, run the command line, and report errors.

Every error, including a failed gate, prints one line on standard error and sets the exit code.
``--traceback``, anywhere on the command line, also prints the traceback.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from y7edge import __version__
from y7edge.cli.audit import audit
from y7edge.cli.benchmark import benchmark
from y7edge.cli.build import build
from y7edge.cli.calibration import calibration
from y7edge.cli.check import check
from y7edge.cli.console import note, open_streams
from y7edge.cli.data import data
from y7edge.cli.diff import diff
from y7edge.cli.export import export
from y7edge.cli.grouped import Grouped, Sections
from y7edge.cli.info import info
from y7edge.cli.live import live
from y7edge.cli.logs import Remarks
from y7edge.cli.optimize import optimize
from y7edge.cli.options import UsageError
from y7edge.cli.predict import predict
from y7edge.cli.selftest import selftest
from y7edge.cli.sensitivity import sensitivity
from y7edge.cli.soup import soup
from y7edge.cli.train import train
from y7edge.cli.val import val
from y7edge.cli.verify import verify
from y7edge.errors import RuntimeMissing, Y7EdgeError
from y7edge.files import is_out_of_memory, reason
from y7edge.packages import hidden_behind
from y7edge.text import one_line

TRACEBACK = "--traceback"
INTERRUPTED = 130

# The commands by section of `y7edge --help`, each with an example that its help shows.
SECTIONS: dict[str, dict[Callable[..., None], str]] = {
    "Data and training": {
        train: "y7edge train --model yolov7-tiny --data data.yaml --imgsz 320 --epochs 60",
        val: "y7edge val tiny.onnx --data data.yaml --json",
        soup: "y7edge soup a.safetensors b.safetensors --data data.yaml --out soup.safetensors",
    },
    "Export": {
        export: "y7edge export runs/train/best.safetensors --imgsz 384x640 --out tiny.onnx",
        optimize: "y7edge optimize best.safetensors --data data.yaml --max-map-drop 0.01",
        sensitivity: "y7edge sensitivity best.safetensors --data data.yaml --map 50",
        calibration: "y7edge calibration tiny.onnx --data data.yaml --form png-list --out calib",
        audit: "y7edge audit yolov7-w6 --target kl720",
        verify: "y7edge verify tiny.onnx --against runs/train/best.safetensors",
        diff: "y7edge diff tiny.onnx tiny.xml --image image.jpg",
    },
    "On the device": {
        build: "y7edge build tiny.onnx --target openvino --out tiny.xml",
        selftest: "y7edge selftest tiny.onnx",
        benchmark: "y7edge benchmark tiny.onnx --threads 1 --json",
        predict: "y7edge predict tiny.onnx images/ --save out/",
        live: "y7edge live tiny.onnx rtsp://192.168.0.9/cam --web 8080",
    },
    "Information": {
        info: "y7edge info yolov7-w6",
        check: "y7edge check",
    },
}
COMMANDS = {command: text for section in SECTIONS.values() for command, text in section.items()}
# Command -> extras that it needs. If a package is missing, the message names all of them.
EXTRAS = {
    "train": "train",
    "soup": "train",
    "predict": "cpu",
    "live": "cpu",
    "val": "opencv,eval",
    "data": "opencv,eval",
    "audit": "export",
    "calibration": "export",
    "export": "export",
    "sensitivity": "train",
    "optimize": "train",
    "verify": "export",
}

app = typer.Typer(
    name="y7edge",
    cls=Sections,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    # NO_COLOR (no-color.org) is known to rich, but not to click. None: colours on a terminal only.
    context_settings={
        "help_option_names": ["-h", "--help"],
        "color": False if os.environ.get("NO_COLOR") else None,
    },
    epilog="`y7edge COMMAND --help` explains a command and has an example. Exit codes: 0 success, "
    "1 other error, 2 usage, 3 missing package, 4 failed gate, 130 interrupted.",
)
app.add_typer(data)
for _title, _section in SECTIONS.items():
    for _command, _example in _section.items():
        _epilog = f"\b\nExample:\n  {_example}"
        app.command(cls=Grouped, epilog=_epilog, rich_help_panel=_title)(_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"y7edge {__version__}")
        raise typer.Exit


@app.callback()
def _y7edge(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
    show_traceback: Annotated[
        bool, typer.Option(TRACEBACK, help="Print the traceback of an error; allowed anywhere.")
    ] = False,
) -> None:
    """Train YOLOv7, fold it, export it with a proof, and run it on edge devices."""


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command line; report every exception, and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    wants_traceback = TRACEBACK in arguments
    arguments = [text for text in arguments if text != TRACEBACK]
    open_streams()
    logging.basicConfig(handlers=[Remarks()], level=logging.WARNING)
    warnings.showwarning = _show_warning
    if threading.current_thread() is threading.main_thread():
        # Handle SIGTERM like Ctrl-C, so that temporary files are removed; and SIGHUP, the end of
        # the terminal or of ssh, unless nohup has turned it off.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        hangup = getattr(signal, "SIGHUP", None)  # Windows has none
        if hangup is not None and signal.getsignal(hangup) is signal.SIG_DFL:
            signal.signal(hangup, signal.default_int_handler)
    try:
        if any(not text or re.fullmatch("--[a-z-]+=", text) for text in arguments):
            raise UsageError("found an empty argument: a shell variable may be unset")
        result = app(arguments or ["--help"], prog_name="y7edge", standalone_mode=False)
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        result = INTERRUPTED
    except BrokenPipeError:
        # The program that reads the output, such as head, has ended. At exit, the interpreter
        # flushes the stream again, which must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if _is_interrupt(error):
            note("interrupted")
            return INTERRUPTED
        for line in traceback.format_exc().splitlines() if wants_traceback else ():
            note(line)
        message, code = _explain(hidden_behind(error) or error, (arguments or [""])[0])
        note(f"error: {one_line(message)}", logging.ERROR)
        return code
    if not arguments:
        return 2
    if result == INTERRUPTED:  # also returned by newer versions of typer
        note("interrupted")
    return result if isinstance(result, int) else 0


def _is_interrupt(error: BaseException | None) -> bool:
    """Return whether a signal caused an error: an engine that is imported raises ImportError."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__
    return error is not None


def _explain(error: Any, command: str) -> tuple[str, int]:
    """Return the message and the exit code of an error."""
    if isinstance(error, UsageError):
        context = getattr(error, "ctx", None)
        known = {function.__name__ for function in COMMANDS}
        command = f"y7edge {command}" if command in known else "y7edge"
        where = context.command_path if context else command
        return f"{error.format_message().rstrip('.')}. See `{where} --help`.", 2
    lacks_memory = is_out_of_memory(error.__cause__ or error)
    if isinstance(error, Y7EdgeError):
        start = "not enough memory: " if lacks_memory else ""
        return str(error) if start in str(error) else f"{start}{error}", error.exit_code
    if isinstance(error, ModuleNotFoundError) and error.name:
        from y7edge.environment import extra_of

        package = error.name.split(".")[0]
        extra = EXTRAS.get(command) or extra_of(package)
        message = f"this needs {package}, which is not installed: pip install 'y7edge[{extra}]'"
        return message, RuntimeMissing.exit_code
    if isinstance(error, ImportError):  # such as OpenCV without a library of the system
        message = f"an installed package cannot be imported: {error}; `y7edge check` says more"
        return message, RuntimeMissing.exit_code
    if isinstance(error, OSError | RecursionError) or lacks_memory:
        name = getattr(error, "filename", None)
        start = f"{os.fsdecode(name)}: " if isinstance(name, str | bytes) else ""
        return f"{start}{reason(error)}", 1
    what = f"{type(error).__name__}: {error}"
    return f"internal error, please report it with the output of {TRACEBACK}: {what}", 1


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    note(f"warning: {one_line(str(message))}", logging.WARNING)
