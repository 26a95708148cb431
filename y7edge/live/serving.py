"""An HTTP server in a thread of its own, which a hostile or slow client cannot hold up."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from aiohttp import web

from y7edge.errors import DeviceError
from y7edge.live.access import Guard, reachable

HEADERS = {
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
MAX_MESSAGE = 1024  # bytes, of a viewer's message or a request's body
SHUTDOWN_SECONDS = 2.0
_MAX_CONNECTIONS = 64
_MAX_HEADER = 4096  # bytes of a line of a request
_REQUEST_SECONDS = 15.0  # for a request to arrive, and for its answer to be read
_START_SECONDS = 10.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
S = TypeVar("S", bound="HttpServer")
_log = logging.getLogger(__name__)


class HttpServer:
    """Serve while it is open; a context manager. Subclasses have the routes.

    Args:
        what: is served, for messages.
        listener: a listening socket, see ``Address.listen``; closed at the end.
        guard: decides which requests are answered.
    """

    def __init__(self, what: str, listener: socket.socket, guard: Guard) -> None:
        self._what, self._listener, self._guard = what, listener, guard
        self._host, self._port = listener.getsockname()[:2]
        self._ready, self._stop = threading.Event(), asyncio.Event()
        self._is_open = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"y7edge {what}", daemon=True)

    @property
    def address(self) -> str:
        """The address of the server, such as ``http://127.0.0.1:8080``."""
        host = reachable(self._host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self._port}"

    def __enter__(self: S) -> S:
        self._thread.start()
        if not self._ready.wait(_START_SECONDS):
            raise DeviceError(f"the {self._what} did not start within {_START_SECONDS:g} s")
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(self, *_: object) -> None:
        self._is_open = False
        if self._loop is not None and self._thread.is_alive():
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(SHUTDOWN_SECONDS + 3)
        self._listener.close()

    def _routes(self) -> Mapping[str, Handler]:
        """Return what answers GET and HEAD, by path."""
        raise NotImplementedError

    def _tasks(self) -> list[Coroutine[Any, Any, None]]:
        """Return what runs beside the requests, without end; called in the event loop."""
        return []

    async def _leave(self) -> None:
        """Say goodbye to clients before the end."""

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._failure = error
            _log.error("the %s has stopped: %r", self._what, error)
        finally:
            self._is_open = False
            self._ready.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        app = web.Application(middlewares=[_once, self._check], client_max_size=MAX_MESSAGE)
        app.on_response_prepare.append(_set_headers)
        for path, handler in self._routes().items():
            app.router.add_get(path, handler)
        runner = web.AppRunner(app)
        await runner.setup()
        assert runner.server is not None
        manager = runner.server
        tasks = [asyncio.create_task(one) for one in self._tasks()]
        server = await self._loop.create_server(
            lambda: Connection(manager, loop=asyncio.get_running_loop()), sock=self._listener
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
            await self._leave()
            for task in tasks:
                task.cancel()
            with suppress(TimeoutError, asyncio.TimeoutError):
                await asyncio.wait_for(runner.cleanup(), SHUTDOWN_SECONDS)

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
async def _once(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer one request per connection, so that a client cannot queue many of them."""
    try:
        response = await handler(request)
    except web.HTTPException as error:
        error.force_close()
        raise
    response.force_close()
    return response


async def _set_headers(_: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)


class Connection(web.RequestHandler):
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
        """If there are too many, close the oldest without a viewer: a real request is short."""
        super().connection_made(transport)
        self.leave()
        if len(self._all.connections) > _MAX_CONNECTIONS:
            others = (one for one in self._all.connections if isinstance(one, Connection))
            next((one for one in others if one.waits), self).abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Stop the timer."""
        self.stay()
        super().connection_lost(exc)

    @property
    def waits(self) -> bool:
        """Whether the connection will be closed soon, because it has no viewer."""
        return self._deadline is not None

    def abort(self) -> None:
        """Close the connection at once; data that the other side has not read is discarded."""
        self.stay()
        if isinstance(self.transport, asyncio.Transport):
            self.transport.abort()

    def stay(self) -> None:
        """Keep the connection open: it has a viewer."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def leave(self) -> None:
        """Close the connection soon. Data that the other side does not read is discarded then."""
        self._deadline = asyncio.get_running_loop().call_later(_REQUEST_SECONDS, self.abort)

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
        response.headers.update(HEADERS)
        return response
