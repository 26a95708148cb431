"""Try each input in a fork of a warm process, and monitor time, memory and files."""

from __future__ import annotations

import ctypes
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from tests.attack import guard
from tests.attack.base import SECRET, Attempt, Input, Place, Verdict, prepare, secret_image
from y7edge.errors import Y7EdgeError
from y7edge.text import is_printable

SECONDS, MEGABYTES = 10.0, 2048.0
LONGEST = 2100  # characters of a message
EXIT_CODES = (0, 1, 2, 3, 4, 130)
ROOT = Path(__file__).parents[2]
_LARGEST_FILE = 512 << 20
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG
_OUTSIDE = {"secret.jpg": secret_image(), "secret.txt": SECRET, "secret.bin": SECRET}
_SURROUNDINGS = {
    "HOME": "home",
    "TMPDIR": "tmp",
    "Y7EDGE_CACHE": "cache",
    "MPLCONFIGDIR": "home",
    "XDG_CACHE_HOME": "home",
}

Maker = Callable[[Input, Place], Attempt]


@dataclass
class _Running:
    """A child process and the resources it has used."""

    one: Input
    pid: int
    folder: Path
    report: int
    began: float
    peak: float = 0.0
    killed: str = ""


def run_all(
    inputs: Iterable[Input],
    *,
    seed: int,
    material: Path,
    folder: Path,
    jobs: int = 2,
    keep: bool = False,
    seconds: float = SECONDS,
    maker: Maker = prepare,
) -> Iterator[Verdict]:
    """Try inputs in ``jobs`` processes at a time; yield verdicts as they come."""
    waiting, running = iter(inputs), list[_Running]()
    try:
        while True:
            while len(running) < jobs and (one := next(waiting, None)) is not None:
                running.append(_start(one, seed, material, folder, maker))
            if not running:
                return
            time.sleep(0.003)
            for child in list(running):
                if (status := _look(child, seconds)) is not None:
                    running.remove(child)
                    verdict = _judge(child, *status)
                    if keep:
                        verdict.folder = child.folder
                    else:
                        shutil.rmtree(child.folder, ignore_errors=True)
                    yield verdict
    finally:
        for child in running:
            _kill(child.pid)
            os.waitpid(child.pid, 0)


# --- the parent -----------------------------------------------------------------------------------


def _start(one: Input, seed: int, material: Path, folder: Path, maker: Maker) -> _Running:
    own = folder / one.id.replace(":", "-").replace("$", "-cli").replace("!", "-process")
    shutil.rmtree(own, ignore_errors=True)
    for name in ("outside", *(f"inside/{name}" for name in _SURROUNDINGS.values())):
        (own / name).mkdir(parents=True, exist_ok=True)
    for name, content in _OUTSIDE.items():
        (own / "outside" / name).write_bytes(content)
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _child(one, seed, material, own, writing, maker)
    os.close(writing)
    return _Running(one, pid, own, reading, time.monotonic())


def _look(child: _Running, seconds: float) -> tuple[int, resource.struct_rusage] | None:
    """Return the exit status of a child, None while it runs; kill it if it exceeds its limits."""
    pid, status, usage = os.wait4(child.pid, os.WNOHANG)
    if pid:
        _kill(child.pid)  # with all processes that it started
        child.peak = max(child.peak, usage.ru_maxrss / 1024)
        return status, usage
    processes = _family(child.pid)
    child.peak = max(child.peak, *(_resident(process) for process in processes), 0.0)
    if not child.killed:
        waited = _waited(child.pid)
        if child.peak > MEGABYTES:
            child.killed = "memory"
        elif time.monotonic() - child.began - waited > seconds:
            child.killed = "hang"
        if child.killed:
            _kill(child.pid)
    return None


