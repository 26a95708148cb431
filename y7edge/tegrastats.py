"""Run ``tegrastats``, the monitor of Jetson boards, and parse its lines (JetPack 4 to 7).

The grammar is that of NVIDIA's documentation (Jetson Linux Developer Guide, "tegrastats Utility":
https://docs.nvidia.com/jetson/archives/l4t-archived/l4t-325/Tegra%20Linux%20Driver%20Package%20Development%20Guide/AppendixTegraStats.html)
and of recorded lines of all boards.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import IO

_LONGEST_LINE = 8192  # characters; recorded lines have at most 1000
_MAX_SAMPLES = 100_000
_STOP_SECONDS = 2.0
_OFF = -256.0  # degrees, of a sensor whose unit is off
_PMIC = ("pmic", 100.0)  # a constant on all boards

# Rails that measure the power of the whole board (module), in this order. VIN of Thor contains all
# other rails; so does VDD_IN.
_TOTAL = ("POM_5V_IN", "VDD_IN", "VIN")
# Boards without such a rail: rails whose sum is the power of the module. Their other rails are
# supplied by one of these.
_SUMS = (
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),  # AGX Orin
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),  # AGX Xavier
)


@dataclass(frozen=True, slots=True)
class Core:
    """A CPU core that is online."""

    percent: int
    mhz: int | None


@dataclass(frozen=True, slots=True)
class Engine:
    """A hardware engine such as NVENC, VIC or NVDLA0; None if the line does not state it."""

    on: bool
    percent: int | None = None
    mhz: int | None = None


@dataclass(frozen=True, slots=True)
class Rail:
    """Power of a rail in mW; idle rails may read slightly less than 0."""

    now: int
    average: int
    peak: int | None = None  # from JetPack 7 on


@dataclass(frozen=True, slots=True)
class Sample:
    """One line of tegrastats. What the line does not state is None or empty.

    Attributes:
        ram_mb: used and total memory in MB.
        time: "MM-DD-YYYY HH:MM:SS" of the board's clock.
        largest_free_block: number and size of the largest free blocks, such as "33x4MB".
        swap_mb: used, total and cached swap in MB; None: the board has no swap.
        iram_kb: used and total internal memory in kB.
        cpu: the cores by number; None: the core is off.
        emc_percent, emc_mhz: use of the memory controller, and its frequency.
        gpu_percent: load of the GPU; None on Thor, which does not state it.
        gpu_mhz: frequency of each GPU cluster; None: the cluster is off.
        engines: the other engines by name.
        temperatures: degrees Celsius by sensor, in lower case, without sensors that are off.
        rails: power by rail, without rails that are not connected.
        unknown: parts of the line that were not understood.
    """

    ram_mb: tuple[int, int]
    time: str | None = None
    largest_free_block: str | None = None
    swap_mb: tuple[int, int, int] | None = None
    iram_kb: tuple[int, int] | None = None
    cpu: tuple[Core | None, ...] = ()
    emc_percent: int | None = None
    emc_mhz: int | None = None
    gpu_percent: int | None = None
    gpu_mhz: tuple[int | None, ...] = ()
    engines: Mapping[str, Engine] = field(default_factory=dict)
    temperatures: Mapping[str, float] = field(default_factory=dict)
    rails: Mapping[str, Rail] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()

    def total_rails(self) -> tuple[str, ...]:
        """Return the rails whose sum is the power of the whole board; empty if not known."""
        for name in _TOTAL:
            if name in self.rails:
                return (name,)
        return next((names for names in _SUMS if set(names) <= self.rails.keys()), ())


_N, _DEGREES = r"(\d{1,9})", r"(-?\d{1,4}(?:\.\d{1,6})?)"
_PATTERNS = {
    "time": r"(\d\d-\d\d-\d{4} \d\d:\d\d:\d\d)",
    "ram": rf"RAM {_N}/{_N}MB(?: ?\(lfb (\d{{1,9}}x\d{{1,9}}[kM]B)\))?",
    "swap": rf"SWAP {_N}/{_N}MB ?\(cached {_N}MB\)",
    "iram": rf"IRAM {_N}/{_N}kB ?\(lfb \d{{1,9}}kB\)",
    "cpu": rf"CPU \[([^\]]*)\](?:@{_N})?",
    "emc": rf"EMC(?:_FREQ)? (?:{_N}%)?(?:@{_N})?",
    "gpu": rf"GR3D\d?(?:_FREQ)? (?:{_N}%)?(?:@(?:\[([^\]]*)\]|{_N}))?",
    "mts": rf"MTS fg {_N}% bg {_N}%",
    "temperature": rf"([A-Za-z]\w{{0,63}})@{_DEGREES}C(?:/{_DEGREES}C)?",
    "rail": r"([A-Za-z]\w{0,63}) (-?\d{1,9})(?:mW)?/(-?\d{1,9})(?:mW)?(?:/(-?\d{1,9})(?:mW)?)?",
    "engine": rf"([A-Z]\w{{0,63}}) (?:(off)|{_N}%@{_N}|{_N})",
}
_FIELD = {kind: re.compile(rf"{pattern}(?=\s|$)", re.ASCII) for kind, pattern in _PATTERNS.items()}
_CORE = re.compile(r"(\d{1,3})%(?:@(\d{1,9}))?", re.ASCII)
_MHZ = re.compile(r"\d{1,9}", re.ASCII)
_WORD = re.compile(r"\S+")


def parse(line: str) -> Sample | None:
    """Parse one line of tegrastats; None if it is not one, or if it is cut off within the RAM part.

    Fields may come in any order. Fields that are not known are returned in ``unknown``, because new
    boards add some.
    """
    found = _Fields()
    for kind, values in _fields(line[:_LONGEST_LINE]):
        getattr(found, f"add_{kind}")(*values)
    return found.sample()


def _fields(line: str) -> Iterator[tuple[str, tuple[str | None, ...]]]:
    """Yield the kind and the parts of each field of a line."""
    position = 0
    while word := _WORD.search(line, position):
        position = word.end()
        for kind, pattern in _FIELD.items():
            if match := pattern.match(line, word.start()):
                yield kind, match.groups()
                position = match.end()
                break
        else:
            yield "unknown", (word[0],)


class _Fields:
    """The fields of a line while it is parsed."""

    def __init__(self) -> None:
        self.values: dict[str, object] = {}
        self.gpu_mhz: list[int | None] = []
        self.engines: dict[str, Engine] = {}
        self.temperatures: dict[str, float] = {}
        self.rails: dict[str, Rail] = {}
        self.unknown: list[str] = []

    def sample(self) -> Sample | None:
        if "ram_mb" not in self.values:
            return None
        return Sample(
            **self.values,  # type: ignore[arg-type]
            gpu_mhz=tuple(self.gpu_mhz),
            engines=self.engines,
            temperatures=self.temperatures,
            rails=self.rails,
            unknown=tuple(self.unknown),
        )

    def add_time(self, text: str) -> None:
        self.values["time"] = text

    def add_ram(self, used: str, total: str, block: str | None) -> None:
        self.values["ram_mb"] = int(used), int(total)
        self.values["largest_free_block"] = block

    def add_swap(self, used: str, total: str, cached: str) -> None:
        self.values["swap_mb"] = int(used), int(total), int(cached)

    def add_iram(self, used: str, total: str) -> None:
        self.values["iram_kb"] = int(used), int(total)

    def add_cpu(self, listed: str, shared_mhz: str | None) -> None:
        texts = [text.strip() for text in listed.split(",")]
        cores = [_CORE.fullmatch(text) for text in texts]
        self.values["cpu"] = tuple(
            core and Core(int(core[1]), _number(core[2] or shared_mhz)) for core in cores
        )
        pairs = zip(texts, cores, strict=True)
        self.unknown += [text for text, core in pairs if core is None and text != "off"]

    def add_emc(self, percent: str | None, mhz: str | None) -> None:
        self.values["emc_percent"], self.values["emc_mhz"] = _number(percent), _number(mhz)

    def add_gpu(self, percent: str | None, listed: str | None, mhz: str | None) -> None:
        # JetPack 5 has one field for each cluster; the first one states the load.
        self.values.setdefault("gpu_percent", _number(percent))
        texts = listed.split(",") if listed else [mhz] if mhz else []
        matches = [_MHZ.fullmatch(text.strip()) for text in texts]
        self.gpu_mhz += [match and int(match[0]) for match in matches]

    def add_mts(self, foreground: str, background: str) -> None:
        self.engines["MTS fg"] = Engine(True, percent=int(foreground))
        self.engines["MTS bg"] = Engine(True, percent=int(background))

    def add_temperature(self, name: str, now: str, _peak: str | None) -> None:
        degrees = float(now)
        if degrees != _OFF and (name.lower(), degrees) != _PMIC:
            self.temperatures[name.lower()] = degrees

    def add_rail(self, name: str, now: str, average: str, peak: str | None) -> None:
        if name != "NC":
            self.rails[name] = Rail(int(now), int(average), None if peak is None else int(peak))

    def add_engine(
        self, name: str, off: str | None, percent: str | None, at: str | None, mhz: str | None
    ) -> None:
        name = name.removesuffix("_FREQ")
        self.engines[name] = Engine(off is None, _number(percent), _number(at or mhz))

    def add_unknown(self, word: str) -> None:
        self.unknown.append(word)


def _number(text: str | None) -> int | None:
    return None if text is None else int(text)


class Monitor:
    """Run tegrastats during a ``with`` statement, and collect its samples in a thread.

    A missing, failing or silent tegrastats raises no error, because a measurement of latency does
    not need it.

    Args:
        interval_ms: asked interval of the samples in milliseconds.
        keep: keep only this number of the newest samples; None: the first 100,000.

    Attributes:
        interval_ms: asked interval of the samples in milliseconds.
        failure: after the ``with`` statement: why tegrastats ended early, or gave no samples.
    """

    def __init__(self, interval_ms: int, keep: int | None = None) -> None:
        self.interval_ms = interval_ms
        self._keep = keep
        self._samples: deque[tuple[float, Sample]] = deque(maxlen=keep)
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._odd = ""  # a line that was not understood
        self.failure: str | None = None

    def __enter__(self) -> Monitor:
        """Start tegrastats."""
        program = shutil.which("tegrastats")
        if program is None:
            self.failure = "tegrastats was not found on PATH; it is a part of L4T"
            return self
        command = [program, "--interval", str(self.interval_ms)]
        # A program that writes to a pipe buffers 4 KB: the last seconds would be lost.
        stdbuf = shutil.which("stdbuf")
        try:
            self._process = subprocess.Popen(
                [stdbuf, "-oL", *command] if stdbuf else command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        except OSError as error:
            self.failure = f"tegrastats cannot be started: {error.strerror}"
            return self
        assert self._process.stdout is not None
        # A daemon: a child that cannot be killed must not keep this process alive.
        self._thread = threading.Thread(
            target=self._read, args=(self._process.stdout,), name="tegrastats", daemon=True
        )
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop tegrastats: by SIGTERM, then by SIGKILL."""
        process, thread = self._process, self._thread
        if process is None or thread is None:
            return
        ended = process.poll()
        if ended is not None:
            self.failure = f"tegrastats ended with exit code {ended}"
        for stop in (process.terminate, process.kill):
            if process.poll() is None:
                stop()
                try:
                    process.wait(_STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    continue
        thread.join(_STOP_SECONDS)  # until the end of the pipe, which a grandchild may keep open
        if not thread.is_alive() and process.stdout is not None:
            process.stdout.close()
        if not self._samples and self.failure is None:
            odd = f"no line of tegrastats was understood, such as {self._odd[:80]!r}"
            self.failure = odd if self._odd else "tegrastats printed nothing"

    def running(self) -> bool:
        """Return whether tegrastats was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def newest(self) -> Sample | None:
        """The newest sample; None before the first one."""
        found = list(self._samples)
        return found[-1][1] if found else None

    def samples(self, begin: float, end: float) -> list[Sample]:
        """Return the samples that arrived from ``begin`` to ``end`` (``time.monotonic()``)."""
        return [sample for arrived, sample in list(self._samples) if begin <= arrived <= end]

    def _read(self, stream: IO[bytes]) -> None:
        """Collect samples until the end of the pipe; a line without an end is incomplete."""
        is_rest = False  # of a line that is too long
        while line := stream.readline(_LONGEST_LINE):
            arrived = time.monotonic()
            skip, is_rest = is_rest, not line.endswith(b"\n")
            if skip or is_rest:
                continue
            text = line.decode("utf-8", "replace")
            if (sample := parse(text)) is None:
                self._odd = text.strip()
            elif self._keep is not None or len(self._samples) < _MAX_SAMPLES:
                self._samples.append((arrived, sample))
