"""Who may call: bearer keys.

In: a request. Out: the same, with the caller's key on it, or 401, or 429 past its requests a minute. Health
routes and the pages' files stay open, and `/metrics` where the operator says so.
"""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from aiohttp import hdrs, web

from server.joining import is_passed_on
from server.key_ring import KeyHolder
from server.keys import (
    API_KEY,
    KEY_HOLDER,
    KEY_RING,
    OPEN_FILES,
    REQUEST_COUNTS,
    SETTINGS,
    SHARED_USE,
    TOKEN_METER,
)
from server.page_negotiation import asks_for_page
from streaming.failures import Forbidden

if TYPE_CHECKING:  # loaded only where a store is shared
    from server.shared_use import SharedUse

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/v1/healthz", "/v1/readyz"})
METRICS_PATHS = frozenset({"/metrics", "/v1/metrics"})
# Pages and their files are asked for so.
_READING = frozenset({"GET", "HEAD"})

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
def auth_middleware(request: web.Request, handler: Handler) -> Awaitable[web.StreamResponse]:
    """Let through who has a key, or everyone where no keys are set. Raises InvalidKey, KeyLimit.

    No coroutine: what it has let through does not come back through it.
    """
    ring = request.app[KEY_RING]
    if not ring.is_set or _is_open(request):
        return handler(request)
    holder = ring.holder_of(request.headers.get(hdrs.AUTHORIZATION, ""))
    if not is_passed_on(request):  # else it was counted where it came in
        if (shared := request.app.get(SHARED_USE)) is not None:
            return _counted_by_all(request, handler, holder, shared)
        holder.count_request()
    return _let_through(request, handler, holder)


async def _counted_by_all(
    request: web.Request, handler: Handler, holder: KeyHolder, shared: "SharedUse"
) -> web.StreamResponse:
    await shared.count_request(holder)
    return await _let_through(request, handler, holder)


def _let_through(
    request: web.Request, handler: Handler, holder: KeyHolder
) -> Awaitable[web.StreamResponse]:
    request[KEY_HOLDER] = holder
    request[API_KEY] = holder.key.id
    if holder.key.tokens_per_day:
        return _metered(request, handler, holder)
    return handler(request)


async def _metered(request: web.Request, handler: Handler, holder: KeyHolder) -> web.StreamResponse:
    """Charge the key for what was relayed; an agent's run is charged at its end."""
    try:
        return await handler(request)
    finally:
        if (meter := request.get(TOKEN_METER)) is not None:
            holder.add_tokens(meter.tokens)
            request.app[REQUEST_COUNTS].relayed_tokens += meter.tokens


def allow_work(request: web.Request, model: str) -> None:
    """To be asked before a model works for a caller. Raises ModelNotFound, KeyLimit."""
    holder = request.get(KEY_HOLDER)
    if holder is not None:
        holder.check_model(model)
        holder.check_tokens()


def allow_metrics(request: web.Request) -> None:
    """Raises Forbidden where keys are set and the caller's may not read the metrics."""
    holder = request.get(KEY_HOLDER)
    if holder is not None and not holder.key.metrics:
        raise Forbidden("This API key may not read the metrics.")


def is_operator(request: web.Request) -> bool:
    """May the caller see and cancel everybody's runs, as things are now: keys may have been read again."""
    ring = request.app[KEY_RING]
    return not ring.is_set or ring.is_operator(request.get(KEY_HOLDER))


def allow_operator(request: web.Request) -> None:
    """Raises Forbidden where keys are set and the caller's is no operator's."""
    if not is_operator(request):
        raise Forbidden("This API key may see its own runs alone.")


def _is_open(request: web.Request) -> bool:
    path = request.path
    if path in OPEN_PATHS:
        return True
    if path in METRICS_PATHS:
        return request.app[SETTINGS].metrics_public
    return request.method in _READING and (_is_open_file(request) or asks_for_page(request))


def _is_open_file(request: web.Request) -> bool:
    resource = request.match_info.route.resource
    return resource is not None and resource.canonical in request.app[OPEN_FILES]
