"""A response as its reader gets it: as a stream, or as its object.

In: a kept response, or a leg of a run that nobody keeps. Out: its events from some number on, live until the end, then
`[DONE]`; or its object, once it has ended. A failure before there is anything to tell is a status.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

from aiohttp import web

from server.chat_wire import DONE
from server.errors import error_object, error_response, unexpected
from server.keys import OUTCOME, REQUEST_ID, SETTINGS, STORE
from server.padded_reply import PaddedReply, reply_whole
from server.response_keeper import ResponseKeeper
from server.response_telling import ResponseTelling
from server.sse_writer import SseWriter
from streaming.events import Failure
from streaming.failures import SmolgateError
from streaming.json_codec import encode_json
from streaming.run import Run, RunReader
from streaming.store import RecordGone, Store

GONE = RecordGone("The response was deleted.", code="response_gone")


async def stream_told(
    request: web.Request, run: Run, reader: RunReader, telling: ResponseTelling
) -> web.StreamResponse:
    """A leg that is not kept, as a stream. Raises ConnectionError when the client is gone."""
    told = telling.begin()
    with suppress(TimeoutError):
        async with asyncio.timeout(request.app[SETTINGS].heartbeat_seconds):
            while not telling.told and (events := await reader.read()):
                told += telling.feed(events)
    failure = telling.transcript.failure
    if failure is not None and not telling.told:
        request[OUTCOME] = run.outcome or "agent_failed"
        return error_response(failure, work_begun=run.started is not None)
    writer = _writer(request)
    await writer.prepare(request)
    async with writer:
        try:
            await writer.send_events(b"".join(told))
            async for events in reader:
                await writer.send_events(b"".join(telling.feed(events)))
            request[OUTCOME] = run.outcome or "ok"
            last = telling.end()
        except ConnectionError:
            raise
        except Exception as error:  # noqa: BLE001 - logged there
            last = telling.fail(error_object(unexpected(request, error)))
        await writer.send_events(b"".join(last) + DONE)
        await writer.write_eof()
    return writer


async def collect_told(
    request: web.Request,
    run: Run,
    reader: RunReader,
    telling: ResponseTelling,
    keeper: ResponseKeeper | None,
) -> web.StreamResponse:
    """The whole leg as one object, or an error that is not to be retried. `keeper`: it is kept, and told there.

    Raises ConnectionError when the client is gone.
    """

    async def answer(padded: PaddedReply) -> bytes | Failure:
        while events := await padded.read():
            if keeper is None:
                telling.feed(events)
        if keeper is None:
            telling.end()
        else:
            await keeper.done.wait()
            if keeper.refusal is not None:
                raise keeper.refusal
        return telling.transcript.failure or encode_json(telling.response)

    return await reply_whole(request, run, reader, answer)


async def stream_kept(
    request: web.Request, response_id: str, owner: str, start: int
) -> web.StreamResponse:
    """A kept response's events from number `start` on. Raises ConnectionError when the client is gone."""
    writer = _writer(request)
    await writer.prepare(request)
    async with writer:
        try:
            async for events in _events(request.app[STORE], response_id, owner, start):
                await writer.send_events(b"".join(event for _, event in events))
                start = events[-1][0] + 1
            last = DONE
        except ConnectionError:
            raise
        except SmolgateError as error:
            request[OUTCOME] = error.code or "store"
            last = _error(error, start)
        except Exception as error:  # noqa: BLE001 - logged there
            last = _error(unexpected(request, error), start)
        await writer.send_events(last)
        await writer.write_eof()
    return writer


async def _events(
    store: Store, response_id: str, owner: str, start: int
) -> AsyncIterator[list[tuple[int, bytes]]]:
    """Numbered events as they are stored, to the end. Raises RecordGone, StoreFailed."""
    async with store.watch(response_id) as watch:
        while True:
            head, events = await store.events(response_id, owner, start)
            if head is None:
                raise GONE
            if events:
                start = events[-1][0] + 1
                yield events
            elif head.ended is not None:
                return
            else:
                await watch.changed()


def _error(error: SmolgateError, sequence: int) -> bytes:
    told = error_object(error) | {"type": "error", "sequence_number": sequence}
    return b"event: error\ndata: %b\n\n" % encode_json(told) + DONE


def _writer(request: web.Request) -> SseWriter:
    settings = request.app[SETTINGS]
    return SseWriter(
        heartbeat_seconds=settings.heartbeat_seconds,
        stall_seconds=settings.stall_seconds,
        headers={"x-request-id": request[REQUEST_ID]},
    )
