"""What a reply to a chat request must look like on the wire, as a check of raw bytes.

In: status, content type and body. Out: the rules that are broken, in words; none for a good reply.
"""

import json
from typing import Any

MAX_EVENT_BYTES = 64 * 1024
ERROR_KEYS = {"message", "type", "param", "code"}
FINISHES = {"stop", "length", "tool_calls", "content_filter"}


def broken_rules(
    status: int, content_type: str, body: bytes, *, streamed: bool, strict: bool = True
) -> list[str]:
    """`strict` asks for what an agent's stream adds: ASCII, both reasoning fields, one head."""
    if status != 200:
        return _broken_by_error(content_type, body)
    if not streamed:
        return _broken_by_completion(content_type, body)
    if content_type != "text/event-stream":
        return ["not an event stream"]
    return _Stream(strict).read(body)


def _broken_by_error(content_type: str, body: bytes) -> list[str]:
    if content_type != "application/json":
        return ["an error that is no JSON"]
    return _broken_error(json.loads(body))


def _broken_error(value: Any) -> list[str]:
    error = value.get("error") if isinstance(value, dict) else None
    if not isinstance(error, dict):
        return ["no error object"]
    broken = []
    if set(error) != ERROR_KEYS:
        broken.append(f"an error object with {sorted(error)}")
    if not isinstance(error.get("message"), str) or not error["message"]:
        broken.append("no message")
    if not isinstance(error.get("code"), str | None):
        broken.append("a code that is no string")
    if "Traceback" in str(error.get("message")):
        broken.append("a traceback")
    return broken


def _broken_by_completion(content_type: str, body: bytes) -> list[str]:
    if content_type != "application/json":
        return ["not JSON"]
    value = json.loads(body)
    if "error" in value:
        return ["an error under 200"]
    return [] if value["choices"][0]["message"]["role"] == "assistant" else ["no message"]


class _Stream:
    """One event stream, read event by event."""

    def __init__(self, strict: bool) -> None:
        self._strict = strict
        self._broken: list[str] = []
        self._heads: set[Any] = set()
        self._chunks = 0
        self._finish: str | None = None
        self._usage = self._error = self._done = False

    def read(self, body: bytes) -> list[str]:
        if not body.endswith(b"\n\n"):
            self._broken.append("ends within an event")
        for block in body.split(b"\n\n"):
            if len(block) > MAX_EVENT_BYTES * 0.9:
                self._broken.append("a large event")
            self._block([line for line in block.split(b"\n") if not line.startswith(b":")])
        if not self._done:
            self._broken.append("no [DONE]")
        if self._finish is None and not self._error:
            self._broken.append("neither finish nor error")
        if self._finish == "error" and not self._error:
            self._broken.append("finish_reason error without an error")
        if self._strict and len(self._heads) > 1:
            self._broken.append("several ids, times or models")
        return self._broken

    def _block(self, lines: list[bytes]) -> None:
        lines = [line for line in lines if line]
        if not lines:
            return
        if len(lines) > 1 or not lines[0].startswith(b"data: "):
            self._broken.append(f"lines that are not one data line: {lines[:2]!r}")
            return
        data = lines[0].removeprefix(b"data: ")
        if self._done:
            self._broken.append("text after [DONE]")
        if data == b"[DONE]":
            self._done = True
            return
        if self._strict and not data.isascii():
            self._broken.append("not ASCII")
        try:
            value = json.loads(data)
        except ValueError:
            self._broken.append("not JSON")
            return
        if self._error:
            self._broken.append("an event after the error")
        if "error" in value:
            self._error = True
            self._broken += _broken_error(value)
        else:
            self._chunk(value)

    def _chunk(self, value: dict[str, Any]) -> None:
        self._chunks += 1
        if self._usage:
            self._broken.append("a chunk after usage")
        choices = value.get("choices")
        if not isinstance(choices, list):
            self._broken.append("choices that are no list")
            return
        self._usage = self._usage or (not choices and value.get("usage") is not None)
        self._heads.add((value["id"], value["created"], value["model"], value["object"]))
        for choice in choices:
            self._choice(choice)

    def _choice(self, choice: dict[str, Any]) -> None:
        delta = choice["delta"]
        if "index" not in choice:
            self._broken.append("a choice without index")
        if ("role" in delta) != (self._chunks == 1):
            self._broken.append("a role elsewhere than in the first chunk")
        if self._finish is not None:
            self._broken.append("a chunk after the finish")
        self._finish = choice["finish_reason"]
        if self._finish not in FINISHES | {None, "error"}:
            self._broken.append(f"finish_reason {self._finish}")
        if self._strict and delta.get("reasoning") != delta.get("reasoning_content"):
            self._broken.append("reasoning in one field only")
        if "reasoning_content" in delta and "content" in delta:
            self._broken.append("reasoning and content in one delta")
