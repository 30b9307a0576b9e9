"""Resumable chat streams as the client has them: the reading half, and its routes.

In: a stream's name, as the POST's header `X-Conversation-Id` gave it, and how many events the client has already. Out: the
rest of its events, each under its number (`id:`), live until the end, at whatever front end; word of which streams there
are; an end to one. The routes are those of llama.cpp's server, but that `from` counts events, not bytes: between
events stand heartbeats, which are nobody's.

 GET    /v1/stream/{name}?from=N   (or ?conv_id=name&from=N; or the header Last-Event-ID)
 DELETE /v1/stream/{name}          cancels and forgets
 POST   /v1/streams/lookup         {"conversation_ids": [...]} → what is known of them
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import msgspec
from aiohttp import web

from server.chat_request import decoded
from server.chat_wire import DONE, error_event
from server.errors import error_object, error_response, unexpected
from server.idempotency import Leg
from server.keys import API_KEY, OUTCOME, PRESENCE, REQUEST_ID, RUN_ID, SETTINGS, STORE, STREAMS
from server.sse_writer import NumberedSseWriter
from server.stored_stream import (
    FOLLOWING_SECONDS,
    NAME_HEADER,
    StreamBody,
    StreamKeeper,
    StreamTerms,
    checked_name,
    following,
    record_id_of,
)
from streaming.failures import InvalidRequest, RunNotFound, SmolgateError
from streaming.store import Record, RecordGone

MAX_NAMES = 200
GONE = RecordGone("The stream was deleted, or another has its name now.", code="stream_gone")


class Lookup(msgspec.Struct):
    """The body of a lookup."""

    conversation_ids: list[str]


_lookup = msgspec.json.Decoder(Lookup)


async def start_stored_stream(
    request: web.Request, leg: Leg, terms: StreamTerms
) -> web.StreamResponse:
    """Keep this leg under its name, and send it. A failure before there is anything to tell is a status."""
    app, owner = request.app, request.get(API_KEY, "")
    keeper = StreamKeeper(app, leg, owner, terms)
    keeping = asyncio.get_running_loop().create_task(keeper.keep())
    app[STREAMS].add(keeping)
    keeping.add_done_callback(app[STREAMS].discard)
    with keeper.followed():
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(app[SETTINGS].heartbeat_seconds):
                    await keeper.told.wait()
            await keeper.stored.wait()
        finally:
            keeper.is_awaited = False
        if keeper.refusal is not None:
            raise keeper.refusal
        if keeper.failure is not None:
            request[OUTCOME] = leg.run.outcome or "agent_failed"
            return error_response(keeper.failure, work_begun=leg.run.started is not None)
        if keeper.keeps_another:  # a repeated request: the stream is another request's
            async with _following(request, keeper.record.id):
                return await _send(request, keeper.record, 0, terms.name)
        response = await _send(request, keeper.record, 0, terms.name)
        request.setdefault(OUTCOME, leg.run.outcome or "ok")
        return response


async def resume_stream(request: web.Request) -> web.StreamResponse:
    """The rest of a stream. Raises RunNotFound, InvalidRequest, StoreFailed."""
    name = _name_asked(request)
    record = await _record_of(request, name)
    start = _start_asked(request)
    if start > record.next_sequence:
        raise InvalidRequest(
            f"'from' is {start}, and the stream has {record.next_sequence} events so far.",
            param="from",
        )
    async with _following(request, record.id):
        return await _send(request, record, start, name)


async def delete_stream(request: web.Request) -> web.Response:
    """Stop the run and forget the stream; 204 also where there is none."""
    owner = request.get(API_KEY, "")
    record_id = record_id_of(owner, _name_asked(request))
    if await request.app[STORE].delete(record_id, owner):
        request.app[PRESENCE].stopper_of(record_id)()
    return web.Response(status=204)


async def lookup_streams(request: web.Request) -> web.Response:
    """What is known of the streams of these names; those that are not there are left out."""
    asked = decoded(_lookup, await request.read())
    if len(asked.conversation_ids) > MAX_NAMES:
        raise InvalidRequest(
            f"'conversation_ids' may hold {MAX_NAMES} names.", param="conversation_ids"
        )
    owner, found = request.get(API_KEY, ""), []
    for name in asked.conversation_ids:
        checked_name(name, "conversation_ids")
        record = await request.app[STORE].get(record_id_of(owner, name), owner)
        if record is not None:
            found.append(_told(record, name))
    return web.Response(body=msgspec.json.encode(found), content_type="application/json")


def _told(record: Record, name: str) -> dict[str, object]:
    body = msgspec.json.decode(record.body, type=StreamBody)
    return {
        "conversation_id": name,
        "is_done": not record.active,
        "status": record.status,
        "run": body.run,
        "model": body.model,
        "total_events": record.next_sequence,
        "started_at": int(record.created),
        "completed_at": int(record.ended or 0),
    }


async def _send(request: web.Request, record: Record, start: int, name: str) -> web.StreamResponse:
    settings = request.app[SETTINGS]
    request[RUN_ID] = msgspec.json.decode(record.body, type=StreamBody).run
    writer = NumberedSseWriter(
        heartbeat_seconds=settings.heartbeat_seconds,
        stall_seconds=settings.stall_seconds,
        headers={"x-request-id": request[REQUEST_ID], NAME_HEADER: name},
    )
    await writer.prepare(request)
    async with writer:
        try:
            async for events in _events(request.app, record, start):
                await writer.send_events(b"".join(b"id: %d\n%b" % each for each in events))
        except ConnectionError:
            raise
        except SmolgateError as error:
            request[OUTCOME] = error.code or "store"
            await writer.send_events(error_event(error_object(error)) + DONE)
        except Exception as error:  # noqa: BLE001 - logged there
            await writer.send_events(error_event(error_object(unexpected(request, error))) + DONE)
        await writer.write_eof()
    return writer


async def _events(
    app: web.Application, record: Record, start: int
) -> AsyncIterator[list[tuple[int, bytes]]]:
    """Numbered events as they are stored, to the end. Raises RecordGone, StoreFailed."""
    store = app[STORE]
    async with store.watch(record.id) as watch:
        while True:
            head, events = await store.events(record.id, record.owner, start)
            if head is None or (record.created and head.created != record.created):
                raise GONE
            record.created = head.created
            if events:
                start = events[-1][0] + 1
                yield events
            elif head.ended is not None:
                return
            else:
                await watch.changed()


@asynccontextmanager
async def _following(request: web.Request, record_id: str) -> AsyncIterator[None]:
    """While inside, the run's front end knows that somebody reads."""
    presence, thing = request.app[PRESENCE], following(record_id)

    async def claim() -> None:
        with suppress(SmolgateError):
            await presence.arrive()
            await request.app[STORE].claim(
                thing, presence.id, seconds=2 * FOLLOWING_SECONDS, by_force=True
            )

    async def claim_again() -> None:
        while True:
            await asyncio.sleep(FOLLOWING_SECONDS)
            await claim()

    await claim()
    claiming = asyncio.get_running_loop().create_task(claim_again())
    try:
        yield
    finally:
        claiming.cancel()


async def _record_of(request: web.Request, name: str) -> Record:
    owner = request.get(API_KEY, "")
    record = await request.app[STORE].get(record_id_of(owner, name), owner)
    if record is None:
        raise RunNotFound("There is no such stream, or it has expired.", code="stream_not_found")
    return record


def _name_asked(request: web.Request) -> str:
    name = request.match_info.get("id") or request.query.get("conv_id", "")
    return checked_name(name, "conv_id")


def _start_asked(request: web.Request) -> int:
    """How many events the client has."""
    if (text := request.query.get("from")) is not None:
        return _whole(text, "from")
    if (last := request.headers.get("Last-Event-ID")) is not None:
        return _whole(last, "Last-Event-ID") + 1
    return 0


def _whole(text: str, param: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise InvalidRequest(f"'{param}' must be the number of an event.", param=param)
    return int(text)
