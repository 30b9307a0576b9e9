"""Verbatim requests that nginx carries out itself: the answer is `X-Accel-Redirect`, and no byte of the reply
comes through here.

In: a request that was authenticated, limited and routed. Out: where nginx finds the upstream (its location
`@smolgate_NAME`), with the path and the upstream's token in headers that nginx keeps; or None, where the
request takes the ordinary way: its nginx has not shown `ACCEL_KEY`, its key has tokens to be counted, a web page
asks, the body was compressed, the upstream is not one of `ACCEL_REDIRECT`, or its circuit is not closed.
"""

import hmac

from aiohttp import web

from server.bare_response import BareResponse
from server.client_address import is_trusted_peer
from server.keys import KEY_HOLDER, OUTCOME, SETTINGS
from server.outcomes import HANDED_ON
from streaming.direct_connections import target_of
from streaming.upstream_group import Data, UpstreamGroup

# nginx sets it on every request, so that no client's own comes through.
KEY_HEADER = "X-Smolgate-Accel"
# What may tell pages something, or would be sent as it came though it was decoded here.
_ORDINARY = ("Origin", "Content-Encoding")


def redirect_of(
    request: web.Request, path: str, body: Data, upstream: UpstreamGroup
) -> web.StreamResponse | None:
    """The answer for nginx, if it may carry this request out."""
    settings = request.app[SETTINGS]
    if not settings.accel_redirect or not isinstance(body, bytes):
        return None
    member = upstream.members[0]
    holder = request.get(KEY_HOLDER)
    if (
        member.name not in settings.accel_redirect
        or member.breaker.state != "ok"
        or (holder is not None and holder.key.tokens_per_day)
        or any(name in request.headers for name in _ORDINARY)
        or not _is_from_nginx(request, settings.accel_key or "")
    ):
        return None
    target = member.upstream.target
    headers = [
        ("X-Accel-Redirect", f"@smolgate_{member.name}"),
        ("X-Smolgate-Uri", target_of(target.base_url, path)),
    ]
    if target.token:
        headers.append(("X-Smolgate-Authorization", f"Bearer {target.token}"))
    request[OUTCOME] = HANDED_ON
    return BareResponse(200, headers)


def _is_from_nginx(request: web.Request, key: str) -> bool:
    given = request.headers.get(KEY_HEADER, "").encode("utf-8", "surrogateescape")
    return hmac.compare_digest(given, key.encode()) and is_trusted_peer(request)
