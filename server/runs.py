"""`GET /v1/runs`, `GET /v1/runs/{id}`, `POST /v1/runs/{id}/cancel`: what runs now, and an end to it.

A run's id is the id of its chat completion, the first of them where it paused. A caller sees the runs of its own
key; one that has ended can be asked for a while longer.
"""

from typing import Any, Literal

import msgspec
from aiohttp import web

from server.finished_runs import run_object
from server.keys import API_KEY, FINISHED_RUNS, NEIGHBOURS, SUPERVISOR
from server.run_ids import run_id_of
from server.worker_wire import Inquiry
from streaming.failures import RunNotFound, RunStopped


async def list_runs(request: web.Request) -> web.Response:
    """The caller's runs, those of other processes too."""
    inquiry = Inquiry(0, "list", request.get(API_KEY, ""))
    found = runs_found(request.app, inquiry) + await _elsewhere(request, inquiry)
    return _json({"object": "list", "data": [msgspec.Raw(run) for run in found]})


async def get_run(request: web.Request) -> web.Response:
    """One run, also after its end. Raises RunNotFound."""
    return _json(msgspec.Raw(await _find(request, "get")))


async def cancel_run(request: web.Request) -> web.Response:
    """Stop a run; its readers get an error event. Raises RunNotFound."""
    return _json(msgspec.Raw(await _find(request, "cancel")))


def runs_found(app: web.Application, inquiry: Inquiry) -> list[bytes]:
    """What is asked for, of the runs of this worker, as JSON; those to be cancelled are."""
    found = [run for run in app[SUPERVISOR].runs.values() if run.key == inquiry.key]
    if inquiry.wish != "list":
        found = [run for run in found if run.id == inquiry.id]
    if inquiry.wish == "cancel":
        for run in found:
            app[SUPERVISOR].stop(run, RunStopped("The run was cancelled.", code="cancelled"))
    objects = [run_object(run) for run in found]
    if inquiry.wish == "get" and (ended := app[FINISHED_RUNS].find(inquiry.id, inquiry.key)):
        objects = [ended]
    return [msgspec.json.encode(each) for each in objects]


async def _find(request: web.Request, wish: Literal["get", "cancel"]) -> bytes:
    inquiry = Inquiry(0, wish, request.get(API_KEY, ""), run_id_of(request.match_info["id"]))
    found = runs_found(request.app, inquiry) or await _elsewhere(request, inquiry)
    if not found:
        raise RunNotFound("There is no such run, or it has ended.", param="id")
    return found[0]


async def _elsewhere(request: web.Request, inquiry: Inquiry) -> list[bytes]:
    """What other workers, or front ends, find."""
    neighbours = request.app.get(NEIGHBOURS)
    return await neighbours.found_elsewhere(inquiry) if neighbours is not None else []


def _json(value: Any) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")
