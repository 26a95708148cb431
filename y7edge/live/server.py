"""The web page of ``y7edge live``: an HTTP server in a thread of its own.

The page and all images and messages come from this server; nothing is loaded from elsewhere. The
server only answers GET and HEAD, which change nothing. Messages of a WebSocket change the shared
threshold and what its viewer watches.

Messages from the server are JSON, ``{"type": "hello" | "status" | "error", ...}``, and binary
images: 4 bytes with the length N of a header (big-endian), N bytes of JSON ``{"type": "image",
"source", "frame", "model_id", "size": [w, h], "boxes": [[left, top, right, bottom, confidence,
class id, tracker id]]}``, and a JPEG image, which may be smaller than ``size``. "hello" comes again
if the detector uses another model.

Messages to the server are ``{"type": "watch", "source": number or null}``, ``{"type": "drawn"}``
after each image, and ``{"type": "conf", "value": number}``. A viewer gets the next image, the
newest, only after it has drawn the last but one. Therefore a slow viewer gets fewer images, and
delays nobody.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import resources
from typing import Any

from aiohttp import WSMsgType, web

from y7edge.detect.detections import Detections
from y7edge.errors import ConfigError
from y7edge.frames import Frame
from y7edge.live.access import Guard
from y7edge.live.feed import Feed, Limits, Viewer
from y7edge.live.loop import Threshold
from y7edge.live.serving import MAX_MESSAGE, SHUTDOWN_SECONDS, Connection, Handler, HttpServer
from y7edge.text import printable

_PAGE = {
    "/": ("index.html", "text/html"),
    "/app.js": ("app.js", "text/javascript"),
    "/style.css": ("style.css", "text/css"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_MAX_MESSAGES = 500  # of a viewer in a second: one for each image, and changes
_MAX_MISTAKES = 20  # messages of a viewer that are not valid
_PING_SECONDS = 30.0  # between pings; the answer may take half of it
_STUCK_SECONDS = 30.0  # for a viewer to draw an image
_STATUS_SECONDS = 1.0
_CHANGE_SECONDS = 0.1  # between two messages about changes

# Codes that tell the page why a WebSocket was closed; 4000 to 4999 are for applications (RFC 6455).
_ENDED, _FULL, _STUCK, _WRONG = 4001, 4002, 4003, 4004


class Server(HttpServer):
    """Serve the page while it is open; a context manager.

    Args:
        listener: a listening socket, see ``Address.listen``; closed at the end.
        guard: decides which requests are answered.
        threshold: the threshold that viewers see and change.
        about: what the page shows of the model: "model", "model_id", "engine", "device" and so on,
            and "names" and "colours" by class id.
        sources: names of the sources.
        facts: returns what the page shows every second; called in the server's thread.
        limits: what the images may cost.
    """

    def __init__(
        self,
        listener: socket.socket,
        guard: Guard,
        threshold: Threshold,
        about: Mapping[str, Any],
        sources: list[str],
        facts: Callable[[], Mapping[str, Any]],
        limits: Limits,
    ) -> None:
        super().__init__("page", listener, guard)
        self.limits = limits
        self._threshold = threshold
        self._about, self._sources, self._facts = dict(about), sources, facts
        self._viewers: dict[Viewer, web.WebSocketResponse] = {}
        self._feeds: list[Feed] = []
        self._status = (0, "")  # number and text
        self._files = {
            path: (resources.files("y7edge.live").joinpath("page", name).read_bytes(), kind)
            for path, (name, kind) in _PAGE.items()
        }
        self._changed = asyncio.Event()  # the threshold or the viewers

    @property
    def url(self) -> str:
        """The address of the page, with the token."""
        token = f"?token={self._guard.token}" if self._guard.token else ""
        return f"{self.address}/{token}"

    @property
    def viewers(self) -> int:
        """The number of viewers."""
        return len(self._viewers)

    @property
    def watched(self) -> int:
        """The number of viewers that watch a source."""
        return sum(len(feed.viewers) for feed in self._feeds)

    @property
    def encoded(self) -> int:
        """The number of images that were encoded, for all viewers together."""
        return sum(feed.encoded for feed in self._feeds)

    def offer(self, source: str, frame: Frame, found: Detections) -> None:
        """Show a frame of a source and its detections; return at once.

        Only one thread may call it. The frame is referred to until the next one is offered.
        """
        if self._is_open:
            self._feeds[self._sources.index(source)].offer(frame, found)

    def show_model(self, about: Mapping[str, Any]) -> None:
        """Show another model, which the detector uses from now on; may be called by any thread."""
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._set_about, dict(about))

    def _set_about(self, about: dict[str, Any]) -> None:
        self._about = about
        self._changed.set()

    def _routes(self) -> Mapping[str, Handler]:
        pages = dict.fromkeys(self._files, self._page)
        return {**pages, "/access": self._access, "/stream": self._stream}

    def _tasks(self) -> list[Coroutine[Any, Any, None]]:
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="y7edge jpeg")
        self._feeds = [Feed(i, self.limits, self._encoder) for i in range(len(self._sources))]
        return [*(feed.run() for feed in self._feeds), self._tick()]

    async def _leave(self) -> None:
        closing = [
            ws.close(code=_ENDED, message=b"the program has ended") for ws in self._viewers.values()
        ]
        with suppress(TimeoutError, asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.gather(*closing), SHUTDOWN_SECONDS)
        self._encoder.shutdown(wait=False, cancel_futures=True)

    # --- requests ---------------------------------------------------------------------------------

    async def _page(self, request: web.Request) -> web.StreamResponse:
        given = request.query.get("token")
        if given is not None:
            # The page contains nothing secret. A redirect keeps the token out of the history.
            if not self._guard.allows_token(given):
                raise web.HTTPUnauthorized(
                    text="The token is wrong: use the address that the program has printed.\n"
                )
            response = web.Response(status=303, headers={"Location": "/"})
            response.set_cookie(
                self._cookie, self._guard.cookie, httponly=True, samesite="Strict", path="/"
            )
            return response
        content, kind = self._files[request.path]
        return web.Response(body=content, content_type=kind, charset="utf-8")

    async def _access(self, request: web.Request) -> web.StreamResponse:
        """Tell the page why it has no WebSocket, because browsers do not tell it."""
        return web.json_response({"allowed": self._is_allowed(request)})

    @property
    def _cookie(self) -> str:
        # Cookies are sent to all ports of a host, where another program may run.
        return f"y7edge-{self._port}"

    def _is_allowed(self, request: web.Request) -> bool:
        return self._guard.allows_cookie(request.cookies.get(self._cookie))

    # --- viewers ----------------------------------------------------------------------------------

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        if not self._is_allowed(request):
            raise web.HTTPUnauthorized(text="Open the address that the program has printed.\n")
        if "Sec-WebSocket-Protocol" in request.headers:  # the page names none
            raise web.HTTPBadRequest(text="invalid request\n")
        ws = web.WebSocketResponse(
            heartbeat=_PING_SECONDS,
            max_msg_size=MAX_MESSAGE,
            compress=False,
            autoping=False,  # they are counted too
            timeout=SHUTDOWN_SECONDS,
        )
        try:
            await ws.prepare(request)
        except ValueError as error:  # of a key that is not ASCII
            raise web.HTTPBadRequest(text="invalid request\n") from error
        connection = request.protocol
        assert isinstance(connection, Connection)
        if len(self._viewers) >= self.limits.viewers:
            message = f"{self.limits.viewers} viewers are connected, which is the limit"
            await ws.close(code=_FULL, message=message.encode())
            return ws
        connection.stay()
        viewer = Viewer(asyncio.Event())
        self._viewers[viewer] = ws
        self._changed.set()
        sending = asyncio.create_task(self._send(viewer, ws))
        try:
            with suppress(ConnectionError):
                await self._receive(viewer, ws)
        finally:
            connection.leave()
            self._watch(viewer, None)
            del self._viewers[viewer]
            sending.cancel()
            with suppress(asyncio.CancelledError, ConnectionError):
                await sending
        return ws

    async def _receive(self, viewer: Viewer, ws: web.WebSocketResponse) -> None:
        mistakes, count, since = 0, 0, asyncio.get_running_loop().time()
        async for message in ws:
            now = asyncio.get_running_loop().time()
            count, since = (count + 1, since) if now - since < 1 else (1, now)
            if count > _MAX_MESSAGES:
                await ws.close(code=_WRONG, message=b"too many messages")
                return
            if message.type is WSMsgType.PING:
                await ws.pong(message.data)
            if message.type in (WSMsgType.PING, WSMsgType.PONG):
                continue
            if message.type is not WSMsgType.TEXT:
                await ws.close(code=_WRONG, message=b"expected JSON")
                return
            try:
                self._obey(viewer, message.data)
            except ConfigError as error:
                mistakes += 1
                if mistakes > _MAX_MISTAKES:
                    await ws.close(code=_WRONG, message=b"too many invalid messages")
                    return
                viewer.problems.append(str(error))
            viewer.wake.set()

    def _obey(self, viewer: Viewer, text: str) -> None:
        """Carry out a message of a viewer; raise ConfigError if it is not valid."""
        try:
            message = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError("expected JSON") from error
        kind = message.get("type") if isinstance(message, dict) else None
        if kind == "drawn":
            viewer.in_flight = max(0, viewer.in_flight - 1)
            viewer.waits_since = asyncio.get_running_loop().time()
            if viewer.source is not None:
                self._feeds[viewer.source].update()
        elif kind == "watch":
            source = message.get("source")
            is_number = isinstance(source, int) and not isinstance(source, bool)
            if source is not None and not (is_number and 0 <= source < len(self._feeds)):
                raise ConfigError(f"expected a source from 0 to {len(self._feeds) - 1}, or null")
            self._watch(viewer, source)
        elif kind == "conf":
            self._threshold.set(message.get("value"))
            self._changed.set()
        else:
            raise ConfigError("expected a message of type watch, drawn or conf")

    def _watch(self, viewer: Viewer, source: int | None) -> None:
        before, viewer.source = viewer.source, source
        viewer.seen = 0 if source != before else viewer.seen
        for index, feed in enumerate(self._feeds):
            (feed.viewers.add if index == source else feed.viewers.discard)(viewer)
            feed.update()

    async def _send(self, viewer: Viewer, ws: web.WebSocketResponse) -> None:
        """Send what is new until the viewer has gone."""
        loop = asyncio.get_running_loop()
        sent, told = 0, None
        while not ws.closed:
            if told is not self._about:
                told = self._about
                await ws.send_str(json.dumps({"type": "hello", "sources": self._names(), **told}))
            if viewer.in_flight and loop.time() - viewer.waits_since > _STUCK_SECONDS:
                await ws.close(code=_STUCK, message=b"no answer")
                return
            while viewer.problems:
                await ws.send_str(json.dumps({"type": "error", "message": viewer.problems.pop()}))
            number, status = self._status
            if number != sent:
                sent = number
                await ws.send_str(status)
            packet = self._feeds[viewer.source].packet if viewer.source is not None else None
            if packet and viewer.is_ready and packet[0] > viewer.seen:
                viewer.waits_since = viewer.waits_since if viewer.in_flight else loop.time()
                viewer.seen, viewer.in_flight = packet[0], viewer.in_flight + 1
                await ws.send_bytes(packet[1])
                continue
            with suppress(TimeoutError, asyncio.TimeoutError):
                await asyncio.wait_for(viewer.wake.wait(), _STATUS_SECONDS)
            viewer.wake.clear()

    def _names(self) -> list[str]:
        return [printable(name) for name in self._sources]

    async def _tick(self) -> None:
        """Make the status every second, and after changes, but not for each one of many."""
        while True:
            if self._viewers:
                self._update_status()
            await asyncio.sleep(_CHANGE_SECONDS)
            with suppress(TimeoutError, asyncio.TimeoutError):
                await asyncio.wait_for(self._changed.wait(), _STATUS_SECONDS - _CHANGE_SECONDS)
            self._changed.clear()

    def _update_status(self) -> None:
        """Make the status that all viewers get."""
        status = {
            "type": "status",
            "conf": self._threshold.value,
            "floor": self._threshold.floor,
            "viewers": self.viewers,
            **self._facts(),
        }
        # Also without a change, because silence tells the page that the network is gone.
        self._status = self._status[0] + 1, json.dumps(status)
        for viewer in self._viewers:
            viewer.wake.set()
