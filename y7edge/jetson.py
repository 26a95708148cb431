"""Recognise an NVIDIA Jetson without root: board, L4T and JetPack, power mode, clocks.

All facts are read from files that every user may read. Missing, malformed or oversized files count
as unknown, because containers and custom images lack some of them. Formats and names:

- ``/etc/nv_tegra_release``: https://docs.nvidia.com/jetson/orin-nano-devkit/user-guide/latest/setup_jetpack.html
- ``nvpmodel.conf``: https://github.com/NVIDIA/skills/blob/main/skills/jetson-customize-nvpmodel/SKILL.md
- L4T and JetPack numbers: https://developer.nvidia.com/embedded/jetpack-archive and
  https://github.com/OE4T/meta-tegra/tree/master/docs/release-notes
- ``compatible`` strings: Documentation/devicetree/bindings/arm/tegra.yaml of Linux
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from y7edge.files import is_folder, read_regular

_RELEASE = Path("/etc/nv_tegra_release")
_DPKG = Path("/var/lib/dpkg/status")
_TREE = Path("/proc/device-tree")
_SOC = Path("/sys/devices/soc0")
_MODES, _MODE = Path("/etc/nvpmodel.conf"), Path("/var/lib/nvpmodel/status")
_BOOT = Path("/etc/nv_boot_control.conf")
_CPUFREQ, _DEVFREQ = Path("/sys/devices/system/cpu/cpufreq"), Path("/sys/class/devfreq")
_CUDA = Path("/usr/local/cuda")
_PROGRAMS = "/usr/sbin:/usr/bin:/sbin:/bin"  # nvpmodel is in /usr/sbin, which users may lack

_MAX_BYTES = 1 << 20  # of a file
_MAX_DPKG_BYTES = 64 << 20  # a desktop image has about 5 MB
_MAX_ENTRIES = 256  # of a folder or list
_LONGEST = 200  # characters of a text from a file
_SECONDS = 5  # for nvpmodel and jetson_clocks; they take less than one

# L4T -> JetPack: sources in the docstring. 38.3 was not released.
_JETPACK = {
    **{"32.6.1": "4.6", "32.7.1": "4.6.1", "32.7.2": "4.6.2", "32.7.3": "4.6.3", "32.7.4": "4.6.4"},
    **{"32.7.5": "4.6.5", "32.7.6": "4.6.6"},
    **{"34.1.0": "5.0 DP", "34.1.1": "5.0.1 DP", "35.1.0": "5.0.2", "35.2.1": "5.1"},
    **{"35.3.1": "5.1.1", "35.4.1": "5.1.2", "35.5.0": "5.1.3", "35.6.0": "5.1.4"},
    **{"35.6.1": "5.1.5", "35.6.2": "5.1.5", "35.6.3": "5.1.5", "35.6.4": "5.1.6"},
    **{"36.2.0": "6.0 DP", "36.3.0": "6.0", "36.4.0": "6.1", "36.4.2": "6.1", "36.4.3": "6.2"},
    **{"36.4.4": "6.2.1", "36.4.7": "6.2.1", "36.5.0": "6.2.2", "36.5.2": "6.2.3"},
    **{"38.2.0": "7.0", "38.2.1": "7.0", "38.2.2": "7.0", "38.4.0": "7.1"},
    **{"39.0.0": "7.2 EA", "39.2.0": "7.2", "39.2.1": "7.2.1"},
}
# Major number of L4T -> systems on a chip that it supports; a release file that states another one
# was written by hand.
_SUPPORTED = {
    "32": ("tegra210", "tegra186", "tegra194"),
    **dict.fromkeys(("34", "35"), ("tegra194", "tegra234")),
    "36": ("tegra234",),
    "38": ("tegra264",),
    "39": ("tegra234", "tegra264"),
}
# /sys/devices/soc0/soc_id -> system on a chip (include/soc/tegra/fuse.h of Linux, in decimal).
_SOC_IDS = {
    "33": "tegra210",
    "24": "tegra186",
    "25": "tegra194",
    "35": "tegra234",
    "38": "tegra264",
}
_THOR = "tegra264"
_FIRST_SUPER = (36, 4, 3)  # L4T of JetPack 6.2, the first with the super modes of Orin NX and Nano
# Part number of the module, as in the device tree -> name; without variant for the other ones.
_MODULES = {
    "p2371-2180": "Jetson TX1 developer kit",
    "p2771-0000": "Jetson TX2 developer kit",
    "p3310": "Jetson TX2",
    "p3489": "Jetson TX2",
    "p3448": "Jetson Nano",
    "p3448-0003": "Jetson Nano 2 GB",
    "p3450-0000": "Jetson Nano developer kit",
    "p2888": "Jetson AGX Xavier",
    "p2888-0005": "Jetson AGX Xavier 64 GB",
    "p2888-0008": "Jetson AGX Xavier Industrial",
    "p3668": "Jetson Xavier NX",
    "p3668-0003": "Jetson Xavier NX 16 GB",
    "p3767": "Jetson Orin NX or Orin Nano",
    "p3767-0000": "Jetson Orin NX 16 GB",
    "p3767-0001": "Jetson Orin NX 8 GB",
    "p3767-0003": "Jetson Orin Nano 8 GB",
    "p3767-0004": "Jetson Orin Nano 4 GB",
    "p3767-0005": "Jetson Orin Nano 8 GB",
    "p3701": "Jetson AGX Orin",
    "p3701-0004": "Jetson AGX Orin 32 GB",
    "p3701-0005": "Jetson AGX Orin 64 GB",
    "p3701-0008": "Jetson AGX Orin Industrial",
    "p3834": "Jetson Thor",
    "p3834-0000": "Jetson T4000 (Thor)",
    "p3834-0008": "Jetson T5000 (Thor)",
}
# Packages of NVIDIA's apt repository that are reported.
_PACKAGES = re.compile(
    r"nvidia-jetpack(-runtime|-dev)?|nvidia-l4t-core|nvidia-l4t-dla-compiler|libnvinfer[0-9]+"
    r"|python3-libnvinfer|cuda-cudart-[0-9-]+|libcudnn[0-9]+(-cuda-[0-9]+)?|libopencv-python"
)
_RELEASE_LINE = re.compile(
    r"^# R([0-9]{1,4}) \(release\), REVISION: ([0-9]{1,4}(?:\.[0-9]{1,4})?)\b", re.MULTILINE
)
# Spaces are counted: without a limit, a file of a million line ends would take minutes.
_MODE_LINE = re.compile(
    r"^[ \t]{0,64}<[ \t]{0,64}POWER_MODEL[ \t]{1,64}ID=([0-9]{1,4})[ \t]{1,64}NAME=([^\s>]{1,64})"
    r"[ \t]{0,64}>",
    re.MULTILINE,
)
_DEFAULT_LINE = re.compile(
    r"^[ \t]{0,64}<[ \t]{0,64}PM_CONFIG[ \t]{1,64}DEFAULT=([0-9]{1,4})[ \t]{0,64}>", re.MULTILINE
)
_GPU = re.compile(r"[0-9a-f]+\.(gpu|gv11b|gp10b|ga10b|gm20b)")  # below /sys/class/devfreq
_KILO, _MEGA = 1e3, 1e6


@dataclass(frozen=True, slots=True)
class PowerModes:
    """The power modes of the board's ``nvpmodel.conf``. An ID has no meaning without this file.

    Attributes:
        file: the file, with links resolved, such as ``/etc/nvpmodel/nvpmodel_p3767_0003.conf``.
        names: ID -> name, in the order of the file.
        current: ID of the mode in use; None: unknown.
        default: ID of the mode after installation; None: not stated.
        fastest: ID of MAXN or MAXN_SUPER, or of the mode with the most watts, then the most cores,
            in its name; None: no name says it.
    """

    file: str
    names: Mapping[int, str]
    current: int | None = None
    default: int | None = None
    fastest: int | None = None

    @property
    def current_name(self) -> str | None:
        """Name of the mode in use; None: unknown."""
        return None if self.current is None else self.names.get(self.current)


@dataclass(frozen=True, slots=True)
class Clocks:
    """Frequency limits, in MHz, by clock: "cpu0" (first CPU of a group), "gpu", "emc" (memory).

    Attributes:
        limits: clock -> (minimum, maximum).
        pinned: whether minimum and maximum of all clocks are equal, as after ``jetson_clocks``;
            None: no limit could be read.
        unknown: clocks whose limits were not read, with the reason.
    """

    limits: Mapping[str, tuple[float, float]]
    pinned: bool | None
    unknown: Mapping[str, str] = field(default_factory=dict)

    def state(self) -> str:
        """Return "clocks pinned", "clocks not pinned" or "clocks not known"."""
        words = {True: "pinned", False: "not pinned", None: "not known"}
        return f"clocks {words[self.pinned]}"


@dataclass(frozen=True, slots=True)
class Jetson:
    """What is known of the board. Text is from files of the system; None or empty: unknown.

    Attributes:
        model: model in the device tree, such as "NVIDIA Jetson AGX Orin Developer Kit".
        module: part number of the module, such as "p3767-0005".
        module_name: its name, such as "Jetson Orin Nano 8 GB".
        soc: system on a chip: tegra210, tegra186, tegra194, tegra234 or tegra264.
        l4t: version of L4T (Jetson Linux), such as "36.4.3".
        jetpack: version of JetPack, such as "6.2".
        jetpack_source: where it is from: the package ``nvidia-jetpack``, else the version of L4T.
        packages: name -> version of the installed packages of CUDA, cuDNN, TensorRT and OpenCV.
        cuda: target of the link ``/usr/local/cuda``.
        super_flashed: whether the board was flashed with the "super" power modes (Orin Nano, NX).
        power: power modes.
        clocks: frequency limits.
        problems: contradictions between the sources.
        warnings: settings that reduce speed, with the commands that change them.
    """

    model: str | None
    module: str | None
    module_name: str | None
    soc: str | None
    l4t: str | None
    jetpack: str | None
    jetpack_source: str | None
    packages: Mapping[str, str]
    cuda: str | None
    super_flashed: bool | None
    power: PowerModes | None
    clocks: Clocks
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def title(self) -> str:
        """Return board, JetPack and L4T in one line."""
        board = self.model or self.module_name or self.soc or "board not known"
        jetpack = f"JetPack {self.jetpack}" if self.jetpack else "JetPack not known"
        return f"{board}, {jetpack}, L4T {self.l4t or 'not known'}"

    def settings(self) -> str:
        """Return power mode and clocks in one line."""
        name = self.power.current_name if self.power else None
        mode = f"power mode {name}" if name else "power mode not known"
        return f"{mode}, {self.clocks.state()}"


def find() -> Jetson | None:
    """Return what is known of this Jetson; None if this machine is not one.

    A machine is a Jetson if its device tree or ``/sys/devices/soc0`` (which containers see too)
    names the chip of one, or if there is an ``/etc/nv_tegra_release``.
    """
    compatible = _strings(_TREE / "compatible")
    chips = (re.fullmatch("nvidia,(tegra[0-9]{2,4})", name) for name in compatible)
    soc = next((chip[1] for chip in chips if chip), None)
    if soc is None and _text(_SOC / "family") == "Tegra":
        soc = _SOC_IDS.get(_text(_SOC / "soc_id"))
    release = l4t_of(_text(_RELEASE))
    if release is None and soc not in _SOC_IDS.values():
        return None
    packages = _installed()
    core = packages.get("nvidia-l4t-core", "").partition("-")[0] or None
    l4t = release or core
    jetpack, source = _jetpack(packages, l4t)
    module = _module(compatible)
    found = Jetson(
        model=_model(),
        module=module,
        module_name=_MODULES.get(module or "") or _MODULES.get((module or "").partition("-")[0]),
        soc=soc,
        l4t=l4t,
        jetpack=jetpack,
        jetpack_source=source,
        packages=packages,
        cuda=os.path.realpath(_CUDA) if is_folder(_CUDA) else None,
        super_flashed=_super_flashed(),
        power=_power(),
        clocks=_clocks(soc),
    )
    problems = tuple(_problems(found, release, core))
    return replace(found, problems=problems, warnings=tuple(_warnings(found)))


def l4t_of(text: str) -> str | None:
    """Return the L4T version that ``/etc/nv_tegra_release`` states, such as "36.4.3", or None.

    The revision has one or two numbers; "1.0" and "1" of R32 both give "32.1.0". Neither the date
    nor the board of the line is used: the date has several forms, and the board is the same word
    for all boards.
    """
    found = _RELEASE_LINE.search(text)
    return f"{found[1]}.{found[2]}{'' if '.' in found[2] else '.0'}" if found else None


def modes_of(text: str, file: str = "", status: str = "") -> PowerModes:
    """Parse ``nvpmodel.conf`` and the content of ``/var/lib/nvpmodel/status`` ("pmode:0001")."""
    names = {int(found[1]): found[2] for found in _MODE_LINE.finditer(text)}
    names = dict(list(names.items())[:_MAX_ENTRIES])
    current = re.match(r"\s*pmode:([0-9]{1,4})\b", status)
    default = _DEFAULT_LINE.search(text)
    ranked = {mode: rank for mode, name in names.items() if (rank := _speed(name))}
    return PowerModes(
        file=file,
        names=names,
        current=int(current[1]) if current and int(current[1]) in names else None,
        default=int(default[1]) if default else None,
        fastest=max(ranked, key=lambda mode: ranked[mode], default=None),
    )


def _speed(name: str) -> tuple[int, int, int] | None:
    """Return a key that orders power modes by their names; None if the name states no power."""
    if name.startswith("MAXN"):
        return 1, int(name == "MAXN_SUPER"), 0
    found = re.fullmatch(r"(?:MODE_)?([0-9]{1,3})W(?:_([0-9]{1,2})CORE)?(?:_\w+)?", name)
    return (0, int(found[1]), int(found[2] or 0)) if found else None


def query_of(text: str) -> tuple[str, int] | None:
    """Return name and ID of the power mode in the output of ``nvpmodel -q``, or None.

    Warnings such as "NVPM WARN: fan mode is not set!" may come first.
    """
    name = re.search(r"^NV Power Mode: (\S{1,64})[ \t\r]{0,64}$", text, re.MULTILINE)
    numbers = re.findall(r"^[ \t]{0,64}([0-9]{1,4})[ \t\r]{0,64}$", text, re.MULTILINE)
    return (name[1], int(numbers[-1])) if name and numbers else None


def clocks_of(text: str) -> dict[str, tuple[float, float]]:
    """Return the limits in MHz of each clock in the output of ``jetson_clocks --show``.

    CPUs have kHz, GPU and EMC have Hz. An EMC line with FreqOverride=1 is pinned at its current
    frequency, whatever its limits are.
    """
    found = {}
    for line in text.splitlines()[:_MAX_ENTRIES]:
        name = re.match(r"(cpu[0-9]{1,3}|GPU|EMC)\b", line)
        values = {k: int(v) for k, v in re.findall(r"\b(\w{1,32})=([0-9]{1,12})\b", line)}
        if name is None or not {"MinFreq", "MaxFreq"} <= values.keys() or values.get("Online") == 0:
            continue
        least, most = values["MinFreq"], values["MaxFreq"]
        if values.get("FreqOverride") == 1 and "CurrentFreq" in values:
            least = most = values["CurrentFreq"]
        unit = _KILO if name[1].startswith("cpu") else _MEGA
        found[name[1].lower()] = (least / unit, most / unit)
    return found


# --- sources --------------------------------------------------------------------------------------


def _model() -> str | None:
    model = next(iter(_strings(_TREE / "model")), None)
    return model or _text(_SOC / "machine") or None


def _module(compatible: list[str]) -> str | None:
    """Return the module in strings such as "nvidia,p3768-0000+p3767-0005-super"."""
    for name in compatible:
        carrier, plus, module = name.removeprefix("nvidia,").partition("+")
        found = re.match(r"p[0-9]{4}(-[0-9]{4})?", module if plus else carrier)
        if found and (plus or found[0] in _MODULES):
            return found[0]
    return None


def _installed() -> dict[str, str]:
    """Return name -> version of the packages in ``_PACKAGES`` that dpkg lists as installed."""
    found: dict[str, str] = {}
    for stanza in _text(_DPKG, _MAX_DPKG_BYTES).split("\n\n"):
        name = re.match(r"\s*Package: (\S+)", stanza)
        if name is None or not _PACKAGES.fullmatch(name[1]):
            continue
        version = re.search(r"^Version: (\S+)", stanza, re.MULTILINE)
        if version and re.search(r"^Status: \S+ \S+ installed$", stanza, re.MULTILINE):
            found[name[1]] = version[1][:_LONGEST]
    return dict(sorted(found.items())[:_MAX_ENTRIES])


def _jetpack(packages: Mapping[str, str], l4t: str | None) -> tuple[str | None, str | None]:
    """Return JetPack's version and where it is from: "6.2.2+b24" of a package is 6.2.2."""
    for name in ("nvidia-jetpack", "nvidia-jetpack-runtime", "nvidia-jetpack-dev"):
        if found := re.match(r"[0-9]+(\.[0-9]+)*", packages.get(name, "")):
            return found[0], f"package {name}"
    known = _JETPACK.get(l4t or "")
    return known, f"L4T {l4t}" if known else None


