"""The application: its routes, its middlewares and its parts.

In: settings and agents. Out: an aiohttp Application, ready to be run.
"""

from collections.abc import Mapping
from functools import partial

from aiohttp import web

from server import (
    chat,
    health,
    models,
    openapi,
    parts,
    relay_routes,
    run_events,
    runs,
    stream_check,
    stream_routes,
)
from server.api_keys import load_keys
from server.auth import auth_middleware
from server.cors import allow_origins
from server.finished_runs import FinishedRuns
from server.identity import Identity
from server.image_fetch import image_fetch
from server.key_ring import KeyRing
from server.keys import (
    AGENTS,
    CODE_IMPORTS,
    FINISHED_RUNS,
    IDENTITY,
    KEY_RING,
    MCP_SERVERS,
    OPEN_FILES,
    RELAYS,
    REQUEST_COUNTS,
    RESPONSES,
    RUN_WATCH,
    SETTINGS,
    STREAMS,
)
from server.loop_lag import loop_lag
from server.page_files import serve_page
from server.request_counts import RequestCounts
from server.request_log import request_log_middleware
from server.response_api import RESPONSE_ROUTES
from server.run_watch import RunWatch
from server.runs_page import page_or_list
from server.settings import Settings
from streaming.agent_context import AgentFactory


def create_app(
    settings: Settings, agents: Mapping[str, AgentFactory], *, identity: Identity | None = None
) -> web.Application:
    """An application that serves these agents and the settings' upstream.

    `identity` gives runs their ids and times; a test that holds bytes against a file has its own.
    """
    app = web.Application(
        middlewares=[request_log_middleware, auth_middleware],
        client_max_size=settings.max_body_bytes,
    )
    app[SETTINGS] = settings
    app[KEY_RING] = KeyRing(
        partial(load_keys, settings.api_keys, settings.api_keys_file, settings.operator_keys)
    )
    allow_origins(app, settings.cors_origins)
    app[IDENTITY] = identity or Identity()
    app[AGENTS] = dict(agents)
    app[CODE_IMPORTS] = getattr(agents, "code_imports", frozenset())
    app[MCP_SERVERS] = getattr(agents, "mcp_servers", {})
    app[RELAYS] = set()
    app[STREAMS] = set()
    app[RESPONSES] = {}
    app[REQUEST_COUNTS] = RequestCounts()
    app[FINISHED_RUNS] = FinishedRuns(settings.runner)
    app[RUN_WATCH] = RunWatch(partial(runs.everybodys_runs, app))
    app[OPEN_FILES] = set()
    app.cleanup_ctx.extend((loop_lag, image_fetch))
    app.cleanup_ctx.extend(
        (
            parts.embedded_model,
            parts.upstreams,
            parts.jail,
            parts.mcp,
            parts.store,
            parts.supervisor,
        )
    )
    for prefix in ("", "/v1"):
        app.router.add_get(f"{prefix}/healthz", health.healthz)
        app.router.add_get(f"{prefix}/readyz", health.readyz)
        app.router.add_get(f"{prefix}/metrics", _metrics)
        app.router.add_get(f"{prefix}/openapi.json", openapi.openapi)
        app.router.add_get(f"{prefix}/stream-check", stream_check.stream_check)
        app.router.add_get(f"{prefix}/models", models.list_models)
        app.router.add_get(f"{prefix}/models/{{id:.+}}", models.get_model)
        app.router.add_post(f"{prefix}/chat/completions", chat.chat_completions)
        app.router.add_get(f"{prefix}/runs", runs.list_runs if prefix else page_or_list())
        app.router.add_get(f"{prefix}/runs/events", run_events.run_events)
        app.router.add_get(f"{prefix}/runs/{{id}}", runs.get_run)
        app.router.add_post(f"{prefix}/runs/{{id}}/cancel", runs.cancel_run)
        for path in ("/stream", "/stream/{id}"):
            app.router.add_get(prefix + path, stream_routes.resume_stream, allow_head=False)
            app.router.add_delete(prefix + path, stream_routes.delete_stream)
        app.router.add_post(f"{prefix}/streams/lookup", stream_routes.lookup_streams)
        # Before the relay's: what is asked of an upstream's model goes on to it.
        for method, path, handler, _ in RESPONSE_ROUTES:
            app.router.add_route(method, prefix + path, handler)
        for method, path in relay_routes.ROUTES:
            app.router.add_route(method, prefix + path, relay_routes.relay_route)
    if settings.page:
        serve_page(app)
    return app


async def _metrics(request: web.Request) -> web.Response:
    from server.metrics import metrics  # Prometheus' library is for those who scrape

    return await metrics(request)
