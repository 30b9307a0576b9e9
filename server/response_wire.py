"""The JSON of the Responses API, as pure functions: what a run tells → the events of one response, and its object.

In: acts of `ItemSorter`, the end of a `Transcript`. Out: ready server-sent events, in this order:

    response.created, response.in_progress (queued before it, in the background)
    for each item: output_item.added, what the item's kind has, output_item.done
      reasoning              content_part.added, reasoning_text.delta*, reasoning_text.done, content_part.done
                             (with `reasoning.summary`: reasoning_summary_part and reasoning_summary_text)
      code_interpreter_call  in_progress, code.delta*, code.done, interpreting, completed
      mcp_call               in_progress, arguments.delta, arguments.done, completed or failed
      function_call          arguments.delta*, arguments.done
      message                content_part.added, output_text.delta*, output_text.done, content_part.done
    response.completed, response.incomplete or response.failed, then `[DONE]`

Every event has the next `sequence_number`, from 0 on. Ids are made of the response's id. An item that was begun is ended
whatever happens. What only grows (thoughts, logs) is cut into parts; a longer event is several `data:` lines.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.chat_wire import MAX_CHARACTERS, TRUNCATED, Tokens
from streaming.events import Failure
from streaming.item_sorter import (
    Act,
    Code,
    CodeEnds,
    CodeRuns,
    Logs,
    Thought,
    ToolBegins,
    ToolEnds,
)
from streaming.run_spec import CalledTool

Json = dict[str, Any]

# A part of thoughts, or of logs, is closed past so many characters: its whole text stands in one event.
MAX_PART_CHARACTERS = 4096
# Of thoughts and logs in the response's object; a stream carries any amount.
MAX_KEPT_CHARACTERS = 1 << 20
# Longer events are cut between two tokens of JSON.
MAX_LINE_BYTES = 48 * 1024
OWN_TOOLS = "agent"
# Sent to those who ask for it by `include`: the API has no event for what code prints.
LIVE_LOGS = "smolgate:code_interpreter_call_logs"
# OpenAI's codes that say what ours do; all others are the server's.
ERROR_CODES = {
    "rate_limit_exceeded": "rate_limit_exceeded",
    "queue_full": "rate_limit_exceeded",
    "queue_timeout": "rate_limit_exceeded",
    "key_limit": "rate_limit_exceeded",
}


@dataclass
class _Open:
    """An item that is under way."""

    index: int
    item: Json
    running: bool = False


class ResponseWire:
    """One response's events. `head` is what its object tells of the request.

    `as_summary`: thoughts are told as a summary; `live_logs`: what code prints, as it comes.
    """

    def __init__(
        self, response_id: str, head: Mapping[str, Any], *, as_summary: bool, live_logs: bool
    ) -> None:
        self.id = response_id
        self._head = dict(head)
        self._as_summary = as_summary
        self._live_logs = live_logs
        self._stem = response_id.partition("_")[2]
        self._sequence = 0
        self._output: list[Json] = []
        self._kept = 0
        self._thinking: _Open | None = None
        self._part: list[str] = []
        self._codes: list[_Open] = []
        self._tools: dict[str, _Open] = {}

    @property
    def next_sequence(self) -> int:
        return self._sequence

    def skip_to(self, sequence: int) -> None:
        """Go on behind events that another wire made."""
        self._sequence = sequence

    def response(self, status: str, **more: Any) -> Json:
        """The object as it is now."""
        return self._head | {"status": status, "output": self._output} | more

    def queued(self) -> list[bytes]:
        return [
            self._event("response.created", response=self.response("queued")),
            self._event("response.queued", response=self.response("queued")),
        ]

    def created(self) -> list[bytes]:
        return [
            self._event("response.created", response=self.response("in_progress")),
            self.in_progress(),
        ]

    def in_progress(self) -> bytes:
        return self._event("response.in_progress", response=self.response("in_progress"))

    def tell(self, acts: Sequence[Act]) -> list[bytes]:
        return [event for act in acts for event in self._tell(act)]

    def answer(self, text: str, *, status: str = "completed") -> list[bytes]:
        """The message, as a whole."""
        events = list(self._end_thinking())
        item: Json = {"type": "message", "role": "assistant", "content": []}
        opened, added = self._add("msg", item)
        events.append(added)
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        where = {"item_id": item["id"], "output_index": opened.index, "content_index": 0}
        events.append(self._event("response.content_part.added", **where, part=part))
        events += [
            self._event("response.output_text.delta", **where, delta=piece, logprobs=[])
            for piece in _pieces(text)
        ]
        part = part | {"text": text}
        events.append(self._event("response.output_text.done", **where, text=text, logprobs=[]))
        events.append(self._event("response.content_part.done", **where, part=part))
        item["content"] = [part]
        events.append(self._done(opened, status))
        return events

    def calls(self, calls: Sequence[CalledTool]) -> list[bytes]:
        """What the client is to execute."""
        events = list(self._end_thinking())
        for call in calls:
            item: Json = {"type": "function_call", "call_id": call.id, "name": call.name}
            opened, added = self._add("fc", item | {"arguments": ""})
            events.append(added)
            where = {"item_id": opened.item["id"], "output_index": opened.index}
            events += [
                self._event("response.function_call_arguments.delta", **where, delta=piece)
                for piece in _pieces(call.arguments)
            ]
            events.append(
                self._event(
                    "response.function_call_arguments.done",
                    **where,
                    name=call.name,
                    arguments=call.arguments,
                )
            )
            opened.item["arguments"] = call.arguments
            events.append(self._done(opened))
        return events

    def end(self, response: Json) -> list[bytes]:
        """The last event; `response` is the object, its status the event's name. `[DONE]` is its reader's."""
        events = list(self._end_thinking())
        name = "failed" if response["status"] == "cancelled" else response["status"]
        events.append(self._event(f"response.{name}", response=response))
        return events

    def break_off(self) -> list[bytes]:
        """End what is under way: the run has failed."""
        events = list(self._end_thinking())
        for opened in reversed(self._codes):
            events += self._end_code(opened, failed=True)
        self._codes.clear()
        for id in list(self._tools):
            events += self._end_tool(ToolEnds(id, "", failed=True))
        return events

    def error(self, error: Mapping[str, Any]) -> bytes:
        return self._event(
            "error", code=error["code"], message=error["message"], param=error["param"]
        )

    def _tell(self, act: Act) -> Iterator[bytes]:
        if isinstance(act, Thought):
            yield from self._think(act.text)
            return
        if not isinstance(act, Logs):
            yield from self._end_thinking()
        match act:
            case Code(text=text):
                yield from self._code(text)
            case CodeRuns():
                yield from self._run_code()
            case Logs(text=text):
                yield from self._log(text)
            case CodeEnds(failed=failed):
                if self._codes:
                    yield from self._end_code(self._codes.pop(), failed=failed)
            case ToolBegins():
                yield from self._begin_tool(act)
            case ToolEnds():
                yield from self._end_tool(act)

    # --- thoughts

    def _think(self, text: str) -> Iterator[bytes]:
        if self._thinking is None:
            item: Json = {"type": "reasoning", "summary": []}
            if not self._as_summary:
                item["content"] = []
            self._thinking, added = self._add("rs", item)
            yield added
        for piece in _pieces(text):
            if not self._part:
                yield self._part_event("added", "")
            self._part.append(piece)
            yield self._thought_event("delta", delta=piece)
            if sum(map(len, self._part)) >= MAX_PART_CHARACTERS:
                yield from self._end_part()

    def _end_part(self) -> Iterator[bytes]:
        assert self._thinking is not None
        text = "".join(self._part)
        yield self._thought_event("done", text=text)
        yield self._part_event("done", text)
        self._part.clear()
        self._parts().append({"type": self._part_type, "text": self._keep(text)})

    def _end_thinking(self) -> Iterator[bytes]:
        if self._thinking is not None:
            if self._part:
                yield from self._end_part()
            opened, self._thinking = self._thinking, None
            yield self._done(opened)

    def _parts(self) -> list[Json]:
        assert self._thinking is not None
        parts: list[Json] = self._thinking.item["summary" if self._as_summary else "content"]
        return parts

    @property
    def _part_type(self) -> str:
        return "summary_text" if self._as_summary else "reasoning_text"

    def _thought_event(self, what: str, **fields: Any) -> bytes:
        name = "reasoning_summary_text" if self._as_summary else "reasoning_text"
        return self._event(f"response.{name}.{what}", **self._part_place(), **fields)

    def _part_event(self, what: str, text: str) -> bytes:
        name = "reasoning_summary_part" if self._as_summary else "content_part"
        part = {"type": self._part_type, "text": text}
        return self._event(f"response.{name}.{what}", **self._part_place(), part=part)

    def _part_place(self) -> Json:
        assert self._thinking is not None
        return {
            "item_id": self._thinking.item["id"],
            "output_index": self._thinking.index,
            "summary_index" if self._as_summary else "content_index": len(self._parts()),
        }

    # --- code

    def _code(self, text: str) -> Iterator[bytes]:
        if not self._codes or self._codes[-1].running:
            yield from self._begin_code()
        opened = self._codes[-1]
        opened.item["code"] += text
        for piece in _pieces(text):
            yield self._item_event(opened, "response.code_interpreter_call_code.delta", delta=piece)

    def _begin_code(self) -> Iterator[bytes]:
        item: Json = {
            "type": "code_interpreter_call",
            "code": "",
            "container_id": f"cntr_{self._stem}",
            "outputs": None,
        }
        opened, added = self._add("ci", item)
        self._codes.append(opened)
        yield added
        yield self._item_event(opened, "response.code_interpreter_call.in_progress")

    def _run_code(self) -> Iterator[bytes]:
        if not self._codes or self._codes[-1].running:
            yield from self._begin_code()
        opened = self._codes[-1]
        opened.running = True
        opened.item["status"] = "interpreting"
        yield self._item_event(
            opened, "response.code_interpreter_call_code.done", code=opened.item["code"]
        )
        yield self._item_event(opened, "response.code_interpreter_call.interpreting")

    def _log(self, text: str) -> Iterator[bytes]:
        if not self._codes:  # a later leg: the code was told in the one before
            yield from self._think(text)
            return
        opened = self._codes[-1]
        outputs = opened.item["outputs"] = opened.item["outputs"] or []
        for piece in _pieces(text):
            kept = self._keep(piece)
            if outputs and len(outputs[-1]["logs"]) + len(kept) <= MAX_PART_CHARACTERS:
                outputs[-1]["logs"] += kept
            elif kept:
                outputs.append({"type": "logs", "logs": kept})
            if self._live_logs:
                yield self._item_event(opened, f"{LIVE_LOGS}.delta", delta=piece)

    def _end_code(self, opened: _Open, *, failed: bool) -> Iterator[bytes]:
        if not opened.running:
            yield self._item_event(
                opened, "response.code_interpreter_call_code.done", code=opened.item["code"]
            )
        opened.item["outputs"] = opened.item["outputs"] or []
        if not failed:
            yield self._item_event(opened, "response.code_interpreter_call.completed")
        yield self._done(opened, "failed" if failed else "completed")

    # --- tools

    def _begin_tool(self, act: ToolBegins) -> Iterator[bytes]:
        item: Json = {
            "type": "mcp_call",
            "server_label": act.server or OWN_TOOLS,
            "name": act.name,
            "arguments": "",
            "output": None,
            "error": None,
        }
        opened, added = self._add("mcp", item)
        self._tools[act.id] = opened
        yield added
        yield self._item_event(opened, "response.mcp_call.in_progress")
        for piece in _pieces(act.arguments):
            yield self._item_event(opened, "response.mcp_call_arguments.delta", delta=piece)
        opened.item["arguments"] = act.arguments
        yield self._item_event(opened, "response.mcp_call_arguments.done", arguments=act.arguments)

    def _end_tool(self, act: ToolEnds) -> Iterator[bytes]:
        opened = self._tools.pop(act.id, None)
        if opened is None:
            return
        if act.failed:
            opened.item["error"] = {"type": "mcp_tool_execution_error", "content": []}
        else:
            opened.item["output"] = self._keep(act.output)
        name = "failed" if act.failed else "completed"
        yield self._item_event(opened, f"response.mcp_call.{name}")
        yield self._done(opened, name)

    # --- items and events

    def _add(self, prefix: str, item: Json) -> tuple[_Open, bytes]:
        index = len(self._output)
        item["id"] = f"{prefix}_{self._stem}_{index}"
        item["status"] = "in_progress"
        self._output.append(item)
        opened = _Open(index, item)
        return opened, self._event("response.output_item.added", output_index=index, item=item)

    def _done(self, opened: _Open, status: str = "completed") -> bytes:
        opened.item["status"] = status
        return self._event("response.output_item.done", output_index=opened.index, item=opened.item)

    def _item_event(self, opened: _Open, name: str, **fields: Any) -> bytes:
        return self._event(name, item_id=opened.item["id"], output_index=opened.index, **fields)

    def _event(self, kind: str, /, **fields: Any) -> bytes:
        event = {"type": kind, "sequence_number": self._sequence} | fields
        self._sequence += 1
        return b"event: %b\n%b\n" % (kind.encode(), _data_lines(event))

    def _keep(self, text: str) -> str:
        """As much of it as the object may still hold."""
        left = MAX_KEPT_CHARACTERS - self._kept
        self._kept += len(text)
        if len(text) <= left:
            return text
        return text[:left] + TRUNCATED if left > 0 else ""


def usage_object(tokens: Tokens) -> Json:
    """Counts of a response."""
    return {
        "input_tokens": tokens.prompt,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": tokens.completion,
        "output_tokens_details": {"reasoning_tokens": tokens.reasoning},
        "total_tokens": tokens.prompt + tokens.completion,
    }


def failure_object(failure: Failure) -> Json:
    """The `error` of a response: a code that OpenAI's clients know, and ours as its type."""
    return {
        "code": ERROR_CODES.get(failure.code or "", "server_error"),
        "message": failure.message[:2000],
        "type": failure.code or failure.type,
    }


def _data_lines(event: Json) -> bytes:
    whole = json.dumps(event, separators=(",", ":"))
    if len(whole) <= MAX_LINE_BYTES:
        return f"data: {whole}\n".encode("ascii")
    lines: list[str] = []
    length = MAX_LINE_BYTES
    for token in json.dumps(event, indent=0).split("\n"):
        if length + len(token) >= MAX_LINE_BYTES:
            lines.append("")
            length = 0
        lines[-1] += token
        length += len(token)
    return "".join(f"data: {line}\n" for line in lines).encode("ascii")


def _pieces(text: str) -> Iterator[str]:
    for begin in range(0, len(text), MAX_CHARACTERS):
        yield text[begin : begin + MAX_CHARACTERS]
