"""The items of a Responses request → the messages of a chat completion.

In: instructions, and items as JSON objects. Out: messages. What holds:

 1. instructions and the system messages that the items begin with are one system message: many templates take
    no second one;
 2. calls belong to the assistant's message before them, a call's output is a tool message;
 3. thoughts go up only with the calls that came of them, and only in the turn that they belong to: models that
    think between calls need them there, and imitate them elsewhere.

Raises `InvalidRequest`, whose `param` names the item or part that a chat completion cannot hold.
"""

from collections.abc import Sequence
from typing import Any

from server.chat_limits import refusal
from streaming.json_codec import encode_json

Json = dict[str, Any]

KINDS = ("message", "reasoning", "function_call", "function_call_output")
ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}


def chat_messages(
    instructions: str | None, earlier: Sequence[Json], items: Sequence[Json]
) -> list[Json]:
    """`earlier` are items of the conversation before the request's own."""
    messages = _Messages()
    if instructions:
        messages.add_system(instructions)
    for index, item in enumerate(earlier):
        if (item.get("type") or "message") in KINDS:  # an agent's other items ended in a message
            messages.add(item, f"previous_response_id.{index}")
    for index, item in enumerate(items):
        messages.add(item, f"input.{index}")
    return messages.done()


class _Messages:
    """Fed with items in order."""

    def __init__(self) -> None:
        self._messages: list[Json] = []
        self._thoughts = ""
        self._thinking: list[Json] = []  # messages of this turn that hold thoughts

    def done(self) -> list[Json]:
        return self._messages

    def add(self, item: Json, where: str) -> None:
        kind = item.get("type") or "message"
        if kind == "message":
            self._add_message(item, where)
        elif kind == "reasoning":
            self._thoughts += _thoughts_of(item)
        elif kind == "function_call":
            self._add_call(item, where)
        elif kind == "function_call_output":
            self._add_output(item, where)
        else:
            raise refusal(
                f"{where}.type",
                f"must be one of {', '.join(KINDS)}, not {kind}: "
                "this upstream knows chat completions only",
            )

    def add_system(self, content: Any) -> None:
        last = self._messages[-1] if self._messages else None
        if last is not None and last["role"] == "system":
            both = [last["content"], content]
            if all(isinstance(one, str) for one in both):
                last["content"] = "\n\n".join(both)
                return
        self._messages.append({"role": "system", "content": content})

    def _add_message(self, item: Json, where: str) -> None:
        role = ROLES.get(str(item.get("role")))
        if role is None:
            raise refusal(f"{where}.role", f"must be one of {', '.join(ROLES)}")
        content = _content_of(item.get("content"), f"{where}.content", role)
        if role == "system":
            self.add_system(content)
            return
        if role == "user":
            self._end_turn()
        self._messages.append({"role": role, "content": content})

    def _add_call(self, item: Json, where: str) -> None:
        function = {
            "name": _text(item, "name", where),
            "arguments": _text(item, "arguments", where),
        }
        call = {"id": _text(item, "call_id", where), "type": "function", "function": function}
        last = self._messages[-1] if self._messages else None
        if last is None or last["role"] != "assistant":
            last = {"role": "assistant", "content": None}
            self._messages.append(last)
        last.setdefault("tool_calls", []).append(call)
        if self._thoughts:
            last["reasoning_content"] = last.get("reasoning_content", "") + self._thoughts
            self._thinking.append(last)
            self._thoughts = ""

    def _add_output(self, item: Json, where: str) -> None:
        output = item.get("output")
        if isinstance(output, list):
            output = _content_of(output, f"{where}.output", "tool")
        elif not isinstance(output, str):
            output = encode_json(output).decode("ascii")
        call_id = _text(item, "call_id", where)
        self._messages.append({"role": "tool", "tool_call_id": call_id, "content": output})

    def _end_turn(self) -> None:
        for message in self._thinking:
            message.pop("reasoning_content", None)
        self._thinking = []
        self._thoughts = ""


def _thoughts_of(item: Json) -> str:
    parts = item.get("content")
    if not isinstance(parts, list):
        return ""
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return "".join(text for text in texts if isinstance(text, str))


def _text(item: Json, name: str, where: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise refusal(f"{where}.{name}", "must be a text")
    return value


def _content_of(content: Any, where: str, role: str) -> str | list[Json]:
    """Text where it is text alone, as many upstreams take no other; else parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise refusal(where, "must be a text or a list of parts")
    parts = [_part(part, f"{where}.{index}") for index, part in enumerate(content)]
    if any(part["type"] != "text" for part in parts) or (role == "user" and len(parts) > 1):
        return parts
    return ("" if role == "assistant" else "\n").join(part["text"] for part in parts)


def _part(part: Any, where: str) -> Json:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("input_text", "output_text", "text", "summary_text", "reasoning_text"):
        return {"type": "text", "text": _text(part, "text", where)}
    if kind == "refusal":
        return {"type": "text", "text": _text(part, "refusal", where)}
    if kind == "input_image":
        if not isinstance(part.get("image_url"), str):
            raise refusal(f"{where}.image_url", "must be a URL: this upstream knows no files")
        detail = {"detail": part["detail"]} if part.get("detail") else {}
        return {"type": "image_url", "image_url": {"url": part["image_url"], **detail}}
    if kind == "input_file":
        names = ("file_data", "file_id", "filename")
        file = {name: part[name] for name in names if part.get(name) is not None}
        if part.get("file_url") is not None or not {"file_data", "file_id"} & file.keys():
            raise refusal(f"{where}.file_data", "must be the file: a URL is not fetched here")
        return {"type": "file", "file": file}
    if kind == "input_audio" and isinstance(part.get("input_audio"), dict):
        return {"type": kind, kind: part[kind]}
    raise refusal(
        f"{where}.type",
        "must be input_text, input_image, input_file, input_audio, output_text or refusal",
    )
