"""The upstreams that serve one model id, in order, as if they were one.

In: a request. Out: the first answer that is to be had. Another upstream is asked, or the same once more,
only where nothing was begun: no connection, or a 429, 502, 503 or 504 that says so (`Retry-After`, or
`x-should-retry: true`), and never after the first byte of a reply that goes on to the client.

 1. Each upstream whose circuit lets one through is asked once, at once, in order; then whichever may be
    asked again soonest, `retries` times, not before it said and not after `retry_seconds`.
 2. A body that is a stream is sent again only if nothing was taken of it.
 3. What is told in the end is the last answer, as it came; without one, the last failure.
"""

import asyncio
import math
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Sequence,
)
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any

from streaming.circuit_breaker import CircuitBreaker
from streaming.failures import UpstreamFailed, UpstreamSilent, UpstreamUnavailable
from streaming.json_codec import encode_json
from streaming.model_chunks import ModelChunk
from streaming.pulse import Pulse
from streaming.silence_watch import SilenceLimits, SilenceWatch
from streaming.streamed_body import StreamedBody
from streaming.upstream import NOT_NOW, Patience, Upstream, chat_chunks
from streaming.upstream_errors import retry_after_seconds
from streaming.upstream_reply import UpstreamReply

# An upstream that restarts behind its port is back in less, and a person does not notice it.
REPEAT_SECONDS = 0.2
# It answered, but for its circuit as if it had not. A 429 comes from one that is well.
DOWN = NOT_NOW - {429}
# A request may have two; a `Look` says when the other is due.
FORMS = 2


@dataclass(frozen=True)
class RetryLimits:
    """How often, and until how long after a request came, an upstream is asked once more."""

    retries: int = 1
    seconds: float = 5.0


@dataclass(frozen=True)
class GroupMember:
    """One upstream of a group; `model` is the group's id as this upstream knows it."""

    name: str
    upstream: Upstream
    breaker: CircuitBreaker
    model: str


# A body that is not the same for every upstream is made for each when it is its turn.
BodyFor = Callable[[GroupMember], bytes]
# So is a path that is not.
PathFor = Callable[[GroupMember], str]
# Sees a reply before it counts as the answer; None: the same upstream, which did nothing, is asked once more.
Look = Callable[[GroupMember, UpstreamReply], Awaitable[UpstreamReply | None]]


Data = bytes | StreamedBody | BodyFor | None
# What came of asking one upstream.
_Outcome = UpstreamReply | UpstreamUnavailable


@dataclass(slots=True)
class _Call:
    """What is asked, of whomever."""

    method: str
    path: str | PathFor
    headers: Sequence[tuple[str, str]]
    data: Data
    raw: bool
    silence: SilenceLimits | None  # None: whoever reads the reply sees to that
    look: Look | None = None

    def to(self, member: GroupMember) -> Awaitable[UpstreamReply]:
        headers, data = self.headers, self.data
        if isinstance(data, StreamedBody):
            if data.length is not None:
                headers = [*headers, ("Content-Length", str(data.length))]
        elif callable(data):
            data = data(member)
        return member.upstream.send(
            self.method,
            self.path if isinstance(self.path, str) else self.path(member),
            headers=headers,
            data=data,
            raw=self.raw,
            head_seconds=self.silence.first_byte_seconds if self.silence is not None else None,
        )


def _asks_for_another_try(reply: UpstreamReply) -> bool:
    if reply.status not in NOT_NOW:
        return False
    said = reply.headers.get("x-should-retry", "").lower()
    return said == "true" or (said != "false" and "Retry-After" in reply.headers)


def _seconds_to_wait(reply: UpstreamReply) -> float | None:
    """None where it asks for a wait that is no number of seconds."""
    return retry_after_seconds(reply.headers) if "Retry-After" in reply.headers else 0.0


class _Turns:
    """Whose turn it is, and when: each member once, then the soonest, as often as is allowed."""

    def __init__(self, untried: Iterable[GroupMember], retries: int, end: float) -> None:
        self._untried = list(untried)
        self._again: list[tuple[float, GroupMember]] = []  # not before this time
        self._left = retries
        self._end = end

    async def next(self) -> GroupMember | None:
        """Waits until it may be asked; None where nobody may."""
        while self._untried:
            member = self._untried.pop(0)
            if member.breaker.admit():
                return member
        while self._left and self._again:
            soonest = min(self._again, key=lambda row: row[0])
            time, member = soonest
            if time > self._end:
                return None
            self._left -= 1
            self._again.remove(soonest)
            await asyncio.sleep(time - monotonic())
            if member.breaker.admit():
                return member
        return None

    def put_back(self, member: GroupMember, seconds: float) -> None:
        """It may be asked once more after so long."""
        self._again.append((monotonic() + max(seconds, REPEAT_SECONDS), member))


