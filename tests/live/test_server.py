"""The server of the page: its protocol, its limits, and whom it answers."""

from __future__ import annotations

import asyncio
import json
import re
import select
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.live.conftest import ABOUT, NAMES, make_result
from y7edge.detect.detections import Detections
from y7edge.frames import Frame

aiohttp = pytest.importorskip("aiohttp")

from y7edge.live import feed, server, serving  # noqa: E402

SECRET = "0123456789abcdef"
WAIT = 30
_PLAIN = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
_UPGRADE = (
    b"GET /stream HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\n"
)
_KEY = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
PAGE = Path(server.__file__).parent / "page"


def run(test: Callable[[aiohttp.ClientSession], Awaitable[Any]], **options: Any) -> Any:
    """Run a coroutine with a client that stores no cookies."""

    async def main() -> Any:
        jar = aiohttp.DummyCookieJar()
        async with aiohttp.ClientSession(cookie_jar=jar, **options) as client:
            return await asyncio.wait_for(test(client), 2 * WAIT)

    return asyncio.run(main())


class Viewer:
    """A viewer that reads messages one by one."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self.ws = ws

    @classmethod
    async def open(cls, client: aiohttp.ClientSession, page: Any, **options: Any) -> Viewer:
        return cls(await client.ws_connect(page.url + "/stream", **options))

    async def send(self, **message: Any) -> None:
        await self.ws.send_str(json.dumps(message))

    async def next(self, kind: str) -> dict[str, Any]:
        """Return the next message of a kind; others are skipped. Images get "jpeg"."""
        while True:
            message = await self.ws.receive(WAIT)
            if message.type is aiohttp.WSMsgType.TEXT:
                found = json.loads(message.data)
            elif message.type is aiohttp.WSMsgType.BINARY:
                (length,) = struct.unpack_from(">I", message.data)
                found = json.loads(message.data[4 : 4 + length])
                found["jpeg"] = message.data[4 + length :]
            else:
                raise EOFError(self.ws.close_code)
            if found["type"] == kind:
                return found

    async def silent(self, kind: str, seconds: float = 0.3) -> bool:
        """Return whether no message of a kind comes."""
        try:
            await asyncio.wait_for(self.next(kind), seconds)
        except asyncio.TimeoutError:
            return True
        return False

    async def status(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Return the first status that fulfils a condition."""
        while not condition(found := await self.next("status")):
            pass
        return found


async def closed(viewer: Viewer) -> int | None:
    """Read until the server closes; return its code."""
    while not viewer.ws.closed:
        await viewer.ws.receive(WAIT)
    return viewer.ws.close_code


async def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


# --- protocol ------------------------------------------------------------------------------------


def test_a_viewer_gets_model_state_and_images(open_page):
    page = open_page(width=160)
    page.offer(100)

    async def test(client):
        viewer = await Viewer.open(client, page)
        hello = await viewer.next("hello")
        assert (hello["sources"], hello["names"], hello["model"]) == (["cam"], list(NAMES), "demo")
        status = await viewer.next("status")
        assert (status["conf"], status["floor"], status["viewers"]) == (0.25, 0.05, 1)
        assert status["sources"][0]["age"]["p99_ms"] == 31
        assert status["board"]["celsius"] == 51.5
        await viewer.send(type="watch", source=0)
        image = await viewer.next("image")
        assert (image["source"], image["frame"], image["size"]) == (0, 100, [320, 240])
        assert image["boxes"] == [[0, 10, 30, 60, 0.9, 0, None], [40, 50, 70, 100, 0.7, 1, None]]
        pixels = cv2.imdecode(np.frombuffer(image["jpeg"], np.uint8), cv2.IMREAD_COLOR)
        assert pixels.shape == (120, 160, 3)
        assert np.abs(pixels.astype(int) - 100).max() < 5

    run(test)


def test_viewers_are_told_of_another_model(open_page):
    page = open_page()
    page.offer(1)

    async def test(client):
        viewer = await Viewer.open(client, page)
        assert (await viewer.next("hello"))["model_id"] is None
        await viewer.send(type="watch", source=0)
        assert (await viewer.next("image"))["model_id"] is None
        page.server.show_model({**ABOUT, "model": "other", "model_id": "cd", "names": ["bolt"]})
        hello = await viewer.next("hello")
        assert (hello["model"], hello["model_id"], hello["names"]) == ("other", "cd", ["bolt"])
        later = await Viewer.open(client, page)
        assert (await later.next("hello"))["model_id"] == "cd"

    run(test)


