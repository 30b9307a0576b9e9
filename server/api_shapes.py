"""What the server's own replies look like, as types: for the OpenAPI document and for those who check.

In: nothing. Out: structs that admit no other field, so that a reply which grew one is found out.
"""

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType


class Shape(msgspec.Struct, forbid_unknown_fields=True):
    """Base of all."""


class ErrorObject(Shape):
    message: str
    type: Literal["invalid_request_error", "rate_limit_error", "server_error", "agent_error"]
    param: str | None
    code: str | None


class ErrorBody(Shape):
    error: ErrorObject


class TokenDetails(Shape):
    reasoning_tokens: int


class Usage(Shape):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    completion_tokens_details: TokenDetails


class FunctionCall(Shape):
    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class ToolCallObject(Shape):
    """A call that the client is to carry out; `index` in streams alone."""

    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    function: FunctionCall | UnsetType = UNSET
    index: int | UnsetType = UNSET


class ReplyMessage(Shape):
    """An agent's answer; its reasoning stands where `reasoning_format` says."""

    role: Literal["assistant"]
    content: str | None
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[ToolCallObject] | UnsetType = UNSET


class Choice(Shape):
    index: Literal[0]
    message: ReplyMessage
    finish_reason: Literal["stop", "length", "tool_calls", "content_filter"]
    logprobs: None


class Completion(Shape):
    """An agent's reply that is no stream. An upstream's is its own."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class Delta(Shape):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[ToolCallObject] | UnsetType = UNSET


class ChunkChoice(Shape):
    index: Literal[0]
    delta: Delta
    finish_reason: Literal["stop", "length", "tool_calls", "content_filter", "error"] | None


class CompletionChunk(Shape):
    """One `data:` line of an agent's stream; `error` finishes before an error event alone."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | UnsetType | None = UNSET


class ModelEntry(Shape):
    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["smolgate", "upstream"]


class ModelList(Shape):
    object: Literal["list"]
    data: list[ModelEntry]


class RunUsage(Shape):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


SpanKind = Literal["queue", "setup", "step", "plan", "model", "code", "tool", "paused"]


class RunDoing(Shape):
    """What a run does at the moment, since so many seconds after it was asked for."""

    kind: SpanKind
    name: str
    since: float


class RunSpan(Shape):
    """What a run did from `start` to `end`, in seconds since it was asked for; `end` is null while it goes on.

    Several `calls` may be one span; `seconds` is how long they took, `failed` how many of them did. `cut`: the run
    ended before it. What is 0, 1 or false is left out.
    """

    kind: SpanKind
    name: str
    start: float
    end: float | None
    seconds: float | UnsetType = UNSET
    calls: int | UnsetType = UNSET
    failed: int | UnsetType = UNSET
    cut: bool | UnsetType = UNSET
    first_token: float | UnsetType = UNSET
    prompt_tokens: int | UnsetType = UNSET
    completion_tokens: int | UnsetType = UNSET


class RunEntry(Shape):
    """A run; times in seconds since the epoch, `seconds` since it was started, until it ended.

    `timeline` is that of one run that was asked for, null where it was too long ago; `key`, the API key's name, and
    `worker`, the server's process, are for operators.
    """

    id: str
    object: Literal["run"]
    agent: str
    status: Literal["queued", "running", "paused", "stopping", "done"]
    created: int
    started: int | None
    ended: int | None
    queue_seconds: float
    seconds: float
    first_token_seconds: float | None
    step: int
    usage: RunUsage
    doing: RunDoing | None
    outcome: str | None
    metadata: dict[str, str]
    runner: Literal["thread", "process", "ray"]
    timeline: list[RunSpan] | UnsetType | None = UNSET
    key: str | UnsetType | None = UNSET
    worker: int | UnsetType = UNSET


class RunChanges(Shape):
    """An event's data: all runs, those that have changed, or none at the end of the stream."""

    type: Literal["snapshot", "runs", "end"]
    runs: list[RunEntry]


class RunList(Shape):
    object: Literal["list"]
    data: list[RunEntry]


class Health(Shape):
    ok: Literal[True]


class Readiness(Shape):
    """Whether work can be taken, and if not, why not; how each upstream is, and the cluster if there is one."""

    ready: bool
    reasons: dict[str, str]
    upstreams: dict[str, Any]
    cluster: dict[str, float] | UnsetType = UNSET
