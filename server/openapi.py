"""`GET /openapi.json`: an OpenAPI 3.1 document of what is served, made from the types that are used.

In: the request structs, the reply shapes, the error tree and the relayed routes. Out: the document. A
test holds it against the application's own routes, and schemathesis against the running server.
"""

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import msgspec
from aiohttp import web

import server
from server import api_shapes
from server.chat_request import RoutedRequest
from server.chat_schema import ChatRequest
from server.finished_runs import MAX_KEPT
from server.relay_routes import ROUTES
from server.response_api import RESPONSE_ROUTES
from server.response_schema import ResponseRequest
from server.runs import ENDED_BY_DEFAULT, SCOPES
from streaming.failures import ClientError, SmolgateError

_SCHEMAS = "#/components/schemas/"
_JSON = "application/json"
_REPLIES = (
    *(api_shapes.Completion, api_shapes.CompletionChunk, api_shapes.ErrorBody),
    *(api_shapes.ModelList, api_shapes.RunList, api_shapes.Health, api_shapes.Readiness),
    api_shapes.RunChanges,
)
# aiohttp's own, which no leaf of the error tree stands for.
_EXPECTATION_FAILED = 417
_REQUEST_ID = {
    "x-request-id": {
        "description": "Under this id the log has the request; yours is kept where it is harmless.",
        "required": True,
        "schema": {"type": "string"},
    }
}
_RETRY_AFTER = {"Retry-After": {"description": "Seconds.", "schema": {"type": "string"}}}
# Of a stream the schema describes each event, as is usual before OpenAPI 3.2.
_EVENT = {
    "description": "A chunk, or at most one error before the last event, which is `[DONE]`.",
    "type": "object",
    "required": ["data"],
    "additionalProperties": False,
    "properties": {
        "event": {"const": "message"},  # what an event is that has no name
        "id": {"type": "string"},  # its number, where the stream is kept
        "data": {
            "type": "string",
            "anyOf": [
                {"const": "[DONE]"},
                {
                    "contentMediaType": _JSON,
                    "contentSchema": {
                        "anyOf": [
                            {"$ref": _SCHEMAS + "CompletionChunk"},
                            {"$ref": _SCHEMAS + "ErrorBody"},
                        ]
                    },
                },
            ],
        },
    },
}
_PLAIN_EVENT = {
    "type": "object",
    "required": ["data"],
    "properties": {"data": {"type": "string"}},
}
_ASK = {"messages": [{"role": "user", "content": "What is 17 * 23?"}]}
_EXAMPLES = {
    "agent": {"value": _ASK | {"model": "code-writing-agent"}},
    "stream": {"value": _ASK | {"stream": True, "stream_options": {"include_usage": True}}},
    "answer alone": {"value": _ASK | {"reasoning_format": "deepseek"}},
}


_PAGE = {
    "order": "asc, or desc, which is the default.",
    "after": "The id of the item before the page.",
    "limit": "1 to 100, 20 by default.",
}
_QUERIES = {
    ("GET", "/responses/{id}"): {
        "stream": "true: its events, live.",
        "starting_after": "The number of the last event that the client has.",
    },
    ("GET", "/responses/{id}/input_items"): _PAGE,
    ("GET", "/conversations/{id}/items"): _PAGE,
}


async def openapi(request: web.Request) -> web.Response:
    """The document."""
    return web.Response(body=msgspec.json.encode(document()), content_type=_JSON)


@cache
def document() -> dict[str, Any]:
    """The OpenAPI document; every path is served without its `/v1`, too."""
    _, schemas = msgspec.json.schema_components(
        (RoutedRequest, ChatRequest, ResponseRequest, *_REPLIES), ref_template=_SCHEMAS + "{name}"
    )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "smolgate",
            "version": server.__version__,
            "description": "Agents and upstream models as OpenAI models. Every path is served with "
            "and without /v1.",
        },
        "servers": [{"url": "/v1"}, {"url": "/"}],
        "paths": _paths(),
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }


