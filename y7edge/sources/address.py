"""Parse what people type for a source: a URI, a path, a pattern, or the number of a camera.

The schemes are those of jetson-inference (https://github.com/dusty-nv/jetson-inference,
docs/aux-streaming.md), and ``gst://``, ``test://`` and ``replay://``.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from y7edge.artifact.schema import nearest
from y7edge.errors import ConfigError, SourceError
from y7edge.sources import options as live
from y7edge.text import is_printable, printable

Option = str | int | float
"""The value of an option; those of a URI are strings."""

NETWORK = tuple(scheme for scheme in live.SCHEMES if scheme not in ("csi", "v4l2", "gst"))
SCHEMES = (*live.SCHEMES, "test", "replay", "file")
SHARED = ("open_timeout", "retries")
"""Options of all cameras and streams."""

# The query of a network URI may contain these; its other parts belong to the server.
_OPTIONS = {n for n, option in live.OPTIONS.items() if option.schemes & {*NETWORK}} | {*SHARED}
_LONGEST = 1 << 14  # characters of a URI; pipelines may be long
_ALIKE = 0.85  # of names, as of difflib: a misspelling
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,31})://")
_QUERY = re.compile(r"[A-Za-z_][\w-]*=[^&?]*(?:&[A-Za-z_][\w-]*=[^&?]*)*")
_NUMBER = re.compile(r"[+-]?\d{1,18}(\.\d{0,18})?(e[+-]?\d{1,3})?", re.A | re.I)
_DEVICE = re.compile(r"/dev/(video\d+|v4l/.+)")
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.%]+\]|[^\s:/\\?#@\[\]\"'<>|]*)(?::(\d{1,5}))?")
_URL = re.compile(r"[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=%]{1,2000}")  # RFC 3986, section 2
_HOST_NAME = re.compile(r"[A-Za-z0-9.-]{1,253}|[0-9A-Fa-f:.]{2,45}")
# Credentials in a text: of URLs, also of percent-encoded ones, and values of properties and
# parameters. Repetitions are bounded, because the time of a search is their product.
_SECRETS = (
    (re.compile(r"(\"[A-Za-z][\w+.-]{0,31}://)[^\"]{0,4096}@"), r"\1***@"),
    (re.compile(r"('[A-Za-z][\w+.-]{0,31}://)[^']{0,4096}@"), r"\1***@"),
    (re.compile(r"([A-Za-z][\w+.-]{0,31}://)[^\s\"']{0,4096}@"), r"\1***@"),
    (re.compile(r"(%3A%2F%2F)[^\s\"'&]{0,4096}%40", re.I), r"\1"),
    (
        re.compile(
            r"\b([\w-]{0,32}(?:user|usr|login|pass|pwd|pw\b|token|secret|auth|proxy-id|session"
            r"|cookie|jwt|credential|key(?=\s{0,8}=)|sig\b|signature)[\w-]{0,32}\s{0,8}=\s{0,8})"
            r"(?:\(\w{1,16}\)\s{0,8})?"  # the type, as in GStreamer's texts
            r"(?:\\\"[^\"]*\"|\"(?:\\.|[^\"\\])*(?:\"|$)|'(?:\\.|[^'\\])*(?:'|$)"
            r"|(?:\\.|[^\s&\"'!\\])+)",
            re.I,
        ),
        r"\1***",
    ),
    (re.compile(r"(\b(?:proxy-)?authorization:\s{0,8})[^\r\n]{1,4096}", re.I), r"\1***"),
)


@dataclass(frozen=True)
class Address:
    """A source and its options.

    Attributes:
        scheme: one of ``SCHEMES``.
        place: what follows ``scheme://``, without options: the number of a CSI sensor, a device, a
            path or pattern, a pipeline; of a network URI, with user name and password.
        options: by name; the part that takes an option validates it.
        name: the URI without options, user name and password, on one printable line.
    """

    scheme: str
    place: str = field(repr=False)  # it may contain a password
    options: Mapping[str, Option] = field(repr=False)
    name: str

    @property
    def live(self) -> bool:
        """Whether it is a camera or a network stream; test patterns may be so too."""
        return self.scheme in live.SCHEMES

    def only(self, *names: str) -> Address:
        """Return the address with those of its options that have one of these names."""
        return replace(self, options={n: v for n, v in self.options.items() if n in names})

    def numbers(self, **known: tuple[float, float]) -> dict[str, float]:
        """Return the options as numbers, those of integer limits as ``int``.

        Args:
            known: (lowest, highest) of each option that the source takes.

        Raises:
            ConfigError: an option is unknown, not a number, or out of its limits.
        """
        return {name: self._number(name, value, known) for name, value in self.options.items()}

    def _number(self, name: str, value: Option, known: Mapping[str, tuple[float, float]]) -> float:
        if name not in known:
            hint = nearest(name, known) if known else "; it takes no options"
            raise ConfigError(f"{self.name}: unknown option {name[:64]!r}{hint}")
        lowest, highest = known[name]
        kind = int if isinstance(lowest, int) and isinstance(highest, int) else float
        if _NUMBER.fullmatch(str(value)):
            number = float(value)
            if lowest <= number <= highest and (kind is float or number.is_integer()):
                return kind(number)
        noun = "a whole number" if kind is int else "a number"
        raise ConfigError(
            f"{self.name}: option {name} is {str(value)[:64]!r}, expected {noun} from {lowest:g} "
            f"to {highest:.10g}"
        )


def without_credentials(text: str) -> str:
    """Remove user names, passwords and tokens from a text, such as a pipeline or a message."""
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


def url(scheme: str, place: str) -> tuple[str, dict[str, str]]:
    """Split the user name and password off a URL.

    Returns:
        The URL without them, and the properties ``user-id`` and ``user-pw`` of a GStreamer source.

    Raises:
        SourceError: it is not a URL; the message does not repeat it.
    """
    whole = f"{scheme}://{place}"
    advice = f"expected {scheme}://HOST[:PORT]/PATH, other characters percent-encoded"
    if not _URL.fullmatch(place):
        raise SourceError(f"the {scheme} address has characters that a URL cannot have: {advice}")
    try:
        parts: SplitResult = urlsplit(whole)
        host, _ = parts.hostname, parts.port  # raise ValueError
        secrets = [
            unquote(text or "", errors="strict") for text in (parts.username, parts.password)
        ]
    except ValueError as error:
        raise SourceError(f"the {scheme} address is not a URL: {advice}") from error
    if not host or not _HOST_NAME.fullmatch(host):
        raise SourceError(f"the {scheme} address has no valid host name: {advice}")
    plain = whole.replace(parts.netloc, parts.netloc.rpartition("@")[2], 1)
    named = dict(zip(("user-id", "user-pw"), secrets, strict=True))
    return plain, named if parts.username is not None else {}


def rtp_address(place: str) -> tuple[str, int]:
    """Return the address and port at which RTP arrives; "@" is any address, as in VLC.

    Raises:
        SourceError: it is not an address and a port.
    """
    found = re.fullmatch(r"(@|\[[^\]]*\]|[^:\[\]@]*):([0-9]{1,5})/?", place)
    host = found[1].strip("[]") if found else ""
    port = int(found[2]) if found else 0
    if (host and host != "@" and not _HOST_NAME.fullmatch(host)) or not 0 < port < 65536:
        raise SourceError("rtp://: expected rtp://@:PORT, or rtp://ADDRESS:PORT of this machine")
    return ("0.0.0.0" if host in ("", "@") else host), port


def parse(uri: str | int | Path, options: Mapping[str, Option] | None = None) -> Address:
    """Parse a source.

    A path that exists is a file, whatever characters it contains; a device is a camera.

    Args:
        uri: a URI, a path, a pattern, or the number of a V4L2 device. A ``Path`` is always a file.
        options: options in addition to those of the URI.

    Raises:
        SourceError: the URI is malformed, or its scheme is unknown.
        ConfigError: an option is malformed, or given twice with different values.
    """
    if isinstance(uri, bool) or not isinstance(uri, str | int | Path):
        kind = type(uri).__name__
        raise ConfigError(f"a source is a URI, a path or the number of a camera, not {kind}")
    if isinstance(uri, Path):
        scheme, place, found, name = "file", str(uri), "", str(uri)
    elif isinstance(uri, int):
        scheme, place, found, name = _split(f"v4l2://{uri}")
    else:
        scheme, place, found, name = _split(_checked(uri))
    return Address(scheme, place, _merged(found, options or {}, name), printable(name))


def _checked(text: str) -> str:
    if not text:
        raise SourceError("the source is empty: expected a URI, a path or the number of a camera")
    if len(text) > _LONGEST:
        raise SourceError(f"the source has {len(text):,} characters: expected at most {_LONGEST:,}")
    if "\0" in text:
        raise SourceError(f"{without_credentials(text)}: a source cannot contain NUL")
    return text


def _split(text: str) -> tuple[str, str, str, str]:
    """Return scheme, place, query with options, and name."""
    found = _SCHEME.match(text)
    if found is None:
        return _bare(text)
    scheme, rest = found[1].lower(), text[found.end() :]
    if scheme not in SCHEMES:
        swapped = [known for known in SCHEMES if sorted(known) == sorted(scheme)]  # rstp
        hint = nearest(scheme, swapped or SCHEMES)
        raise SourceError(f"{scheme}://: unknown kind of source{hint}")
    if scheme in ("file", "replay"):
        place, query = _local(rest.removeprefix("localhost") if rest[9:10] == "/" else rest)
        return scheme, place, query, place if scheme == "file" else f"replay://{place}"
    line = rest.translate(dict.fromkeys(b"\t\n\r", " ")) if scheme == "gst" else rest
    if not is_printable(line):
        raise SourceError(f"{scheme}://: the URI contains control characters: remove them")
    if scheme == "gst":
        return scheme, rest, "", f"gst://{without_credentials(line)}"
    if scheme in NETWORK:
        return _network(scheme, rest)
    place, _, query = rest.partition("?")
    place = unquote(place)
    if scheme == "v4l2":
        place = f"/dev/video{place}" if _is_number(place) else place
    elif scheme == "csi" and not _is_number(place):
        raise SourceError(f"csi://{place}: expected the number of a sensor, such as csi://0")
    return scheme, place, query, f"{scheme}://{place}"


def _bare(text: str) -> tuple[str, str, str, str]:
    """Split a text without a scheme: a file, a pattern, a device, or a number."""
    place, query = _split_query(text)
    if _is_number(place) and not os.path.lexists(place):
        place = f"/dev/video{place}"
    if _DEVICE.fullmatch(place) or _is_device(place):
        return "v4l2", place, query, f"v4l2://{place}"
    scheme = place.partition(":")[0].lower()
    if scheme in SCHEMES and ":" in place and not os.path.lexists(place):
        raise SourceError(f"{scheme}: expected {scheme}:// with two slashes")
    return "file", place, query, place


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 4


def _is_device(place: str) -> bool:
    try:
        return stat.S_ISCHR(os.stat(place).st_mode)  # noqa: PTH116 - an invalid name is an error
    except (OSError, ValueError):
        return False


def _local(text: str) -> tuple[str, str]:
    """Return the path and the options of a ``file://`` URI.

    The standard form is percent-encoded (RFC 8089), jetson-inference's is a plain path: what exists
    is meant.
    """
    for place, query in ((text, ""), _split_query(text)):
        for meant in (place, unquote(place, errors="surrogateescape")):
            if os.path.lexists(meant):
                return meant, query
    place, query = _split_query(text)
    return unquote(place, errors="surrogateescape"), query


def _split_query(text: str) -> tuple[str, str]:
    """Split off the options of a path; a ``?`` may also be part of a name or a pattern."""
    place, mark, query = text.rpartition("?")
    if not mark or os.path.lexists(text) or not _QUERY.fullmatch(query):
        return text, ""
    return place, query


def _network(scheme: str, rest: str) -> tuple[str, str, str, str]:
    """Split a network URI; no message contains a part of it that may be a password."""
    end = next((i for i, c in enumerate(rest) if c in "/?#"), len(rest))
    user, at, host = rest[:end].rpartition("@")
    place, mark, fragment = rest[end:].partition("#")
    path, _, query = place.partition("?")
    found = _HOST.fullmatch(host)
    if not found or int(found[1] or 0) > 65535 or ((at or ":" in host) and "@" in rest[end:]):
        raise SourceError(
            f"{scheme}://: expected host:port after {scheme}:// and user:password@; in a user name "
            "or password write @ : / ? # as %40 %3A %2F %3F %23, and @ in a path as %40"
        )
    if not host.partition(":")[0] and scheme != "rtp":
        raise SourceError(f"{scheme}://: expected a host, as in {scheme}://192.168.0.10/stream")
    if mark:  # after a #, the whole query is the server's
        ours, theirs = fragment, query
    else:
        ours, theirs = _divided(scheme, query)
    path += f"?{theirs}" if theirs else ""
    shown = f"{scheme}://{'' if user else at}{host}{without_credentials(path)}"
    return scheme, f"{user}{at}{host}{path}", ours, shown


def _divided(scheme: str, query: str) -> tuple[str, str]:
    """Divide the query of a network URI into our options and the parameters of the server."""
    ours: list[str] = []
    theirs: list[str] = []
    for part in query.split("&") if query else []:
        name = part.partition("=")[0].replace("-", "_").removeprefix("input_")
        (ours if name in _OPTIONS else theirs).append(part)
        # The server would ignore a misspelled option.
        if name not in _OPTIONS and (near := get_close_matches(name, _OPTIONS, 1, _ALIKE)):
            shown = f" {name!r}" if re.fullmatch(r"[a-z_]{1,32}", name) else ""
            raise ConfigError(
                f"{scheme}://: unknown option{shown}, did you mean {near[0]!r}? If it is a "
                "parameter of the server, end the URI with #"
            )
    return "&".join(ours), "&".join(theirs)


def _merged(query: str, options: Mapping[str, Option], name: str) -> dict[str, Option]:
    """Merge the options of a query with others; raise ConfigError if two values differ."""
    merged: dict[str, Option] = {}
    pairs: list[tuple[str, Option]] = []
    for part in query.split("&") if query else []:
        key, equals, text = part.partition("=")
        if not equals or not key:
            raise ConfigError(f"{name}: expected options as name=value, joined by &")
        pairs.append((unquote(key), unquote(text)))
    for given, value in (*pairs, *options.items()):
        key = given.replace("-", "_")
        if not isinstance(value, str | int | float):
            kind = type(value).__name__
            raise ConfigError(f"{name}: option {key} is a {kind}, expected a text or a number")
        if str(merged.get(key, value)) != str(value):
            raise ConfigError(f"{name}: option {key} is given twice, with different values")
        merged[key] = value
    return merged
