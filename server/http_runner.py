"""HTTP as aiohttp speaks it, its own refusals in OpenAI's shape.

In: an application. Out: a runner that serves it. What aiohttp answers by itself, before or beside the
middlewares (bytes that are no HTTP, a header that is too long, an `Expect` that is not known), is JSON
with a request id like every other error, and one log line rather than a traceback.
"""

import asyncio
import logging
from collections.abc import Coroutine
from functools import partial
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from server.errors import error_response, of_http_error, unexpected
from server.hot_route import hot_route
from server.keys import REQUEST_ID
from server.request_log import new_request_id
from server.slow_clients import KEEPALIVE_SECONDS
from streaming.failures import InvalidRequest

log = logging.getLogger(__name__)

CHAT_PATHS = ("/chat/completions", "/v1/chat/completions")


class HttpRunner(web.AppRunner):
    """Serves an application; a client that leaves cancels its handler."""

    def __init__(self, app: web.Application, *, shutdown_seconds: float = 1.0) -> None:
        # Without handler_cancellation a handler never learns that its client left.
        super().__init__(
            app,
            handler_cancellation=True,
            access_log=None,
            shutdown_timeout=shutdown_seconds,
            keepalive_timeout=KEEPALIVE_SECONDS,
        )

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return _Server(
            hot_route(self.app, made.request_handler, CHAT_PATHS),
            request_factory=partial(self.app._make_request, _cls=_request_class(self.app)),
            handler_cancellation=made.handler_cancellation,
            loop=asyncio.get_running_loop(),
            **made._kwargs,
        )


class _Request(web.Request):
    def get(self, key: Any, default: Any = None) -> Any:
        """What a mapping answers, which aiohttp's asks for by raising and catching KeyError."""
        return self._state.get(key, default)


def _request_class(app: web.Application) -> type[web.Request]:
    """Requests of an application that has no others within: aiohttp looks for it anew each of a dozen times."""
    return type("Request", (_Request,), {"app": app})


class _Server(web.Server):
    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


class _Connection(web.RequestHandler):
    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What cannot be read as HTTP, and what the middlewares let through; the connection ends.

        Raises ConnectionError where the response has begun.
        """
        if request.writer.output_size > 0:
            raise ConnectionError("the response has begun: no other can follow")
        request_id = request.get(REQUEST_ID) or new_request_id()
        if status >= 500:
            request[REQUEST_ID] = request_id
            error = exc if isinstance(exc, Exception) else TimeoutError()
            response = error_response(unexpected(request, error), work_begun=True)
        else:
            log.info("refused what is no HTTP: %s %s", type(exc).__name__, request_id)
            what = "has a line that is too long" if isinstance(exc, LineTooLong) else "is no HTTP"
            response = error_response(InvalidRequest(f"The request {what}."))
        response.headers["x-request-id"] = request_id
        response.force_close()
        return response

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Nothing where nothing was paused: aiohttp's parser would look for what is left all the same."""
        if self._reading_paused or getattr(self, "_buffer_paused", True):  # not in aiohttp 3.14.0
            super().resume_reading(resume_parser)

    def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> Coroutine[Any, Any, tuple[web.StreamResponse, bool]]:
        """aiohttp's own errors from outside the middlewares, as JSON."""
        if resp.status >= 400 and isinstance(resp, web.HTTPException):
            request_id = new_request_id()
            log.info("refused with %d outside the application: %s", resp.status, request_id)
            resp = of_http_error(resp)
            resp.headers["x-request-id"] = request_id
        return super().finish_response(request, resp, start_time)
