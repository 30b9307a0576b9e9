"""The application's resources, each in one `cleanup_ctx` that opens and closes it.

In: the settings on the application. Out: the embedded model, the upstreams, the jail, the MCP servers and the
supervisor under their keys, opened in this order and closed in reverse.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

from aiohttp import web

from server.drain import FAREWELL_SECONDS
from server.idempotency import Replays
from server.keys import (
    AGENTS,
    CODE_IMPORTS,
    EMBEDDED,
    FINISHED_RUNS,
    IDENTITY,
    JAIL_POOL,
    KEY_RING,
    MCP_SERVERS,
    MCP_TOOLS,
    PRESENCE,
    REPLAYS,
    RUNNER,
    SETTINGS,
    STORE,
    STREAMS,
    SUPERVISOR,
    TOOL_DESK,
    UPSTREAM,
    UPSTREAMS,
    WORKER_LINK,
)
from server.presence import Presence
from server.response_keeper import end_lost_response
from server.runner_choice import open_runner
from server.store_address import is_shared_by_nature, make_store
from server.stored_stream import end_lost_stream
from server.upstreams import open_upstreams
from server.worker_link import LinkedEmbedded
from streaming.agent_run import RunMeans
from streaming.cancellation import StopSignal
from streaming.interpreters.confinement import JailLimits
from streaming.interpreters.interpreter_choice import interpreter_maker
from streaming.interpreters.jail_pool import JailPool, JailUnavailable
from streaming.loop_call import wait_on_loop
from streaming.loop_model import LoopModel, ThinkOptions
from streaming.mcp_server import McpUnavailable
from streaming.run import Run
from streaming.run_spec import CalledTool
from streaming.stdout import capture_installed
from streaming.store import StoreFailed
from streaming.supervisor import Limits, Supervisor
from streaming.tool_desk import ToolDesk

log = logging.getLogger("server")


async def embedded_model(app: web.Application) -> AsyncIterator[None]:
    """The embedded model's process, where no upstream is set."""
    if not app[SETTINGS].embedded:
        yield
        return
    link = app.get(WORKER_LINK)
    if link is not None and link.welcome.embedded_base is not None:  # the parent has it, for all
        app[EMBEDDED] = LinkedEmbedded(link, link.welcome.embedded_base)
        yield
        return
    from server.embedded import EmbeddedUpstream

    async with EmbeddedUpstream() as embedded:
        app[EMBEDDED] = embedded
        yield


async def upstreams(app: web.Application) -> AsyncIterator[None]:
    """The sessions to the upstreams."""
    async with open_upstreams(app[SETTINGS], app.get(EMBEDDED)) as opened:
        app[UPSTREAMS] = opened
        app[UPSTREAM] = opened.default.group
        yield


async def jail(app: web.Application) -> AsyncIterator[None]:
    """The jails, where they are wanted and can be had; says in one line what confines code.

    Raises JailUnavailable where they are required and cannot be had.
    """
    settings = app[SETTINGS]
    async with AsyncExitStack() as stack:
        if settings.runner == "ray":
            log.info("jail: %s, on the cluster's workers", settings.jail)
        elif settings.jail == "off":
            log.warning("jail: off; model-written code runs in this process, unconfined")
        else:
            imports = app[CODE_IMPORTS]
            pool = JailPool(
                required=settings.jail == "required",
                warm=settings.warm_jails,
                preload=sorted(imports),
            )
            try:
                app[JAIL_POOL] = await stack.enter_async_context(pool)
            except JailUnavailable as error:
                if settings.jail == "required":
                    raise
                log.warning("jail: %s; model-written code runs in this process, unconfined", error)
            else:
                await _announce(app, stack, pool)
        yield


async def _announce(app: web.Application, stack: AsyncExitStack, pool: JailPool) -> None:
    if app[SETTINGS].jail == "required":
        await pool.ready()
        log.info("%s", pool.layers)
        return

    async def say() -> None:
        try:
            await pool.ready()
        except JailUnavailable as error:
            log.warning("jail: %s", error)
        else:
            log.info("%s", pool.layers)

    saying = asyncio.create_task(say())
    stack.callback(saying.cancel)


