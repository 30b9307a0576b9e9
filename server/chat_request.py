"""The body of a chat completion request → what it asks for.

In: bytes. Out: for routing only the model and whether it streams; for an agent a `RunSpec` in plain
values. Raises `InvalidRequest`, whose `param` names the field.
"""

import base64
import binascii
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import msgspec

from sanitize.think import scrub
from sanitize.think_tag import is_closing, make_pattern
from streaming.failures import InvalidRequest
from streaming.run_spec import Image, RunSpec, Turn

T = TypeVar("T")


class ModelObject(msgspec.Struct):
    id: str


class RoutedRequest(msgspec.Struct):
    """As much of a request as routing needs."""

    model: str | ModelObject | None = None
    stream: bool | None = None
    n: Any = None

    @property
    def choices(self) -> int:
        """How many choices a reply will have."""
        return self.n if isinstance(self.n, int) and self.n > 0 else 1

    @property
    def model_id(self) -> str | None:
        return self.model.id if isinstance(self.model, ModelObject) else self.model


class Message(msgspec.Struct):
    role: str
    content: str | list[dict[str, Any]] | None = None


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class ChatRequest(msgspec.Struct):
    """What an agent honours of a chat completion request."""

    messages: list[Message]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    reasoning_format: str | None = None
    max_tokens: int | float | None = None
    max_completion_tokens: int | float | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None

    def model_options(self) -> dict[str, object]:
        """Sampling options, which go into every call of the agent's model."""
        options = {
            "max_tokens": _whole(self.max_completion_tokens or self.max_tokens),
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
        }
        return {name: value for name, value in options.items() if value is not None}


def _whole(value: float | None) -> float | None:
    """Some clients write whole numbers as 100.0."""
    return int(value) if value is not None and value == int(value) else value


_route = msgspec.json.Decoder(RoutedRequest)
_chat = msgspec.json.Decoder(ChatRequest)
_FIELD = re.compile(r" - at `\$\.?([^`]*)`$")
_REASONING_DETAILS = re.compile(
    r"<details\b[^>]*\btype=[\"']reasoning[\"'][^>]*>.*?</details>", re.IGNORECASE | re.DOTALL
)
_HTTP_URL = re.compile(r"https?://", re.IGNORECASE)
_DATA_URL = re.compile(r"data:(image/[\w.+-]+)((?:;[\w=-]+)*);base64,(.*)", re.DOTALL)


def route_of(body: bytes) -> RoutedRequest:
    """Model and stream flag. Raises InvalidRequest for what is no JSON object."""
    return _decoded(_route, body)


def json_object(body: bytes) -> dict[str, Any]:
    """The whole body. Raises InvalidRequest for what is no JSON object."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidRequest("The request body is not valid JSON.") from None
    if not isinstance(value, dict):
        raise InvalidRequest("The request body must be a JSON object.")
    return value


def chat_request_of(body: bytes) -> ChatRequest:
    """The request for an agent. Raises InvalidRequest."""
    request = _decoded(_chat, body)
    if not request.messages:
        raise InvalidRequest("'messages' must hold at least one message.", param="messages")
    if request.n is not None and request.n != 1:
        raise InvalidRequest("'n' must be 1: an agent gives one answer.", param="n")
    return request


def image_urls_of(request: ChatRequest) -> dict[str, str]:
    """The http URLs of images, and the field that holds each."""
    return {
        url: f"messages.{index}.content.{number}"
        for index, message in enumerate(request.messages)
        if isinstance(message.content, list)
        for number, part in enumerate(message.content)
        if (url := _image_url(part)) is not None and _HTTP_URL.match(url)
    }


def run_spec_of(
    request: ChatRequest,
    *,
    run_id: str,
    agent: str,
    tag_names: tuple[str, ...],
    fetched: Mapping[str, Image] = MappingProxyType({}),
) -> RunSpec:
    """The last user message is the task, system messages lead it, earlier turns are the history.

    `fetched` holds the images that were given by address. Raises InvalidRequest where there is no user message.
    """
    messages = request.messages
    last = max((i for i, message in enumerate(messages) if message.role == "user"), default=None)
    if last is None:
        raise InvalidRequest("'messages' must hold a user message.", param="messages")
    system: list[str] = []
    turns: list[Turn] = []
    for index, message in enumerate(messages):
        text, images = _read_content(message.content, index, fetched)
        if message.role in {"system", "developer"}:
            system.append(text)
        elif index != last:
            turns.append(_turn(message.role, text, images, tag_names))
    text, images = _read_content(messages[last].content, last, fetched)
    if not text.strip() and not images:
        raise InvalidRequest("The last user message is empty.", param=f"messages.{last}.content")
    return RunSpec(
        run_id=run_id,
        agent=agent,
        task="\n\n".join(part for part in (*system, text) if part.strip()),
        images=images,
        history=tuple(turn for turn in turns if turn.text.strip() or turn.images),
        model_options=request.model_options(),
    )


def _turn(role: str, text: str, images: tuple[Image, ...], tag_names: tuple[str, ...]) -> Turn:
    if role == "assistant":
        return Turn("assistant", _without_reasoning(text, tag_names))
    return Turn("user", text if role == "user" else f"[{role}] {text}", images)


def _without_reasoning(text: str, tag_names: tuple[str, ...]) -> str:
    """An assistant's text without the thoughts that clients send back: think blocks, also those whose
    opening stood in the prompt, and Open WebUI's details blocks.
    """
    text = _REASONING_DETAILS.sub("", text)
    first = make_pattern(tag_names).search(text, 0)
    starts_open = first is not None and is_closing(first)
    return scrub(text, mode="block", tag_names=tag_names, starts_open=starts_open).strip()


def _image_url(part: dict[str, Any]) -> str | None:
    match part:
        case {"type": "image_url", "image_url": {"url": str(url)} | str(url)}:
            return url
    return None


def _read_content(
    content: Any, index: int, fetched: Mapping[str, Image]
) -> tuple[str, tuple[Image, ...]]:
    """Text parts joined by newlines, images apart, any other part as JSON text."""
    if content is None or isinstance(content, str):
        return content or "", ()
    texts: list[str] = []
    images: list[Image] = []
    for number, part in enumerate(content):
        where = f"messages.{index}.content.{number}"
        match part:
            case {"type": "text" | "input_text", "text": str(text)}:
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


def _decoded(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        message = str(error)
        found = _FIELD.search(message)
        where = found[1].replace("[...]", "").replace("[", ".").replace("]", "") if found else None
        if missing := re.search(r"missing required field `(\w+)`", message):
            where = f"{where}.{missing[1]}" if where else missing[1]
        expected = _FIELD.sub("", message)
        said = f"'{where}': {expected}" if where else f"The request body: {expected}"
        raise InvalidRequest(f"{said}.", param=where) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidRequest("The request body is not valid JSON.") from None
