"""Whether an upstream is worth asking: a state machine without I/O.

In: how each exchange with it ended. Out: whether the next may begin. After so many failures in a row it
opens: nobody is let through for a while. Then it is half-open: one is let through as a probe, and the next
if that one tells nothing in as long a while. A success closes it.
"""

from collections.abc import Callable
from typing import Literal

State = Literal["ok", "open", "half-open"]


class CircuitBreaker:
    """`failures` in a row open it for `seconds`; 0 failures never do. `clock` is in seconds.

    `succeeded_total` and `failed_total` count all exchanges that told something.
    """

    def __init__(self, failures: int, seconds: float, clock: Callable[[], float]) -> None:
        self._limit = failures
        self._seconds = seconds
        self._clock = clock
        self._failures = 0
        self.succeeded_total = self.failed_total = 0
        self._shut_until: float | None = None  # None: it is closed, as circuits say
        self._probing = False

    @property
    def state(self) -> State:
        if self._shut_until is None:
            return "ok"
        return "half-open" if self._probing or not self.wait_seconds else "open"

    @property
    def wait_seconds(self) -> float:
        """How long nobody will be let through; 0 where `admit` would be true."""
        return max(0.0, self._shut_until - self._clock()) if self._shut_until is not None else 0.0

    def admit(self) -> bool:
        """Whether an exchange may begin. If so, tell how it ended: succeeded, failed or left."""
        if self._shut_until is None:
            return True
        if self.wait_seconds:
            return False
        self._probing = True
        self._shut_until = self._clock() + self._seconds
        return True

    def succeeded(self) -> None:
        self.succeeded_total += 1
        self._failures = 0
        self._shut_until = None
        self._probing = False

    def failed(self) -> None:
        self.failed_total += 1
        self._failures += 1
        is_old_news = self._shut_until is not None and not self._probing
        if self._limit and self._failures >= self._limit and not is_old_news:
            self._shut_until = self._clock() + self._seconds
        self._probing = False

    def left(self) -> None:
        """The exchange was given up before it told anything: another may be the probe."""
        if self._probing:
            self._probing = False
            self._shut_until = self._clock()
