"""Options of cameras and streams: their names, types and ranges.

Names are those of jetson-inference (https://github.com/dusty-nv/jetson-inference, its page "Camera
Streaming and Multimedia"), also with the prefix ``input-``, and those of nvarguscamerasrc's
properties.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from y7edge.artifact.schema import nearest
from y7edge.errors import ConfigError

SCHEMES = ("csi", "v4l2", "rtsp", "rtsps", "rtp", "http", "https", "gst")
CODECS = ("h264", "h265", "vp8", "vp9", "mpeg2", "mpeg4", "mjpeg", "raw")
FLIPS = (
    *("none", "counterclockwise", "rotate-180", "clockwise", "horizontal"),
    *("upper-right-diagonal", "vertical", "upper-left-diagonal"),
)
"""In the order of nvvidconv's ``flip-method``."""

_MAX_SIDE = 16384
_LONGEST = 80  # of a value that a message repeats


@dataclass(frozen=True, slots=True)
class _Option:
    """Where an option applies, and which values it has."""

    schemes: frozenset[str]
    expected: str
    parse: Callable[[str], Any]  # raises ValueError


def _integer(low: int, high: int) -> tuple[str, Callable[[str], int]]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", text) or not low <= int(text) <= high:
            raise ValueError
        return int(text)

    return f"an integer from {low} to {high}", parse


def _number(low: float, high: float) -> tuple[str, Callable[[str], float]]:
    def parse(text: str) -> float:
        value = float(text)
        if not low <= value <= high:  # refuses NaN too
            raise ValueError
        return value

    return f"a number from {low:g} to {high:g}", parse


def _range(low: float, high: float, unit: str) -> tuple[str, Callable[[str], tuple[float, float]]]:
    """Two numbers, or one for both ends; nvarguscamerasrc writes a space between them."""
    _, number = _number(low, high)

    def parse(text: str) -> tuple[float, float]:
        ends = [number(part) for part in re.split(r"[\s,]+", text.strip(' "'))]
        if len(ends) > 2 or ends[0] > ends[-1]:
            raise ValueError
        return ends[0], ends[-1]

    return f"LOW,HIGH or one number, from {low:g} to {high:g}{unit}", parse


def _choice(names: tuple[str, ...], **others: str) -> tuple[str, Callable[[str], str]]:
    def parse(text: str) -> str:
        name = text.lower()
        name = others.get(name.replace("-", "_"), name)
        if name not in names:
            raise ValueError
        return name

    return f"one of {', '.join(names)}", parse


def _boolean(text: str) -> bool:
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in words:
        raise ValueError
    return words[text.lower()]


def _rate(text: str) -> Fraction:
    """Return frames per second as a fraction; 29.97 and the like are N * 1000 / 1001."""
    if not re.fullmatch(r"[0-9]{1,7}(\.[0-9]{1,6}|/[0-9]{1,5})?", text):
        raise ValueError
    try:
        rate = Fraction(text)
    except ZeroDivisionError as error:
        raise ValueError from error
    whole = round(rate * 1001 / 1000)
    if "." in text and rate.denominator != 1 and abs(Fraction(whole * 1000, 1001) - rate) < 0.005:
        rate = Fraction(whole * 1000, 1001)
    if not Fraction(1, 60) <= rate <= 1000:
        raise ValueError
    return rate


def _flip(text: str) -> str:
    numbers = dict(zip("01234567", FLIPS, strict=True))
    others = {"horizontal_flip": "horizontal", "vertical_flip": "vertical"}
    return _choice(FLIPS, rotate180="rotate-180", **others, **numbers)[1](text)


