"""What values an agent's request may have: each parameter is honoured, or refused by its name.

In: a `ChatRequest` of the right types. Out: nothing, or `InvalidRequest`, whose `param` names the field and
whose message says what was expected. `docs/chat-api.md` says what each parameter does.
"""

from typing import Any

from server.chat_schema import ChatRequest, ResponseFormat
from server.chat_wire import REASONING_FORMATS
from streaming.failures import InvalidRequest

RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "frequency_penalty": (-2, 2),
    "presence_penalty": (-2, 2),
}
TOKEN_LIMITS = ("max_tokens", "max_completion_tokens")
CHOICES: dict[str, tuple[str, ...]] = {
    "reasoning_effort": ("none", "minimal", "low", "medium", "high", "xhigh"),
    "reasoning_format": REASONING_FORMATS,
    "verbosity": ("low", "medium", "high"),
}
ROLES = ("system", "developer", "user", "assistant", "tool", "function")
MAX_STOPS = 4
MAX_METADATA = 16
MAX_METADATA_KEY = 64
MAX_METADATA_VALUE = 512

# What an agent cannot do: the values that do not ask for it, and what to say to all others.
CANNOT: dict[str, tuple[tuple[Any, ...], str]] = {
    "n": ((1,), "must be 1: an agent gives one answer"),
    "logprobs": ((False,), "must be false: an agent's answer has no token probabilities"),
    "top_logprobs": ((0,), "must be 0: an agent's answer has no token probabilities"),
    "audio": ((), "must be absent: an agent answers in text"),
    "modalities": ((["text"],), "must be ['text']: an agent answers in text"),
    "prediction": ((), "must be absent: an agent cannot use a predicted output"),
    "store": ((False,), "must be false: completions are not stored here"),
    "service_tier": (("auto", "default"), "must be auto or default: there are no tiers here"),
    "moderation": ((), "must be absent: answers are not moderated here"),
    "web_search_options": ((), "must be absent: an agent searches the web only by a tool"),
    "functions": (([],), "must be absent: it was replaced by 'tools', which agents take"),
    "function_call": (
        ("none",),
        "must be absent: it was replaced by 'tool_choice', which agents take",
    ),
}


def check_limits(request: ChatRequest) -> None:
    """Raises InvalidRequest for the first value that no agent can honour."""
    if not request.messages:
        raise InvalidRequest("'messages' must hold at least one message.", param="messages")
    for index, message in enumerate(request.messages):
        if message.role not in ROLES:
            raise refusal(f"messages.{index}.role", f"must be one of {', '.join(ROLES)}")
    for name, (low, high) in RANGES.items():
        value = getattr(request, name)
        if value is not None and not low <= value <= high:
            raise refusal(name, f"must be a number from {low} to {high}, not {value:g}")
    for name in TOKEN_LIMITS:
        value = getattr(request, name)
        if value is not None and (value < 1 or value != int(value)):
            raise refusal(name, f"must be a whole number above 0, not {value:g}")
    for name, allowed in CHOICES.items():
        value = getattr(request, name)
        if value is not None and value not in allowed:
            raise refusal(name, f"must be one of {', '.join(allowed)}")
    for name, (harmless, sentence) in CANNOT.items():
        value = getattr(request, name)
        if value is not None and value not in harmless:
            raise refusal(name, sentence)
    _check_stop(request.stop)
    _check_metadata(request.metadata or {})
    _check_logit_bias(request.logit_bias or {})
    _check_response_format(request.response_format)


def refusal(param: str, sentence: str) -> InvalidRequest:
    """A 400 that names the parameter."""
    return InvalidRequest(f"'{param}' {sentence}.", param=param)


def _check_stop(stop: str | list[str] | None) -> None:
    stops = [stop] if isinstance(stop, str) else stop or []
    if len(stops) > MAX_STOPS:
        raise refusal("stop", f"must hold at most {MAX_STOPS} texts")
    if not all(stops):
        raise refusal("stop", "must not hold an empty text")


def _check_metadata(metadata: dict[str, str]) -> None:
    if len(metadata) > MAX_METADATA:
        raise refusal("metadata", f"must have at most {MAX_METADATA} keys")
    for key, value in metadata.items():
        if len(key) > MAX_METADATA_KEY:
            raise refusal("metadata", f"must have keys of at most {MAX_METADATA_KEY} characters")
        if len(value) > MAX_METADATA_VALUE:
            raise refusal(
                f"metadata.{key}", f"must be a text of at most {MAX_METADATA_VALUE} characters"
            )


def _check_logit_bias(bias: dict[str, float]) -> None:
    for token, value in bias.items():
        if not -100 <= value <= 100:
            raise refusal(f"logit_bias.{token}", f"must be from -100 to 100, not {value:g}")


def _check_response_format(wanted: ResponseFormat | None) -> None:
    if wanted is None:
        return
    kinds = ("text", "json_object", "json_schema")
    if wanted.type not in kinds:
        raise refusal("response_format.type", f"must be one of {', '.join(kinds)}")
    if wanted.type == "json_schema" and (
        wanted.json_schema is None or wanted.json_schema.schema is None
    ):
        raise refusal("response_format.json_schema.schema", "must be a JSON schema")
