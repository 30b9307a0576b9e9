"""A request that came to another worker than its run: it is answered where the run is.

In: a request whose wish may have a run in another worker, or which brings results of tools for one. Out: that
worker's reply, passed on byte for byte, or nothing: then the run is this worker's to make, and the parent has
noted so. Workers reach each other by unix sockets in a folder of the parent's that nobody else may enter.
"""

from contextlib import AsyncExitStack
from dataclasses import dataclass

import aiohttp
from aiohttp import web

from server.idempotency import Wish
from server.keys import API_KEY, OUTCOME, REQUEST_ID, WORKER_LINK
from server.outcomes import JOINED
from server.worker_wire import Inquiry
from streaming.failures import RunNotFound, UpstreamFailed

# "Answer this only if you have its run": taken from a worker's socket alone.
JOIN_HEADER = "X-Smolgate-Join"
# Hop by hop, or the client's own.
_KEPT_BACK = frozenset({"connection", "content-length", "expect", "host", "transfer-encoding"})
_NOT_HERE = 404


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
    """The reply of the worker that has this wish's run; None where this one is to make it.

    Raises RunNotFound where another worker asks, and this one has not got it.
    """
    link = request.app.get(WORKER_LINK)
    if link is None or wish is None:
        return None
    if is_of_worker(request):
        raise RunNotFound("This worker has no such run.")
    if not wish.is_repeated:
        await link.owner_of(wish.fingerprint, by_force=True)
        return None
    owner = await link.owner_of(wish.fingerprint)
    while owner is not None:
        reply = await _ask(owner, request, body)
        if reply is not None:
            return reply
        owner = await link.owner_of(wish.fingerprint, instead_of=owner)
    return None


async def find_caller_elsewhere(
    request: web.Request, body: bytes, tool_call_id: str
) -> ReplyElsewhere | None:
    """The reply of the worker whose run made this call; None where no other knows of it.

    Raises RunNotFound where another worker asks.
    """
    link = request.app.get(WORKER_LINK)
    if link is None:
        return None
    if is_of_worker(request):
        raise RunNotFound("This worker has made no such call.")
    inquiry = Inquiry(0, "tool_call", request.get(API_KEY, ""), tool_call_id)
    for owner in await link.found_elsewhere(inquiry):
        if (reply := await _ask(owner.decode(), request, body)) is not None:
            return reply
    return None


def is_of_worker(request: web.Request) -> bool:
    """Another worker passes it on."""
    if JOIN_HEADER not in request.headers:
        return False
    link = request.app.get(WORKER_LINK)
    if link is None or request.transport is None:
        return False
    return bool(request.transport.get_extra_info("sockname") == link.welcome.join_path)


async def _ask(owner: str, request: web.Request, body: bytes) -> ReplyElsewhere | None:
    """None where the worker is gone, or has no such run. Raises UpstreamFailed where it broke off."""
    headers = {
        name: value
        for name, value in request.headers.items()
        if name.lower() not in _KEPT_BACK | {"accept-encoding", "content-encoding"}
    }
    headers |= {JOIN_HEADER: "1", "X-Request-Id": request[REQUEST_ID]}
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(
            aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(owner),
                timeout=aiohttp.ClientTimeout(total=None),
                auto_decompress=False,
            )
        )
        try:
            response = await stack.enter_async_context(
                session.request(
                    request.method,
                    f"http://worker{request.rel_url.raw_path}",
                    data=body,
                    headers=headers,
                )
            )
        except aiohttp.ClientConnectorError:
            return None
        except aiohttp.ClientError:
            raise UpstreamFailed("The run's worker was lost.") from None
        if response.status == _NOT_HERE:
            return None
        return ReplyElsewhere(response, stack.pop_all())
