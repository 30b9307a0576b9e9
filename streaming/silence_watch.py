"""Ends a reply whose upstream has been silent for too long, without a timer of its own.

In: an open reply and a pulse. Out: UpstreamSilent to whoever waits for the reply or reads it. Silence that
is the reader's own (the upstream's transport is paused) does not count.
"""

from dataclasses import dataclass

from streaming.failures import UpstreamSilent
from streaming.pulse import Pulse
from streaming.upstream_reply import UpstreamReply

# How often a pulse should look within the time allowed: what is too long is noticed at most a quarter late.
LOOKS = 4


@dataclass(frozen=True)
class SilenceLimits:
    """Seconds from a request to the first byte of its reply's body, and between two pieces of it."""

    first_byte_seconds: float = 600.0
    idle_seconds: float = 300.0


class SilenceWatch:
    """Watches from now, when the request was sent, until `close`."""

    __slots__ = ("_limits", "_pulse", "_reply", "_seen", "_since")

    def __init__(self, reply: UpstreamReply, limits: SilenceLimits, pulse: Pulse) -> None:
        self._reply = reply
        self._limits = limits
        self._pulse = pulse
        self._since = pulse.loop.time()
        self._seen = 0
        pulse.add(self._look)

    def close(self) -> None:
        self._pulse.discard(self._look)

    def _look(self, now: float) -> None:
        reply, limits = self._reply, self._limits
        if reply.progress != self._seen or reply.is_paused:
            self._seen, self._since = reply.progress, now
        limit = limits.idle_seconds if self._seen else limits.first_byte_seconds
        if now - self._since >= limit:
            self.close()
            reply.fail(UpstreamSilent("The upstream model server was silent for too long."))
