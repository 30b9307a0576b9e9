"""Responses that are kept: had again, as an object or as a stream from any event on; cancelled; deleted.

    GET    /v1/responses/{id}               its object; ?stream=true&starting_after=N: the events after number N
    DELETE /v1/responses/{id}               stops its run, and forgets it
    POST   /v1/responses/{id}/cancel        of one in the background
    GET    /v1/responses/{id}/input_items   ?order, ?after, ?limit

A caller sees the responses of its own key; any other is a 404. Any server over the store can answer.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
from aiohttp import web

from server.keys import API_KEY, PRESENCE, STORE
from server.response_context import KIND, input_of
from server.response_stream import stream_kept
from server.responses import json_response
from streaming.failures import InvalidRequest, ResponseNotFound
from streaming.store import Record

MOST_LISTED = 100
# How long a cancel waits for the run to have ended.
CANCEL_SECONDS = 5.0


async def get_response(request: web.Request) -> web.StreamResponse:
    """The object as it is now, or its events. Raises ResponseNotFound, InvalidRequest, StoreFailed."""
    record = await _record_of(request)
    if not _switch(request, "stream"):
        if "starting_after" in request.query:
            raise InvalidRequest(
                "'starting_after' is for streams: set 'stream'.", param="starting_after"
            )
        return _object(record)
    start = 0
    if (after := request.query.get("starting_after")) is not None:
        start = whole(after, "starting_after") + 1
    if start > record.next_sequence:
        raise InvalidRequest(
            f"'starting_after' is {start - 1}, and the response has {record.next_sequence} events so far.",
            param="starting_after",
        )
    return await stream_kept(request, record.id, record.owner, start)


async def delete_response(request: web.Request) -> web.Response:
    """Raises ResponseNotFound, StoreFailed."""
    record = await _record_of(request)
    stop = request.app[PRESENCE].stopper_of(record.id)
    if not await request.app[STORE].delete(record.id, record.owner):
        raise _not_found(record.id)
    stop()
    return json_response({"id": record.id, "object": "response", "deleted": True})


async def cancel_response(request: web.Request) -> web.Response:
    """Stop the run; the object, once that is so. One that has ended stays as it is."""
    record = await _record_of(request)
    if not msgspec.json.decode(record.body).get("background"):
        raise InvalidRequest(
            "Only a response that was asked for with 'background' can be cancelled.", param="id"
        )
    store = request.app[STORE]
    if record.active:
        async with store.watch(record.id) as watch:
            await store.ask_cancel(record.id, record.owner)
            request.app[PRESENCE].stopper_of(record.id)()
            try:
                async with asyncio.timeout(CANCEL_SECONDS):
                    while record.active:
                        await watch.changed()
                        record = await _record_of(request)
            except TimeoutError:
                pass  # its server is slow, or gone: the wish is noted
    return _object(record)


async def list_input_items(request: web.Request) -> web.Response:
    """What the response was asked with. Raises ResponseNotFound, InvalidRequest, StoreFailed."""
    items = input_of(await _record_of(request))
    if newest_first(request):
        items.reverse()
    after = request.query.get("after")
    if after is not None:
        place = next((i for i, item in enumerate(items) if item.get("id") == after), None)
        if place is None:
            raise InvalidRequest("'after' is the id of no item that is here.", param="after")
        items = items[place + 1 :]
    return json_response(listed(items, limit_of(request)))


def listed(items: Sequence[dict[str, Any]], limit: int) -> dict[str, Any]:
    """A page, of one more item than it may hold where there are more."""
    page = items[:limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else "",
        "last_id": page[-1]["id"] if page else "",
        "has_more": len(items) > limit,
    }


def newest_first(request: web.Request) -> bool:
    """The order asked for; descending by default, as OpenAI has it. Raises InvalidRequest."""
    order = request.query.get("order", "desc")
    if order not in {"asc", "desc"}:
        raise InvalidRequest("'order' must be asc or desc.", param="order")
    return order == "desc"


def limit_of(request: web.Request) -> int:
    """How many are asked for, 20 by default. Raises InvalidRequest."""
    limit = whole(request.query.get("limit", "20"), "limit")
    if not 1 <= limit <= MOST_LISTED:
        raise InvalidRequest(f"'limit' must be from 1 to {MOST_LISTED}.", param="limit")
    return limit


def whole(text: str, param: str) -> int:
    """Raises InvalidRequest."""
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise InvalidRequest(f"'{param}' must be a whole number.", param=param)
    return int(text)


def _switch(request: web.Request, name: str) -> bool:
    said = request.query.get(name, "false").lower()
    if said not in {"true", "false", "1", "0"}:
        raise InvalidRequest(f"'{name}' must be true or false.", param=name)
    return said in {"true", "1"}


async def _record_of(request: web.Request) -> Record:
    response_id = request.match_info["id"]
    record = await request.app[STORE].get(response_id, request.get(API_KEY, ""))
    if record is None or record.kind != KIND:
        raise _not_found(response_id)
    return record


def _not_found(response_id: str) -> ResponseNotFound:
    return ResponseNotFound(f"Response with id '{response_id[:128]}' not found.", param="id")


def _object(record: Record) -> web.Response:
    return web.Response(body=record.body, content_type="application/json")
