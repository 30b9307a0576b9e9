"""The application: its routes, its middlewares, and who owns what.

In: settings and, for tests, parts to use instead of the real ones. Out: an aiohttp Application; every
resource lives in one `cleanup_ctx`, opened in order and closed in reverse.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Any

from aiohttp import web

from server import chat, health, models, relay_routes
from server.auth import auth_middleware
from server.errors import error_middleware
from server.keys import AGENTS, EMBEDDED, SETTINGS, SUPERVISOR, UPSTREAM
from server.request_log import request_log_middleware
from server.settings import Settings
from streaming.agent_context import AgentFactory
from streaming.agent_run import RunMeans
from streaming.cancellation import StopSignal
from streaming.interpreters.inline import InlineInterpreter
from streaming.loop_model import LoopModel, ThinkOptions
from streaming.runners.thread import ThreadRunner
from streaming.stdout import capture_installed
from streaming.supervisor import Limits, Supervisor
from streaming.upstream import Target, open_upstream

# A request that comes while the embedded model is still being loaded waits for it.
EMBEDDED_WAIT_SECONDS = 30.0


def create_app(settings: Settings, agents: Mapping[str, AgentFactory]) -> web.Application:
    """An application that serves these agents and the settings' upstream."""
    app = web.Application(
        middlewares=[request_log_middleware, error_middleware, auth_middleware],
        client_max_size=settings.max_body_bytes,
    )
    app[SETTINGS] = settings
    app[AGENTS] = dict(agents)
    if settings.embedded:
        app.cleanup_ctx.append(_embedded)
    app.cleanup_ctx.extend((_upstream, _supervisor))
    for prefix in ("", "/v1"):
        app.router.add_get(f"{prefix}/healthz", health.healthz)
        app.router.add_get(f"{prefix}/readyz", health.readyz)
        app.router.add_get(f"{prefix}/models", models.list_models)
        app.router.add_get(f"{prefix}/models/{{id:.+}}", models.get_model)
        app.router.add_post(f"{prefix}/chat/completions", chat.chat_completions)
        for path in relay_routes.PATHS:
            app.router.add_post(f"{prefix}{path}", partial(relay_routes.relay_route, path))
    return app


async def _embedded(app: web.Application) -> AsyncIterator[None]:
    from server.embedded import EmbeddedUpstream

    async with EmbeddedUpstream() as embedded:
        app[EMBEDDED] = embedded
        yield


async def _upstream(app: web.Application) -> AsyncIterator[None]:
    settings = app[SETTINGS]

    def target() -> Target:
        base_url = settings.upstream_base or app[EMBEDDED].base_url
        return Target(base_url, settings.token, settings.model)

    embedded = app.get(EMBEDDED)
    wait_ready = partial(embedded.wait_ready, EMBEDDED_WAIT_SECONDS) if embedded else None
    async with open_upstream(target, wait_ready=wait_ready) as upstream:
        app[UPSTREAM] = upstream
        yield


async def _supervisor(app: web.Application) -> AsyncIterator[None]:
    settings = app[SETTINGS]
    runner = ThreadRunner(run_means(app), max_threads=settings.max_running)
    app[SUPERVISOR] = Supervisor(
        runner,
        Limits(
            max_running=settings.max_running,
            max_queued=settings.max_queued,
            queue_seconds=settings.queue_seconds,
            run_seconds=settings.run_seconds,
        ),
    )
    with capture_installed():
        yield
        await app[SUPERVISOR].drain(0)
        runner.close()


def run_means(app: web.Application) -> RunMeans:
    """What the runs of this application share. Call it on the event loop."""
    settings = app[SETTINGS]
    loop = asyncio.get_running_loop()
    think = ThinkOptions(settings.think_tags, settings.think_starts_open)

    def make_model(**options: Any) -> LoopModel:
        return LoopModel(app[UPSTREAM], loop=loop, think=think, **options)

    def make_interpreter(
        authorized_imports: Any, *, on_print: Any, stop: StopSignal, **options: Any
    ) -> InlineInterpreter:
        return InlineInterpreter(
            authorized_imports, on_print=on_print, check_stop=stop.check, **options
        )

    return RunMeans(
        agents=app[AGENTS],
        make_model=make_model,
        make_interpreter=make_interpreter,
        think=think,
        embedded=settings.embedded,
    )
