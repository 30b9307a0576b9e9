"""Where runs live: the runner that the settings ask for, opened and closed.

In: the application, and what its runs share. Out: a runner. What a run away from this process gets to
see of its environment is here, too: none of smolgate's own variables, and none that holds a secret. Only the
runner that is used is imported.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from aiohttp import web

from server.keys import CODE_IMPORTS, JAIL_POOL, SETTINGS, TOOL_DESK
from server.settings import Settings, secrets_of
from server.settings_table import SETTINGS as TABLE
from streaming.agent_run import RunMeans
from streaming.interpreters.confinement import JailLimits
from streaming.runners.thread import ThreadRunner
from streaming.supervisor import Runner

if TYPE_CHECKING:
    from streaming.runners.process import ProcessRunner
    from streaming.runners.ray import RayRunner
    from streaming.runners.run_wire import RunSetup

LOADER = "server.registry:factories_of"
# Read by the traces' SDK in this process; the headers hold a credential.
_TRACING = "OTEL_EXPORTER_"


@asynccontextmanager
async def open_runner(app: web.Application, means: RunMeans) -> AsyncIterator[Runner]:
    settings = app[SETTINGS]
    if settings.runner == "process":
        async with _process_runner(app, means) as runner:
            yield runner
    elif settings.runner == "ray":
        async with _ray_runner(app, means) as cluster:
            yield cluster
    else:
        threads = ThreadRunner(means, max_threads=settings.max_running + settings.max_paused)
        try:
            yield threads
        finally:
            threads.close()


def _process_runner(app: web.Application, means: RunMeans) -> "ProcessRunner":
    from streaming.runners.answers import client_answerer
    from streaming.runners.process import ProcessRunner
    from streaming.runners.run_process import RunLimits
    from streaming.runners.run_zygote import RunZygoteSettings

    settings = app[SETTINGS]
    pool = app.get(JAIL_POOL)
    limits = RunLimits(settings.process_memory_bytes, settings.process_cpu_seconds)
    return ProcessRunner(
        means,
        _setup(app, means, jail="off" if pool is None else "server"),
        RunZygoteSettings(LOADER, dict(settings.agents), limits),
        environment=environment_of_runs(settings),
        jails=pool,
        answerers={"client": client_answerer(app[TOOL_DESK].ask)},
    )


def _ray_runner(app: web.Application, means: RunMeans) -> "RayRunner":
    from streaming.runners.answers import client_answerer
    from streaming.runners.ray import RayRunner
    from streaming.runners.ray_wire import DriverSettings

    settings = app[SETTINGS]
    assert settings.ray_address is not None
    assert settings.ray_auth_token is not None
    host, port = settings.ray_listen
    return RayRunner(
        means,
        _setup(app, means, jail="off" if settings.jail == "off" else "own"),
        DriverSettings(
            address=settings.ray_address,
            loader=LOADER,
            agents=dict(settings.agents),
            options={agent: dict(given) for agent, given in settings.ray_options.items()},
            listen_host=host,
            listen_port=port,
        ),
        environment={
            **environment_of_runs(settings),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": settings.ray_auth_token,
            "RAY_USAGE_STATS_ENABLED": "0",
            # How often Ray tries to reach a head; the driver itself is started again and again.
            "RAY_NUM_REDIS_GET_RETRIES": "2",
        },
        queue_seconds=settings.queue_seconds,
        answerers={"client": client_answerer(app[TOOL_DESK].ask)},
    )


def _setup(app: web.Application, means: RunMeans, *, jail: str) -> "RunSetup":
    from streaming.runners.run_wire import RunSetup

    settings, imports = app[SETTINGS], app[CODE_IMPORTS]
    return RunSetup(
        model=settings.model,
        embedded=means.embedded,
        think_tags=means.think.tag_names,
        think_starts_open=means.think.starts_open,
        jail=jail,
        jail_required=settings.jail == "required",
        jail_limits=JailLimits(memory_bytes=settings.jail_memory_bytes),
        step_seconds=settings.step_seconds,
        code_imports=tuple(sorted(imports)),
    )


def environment_of_runs(settings: Settings) -> dict[str, str]:
    """This process's environment without what smolgate reads of it, and without its secrets.

    Where Python finds code is told anew, since this process may have been started elsewhere.
    """
    own = {"PYTHONPATH", *(name for setting in TABLE for name in setting.names)}
    secrets = secrets_of(settings)
    return {
        name: value
        for name, value in os.environ.items()
        if name not in own
        and not name.startswith(_TRACING)
        and not any(secret in value for secret in secrets)
    }