def test_names_with_control_characters_are_escaped(open_page):
    page = open_page(sources=("cam\x1b[31m\u202e",))

    async def test(client):
        viewer = await Viewer.open(client, page)
        assert (await viewer.next("hello"))["sources"] == ["cam\\x1b[31m\\u202e"]

    run(test)


def test_images_come_only_while_a_source_is_watched_and_drawn(open_page):
    page = open_page(sources=("cam", "other"))

    async def test(client):
        viewer = await Viewer.open(client, page)
        await viewer.next("hello")
        page.offer(1)
        assert await viewer.silent("image")
        assert page.server.encoded == 0, "nobody watched"
        await viewer.send(type="watch", source=0)
        assert (await viewer.next("image"))["frame"] == 1
        page.offer(2)
        assert (await viewer.next("image"))["frame"] == 2
        page.offer(3)
        assert await viewer.silent("image"), "more images than it has drawn"
        for number in range(4, 60):
            page.offer(number)
        await viewer.send(type="drawn")
        assert (await viewer.next("image"))["frame"] == 59, "not the newest"
        await viewer.send(type="drawn")
        await viewer.send(type="drawn")
        await viewer.send(type="watch", source=None)
        page.offer(60)
        assert await viewer.silent("image")
        await viewer.send(type="watch", source=1)
        page.server.offer("other", *make_result(7))
        assert (await viewer.next("image"))["source"] == 1

    run(test)


def test_the_image_of_a_stalled_camera_is_sent_to_a_new_viewer(open_page):
    page = open_page()
    page.offer(9)

    async def test(client):
        for _ in range(2):
            viewer = await Viewer.open(client, page)
            await viewer.send(type="watch", source=0)
            assert (await viewer.next("image"))["frame"] == 9

    run(test)
    assert page.server.encoded == 1


def test_a_frame_is_encoded_once_for_all_viewers(open_page):
    page = open_page()

    async def test(client):
        viewers = [await Viewer.open(client, page) for _ in range(5)]
        for viewer in viewers:
            await viewer.send(type="watch", source=0)
        await until(lambda: page.server.watched == 5)
        for number in range(1, 11):
            page.offer(number)
            for viewer in viewers:
                assert (await viewer.next("image"))["frame"] == number
                await viewer.send(type="drawn")

    run(test)
    assert page.server.encoded == 10


def test_the_rate_is_bounded(open_page):
    page = open_page(rate=10)

    async def test(client):
        viewer = await Viewer.open(client, page)
        await viewer.send(type="watch", source=0)
        page.offer(0)
        await viewer.next("image")
        await viewer.send(type="drawn")
        began, count = time.monotonic(), 0
        while time.monotonic() - began < 1:
            count += 1
            page.offer(count)
            await asyncio.sleep(0.005)
            if not await viewer.silent("image", 0.005):
                await viewer.send(type="drawn")

    run(test)
    assert 2 <= page.server.encoded <= 13


def test_a_viewer_that_does_not_draw_delays_nobody(open_page):
    page = open_page()

    async def test(client):
        slow, quick = await Viewer.open(client, page), await Viewer.open(client, page)
        for viewer in (slow, quick):
            await viewer.send(type="watch", source=0)
        await until(lambda: page.server.watched == 2)
        for number in range(1, 30):
            page.offer(number)
            assert (await quick.next("image"))["frame"] == number
            await quick.send(type="drawn")
        frames = [(await slow.next("image"))["frame"] for _ in range(feed.IN_FLIGHT)]
        assert frames == [1, 2]
        assert await slow.silent("image")

    run(test)


