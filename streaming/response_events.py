"""The events of one response of OpenAI's Responses API, and the response object that they add up to.

In: what a model does, piece by piece: text, a refusal, thoughts, calls, an end. Out: ready server-sent events of
ASCII JSON, in the order that clients know: an item is added, its parts are opened, filled and closed, it is
done, and only then comes the next. Every event has its `sequence_number`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from streaming.failures import UpstreamFailed
from streaming.json_codec import encode_json

Json = dict[str, Any]
PartKind = Literal["output_text", "refusal", "reasoning_text"]
Status = Literal["completed", "incomplete"]

# All is repeated when it is done, and so has to be kept.
MAX_CHARACTERS = 8 << 20
# Each of them costs more than the few bytes that may have made it.
MAX_PARTS = 10_000


@dataclass(frozen=True)
class _Shape:
    """How a part of one kind is written: in which item, under which events, its text in which field."""

    item: Literal["message", "reasoning"]
    events: str
    text_field: str
    part: Json = field(default_factory=dict)
    event: Json = field(default_factory=dict)


_SHAPES: dict[PartKind, _Shape] = {
    "output_text": _Shape(
        "message",
        "response.output_text",
        "text",
        {"annotations": [], "logprobs": []},
        {"logprobs": []},
    ),
    "refusal": _Shape("message", "response.refusal", "refusal"),
    "reasoning_text": _Shape("reasoning", "response.reasoning_text", "text"),
}
_ID_PREFIX = {"message": "msg", "reasoning": "rs", "function_call": "fc"}


class _Filling:
    """What is being written: the events' bytes up to the sequence number, and the text so far."""

    __slots__ = ("delta_head", "kind", "texts", "where")

    def __init__(self, kind: str, event: str, where: Json, more: Json) -> None:
        self.kind = kind
        self.where = where
        named = {"type": event, **where, **more}
        self.delta_head = _named(event) + encode_json(named)[:-1] + b',"sequence_number":'
        self.texts: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self.texts)


