"""`GET /v1/runs`, `GET /v1/runs/{id}`, `POST /v1/runs/{id}/cancel`: what runs now, and an end to it.

A run's id is the id of its chat completion, the first of them where it paused. A caller sees the runs of its own
key; one that has ended can be asked for a while longer.
"""

from typing import Any

import msgspec
from aiohttp import web

from server.finished_runs import run_object
from server.keys import API_KEY, FINISHED_RUNS, SUPERVISOR
from server.run_ids import run_id_of
from streaming.failures import RunNotFound, RunStopped
from streaming.run import Run


async def list_runs(request: web.Request) -> web.Response:
    runs = [run for run in request.app[SUPERVISOR].runs.values() if _is_callers(request, run)]
    return _json({"object": "list", "data": [run_object(run) for run in runs]})


async def get_run(request: web.Request) -> web.Response:
    """One run, also after its end. Raises RunNotFound."""
    ended = request.app[FINISHED_RUNS].find(request.match_info["id"], request.get(API_KEY, ""))
    return _json(ended if ended is not None else run_object(_run_of(request)))


async def cancel_run(request: web.Request) -> web.Response:
    """Stop a run; its readers get an error event. Raises RunNotFound."""
    run = _run_of(request)
    request.app[SUPERVISOR].stop(run, RunStopped("The run was cancelled.", code="cancelled"))
    return _json(run_object(run))


def _run_of(request: web.Request) -> Run:
    run = request.app[SUPERVISOR].runs.get(run_id_of(request.match_info["id"]))
    if run is None or not _is_callers(request, run):
        raise RunNotFound("There is no such run, or it has ended.", param="id")
    return run


def _is_callers(request: web.Request, run: Run) -> bool:
    caller: str = request.get(API_KEY, "")
    return run.key == caller


def _json(value: Any) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")
