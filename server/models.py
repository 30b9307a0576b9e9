"""`GET /v1/models` and `GET /v1/models/{id}`: what can be asked for. Answers when the upstream is down."""

import time
from typing import Any

import msgspec
from aiohttp import web

from server.keys import AGENTS, SETTINGS
from streaming.failures import ModelNotFound

_STARTED = int(time.time())


async def list_models(request: web.Request) -> web.Response:
    return _json({"object": "list", "data": _models(request)})


async def get_model(request: web.Request) -> web.Response:
    """One model; its id may hold slashes. Raises ModelNotFound."""
    wanted = request.match_info["id"]
    for model in _models(request):
        if model["id"] == wanted:
            return _json(model)
    raise ModelNotFound(f"The model '{wanted}' does not exist.", param="model")


def _models(request: web.Request) -> list[dict[str, Any]]:
    settings = request.app[SETTINGS]
    agents = request.app[AGENTS]
    owners = dict.fromkeys(agents, "smolgate")
    owners |= dict.fromkeys((settings.model, settings.nothink_model), "upstream")
    return [
        {"id": name, "object": "model", "created": _STARTED, "owned_by": owner}
        for name, owner in owners.items()
    ]


def _json(value: Any) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")
