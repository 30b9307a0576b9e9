"""One line per request, under its id.

In: every request. Out: an `x-request-id` on every response (the caller's own, where it is harmless)
and, when the response is over, one log line with the caller's address, method, path, status, seconds and outcome. Never a
prompt, a header or a key.
"""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable

from aiohttp import web

from server.client_address import client_address
from server.keys import OUTCOME, REQUEST_ID
from server.sse_writer import ClientStalled

log = logging.getLogger("server.access")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# What nginx logs for a client that left before there was a response.
CLIENT_GONE = 499

_HARMLESS_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


@web.middleware
async def request_log_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give the request its id and log it at its end, however it ends."""
    given = request.headers.get("X-Request-Id", "")
    request_id = given if _HARMLESS_ID.fullmatch(given) else f"req-{secrets.token_hex(12)}"
    request[REQUEST_ID] = request_id
    # Now, while the connection is there for certain.
    address = client_address(request) if log.isEnabledFor(logging.INFO) else ""
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
        if log.isEnabledFor(logging.INFO):
            # `path` is percent-encoded by the caller or refused by aiohttp: it holds no line break.
            log.info(
                "%s %s %s %d %.3fs %s %s",
                address,
                request.method,
                request.rel_url.raw_path,
                status,
                time.monotonic() - began,
                request.get(OUTCOME) or _outcome_of(status),
                request_id,
            )


def _outcome_of(status: int) -> str:
    if status < 400:
        return "ok"
    if status == CLIENT_GONE:
        return "client_gone"
    return "refused" if status < 500 else "failed"
