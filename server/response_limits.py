"""What values a Responses request for an agent may have: each parameter is honoured, or refused by its name.

In: a `ResponseRequest` of the right types. Out: nothing, or `InvalidRequest`, whose `param` names the field.
`docs/responses.md` says what each parameter does.
"""

from typing import Any

from server.chat_limits import MAX_METADATA, MAX_METADATA_KEY, MAX_METADATA_VALUE, refusal
from server.response_schema import ResponseRequest, ResponseTool, TextFormat
from server.response_wire import LIVE_LOGS

RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
}
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")
SUMMARIES = ("auto", "concise", "detailed")
VERBOSITIES = ("low", "medium", "high")
FORMATS = ("text", "json_object", "json_schema")
# What may be asked for besides; what an agent has none of is left out without harm.
INCLUDABLE = (
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    LIVE_LOGS,
)
CODE_TOOL = "code_interpreter"
MAX_INSTRUCTIONS = 1 << 20
MAX_TEXT = 512

# What an agent cannot do: the values that do not ask for it, and what to say to all others.
CANNOT: dict[str, tuple[tuple[Any, ...], str]] = {
    "access_programs": ((), "must be absent: there are no access programs here"),
    "background_options": (({},), "must be absent: a background run begins when there is a place"),
    "context_management": (([],), "must be absent: an agent's memory is not compacted"),
    "image": (({},), "must be absent: images are given to agents as they come"),
    "max_tool_calls": ((), "must be absent: an agent's steps are limited, its calls are not"),
    "moderation": ((), "must be absent: answers are not moderated here"),
    "prompt": ((), "must be absent: there are no stored prompts here"),
    "service_tier": (("auto", "default"), "must be auto or default: there are no tiers here"),
    "top_logprobs": ((0,), "must be 0: an agent's answer has no token probabilities"),
    "truncation": (("disabled",), "must be disabled: nothing is cut off a conversation here"),
}


def check_response_limits(request: ResponseRequest) -> None:
    """Raises InvalidRequest for the first value that no agent can honour."""
    for name, (low, high) in RANGES.items():
        value = getattr(request, name)
        if value is not None and not low <= value <= high:
            raise refusal(name, f"must be a number from {low} to {high}, not {value:g}")
    if request.max_output_tokens is not None and request.max_output_tokens < 1:
        raise refusal("max_output_tokens", "must be a whole number above 0")
    for name, (harmless, sentence) in CANNOT.items():
        value = getattr(request, name)
        if value is not None and value not in harmless:
            raise refusal(name, sentence)
    for name in ("user", "safety_identifier", "prompt_cache_key"):
        if len(getattr(request, name) or "") > MAX_TEXT:
            raise refusal(name, f"must have at most {MAX_TEXT} characters")
    if len(request.instructions or "") > MAX_INSTRUCTIONS:
        raise refusal("instructions", f"must have at most {MAX_INSTRUCTIONS} characters")
    check_metadata(request.metadata or {})
    _check_reasoning(request)
    _check_text(request)
    _check_state(request)
    for index, wanted in enumerate(request.include or ()):
        if wanted not in INCLUDABLE:
            raise refusal(f"include.{index}", f"must be one of {', '.join(INCLUDABLE)}")
    for index, tool in enumerate(request.tools or ()):
        _check_tool(tool, f"tools.{index}")


def check_metadata(metadata: dict[str, str]) -> None:
    """Raises InvalidRequest for more than OpenAI takes."""
    if len(metadata) > MAX_METADATA:
        raise refusal("metadata", f"must have at most {MAX_METADATA} keys")
    for key, value in metadata.items():
        if len(key) > MAX_METADATA_KEY:
            raise refusal("metadata", f"must have keys of at most {MAX_METADATA_KEY} characters")
        if len(value) > MAX_METADATA_VALUE:
            raise refusal(
                f"metadata.{key}", f"must be a text of at most {MAX_METADATA_VALUE} characters"
            )


def _check_reasoning(request: ResponseRequest) -> None:
    if (reasoning := request.reasoning) is None:
        return
    if reasoning.effort is not None and reasoning.effort not in EFFORTS:
        raise refusal("reasoning.effort", f"must be one of {', '.join(EFFORTS)}")
    for name in ("summary", "generate_summary"):
        value = getattr(reasoning, name)
        if value is not None and value not in SUMMARIES:
            raise refusal(f"reasoning.{name}", f"must be one of {', '.join(SUMMARIES)}")
    if reasoning.context not in (None, "auto"):
        raise refusal("reasoning.context", "must be auto")
    if reasoning.mode not in (None, "standard"):
        raise refusal("reasoning.mode", "must be standard")


def _check_text(request: ResponseRequest) -> None:
    if (text := request.text) is None:
        return
    if text.verbosity is not None and text.verbosity not in VERBOSITIES:
        raise refusal("text.verbosity", f"must be one of {', '.join(VERBOSITIES)}")
    if text.format is not None:
        _check_format(text.format)


def _check_format(wanted: TextFormat) -> None:
    if wanted.type not in FORMATS:
        raise refusal("text.format.type", f"must be one of {', '.join(FORMATS)}")
    if wanted.type == "json_schema":
        if wanted.schema is None:
            raise refusal("text.format.schema", "must be a JSON schema")
        if not wanted.name:
            raise refusal("text.format.name", "must be the schema's name")


def _check_state(request: ResponseRequest) -> None:
    if request.previous_response_id is not None and request.conversation is not None:
        raise refusal(
            "previous_response_id", "must be absent where 'conversation' is given: it is either"
        )
    if request.store is False:
        if request.background:
            raise refusal(
                "background", "must be false where 'store' is false: it is kept to be had"
            )
        if request.conversation is not None:
            raise refusal("conversation", "must be absent where 'store' is false: it is kept there")


def _check_tool(tool: ResponseTool, where: str) -> None:
    if tool.type == "function":
        if not tool.name:
            raise refusal(f"{where}.name", "must be the function's name")
    elif tool.type == CODE_TOOL:
        _check_container(tool.container, f"{where}.container")
    else:
        raise refusal(
            f"{where}.type",
            f"must be function or {CODE_TOOL}, not {tool.type}: an agent has the tools of its author, "
            "and the client's functions",
        )


def _check_container(container: Any, where: str) -> None:
    if container is None or isinstance(container, str):
        return
    if not isinstance(container, dict) or container.get("type") != "auto":
        raise refusal(f"{where}.type", "must be auto: a run has a container of its own")
    if container.get("file_ids"):
        raise refusal(f"{where}.file_ids", "must be empty: there are no stored files here")