class ResponseEvents:
    """Tell it what happens, `take` the events. `begun` is the response object of the start.

    `now` is in seconds since the epoch. An item's id is made of the response's and its place. `holds_end`: a good end
    waits for `tell_end`.
    """

    def __init__(
        self, begun: Mapping[str, Any], *, now: Callable[[], float], holds_end: bool = False
    ) -> None:
        self._response: Json = {**begun, "status": "in_progress", "output": [], "usage": None}
        self._now = now
        self._out: list[bytes] = []
        self._sequence = 0
        self._characters = 0
        self._parts = 0
        self._has_begun = False
        self._holds_end = holds_end
        self.holds = False  # the end is waiting
        self._item: Json | None = None
        self._filling: _Filling | None = None
        self.ended = False

    @property
    def response(self) -> Json:
        """The response object as it is by now."""
        return self._response

    @property
    def writes_call(self) -> bool:
        """A call is open: arguments may follow."""
        return self._filling is not None and self._filling.kind == "function_call"

    def next_id(self, prefix: str) -> str:
        """An id for what is at the next place of the output."""
        own = self._response["id"].rpartition("_")[2]
        return f"{prefix}_{own}{len(self._response['output']):04x}"

    def take(self) -> bytes:
        """The events since the last time."""
        taken, self._out = b"".join(self._out), []
        return taken

    def begin(self) -> None:
        """Nothing where it has begun."""
        if not self._has_begun:
            self._has_begun = True
            for event in ("response.created", "response.in_progress"):
                self._send(event, {"response": self._response})

    def write(self, kind: PartKind, text: str) -> None:
        """A piece of text, where there is any."""
        if text:
            filling = self._filling
            if filling is None or filling.kind != kind:
                filling = self._open_part(kind)
            self._fill(filling, text)

    def open_call(self, call_id: str, name: str) -> None:
        """A call of a function; its arguments follow, until something else does."""
        self.close_item()
        self._open_item("function_call", {"call_id": call_id, "name": name, "arguments": ""})
        where = self._where()
        event = "response.function_call_arguments.delta"
        self._filling = _Filling("function_call", event, where, {})

    def write_arguments(self, text: str) -> None:
        """A piece of the open call's arguments."""
        assert self._filling is not None
        if text:
            self._fill(self._filling, text)

    def close_item(self, status: Status = "completed") -> None:
        """What is open is done."""
        item = self._item
        if item is None:
            return
        self._close_filling()
        item["status"] = status
        index = len(self._response["output"]) - 1
        self._send("response.output_item.done", {"output_index": index, "item": item})
        self._item = None

    def end(self, usage: Json | None, incomplete: str | None = None) -> None:
        """The end; `incomplete` says why not all was said."""
        self.begin()
        self.close_item("incomplete" if incomplete else "completed")
        if incomplete:
            more: Json = {"status": "incomplete", "incomplete_details": {"reason": incomplete}}
        else:
            more = {"status": "completed", "completed_at": int(self._now())}
        self._response |= more | {"usage": usage}
        self.ended = True
        if self._holds_end:
            self.holds = True
        else:
            self.tell_end(store=False)

    def fail(self, error: Mapping[str, Any]) -> None:
        """The end of what went wrong: nothing where it has ended, an `error` where it has not begun.

        `error` is OpenAI's error object.
        """
        if self.holds:
            self.tell_end(store=False)
        if self.ended:
            return
        if not self._has_begun:
            told = {name: error.get(name) for name in ("code", "message", "param")}
            self._send("error", told)
            self.ended = True
            return
        if self._item is not None:
            self._keep_filling()
            self._item["status"] = "incomplete"
        limited = error.get("type") == "rate_limit_error"
        code = "rate_limit_exceeded" if limited else "server_error"
        told = {"code": code, "message": error["message"]}
        self._response |= {"status": "failed", "error": told}
        self.ended = True
        self.tell_end(store=False)

    def tell_end(self, *, store: bool) -> None:
        """Tell the end, and whether the response is kept."""
        self.holds = False
        self._response["store"] = store
        self._send(f"response.{self._response['status']}", {"response": self._response})

    def _open_part(self, kind: PartKind) -> _Filling:
        shape = _SHAPES[kind]
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise UpstreamFailed("The upstream's reply has too many parts.")
        if self._item is None or self._item["type"] != shape.item:
            self.close_item()
            own: Json = {"role": "assistant"} if shape.item == "message" else {"summary": []}
            self._open_item(shape.item, own | {"content": []})
        self._close_filling()
        assert self._item is not None
        where = self._where() | {"content_index": len(self._item["content"])}
        part = {"type": kind, shape.text_field: "", **shape.part}
        self._send("response.content_part.added", where | {"part": part})
        self._filling = _Filling(kind, f"{shape.events}.delta", where, shape.event)
        return self._filling

    def _open_item(self, kind: str, fields: Json) -> None:
        self.begin()
        output: list[Json] = self._response["output"]
        id_ = self.next_id(_ID_PREFIX[kind])
        self._item = {"id": id_, "type": kind, "status": "in_progress"} | fields
        self._send("response.output_item.added", {"output_index": len(output), "item": self._item})
        output.append(self._item)

    def _where(self) -> Json:
        assert self._item is not None
        return {"item_id": self._item["id"], "output_index": len(self._response["output"]) - 1}

    def _fill(self, filling: _Filling, text: str) -> None:
        self._characters += len(text)
        if self._characters > MAX_CHARACTERS:
            raise UpstreamFailed("The upstream's reply is too long.")
        self._out.append(
            b'%b%d,"delta":%b}\n\n' % (filling.delta_head, self._sequence, encode_json(text))
        )
        self._sequence += 1
        filling.texts.append(text)

    def _keep_filling(self) -> Json | None:
        """Put what was written into its item; returns the part, None for a call's arguments."""
        filling, item = self._filling, self._item
        self._filling = None
        if filling is None or item is None:
            return None
        if filling.kind == "function_call":
            item["arguments"] = filling.text
            return None
        shape = _SHAPES[filling.kind]  # type: ignore[index]
        part = {"type": filling.kind, shape.text_field: filling.text, **shape.part}
        item["content"].append(part)
        return part

    def _close_filling(self) -> None:
        filling, item = self._filling, self._item
        if filling is None or item is None:
            return
        part = self._keep_filling()
        if part is None:
            told = {"name": item["name"], "arguments": item["arguments"]}
            self._send("response.function_call_arguments.done", filling.where | told)
            return
        shape = _SHAPES[part["type"]]
        told = {shape.text_field: part[shape.text_field], **shape.event}
        self._send(f"{shape.events}.done", filling.where | told)
        self._send("response.content_part.done", filling.where | {"part": part})

    def _send(self, event: str, fields: Json) -> None:
        data = {"type": event, "sequence_number": self._sequence, **fields}
        self._out.append(_named(event) + encode_json(data) + b"\n\n")
        self._sequence += 1


def _named(event: str) -> bytes:
    return b"event: %b\ndata: " % event.encode("ascii")
