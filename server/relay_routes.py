"""Requests other than chat completions for an upstream's model: relayed verbatim.

In: `/completions`, `/embeddings`, uploads and their like. Out: the upstream's reply. A JSON body goes where
its `model` leads; anything else (a form with a file, a GET) where the header `X-Model` leads, else to the
agents' upstream, and streams up as it comes. An agent's id is refused: agents are asked by chat completions.
"""

from aiohttp import web

from server.auth import allow_work
from server.chat_request import route_of
from server.keys import UPSTREAMS
from server.relay_reply import send_relayed
from server.relayed_body import other_data, streamed_body
from server.upstreams import UpstreamRoute
from streaming.failures import ModelNotFound, RouteNotFound

COMPLETIONS = "/completions"
# Their bodies are JSON, whatever the client calls it.
JSON_PATHS = (
    COMPLETIONS,
    *("/embeddings", "/moderations", "/rerank"),
    *("/images/generations", "/audio/speech", "/batches"),
)
UPLOAD_PATHS = (
    *("/images/edits", "/images/variations", "/audio/transcriptions", "/audio/translations"),
    "/files",
)
# In an upstream's path they would lead to another route.
_NO_IDS = frozenset({".", ".."})
ROUTES = (
    *(("POST", path) for path in (*JSON_PATHS, *UPLOAD_PATHS)),
    *(("GET", path) for path in ("/files", "/files/{id}", "/files/{id}/content")),
    ("DELETE", "/files/{id}"),
    *(("GET", path) for path in ("/batches", "/batches/{id}")),
    ("POST", "/batches/{id}/cancel"),
)


async def relay_route(request: web.Request) -> web.StreamResponse:
    """Relay one request. Raises ModelNotFound for what no upstream has, RouteNotFound."""
    if request.match_info.get("id") in _NO_IDS:
        raise RouteNotFound("There is no such route.")
    path = request.rel_url.raw_path.removeprefix("/v1")
    if not _is_json(request, path):
        route = _route_to(request, request.headers.get("X-Model"))
        body = streamed_body(request) if request.can_read_body else None
        return await send_relayed(request, path, body, upstream=route.group, scrub=None)
    text = await request.read()
    asked = route_of(text)
    route = _route_to(request, asked.model_id or request.headers.get("X-Model"))
    is_text = path == COMPLETIONS
    return await send_relayed(
        request,
        path,
        other_data(text, asked, route),
        upstream=route.group,
        scrub=route.scrub if is_text else None,
        finishes=asked.choices if is_text else 0,
        stream=bool(asked.stream),
    )


def _is_json(request: web.Request, path: str) -> bool:
    if path in JSON_PATHS and request.method == "POST":
        return not request.content_type.startswith("multipart/")
    return request.content_type == "application/json"


def _route_to(request: web.Request, model: str | None) -> UpstreamRoute:
    upstreams = request.app[UPSTREAMS]
    route = upstreams.default if model is None else upstreams.find(model)
    if route is None:
        raise ModelNotFound(
            f"The model '{model}' is not served here: this route takes an upstream's model.",
            param="model",
        )
    allow_work(request, route.model)
    return route