def test_a_viewer_that_does_not_read_delays_nobody(open_page):
    """Its connection is full: the server waits for it in a task of its own."""
    page = open_page(width=8192)

    async def test(client):
        deaf = await _deaf_viewer(page)
        quick = await Viewer.open(client, page)
        await quick.send(type="watch", source=0)
        await until(lambda: page.server.watched == 2)
        noise = np.random.default_rng(0).integers(0, 256, (1500, 2000, 3), dtype=np.uint8)
        frame, found = _large(noise)
        for _ in range(6):
            began = time.monotonic()
            page.server.offer("cam", frame, found)
            assert time.monotonic() - began < 1
            assert (await quick.next("image"))["size"] == [2000, 1500]
            await quick.send(type="drawn")
        deaf.close()

    run(test, read_bufsize=1 << 22)


def _large(image):
    return Frame(image), Detections.empty((image.shape[1], image.shape[0]))


async def _deaf_viewer(page) -> socket.socket:
    """Open a WebSocket by hand, watch, and never read."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.connect(("127.0.0.1", page.port))
    made.sendall(_UPGRADE + _KEY + b"\r\n")
    text = json.dumps({"type": "watch", "source": 0}).encode()
    made.sendall(bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text)  # masked with zeros
    return made


# --- settings ------------------------------------------------------------------------------------


def test_the_threshold_is_shared_by_all_viewers(open_page):
    page = open_page()

    async def test(client):
        first, second = await Viewer.open(client, page), await Viewer.open(client, page)
        await first.send(type="conf", value=0.6)
        for viewer in (first, second):
            await viewer.status(lambda found: found["conf"] == 0.6)
        await second.send(type="conf", value=1)
        await first.status(lambda found: found["conf"] == 1)

    run(test)
    assert page.threshold.value == 1


@pytest.mark.parametrize(
    "text",
    [
        *(f'{{"type": "conf", "value": {v}}}' for v in ("NaN", "1e999", "-1", "0.01", '"0.5"')),
        *(f'{{"type": "conf", "value": {v}}}' for v in ("true", "null", "[0.5]", "{}", "2")),
        '{"type": "conf"}',
        *(f'{{"type": "watch", "source": {v}}}' for v in ("1", "-1", '"0"', "true", "0.0", "[]")),
        '{"type": "stop"}',
        '{"type": ["conf"]}',
        "{}",
        "[]",
        "0",
        "conf",
        "",
        "[" * 1000,
        "1" * 1000,
    ],
)
def test_invalid_messages_are_answered_and_change_nothing(open_page, text):
    page = open_page()

    async def test(client):
        viewer = await Viewer.open(client, page)
        await viewer.ws.send_str(text)
        error = await viewer.next("error")
        assert "expected" in error["message"]
        assert len(error["message"]) < 200
        await viewer.send(type="conf", value=0.5)
        await viewer.status(lambda found: found["conf"] == 0.5)

    run(test)
    assert page.server.watched == 0


def test_a_viewer_with_many_mistakes_or_long_messages_is_closed(open_page):
    page = open_page()

    async def test(client):
        viewer = await Viewer.open(client, page)
        for _ in range(30):
            await viewer.ws.send_str("{}")
        assert await closed(viewer) == 4004
        viewer = await Viewer.open(client, page)
        await viewer.ws.send_str("x" * 2000)
        assert await closed(viewer) == 1009
        viewer = await Viewer.open(client, page)
        await viewer.ws.send_bytes(b"{}")
        assert await closed(viewer) == 4004
        await until(lambda: page.server.viewers == 0)

    run(test)


def test_a_viewer_that_floods_is_closed(open_page, capfd):
    page = open_page()

    async def test(client):
        for kind in ("drawn", "ping"):
            viewer = await Viewer.open(client, page)
            with suppress(ConnectionError):
                for _ in range(20_000):
                    await (viewer.ws.ping() if kind == "ping" else viewer.send(type=kind))
            assert await closed(viewer) in (4004, 1006)
            await until(lambda: page.server.viewers == 0)
        viewer = await Viewer.open(client, page)
        for _ in range(20):
            await viewer.ws.ping()
        await viewer.send(type="conf", value=0.5)
        await viewer.status(lambda found: found["conf"] == 0.5)

    run(test)
    assert capfd.readouterr().err == ""


# --- limits --------------------------------------------------------------------------------------


def test_the_ninth_viewer_is_told_why(open_page):
    page = open_page()

    async def test(client):
        viewers = [await Viewer.open(client, page) for _ in range(8)]
        ninth = await Viewer.open(client, page)
        message = await ninth.ws.receive(WAIT)
        assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 4002)
        assert message.extra == "8 viewers are connected, which is the limit"
        await viewers[0].ws.close()
        await until(lambda: page.server.viewers == 7)
        await (await Viewer.open(client, page)).next("hello")

    run(test)


def test_a_viewer_that_stops_drawing_loses_its_place(open_page, monkeypatch):
    monkeypatch.setattr(server, "_STUCK_SECONDS", 0.2)
    page = open_page()

    async def test(client):
        viewer = await Viewer.open(client, page)
        await viewer.send(type="watch", source=0)
        page.offer(1)
        assert await closed(viewer) == 4003

    run(test)


def test_a_viewer_that_is_gone_loses_its_place(open_page, monkeypatch):
    """And its connection, although there are data that it has not read."""
    monkeypatch.setattr(server, "_PING_SECONDS", 1.0)
    monkeypatch.setattr(serving, "_REQUEST_SECONDS", 1.0)
    monkeypatch.setattr(serving, "_MAX_CONNECTIONS", 1)
    page = open_page(width=8192)
    noise = np.random.default_rng(0).integers(0, 256, (3000, 3000, 3), dtype=np.uint8)

    async def test(_):
        gone = await _deaf_viewer(page)  # it answers no ping
        await until(lambda: page.server.watched == 1)
        page.server.offer("cam", *_large(noise))
        await until(lambda: page.server.encoded == 1)
        await until(lambda: page.server.viewers == 0)
        end = time.monotonic() + WAIT
        while b"200 OK" not in _raw(page, _PLAIN):
            assert time.monotonic() < end
            await asyncio.sleep(0.05)
        gone.close()

    run(test)


def test_a_connection_without_a_request_is_closed(open_page, monkeypatch):
    monkeypatch.setattr(serving, "_REQUEST_SECONDS", 0.3)
    page = open_page()
    for sent in (b"", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n"):
        with socket.create_connection(("127.0.0.1", page.port), WAIT) as made:
            made.sendall(sent)
            assert made.recv(1) == b""


def test_a_client_that_does_not_read_its_answers_is_closed(open_page, monkeypatch):
    """Else 64 of them would keep all others out."""
    monkeypatch.setattr(serving, "_REQUEST_SECONDS", 0.5)
    page = open_page()
    many = b"GET /app.js HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 1000
    made = []
    for _ in range(64):
        one = socket.socket()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        one.settimeout(WAIT)
        one.connect(("127.0.0.1", page.port))
        with suppress(ConnectionError):
            one.sendall(many)
        made.append(one)
    end = time.monotonic() + WAIT
    while b"200 OK" not in _raw(page, _PLAIN):
        assert time.monotonic() < end
    for one in made:
        one.close()


def test_one_request_is_answered_per_connection(open_page):
    page = open_page()
    for path in ("/", "/missing", "/access", "/stream"):
        request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
        assert _raw(page, request * 3).count(b"HTTP/1.1 ") == 1


def test_the_connection_of_a_viewer_stays_open(open_page, monkeypatch):
    monkeypatch.setattr(serving, "_REQUEST_SECONDS", 1.0)
    page = open_page()

    async def test(client):
        viewer = await Viewer.open(client, page)
        for _ in range(3):  # one per second, also without a change
            await viewer.next("status")

    run(test)


def test_idle_connections_do_not_keep_others_out(open_page):
    """At 64 connections, the oldest without a viewer is closed for a new one."""
    page = open_page()
    made = [socket.create_connection(("127.0.0.1", page.port), WAIT) for _ in range(70)]
    for one in made[-3:]:
        one.sendall(b"GET / HTTP/1.1\r\nHo")
    assert b"200 OK" in _raw(page, _PLAIN)
    end = time.monotonic() + WAIT
    while len(closed := select.select(made, [], [], 0.1)[0]) < 7 and time.monotonic() < end:
        pass
    assert closed == made[:7]
    for one in made:
        one.close()


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"x" * 20_000 + b"\r\n\r\n",
        b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",  # TLS
        b"GET / HTTP/9.9\r\n\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n\r\n",
        _UPGRADE + b"Sec-WebSocket-Key: \xff\r\n\r\n",
        _UPGRADE + b"Sec-WebSocket-Key: x\r\n\r\n",
        _UPGRADE + _KEY + b"Sec-WebSocket-Protocol: \xff,,\r\n\r\n",
    ],
    ids=range(10),
)
def test_malformed_requests_tell_nothing(open_page, request_, capfd):
    page = open_page()
    answer = _raw(page, request_)
    assert not answer or re.match(rb"HTTP/1.[01] 4\d\d ", answer)
    assert b"ython" not in answer
    assert b"aiohttp" not in answer
    assert b"Server: y7edge\r\n" in answer or not answer
    assert len(answer) < 1500
    assert capfd.readouterr().err == ""
    assert b"200 OK" in _raw(page, _PLAIN)


@pytest.mark.parametrize("frames", [b"", b"\xff" * 12, b"\x89\x80\0\0\0\0" * 400], ids=len)
def test_viewers_that_vanish_are_not_reported(open_page, frames, capfd):
    page = open_page()
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", page.port), WAIT) as made:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            made.sendall(_UPGRADE + _KEY + b"\r\n" + frames)
            made.recv(1)
    end = time.monotonic() + WAIT
    while page.server.viewers:
        assert time.monotonic() < end
    assert b"200 OK" in _raw(page, _PLAIN)
    assert capfd.readouterr().err == ""


def _raw(page, request_: bytes) -> bytes:
    answer = b""
    with socket.create_connection(("127.0.0.1", page.port), WAIT) as made:
        try:
            made.sendall(request_)
            while part := made.recv(65536):
                answer += part
        except (ConnectionResetError, BrokenPipeError):
            pass
    return answer


# --- whom it answers -----------------------------------------------------------------------------


async def _get(client, page, path="/", **options):
    async with client.get(page.url + path, allow_redirects=False, **options) as answer:
        return answer.status, answer.headers, await answer.text()


def test_the_files_of_the_page(open_page):
    page = open_page()

    async def test(client):
        for path, kind in (("/", "html"), ("/app.js", "javascript"), ("/style.css", "css")):
            code, headers, text = await _get(client, page, path)
            assert (code, kind in headers["Content-Type"]) == (200, True)
            assert text == (PAGE / {"/": "index.html"}.get(path, path[1:])).read_text()
            policy = headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert "*" not in policy
            assert headers["Server"] == "y7edge"
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["Referrer-Policy"] == "no-referrer"
            assert headers["Cache-Control"] == "no-store"
        assert (await _get(client, page, "/icon.svg"))[0] == 200

    run(test)


def test_the_page_loads_nothing_from_elsewhere_and_has_no_inline_code():
    for path in PAGE.iterdir():
        text = path.read_text()
        assert set(re.findall(r"https?://[^\s\"'`]+", text)) <= {"http://www.w3.org/2000/svg"}
        assert "innerHTML" not in text
    html = (PAGE / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=|javascript:", html)


@pytest.mark.parametrize(
    "path",
    [
        *("/../server.py", "/..%2fserver.py", "/%2e%2e/server.py", "//etc/passwd", "/page/app.js"),
        *("/app.js/", "/.env", "/app.js%00", "/\\..\\server.py", "/stream/../../server.py"),
    ],
)
def test_other_paths_are_not_found(open_page, path):
    answer = _raw(
        open_page(), f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode()
    )
    assert re.match(rb"HTTP/1.1 40[04] ", answer)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_other_methods_are_refused(open_page, method):
    page = open_page()

    async def test(client):
        for path in ("/", "/stream", "/access"):
            async with client.request(method, page.url + path, data=b"x" * 5000) as answer:
                assert answer.status == 405

    run(test)


@pytest.mark.parametrize("path", ["/", "/app.js", "/access", "/stream"])
def test_names_of_other_machines_are_refused(open_page, path):
    page = open_page()

    async def test(client):
        for host in ("evil.example", f"evil.example:{page.port}", "192.168.0.9"):
            code, _, text = await _get(client, page, path, headers={"Host": host})
            assert (code, "by the IP address" in text) == (403, True)

    run(test)


def test_other_sites_cannot_open_the_stream(open_page):
    page = open_page()

    async def test(client):
        origins = ("http://evil.example", "null", f"http://localhost:{page.port}")
        for origin in origins:
            with pytest.raises(aiohttp.WSServerHandshakeError) as error:
                await Viewer.open(client, page, origin=origin)
            assert error.value.status == 403
        await (await Viewer.open(client, page, origin=page.url)).next("hello")

    run(test)
    assert page.threshold.value == 0.25


def test_a_token_is_exchanged_for_a_cookie(open_page):
    page = open_page(token=SECRET)
    assert page.server.url == f"{page.url}/?token={SECRET}"

    async def test(client):
        code, headers, _ = await _get(client, page, f"/?token={SECRET}")
        assert (code, headers["Location"]) == (303, "/")
        cookie = headers["Set-Cookie"]
        assert cookie.startswith(f"y7edge-{page.port}=")
        assert SECRET not in cookie
        assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
        name, _, value = cookie.split(";")[0].partition("=")
        cookies = {"Cookie": f"{name}={value}"}
        assert json.loads((await _get(client, page, "/access", headers=cookies))[2])["allowed"]
        await (await Viewer.open(client, page, headers=cookies)).next("hello")

    run(test)


@pytest.mark.parametrize(
    "cookie", [None, "", SECRET, "0" * 64, "\xff"], ids=["none", "empty", "token", "other", "byte"]
)
def test_without_the_cookie_there_are_no_images(open_page, cookie):
    page = open_page(token=SECRET)
    page.offer(1)
    headers = {} if cookie is None else {"Cookie": f"y7edge-{page.port}={cookie}"}

    async def test(client):
        assert (await _get(client, page, "/", headers=headers))[0] == 200  # contains nothing secret
        assert not json.loads((await _get(client, page, "/access", headers=headers))[2])["allowed"]
        with pytest.raises(aiohttp.WSServerHandshakeError) as error:
            await Viewer.open(client, page, headers=headers)
        assert error.value.status == 401

    run(test)


@pytest.mark.parametrize("token", ["", "wrong", SECRET + "x", SECRET.upper()])
def test_a_wrong_token_gives_no_cookie(open_page, token):
    page = open_page(token=SECRET)

    async def test(client):
        code, headers, text = await _get(client, page, f"/?token={token}")
        assert (code, "Set-Cookie" in headers) == (401, False)
        assert "the address that the program has printed" in text

    run(test)


# --- end -----------------------------------------------------------------------------------------


def test_the_end_is_told_and_the_port_is_free_again(open_page):
    page = open_page()

    async def test(client):
        viewers = [await Viewer.open(client, page) for _ in range(3)]
        await viewers[0].next("hello")
        began = time.monotonic()
        leaving = asyncio.get_running_loop().run_in_executor(None, page.server.__exit__)
        codes = [await closed(viewer) for viewer in viewers]
        await leaving
        assert codes == [4001] * 3
        assert time.monotonic() - began < 10
        page.offer(1)  # is ignored

    run(test)
    again = open_page(address=f"127.0.0.1:{page.port}")

    async def reconnect(client):
        await (await Viewer.open(client, again)).next("hello")

    run(reconnect)


def test_a_frame_that_cannot_be_encoded_is_reported(open_page):
    page = open_page()

    async def test(client):
        viewer = await Viewer.open(client, page)
        await viewer.send(type="watch", source=0)
        broken = Frame(np.zeros((4, 4, 2), np.uint8)), Frame(np.zeros((4, 4, 3), object))
        for frame in broken:
            page.server.offer("cam", frame, Detections.empty((4, 4)))
            assert "cannot be encoded" in (await viewer.next("image"))["problem"]
            await viewer.send(type="drawn")
        page.offer(5)
        assert (await viewer.next("image"))["frame"] == 5

    run(test)


def test_limits_are_checked():
    for wrong in ({"width": 10}, {"quality": 0}, {"rate": float("nan")}, {"viewers": 0}):
        with pytest.raises(feed.ConfigError, match="expected"):
            feed.Limits(**wrong)