def _super_flashed() -> bool | None:
    """Return whether the last field of TNSPEC, the board that was flashed, ends in "-super"."""
    found = re.search(r"^TNSPEC (\S+)", _text(_BOOT), re.MULTILINE)
    return None if found is None else found[1].rstrip("-").endswith("-super")


def _power() -> PowerModes | None:
    modes = modes_of(_text(_MODES), os.path.realpath(_MODES), _text(_MODE))
    if not modes.names:
        return None
    if modes.current is None:
        asked = query_of(_output("nvpmodel", "-q"))
        if asked and modes.names.get(asked[1]) == asked[0]:
            modes = replace(modes, current=asked[1])
    return modes


def _clocks(soc: str | None) -> Clocks:
    """Return the limits of the CPU groups and the GPU; for root also those of the memory."""
    limits: dict[str, tuple[float, float]] = {}
    for policy in _entries(_CPUFREQ):
        number = re.fullmatch(r"policy([0-9]{1,3})", policy.name)
        pair = _limits(policy / "scaling_min_freq", policy / "scaling_max_freq", _KILO)
        if number and pair:
            limits[f"cpu{number[1]}"] = pair
    unknown = {"emc": "needs root"}
    if soc == _THOR:  # reading these files was reported to hang there with JetPack 7.2
        unknown = dict.fromkeys(("emc", "gpu"), "not read on Thor")
    else:
        gpus = [entry for entry in _entries(_DEVFREQ) if _GPU.fullmatch(entry.name)]
        pair = _limits(gpus[0] / "min_freq", gpus[0] / "max_freq", _MEGA) if gpus else None
        if pair:
            limits["gpu"] = pair
        else:
            unknown["gpu"] = "not found"
    if soc != _THOR and hasattr(os, "geteuid") and os.geteuid() == 0:
        limits |= clocks_of(_output("jetson_clocks", "--show"))
    unknown = {name: why for name, why in unknown.items() if name not in limits}
    pinned = all(least == most for least, most in limits.values()) if limits else None
    return Clocks(limits, pinned, unknown)