_CAMERAS = "csi v4l2"
_RTSP = "rtsp rtsps"
_NETWORK = f"{_RTSP} rtp http https"
_ALL = " ".join(SCHEMES)
_TABLE: Mapping[str, tuple[str, str, Callable[[str], Any]]] = {
    "width": (f"{_CAMERAS} {_NETWORK}", *_integer(16, _MAX_SIDE)),
    "height": (f"{_CAMERAS} {_NETWORK}", *_integer(16, _MAX_SIDE)),
    "rate": (f"{_CAMERAS} {_NETWORK}", "frames per second from 1/60 to 1000", _rate),
    "flip": (f"{_CAMERAS} {_NETWORK}", f"one of {', '.join(FLIPS)}", _flip),
    "format": (_ALL, *_choice(("nv12", "bgr"))),
    "codec": (f"v4l2 {_RTSP} rtp", *_choice(CODECS, hevc="h265", jpeg="mjpeg", avc="h264")),
    "decoder": (f"v4l2 {_NETWORK}", *_choice(("auto", "cpu", "v4l2"))),
    "latency": (f"{_RTSP} rtp", *_integer(0, 60_000)),  # ms
    "transport": (_RTSP, *_choice(("tcp", "udp", "auto"))),
    "timeout": (f"{_RTSP} http https", *_number(1, 60)),  # s
    "backend": (_ALL, *_choice(("auto", "gstreamer", "opencv"))),
    "sensor_mode": ("csi", *_integer(-1, 255)),
    "exposure": ("csi", *_range(1, 100_000_000_000, " ns")),
    "gain": ("csi", *_range(1, 1024, "")),
    "digital_gain": ("csi", *_range(1, 256, "")),
    "exposure_compensation": ("csi", *_number(-2, 2)),
    "wbmode": ("csi", *_integer(0, 9)),
    "aelock": ("csi", "true or false", _boolean),
    "awblock": ("csi", "true or false", _boolean),
    "aeantibanding": ("csi", *_integer(0, 3)),
    "tnr_mode": ("csi", *_integer(0, 2)),
    "tnr_strength": ("csi", *_number(-1, 1)),
    "ee_mode": ("csi", *_integer(0, 2)),
    "ee_strength": ("csi", *_number(-1, 1)),
    "saturation": ("csi", *_number(0, 2)),
}
OPTIONS = {
    name: _Option(frozenset(schemes.split()), expected, parse)
    for name, (schemes, expected, parse) in _TABLE.items()
}
_OTHER_NAMES = {
    **{"fps": "rate", "framerate": "rate", "flip_method": "flip", "rtsp_latency": "latency"},
    **{"exposuretimerange": "exposure", "gainrange": "gain", "ispdigitalgainrange": "digital_gain"},
    "exposurecompensation": "exposure_compensation",
}
_NOT_HERE = {  # options of jetson-inference that mean nothing here
    "num_buffers": "live sources keep the newest frame only",
    "loop": "only files can be repeated",
    "save": "y7edge live --record saves what a camera sees",
}


def option_name(name: str) -> str:
    """Return our name of an option: "rate" for "input-rate" and "fps"; others are unchanged."""
    plain = name.lower().replace("-", "_").removeprefix("input_")
    return _OTHER_NAMES.get(plain, plain)


def check_options(scheme: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of options by our names, converted to their types.

    Args:
        scheme: one of ``SCHEMES``.
        options: texts as in the query of a URI; numbers and booleans are accepted too.

    Raises:
        ConfigError: an option is unknown, does not apply to the scheme, is given twice, or has a
            value out of range.
    """
    values: dict[str, Any] = {}
    for given, value in options.items():
        name = option_name(given)
        option = OPTIONS.get(name)
        if option is None or scheme not in option.schemes:
            raise ConfigError(_unknown(scheme, given, name))
        if name in values:
            raise ConfigError(f"option {given} is given twice, also as {name}: leave one out")
        try:
            values[name] = option.parse(str(value).strip())
        except ValueError as error:
            found = repr(str(value)[:_LONGEST])
            raise ConfigError(f"option {given} is {found}, expected {option.expected}") from error
    return values


def _unknown(scheme: str, given: str, name: str) -> str:
    """Return the message about an option that a scheme does not have."""
    names = sorted(known for known, option in OPTIONS.items() if scheme in option.schemes)
    if name in _NOT_HERE:
        return f"{scheme} has no option {given}: {_NOT_HERE[name]}"
    if name in OPTIONS:
        return f"{scheme} has no option {given}, expected {', '.join(names)}"
    return f"{scheme} has no option {given[:_LONGEST]!r}{nearest(name, [*names, *_OTHER_NAMES])}"
