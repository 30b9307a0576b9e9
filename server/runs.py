"""`GET /v1/runs`, `GET /v1/runs/{id}`, `POST /v1/runs/{id}/cancel`: what runs now, and an end to it.

A run's id is the id of its chat completion. A caller sees the runs of its own key.
"""

import time
from typing import Any, Literal

import msgspec
from aiohttp import web

from server.keys import API_KEY, SUPERVISOR, WORKER_LINK
from server.worker_wire import Inquiry
from streaming.failures import RunNotFound, RunStopped
from streaming.run import Run


async def list_runs(request: web.Request) -> web.Response:
    """The caller's runs, those of other workers too."""
    key = request.get(API_KEY, "")
    runs = [run_object(run) for run in _runs_of(request.app, key)]
    return _json({"object": "list", "data": runs + await _elsewhere(request, "list")})


async def get_run(request: web.Request) -> web.Response:
    """One run that has not ended. Raises RunNotFound."""
    return _json(await _find(request, "get"))


async def cancel_run(request: web.Request) -> web.Response:
    """Stop a run; its readers get an error event. Raises RunNotFound."""
    return _json(await _find(request, "cancel"))


def runs_found(app: web.Application, inquiry: Inquiry) -> list[dict[str, Any]]:
    """What another worker asks for, of the runs of this one; those to be cancelled are."""
    found = _runs_of(app, inquiry.key)
    if inquiry.wish != "list":
        found = [run for run in found if run.id == inquiry.run_id]
    if inquiry.wish == "cancel":
        for run in found:
            app[SUPERVISOR].stop(run, RunStopped("The run was cancelled.", code="cancelled"))
    return [run_object(run) for run in found]


def run_object(run: Run) -> dict[str, Any]:
    """A run as JSON; times in seconds since the epoch, `seconds` since it was started."""
    return {
        "id": run.id,
        "object": "run",
        "agent": run.spec.agent,
        "status": run.state,
        "created": int(run.created),
        "started": int(run.started) if run.started else None,
        "seconds": round(time.time() - run.started, 3) if run.started else 0.0,
        "step": run.steps,
        "usage": {
            "prompt_tokens": run.prompt_tokens,
            "completion_tokens": run.completion_tokens,
            "total_tokens": run.prompt_tokens + run.completion_tokens,
        },
        "outcome": run.outcome,
    }


async def _find(request: web.Request, wish: Literal["get", "cancel"]) -> Any:
    run_id = request.match_info["id"]
    inquiry = Inquiry(0, wish, request.get(API_KEY, ""), run_id)
    found: list[Any] = runs_found(request.app, inquiry) or await _elsewhere(request, wish, run_id)
    if not found:
        raise RunNotFound("There is no such run, or it has ended.", param="id")
    return found[0]


async def _elsewhere(
    request: web.Request, wish: Literal["list", "get", "cancel"], run_id: str = ""
) -> list[Any]:
    """What other workers find."""
    link = request.app.get(WORKER_LINK)
    if link is None:
        return []
    found = await link.runs_elsewhere(wish, request.get(API_KEY, ""), run_id)
    return [msgspec.Raw(run) for run in found]


def _runs_of(app: web.Application, key: str) -> list[Run]:
    return [run for run in app[SUPERVISOR].runs.values() if run.key == key]


def _json(value: Any) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")
