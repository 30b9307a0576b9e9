"""Listens, says where, and stops in good order.

In: settings and agents. Out: a server until SIGTERM or SIGINT; then it admits nothing more, lets runs
finish for `DRAIN_SECONDS`, ends them, and returns. A second signal ends the process at once.
"""

import asyncio
import gc
import logging
import os
import signal
import socket
from collections.abc import Callable, Mapping
from typing import Protocol

from aiohttp import web

from server.api_keys import load_keys
from server.app import create_app
from server.drain import drain
from server.http_runner import HttpRunner
from server.keys import KEY_RING
from server.listening_sockets import BACKLOG, UNIX_SOCKET_MODE, is_loopback
from server.settings import Settings
from server.slow_clients import SlowClients
from server.upstream_settings import BadEntry
from streaming.agent_context import AgentFactory

log = logging.getLogger("server")

MAX_C_INT = 2**31 - 1
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Post(Protocol):
    """Where a server listens, and until when. Opened before the application starts."""

    async def open(self, app: web.Application) -> None: ...

    async def listen(self, runner: web.AppRunner) -> None:
        """Raises OSError where it cannot."""

    async def stay(self, runner: web.AppRunner, told: asyncio.Event) -> None:
        """Returns when serving is over; `told` is the signal to stop."""

    async def close(self) -> None: ...


class OwnPost:
    """The only process: it listens where the settings say, until it is told to stop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def open(self, app: web.Application) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, _reload, app)
        say_what_is_missing(self._settings)

    async def listen(self, runner: web.AppRunner) -> None:
        await _site(runner, self._settings).start()
        if self._settings.unix_socket is not None:
            os.chmod(self._settings.unix_socket, UNIX_SOCKET_MODE)
        log.info("listening on %s", _address(runner, self._settings))

    async def stay(self, runner: web.AppRunner, told: asyncio.Event) -> None:
        await told.wait()
        log.info("stopping; a second signal stops at once")

    async def close(self) -> None:
        pass


async def serve(
    settings: Settings,
    agents: Mapping[str, AgentFactory],
    post: "Post | None" = None,
    *,
    also: Callable[[web.Application], None] | None = None,
) -> None:
    """Serve until told to stop; `also` may add to the application. Raises OSError where it cannot listen."""
    app = create_app(settings, agents)
    if also is not None:
        also(app)
    runner = HttpRunner(app)
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in SIGNALS:
        loop.add_signal_handler(number, _on_signal, told)
    post = post or OwnPost(settings)
    await post.open(app)
    try:
        await runner.setup()
        await post.listen(runner)
        for site in runner.sites:
            give_up_dead_peers(site, settings.stall_seconds)
        assert runner.server is not None
        async with SlowClients(runner.server, settings.head_seconds):
            _spare_the_collector()
            await post.stay(runner, told)
            await drain(app, settings.drain_seconds)
    finally:
        await runner.cleanup()
        await post.close()


def _spare_the_collector() -> None:
    """What is loaded now stays: the collector need not look at it again and again.

    Requests make few cycles, so it may also wait for more of them: a quarter of a small request's CPU.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


def give_up_dead_peers(site: web.BaseSite, seconds: float) -> None:
    """Let the kernel end connections whose peer has acknowledged nothing for so long (Linux).

    Accepted sockets inherit it from the listening one, which saves setting it for every stream.
    """
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    milliseconds = min(int(seconds * 1000), MAX_C_INT)
    server = getattr(site, "_server", None)  # aiohttp gives no other way to the sockets
    for listening in server.sockets if server is not None and option is not None else ():
        if listening.family != socket.AF_UNIX:
            listening.setsockopt(socket.IPPROTO_TCP, option, milliseconds)


def _on_signal(told: asyncio.Event) -> None:
    if told.is_set():
        logging.shutdown()
        os._exit(1)
    told.set()


def _reload(app: web.Application) -> None:
    """Read the API keys again; what cannot work changes nothing."""
    try:
        count = app[KEY_RING].reload()
    except BadEntry as error:
        log.error("API_KEYS_FILE%s; the keys stay as they were", error)
    else:
        log.info("API keys read again: %d", count)


def _site(runner: web.AppRunner, settings: Settings) -> web.BaseSite:
    if settings.unix_socket is not None:
        return web.UnixSite(runner, settings.unix_socket)
    return web.TCPSite(runner, settings.host, settings.port, backlog=BACKLOG)


def _address(runner: web.AppRunner, settings: Settings) -> str:
    if settings.unix_socket is not None:
        return f"unix:{settings.unix_socket}"
    host, port = runner.addresses[0][:2]
    return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"


def say_what_is_missing(settings: Settings) -> None:
    if settings.embedded:
        log.warning(
            "UPSTREAM_OPENAI_BASE is not set: the embedded model %s serves as the upstream",
            settings.model,
        )
    elif settings.upstream_base is not None and settings.token is None:
        log.warning("HF_TOKEN is not set: the upstream is called without a token")
    if settings.unix_socket is not None or is_loopback(settings.host):
        return
    if load_keys(settings.api_keys, settings.api_keys_file):
        return
    log.warning(
        "NO API KEYS: everybody who reaches %s port %d can run agents and spend the upstream's tokens; "
        "set API_KEYS or API_KEYS_FILE, or listen on 127.0.0.1",
        settings.host,
        settings.port,
    )
