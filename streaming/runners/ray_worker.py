"""What a Ray worker runs: one agent run, its events the batches of a generator.

In: where its server listens, and a token that is good for one run, once. Out: batches of events. Everything
else (what to run, model calls, the stop) goes over a connection of its own to the server, which holds
the credentials. Ray is told never to run it again, and could not: the token is spent.
"""

import asyncio
import logging
import socket
import threading
from collections.abc import Iterator
from functools import lru_cache

from streaming.cancellation import StopSignal
from streaming.events import Failure
from streaming.interpreters.jail_pool import JailPool, JailUnavailable
from streaming.interpreters.jail_process import JailSource
from streaming.runners.event_batches import EventBatches
from streaming.runners.far_agent_run import carry_out
from streaming.runners.run_wire import WIRE_VERSION, Begin, Hello, Left, RunSetup
from streaming.runners.run_zygote import load_agents
from streaming.runners.server_line import ServerLine
from streaming.stdout import capture_installed

log = logging.getLogger(__name__)

_CONNECT_SECONDS = 10.0
_JAIL_BOOT_SECONDS = 30.0
# A machine that is gone without a word is noticed after about five seconds.
_KEEPALIVE = (
    (socket.TCP_KEEPIDLE, 2),
    (socket.TCP_KEEPINTVL, 1),
    (socket.TCP_KEEPCNT, 3),
)


def run_agent(
    host: str, port: int, token: str, loader: str, agents: dict[str, str]
) -> Iterator[bytes]:
    """A generator for Ray. Yields nothing where the server does not want this run (any more)."""
    stop = StopSignal()
    link = socket.create_connection((host, port), timeout=_CONNECT_SECONDS)
    link.settimeout(None)
    keep_alive(link)
    line = ServerLine(link, stop)
    line.send(Hello(token, WIRE_VERSION))
    if (begin := line.begin()) is None:
        return
    batches = EventBatches(stop)
    line.flush = batches.flush
    work = threading.Thread(
        target=_carry_out, args=(line, begin, loader, agents, stop, batches), daemon=True
    )
    work.start()
    yield from batches.batches()
    line.send(Left())
    line.close()


def keep_alive(link: socket.socket) -> None:
    """Have the kernel look whether the other machine still lives, whatever this process is busy with."""
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for option, value in _KEEPALIVE:
        link.setsockopt(socket.IPPROTO_TCP, option, value)


def _carry_out(
    line: ServerLine,
    begin: Begin,
    loader: str,
    agents: dict[str, str],
    stop: StopSignal,
    batches: EventBatches,
) -> None:
    logging.basicConfig()  # to the worker's log, and not to what takes its place for a run
    try:
        with capture_installed():
            factories = load_agents(loader, agents)
            carry_out(line, begin, factories, stop, batches.put, _jails_for(begin.setup))
    except BaseException as error:
        log.exception("run %s failed", begin.spec.run_id)
        batches.put(Failure(f"The agent's worker failed: {type(error).__name__}."))


def _jails_for(setup: RunSetup) -> JailSource | None:
    """This worker's jails. Without any that work: none where they are not required."""
    if setup.jail == "off":
        return None
    pool, refused = _open_jails(setup.code_imports, setup.jail_required)
    if refused is not None and not setup.jail_required:
        log.warning("jail: %s; model-written code runs in the worker, unconfined", refused)
        return None
    return pool


@lru_cache(maxsize=4)
def _open_jails(imports: tuple[str, ...], required: bool) -> tuple[JailPool, str | None]:
    """A pool on a loop of its own, for as long as the worker lives; or why it does not work."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="jails", daemon=True).start()
    pool = JailPool(required=required, warm=1, preload=imports)

    async def open_pool() -> None:
        await pool.__aenter__()
        await pool.ready()

    try:
        asyncio.run_coroutine_threadsafe(open_pool(), loop).result(_JAIL_BOOT_SECONDS)
    except (JailUnavailable, TimeoutError) as error:
        return pool, str(error)
    return pool, None
