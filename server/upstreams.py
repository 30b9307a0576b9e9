"""All upstreams of this server: which of them serve an id, in order, and how.

In: a model id. Out: an `UpstreamRoute`, whose group is asked. Exact ids come before agents, prefixes after
them; `X-nothink` is X with its thoughts off.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

from server.settings import Settings
from server.upstream_models import UpstreamModels
from server.upstream_settings import NOTHINK, UpstreamOptions
from streaming.circuit_breaker import CircuitBreaker, State
from streaming.pulse import Pulse
from streaming.relay import ScrubOptions
from streaming.responses_route import ResponsesRoute
from streaming.silence_watch import LOOKS, SilenceLimits
from streaming.upstream import Patience, Target, Upstream, open_upstream
from streaming.upstream_group import GroupMember, RetryLimits, UpstreamGroup

if TYPE_CHECKING:  # loaded only where the embedded model is used
    from server.embedded import EmbeddedUpstream
    from server.worker_link import LinkedEmbedded

# A request that comes while the embedded model is still being loaded waits for it.
EMBEDDED_WAIT_SECONDS = 30.0


@dataclass(frozen=True)
class UpstreamRoute:
    """Where an id leads. `model` is the id without `-nothink`."""

    model: str
    nothink: bool
    group: UpstreamGroup
    options: Mapping[str, UpstreamOptions]  # of each member, by its name
    tag_names: tuple[str, ...]
    responses: Mapping[str, ResponsesRoute]  # likewise

    @cached_property
    def is_verbatim(self) -> bool:
        """Every upstream of the group takes the body as the client sent it."""
        return not self.nothink and all(member.model == self.model for member in self.group.members)

    @property
    def scrub(self) -> ScrubOptions | None:
        """How replies are scrubbed: as the first upstream of the id says."""
        if not self.nothink:
            return None
        first = self.options[self.group.members[0].name]
        return ScrubOptions(first.scrub, self.tag_names, first.starts_open)


@dataclass(frozen=True)
class _Known:
    """One upstream, opened."""

    options: UpstreamOptions
    upstream: Upstream
    breaker: CircuitBreaker
    models: UpstreamModels
    responses: ResponsesRoute

    def member_for(self, model: str) -> GroupMember:
        return GroupMember(
            name=self.options.name,
            upstream=self.upstream,
            breaker=self.breaker,
            model=model.removeprefix(self.options.strip_prefix),
        )


class Upstreams:
    """Owned by `open_upstreams`. `pulse` watches over all that is relayed."""

    def __init__(self, settings: Settings, known: Sequence[_Known], pulse: Pulse) -> None:
        self._settings = settings
        self.pulse = pulse
        self._known = tuple(known)
        self._exact: dict[str, UpstreamRoute] = {}
        ids = dict.fromkeys((settings.model, *_exact_ids(known)))
        for model in ids:
            self._exact.setdefault(model, self._route(model, nothink=False))
        for model in ids:
            self._exact.setdefault(model + NOTHINK, self._route(model, nothink=True))

    @property
    def default(self) -> UpstreamRoute:
        """The agents' own."""
        return self._exact[self._settings.model]

    def exact(self, model: str | None) -> UpstreamRoute | None:
        """Where an id leads that an operator wrote down."""
        return self._exact.get(model or "")

    def by_prefix(self, model: str | None) -> UpstreamRoute | None:
        """Where an id leads by its beginning."""
        if not model or not any(known.options.has_prefixes for known in self._known):
            return None
        nothink = model.endswith(NOTHINK)
        route = self._route(model.removesuffix(NOTHINK), nothink=nothink)
        return route if route.group.members else None

    def find(self, model: str | None) -> UpstreamRoute | None:
        return self.exact(model) or self.by_prefix(model)

    def states(self) -> dict[str, State]:
        return {known.options.name: known.breaker.state for known in self._known}

    def exchanges(self) -> dict[str, tuple[int, int]]:
        """How many exchanges with each upstream went well, and how many did not."""
        return {
            known.options.name: (known.breaker.succeeded_total, known.breaker.failed_total)
            for known in self._known
        }

    async def ids(self) -> list[str]:
        """All ids: those written down, and what upstreams with prefixes have; each with `-nothink`."""
        lists = await asyncio.gather(*(known.models.ids() for known in self._known))
        found = dict.fromkeys(self._exact)
        for known, models in zip(self._known, lists, strict=True):
            for model in (known.options.strip_prefix + own for own in models):
                if known.options.serves(model):
                    found |= dict.fromkeys((model, model + NOTHINK))
        return list(found)

    def _route(self, model: str, *, nothink: bool) -> UpstreamRoute:
        serving = [known for known in self._known if known.options.serves(model)]
        settings = self._settings
        return UpstreamRoute(
            model=model,
            nothink=nothink,
            group=UpstreamGroup(
                model,
                [known.member_for(model) for known in serving],
                retry=RetryLimits(settings.retries, settings.retry_seconds),
                silence=SilenceLimits(
                    settings.relay_first_byte_seconds, settings.relay_idle_seconds
                ),
                patience=Patience(settings.first_token_seconds, settings.token_idle_seconds),
                pulse=self.pulse,
            ),
            options={known.options.name: known.options for known in serving},
            tag_names=settings.think_tags,
            responses={known.options.name: known.responses for known in serving},
        )


def _exact_ids(known: Sequence[_Known]) -> list[str]:
    return [model for one in known for model in one.options.models if not model.endswith("*")]


@asynccontextmanager
async def open_upstreams(
    settings: Settings, embedded: "EmbeddedUpstream | LinkedEmbedded | None"
) -> AsyncIterator[Upstreams]:
    """All that the settings name; `embedded` stands for one without a base."""
    shortest = min(
        settings.relay_first_byte_seconds, settings.relay_idle_seconds, settings.heartbeat_seconds
    )
    pulse = Pulse(shortest / LOOKS)
    async with AsyncExitStack() as stack:
        stack.callback(pulse.close)
        known = [
            await _open(stack, settings, options, embedded)
            for options in settings.upstream_options()
        ]
        yield Upstreams(settings, known, pulse)


async def _open(
    stack: AsyncExitStack,
    settings: Settings,
    options: UpstreamOptions,
    embedded: "EmbeddedUpstream | LinkedEmbedded | None",
) -> _Known:
    fixed = Target(options.base, options.token) if options.base is not None else None

    def target() -> Target:
        if fixed is not None:
            return fixed
        assert embedded is not None
        return Target(embedded.base_url, options.token)

    wait_ready = None
    if options.base is None and embedded is not None:
        wait_ready = partial(embedded.wait_ready, EMBEDDED_WAIT_SECONDS)
    upstream = await stack.enter_async_context(
        open_upstream(
            target,
            wait_ready=wait_ready,
            connect_seconds=settings.connect_seconds,
            direct=settings.otlp_endpoint is None,  # traces are told by the session
        )
    )
    models = UpstreamModels(options.name, upstream, wanted=options.has_prefixes)
    stack.push_async_callback(models.close)
    breaker = CircuitBreaker(
        settings.breaker_failures, settings.breaker_seconds, clock=time.monotonic
    )
    return _Known(options, upstream, breaker, models, ResponsesRoute(options.responses))
