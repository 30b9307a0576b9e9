"""`GET /v1/models` and `GET /v1/models/{id}`: what the caller can ask for. Answers when an upstream is down."""

import time
from typing import Any

import msgspec
from aiohttp import web

from server.keys import AGENTS, KEY_HOLDER, UPSTREAMS
from streaming.failures import ModelNotFound

_STARTED = int(time.time())


async def list_models(request: web.Request) -> web.Response:
    return _json({"object": "list", "data": await _models(request)})


async def get_model(request: web.Request) -> web.Response:
    """One model; its id may hold slashes. Raises ModelNotFound."""
    wanted = request.match_info["id"]
    for model in await _models(request):
        if model["id"] == wanted:
            return _json(model)
    raise ModelNotFound(f"The model '{wanted}' does not exist.", param="model")


async def _models(request: web.Request) -> list[dict[str, Any]]:
    owners = dict.fromkeys(await request.app[UPSTREAMS].ids(), "upstream")
    # Of two with one id the agent answers, but for an id that the operator gave to an upstream.
    for agent in request.app[AGENTS]:
        if request.app[UPSTREAMS].exact(agent) is None:
            owners[agent] = "smolgate"
    holder = request.get(KEY_HOLDER)
    return [
        {"id": name, "object": "model", "created": _STARTED, "owned_by": owner}
        for name, owner in owners.items()
        if holder is None or holder.may_use(name)
    ]


def _json(value: Any) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")
