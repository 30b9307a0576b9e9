"""`GET /v1/runs`, `GET /v1/runs/{id}`, `POST /v1/runs/{id}/cancel`: what runs now, and an end to it.

A run's id is the id of its chat completion, the first of them where it paused. A caller sees the runs of its own
key; one that has ended can be asked for a while longer. An operator sees everybody's: one of them by its id, and all
with `scope=all`, the ended ones too.
"""

from typing import Any, Literal

import msgspec
from aiohttp import web

from server.auth import allow_operator, is_operator
from server.finished_runs import MAX_KEPT
from server.keys import API_KEY
from server.run_ids import run_id_of
from server.run_lookup import found_anywhere
from server.worker_wire import Inquiry
from streaming.failures import InvalidRequest, RunNotFound

SCOPES = ("own", "all")
ENDED_BY_DEFAULT = 100


async def list_runs(request: web.Request) -> web.Response:
    """The caller's runs, or everybody's. Raises InvalidRequest, and Forbidden where that is not the caller's to see."""
    if _scope(request) == "own":
        found = await found_anywhere(request.app, Inquiry(0, "list", request.get(API_KEY, "")))
        return _json({"object": "list", "data": [msgspec.Raw(run) for run in found]})
    allow_operator(request)
    return _json({"object": "list", "data": await everybodys_runs(request.app, _limit(request))})


async def everybodys_runs(
    app: web.Application, most: int, seconds: float = 1e9
) -> list[dict[str, Any]]:
    """All that run, then at most so many of those that ended within so many seconds; the newest first."""
    inquiry = Inquiry(0, "list", everybody=True, ended_most=most, ended_seconds=seconds)
    found = [msgspec.json.decode(run) for run in await found_anywhere(app, inquiry)]
    running = [run for run in found if run["ended"] is None]
    ended = [run for run in found if run["ended"] is not None]
    running.sort(key=lambda run: run["created"], reverse=True)
    ended.sort(key=lambda run: run["ended"], reverse=True)
    return running + ended[:most]


async def get_run(request: web.Request) -> web.Response:
    """One run with its timeline, also after its end. Raises RunNotFound."""
    return _json(msgspec.Raw(await _find(request, "get")))


async def cancel_run(request: web.Request) -> web.Response:
    """Stop a run; its readers get an error event. Raises RunNotFound."""
    return _json(msgspec.Raw(await _find(request, "cancel")))


async def _find(request: web.Request, wish: Literal["get", "cancel"]) -> bytes:
    run_id = run_id_of(request.match_info["id"])
    inquiry = Inquiry(0, wish, request.get(API_KEY, ""), run_id, everybody=is_operator(request))
    found = await found_anywhere(request.app, inquiry)
    if not found:
        raise RunNotFound("There is no such run, or it has ended.", param="id")
    return found[0]


def _scope(request: web.Request) -> str:
    scope = request.query.get("scope", "own")
    if scope not in SCOPES:
        raise InvalidRequest("'scope' must be 'own' or 'all'.", param="scope")
    return scope


def _limit(request: web.Request) -> int:
    text = request.query.get("limit", str(ENDED_BY_DEFAULT))
    if not (text.isascii() and text.isdigit() and len(text) < 5 and int(text) <= MAX_KEPT):
        raise InvalidRequest(f"'limit' must be a number from 0 to {MAX_KEPT}.", param="limit")
    return int(text)


def _json(value: Any) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")
