"""What became of a request, in one word for logs and metrics.

In: the response's status and the code of what ended it, if anything did. Out: one of `OUTCOMES`.
"""

OUTCOMES = (
    "ok",
    "client_gone",
    "deadline",
    "upstream",
    "agent",
    "refused",
    "stopped",  # somebody cancelled it, or the server is stopping
    "failed",  # the server's own fault
    "handed_on",  # nginx carries it out; what became of it stands in nginx' log
)
# What nginx logs for a client that left before there was a response.
CLIENT_GONE = 499
# The code of a request whose reply came from another worker, which says there what became of it.
JOINED = "joined"
HANDED_ON = "handed_on"

# An upstream that answers so does not take this server's token, or is busy: no fault of the caller's.
_UPSTREAMS_FAULT = frozenset({401, 402, 403, 407, 429})

_OF_CODE = {
    "ok": "ok",
    JOINED: "ok",
    HANDED_ON: HANDED_ON,
    "client_gone": "client_gone",
    "client_stalled": "client_gone",
    "reader_too_slow": "client_gone",
    "deadline_exceeded": "deadline",
    "upstream": "upstream",
    "upstream_failed": "upstream",
    "upstream_refused": "upstream",
    "upstream_unavailable": "upstream",
    "agent_failed": "agent",
    "jail_unavailable": "failed",
    "internal_error": "failed",
    "run_stopped": "stopped",
    "cancelled": "stopped",
    "draining": "stopped",
}


def outcome_of(status: int, code: str | None) -> str:
    """`code` is what ended a stream or was answered; None where a response is as it should be, or
    an upstream's own."""
    if code is not None and (outcome := _OF_CODE.get(code)) is not None:
        return outcome
    if status == CLIENT_GONE:
        return "client_gone"
    if code is not None:
        return "refused" if status < 500 else "failed"
    if status < 400:
        return "ok"
    return "upstream" if status >= 500 or status in _UPSTREAMS_FAULT else "refused"
