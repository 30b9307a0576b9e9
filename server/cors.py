"""Web pages of other origins: off unless `CORS_ORIGINS` names some.

In: an application and origins. Out: their preflights are answered, without a key, and every response to
them, streams and errors too, says that they may read it. Callers are known by their key and by no cookie,
so credentials are not allowed.
"""

import re
from collections.abc import Awaitable, Callable, Collection

from aiohttp import hdrs, web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

MAX_AGE_SECONDS = 600
ALLOWED_METHODS = "GET, POST, DELETE"
EXPOSED_HEADERS = "x-request-id, Retry-After, x-should-retry"
_HEADER_NAMES = re.compile(r"[A-Za-z0-9_-]{1,64}(, ?[A-Za-z0-9_-]{1,64}){0,63}")


def allow_origins(app: web.Application, origins: Collection[str]) -> None:
    """Have the application answer pages of these origins; `*` is any. Without any, change nothing."""
    if not origins:
        return

    async def on_prepare(request: web.Request, response: web.StreamResponse) -> None:
        if "*" not in origins:
            response.headers.add("Vary", "Origin")
        if allowed := _allowed(request, origins):
            response.headers["Access-Control-Allow-Origin"] = allowed
            response.headers["Access-Control-Expose-Headers"] = EXPOSED_HEADERS

    @web.middleware
    async def preflight_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if (
            request.method != hdrs.METH_OPTIONS
            or "Access-Control-Request-Method" not in request.headers
        ):
            return await handler(request)
        response = web.Response(status=204)
        if _allowed(request, origins):
            response.headers["Access-Control-Allow-Methods"] = ALLOWED_METHODS
            response.headers["Access-Control-Max-Age"] = str(MAX_AGE_SECONDS)
            asked = request.headers.get("Access-Control-Request-Headers", "")
            if _HEADER_NAMES.fullmatch(asked):
                response.headers["Access-Control-Allow-Headers"] = asked
        return response

    app.on_response_prepare.append(on_prepare)
    app.middlewares.insert(1, preflight_middleware)  # within the request log, before the keys


def _allowed(request: web.Request, origins: Collection[str]) -> str | None:
    """What to say of the caller's origin: it, or that all may, or nothing."""
    if "*" in origins:
        return "*"
    origin = request.headers.get("Origin", "")
    return origin if origin in origins else None
