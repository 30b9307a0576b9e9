"""Who may call: bearer keys, compared in constant time.

In: a request. Out: the same, with the caller's key id on it, or 401. Health routes stay open.
"""

import hashlib
import hmac
from collections.abc import Awaitable, Callable

from aiohttp import web

from server.keys import API_KEY, SETTINGS
from streaming.failures import InvalidKey

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/v1/healthz", "/v1/readyz"})

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def auth_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Let through who has a key, or everyone where no keys are set. Raises InvalidKey."""
    keys = request.app[SETTINGS].api_keys
    if keys and request.path not in OPEN_PATHS:
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        digest = _digest(given.strip())
        # Every key is compared, so that the time taken does not say which one came close.
        matches = [hmac.compare_digest(digest, _digest(key)) for key in keys]
        if scheme.lower() != "bearer" or not any(matches):
            raise InvalidKey(
                "The API key is missing or wrong: send it as 'Authorization: Bearer KEY'."
            )
        request[API_KEY] = digest.hex()[:12]
    return await handler(request)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
