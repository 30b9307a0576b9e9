"""The messages of a request → the task of a run, and the conversation before it.

In: typed messages. Out: the last user message as the task, system messages leading it, all other turns
as the history in plain values: images as images, tool calls and their results as such, reasoning that
clients send back stripped. Raises `InvalidRequest`, whose `param` names the message.
"""

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import msgspec

from sanitize.think import scrub
from sanitize.think_tag import is_closing, make_pattern
from server.chat_schema import Message
from streaming.failures import InvalidRequest
from streaming.json_codec import encode_json
from streaming.run_spec import CalledTool, Image, Turn

_REASONING_DETAILS = re.compile(
    r"<details\b[^>]*\btype=[\"']reasoning[\"'][^>]*>.*?</details>", re.IGNORECASE | re.DOTALL
)
NO_IMAGES: Mapping[str, Image] = MappingProxyType({})
_HTTP_URL = re.compile(r"https?://", re.IGNORECASE)
_DATA_URL = re.compile(r"data:(image/[\w.+-]+)((?:;[\w=-]+)*);base64,(.*)", re.DOTALL)


@dataclass(frozen=True)
class Conversation:
    """What is asked now, and what was said before it."""

    task: str
    images: tuple[Image, ...]
    history: tuple[Turn, ...]


def image_urls_of(messages: Sequence[Message]) -> dict[str, str]:
    """The http URLs of images, and the field that holds each."""
    return {
        url: f"messages.{index}.content.{number}"
        for index, message in enumerate(messages)
        if isinstance(message.content, list)
        for number, part in enumerate(message.content)
        if (url := _image_url(part)) is not None and _HTTP_URL.match(url)
    }


def conversation_of(
    messages: Sequence[Message],
    tag_names: tuple[str, ...],
    fetched: Mapping[str, Image] = NO_IMAGES,
) -> Conversation:
    """The last user message is the task, whatever comes after it. Raises InvalidRequest without one.

    `fetched` holds the images that were given by address.
    """
    last = max((i for i, message in enumerate(messages) if message.role == "user"), default=None)
    if last is None:
        raise InvalidRequest("'messages' must hold a user message.", param="messages")
    system: list[str] = []
    turns: list[Turn] = []
    for index, message in enumerate(messages):
        if message.role in {"system", "developer"}:
            system.append(read_content(message.content, index, fetched)[0])
        elif index != last:
            turns.append(_turn(message, index, tag_names, fetched))
    text, images = read_content(messages[last].content, last, fetched)
    if not text.strip() and not images:
        raise InvalidRequest("The last user message is empty.", param=f"messages.{last}.content")
    return Conversation(
        task="\n\n".join(part for part in (*system, text) if part.strip()),
        images=images,
        history=tuple(turn for turn in turns if _says_something(turn)),
    )


def _says_something(turn: Turn) -> bool:
    return bool(turn.text.strip() or turn.images or turn.tool_calls or turn.role == "tool")


def _turn(
    message: Message, index: int, tag_names: tuple[str, ...], fetched: Mapping[str, Image]
) -> Turn:
    text, images = read_content(message.content, index, fetched)
    match message.role:
        case "assistant":
            return Turn(
                "assistant",
                _without_reasoning(text or message.refusal or "", tag_names),
                tool_calls=_tool_calls(message),
            )
        case "tool" | "function":
            return Turn("tool", text, images, tool_call_id=message.tool_call_id or "")
        case _:
            return Turn("user", text, images)


def _tool_calls(message: Message) -> tuple[CalledTool, ...]:
    calls = [
        CalledTool(call.id, call.function.name, _text(call.function.arguments))
        for call in message.tool_calls or ()
    ]
    if (legacy := message.function_call) is not None:
        calls.append(CalledTool("", legacy.name, _text(legacy.arguments)))
    return tuple(calls)


def _text(arguments: str | dict[str, Any]) -> str:
    return arguments if isinstance(arguments, str) else encode_json(arguments).decode()


def _without_reasoning(text: str, tag_names: tuple[str, ...]) -> str:
    """An assistant's text without the thoughts that clients send back: think blocks, also those whose
    opening stood in the prompt, and Open WebUI's details blocks.
    """
    text = _REASONING_DETAILS.sub("", text)
    first = make_pattern(tag_names).search(text, 0)
    starts_open = first is not None and is_closing(first)
    return scrub(text, mode="block", tag_names=tag_names, starts_open=starts_open).strip()


def _image_url(part: Any) -> str | None:
    match part:
        case {"type": "image_url", "image_url": {"url": str(url)} | str(url)}:
            return url
    return None


def read_content(
    content: Any, index: int, fetched: Mapping[str, Image] = NO_IMAGES
) -> tuple[str, tuple[Image, ...]]:
    """Text parts joined by newlines, images apart, any other part as JSON text.

    `index` is the message's. Raises InvalidRequest for an image that cannot be taken.
    """
    if content is None or isinstance(content, str):
        return content or "", ()
    texts: list[str] = []
    images: list[Image] = []
    for number, part in enumerate(content):
        where = f"messages.{index}.content.{number}"
        match part:
            case {"type": "text" | "input_text", "text": str(text)}:
                texts.append(text)
            case {"type": "refusal", "refusal": str(text)}:
                texts.append(text)
            case {"type": "image_url", "image_url": {"url": str(url)} | str(url)}:
                images.append(fetched.get(url) or _image(url, where))
            case {"type": "reasoning" | "thinking"}:
                pass  # sent back by clients; models that see it imitate it
            case _:
                texts.append(msgspec.json.encode(part).decode())
    return "\n".join(texts), tuple(images)


def _image(url: str, where: str) -> Image:
    found = _DATA_URL.fullmatch(url)
    if found is None:
        raise InvalidRequest(
            "An image must be a base64 data URL; image addresses are not fetched by this server.",
            param=where,
        )
    try:
        return Image(found[1], base64.b64decode(found[3], validate=True))
    except binascii.Error:
        raise InvalidRequest("An image's base64 is broken.", param=where) from None
