"""Whether an upstream has the Responses API: as its operator says, or as it was found out.

In: the option `responses`, and replies that say that there is no such route. Out: whether requests are translated.
"""

import re
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal

from streaming.json_codec import decode_json

ResponsesOption = Literal["auto", "relay", "translate"]

# An upstream that is upgraded is found out after so long.
MISSING_SECONDS = 600.0
# Larger bodies than this are not read to learn what they say.
MAX_REFUSAL_BYTES = 64 * 1024
MISSING_STATUSES = frozenset({400, 404, 405, 501})

# What servers say of a route that they have not: FastAPI, vLLM, llama.cpp, gin (Ollama), Express, OpenAI, this one.
_NO_ROUTE = re.compile(
    r"^\W*(?:(?:404|405|501)\W*)?"
    r"(?:(?-i:File Not Found)|(?:page |route |path |url |endpoint )?not found|method not allowed|not implemented)\W*$"
    r"|404 page not found|there is no such route|invalid url|unrecognized request url"
    r"|cannot post|no route (?:matched|found|for)|(?:unknown|unsupported|no such) (?:route|path|endpoint|url)"
    r"|(?:route|path|endpoint|url) \S+ (?:was )?not found|does not take this method",
    re.IGNORECASE,
)

# vLLM's, whose status is also that of any other bad request.
_NO_API = re.compile(r"does not support (?:the )?responses api", re.IGNORECASE)


class ResponsesRoute:
    """What is known of one upstream; `clock` is in seconds."""

    def __init__(
        self, option: ResponsesOption, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._option = option
        self._clock = clock
        self._missing_until = 0.0

    def may_be_missing(self, status: int) -> bool:
        """Whether a reply of this status has to be read for that."""
        return self._option == "auto" and status in MISSING_STATUSES

    @property
    def translates(self) -> bool:
        """It is asked for chat completions."""
        if self._option == "auto":
            return self._clock() < self._missing_until
        return self._option == "translate"

    def note_missing(self) -> None:
        """It said that it has no such route."""
        self._missing_until = self._clock() + MISSING_SECONDS


def says_no_route(status: int, content_type: str, body: bytes) -> bool:
    """Whether a refusal means that the route is unknown, and not the model, a response or anything else."""
    if status not in MISSING_STATUSES:
        return False
    if status == 400:
        return _NO_API.search(body.decode("utf-8", "replace")) is not None
    said = body.strip()
    if not said:
        return True
    if content_type != "application/json":
        with suppress(ValueError):
            return _error_says_so(decode_json(said))
        text = said.decode("utf-8", "replace")
        return said.startswith(b"<") or _NO_ROUTE.search(text) is not None
    try:
        return _error_says_so(decode_json(said))
    except ValueError:
        return False


def _error_says_so(reply: Any) -> bool:
    error = reply.get("error", reply) if isinstance(reply, dict) else reply
    code: Any = None
    if isinstance(error, dict):
        code = error.get("code")
        error = error.get("message") or error.get("detail") or ""
    if isinstance(code, str) and code.endswith("_not_found"):
        return False
    return isinstance(error, str) and _NO_ROUTE.search(error.strip()) is not None