def _problems(found: Jetson, release: str | None, core: str | None) -> Iterator[str]:
    if release and core and release != core:
        yield f"{_RELEASE} states L4T {release}, but the package nvidia-l4t-core is {core}"
    if release and found.soc is None:
        yield (
            f"{_RELEASE} states L4T {release}, but neither {_TREE} nor {_SOC} names a Tegra: the "
            "file was copied or written by hand"
        )
    supported = _SUPPORTED.get((found.l4t or "").partition(".")[0], ())
    if found.soc and supported and found.soc not in supported:
        chips = ", ".join(supported)
        yield f"the board has a {found.soc}, but L4T {found.l4t} supports {chips} only"


def _warnings(found: Jetson) -> Iterator[str]:
    power = found.power
    if power and power.fastest is not None and power.current not in (None, power.fastest):
        best = f"< POWER_MODEL ID={power.fastest} NAME={power.names[power.fastest]} >"
        yield (
            f"the power mode is {power.current_name}, but {power.file} has {best}: "
            f"sudo nvpmodel -m {power.fastest}"
        )
    if _lacks_super_modes(found):
        yield (
            "the board was flashed without the super power modes: flash it with a -super "
            "configuration; linking nvpmodel.conf to the file of another board fails"
        )
    if found.clocks.pinned is False:
        moving = [name for name, (least, most) in found.clocks.limits.items() if least != most]
        yield f"clocks are not pinned ({', '.join(moving)}): sudo jetson_clocks"