def _paths() -> dict[str, Any]:
    paths: dict[str, Any] = {
        "/healthz": {"get": _own("Does the process live", {200: "Health"}, refusals=())},
        "/readyz": {
            "get": _own("Can it take work", {200: "Readiness", 503: "Readiness"}, refusals=())
        },
        "/openapi.json": {"get": _own("This document", {200: None})},
        "/metrics": {"get": _metrics()},
        "/stream-check": {"get": _stream_check()},
        "/models": {"get": _own("What can be asked for", {200: "ModelList"})},
        "/models/{id}": {
            "get": _own("One model; ids may hold slashes", {200: "ModelEntry"}, named=True)
        },
        "/chat/completions": {"post": _chat()},
        "/runs": {"get": _runs()},
        "/runs/events": {"get": _run_events()},
        "/runs/{id}": {"get": _own("One run", {200: "RunEntry"}, named=True)},
        "/runs/{id}/cancel": {"post": _own("End a run", {200: "RunEntry"}, named=True)},
    }
    for path in ("/stream", "/stream/{id}"):
        paths[path] = {"get": _stream(path), "delete": _end_of_stream(path)}
    paths["/streams/lookup"] = {"post": _lookup()}
    for method, path in ROUTES:
        paths.setdefault(path, {})[method.lower()] = _relayed(method, path)
    for method, path, _, summary in RESPONSE_ROUTES:
        paths.setdefault(path, {})[method.lower()] = _response(method, path, summary)
    return paths


def _runs() -> dict[str, Any]:
    operation = _own(
        "The caller's runs under way; with scope=all everybody's, for operators",
        {200: "RunList"},
        refusals=(400, 401, 403),
    )
    scope: dict[str, Any] = {"type": "string", "enum": list(SCOPES), "default": "own"}
    limit = {"type": "integer", "minimum": 0, "maximum": MAX_KEPT, "default": ENDED_BY_DEFAULT}
    operation["parameters"] += [
        _query("scope", "all: everybody's, and those that ended lately.", scope),
        _query("limit", "How many of those that ended, at most.", limit),
    ]
    return operation


def _run_events() -> dict[str, Any]:
    operation = _own(
        "Everybody's runs as they change, for operators", {}, refusals=(401, 403, 429, 503)
    )
    content = {"contentMediaType": _JSON, "contentSchema": _schema("RunChanges")}
    event = {
        "description": "All runs (`snapshot`), what has changed (`runs`), or the last one (`end`).",
        "type": "object",
        "required": ["event", "data"],
        "additionalProperties": False,
        "properties": {
            "event": {"enum": ["snapshot", "runs", "end"]},
            "data": {"type": "string", **content},
        },
    }
    operation["responses"]["200"] = {
        "description": "The events",
        "headers": _REQUEST_ID,
        "content": {"text/event-stream": {"schema": event}},
    }
    return operation


def _response(method: str, path: str, summary: str) -> dict[str, Any]:
    """An operation of the Responses API: objects as docs/responses.md has them, or a stream of events."""
    content: dict[str, Any] = {_JSON: {"schema": {"type": "object"}}}
    if path in {"/responses", "/responses/{id}"} and method != "DELETE":
        content["text/event-stream"] = {"schema": {}}
    operation: dict[str, Any] = {
        "summary": summary,
        "parameters": [
            *_path_parameters(path),
            *(
                _query(name, meaning, {"type": "string"})
                for name, meaning in _QUERIES.get((method, path), {}).items()
            ),
        ],
        "responses": {
            "200": {"description": "The reply", "headers": _REQUEST_ID, "content": content},
            **_refusals(_statuses(SmolgateError)),
        },
    }
    if method == "POST" and not path.endswith("/cancel"):
        schema: dict[str, Any] = {"type": "object"}
        if path == "/responses":
            schema = {"allOf": [_schema("RoutedRequest"), _schema("ResponseRequest")]}
        operation["requestBody"] = {"content": {_JSON: {"schema": schema}}}
    return operation


def _chat() -> dict[str, Any]:
    body = {"allOf": [_schema("RoutedRequest"), _schema("ChatRequest")]}
    reply = {_JSON: {"schema": _schema("Completion")}, "text/event-stream": {"schema": _EVENT}}
    return {
        "summary": "Ask an agent, or an upstream's model",
        "description": "What follows is an agent's. A request for an upstream's model is relayed as it "
        "is, and so is the reply.",
        "parameters": [
            _header("Idempotency-Key", "A repeated request joins the run, or gets its end again."),
            _header("X-On-Disconnect", "cancel, finish, or seconds of grace."),
            _header(
                "X-Conversation-Id", "Keep the stream under this name, so that it can be resumed."
            ),
        ],
        "requestBody": {
            "required": True,
            "content": {_JSON: {"schema": body, "examples": _EXAMPLES}},
        },
        "responses": {
            "200": {"description": "The reply", "headers": _REQUEST_ID, "content": reply},
            **_refusals(_statuses(SmolgateError)),
        },
    }


