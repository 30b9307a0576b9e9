"""What the server does for runs that live elsewhere: calls their model, asks their client, lends them jails.

In: a run's question. Out: the answer. A model's tokens go straight to the run's channel.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from streaming.cancellation import StopSignal
from streaming.interpreters.jail_pool import WHY_LOST, JailPool, JailUnavailable
from streaming.interpreters.jail_process import JailProcess
from streaming.loop_model import LoopModel
from streaming.runners.daemon_pool import DaemonThreadPool
from streaming.runners.far_agent_run import reply_of
from streaming.runners.run_line import Answerer, Question
from streaming.runners.run_wire import ClientCall, ModelReply


def model_answerer(make_model: Callable[..., LoopModel]) -> Answerer:
    """Answers with the upstream's reply to a request body."""

    async def answer(question: Question) -> ModelReply:
        model = make_model(channel=question.channel, stop=question.stop)
        # In a context of its own, as a call has it that a thread of this process waits for.
        call = asyncio.get_running_loop().create_task(
            model.call(question.value), context=model.call_context()
        )
        return reply_of(await call, model.finish_reason)

    return answer


def client_answerer(ask: Callable[..., Awaitable[str]]) -> Answerer:
    """Answers with what the client's tool gives; `ask` is a tool desk's."""

    async def answer(question: Question) -> str:
        asked = msgspec.convert(question.value, ClientCall)
        return await ask(question.spec.run_id, asked.call, together=asked.together)

    return answer


class JailLender:
    """Lends jails of the server's pool to one run, and ends them with it."""

    def __init__(self, pool: JailPool | None) -> None:
        self._pool = pool
        self._threads = DaemonThreadPool(4, name="jail-lender")
        self._lock = threading.Lock()
        self._lent: dict[int, JailProcess] = {}
        self._closed = False

    @property
    def answerers(self) -> Mapping[str, Answerer]:
        return {"jail": self._lend, "jail's end": self._end_of, "jail lost": self._count_lost}

    def close(self) -> None:
        """Kill what was lent."""
        with self._lock:
            self._closed = True
            lent = list(self._lent.values())
        for jail in lent:
            jail.close()
        if self._pool is not None:
            self._pool.wake()
        self._threads.shutdown(wait=False)

    async def _lend(self, question: Question) -> tuple[int, int]:
        if self._pool is None:
            raise JailUnavailable("the server has no jails")
        with question.stop.watched_by(self._pool.wake):
            jail: JailProcess = await self._in_thread(
                self._take, self._pool, float(question.value), question.stop
            )
        question.fds.extend((jail.link.fileno(), jail.pidfd))
        return (jail.job, jail.pid)

    def _take(self, pool: JailPool, seconds: float, stop: StopSignal) -> JailProcess:
        """In a thread, whose caller may have left by the time that there is a jail."""
        jail = pool.take(seconds, lambda: stop.is_set or self._closed)
        with self._lock:
            if self._closed:
                jail.close()
                raise JailUnavailable("the run is over")
            self._lent[jail.job] = jail
        stop.tell(jail.kill)
        return jail

    async def _end_of(self, question: Question) -> str | None:
        job, seconds = question.value
        with self._lock:
            jail = self._lent.pop(job, None)
        if jail is None:
            return None
        try:
            end: str | None = await self._in_thread(jail.wait_for_end, float(seconds))
        finally:
            jail.close()
        return end

    async def _count_lost(self, question: Question) -> None:
        if self._pool is not None and question.value in WHY_LOST:
            self._pool.count_lost(question.value)

    async def _in_thread(self, work: Callable[..., Any], *args: Any) -> Any:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, work, *args)
