"""One leg of a run → one response: its events, ready to be sent, and its object.

In: a request's terms, and the run's events. Out: bytes of whole events; at the end the object, its status, and the memory
that the agent leaves behind. The same events give the same bytes, so whoever reads the run again gets the same response.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from server.chat_wire import Tokens
from server.response_schema import ResponseRequest, ResponseTool
from server.response_wire import LIVE_LOGS, ResponseWire, failure_object, usage_object
from streaming.client_tools import python_name
from streaming.events import Event, Final, Remembered, Started
from streaming.item_sorter import ItemSorter
from streaming.run import Run
from streaming.transcript import Transcript

Json = dict[str, Any]

# These say that somebody did not want it any more.
CANCELS = frozenset({"cancelled", "client_gone", "client_stalled"})
OUT_OF_STEPS = "max_messages"


@dataclass(frozen=True)
class ResponseTerms:
    """How a response is told. `head` is what its object tells of the request; `id` is the response's."""

    id: str
    head: Mapping[str, Any]
    as_summary: bool
    live_logs: bool
    background: bool
    client_tools: frozenset[str]


class ResponseTelling:
    """Feed it a leg's events. `told` once there was more than that it has begun; `status` once it has ended."""

    def __init__(
        self,
        terms: ResponseTerms,
        run: Run,
        *,
        begin: int,
        tag_names: tuple[str, ...],
        now: Callable[[], float],
    ) -> None:
        later = {"code_tags": run.code_tags, "is_later_leg": begin > 0}
        self.transcript = Transcript(tag_names=tag_names, **later)  # type: ignore[arg-type]
        self._sorter = ItemSorter(
            tag_names=tag_names,
            client_tools=terms.client_tools,
            **later,  # type: ignore[arg-type]
        )
        self.wire = ResponseWire(
            terms.id, terms.head, as_summary=terms.as_summary, live_logs=terms.live_logs
        )
        self._now = now
        self._queued = terms.background
        self._out_of_steps = False
        self.told = False
        self.status = "queued" if terms.background else "in_progress"
        self.memory = b""
        self.response: Json = self.wire.response(self.status)

    def begin(self) -> list[bytes]:
        return self.wire.queued() if self._queued else self.wire.created()

    def feed(self, events: Iterable[Event]) -> list[bytes]:
        told: list[bytes] = []
        for event in events:
            self.transcript.feed(event)
            if isinstance(event, Remembered):
                self.memory = event.memory
                continue
            if isinstance(event, Final):
                self._out_of_steps = event.out_of_steps
            if self._queued and isinstance(event, Started):
                self._queued = False
                self.status = "in_progress"
                told.append(self.wire.in_progress())
            acts = self.wire.tell(self._sorter.feed(event))
            self.told = self.told or bool(acts)
            told += acts
        return told

    def end(self) -> list[bytes]:
        """The last events, once the leg has ended."""
        transcript, wire = self.transcript, self.wire
        more: Json = {}
        events: list[bytes] = []
        if transcript.failure is not None:
            events += wire.break_off()
            self.status = "failed"
            if transcript.failure.code in CANCELS:
                self.status = "cancelled"
            else:
                more["error"] = failure_object(transcript.failure)
        elif transcript.tool_calls:
            events += wire.calls(transcript.tool_calls)
            self.status = "completed"
        else:
            reason = None
            if transcript.answer_is_cut:
                reason = "max_output_tokens"
            elif self._out_of_steps:
                reason = OUT_OF_STEPS
            self.status = "completed" if reason is None else "incomplete"
            if reason is not None:
                more["incomplete_details"] = {"reason": reason}
            events += wire.answer(transcript.answer or "", status=self.status)
        return events + self._last(more)

    def fail(self, error: Mapping[str, Any]) -> list[bytes]:
        """The last events where the server itself failed."""
        self.status = "failed"
        told = {"code": "server_error", "message": error["message"], "type": error["code"]}
        return [*self.wire.break_off(), self.wire.error(error), *self._last({"error": told})]

    def _last(self, more: Json) -> list[bytes]:
        transcript = self.transcript
        tokens = Tokens(
            transcript.prompt_tokens, transcript.completion_tokens, transcript.reasoning_tokens
        )
        more["usage"] = usage_object(tokens)
        if self.status == "completed":
            more["completed_at"] = int(self._now())
        self.response = self.wire.response(self.status, **more)
        return self.wire.end(self.response)


def terms_of(
    request: ResponseRequest, *, response_id: str, created: int, model: str
) -> ResponseTerms:
    """How this request's response is told."""
    include = request.include or ()
    reasoning = request.reasoning
    summary = (reasoning.summary or reasoning.generate_summary) if reasoning is not None else None
    functions = [tool.name or "" for tool in request.tools or () if tool.type == "function"]
    return ResponseTerms(
        id=response_id,
        head=_head(request, response_id, created, model, summary),
        as_summary=summary is not None,
        live_logs=LIVE_LOGS in include,
        background=bool(request.background),
        client_tools=frozenset(python_name(name) for name in functions),
    )


def _head(
    request: ResponseRequest, response_id: str, created: int, model: str, summary: str | None
) -> Json:
    """The object, as OpenAI has it, with what the request says or what holds without it."""
    conversation = request.conversation_id
    reasoning = request.reasoning
    text = request.text
    head: Json = {
        "id": response_id,
        "object": "response",
        "created_at": created,
        "completed_at": None,
        "status": "in_progress",
        "background": bool(request.background),
        "conversation": {"id": conversation} if conversation is not None else None,
        "error": None,
        "frequency_penalty": request.frequency_penalty or 0.0,
        "incomplete_details": None,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": None,
        "metadata": request.metadata or {},
        "model": model,
        "output": [],
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "presence_penalty": request.presence_penalty or 0.0,
        "previous_response_id": request.previous_response_id,
        "prompt_cache_key": request.prompt_cache_key,
        "reasoning": {
            "effort": reasoning.effort if reasoning is not None else None,
            "summary": summary,
        },
        "safety_identifier": request.safety_identifier,
        "service_tier": "default",
        "store": request.store is not False,
        "temperature": 1.0 if request.temperature is None else request.temperature,
        "text": {
            "format": _format(request),
            "verbosity": (text.verbosity if text is not None else None) or "medium",
        },
        "tool_choice": _choice(request),
        "tools": [_tool(tool) for tool in request.tools or ()],
        "top_logprobs": 0,
        "top_p": 1.0 if request.top_p is None else request.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": request.user,
    }
    return head


def _format(request: ResponseRequest) -> Json:
    wanted = request.text.format if request.text is not None else None
    if wanted is None or wanted.type != "json_schema":
        return {"type": wanted.type if wanted is not None else "text"}
    return {
        "type": wanted.type,
        "name": wanted.name,
        "description": wanted.description,
        "schema": wanted.schema,
        "strict": bool(wanted.strict),
    }


def _choice(request: ResponseRequest) -> Any:
    choice = request.tool_choice
    if choice is None or isinstance(choice, str):
        return choice or "auto"
    told: Json = {"type": choice.type}
    if choice.name is not None:
        told["name"] = choice.name
    if choice.tools is not None:
        told |= {
            "mode": choice.mode,
            "tools": [{"type": tool.type, "name": tool.name} for tool in choice.tools],
        }
    return told


def _tool(tool: ResponseTool) -> Json:
    if tool.type != "function":
        return {"type": tool.type, "container": tool.container or {"type": "auto"}}
    return {
        "type": "function",
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters,
        "strict": bool(tool.strict),
    }
