"""One answer and one line per request, under its id.

In: every request. Out: an `x-request-id` on every response (the caller's own, where it is harmless)
and, when the response is over, it is counted and has one log line with the caller's address, method,
path, status, seconds, outcome and ids. Never a prompt, a header or a key.
"""

import asyncio
import logging
import os
import re
import secrets
import time
from collections.abc import Awaitable, Callable

from aiohttp import web
from multidict import istr

from server.access_line import RequestEnd, plain
from server.access_log import log, log_end
from server.client_address import client_address
from server.errors import answer_to
from server.keys import API_KEY, OUTCOME, REQUEST_COUNTS, REQUEST_ID, RUN_ID, SETTINGS
from server.outcomes import CLIENT_GONE, JOINED, outcome_of
from server.sse_writer import ClientStalled

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_ID_HEADER = istr("X-Request-Id")  # ready to be looked up
_HARMLESS_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")

# Ids that were drawn ahead: asking the kernel costs as much for one as for many. Never two processes' the same.
_spare_ids: list[str] = []
_DRAWN_AT_ONCE = 256
os.register_at_fork(after_in_child=_spare_ids.clear)


@web.middleware
async def request_log_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give the request its id, answer what goes wrong, and log it at its end, however it ends."""
    given = request.headers.get(_ID_HEADER)
    request_id = given if given and _HARMLESS_ID.fullmatch(given) else new_request_id()
    request[REQUEST_ID] = request_id
    # Now, while the connection is there for certain.
    address = client_address(request) if log.isEnabledFor(logging.INFO) else ""
    began = time.monotonic()
    status = CLIENT_GONE
    try:
        try:
            response = await handler(request)
        except ClientStalled:
            # Its connection is gone; aiohttp would log a traceback for what is the client's own doing.
            request[OUTCOME] = "client_stalled"
            raise asyncio.CancelledError from None
        except Exception as error:  # noqa: BLE001 - all are told there
            response = answer_to(request, error)
        status = response.status
        if not response.prepared:
            response.headers["x-request-id"] = request_id
        return response
    finally:
        seconds = time.monotonic() - began
        path, code = request.rel_url.raw_path, request.get(OUTCOME)
        outcome = outcome_of(status, code)
        if code != JOINED:  # else it is counted where the run is
            request.app[REQUEST_COUNTS].note(path, status, outcome, seconds)
        if log.isEnabledFor(logging.INFO):
            ids = request_id, request.get(RUN_ID), request.get(API_KEY)
            end = RequestEnd(
                address, request.method, plain(path), status, seconds, outcome, *ids, code
            )
            log_end(end, request.app[SETTINGS].log_format)


def new_request_id() -> str:
    if not _spare_ids:
        digits = secrets.token_hex(12 * _DRAWN_AT_ONCE)
        _spare_ids.extend(f"req-{digits[at : at + 24]}" for at in range(0, len(digits), 24))
    return _spare_ids.pop()
