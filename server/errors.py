"""Errors → OpenAI's error JSON. The one place that does it.

In: a `SmolgateError`, aiohttp's own HTTP errors, or anything else. Out: a response, or the bytes of an
error event. `x-should-retry: false` is set once work has begun, since the SDKs repeat every 5xx.
"""

import logging
import math
from typing import Any

from aiohttp import web
from multidict import CIMultiDict

from server.keys import OUTCOME, REQUEST_ID
from streaming.events import Failure
from streaming.failures import (
    BodyTooLarge,
    ClientError,
    InvalidRequest,
    MethodNotAllowed,
    RouteNotFound,
    SmolgateError,
    UnsupportedMedia,
    UpstreamFailed,
)
from streaming.json_codec import encode_json

log = logging.getLogger(__name__)

# What the log calls an error that has no code.
UNNAMED = "invalid_request"
# What is quoted of a request, or told by an upstream, must not make an event of 64 KiB.
MAX_MESSAGE_CHARACTERS = 2000

OF_HTTP_STATUS: dict[int, tuple[type[ClientError], str]] = {
    404: (RouteNotFound, "There is no such route."),
    405: (MethodNotAllowed, "This route does not take this method."),
    413: (BodyTooLarge, "The request body is too large."),
    415: (UnsupportedMedia, "The request body is of a type that is not taken here."),
    417: (InvalidRequest, "The only 'Expect' that is known is '100-continue'."),
}


def error_object(error: SmolgateError | Failure) -> dict[str, Any]:
    """The `error` object of a body or an event."""
    return {
        "message": error.message[:MAX_MESSAGE_CHARACTERS],
        "type": error.type,
        "param": error.param,
        "code": error.code,
    }


def error_response(error: SmolgateError | Failure, *, work_begun: bool = False) -> web.Response:
    """An error as a whole response. `work_begun` keeps the SDKs from starting it again."""
    headers: CIMultiDict[str] = CIMultiDict()
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if work_begun:
        headers["x-should-retry"] = "false"
    return web.Response(
        status=error.status,
        body=encode_json({"error": error_object(error)}),
        content_type="application/json",
        headers=headers,
    )


def of_http_error(error: web.HTTPException) -> web.Response:
    """One of aiohttp's own errors, its status kept."""
    kind, message = OF_HTTP_STATUS.get(error.status, (InvalidRequest, f"{error.reason}."))
    response = error_response(kind(message))
    response.set_status(error.status)
    if "Allow" in error.headers:
        response.headers["Allow"] = error.headers["Allow"]
    return response


def answer_to(request: web.Request, error: Exception) -> web.Response:
    """Whatever goes wrong before the first byte leaves as OpenAI's error JSON.

    Raises what is no error, and ConnectionError: the client left, and there is nobody to answer.
    """
    match error:
        case SmolgateError():
            request[OUTCOME] = error.code or UNNAMED
            # An upstream that broke off may have done the work.
            return error_response(error, work_begun=isinstance(error, UpstreamFailed))
        case web.RequestPayloadError():
            request[OUTCOME] = UNNAMED
            response = error_response(InvalidRequest("The request body cannot be decoded."))
            response.force_close()  # what follows in the connection cannot be read either
            return response
        case web.HTTPException():
            if error.status < 400:
                raise error
            kind, _ = OF_HTTP_STATUS.get(error.status, (InvalidRequest, ""))
            request[OUTCOME] = kind.code or UNNAMED
            return of_http_error(error)
        case ConnectionError():
            raise error
        case _:
            return error_response(unexpected(request, error), work_begun=True)


def unexpected(request: web.BaseRequest, error: Exception) -> SmolgateError:
    """Log an error that nobody foresaw; returns what the client is told."""
    request[OUTCOME] = "internal_error"
    log.error("request %s failed", request.get(REQUEST_ID, ""), exc_info=error)
    return SmolgateError("The server failed on this request.", code="internal_error")
