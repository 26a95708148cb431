"""Check the URLs and addresses of streams."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, unquote, urlsplit

from y7edge.errors import SourceError

_URL = re.compile(r"[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=%]{1,2000}")  # RFC 3986, section 2
_HOST = re.compile(r"[A-Za-z0-9.-]{1,253}|[0-9A-Fa-f:.]{2,45}")


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
    if not host or not _HOST.fullmatch(host):
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
    if (host and host != "@" and not _HOST.fullmatch(host)) or not 0 < port < 65536:
        raise SourceError("rtp://: expected rtp://@:PORT, or rtp://ADDRESS:PORT of this machine")
    return ("0.0.0.0" if host in ("", "@") else host), port
