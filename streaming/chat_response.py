"""A chat completion, in chunks or whole → a response of the Responses API.

In: `ChatChunk`s in order, then the end. Out: what `ResponseEvents` makes of them. What holds:

 1. thoughts become reasoning items, content and refusals message items, calls function_call items; a change of
    kind ends an item;
 2. scrubbed, think tags are treated as in chat; in mode `reasoning` what they enclose is a reasoning item;
 3. calls are told one after the other, each live; one that begins while the arguments of the one before are no
    JSON yet waits for its turn;
 4. the end is told once all has come: a finish reason alone is not the end, since the usage may follow it.

Raises `UpstreamFailed` for an error inside a reply, and for a reply that ends before its finish.
"""

from typing import Any

import msgspec

from sanitize.think import ThinkScrubber
from streaming.failures import UpstreamFailed
from streaming.model_chunks import (
    CharacterMender,
    ChatChunk,
    Delta,
    ToolCallDelta,
    Usage,
    text_of,
)
from streaming.relay import ScrubOptions
from streaming.response_events import MAX_CHARACTERS, ResponseEvents, Status
from streaming.upstream_errors import error_text

MAX_CALLS = 256
# The arguments of a call that are longer than this are taken to be whole at the end alone.
MAX_CHECKED_CHARACTERS = 1 << 20
# Why a response is not complete, by the finish reason of a chat completion.
INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


class ChatResponse:
    """Feed it chunks, `end` it, take the events from `events`."""

    def __init__(self, events: ResponseEvents, scrub: ScrubOptions | None) -> None:
        self.events = events
        self._calls = _Calls(events)
        self._texts = _PlainTexts(events) if scrub is None else _ScrubbedTexts(events, scrub)
        self._finish: str | None = None
        self._usage: Usage | None = None
        self._has_choice = False

    def feed(self, chunk: ChatChunk) -> None:
        if self.events.ended:
            return
        if chunk.error or chunk.object == "error":
            said = error_text(chunk.error or chunk.message or chunk.detail)
            raise UpstreamFailed(f"The upstream failed: {said}")
        if chunk.usage is not None:
            self._usage = chunk.usage
        if not chunk.choices:
            return
        if not self._has_choice:
            self._has_choice = True
            self.events.begin()
        choice = chunk.choices[0]
        if self._finish is not None:  # what comes behind it is not the model's
            return
        if choice.delta is not None:
            self._read(choice.delta)
        elif choice.message is not None:
            self._read(choice.message, is_whole=True)
        if choice.finish_reason:  # MiniMax sends "" for null
            self._finish = choice.finish_reason
            self._close()

    def end(self, *, is_done: bool = False) -> None:
        """The reply is over; `is_done`: the upstream said so."""
        if self.events.ended:
            return
        if not self._has_choice:
            raise UpstreamFailed("The upstream sent something that is no chat completion.")
        if self._finish is None:
            if not is_done:
                raise UpstreamFailed("The upstream ended its reply before it was complete.")
            self._finish = "stop"
            self._close()
        if self._finish == "error":
            raise UpstreamFailed("The upstream failed, and did not say why.")
        self.events.end(usage_object(self._usage), INCOMPLETE.get(self._finish))

    def _read(self, delta: Delta, *, is_whole: bool = False) -> None:
        if thoughts := delta.reasoning_content or delta.reasoning:
            self._texts.think(thoughts)
        if delta.content and (text := text_of(delta.content)):
            self._texts.say(text)
        if delta.refusal and isinstance(delta.refusal, str):
            self._texts.refuse(delta.refusal)
        if delta.tool_calls:
            self._texts.flush()
            for position, call in enumerate(delta.tool_calls):
                self._calls.feed(call, position if is_whole else call.index)

    def _close(self) -> None:
        status: Status = "incomplete" if self._finish in INCOMPLETE else "completed"
        self._texts.flush()
        self._calls.flush(status)
        self.events.close_item(status)


class _PlainTexts:
    """Texts as they come."""

    def __init__(self, events: ResponseEvents) -> None:
        self._events = events
        self._thoughts, self._content, self._refusal = (
            CharacterMender(),
            CharacterMender(),
            CharacterMender(),
        )

    def think(self, text: str) -> None:
        self._events.write("reasoning_text", self._thoughts.feed(text))

    def say(self, text: str) -> None:
        self._events.write("output_text", self._content.feed(text))

    def refuse(self, text: str) -> None:
        self._events.write("refusal", self._refusal.feed(text))

    def flush(self) -> None:
        """The texts so far are whole."""
        self._events.write("reasoning_text", self._thoughts.flush())
        self._events.write("output_text", self._content.flush())
        self._events.write("refusal", self._refusal.flush())


