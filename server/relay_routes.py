"""Requests other than chat completions that name the upstream's model: relayed verbatim.

In: `/completions`, `/embeddings` and their like. Out: the upstream's reply. An agent's id is refused here:
agents are asked by chat completions.
"""

from aiohttp import web

from server.chat_request import body_for_upstream, route_of
from server.keys import SETTINGS
from server.relay_reply import send_relayed
from streaming.failures import ModelNotFound

PATHS = ("/completions", "/embeddings", "/moderations", "/responses", "/rerank")


async def relay_route(path: str, request: web.Request) -> web.StreamResponse:
    """Relay one request. Raises ModelNotFound for what is not the upstream's."""
    body = await request.read()
    route = route_of(body)
    model = route.model_id
    if model != request.app[SETTINGS].model:
        raise ModelNotFound(
            f"The model '{model}' is not served here: {path} takes the upstream's model.",
            param="model",
        )
    finishes = route.choices if path == "/completions" else 0
    body = body_for_upstream(body, route)
    return await send_relayed(request, path, body, scrub=None, finishes=finishes)
