"""Find out why a server refuses a stream."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from urllib.parse import SplitResult, urlsplit

_PORTS = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}
_STATUS = re.compile(rb"(?:RTSP|HTTP)/[0-9.]{1,5} ([0-9]{3})\b")  # RFC 2326 7.1, RFC 9112 4
_MOST = 256  # bytes of an answer that are read


def refusal_reason(plain: str, timeout: float, *, with_password: bool) -> str:
    """Ask a server why a stream cannot be opened: one connection, one request without a password.

    Args:
        plain: URL without user name and password.
        timeout: seconds for connecting, and again for the answer; finding the host's address may
            take longer.
        with_password: whether the stream was opened with a user name and password.

    Returns:
        Why, in one line, which has nothing of the answer but its number.
    """
    parts = urlsplit(plain)
    scheme, host = parts.scheme, parts.hostname or ""
    port = parts.port or _PORTS[scheme]
    try:
        connection = socket.create_connection((host, port), timeout)
    except (socket.gaierror, UnicodeError):  # UnicodeError: a name such as "a..b"
        return f"the host name {host} is not known: check it, and the connection to the network"
    except ConnectionRefusedError:
        return f"{host} is there, but nothing listens at port {port}: check the port"
    except OSError as error:  # TimeoutError, or the network or host is unreachable
        found = "does not answer" if isinstance(error, TimeoutError) else "cannot be reached"
        return f"{host} {found} at port {port}: check the address, the camera, and firewalls"
    with connection:
        if scheme in ("rtsps", "https"):
            return f"{host} listens at port {port}: check path, user name and password"
        status = _status(connection, _request(parts), time.monotonic() + timeout)
    return _meaning(status, scheme, with_password=with_password)


def _request(parts: SplitResult) -> bytes:
    if parts.scheme == "rtsp":
        lines = [f"DESCRIBE {parts.geturl()} RTSP/1.0", "CSeq: 1", "Accept: application/sdp"]
    else:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        lines = [f"GET {target} HTTP/1.1", f"Host: {parts.netloc}", "Connection: close"]
    return "\r\n".join([*lines, "User-Agent: y7edge", "", ""]).encode()


def _status(connection: socket.socket, request: bytes, end: float) -> int | None:
    """Return the status of the answer; 0: there was none in time; None: it has no status."""
    answer = b""
    with contextlib.suppress(OSError):
        connection.sendall(request)
        while b"\n" not in answer and len(answer) < _MOST:
            connection.settimeout(max(0.001, end - time.monotonic()))
            if not (part := connection.recv(_MOST)):
                break
            answer += part
    found = _STATUS.match(answer)
    return int(found[1]) if found else None if answer else 0


def _meaning(status: int | None, scheme: str, *, with_password: bool) -> str:
    meanings = {
        None: f"something else than an {scheme} server answers at this port",
        0: "the server takes the connection, but does not answer: check the port",
        401: f"the server needs a user name and password: {scheme}://USER:PASSWORD@HOST/PATH",
        403: "the server refuses access to this path",
        404: "the server does not know this path",
    }
    if status == 401 and with_password:
        return "the server refuses this user name and password, or this path"
    if status is not None and 200 <= status < 300:
        return (
            "the server answers, but OpenCV finds no video that it can read: check the path, and "
            "the codec in the camera's settings"
        )
    return meanings.get(status, f"the server answers with status {status}")
