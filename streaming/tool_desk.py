"""Where runs wait for what their clients' tools give.

In: calls, from runs' threads by way of the event loop; results, from clients' requests. Out: for the
client a `Paused` event that names the calls, for the thread the result. All on the event loop.

 1. A run pauses for one set of calls at a time: one call of code, or all that an agent makes at once.
 2. A paused run has no place and spends none of its time; at most `max_paused` may be paused.
 3. All results of a set come in one request, of the same API key, within `wait_seconds`; else the run ends.
 4. With the results the run waits for a place, before all runs that have not begun.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NoReturn
from weakref import WeakKeyDictionary

from streaming.cancellation import RunCancelled
from streaming.events import Paused
from streaming.failures import Busy, InvalidRequest, RunStopped
from streaming.run import Run
from streaming.run_spec import CalledTool
from streaming.supervisor import Supervisor

# How long calls that are made at once wait for one that may not come: its arguments were wrong.
GATHER_SECONDS = 1.0
# Of how many calls it is remembered what became of them, to tell a client that comes too late.
MAX_PAST = 10_000


@dataclass(frozen=True)
class ToolResult:
    """What one call of a client's tool gave; `param` names the request's field that holds its id."""

    tool_call_id: str
    text: str
    param: str


@dataclass(eq=False)
class _Asked:
    """One call that a thread waits for."""

    call: CalledTool
    result: asyncio.Future[str]


@dataclass
class _Line:
    """One run's calls. `turn` is held by the set that is out with the client, `full` is set once all of the
    next are here.
    """

    untold: list[_Asked] = field(default_factory=list)
    full: asyncio.Event = field(default_factory=asyncio.Event)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(frozen=True)
class _Pause:
    """A set of calls that is out with the client."""

    run: Run
    calls: tuple[CalledTool, ...]
    results: asyncio.Future[dict[str, str]]


class ToolDesk:
    """One per server. `supervisor` is asked for late: it starts the runs that come here. `announce` is awaited
    with a key and its calls before their client is told of them.
    """

    def __init__(
        self,
        supervisor: Callable[[], Supervisor],
        *,
        wait_seconds: float,
        announce: Callable[[str, list[str]], Awaitable[None]] | None = None,
    ) -> None:
        self._supervisor = supervisor
        self._announce = announce
        self._wait_seconds = wait_seconds
        self._lines: WeakKeyDictionary[Run, _Line] = WeakKeyDictionary()
        self._out: dict[str, _Pause] = {}
        self._past: OrderedDict[str, tuple[str, str]] = OrderedDict()

    async def ask(self, run_id: str, call: CalledTool, *, together: int) -> str:
        """What the client's tool gives. `together`: how many calls are made at once, this one among them.

        Raises CancelledError where the run ends before.
        """
        run = self._supervisor().runs.get(run_id)
        if run is None:
            raise asyncio.CancelledError
        line = self._lines.setdefault(run, _Line())
        asked = _Asked(call, asyncio.get_running_loop().create_future())
        line.untold.append(asked)
        if len(line.untold) >= together:
            line.full.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(GATHER_SECONDS):
                await line.full.wait()
        async with line.turn:
            while asked in line.untold:
                told = line.untold[:together]
                del line.untold[:together]
                line.full.clear()
                await self._pause(run, told)
        return await asked.result

    def knows(self, key: str, tool_call_id: str) -> bool:
        """A run of this key has made the call, and waits for it or did so lately."""
        if (pause := self._out.get(tool_call_id)) is not None:
            return pause.run.key == key
        return tool_call_id in self._past and self._past[tool_call_id][0] == key

    def answer(self, key: str, results: Sequence[ToolResult]) -> Run:
        """Let the run go on that waits for these results, and return it.

        Raises InvalidRequest for results that nobody waits for, or that are not all.
        """
        pauses = [self._pause_of(key, result) for result in results]
        pause = pauses[0]
        for other, result in zip(pauses, results, strict=True):
            if other is not pause:
                raise InvalidRequest(
                    f"'{result.param}' belongs to another run than the results before it.",
                    param=result.param,
                )
        given = {result.tool_call_id: result.text for result in results}
        if missing := [call.id for call in pause.calls if call.id not in given]:
            raise InvalidRequest(
                f"'messages' must end with the results of all tool calls; missing: "
                f"{', '.join(missing)}.",
                param="messages",
                code="tool_results_missing",
            )
        pause.results.set_result(given)
        self._forget(pause, "was answered already")
        return pause.run

    def _pause_of(self, key: str, result: ToolResult) -> _Pause:
        pause = self._out.get(result.tool_call_id)
        if pause is not None and pause.run.key == key and not pause.results.done():
            return pause
        owner, became = self._past.get(result.tool_call_id, ("", ""))
        if not became or owner != key:
            became = "is no call that was made here"
        raise InvalidRequest(
            f"'{result.param}' {became}: {result.tool_call_id!r} is not waited for.",
            param=result.param,
            code="tool_call_not_found",
        )

    async def _pause(self, run: Run, asked: Sequence[_Asked]) -> None:
        """One set of calls, from telling the client to the results."""
        supervisor = self._supervisor()
        if not supervisor.pause(run):
            limit = supervisor.limits.max_paused
            self._end(run, Busy(f"Over {limit} runs wait for tools.", code="too_many_paused"))
        calls = tuple(one.call for one in asked)
        pause = _Pause(run, calls, asyncio.get_running_loop().create_future())
        self._out.update(dict.fromkeys((call.id for call in calls), pause))
        became = "was made by a run that has ended"
        try:
            if self._announce is not None:
                await self._announce(run.key, [call.id for call in calls])
            await run.channel.send_on_loop(Paused(calls))
            await asyncio.wait([pause.results], timeout=self._wait_seconds)
            if not pause.results.done():
                became = f"was given up after {self._wait_seconds:g} seconds"
                said = f"No results of the tool calls came within {self._wait_seconds:g} seconds."
                self._end(run, RunStopped(said, code="tool_results_late"))
        except RunCancelled:
            raise asyncio.CancelledError from None
        finally:
            self._forget(pause, became)
        results = pause.results.result()
        await supervisor.resume(run)
        for one in asked:
            one.result.set_result(results[one.call.id])

    def _end(self, run: Run, error: Busy | RunStopped) -> NoReturn:
        self._supervisor().stop(run, error)
        raise asyncio.CancelledError

    def _forget(self, pause: _Pause, became: str) -> None:
        for call in pause.calls:
            if self._out.pop(call.id, None) is not None:
                self._past[call.id] = pause.run.key, became
        while len(self._past) > MAX_PAST:
            self._past.popitem(last=False)
