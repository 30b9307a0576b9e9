"""What translated responses of upstreams go on from, and how they are kept for the next one.

In: a request that names a response or a conversation. Out: the items before its own, where they are kept here. An
upstream that has the Responses API keeps its own, of which nothing is known here.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from aiohttp import web

from server.chat_request import decoded
from server.keys import API_KEY, PRESENCE, SETTINGS, STORE
from server.response_context import no_previous_response
from streaming.failures import InvalidRequest, SmolgateError
from streaming.json_codec import decode_json, encode_json
from streaming.store import Record

Json = dict[str, Any]

log = logging.getLogger(__name__)

KIND = "response"
MAX_TURNS = 1000
PAGE_ITEMS = 1000
MAX_ID_CHARACTERS = 128
_ID_PREFIX = {"message": "msg", "function_call": "fc", "function_call_output": "fco"}


class _Named(msgspec.Struct):
    """As much of a request as says what it goes on from; of whatever type, as it may not be ours to read."""

    previous_response_id: Any = None
    conversation: Any = None


_named = msgspec.json.Decoder(_Named)


class ResponseHistory:
    """Of one request; `read` it first."""

    def __init__(self, request: web.Request) -> None:
        self._app = request.app
        self._owner = request.get(API_KEY, "")
        self._previous: str | None = None
        self._conversation: str | None = None
        self.earlier: list[Json] = []

    async def read(self, body: bytes) -> bool:
        """Whether the request goes on from something that is kept here.

        Raises InvalidRequest for what cannot be gone on from, StoreFailed.
        """
        named = decoded(_named, body)
        asked = named.conversation
        conversation = asked.get("id") if isinstance(asked, dict) else asked
        if isinstance(named.previous_response_id, str):
            self._previous = named.previous_response_id
        if isinstance(conversation, str):
            self._conversation = conversation
        if self._previous is not None and self._conversation is None:
            return await self._read_responses(self._previous)
        if self._conversation is not None and self._previous is None:
            return await self._read_conversation(self._conversation)
        return False

    def check_found(self, *, found: bool) -> None:
        """Raises InvalidRequest where a translated request goes on from what is not kept here."""
        if found:
            return
        if self._previous is not None and self._conversation is not None:
            raise InvalidRequest(
                "'conversation' must be absent beside 'previous_response_id'.", param="conversation"
            )
        if self._previous is not None:
            raise no_previous_response(self._previous)
        if self._conversation is not None:
            raise InvalidRequest(
                f"Conversation with id '{self._conversation[:MAX_ID_CHARACTERS]}' not found.",
                param="conversation",
                code="conversation_not_found",
            )

    async def keep(self, response: Mapping[str, Any], items: Sequence[Json]) -> bool:
        """Whether a response that has ended, and the request's items, could be kept."""
        stem = response["id"].rpartition("_")[2]
        kept = [_with_id(item, stem, index) for index, item in enumerate(items)]
        record = Record(
            id=response["id"],
            owner=self._owner,
            kind=KIND,
            run="translated",
            front_end="",
            status=response["status"],
            created=float(response["created_at"]),
            ended=time.time(),
            previous=self._previous,
            conversation=self._conversation,
            body=encode_json({**response, "store": True}),
            input=encode_json(kept),
        )
        try:
            await self._app[PRESENCE].create(record)
            if self._conversation is not None:
                rows = [(item["id"], encode_json(item)) for item in [*kept, *response["output"]]]
                return await self._app[STORE].add_items(self._conversation, self._owner, rows)
        except SmolgateError as error:
            log.warning("response %s is not kept: %s", response["id"], error)
            return False
        return True

    async def _read_responses(self, previous: str) -> bool:
        records: list[Record] = []
        size = 0
        following: str | None = previous
        while following is not None:
            record = await self._app[STORE].get(following, self._owner)
            if record is None or record.kind != KIND:
                if not records:
                    return False
                raise no_previous_response(following)  # it was deleted
            if record.active:
                raise InvalidRequest(
                    f"The response '{following}' has not ended yet.", param="previous_response_id"
                )
            size += len(record.input) + len(record.body)
            if len(records) >= MAX_TURNS or size > self._app[SETTINGS].max_body_bytes:
                raise InvalidRequest(
                    "'previous_response_id' goes on from more than fits a request.",
                    param="previous_response_id",
                )
            records.append(record)
            following = record.previous
        for record in reversed(records):
            self.earlier += decode_json(record.input or b"[]")
            self.earlier += decode_json(record.body)["output"]
        return True

    async def _read_conversation(self, conversation: str) -> bool:
        store = self._app[STORE]
        if await store.get_conversation(conversation, self._owner) is None:
            return False
        after: str | None = None
        size = 0
        while True:
            page = await store.items(conversation, self._owner, after=after, limit=PAGE_ITEMS)
            self.earlier += [decode_json(item) for _, item in page]
            size += sum(len(item) for _, item in page)
            if size > self._app[SETTINGS].max_body_bytes:
                raise InvalidRequest(
                    "'conversation' holds more than fits a request.", param="conversation"
                )
            if len(page) < PAGE_ITEMS:
                return True
            after = page[-1][0]


def _with_id(item: Json, stem: str, index: int) -> Json:
    """An input item as it is listed: with its type, an id, and a message's content in parts."""
    kind = item.get("type") or "message"
    kept = {"type": kind, **item}
    if not isinstance(kept.get("id"), str):
        kept["id"] = f"{_ID_PREFIX.get(kind, 'item')}_{stem}_in{index}"
    if kind == "message" and isinstance(kept.get("content"), str):
        part = "output_text" if kept.get("role") == "assistant" else "input_text"
        kept["content"] = [{"type": part, "text": kept["content"]}]
        kept.setdefault("status", "completed")
    return kept
