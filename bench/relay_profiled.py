"""The gateway as it is, with routes that profile its event loop's thread.

`python -m bench.relay_profiled [flags of the server]`: POST /profile/start, then POST /profile/stop, which
answers the rows of cProfile: `[where, calls, own seconds, whole seconds]`, the costliest first. POST /reference
runs the reference loop, REFERENCE_TURNS of it.
"""

import asyncio
import cProfile
import os
import pstats
import sys
from pathlib import Path

from aiohttp import web

from bench.reference_loop import loop
from server.__main__ import _loop_factory
from server.listen import say_what_is_missing, serve
from server.log_formats import start_logging
from server.registry import load_agents
from server.settings import read_settings, secrets_of

Row = tuple[str, int, float, float]
REFERENCE_TURNS = 5000


def rows_of(profile: cProfile.Profile) -> list[Row]:
    found = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    rows = [
        (_where(*place), calls, own, whole) for place, (_, calls, own, whole, _) in found.items()
    ]
    return sorted(rows, key=lambda row: -row[2])


def _where(path: str, line: int, name: str) -> str:
    return f"{'/'.join(Path(path).parts[-2:])}:{line} {name}" if line else name


def add_profile(app: web.Application) -> None:
    profile = cProfile.Profile()

    async def start(_request: web.Request) -> web.Response:
        profile.clear()
        profile.enable()
        return web.Response()

    async def stop(_request: web.Request) -> web.Response:
        profile.disable()
        return web.json_response(rows_of(profile))

    async def reference(_request: web.Request) -> web.Response:
        loop(REFERENCE_TURNS)
        return web.Response()

    app.router.add_post("/reference", reference)
    app.router.add_post("/profile/start", start)
    app.router.add_post("/profile/stop", stop)


if __name__ == "__main__":
    settings = read_settings(sys.argv[1:], os.environ)
    start_logging(settings.log_level, settings.log_format, secrets_of(settings))
    say_what_is_missing(settings)
    agents = load_agents(settings.agents, embedded=settings.embedded)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(serve(settings, agents, also=add_profile))
