"""Who may open the page and ask for the health: addresses, tokens, and the checks of every request.

The page shows a camera, so it is served on the loopback interface only, unless there is a token.
Other web sites that the user visits are kept out by two checks. The ``Host`` header must be an IP
address or a name of this machine, because a site can point its own name at this machine (DNS
rebinding). The ``Origin`` of a WebSocket must be the page itself, because browsers let every site
open WebSockets to any address (RFC 6455, 10.2).
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import ipaddress
import os
import re
import secrets
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from y7edge.errors import ConfigError, DeviceError
from y7edge.files import reason

Listener = socket.socket

_ADDRESS = re.compile(r"(?:(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]*):)?([0-9]{1,5})")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?")
_TOKEN = re.compile(r"[A-Za-z0-9_.~-]{16,200}")  # characters that need no escape in a URL
_BACKLOG = 16


@dataclass(frozen=True)
class Address:
    """Where the page is served.

    Attributes:
        host: an IP address without brackets, or a name.
        port: the TCP port; 0: any free port.
        option: of the command line, for messages.
    """

    host: str
    port: int
    option: str = "--web"

    @classmethod
    def parse(cls, text: str, option: str = "--web") -> Address:
        """Parse ``8080``, ``127.0.0.1:8080``, ``[::1]:8080`` or ``:0``.

        Without a host it is 127.0.0.1, the loopback interface.

        Raises:
            ConfigError: the text has another form, or there is no such port.
        """
        found = _ADDRESS.fullmatch(text.strip())
        if found is None or int(found[2]) > 65535:
            raise ConfigError(
                f"{option} is {text!r}, expected a port, or host:port such as 127.0.0.1:8080"
            )
        return cls((found[1] or "127.0.0.1").strip("[]").lower(), int(found[2]), option)

    @property
    def is_loopback(self) -> bool:
        """Whether only programs of this machine reach the address."""
        return self.host == "localhost" or _is_loopback(self.host)

    def listen(self) -> Listener:
        """Return a socket that listens on the address.

        Raises:
            ConfigError: the host is not known, or not an address of this machine.
            DeviceError: the port is in use, or not allowed.
        """
        where = f"{self.option} {self.host}:{self.port}"
        host = "127.0.0.1" if self.host == "localhost" else self.host
        try:
            family, _, _, _, found = socket.getaddrinfo(host, self.port, type=socket.SOCK_STREAM)[0]
        except OSError as error:
            raise ConfigError(f"{where}: unknown host: {reason(error)}") from error
        if not _is_loopback(str(found[0])) and self.is_loopback:
            raise ConfigError(f"{where}: expected a loopback address, found {found[0]}")
        try:
            return socket.create_server(found, family=family, backlog=_BACKLOG)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise ConfigError(
                    f"{where}: not an address of this machine; 0.0.0.0 stands for all of them"
                ) from error
            why = os.strerror(error.errno) if error.errno else reason(error)
            raise DeviceError(
                f"{where}: cannot listen there: {why}; choose another port, or :0 for any free port"
            ) from error


def reachable(host: str) -> str:
    """Return an address that others can open, if ``host`` stands for all addresses (0.0.0.0)."""
    if not ipaddress.ip_address(host).is_unspecified:
        return host
    # Connecting a datagram socket sends nothing; it chooses the address of the default route. The
    # target is an address for documentation (RFC 5737, RFC 3849).
    family, target = socket.AF_INET, "192.0.2.1"
    if ":" in host:
        family, target = socket.AF_INET6, "2001:db8::1"
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((target, 9))
        except OSError:  # there is no network
            return socket.gethostname()
        return str(probe.getsockname()[0])


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def new_token() -> str:
    """Return a new secret."""
    return secrets.token_urlsafe(24)


class Guard:
    """Decide which requests are answered.

    Args:
        address: where the page is served.
        token: the secret that viewers need; "auto": a new one; None: viewers need none.
        required: whether an address that other machines reach needs a token.

    Attributes:
        token: the secret, or None.
        is_loopback: whether only programs of this machine reach the address.

    Raises:
        ConfigError: the token is too short or has other characters, or there is none and the
            address can be reached from other machines.
    """

    def __init__(self, address: Address, token: str | None, *, required: bool = True) -> None:
        if token is None and required and not address.is_loopback:
            raise ConfigError(
                f"{address.option} {address.host}: other machines can open this address, so it "
                "needs a token: add --token auto, or use 127.0.0.1"
            )
        if token is not None and token != "auto" and not _TOKEN.fullmatch(token):
            raise ConfigError(
                "--token: expected 'auto', or 16 to 200 letters, digits or _ . ~ -"  # not printed
            )
        self.token = new_token() if token == "auto" else token
        self.is_loopback = address.is_loopback
        machine = socket.gethostname().lower()
        self._names = {"localhost", address.host}
        if not address.is_loopback:
            self._names |= {machine, f"{machine}.local"}

    def allows_host(self, header: str | None) -> bool:
        """Return whether a ``Host`` header names this machine."""
        found = _HOST.fullmatch(header or "")
        if found is None:
            return False
        name = found[1].strip("[]").lower()
        try:
            given = ipaddress.ip_address(name)
        except ValueError:
            return name in self._names
        return given.is_loopback or not self.is_loopback

    def allows_origin(self, origin: str | None, host: str | None) -> bool:
        """Return whether an ``Origin`` header is the page itself; programs send none."""
        if origin is None:
            return True
        try:
            parts = urlsplit(origin)
        except ValueError:  # such as http://[
            return False
        is_page = parts.scheme in ("http", "https") and not parts.username
        return is_page and parts.netloc.lower() == (host or "").lower()

    def allows_token(self, token: str | None) -> bool:
        """Return whether the token of a URL is right."""
        return self.token is None or _equal(token, self.token)

    def allows_cookie(self, cookie: str | None) -> bool:
        """Return whether the cookie is the one that ``cookie`` returned."""
        return self.token is None or _equal(cookie, self.cookie)

    @property
    def cookie(self) -> str:
        """The value of the cookie; it depends on the token only, and does not contain it."""
        key = (self.token or "").encode()
        return hmac.new(key, b"y7edge live", hashlib.sha256).hexdigest()


def _equal(given: str | None, expected: str) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest((given or "").encode("utf-8", "replace"), expected.encode())
