"""The body of a request for an agent → what its run is to do.

In: bytes. Out: a `ChatRequest` that can be honoured, and from that a `RunSpec` in plain values. Raises
`InvalidRequest`, whose `param` names the field.
"""

from collections.abc import Mapping
from typing import cast

import msgspec

from server.chat_limits import check_limits
from server.chat_request import decoded
from server.chat_schema import ChatRequest
from server.conversation import NO_IMAGES, conversation_of
from server.tool_request import tools_of
from streaming.run_spec import AnswerFormat, Effort, Image, RunSpec

_chat = msgspec.json.Decoder(ChatRequest)

VERBOSITY = {
    "low": "Keep the answer as short as it can be.",
    "high": "Give the answer at length, with all that belongs to it.",
}


def chat_request_of(body: bytes) -> ChatRequest:
    """The request for an agent. Raises InvalidRequest."""
    request = decoded(_chat, body)
    check_limits(request)
    return request


def run_spec_of(
    request: ChatRequest,
    *,
    run_id: str,
    agent: str,
    tag_names: tuple[str, ...],
    fetched: Mapping[str, Image] = NO_IMAGES,
) -> RunSpec:
    """What a run is to do for this request. Raises InvalidRequest.

    `fetched` holds the images that were given by address.
    """
    conversation = conversation_of(request.messages, tag_names, fetched)
    tools, must_call = tools_of(request)
    wish = VERBOSITY.get(request.verbosity or "")
    return RunSpec(
        run_id=run_id,
        agent=agent,
        task=f"{conversation.task}\n\n{wish}" if wish else conversation.task,
        images=conversation.images,
        history=conversation.history,
        effort=cast("Effort | None", request.reasoning_effort),
        stop=(request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ()),
        answer_format=_answer_format(request),
        tools=tools,
        must_call=must_call,
        parallel_tool_calls=request.parallel_tool_calls is not False,
        user=request.user,
        metadata=request.metadata or {},
        model_options=_model_options(request),
    )


def _answer_format(request: ChatRequest) -> AnswerFormat | None:
    wanted = request.response_format
    if wanted is None or wanted.type == "text":
        return None
    if wanted.json_schema is None or wanted.type == "json_object":
        return AnswerFormat()
    return AnswerFormat(
        schema=wanted.json_schema.schema,
        name=wanted.json_schema.name,
        description=wanted.json_schema.description or "",
    )


def _model_options(request: ChatRequest) -> dict[str, object]:
    """What goes into every call of the agent's model."""
    options = {
        "max_tokens": _whole(request.max_completion_tokens or request.max_tokens),
        "temperature": request.temperature,
        "top_p": request.top_p,
        "frequency_penalty": request.frequency_penalty,
        "presence_penalty": request.presence_penalty,
        "logit_bias": request.logit_bias,
        "seed": request.seed,
        "user": request.user,
    }
    return {name: value for name, value in options.items() if value is not None}


def _whole(value: float | None) -> int | None:
    """Some clients write whole numbers as 100.0."""
    return int(value) if value is not None else None
