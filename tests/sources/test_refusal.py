"""Why a server refuses a stream, found out with servers on loopback."""

import contextlib
import socket
import threading
import time

import pytest

from y7edge.sources.refusal import refusal_reason


@contextlib.contextmanager
def server(*answers, delay=0.0):
    """Take one connection and send the answers; yield the port and what was received."""
    received = []

    def serve():
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.settimeout(20)
            received.append(connection.recv(4096))
            for answer in answers:
                connection.sendall(answer)
                time.sleep(delay)
            if not answers:
                connection.recv(1)  # until the other side gives up

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1], received
        thread.join(20)
        assert not thread.is_alive()


@pytest.mark.parametrize("scheme", ["rtsp", "http"])
@pytest.mark.parametrize(
    ("status", "message"),
    [
        ("401 Unauthorized", "needs a user name and password: {}://USER:PASSWORD@HOST/PATH"),
        ("403 Forbidden", "refuses access"),
        ("404 Not Found", "does not know this path"),
        ("503 \x1b[31mRed", "answers with status 503"),
        ("302 Found", "answers with status 302"),
        ("200 OK", "finds no video that it can read"),
    ],
)
def test_statuses(scheme, status, message):
    answer = f"{scheme.upper()}/1.0 {status}\r\nWWW-Authenticate: Basic realm=x\r\n\r\n".encode()
    with server(answer) as (port, received):
        found = refusal_reason(f"{scheme}://127.0.0.1:{port}/a?b=1", 10, with_password=False)
    assert message.format(scheme) in found and found.isprintable()
    first = received[0].split(b"\r\n")[0].decode()
    assert (
        first
        == {
            "rtsp": f"DESCRIBE rtsp://127.0.0.1:{port}/a?b=1 RTSP/1.0",
            "http": "GET /a?b=1 HTTP/1.1",
        }[scheme]
    )
    assert received[0].endswith(b"\r\n\r\n") and b"Authorization" not in received[0]


def test_a_password_that_is_refused():
    with server(b"RTSP/1.0 401 No\r\n\r\n") as (port, _):
        found = refusal_reason(f"rtsp://127.0.0.1:{port}/a", 10, with_password=True)
    assert found.startswith("the server refuses this user name and password")


@pytest.mark.parametrize(
    ("answers", "delay", "message"),
    [
        ((), 0, "does not answer"),
        ((b"",), 0, "does not answer"),  # closes the connection
        ((b"SSH-2.0-OpenSSH_9\r\n",), 0, "something else than an rtsp server"),
        ((b"x" * 65536,) * 100, 0, "something else than an rtsp server"),
        ((b"R",) * 40, 0.05, "something else than an rtsp server"),  # never a whole line
        ((b"RTSP/1.0 99999999 No\r\n",), 0, "something else than an rtsp server"),
        ((b"RTSP/1.0 40", b"4 No\r\n"), 0.05, "does not know this path"),
    ],
)
def test_answers_of_other_servers(answers, delay, message):
    with server(*answers, delay=delay) as (port, _):
        began = time.monotonic()
        assert message in refusal_reason(f"rtsp://127.0.0.1:{port}/a", 0.5, with_password=False)
        assert time.monotonic() - began < 1.9


def test_hosts_that_are_not_there(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as one:
        port = one.getsockname()[1]
    found = refusal_reason(f"rtsp://127.0.0.1:{port}/a", 5, with_password=False)
    assert found == f"127.0.0.1 is there, but nothing listens at port {port}: check the port"
    found = refusal_reason("rtsp://a..b/x", 5, with_password=False)
    assert found.startswith("the host name a..b is not known")
    for error, message in (
        (socket.gaierror(-2, "Name or service not known"), "the host name cam.lan is not known"),
        (TimeoutError("timed out"), "cam.lan does not answer at port 554"),
        (OSError(113, "No route to host"), "cam.lan cannot be reached at port 554"),
    ):

        def fail(*_, error=error):
            raise error

        monkeypatch.setattr(socket, "create_connection", fail)
        assert message in refusal_reason("rtsp://cam.lan/a", 5, with_password=False)
