"""Addresses, tokens, and the checks of Host and Origin."""

from __future__ import annotations

import socket

import pytest

from y7edge.errors import ConfigError, DeviceError
from y7edge.live.access import Address, Guard, reachable

SECRET = "0123456789abcdef"


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("8080", "127.0.0.1", 8080),
        (":0", "127.0.0.1", 0),
        ("127.0.0.1:8080", "127.0.0.1", 8080),
        ("localhost:80", "localhost", 80),
        ("[::1]:8080", "::1", 8080),
        ("0.0.0.0:65535", "0.0.0.0", 65535),
        ("Robot-1.local:1", "robot-1.local", 1),
    ],
)
def test_addresses(text, host, port):
    assert Address.parse(text) == Address(host, port)


@pytest.mark.parametrize(
    "text",
    ["", "x", "65536", "-1", "http://a:1", "a b:1", "::1:8080", "1:2:3", "٨٠", "a:1\n2", "a:"],
)
def test_other_texts_are_no_addresses(text):
    with pytest.raises(ConfigError, match="expected a port"):
        Address.parse(text)


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True)]
    + [(host, False) for host in ("0.0.0.0", "::", "192.168.0.9", "robot.local", "localhost.x")],
)
def test_loopback(host, is_loopback):
    assert Address(host, 0).is_loopback == is_loopback


def test_other_machines_need_a_token():
    for host in ("0.0.0.0", "::", "192.168.0.9", "robot"):
        with pytest.raises(ConfigError, match="add --token auto, or use 127"):
            Guard(Address(host, 0), None)
        assert Guard(Address(host, 0), SECRET).token == SECRET
    assert Guard(Address("127.0.0.1", 0), None).token is None


@pytest.mark.parametrize(
    "token", ["", "short", "x" * 15, "x" * 201, "0123456789abcde é", "a" * 15 + "\n"]
)
def test_tokens_that_are_refused_are_not_printed(token):
    with pytest.raises(ConfigError, match="expected 'auto', or 16 to 200") as error:
        Guard(Address("127.0.0.1", 0), token)
    assert not token or token not in str(error.value)


def test_new_tokens_are_long_and_differ():
    tokens = {Guard(Address("0.0.0.0", 0), "auto").token for _ in range(20)}
    assert len(tokens) == 20
    assert min(map(len, tokens)) >= 32


def test_tokens_and_cookies():
    guard = Guard(Address("0.0.0.0", 0), SECRET)
    assert guard.allows_token(SECRET)
    assert guard.allows_cookie(guard.cookie)
    assert SECRET not in guard.cookie
    # A browser that stays open is not asked again after a restart.
    assert Guard(Address("0.0.0.0", 0), SECRET).cookie == guard.cookie
    assert Guard(Address("0.0.0.0", 0), SECRET + "x").cookie != guard.cookie
    for wrong in (None, "", SECRET[:-1], SECRET + "x", SECRET.upper(), guard.cookie, "\udcff", "é"):
        assert not guard.allows_token(wrong)
    for wrong in (None, "", SECRET, guard.cookie[:-1]):
        assert not guard.allows_cookie(wrong)


@pytest.mark.parametrize(
    ("bound", "header", "allowed"),
    [
        *(("127.0.0.1", host, True) for host in ("127.0.0.1:8080", "localhost", "LOCALHOST:9")),
        *(("127.0.0.1", host, True) for host in ("[::1]:1", "127.0.0.2")),
        # A site that points its name at this machine (DNS rebinding).
        *(("127.0.0.1", host, False) for host in ("evil.example", "evil.example:8080")),
        *(("127.0.0.1", host, False) for host in ("localhost.evil.example", "192.168.0.9")),
        *(("127.0.0.1", host, False) for host in (None, "", "a b", "127.0.0.1:", "x@127.0.0.1")),
        *(("127.0.0.1", host, False) for host in ("127.0.0.1:80:80", "[::1", "::1", "[evil]")),
        *(("0.0.0.0", host, True) for host in ("192.168.0.9:8080", "[fe80::1]:1", "localhost:1")),
        *(("0.0.0.0", host, False) for host in ("evil.example", "robot.lan")),
        ("robot.lan", "robot.lan:8080", True),
        ("robot.lan", "robot.lan.evil.example", False),
    ],
)
def test_hosts(bound, header, allowed):
    guard = Guard(Address(bound, 8080), SECRET)
    assert guard.allows_host(header) == allowed


def test_the_name_of_the_machine_is_a_host():
    name = socket.gethostname()
    assert Guard(Address("0.0.0.0", 0), SECRET).allows_host(f"{name}.local:80")
    assert not Guard(Address("127.0.0.1", 0), SECRET).allows_host(f"{name}.local:80")


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (None, True),
        ("http://127.0.0.1:8080", True),
        ("https://127.0.0.1:8080", True),  # behind a proxy
        ("http://127.0.0.1", False),
        ("http://127.0.0.1:8081", False),
        ("http://localhost:8080", False),
        ("http://evil.example", False),
        ("http://127.0.0.1:8080.evil.example", False),
        ("http://x@127.0.0.1:8080", False),
        ("file://127.0.0.1:8080", False),
        ("null", False),
        ("", False),
        ("http://[", False),
    ],
)
def test_origins(origin, allowed):
    guard = Guard(Address("127.0.0.1", 8080), None)
    assert guard.allows_origin(origin, "127.0.0.1:8080") == allowed


def test_an_occupied_port():
    with Address("127.0.0.1", 0).listen() as first:
        with pytest.raises(DeviceError, match="choose another port, or :0"):
            Address("127.0.0.1", first.getsockname()[1]).listen()
        port = first.getsockname()[1]
    Address("127.0.0.1", port).listen().close()


def test_an_address_of_another_machine():
    with pytest.raises(ConfigError, match="not an address of this machine"):
        Address("192.0.2.77", 0).listen()


def test_an_unknown_host():
    with pytest.raises(ConfigError, match="unknown host"):
        Address("no-such-host.invalid", 0).listen()


def test_the_printed_address_can_be_opened():
    assert reachable("127.0.0.1") == "127.0.0.1"
    assert reachable("::1") == "::1"
    for wildcard in ("0.0.0.0", "::"):
        assert reachable(wildcard) not in ("0.0.0.0", "::", "")
