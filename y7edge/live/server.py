"""The web page of ``y7edge live``: an HTTP server in a thread of its own.

The page and all images and messages come from this server; nothing is loaded from elsewhere. The
server only answers GET and HEAD, which change nothing. Messages of a WebSocket change the shared
threshold and what its viewer watches.

Messages from the server are JSON, ``{"type": "hello" | "status" | "error", ...}``, and binary
images: 4 bytes with the length N of a header (big-endian), N bytes of JSON ``{"type": "image",
"source", "frame", "size": [w, h], "boxes": [[left, top, right, bottom, confidence, class id,
tracker id]]}``, and a JPEG image, which may be smaller than ``size``.

Messages to the server are ``{"type": "watch", "source": number or null}``, ``{"type": "drawn"}``
after each image, and ``{"type": "conf", "value": number}``. A viewer gets the next image, the
newest, only after it has drawn the last but one. Therefore a slow viewer gets fewer images, and
delays nobody.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import resources
from typing import Any

from aiohttp import WSMsgType, web

from y7edge.detect.detections import Detections
from y7edge.errors import ConfigError, DeviceError
from y7edge.frames import Frame
from y7edge.live.access import Guard, reachable
from y7edge.live.feed import Feed, Limits, Viewer
from y7edge.live.loop import Threshold
from y7edge.text import printable

_PAGE = {
    "/": ("index.html", "text/html"),
    "/app.js": ("app.js", "text/javascript"),
    "/style.css": ("style.css", "text/css"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_HEADERS = {
    "Server": "y7edge",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_MAX_CONNECTIONS = 64
_MAX_MESSAGE = 1024  # bytes, of a viewer's message or a request's body
_MAX_HEADER = 4096  # bytes of a line of a request
_MAX_MESSAGES = 500  # of a viewer in a second: one for each image, and changes
_MAX_MISTAKES = 20  # messages of a viewer that are not valid
_REQUEST_SECONDS = 15.0  # for a request to arrive, and for its answer to be read
_PING_SECONDS = 30.0  # between pings; the answer may take half of it
_STUCK_SECONDS = 30.0  # for a viewer to draw an image
_STATUS_SECONDS = 1.0
_CHANGE_SECONDS = 0.1  # between two messages about changes
_START_SECONDS = 10.0
_SHUTDOWN_SECONDS = 2.0

# Codes that tell the page why a WebSocket was closed; 4000 to 4999 are for applications (RFC 6455).
_ENDED, _FULL, _STUCK, _WRONG = 4001, 4002, 4003, 4004

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """Serve the page while it is open; a context manager.

    Args:
        listener: a listening socket, see ``Address.listen``; closed at the end.
        guard: decides which requests are answered.
        threshold: the threshold that viewers see and change.
        about: what the page shows of the model: "model", "engine", "device", "precision" and so on,
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
        self.limits = limits
        self._listener, self._guard, self._threshold = listener, guard, threshold
        self._host, self._port = listener.getsockname()[:2]
        self._about, self._sources, self._facts = dict(about), sources, facts
        self._viewers: dict[Viewer, web.WebSocketResponse] = {}
        self._feeds: list[Feed] = []
        self._status = (0, "")  # number and text
        self._files = {
            path: (resources.files("y7edge.live").joinpath("page", name).read_bytes(), kind)
            for path, (name, kind) in _PAGE.items()
        }
        self._ready, self._stop = threading.Event(), asyncio.Event()
        self._changed = asyncio.Event()  # the threshold or the viewers
        self._is_open = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="y7edge page", daemon=True)

    @property
    def url(self) -> str:
        """The address of the page, with the token."""
        host = reachable(self._host)
        host = f"[{host}]" if ":" in host else host
        token = f"?token={self._guard.token}" if self._guard.token else ""
        return f"http://{host}:{self._port}/{token}"

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

    def __enter__(self) -> Server:
        self._thread.start()
        if not self._ready.wait(_START_SECONDS):
            raise DeviceError(f"the page did not start within {_START_SECONDS:g} s")
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(self, *_: object) -> None:
        self._is_open = False
        if self._loop is not None and self._thread.is_alive():
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_SHUTDOWN_SECONDS + 3)
        self._listener.close()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._failure = error
            logging.getLogger(__name__).error("the web page has stopped: %r", error)
        finally:
            self._is_open = False
            self._ready.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        app = web.Application(middlewares=[self._once, self._check], client_max_size=_MAX_MESSAGE)
        app.on_response_prepare.append(_set_headers)
        for path in self._files:
            app.router.add_get(path, self._page)
        app.router.add_get("/access", self._access)
        app.router.add_get("/stream", self._stream)
        runner = web.AppRunner(app)
        await runner.setup()
        assert runner.server is not None
        manager = runner.server
        encoder = ThreadPoolExecutor(1, thread_name_prefix="y7edge jpeg")
        self._feeds = [Feed(i, self.limits, encoder) for i in range(len(self._sources))]
        tasks = [asyncio.create_task(feed.run()) for feed in self._feeds]
        tasks.append(asyncio.create_task(self._tick()))
        server = await self._loop.create_server(
            lambda: _Connection(manager, loop=asyncio.get_running_loop()), sock=self._listener
        )
        self._is_open = True
        self._ready.set()
        try:
            stopping = asyncio.create_task(self._stop.wait())
            done, _ = await asyncio.wait([stopping, *tasks], return_when="FIRST_COMPLETED")
            for task in done - {stopping}:
                task.result()  # raises: the tasks do not end
        finally:
            server.close()
            await self._close_viewers()
            for task in tasks:
                task.cancel()
            with suppress(TimeoutError, asyncio.TimeoutError):
                await asyncio.wait_for(runner.cleanup(), _SHUTDOWN_SECONDS)
            encoder.shutdown(wait=False, cancel_futures=True)

    async def _close_viewers(self) -> None:
        closing = [
            ws.close(code=_ENDED, message=b"the program has ended") for ws in self._viewers.values()
        ]
        with suppress(TimeoutError, asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.gather(*closing), _SHUTDOWN_SECONDS)

    # --- requests ---------------------------------------------------------------------------------

    @web.middleware
    async def _check(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        host = request.headers.get("Host")
        if not self._guard.allows_host(host):
            raise web.HTTPForbidden(
                text="This page is opened by the IP address of the machine, or by its name.\n"
            )
        if not self._guard.allows_origin(request.headers.get("Origin"), host):
            raise web.HTTPForbidden(text="Requests of other web sites are refused.\n")
        return await handler(request)

    @web.middleware
    async def _once(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer one request per connection, so that a client cannot queue many of them."""
        try:
            response = await handler(request)
        except web.HTTPException as error:
            error.force_close()
            raise
        response.force_close()
        return response

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
            max_msg_size=_MAX_MESSAGE,
            compress=False,
            autoping=False,  # they are counted too
            timeout=_SHUTDOWN_SECONDS,
        )
        try:
            await ws.prepare(request)
        except ValueError as error:  # of a key that is not ASCII
            raise web.HTTPBadRequest(text="invalid request\n") from error
        connection = request.protocol
        assert isinstance(connection, _Connection)
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
        await ws.send_str(json.dumps({"type": "hello", "sources": self._names(), **self._about}))
        sent = 0
        while not ws.closed:
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


async def _set_headers(_: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(_HEADERS)


class _Connection(web.RequestHandler):
    """A connection that ends in time, also if the other side sends slowly or does not read."""

    def __init__(self, manager: web.Server, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            manager,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]  # it would contain the token
            max_line_size=_MAX_HEADER,
            max_field_size=_MAX_HEADER,
            lingering_time=0,
        )
        self._all = manager
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Refuse the connection if there are too many."""
        super().connection_made(transport)
        if len(self._all.connections) > _MAX_CONNECTIONS:
            self.force_close()
        else:
            self.leave()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Stop the timer."""
        self.stay()
        super().connection_lost(exc)

    def stay(self) -> None:
        """Keep the connection open: it has a viewer."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def leave(self) -> None:
        """Close the connection soon. Data that the other side does not read is discarded then."""
        transport = self.transport
        if isinstance(transport, asyncio.Transport):
            loop = asyncio.get_running_loop()
            self._deadline = loop.call_later(_REQUEST_SECONDS, transport.abort)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer a malformed request without details; report errors of ours."""
        if status < 500 or isinstance(exc, ConnectionError):  # the client has gone
            response: web.StreamResponse = web.Response(status=status, text="invalid request\n")
            response.force_close()
        else:
            response = super().handle_error(request, status, exc, message)
        response.headers.update(_HEADERS)
        return response
