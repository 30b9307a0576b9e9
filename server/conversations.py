"""`/v1/conversations`: items that turns go on from, kept by the server.

    POST   /v1/conversations                        {"items": […], "metadata": {…}}
    GET    /v1/conversations/{id}                   POST: new metadata; DELETE: its items go, its responses stay
    GET    /v1/conversations/{id}/items             ?order, ?after, ?limit; POST: more items
    GET    /v1/conversations/{id}/items/{item_id}   DELETE

What an agent remembers of a conversation is with its last response; items that are put there besides are told to it, and
once an item is deleted it is told what is left, and remembers nothing else. A caller sees those of its own key.
"""

import secrets
from typing import Any

import msgspec
from aiohttp import web

from server.chat_request import decoded
from server.keys import API_KEY, IDENTITY, STORE
from server.response_context import ConversationState, state_of
from server.response_input import items_of
from server.response_limits import check_metadata
from server.response_routes import limit_of, listed, newest_first
from server.responses import json_response
from streaming.failures import InvalidRequest, ResponseNotFound
from streaming.json_codec import encode_json
from streaming.store import Conversation

MOST_AT_ONCE = 20


class NewConversation(msgspec.Struct):
    items: list[dict[str, Any]] | None = None
    metadata: dict[str, str] | None = None


class NewItems(msgspec.Struct):
    items: list[dict[str, Any]]


class NewMetadata(msgspec.Struct):
    metadata: dict[str, str] | None


_new = msgspec.json.Decoder(NewConversation)
_items = msgspec.json.Decoder(NewItems)
_metadata = msgspec.json.Decoder(NewMetadata)


async def create_conversation(request: web.Request) -> web.Response:
    """Raises InvalidRequest, StoreFailed."""
    asked = decoded(_new, await request.read() or b"{}")
    check_metadata(asked.metadata or {})
    items = _kept(asked.items)
    owner, store = request.get(API_KEY, ""), request.app[STORE]
    conversation = Conversation(
        id=f"conv_{secrets.token_hex(16)}",
        owner=owner,
        created=request.app[IDENTITY].now(),
        body=msgspec.json.encode(ConversationState(metadata=asked.metadata or {})),
    )
    await store.create_conversation(conversation)
    if items:
        await store.add_items(conversation.id, owner, _rows(items))
    return json_response(_object(conversation))


async def get_conversation(request: web.Request) -> web.Response:
    return json_response(_object(await _conversation_of(request)))


async def update_conversation(request: web.Request) -> web.Response:
    asked = decoded(_metadata, await request.read())
    check_metadata(asked.metadata or {})
    conversation = await _conversation_of(request)
    state = state_of(conversation)
    state.metadata = asked.metadata or {}
    await _save(request, conversation, state)
    return json_response(_object(conversation))


async def delete_conversation(request: web.Request) -> web.Response:
    conversation = await _conversation_of(request)
    await request.app[STORE].delete_conversation(conversation.id, conversation.owner)
    return json_response({"id": conversation.id, "object": "conversation.deleted", "deleted": True})


async def list_items(request: web.Request) -> web.Response:
    conversation = await _conversation_of(request)
    limit = limit_of(request)
    after = request.query.get("after")
    store = request.app[STORE]
    if after is not None:
        found = await store.get_item(conversation.id, conversation.owner, after)
        if found is None:
            raise InvalidRequest("'after' is the id of no item that is here.", param="after")
    rows = await store.items(
        conversation.id,
        conversation.owner,
        after=after,
        newest_first=newest_first(request),
        limit=limit + 1,
    )
    return json_response(listed([msgspec.json.decode(item) for _, item in rows], limit))


async def create_items(request: web.Request) -> web.Response:
    asked = decoded(_items, await request.read())
    conversation = await _conversation_of(request)
    items = _kept(asked.items)
    if not items:
        raise InvalidRequest("'items' must hold at least one item.", param="items")
    if not await request.app[STORE].add_items(conversation.id, conversation.owner, _rows(items)):
        raise _not_found(conversation.id)
    return json_response(listed(items, len(items)))


async def get_item(request: web.Request) -> web.Response:
    conversation = await _conversation_of(request)
    item_id = request.match_info["item_id"]
    item = await request.app[STORE].get_item(conversation.id, conversation.owner, item_id)
    if item is None:
        raise ResponseNotFound(f"Item with id '{item_id[:128]}' not found.", param="item_id")
    return web.Response(body=item, content_type="application/json")


async def delete_item(request: web.Request) -> web.Response:
    """The conversation without the item; an agent no longer remembers more than its items."""
    conversation = await _conversation_of(request)
    item_id = request.match_info["item_id"]
    store = request.app[STORE]
    if not await store.delete_item(conversation.id, conversation.owner, item_id):
        raise ResponseNotFound(f"Item with id '{item_id[:128]}' not found.", param="item_id")
    state = state_of(conversation)
    state.last = state.seen = None
    state.deleted += 1
    await _save(request, conversation, state)
    return json_response(_object(conversation))


async def _save(request: web.Request, conversation: Conversation, state: ConversationState) -> None:
    conversation.body = msgspec.json.encode(state)
    saved = await request.app[STORE].update_conversation(
        conversation.id, conversation.owner, conversation.body
    )
    if not saved:
        raise _not_found(conversation.id)


async def _conversation_of(request: web.Request) -> Conversation:
    conversation_id = request.match_info["id"]
    owner = request.get(API_KEY, "")
    conversation = await request.app[STORE].get_conversation(conversation_id, owner)
    if conversation is None:
        raise _not_found(conversation_id)
    return conversation


def _not_found(conversation_id: str) -> ResponseNotFound:
    return ResponseNotFound(
        f"Conversation with id '{conversation_id[:128]}' not found.", param="id"
    )


def _kept(given: list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    if given is not None and len(given) > MOST_AT_ONCE:
        raise InvalidRequest(f"'items' must hold at most {MOST_AT_ONCE} items.", param="items")
    return items_of(given, stem=secrets.token_hex(14), known={}, where="items")


def _rows(items: list[dict[str, Any]]) -> list[tuple[str, bytes]]:
    return [(item["id"], encode_json(item)) for item in items]


def _object(conversation: Conversation) -> dict[str, Any]:
    return {
        "id": conversation.id,
        "object": "conversation",
        "created_at": int(conversation.created),
        "metadata": state_of(conversation).metadata,
    }
