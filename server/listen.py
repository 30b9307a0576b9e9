"""Listens, says where, and stops in good order.

In: settings and agents. Out: a server until SIGTERM or SIGINT; then it admits nothing more, lets runs
finish for `DRAIN_SECONDS`, ends them, and returns. A second signal ends the process at once.
"""

import asyncio
import gc
import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Callable, Mapping

from aiohttp import web

from server.app import create_app
from server.drain import drain
from server.http_runner import HttpRunner
from server.keys import KEY_RING
from server.settings import Settings
from server.slow_clients import SlowClients
from server.upstream_settings import BadEntry
from streaming.agent_context import AgentFactory

log = logging.getLogger("server")

MAX_C_INT = 2**31 - 1
SIGNALS = (signal.SIGTERM, signal.SIGINT)


async def serve(
    settings: Settings,
    agents: Mapping[str, AgentFactory],
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
    loop.add_signal_handler(signal.SIGHUP, _reload, app)
    _say_what_is_missing(settings)
    _warn_if_open(app, settings)
    await runner.setup()
    try:
        site = _site(runner, settings)
        await site.start()
        give_up_dead_peers(site, settings.stall_seconds)
        assert runner.server is not None
        async with SlowClients(runner.server, settings.head_seconds):
            log.info("listening on %s", _address(runner, settings))
            _spare_the_collector()
            await told.wait()
            log.info("stopping; a second signal stops at once")
            await drain(app, settings.drain_seconds)
    finally:
        await runner.cleanup()


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
    return web.TCPSite(runner, settings.host, settings.port, backlog=1024)


def _address(runner: web.AppRunner, settings: Settings) -> str:
    if settings.unix_socket is not None:
        return f"unix:{settings.unix_socket}"
    host, port = runner.addresses[0][:2]
    return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"


def _say_what_is_missing(settings: Settings) -> None:
    if settings.embedded:
        log.warning(
            "UPSTREAM_OPENAI_BASE is not set: the embedded model %s serves as the upstream",
            settings.model,
        )
    elif settings.upstream_base is not None and settings.token is None:
        log.warning("HF_TOKEN is not set: the upstream is called without a token")


def _warn_if_open(app: web.Application, settings: Settings) -> None:
    if app[KEY_RING].is_set or settings.unix_socket is not None or _is_loopback(settings.host):
        return
    log.warning(
        "NO API KEYS: everybody who reaches %s port %d can run agents and spend the upstream's tokens; "
        "set API_KEYS or API_KEYS_FILE, or listen on 127.0.0.1",
        settings.host,
        settings.port,
    )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
