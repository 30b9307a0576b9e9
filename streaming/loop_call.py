"""A coroutine of the event loop, waited for by a run's thread.

In: the coroutine and the run's stop signal. Out: its result, in the thread; it is cancelled when the run is
stopped, and the thread wakes with `RunCancelled`.
"""

import asyncio
import concurrent.futures
import contextvars
from collections.abc import Coroutine
from typing import Any, TypeVar

from streaming.cancellation import RunCancelled, StopSignal

Result = TypeVar("Result")


def call_on_loop(
    call: Coroutine[Any, Any, Result], loop: asyncio.AbstractEventLoop, stop: StopSignal
) -> Result:
    """Blocks the calling thread. Raises what the coroutine does, and RunCancelled."""
    try:
        # In a context of its own: pooled connections would keep the run's alive, and what is
        # written to stderr on the loop is not the run's output.
        future = contextvars.Context().run(asyncio.run_coroutine_threadsafe, call, loop)
    except RuntimeError:  # the loop is closed: the server is gone
        call.close()
        raise RunCancelled("the server has stopped") from None
    try:
        with stop.watched_by(future.cancel):
            return future.result()
    except (concurrent.futures.CancelledError, asyncio.CancelledError):
        raise RunCancelled(stop.reason or "the server has stopped") from None
