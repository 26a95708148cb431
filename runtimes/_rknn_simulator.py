"""A child process that runs Rockchip's simulator; see ``_rknn_child.py`` for its messages.

The child is killed when the simulator is closed or freed, when a call is interrupted or takes too
long, and when this process ends. What it writes is checked before it is used.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal as signals
import struct
import subprocess
import time
import weakref
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from y7edge.errors import DeviceError
from y7edge.files import temporary_folder
from y7edge.text import printable

CHILD = Path(__file__).with_name("_rknn_child.py")
"""The program of the child process."""

LOG = "log"
"""Name of the file, in the child's working directory, with what the toolkit prints."""

BUILD_SECONDS = 1800.0
"""Time limit for building a graph; yolov7-tiny takes 2 s."""

_RUN_SECONDS = 600.0  # for one batch; yolov7-tiny takes 0.1 s at 640 pixels
_HOMES = ("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")
_LONGEST = 1 << 16  # bytes of a message
_TAIL = 1 << 16  # bytes of the log that are read
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# "E build: reason", or "E RKNN: [12:00:00.000] reason".
_ERROR = re.compile(r"^E (?:RKNN: \[[0-9:.]+\] )?(?!.*(?:Traceback|toolkit2 version))(.+)", re.M)


def complaint(log: Path) -> str:
    """Return the first error in a log of the toolkit, as one line; empty if there is none."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - _TAIL))
            text = stream.read(_TAIL).decode(errors="replace")
    except OSError:
        return ""
    found = _ERROR.search(_COLOUR.sub("", text))
    return printable(" ".join(found[1].split()))[:300] if found else ""


class Simulator:
    """A graph that the simulator has built.

    Attributes:
        versions: Version of the toolkit.
    """

    def __init__(
        self, python: Path, chip: str, graph: Path, shape: tuple[int, int, int], threads: int
    ) -> None:
        """Start the child, and wait until it has built the graph.

        Args:
            python: the interpreter that has rknn-toolkit2.
            chip: value of ``target_platform``.
            graph: the ONNX file.
            shape: batch, height and width of the images.
            threads: number of threads, for the libraries that read ``OMP_NUM_THREADS``.

        Raises:
            DeviceError: the toolkit refuses the graph, or takes too long.
        """
        words = [chip, str(graph.absolute()), *map(str, (os.getpid(), *shape))]
        with ExitStack() as stack:
            folder = stack.enter_context(temporary_folder())
            child = subprocess.Popen(
                [str(python), "-I", str(CHILD), "simulate", *words],
                cwd=folder,
                env={
                    **os.environ,
                    **dict.fromkeys(_HOMES, str(folder)),
                    "OMP_NUM_THREADS": str(threads),
                },
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stack.enter_context((folder / "errors").open("wb")),
                start_new_session=True,  # Ctrl-C is for this process, which then ends the child
            )
            self._end = weakref.finalize(self, _end, child, os.getpid(), stack.pop_all())
        self._child, self._folder = child, folder
        self._stdin = cast(IO[bytes], child.stdin).fileno()
        self._stdout = cast(IO[bytes], child.stdout).fileno()
        os.set_blocking(self._stdin, False)
        try:
            versions = self._message(time.monotonic() + BUILD_SECONDS).get("versions")
            if not isinstance(versions, dict) or not versions:
                raise DeviceError(f"the simulator of RKNN answered without its version: {python}")
        except BaseException:
            self.close()
            raise
        self.versions = {
            printable(str(k))[:80]: printable(str(v))[:80] for k, v in versions.items()
        }

    def run(
        self, pixels: NDArray[np.uint8], shapes: Sequence[tuple[int, ...]]
    ) -> list[NDArray[np.float32]]:
        """Run a batch (N, H, W, 3), RGB; return the outputs, which must have these shapes.

        Raises:
            DeviceError: the child failed, answered something else, or was ended by an earlier
                error.
        """
        if not self._end.alive:
            raise DeviceError(
                "the simulator of RKNN was ended after an earlier error: open the artifact again"
            )
        deadline = time.monotonic() + _RUN_SECONDS
        try:
            self._send(pixels, deadline)
            found = self._message(deadline).get("shapes")
            if found != [list(shape) for shape in shapes]:
                raise DeviceError(
                    f"the simulator of RKNN returned outputs of shapes {str(found)[:120]}, "
                    f"expected {list(shapes)}: export the artifact again"
                )
            return [self._array(shape, deadline) for shape in shapes]
        except BaseException:  # the rest of the answer would be taken for the next one
            self.close()
            raise

    def close(self) -> None:
        """End the child, and remove its folder. Calling it again has no effect."""
        self._end()

    def _array(self, shape: tuple[int, ...], deadline: float) -> NDArray[np.float32]:
        data = self._receive(4 * int(np.prod(shape)), deadline)
        return np.frombuffer(data, "<f4").reshape(shape).astype(np.float32)

    def _message(self, deadline: float) -> dict[str, Any]:
        """Receive a message; raise DeviceError if it is not a JSON object."""
        (length,) = struct.unpack(">I", self._receive(4, deadline))
        try:
            if length > _LONGEST:
                raise ValueError(f"{length} bytes")
            found = json.loads(self._receive(length, deadline))
            if isinstance(found, dict):
                return found
            raise ValueError(f"a {type(found).__name__}")
        except (ValueError, RecursionError) as error:
            raise DeviceError(
                f"the simulator of RKNN answered something unexpected ({str(error)[:80]}): check "
                "Y7EDGE_RKNN_PYTHON"
            ) from error

    def _send(self, array: NDArray[np.uint8], deadline: float) -> None:
        data = memoryview(array.tobytes())
        while data:
            self._wait(self._stdin, select.POLLOUT, deadline)
            try:
                data = data[os.write(self._stdin, data) :]
            except BlockingIOError:
                continue
            except BrokenPipeError as error:
                raise self._ended() from error

    def _receive(self, size: int, deadline: float) -> bytearray:
        data = bytearray()
        while len(data) < size:
            self._wait(self._stdout, select.POLLIN, deadline)
            part = os.read(self._stdout, min(size - len(data), 1 << 20))
            if not part:
                raise self._ended()
            data += part
        return data

    def _wait(self, descriptor: int, event: int, deadline: float) -> None:
        """Wait until the child can be written to or read from; raise DeviceError if it hangs."""
        poll = select.poll()
        poll.register(descriptor, event)
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            raise DeviceError(
                "the simulator of RKNN takes too long, and was ended: use a smaller model or image"
            )

    def _ended(self) -> DeviceError:
        """Return the error of a child that has ended by itself."""
        try:
            code = self._child.wait(5)
        except subprocess.TimeoutExpired:
            return DeviceError("the simulator of RKNN closed its outputs, and was ended")
        how = f"code {code}"
        if code < 0:
            how = f"signal {-code}" + " (short of memory?)" * (-code == signals.SIGKILL)
        try:
            error = (self._folder / "errors").read_text("utf-8", "replace")[:300]
        except OSError:
            error = ""
        why = complaint(self._folder / LOG) or printable(" ".join(error.split())) or "no message"
        return DeviceError(f"the simulator of RKNN ended with {how}: {why}")


def _end(child: subprocess.Popen[bytes], owner: int, stack: ExitStack) -> None:
    """Kill the child and free everything, in the process that started it."""
    if os.getpid() != owner:
        return
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signals.SIGKILL)  # also processes of the toolkit
    child.wait()
    for stream in (child.stdin, child.stdout):
        if stream is not None:
            stream.close()
    stack.close()
