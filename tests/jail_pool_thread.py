"""A jail pool on an event loop in a thread of its own, as a server's is for the agents' threads."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from streaming.interpreters.confinement import JailLimits
from streaming.interpreters.jail import JailInterpreter
from streaming.interpreters.jail_pool import JailPool

BOOT_SECONDS = 60.0
# What a machine allows that forbids user namespaces, as containers do.
IN_A_CONTAINER = ("namespaces", "root", "user")


def zygotes_of(pid: int) -> list[int]:
    """Those processes of a server that start jails; it has others, as a cluster of the tests."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError):  # a thread that has just ended
            found += map(int, (task / "children").read_text().split())
    return [child for child in found if b"jail_zygote" in command_of(child)]


def command_of(pid: int) -> bytes:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


class PoolThread:
    def __init__(self, pool: JailPool) -> None:
        self.pool = pool
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)

    def call(self, work: Coroutine[Any, Any, Any], timeout_seconds: float = BOOT_SECONDS) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout_seconds)

    def open(self) -> None:
        self._thread.start()
        self.call(self.pool.__aenter__())
        self.call(self.pool.ready())

    def close(self) -> None:
        try:
            self.call(self.pool.close())
        finally:
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(BOOT_SECONDS)
            self.loop.close()


@contextmanager
def open_pool_thread(**settings: Any) -> Iterator[PoolThread]:
    thread = PoolThread(JailPool(**settings))
    try:
        thread.open()
        yield thread
    finally:
        thread.close()


def make_interpreter(
    pool: JailPool,
    *,
    prints: list[str] | None = None,
    step_seconds: float = 10.0,
    limits: JailLimits | None = None,
    check_stop: Callable[[], None] = lambda: None,
    tools: Mapping[str, Callable[..., Any]] | None = None,
    **settings: Any,
) -> JailInterpreter:
    interpreter = JailInterpreter(
        pool,
        on_print=(prints if prints is not None else []).append,
        check_stop=check_stop,
        step_seconds=step_seconds,
        limits=limits,
        **settings,
    )
    interpreter.send_variables({})
    interpreter.send_tools(tools or {"final_answer": lambda answer: answer})
    return interpreter


_RUN_RAW = """
import pathlib
import runpy
pathlib.Path("attack.py").write_text(source)
runpy.run_path("attack.py", {"arguments": arguments})["result"]
"""


def run_raw(
    pool: JailPool,
    source: str,
    arguments: object = None,
    *,
    step_seconds: float = 10.0,
    limits: JailLimits | None = None,
) -> Any:
    """Run plain Python in a jail, its interpreter escaped as it were: no import or name is refused.

    The source leaves its outcome in `result`.
    """
    interpreter = make_interpreter(
        pool, step_seconds=step_seconds, limits=limits, authorized_imports=["*"]
    )
    interpreter.send_variables({"source": source, "arguments": arguments})
    try:
        return interpreter(_RUN_RAW).output
    finally:
        interpreter.cleanup()
