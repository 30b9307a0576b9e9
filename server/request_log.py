"""One line per request, under its id.

In: every request. Out: an `x-request-id` on every response (the caller's own, where it is harmless)
and, when the response is over, it is counted and has one log line with method, path, status, seconds,
outcome and ids. Never a prompt, a header or a key.
"""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable

from aiohttp import web

from server.access_line import ACCESS_LINES, RequestEnd, plain
from server.keys import API_KEY, OUTCOME, REQUEST_COUNTS, REQUEST_ID, RUN_ID, SETTINGS
from server.outcomes import CLIENT_GONE, outcome_of
from server.sse_writer import ClientStalled

log = logging.getLogger("server.access")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_HARMLESS_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


@web.middleware
async def request_log_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give the request its id and log it at its end, however it ends."""
    given = request.headers.get("X-Request-Id", "")
    request_id = given if _HARMLESS_ID.fullmatch(given) else new_request_id()
    request[REQUEST_ID] = request_id
    began = time.monotonic()
    status = CLIENT_GONE
    try:
        response = await handler(request)
        status = response.status
        if not response.prepared:
            response.headers["x-request-id"] = request_id
        return response
    except ClientStalled:
        # Its connection is gone; aiohttp would log a traceback for what is the client's own doing.
        request[OUTCOME] = "client_stalled"
        raise asyncio.CancelledError from None
    finally:
        seconds = time.monotonic() - began
        path, code = request.rel_url.raw_path, request.get(OUTCOME)
        outcome = outcome_of(status, code)
        request.app[REQUEST_COUNTS].note(path, status, outcome, seconds)
        if log.isEnabledFor(logging.INFO):
            ids = request_id, request.get(RUN_ID), request.get(API_KEY)
            end = RequestEnd(
                request.method, plain(path), status, round(seconds, 6), outcome, *ids, code
            )
            log.info("%s", ACCESS_LINES[request.app[SETTINGS].log_format](end))


def new_request_id() -> str:
    return f"req-{secrets.token_hex(12)}"
