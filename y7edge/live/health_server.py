"""``GET /health``: whether detection continues, for systemd, Docker, Kubernetes and monitors.

The status code is 200 if all is well, else 503. The body is JSON. Details such as names of cameras
need the token, if there is one; without a token, they are given on the loopback interface only. To
all others the body is ``{"status": ...}``, which says no more than the status code.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web

from y7edge.live.access import Guard
from y7edge.live.serving import Handler, HttpServer


class HealthServer(HttpServer):
    """Answer ``GET /health`` while it is open; a context manager.

    Args:
        listener: a listening socket, see ``Address.listen``; closed at the end.
        guard: decides which requests are answered, and with details.
        report: returns what is answered, with "status"; called in the server's thread.
    """

    def __init__(
        self, listener: socket.socket, guard: Guard, report: Callable[[], Mapping[str, Any]]
    ) -> None:
        super().__init__("health check", listener, guard)
        self._report = report

    @property
    def url(self) -> str:
        """The address to ask."""
        return f"{self.address}/health"

    def _routes(self) -> Mapping[str, Handler]:
        return {"/health": self._health}

    async def _health(self, request: web.Request) -> web.StreamResponse:
        report = dict(self._report())
        status = str(report["status"])
        body = report if self._may_see_details(request) else {"status": status}
        return web.Response(
            text=json.dumps(body) + "\n",
            status=200 if status == "ok" else 503,
            content_type="application/json",
        )

    def _may_see_details(self, request: web.Request) -> bool:
        if self._guard.token is None:
            return self._guard.is_loopback
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        return scheme.lower() == "bearer" and self._guard.allows_token(given)
