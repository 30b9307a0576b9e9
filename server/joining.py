"""A request that came to another process than its run: it is answered where the run is.

In: a request whose wish may have a run in another worker, or at another front end over a shared store, or which brings
results of tools for one. Out: that process's reply, passed on byte for byte, or nothing: then the run is this one's to
make, and the parent, or the store, has noted so. Workers reach each other by unix sockets in a folder of the parent's
that nobody else may enter; front ends by their addresses, with a word that the store alone tells.
"""

from contextlib import AsyncExitStack
from dataclasses import dataclass

import aiohttp
from aiohttp import web
from multidict import istr

from server.idempotency import Wish
from server.keys import API_KEY, FRONT_ENDS, NEIGHBOURS, OUTCOME, REQUEST_ID
from server.neighbours import JOIN_HEADER, Neighbours
from server.outcomes import JOINED
from server.worker_wire import Inquiry
from streaming.failures import RunNotFound, Unavailable, UpstreamFailed

CONNECT_SECONDS = 5.0
RETRY_SECONDS = 5.0
# Hop by hop, or the client's own.
_KEPT_BACK = frozenset({"connection", "content-length", "expect", "host", "transfer-encoding"})
_OURS = frozenset({"accept-encoding", "content-encoding", "x-request-id", JOIN_HEADER.lower()})
_NOT_HERE = 404
_JOIN_HEADER = istr(JOIN_HEADER)  # ready to be looked up


@dataclass
class ReplyElsewhere:
    """Another worker's reply, its head read. `pass_on` must be called."""

    response: aiohttp.ClientResponse
    stack: AsyncExitStack

    async def pass_on(self, request: web.Request) -> web.StreamResponse:
        """The whole reply, as it comes; the client's leaving is felt over there at once."""
        async with self.stack:
            headers = {
                name: value
                for name, value in self.response.headers.items()
                if name.lower() not in _KEPT_BACK | {"date", "server"}
            }
            reply = web.StreamResponse(status=self.response.status, headers=headers)
            request[OUTCOME] = JOINED
            await reply.prepare(request)
            try:
                async for data in self.response.content.iter_any():
                    await reply.write(data)
            except aiohttp.ClientError:
                if request.transport is not None:
                    request.transport.abort()  # a cut reply must not look like a whole one
                return reply
            await reply.write_eof()
            return reply


async def find_elsewhere(
    request: web.Request, body: bytes, wish: Wish | None
) -> ReplyElsewhere | None:
    """The reply of the process that has this wish's run; None where this one is to make it.

    Raises RunNotFound where another process asks, and this one has not got it.
    """
    neighbours = request.app.get(NEIGHBOURS)
    if neighbours is None or wish is None:
        return None
    if neighbours.passes_on(request):
        return await _further(request, body)
    if not wish.is_repeated:
        await neighbours.owner_of(wish.fingerprint, by_force=True)
        return None
    owner = await neighbours.owner_of(wish.fingerprint)
    while owner is not None:
        reply = await _ask(neighbours, owner, request, body)
        if reply is not None:
            return reply
        owner = await neighbours.owner_of(wish.fingerprint, instead_of=owner)
    return None


async def find_caller_elsewhere(
    request: web.Request, body: bytes, tool_call_id: str
) -> ReplyElsewhere | None:
    """The reply of the process whose run made this call; None where no other knows of it.

    Raises RunNotFound where another process asks.
    """
    neighbours = request.app.get(NEIGHBOURS)
    if neighbours is None:
        return None
    if neighbours.passes_on(request):
        return await _further(request, body)
    inquiry = Inquiry(0, "tool_call", request.get(API_KEY, ""), tool_call_id)
    for owner in await neighbours.found_elsewhere(inquiry):
        if (reply := await _ask(neighbours, owner.decode(), request, body)) is not None:
            return reply
    return None


def is_passed_on(request: web.Request) -> bool:
    """Another process passes it on, which has counted it."""
    if _JOIN_HEADER not in request.headers:
        return False
    neighbours = request.app.get(NEIGHBOURS)
    return neighbours is not None and neighbours.passes_on(request)


async def _further(request: web.Request, body: bytes) -> ReplyElsewhere:
    """A request that another process passes on, and whose run is not here: it may be meant for a neighbour that
    shares this one's address. Raises RunNotFound.
    """
    front_ends = request.app.get(FRONT_ENDS)
    owner = front_ends.meant_for(request) if front_ends is not None else None
    if front_ends is not None and owner is not None:
        road = await front_ends.road_to(owner)
        if road is not None and road.socket:  # by an address it would come here again
            reply = await _ask(front_ends, owner, request, body)
            if reply is not None:
                return reply
    raise RunNotFound("This process has no such run.")


async def _ask(
    neighbours: Neighbours, owner: str, request: web.Request, body: bytes
) -> ReplyElsewhere | None:
    """None where the process is gone, or has no such run. Raises UpstreamFailed where it broke off, Unavailable where
    it lives and is not reached.
    """
    road = await neighbours.road_to(owner)
    if road is None:
        return None
    headers = {
        name: value
        for name, value in request.headers.items()
        if name.lower() not in _KEPT_BACK | _OURS
    }
    headers |= {**road.headers, "X-Request-Id": request[REQUEST_ID]}
    connector = aiohttp.UnixConnector(road.socket) if road.socket else None
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(
            aiohttp.ClientSession(
                connector=connector,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
                auto_decompress=False,
            )
        )
        try:
            response = await stack.enter_async_context(
                session.request(
                    request.method,
                    f"{road.url or 'http://worker'}{request.rel_url.raw_path}",
                    data=body,
                    headers=headers,
                )
            )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
            if road.certain:
                return None
            raise Unavailable(
                "This request belongs to a run of another server, which does not answer.",
                code="run_elsewhere",
                retry_after=RETRY_SECONDS,
            ) from None
        except aiohttp.ClientError:
            raise UpstreamFailed("The run's server was lost.") from None
        if response.status == _NOT_HERE:
            return None
        return ReplyElsewhere(response, stack.pop_all())
