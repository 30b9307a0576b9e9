"""Who may call: bearer keys.

In: a request. Out: the same, with the caller's key on it, or 401, or 429 past its requests a minute. Health
routes and the pages' files stay open, and `/metrics` where the operator says so.
"""

from collections.abc import Awaitable, Callable

from aiohttp import web

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

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/v1/healthz", "/v1/readyz"})
METRICS_PATHS = frozenset({"/metrics", "/v1/metrics"})

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def auth_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Let through who has a key, or everyone where no keys are set. Raises InvalidKey, KeyLimit."""
    ring = request.app[KEY_RING]
    if ring.is_set and not _is_open(request):
        holder = ring.holder_of(request.headers.get("Authorization", ""))
        if not is_passed_on(request):  # else it was counted where it came in
            if (shared := request.app.get(SHARED_USE)) is not None:
                await shared.count_request(holder)
            else:
                holder.count_request()
        request[KEY_HOLDER] = holder
        request[API_KEY] = holder.key.id
        if holder.key.tokens_per_day:
            return await _metered(request, handler, holder)
    return await handler(request)


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
    resource = request.match_info.route.resource
    if path in OPEN_PATHS or (resource and resource.canonical in request.app[OPEN_FILES]):
        return True
    if asks_for_page(request):
        return True
    return path in METRICS_PATHS and request.app[SETTINGS].metrics_public
