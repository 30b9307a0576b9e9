"""Which run a request for an agent reads: the one that waits for its tools' results, one that is repeated, or a new one.

In: a request that was understood. Out: a leg of a run of this worker's, or the reply of another worker, which has it.
"""

from collections.abc import Awaitable, Callable, Sequence

from aiohttp import web

from server.idempotency import Leg, Wish
from server.joining import ReplyElsewhere, find_caller_elsewhere, find_elsewhere
from server.keys import API_KEY, KEY_HOLDER, SETTINGS, SUPERVISOR, TOOL_DESK
from server.setting_values import leave_policy
from streaming.failures import InvalidRequest
from streaming.run_spec import RunSpec
from streaming.tool_desk import ToolResult


async def leg_for(
    request: web.Request,
    body: bytes,
    wish: Wish | None,
    results: Sequence[ToolResult],
    make_spec: Callable[[], Awaitable[RunSpec]],
) -> Leg | ReplyElsewhere:
    """`results` are those that the request ends with; `make_spec` is asked where a run is to begin."""
    caller = request.get(API_KEY, "")
    if results:
        desk, call_id = request.app[TOOL_DESK], results[0].tool_call_id
        if not desk.knows(caller, call_id):
            elsewhere = await find_caller_elsewhere(request, body, call_id)
            if elsewhere is not None:
                return elsewhere
        run = desk.answer(caller, results)
        return Leg(run, run.leg_begin)
    elsewhere = await find_elsewhere(request, body, wish)
    if elsewhere is not None:
        return elsewhere
    spec = await make_spec()
    return Leg(request.app[SUPERVISOR].submit(spec, key=caller, max_of_key=_most_runs(request)))


def leave_seconds(request: web.Request) -> float:
    """How long a run goes on whose client has left. Raises InvalidRequest."""
    wanted = request.headers.get("X-On-Disconnect")
    if wanted is None:
        return request.app[SETTINGS].on_disconnect
    try:
        return leave_policy(wanted.strip().lower())
    except ValueError:
        raise InvalidRequest(
            "The header X-On-Disconnect must be cancel, finish or a number of seconds.",
            param="X-On-Disconnect",
        ) from None


def _most_runs(request: web.Request) -> int:
    """Runs that the caller's key may have at one time; 0 does not limit."""
    holder = request.get(KEY_HOLDER)
    own = holder.key.concurrent_runs if holder is not None else 0
    return own or request.app[SETTINGS].max_per_key