async def mcp(app: web.Application) -> AsyncIterator[None]:
    """The MCP servers of agents that have some. Raises McpUnavailable where one cannot be used."""
    if not any(app[MCP_SERVERS].values()):
        yield
        return
    if app[SETTINGS].runner != "thread":
        raise McpUnavailable(
            f"RUNNER is '{app[SETTINGS].runner}', and an agent has MCP servers, which runs away from this "
            "process cannot reach; allowed is 'thread'"
        )
    try:
        from server.mcp_tools import McpTools
    except ImportError:
        raise McpUnavailable("MCP servers need the extra: pip install 'smolgate[mcp]'") from None
    async with McpTools(app[MCP_SERVERS]) as app[MCP_TOOLS]:
        yield


async def store(app: web.Application) -> AsyncIterator[None]:
    """The store, and this process's lease on it. Raises BadStore for one that can never be used."""
    settings = app[SETTINGS]
    app[STORE] = opened = make_store(settings.store)
    try:
        try:
            await opened.open()
        except StoreFailed as error:
            log.warning("store %s: %s What needs it is refused until then", opened.name, error)
        app[PRESENCE] = presence = Presence(
            opened,
            lease_seconds=settings.front_end_seconds,
            days=settings.store_days,
            max_bytes=settings.store_max_bytes,
        )
        presence.ends_lost["chat"] = partial(end_lost_stream, opened)
        presence.ends_lost["response"] = partial(end_lost_response, opened)
        arriving = None
        if opened.exists or is_shared_by_nature(settings.store):
            arriving = asyncio.create_task(presence.arrive_later())
        yield
        if arriving is not None:
            arriving.cancel()
        if streams := app[STREAMS]:  # their runs have ended: these are their last words
            await asyncio.wait(streams, timeout=FAREWELL_SECONDS)
        await presence.leave()
    finally:
        await opened.close()


async def supervisor(app: web.Application) -> AsyncIterator[None]:
    """The supervisor and its runner; on the way out every run is stopped."""
    settings = app[SETTINGS]
    limits = Limits(
        max_running=settings.max_running,
        max_queued=settings.max_queued,
        max_per_key=settings.max_per_key,
        queue_seconds=settings.queue_seconds,
        run_seconds=settings.run_seconds,
        max_paused=settings.max_paused,
    )
    app[REPLAYS] = Replays(settings.idempotency_seconds)
    app[TOOL_DESK] = ToolDesk(lambda: app[SUPERVISOR], wait_seconds=settings.tool_result_seconds)
    async with open_runner(app, run_means(app)) as app[RUNNER]:
        app[SUPERVISOR] = Supervisor(
            app[RUNNER],
            limits,
            admission=app.get(WORKER_LINK),
            on_end=partial(_on_run_end, app),
            now=app[IDENTITY].now,
        )
        with capture_installed():
            yield
            await app[SUPERVISOR].drain(0)


def _on_run_end(app: web.Application, run: Run) -> None:
    app[FINISHED_RUNS].keep(run)
    app[KEY_RING].add_tokens(run.key, run.prompt_tokens + run.completion_tokens)


def run_means(app: web.Application) -> RunMeans:
    """What the runs of this application share. Call it on the event loop."""
    settings = app[SETTINGS]
    loop = asyncio.get_running_loop()
    route = app[UPSTREAMS].default
    starts_open = route.options[route.group.members[0].name].starts_open
    think = ThinkOptions(settings.think_tags, starts_open)

    def make_model(**options: Any) -> LoopModel:
        return LoopModel(app[UPSTREAM], loop=loop, think=think, **options)

    def ask_client(run_id: str, call: CalledTool, *, together: int, stop: StopSignal) -> str:
        return wait_on_loop(app[TOOL_DESK].ask(run_id, call, together=together), loop, stop)

    return RunMeans(
        agents=app[AGENTS],
        make_model=make_model,
        make_interpreter=interpreter_maker(
            app.get(JAIL_POOL),
            step_seconds=settings.step_seconds,
            limits=JailLimits(memory_bytes=settings.jail_memory_bytes),
        ),
        think=think,
        embedded=settings.embedded,
        ask_client=ask_client,
        **({"tools_of": app[MCP_TOOLS].of} if MCP_TOOLS in app else {}),
    )
