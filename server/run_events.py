"""`GET /v1/runs/events`: everybody's runs as they change, for operators.

In: a watcher. Out: an event stream: a `snapshot` of all runs that go on and the latest that ended, then `runs`, those
that have changed, some times a second at most, and `end` where the server stops or the key may no longer. The names
stand in the data, too.
"""

from collections.abc import Iterator, Sequence

from aiohttp import web

from server.auth import allow_operator, is_operator
from server.keys import API_KEY, OUTCOME, REQUEST_ID, RUN_WATCH, SETTINGS
from server.sse_writer import SseWriter

# A line of an event stays well under the 64 KiB at which line-based readers fail.
MAX_EVENT_BYTES = 32 * 1024


async def run_events(request: web.Request) -> web.StreamResponse:
    """The handler. Raises Forbidden, Busy, Draining, and ConnectionError when the client is gone."""
    allow_operator(request)
    settings = request.app[SETTINGS]
    async with request.app[RUN_WATCH].watching(request.get(API_KEY)) as watcher:
        writer = SseWriter(
            heartbeat_seconds=settings.heartbeat_seconds,
            stall_seconds=settings.stall_seconds,
            headers={"x-request-id": request[REQUEST_ID]},
        )
        await writer.prepare(request)
        request[OUTCOME] = "ok"  # also where the watcher leaves, as all of them do
        async with writer:
            name = "snapshot"
            while (changed := await watcher.changes()) is not None and is_operator(request):
                if changed or name == "snapshot":
                    await writer.send_events(b"".join(_events(name, changed)))
                    name = "runs"
            await writer.send_events(_event("end", []))
            await writer.write_eof()
        return writer


def _events(name: str, runs: Sequence[bytes]) -> Iterator[bytes]:
    """As few events as are not too long; only the first has the name."""
    batch: list[bytes] = []
    size = 0
    for run in runs:
        if batch and size + len(run) > MAX_EVENT_BYTES:
            yield _event(name, batch)
            name, batch, size = "runs", [], 0
        batch.append(run)
        size += len(run) + 1
    yield _event(name, batch)


def _event(name: str, runs: Sequence[bytes]) -> bytes:
    data = b'{"type":"%s","runs":[%s]}' % (name.encode(), b",".join(runs))
    return b"event: %s\ndata: %s\n\n" % (name.encode(), data)