class _ScrubbedTexts(_PlainTexts):
    """Texts without think tags; what is held of one comes out before the next kind does."""

    def __init__(self, events: ResponseEvents, scrub: ScrubOptions) -> None:
        super().__init__(events)
        self._scrub = scrub
        self._content_tags = ThinkScrubber(scrub.mode, scrub.tag_names, scrub.starts_open)
        self._thought_tags = ThinkScrubber("tags", scrub.tag_names)
        self._refusal_tags = ThinkScrubber("tags", scrub.tag_names)
        self._thinks = False

    def think(self, text: str) -> None:
        self._thinks = True
        self._events.write("reasoning_text", self._thought_tags.feed(self._thoughts.feed(text)))

    def say(self, text: str) -> None:
        if self._thinks:
            self._end_thoughts()
        self._say(self._content_tags.feed_segments(self._content.feed(text)))

    def refuse(self, text: str) -> None:
        self._events.write("refusal", self._refusal_tags.feed(self._refusal.feed(text)))

    def flush(self) -> None:
        self._end_thoughts()
        tags = self._content_tags
        self._say(tags.feed_segments(self._content.flush()))
        self._say(tags.flush_segments())
        # Text behind this one is a new text, which begins outside every block.
        self._content_tags = ThinkScrubber(self._scrub.mode, self._scrub.tag_names)
        rest = self._refusal_tags.feed(self._refusal.flush()) + self._refusal_tags.flush()
        self._events.write("refusal", rest)

    def _end_thoughts(self) -> None:
        self._thinks = False
        rest = self._thought_tags.feed(self._thoughts.flush()) + self._thought_tags.flush()
        self._events.write("reasoning_text", rest)

    def _say(self, segments: list[Any]) -> None:
        for text, is_reasoning in segments:
            self._events.write("reasoning_text" if is_reasoning else "output_text", text)


class _Call:
    """One call of a function, as far as it has come."""

    __slots__ = ("arguments", "characters", "id", "name", "state")

    def __init__(self, id_: str | None) -> None:
        self.id = id_
        self.name = ""
        self.arguments: list[str] = []
        self.characters = 0
        self.state = "waiting"  # then "open", then "closed"

    @property
    def is_whole(self) -> bool:
        """Its arguments are a JSON value by now."""
        if self.characters > MAX_CHECKED_CHARACTERS:
            return False
        try:
            msgspec.json.decode("".join(self.arguments))
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return False
        return True


class _Calls:
    """Deltas of calls, in whatever order → one call after the other."""

    def __init__(self, events: ResponseEvents) -> None:
        self._events = events
        self._all: list[_Call] = []
        self._by_index: dict[int, _Call] = {}
        self._open: _Call | None = None
        self._characters = 0

    def feed(self, delta: ToolCallDelta, index: int | None) -> None:
        call, is_new = self._call_of(delta, index)
        function = delta.function
        if function is not None and function.name and not call.name:
            call.name = function.name
            is_new = True
        if function is not None and function.arguments:
            self._add(call, function.arguments)
        if is_new:
            self._advance()

    def flush(self, status: Status) -> None:
        """No more will come: those that wait have their turn."""
        for call in [call for call in self._all if call.state == "waiting"]:
            self._begin(call)
        if self._open is not None:
            self._end_open(status)

    def _call_of(self, delta: ToolCallDelta, index: int | None) -> tuple[_Call, bool]:
        """The call that a delta belongs to, and whether it is a new one."""
        if index is not None:
            known = self._by_index.get(index)
        else:
            known = self._all[-1] if self._all else None
        if known is not None:
            # Some number all their calls 0, or none of them: another id with a name is another call.
            named = delta.function is not None and bool(delta.function.name)
            if not (delta.id and known.id and delta.id != known.id and named):
                known.id = known.id or delta.id
                return known, False
        if len(self._all) >= MAX_CALLS:
            raise UpstreamFailed("The upstream's reply has too many calls.")
        call = _Call(delta.id or None)
        self._all.append(call)
        if index is not None:
            self._by_index[index] = call
        return call, True

    def _add(self, call: _Call, arguments: str) -> None:
        if call.state == "open" and self._events.writes_call:
            self._events.write_arguments(arguments)
        elif call.state != "waiting":
            if arguments.strip():
                raise UpstreamFailed("The upstream went on with a call that was complete.")
            return
        call.arguments.append(arguments)
        call.characters += len(arguments)
        self._characters += len(arguments)
        if self._characters > MAX_CHARACTERS:
            raise UpstreamFailed("The upstream's reply is too long.")

    def _advance(self) -> None:
        """Begin those whose turn it is."""
        for call in self._all:
            if call.state != "waiting":
                continue
            current = self._open if self._events.writes_call else None
            if not call.name or (current is not None and not current.is_whole):
                return
            self._begin(call)

    def _begin(self, call: _Call) -> None:
        if self._open is not None:
            self._end_open("completed")
        call.id = call.id or self._events.next_id("call")
        self._events.open_call(call.id, call.name)
        self._events.write_arguments("".join(call.arguments))
        call.state, self._open = "open", call

    def _end_open(self, status: Status) -> None:
        assert self._open is not None
        if self._events.writes_call:
            self._events.close_item(status)
        self._open.state, self._open = "closed", None


def usage_object(usage: Usage | None) -> dict[str, Any] | None:
    """A chat completion's usage as a response has it."""
    if usage is None:
        return None
    prompt, completion = usage.prompt_tokens or 0, usage.completion_tokens or 0
    thoughts, details = usage.completion_tokens_details, usage.prompt_tokens_details
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return {
        "input_tokens": prompt,
        "input_tokens_details": {
            "cached_tokens": cached if isinstance(cached, int) else 0,
            "cache_write_tokens": 0,
        },
        "output_tokens": completion,
        "output_tokens_details": {
            "reasoning_tokens": (thoughts.reasoning_tokens if thoughts else None) or 0
        },
        "total_tokens": prompt + completion,
    }
