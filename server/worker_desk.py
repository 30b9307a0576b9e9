"""The parent's desk: what is true of all workers together is kept here, and nowhere else.

In: workers' messages. Out: places within the global limits, answers to questions about runs elsewhere,
what was used of each key, and who has the run of an `Idempotency-Key`. What a worker held is free again
when it is gone, however it went; what it counted lasts.
"""

import asyncio
import contextlib
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

import msgspec

from server.key_ring import day_now
from server.metrics_text import counts_of
from server.worker_wire import (
    Ask,
    Claim,
    Claimed,
    Counts,
    Findings,
    FromWorker,
    GiveBack,
    Granted,
    Inquiry,
    KeyUse,
    Message,
    Pause,
    Refused,
    Resume,
    Totals,
)
from streaming.admission import PlaceLedger
from streaming.failures import Busy

# A worker that does not answer in this time is left out of a list.
INQUIRY_SECONDS = 2.0
TOTALS_EVERY_SECONDS = 0.05
MAX_CLAIMS = 20_000


@dataclass(frozen=True, eq=False)
class Caller:
    """One worker as the desk knows it."""

    join_path: str
    send: Callable[[Message], None]


class _Asking:
    """One inquiry under way: who has yet to answer, and what was found."""

    def __init__(self, others: set[Caller]) -> None:
        self.missing = others
        self.found: list[bytes] = []
        self.complete = asyncio.Event()

    def add(self, caller: Caller, found: list[bytes]) -> None:
        if caller in self.missing:
            self.found += found
            self.leave_out(caller)

    def leave_out(self, caller: Caller) -> None:
        self.missing.discard(caller)
        if not self.missing:
            self.complete.set()


class WorkerDesk:
    """On the parent's event loop."""

    def __init__(self, ledger: PlaceLedger) -> None:
        self._ledger = ledger
        self._callers: set[Caller] = set()
        self._tickets: dict[Caller, set[str]] = {}
        self._claims: OrderedDict[bytes, Caller] = OrderedDict()
        self._asking: dict[int, _Asking] = {}
        self._counts: dict[Caller, bytes] = {}
        self._counts_of_gone = b""
        self._day = 0
        self._tokens: Counter[str] = Counter()  # of that day, by key
        self._numbers = count()
        self._tasks: set[asyncio.Task[None]] = set()
        self._totals_due: asyncio.TimerHandle | None = None

    def enter(self, caller: Caller) -> None:
        self._callers.add(caller)
        self._tickets[caller] = set()
        caller.send(self._totals())
        if day_now() == self._day:
            for key, tokens in self._tokens.items():
                caller.send(KeyUse(key, tokens=tokens))

    def leave(self, caller: Caller) -> None:
        """The worker is gone: all that it held is free."""
        self._callers.discard(caller)
        for run_id in self._tickets.pop(caller, set()):
            self._ledger.give_back((caller, run_id))
        for wish in [wish for wish, owner in self._claims.items() if owner is caller]:
            del self._claims[wish]
        for asking in self._asking.values():
            asking.leave_out(caller)
        counted = self._counts.pop(caller, b"")
        self._counts_of_gone = counts_of((self._counts_of_gone, counted))
        self._tell_totals()

    def tell_all(self, message: Message) -> None:
        for caller in self._callers:
            caller.send(message)

    def take(self, caller: Caller, message: FromWorker) -> None:
        """One message of a worker that has entered."""
        match message:
            case Ask():
                self._ask(caller, message)
            case Pause(run_id=run_id):
                self._ledger.pause((caller, run_id))
                self._tell_totals()
            case Resume(run_id=run_id):
                self._ledger.resume((caller, run_id), _granting(caller, run_id))
                self._tell_totals()
            case GiveBack(run_id=run_id):
                self._tickets[caller].discard(run_id)
                self._ledger.give_back((caller, run_id))
                self._tell_totals()
            case Inquiry():
                task = asyncio.get_running_loop().create_task(self._inquire(caller, message))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            case Findings(number=number, found=found):
                if (asking := self._asking.get(number)) is not None:
                    asking.add(caller, found)
            case KeyUse():
                self._note_use(message)
                for other in self._callers - {caller}:
                    other.send(message)
            case Counts(metrics=metrics):
                self._counts[caller] = metrics
            case Claim():
                caller.send(Claimed(message.number, self._claim(caller, message)))

    def _ask(self, caller: Caller, ask: Ask) -> None:
        grant = _granting(caller, ask.run_id)
        try:
            self._ledger.ask((caller, ask.run_id), ask.key, ask.max_of_key, grant)
        except Busy as busy:
            caller.send(Refused(ask.run_id, busy.code or ""))
        else:
            self._tickets[caller].add(ask.run_id)
            self._tell_totals()

    def _note_use(self, use: KeyUse) -> None:
        """Workers that start later are told of the day's tokens."""
        if (today := day_now()) != self._day:
            self._day = today
            self._tokens.clear()
        self._tokens[use.key] += use.tokens

    async def _inquire(self, caller: Caller, inquiry: Inquiry) -> None:
        number = next(self._numbers)
        asking = _Asking(self._callers - {caller})
        self._asking[number] = asking
        try:
            for other in set(asking.missing):
                other.send(msgspec.structs.replace(inquiry, number=number))
            if asking.missing:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(INQUIRY_SECONDS):
                        await asking.complete.wait()
        finally:
            del self._asking[number]
        gone = [self._counts_of_gone] if inquiry.wish == "metrics" else []
        caller.send(Findings(inquiry.number, asking.found + gone))

    def _claim(self, caller: Caller, claim: Claim) -> str | None:
        owner = self._claims.get(claim.wish)
        is_free = owner is None or claim.by_force or owner.join_path == claim.instead_of
        if owner is not None and owner is not caller and not is_free:
            return owner.join_path
        self._claims[claim.wish] = caller
        self._claims.move_to_end(claim.wish)
        if len(self._claims) > MAX_CLAIMS:
            self._claims.popitem(last=False)
        return None

    def _tell_totals(self) -> None:
        """Tell everybody, but not more often than anyone can use it."""
        if self._totals_due is None:
            loop = asyncio.get_running_loop()
            self._totals_due = loop.call_later(TOTALS_EVERY_SECONDS, self._send_totals)

    def _send_totals(self) -> None:
        self._totals_due = None
        self.tell_all(self._totals())

    def _totals(self) -> Totals:
        return Totals(self._ledger.running, self._ledger.queued, self._ledger.paused)


def _granting(caller: Caller, run_id: str) -> Callable[[], None]:
    return lambda: caller.send(Granted(run_id))
