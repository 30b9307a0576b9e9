"""Which runs a question is about: those of this process here, those of its neighbours where they are.

In: an `Inquiry` that names a key, or is an operator's and means everybody's. Out: runs as JSON objects; those to be
cancelled are.
"""

from typing import Any

import msgspec
from aiohttp import web

from server.finished_runs import for_its_caller, run_object
from server.keys import FINISHED_RUNS, NEIGHBOURS, SETTINGS, SUPERVISOR
from server.worker_wire import Inquiry
from streaming.failures import RunStopped


def runs_found(app: web.Application, inquiry: Inquiry) -> list[bytes]:
    """What is asked for, of the runs of this worker, as JSON."""
    objects = _listed(app, inquiry) if inquiry.wish == "list" else _one(app, inquiry)
    if not inquiry.everybody:
        objects = [for_its_caller(each) for each in objects]
    return [msgspec.json.encode(each) for each in objects]


async def found_anywhere(app: web.Application, inquiry: Inquiry) -> list[bytes]:
    """The same of all processes; of a single run, where one of them has it."""
    found = runs_found(app, inquiry)
    if (found and inquiry.wish != "list") or (neighbours := app.get(NEIGHBOURS)) is None:
        return found
    return found + await neighbours.found_elsewhere(inquiry)


def _listed(app: web.Application, inquiry: Inquiry) -> list[dict[str, Any]]:
    runner = app[SETTINGS].runner
    runs = app[SUPERVISOR].runs.values()
    found = [run_object(run, runner) for run in runs if inquiry.everybody or run.key == inquiry.key]
    if inquiry.everybody:
        found += app[FINISHED_RUNS].latest(inquiry.ended_most, inquiry.ended_seconds)
    return found


def _one(app: web.Application, inquiry: Inquiry) -> list[dict[str, Any]]:
    key = None if inquiry.everybody else inquiry.key
    run = app[SUPERVISOR].runs.get(inquiry.id)
    if run is not None and key in (run.key, None):
        if inquiry.wish == "cancel":
            app[SUPERVISOR].stop(run, RunStopped("The run was cancelled.", code="cancelled"))
            return [run_object(run, app[SETTINGS].runner)]
        return [run_object(run, app[SETTINGS].runner) | {"timeline": run.timeline.spans()}]
    ended = app[FINISHED_RUNS].find(inquiry.id, key) if inquiry.wish == "get" else None
    return [ended] if ended is not None else []