def _family(pid: int) -> list[int]:
    found = [pid]
    with suppress(OSError, ValueError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += _family(int(child))
    return found


def _resident(pid: int) -> float:
    with suppress(OSError, IndexError):
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 2**20
    return 0.0


def _waited(pid: int) -> float:
    """Return the seconds that the process waited for a CPU."""
    with suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    return 0.0


def _kill(group: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
    with suppress(ProcessLookupError):
        os.kill(group, signal.SIGKILL)


def _judge(child: _Running, status: int, usage: resource.struct_rusage) -> Verdict:
    with open(child.report, "rb") as stream:  # noqa: PTH123 - a descriptor
        said = _said(stream.read())
    verdict = Verdict(child.one.id, str(said.get("words", "")), str(said.get("outcome", "killed")))
    verdict.detail, verdict.where = str(said.get("detail", "")), str(said.get("where", ""))
    verdict.seconds = time.monotonic() - child.began
    verdict.megabytes = child.peak
    words = verdict.words.split(" -> ")[-1]
    if child.killed and not words:
        verdict.outcome, verdict.where = "broken", f"{child.killed} while it was made"
    elif child.killed:
        verdict.outcome, verdict.where = child.killed, words
        verdict.detail = f"after {verdict.seconds:.1f} s, {child.peak:.0f} MB"
    elif child.peak > MEGABYTES:
        verdict.outcome, verdict.where = "memory", words
        verdict.detail = f"{child.peak:.0f} MB"
    elif os.WIFSIGNALED(status):
        verdict.outcome = "killed"
        verdict.where = f"{signal.Signals(os.WTERMSIG(status)).name}: {words}"
    elif verdict.outcome == "command":
        code = int(said.get("code", os.WEXITSTATUS(status)))
        _judge_command(verdict, child, code, tuple(said["argv"]))
    if verdict.outcome in ("ok", "refused"):
        _judge_surroundings(verdict, child)
    return verdict


def _said(content: bytes) -> dict[str, Any]:
    """Return the child's report: several JSON objects, of which later ones take precedence."""
    said: dict[str, Any] = {}
    for line in content.decode("utf-8", "replace").splitlines():
        with suppress(ValueError):
            said |= json.loads(line)
    return said


def _judge_surroundings(verdict: Verdict, child: _Running) -> None:
    """Check for changed or copied files outside the input's folder, and for output by C code."""
    outside = child.folder / "outside"
    left = {path.name: path.read_bytes() for path in outside.rglob("*") if path.is_file()}
    extra = [
        path.name
        for path in child.folder.iterdir()
        if path.name not in ("inside", "outside", "stdout", "stderr")
    ]
    if left != _OUTSIDE or extra:
        verdict.outcome, verdict.where = "outside", verdict.words.split(" -> ")[-1]
        verdict.detail = f"beside the input: {sorted(left)} {extra}"
    made = child.folder / "inside" / "made"
    for path in made.rglob("*") if made.exists() else ():
        if path.is_file() and not path.is_symlink() and SECRET in path.read_bytes():
            verdict.outcome, verdict.where = "leaked", verdict.words.split(" -> ")[-1]
            verdict.detail = f"{path} holds a file from outside of the input"


def _judge_command(verdict: Verdict, child: _Running, code: int, argv: tuple[str, ...]) -> None:
    """Check that exit code and output are as documented."""
    raw = {name: (child.folder / name).read_bytes() for name in ("stdout", "stderr")}
    verdict.outcome = "ok" if code in (0, 4) else "refused"
    faults = []
    texts = {name: value.decode("utf-8", "surrogateescape") for name, value in raw.items()}
    if code not in EXIT_CODES:
        faults.append((f"exit code {code}", texts["stderr"][-300:]))
    for name, text in texts.items():
        for word in ("Traceback (most recent", "internal error"):
            if word in text:
                faults.insert(0, (f"{word} in {name}", text[text.find(word) :][-600:]))
        bad = next((line for line in text.split("\n") if not is_printable(line.expandtabs())), None)
        if bad is not None:
            faults.append((f"control characters in {name}", ascii(bad)[:300]))
    errors = [line for line in texts["stderr"].split("\n") if line.startswith("error:")]
    if len(errors) > 1 and argv[0] != "predict":
        faults.append(("several error lines", " | ".join(errors)[:300]))
    if code in (1, 2, 3) and not errors:
        faults.append((f"exit code {code} without an error line", texts["stderr"][-300:]))
    if any(len(line) > LONGEST for line in texts["stderr"].split("\n")):
        faults.append(("a line on stderr is too long", texts["stderr"][:200]))
    if "--json" in argv and code in (0, 4):
        faults += _not_json(texts["stdout"])
    verdict.detail = "; ".join(errors)[:300]
    if faults:
        what, verdict.detail = faults[0]
        verdict.outcome = "raw" if what[:9] in ("Traceback", "internal ") else "output"
        verdict.where = f"{what}: y7edge {' '.join(argv[: 1 + (argv[0] == 'data')])}"
        if verdict.outcome == "raw":
            verdict.where += ": " + verdict.detail.strip().split("\n")[-1][:110]


def _not_json(text: str) -> list[tuple[str, str]]:
    def refuse(word: str) -> NoReturn:
        raise ValueError(word)

    for line in text.split("\n"):
        try:
            json.loads(line or "0", parse_constant=refuse)
        except ValueError as error:
            return [("stdout is not JSON", f"{error}: {line[:200]}")]
    return []


# --- the child ------------------------------------------------------------------------------------


def _child(
    one: Input,
    seed: int,
    material: Path,
    own: Path,
    report: int,
    maker: Maker,
) -> NoReturn:
    """Prepare and try one input, and report; never returns."""
    code = 0

    def say(**values: object) -> None:
        os.write(report, json.dumps({k: _bounded(v) for k, v in values.items()}).encode() + b"\n")

    try:
        os.setsid()
        _surround(own)
        place = Place(own / "inside", material, random.Random(f"{seed}:{one.id.translate(_PLAIN)}"))
        attempt = maker(one, place)
        say(words=attempt.words)
        if one.whole:
            say(outcome="command", argv=attempt.argv)
            arguments = [sys.executable, "-X", "utf8", "-m", "y7edge", *attempt.argv]
            os.execve(sys.executable, list(map(_encoded, arguments)), os.environ)
        say(**_try(attempt, own))
    except BaseException:
        lines = traceback.format_exc().strip().splitlines()
        say(outcome="broken", where=lines[-1][:100], detail="\n".join(lines)[-1500:])
        code = 1
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


_PLAIN = str.maketrans("", "", "!$")


def _encoded(word: str) -> bytes:
    return word.encode("utf-8", "surrogateescape").replace(b"\0", b"")


def _bounded(value: object) -> object:
    """Shorten a report to fit into the pipe; otherwise the child would block."""
    if isinstance(value, tuple):
        return [word[:100] for word in value]
    return value[:1800] if isinstance(value, str) else value


def _surround(own: Path) -> None:
    inside = own / "inside"
    os.environ.update({name: str(inside / folder) for name, folder in _SURROUNDINGS.items()})
    os.environ["PYTHONPATH"] = str(ROOT)
    tempfile.tempdir = None
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    os.chdir(inside)
    for number, name in ((0, os.devnull), (1, own / "stdout"), (2, own / "stderr")):
        opened = os.open(name, os.O_RDWR | os.O_CREAT)
        os.dup2(opened, number)
        os.close(opened)
    resource.setrlimit(resource.RLIMIT_FSIZE, (_LARGEST_FILE, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _try(attempt: Attempt, own: Path) -> dict[str, object]:
    """Make the call or run the command line; return the outcome."""
    seen: list[tuple[str, str]] = []
    guard.arm(own / "inside", seen)
    found: dict[str, object]
    try:
        if attempt.argv:
            found = _command(attempt.argv)
        else:
            assert attempt.call is not None
            attempt.call()
            found = {"outcome": "ok"}
    except Y7EdgeError as error:
        found = {"outcome": "refused", "detail": str(error), **_ill_formed(error)}
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)
        name = f"{type(error).__name__} at {_place(last)}"
        found = {"outcome": "raw", "where": name, "detail": str(error)[:400]}
    if seen:
        found |= {"outcome": seen[0][0], "where": seen[0][1], "detail": repr(seen[:3])}
    return found


def _command(argv: tuple[str, ...]) -> dict[str, object]:
    from y7edge.cli import main

    streams = [
        io.TextIOWrapper(
            io.FileIO(n, "wb", closefd=False),
            "utf-8",
            "surrogateescape" if n == 1 else "backslashreplace",
        )
        for n in (1, 2)
    ]
    with redirect_stdout(streams[0]), redirect_stderr(streams[1]):
        try:
            code = main(list(argv))
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:
            traceback.print_exc()
            code = 1
        for stream in streams:
            stream.flush()
    return {"outcome": "command", "code": code, "argv": argv}


def _ill_formed(error: Y7EdgeError) -> dict[str, object]:
    """Return a fault unless the message is one printable line of bounded length."""
    text = str(error)
    if not text.strip() or len(text) > LONGEST or not is_printable(text):
        return {"outcome": "message", "where": type(error).__name__, "detail": ascii(text)[:400]}
    return {}


def _place(frames: traceback.StackSummary) -> str:
    """Return the last line of the package in a traceback."""
    folders = (str(ROOT / "y7edge"), str(ROOT / "export"), str(ROOT / "runtimes"))
    ours = [frame for frame in frames if os.path.realpath(frame.filename).startswith(folders)]
    frame = (ours or list(frames))[-1]
    return f"{os.path.relpath(os.path.realpath(frame.filename), ROOT)}:{frame.lineno} {frame.name}"
