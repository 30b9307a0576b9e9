"""What a request goes on from: a response before it, or a conversation.

In: `previous_response_id` or `conversation`. Out: what the agent remembers of it, and the items that came since. Where an
agent has left no memory (it failed, or waits for its client's tools) its items are told instead. Raises `NotFound`
where the caller has no such thing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from server.chat_limits import refusal
from server.response_schema import ResponseRequest
from streaming.failures import InvalidRequest, ResponseNotFound
from streaming.store import Conversation, Record, Store

Json = dict[str, Any]

KIND = "response"
MOST_LINKS = 100
MOST_ITEMS = 1000
# As many as come in one request, so that a page is not much larger than one.
PAGE_ITEMS = 20
_items = msgspec.json.Decoder(list[dict[str, Any]])
_object = msgspec.json.Decoder(dict[str, Any])


@dataclass(frozen=True)
class Context:
    """`items` came after what `memory` holds; `known` are items that may be referred to, by id. `mark`: where the
    conversation was.
    """

    memory: bytes = b""
    items: list[Json] = field(default_factory=list)
    known: dict[str, Json] = field(default_factory=dict)
    mark: "Mark | None" = None


class ConversationState(msgspec.Struct, kw_only=True):
    """What a conversation's record holds. `last` is the response whose memory holds all up to the item `seen`;
    `deleted` is how many items were.
    """

    metadata: dict[str, str] = {}
    last: str | None = None
    seen: str | None = None
    deleted: int = 0


class Mark(NamedTuple):
    """As long as it stays the same, a run that goes on from a conversation knows all of it, and nothing else."""

    last: str | None
    deleted: int
    newest: str | None  # item


_state = msgspec.json.Decoder(ConversationState)


async def context_of(
    store: Store, owner: str, request: ResponseRequest, *, most_bytes: int
) -> Context:
    """Raises ResponseNotFound, InvalidRequest, StoreFailed."""
    if request.previous_response_id is not None:
        return await _of_response(store, owner, request.previous_response_id, most_bytes)
    if request.conversation_id is not None:
        return await _of_conversation(store, owner, request.conversation_id, most_bytes)
    return Context()


def state_of(conversation: Conversation) -> ConversationState:
    return _state.decode(conversation.body)


async def mark_of(store: Store, conversation: Conversation, own: Sequence[str] = ()) -> Mark | None:
    """Where it is, or was before the items `own` were added; None where others are among or behind those."""
    state = state_of(conversation)
    newest = await store.items(
        conversation.id, conversation.owner, newest_first=True, limit=len(own) + 1
    )
    ids = [item_id for item_id, _ in reversed(newest)]
    before = ids[: len(ids) - len(own)]
    if ids[len(before) :] != list(own):
        return None
    return Mark(state.last, state.deleted, before[0] if before else None)


def output_of(record: Record) -> list[Json]:
    """The items that a response gave."""
    output: list[Json] = _object.decode(record.body)["output"]
    return output


def input_of(record: Record) -> list[Json]:
    """The items that a response was asked with."""
    return _items.decode(record.input)


def no_previous_response(response_id: str) -> InvalidRequest:
    """A bad request, as at OpenAI: the address is right, what it names is not there."""
    return InvalidRequest(
        f"Previous response with id '{response_id[:128]}' not found.",
        param="previous_response_id",
        code="previous_response_not_found",
    )


async def _of_response(store: Store, owner: str, response_id: str, most_bytes: int) -> Context:
    items: list[Json] = []
    known: list[Json] = []
    memory = b""
    link: str | None = response_id
    links = 0
    while link is not None and not memory:
        record = await store.get(link, owner)
        if record is None or record.kind != KIND:
            if link == response_id:
                raise no_previous_response(response_id)
            break
        if record.active:
            raise InvalidRequest(
                f"The response '{link}' has not ended yet.", param="previous_response_id"
            )
        links += 1
        most_bytes -= len(record.input) + len(record.body)
        if links > MOST_LINKS or (most_bytes < 0 and not record.memory):
            raise refusal("previous_response_id", "must not go on from more than fits a request")
        own = [*input_of(record), *output_of(record)]
        known = own + known
        if record.memory:
            memory = record.memory
        else:
            items = own + items
        link = record.previous
    return Context(memory, items, {item["id"]: item for item in known if "id" in item})


async def _of_conversation(
    store: Store, owner: str, conversation_id: str, most_bytes: int
) -> Context:
    conversation = await store.get_conversation(conversation_id, owner)
    if conversation is None:
        raise ResponseNotFound(
            f"Conversation with id '{conversation_id[:128]}' not found.",
            param="conversation",
            code="conversation_not_found",
        )
    state = state_of(conversation)
    mark = await mark_of(store, conversation)
    memory = b""
    if state.last is not None and state.seen is not None:
        record = await store.get(state.last, owner)
        memory = record.memory if record is not None else b""
    after = state.seen if memory else None
    items: list[Json] = []
    while page := await store.items(conversation_id, owner, after=after, limit=PAGE_ITEMS):
        most_bytes -= sum(len(item) for _, item in page)
        if most_bytes < 0:
            raise refusal("conversation", "must not hold more than fits a request")
        items += [_object.decode(item) for _, item in page]
        if len(items) > MOST_ITEMS:
            raise refusal(
                "conversation", f"must hold at most {MOST_ITEMS} items that are not answered"
            )
        after = page[-1][0]
    return Context(memory, items, {item["id"]: item for item in items}, mark)
