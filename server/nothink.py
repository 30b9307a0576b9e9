"""The body of a `…-nothink` request → the body that goes up.

In: the client's bytes. Out: the same with the upstream's own model id, the no-think directive on a new
line at the end of every user message, and what switches thinking off at the source; images and unknown
fields survive.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from server.chat_request import json_object
from streaming.failures import InvalidRequest


def nothink_body(body: bytes, model: str, directive: str, extra: Mapping[str, Any]) -> bytes:
    """`extra` wins over the client's fields; objects in both are merged.

    Raises InvalidRequest where the messages are not of the chat schema.
    """
    request = json_object(body)
    messages = request.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("'messages' must hold at least one message.", param="messages")
    return nothink_request(request, model, directive, extra)


def nothink_request(
    request: Mapping[str, Any], model: str, directive: str, extra: Mapping[str, Any]
) -> bytes:
    """The same of a request whose messages are known to be a list."""
    request = {**request, "model": model}
    if directive:
        request["messages"] = [_directed(message, directive) for message in request["messages"]]
    return msgspec.json.encode(_merged(request, extra))


def _merged(given: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(given)
    for name, value in extra.items():
        old = merged.get(name)
        if isinstance(old, dict) and isinstance(value, dict):
            value = _merged(old, value)
        merged[name] = value
    return merged


def _directed(message: Any, directive: str) -> Any:
    if not isinstance(message, dict) or message.get("role") != "user":
        return message
    content = message.get("content")
    if isinstance(content, str):
        return message | {"content": f"{content}\n{directive}"}
    if isinstance(content, list):
        return message | {"content": [*content, {"type": "text", "text": f"\n{directive}"}]}
    return message
