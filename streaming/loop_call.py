"""How a run's thread waits: for one coroutine on the event loop, and for the run's stop.

In: a coroutine, from the thread. Out: what it returns or raises, or `RunCancelled` once the run is
stopped, which cancels it.
"""

import asyncio
import concurrent.futures
import contextvars
from collections.abc import Coroutine
from typing import Any, TypeVar

from streaming.cancellation import RunCancelled, StopSignal

T = TypeVar("T")


def wait_on_loop(
    call: Coroutine[Any, Any, T],
    loop: asyncio.AbstractEventLoop,
    stop: StopSignal,
    *,
    context: contextvars.Context | None = None,
) -> T:
    """Blocks the calling thread. Raises what the coroutine raises, and RunCancelled."""
    try:
        # In a context of its own: pooled connections would keep the run's alive, and what is
        # written to stderr on the loop is not the run's output.
        context = context or contextvars.Context()
        future = context.run(asyncio.run_coroutine_threadsafe, call, loop)
    except RuntimeError:  # the loop is closed: the server is gone
        call.close()
        raise RunCancelled("the server has stopped") from None
    try:
        with stop.watched_by(future.cancel):
            return future.result()
    except (concurrent.futures.CancelledError, asyncio.CancelledError):
        raise RunCancelled(stop.reason or "the server has stopped") from None