def _stream(path: str) -> dict[str, Any]:
    return {
        "summary": "The rest of a kept stream, each event with its number as `id`",
        "parameters": [
            *_stream_name(path),
            _query("from", "How many of its events are there already.", {"type": "integer"}),
            _header("Last-Event-ID", "Instead: the number of the last event that is there."),
        ],
        "responses": {
            "200": {
                "description": "The events",
                "headers": _REQUEST_ID,
                "content": {"text/event-stream": {"schema": {}}},
            },
            **_refusals((400, 401, 404, _EXPECTATION_FAILED, 429, 503)),
        },
    }


def _end_of_stream(path: str) -> dict[str, Any]:
    return {
        "summary": "End the run of a kept stream, and forget it",
        "parameters": _stream_name(path),
        "responses": {
            "204": {"description": "It is gone, or was not there", "headers": _REQUEST_ID},
            **_refusals((400, 401, _EXPECTATION_FAILED, 429, 503)),
        },
    }


def _lookup() -> dict[str, Any]:
    names = {"type": "array", "items": {"type": "string"}, "maxItems": 200}
    body = {
        "type": "object",
        "required": ["conversation_ids"],
        "properties": {"conversation_ids": names},
    }
    reply = {_JSON: {"schema": {"type": "array", "items": {"type": "object"}}}}
    return {
        "summary": "Which of these streams there are",
        "requestBody": {"required": True, "content": {_JSON: {"schema": body}}},
        "responses": {
            "200": {"description": "Those that are", "headers": _REQUEST_ID, "content": reply},
            **_refusals((400, 401, 413, _EXPECTATION_FAILED, 429, 503)),
        },
    }


def _stream_name(path: str) -> list[dict[str, Any]]:
    if "{id}" in path:
        return _path_parameters(path)
    return [_query("conv_id", "The stream's name.", {"type": "string"})]


def _relayed(method: str, path: str) -> dict[str, Any]:
    parameters = [_header("X-Model", "Whose upstream is asked where the body does not say.")]
    operation: dict[str, Any] = {
        "summary": "Relayed to an upstream as it is",
        "parameters": [*_path_parameters(path), *parameters],
        "responses": {"default": {"description": "The upstream's reply", "content": {"*/*": {}}}},
    }
    if method == "POST":
        content = {_JSON: {"schema": {"type": "object"}}, "multipart/form-data": {"schema": {}}}
        operation["requestBody"] = {"content": content}
    return operation


def _metrics() -> dict[str, Any]:
    operation = _own("What Prometheus reads", {}, refusals=(401, 403))
    operation["responses"]["200"] = {
        "description": "The metrics",
        "headers": _REQUEST_ID,
        "content": {"text/plain": {"schema": {"type": "string"}}},
    }
    return operation


def _stream_check() -> dict[str, Any]:
    operation = _own("A few events, by which a proxy shows whether it buffers", {})
    operation["responses"]["200"] = {
        "description": "The stream",
        "headers": _REQUEST_ID,
        "content": {"text/event-stream": {"schema": _PLAIN_EVENT}},
    }
    return operation


def _own(
    summary: str,
    replies: dict[int, str | None],
    *,
    named: bool = False,
    refusals: Iterable[int] = (401,),
) -> dict[str, Any]:
    """An operation of the server's own; `named`: its path holds an id, which may be unknown."""
    refused = [*refusals, _EXPECTATION_FAILED, *([404] if named else [])]
    documented: dict[str, Any] = _refusals(refused)
    for status, name in replies.items():
        schema = _schema(name) if name else {"type": "object"}
        documented[str(status)] = {
            "description": "The reply",
            "headers": _REQUEST_ID,
            "content": {_JSON: {"schema": schema}},
        }
    parameters = _path_parameters("{id}") if named else []
    return {"summary": summary, "parameters": parameters, "responses": documented}


def _refusals(statuses: Iterable[int]) -> dict[str, Any]:
    return {
        str(status): {
            "description": "Refused, or failed",
            "headers": _REQUEST_ID | (_RETRY_AFTER if status in {429, 503} else {}),
            "content": {_JSON: {"schema": _schema("ErrorBody")}},
        }
        for status in sorted(statuses)
    }


def _statuses(kind: type[SmolgateError]) -> set[int]:
    """Those of an error and all its leaves."""
    return {
        _EXPECTATION_FAILED,
        *(error.status for error in _tree(kind) if error is not ClientError),
    }


def _tree(kind: type[SmolgateError]) -> Iterator[type[SmolgateError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _tree(below)


def _schema(name: str) -> dict[str, str]:
    return {"$ref": _SCHEMAS + name}


def _header(name: str, meaning: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "description": meaning, "schema": {"type": "string"}}


def _query(name: str, meaning: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": meaning, "schema": schema}


def _path_parameters(path: str) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in ("id", "item_id")
        if f"{{{name}}}" in path
    ]