def _lacks_super_modes(found: Jetson) -> bool:
    """Return whether the module and L4T have super power modes that were not flashed."""
    known = re.fullmatch(r"([0-9]+)\.([0-9]+)\.([0-9]+)", found.l4t or "")
    return (
        found.super_flashed is False
        and (found.module or "").startswith("p3767")
        and (found.power is not None and "MAXN_SUPER" not in found.power.names.values())
        and (known is not None and tuple(map(int, known.groups())) >= _FIRST_SUPER)
    )


def _limits(least: Path, most: Path, unit: float) -> tuple[float, float] | None:
    """Return two frequencies in MHz from files in kHz or Hz, or None."""
    texts = _text(least), _text(most)
    if not all(re.fullmatch("[0-9]{1,12}", text) for text in texts):
        return None
    return int(texts[0]) / unit, int(texts[1]) / unit


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())[:_MAX_ENTRIES]
    except OSError:
        return []


def _strings(path: Path) -> list[str]:
    """Return the NUL-terminated strings of a device-tree property."""
    return [text[:_LONGEST] for text in _text(path).split("\0")[:_MAX_ENTRIES] if text]


def _text(path: Path, most: int = _MAX_BYTES) -> str:
    """Return the text of a system file without surrounding space; empty if it cannot be read."""
    try:
        return read_regular(path, most).decode("utf-8", "replace").strip()
    except OSError:
        return ""


def _output(program: str, option: str) -> str:
    """Return what a program of L4T prints; empty if it is missing, fails or hangs."""
    path = shutil.which(program, path=_PROGRAMS)
    if path is None:
        return ""
    try:
        done = subprocess.run(
            [path, option], stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout[:_MAX_BYTES].decode("utf-8", "replace") if done.returncode == 0 else ""