class UpstreamGroup:
    """Stands for an `Upstream` where a model id is known."""

    def __init__(
        self,
        model: str,
        members: Sequence[GroupMember],
        *,
        retry: RetryLimits,
        silence: SilenceLimits,
        patience: Patience,
        pulse: Pulse,
    ) -> None:
        self.model = model
        self.members = tuple(members)
        self._retry = retry
        self._silence = silence
        self._patience = patience
        self._pulse = pulse

    def why_not_ready(self) -> str | None:
        """One line for `/readyz`, or None where a way is left."""
        if any(member.breaker.state != "open" for member in self.members):
            return None
        return "no upstream can be reached"

    def send(
        self,
        method: str,
        path: str | PathFor,
        *,
        headers: Sequence[tuple[str, str]],
        data: Data = None,
        raw: bool = False,
        look: Look | None = None,
    ) -> Coroutine[Any, Any, UpstreamReply]:
        """`Upstream.send`, to whichever upstream answers, until the reply's head is there. Close it.

        Raises also UpstreamSilent, here or from whoever reads the reply's body.
        """
        call = _Call(method, path, headers, data, raw, self._silence, look)
        return self._answer(call)

    def chat(self, body: dict[str, Any]) -> AsyncGenerator[ModelChunk]:
        """One streamed chat completion: see `chat_chunks`. `body` may name another model."""
        body = body | {"stream": True, "stream_options": {"include_usage": True}}
        is_own = body.get("model", self.model) == self.model

        def body_for(member: GroupMember) -> bytes:
            return encode_json(body | {"model": member.model} if is_own else body)

        members: dict[UpstreamReply, GroupMember] = {}

        async def note(member: GroupMember, reply: UpstreamReply) -> UpstreamReply:
            members[reply] = member
            return reply

        @asynccontextmanager
        async def exchange() -> AsyncIterator[tuple[UpstreamReply, str | None]]:
            reply = await self._answer(call)
            try:
                yield reply, members[reply].upstream.token
            finally:
                reply.close()

        headers = (("Content-Type", "application/json"), ("Accept", "text/event-stream"))
        call = _Call("POST", "/chat/completions", headers, body_for, False, None, note)
        return chat_chunks(exchange(), self._patience)

    async def _answer(self, call: _Call) -> UpstreamReply:
        """The answer to be told, most often that of the first who is asked. Raises as `_another` does."""
        end = monotonic() + self._retry.seconds
        untried = iter(self.members)
        for member in untried:
            if member.breaker.admit():
                break
        else:
            raise self._refusal()
        outcome = await self._ask(call, member)
        # Asked of the error: of an abstract class it is a slow question.
        if not isinstance(outcome, UpstreamUnavailable) and outcome.status not in NOT_NOW:
            return outcome
        turns = _Turns(untried, self._retry.retries, end)
        return await self._another(call, turns, member, outcome)

    async def _another(
        self, call: _Call, turns: _Turns, member: GroupMember, outcome: _Outcome
    ) -> UpstreamReply:
        """The answer to be told after this one's. Raises what the last attempt did."""
        answer: UpstreamReply | None = None
        failure: UpstreamUnavailable | None = None
        try:
            while True:
                if isinstance(outcome, UpstreamUnavailable):
                    failure = outcome
                    turns.put_back(member, 0.0)
                else:
                    if answer is not None:
                        answer.close()
                    answer = outcome
                    if not _asks_for_another_try(answer):
                        break
                    if (wait := _seconds_to_wait(answer)) is not None:
                        turns.put_back(member, wait)
                if isinstance(call.data, StreamedBody) and call.data.begun:
                    break
                if (following := await turns.next()) is None:
                    break
                member = following
                outcome = await self._ask(call, member)
        except BaseException:
            if answer is not None:
                answer.close()
            raise
        if answer is None:
            assert failure is not None
            raise failure
        return answer

    async def _ask(self, call: _Call, member: GroupMember) -> _Outcome:
        """Ask one upstream, and tell its circuit what came of it. Returns its reply, the head read."""
        for _ in range(FORMS):
            reply: UpstreamReply | None = None
            try:
                reply = await call.to(member)
                if call.silence is not None:
                    reply.call_on_close(SilenceWatch(reply, call.silence, self._pulse).close)
                await reply.head()
                seen = reply if call.look is None else await call.look(member, reply)
            except BaseException as error:
                if reply is not None:
                    reply.close()
                _tell_failure(call, member, error)
                if isinstance(error, UpstreamUnavailable):
                    return error
                if isinstance(error, TimeoutError):
                    said = "The upstream model server was silent for too long."
                    raise UpstreamSilent(said) from None
                raise
            if seen is None:
                reply.close()
                continue
            if seen.status in DOWN:
                member.breaker.failed()
            else:
                member.breaker.succeeded()
            return seen
        raise UpstreamFailed("The upstream refused the request in every form.")

    def _refusal(self) -> UpstreamUnavailable:
        """What is told where every circuit is open."""
        wait = min(member.breaker.wait_seconds for member in self.members)
        return UpstreamUnavailable(
            "The upstream model server cannot be reached.", retry_after=max(1, math.ceil(wait))
        )


def _tell_failure(call: _Call, member: GroupMember, error: BaseException) -> None:
    """Tell a circuit of an exchange that raised. Raises what made an upload fail, if that is why."""
    upload = call.data if isinstance(call.data, StreamedBody) else None
    if upload is not None and upload.failure is not None:
        member.breaker.left()
        raise upload.failure from None
    has_failed = isinstance(error, UpstreamUnavailable | UpstreamFailed)
    if has_failed and not isinstance(error, UpstreamSilent):
        member.breaker.failed()
    else:
        member.breaker.left()
