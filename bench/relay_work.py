"""What the relay benchmark asks for, and what must come back.

In: the name of a stream. Out: its events as an upstream writes them, the request that asks for it, and
a check of each answer: byte for byte, or the text against the one-shot scrub.
"""

import json
import os
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import msgspec

from sanitize.deltas import DeltaScrubber
from sanitize.think import Mode, scrub

MODEL = "up/model"
CHAT_PATH = "/v1/chat/completions"
# Every client sends it; a gateway with keys knows it among a hundred.
KEY = "sg-benchmark-benchmark-benchmark-benchmark"
# One role chunk, 200 deltas, the finish, the usage and `[DONE]`: 204 events.
DELTAS = 200
PLAIN_BYTES = 2048
# The gateway takes its scrub mode from the environment; the check has to know it.
SCRUB_MODE = cast(Mode, os.environ.get("NOTHINK_SCRUB") or "tags")
_WORDS = (
    "The quick gateway relays every token of its upstream as it comes and says “no” to none of them; "
    'what is not text goes on untouched.\n A line may end, a quote may "open", and so it goes.'
).split(" ")
# Twenty deltas: an opening tag cut in two, fifteen words, a closing tag cut in three.
_THOUGHT = ("<th", "ink>", *(f"thought{number} " for number in range(15)), "</", "thi", "nk>")


class Delta(msgspec.Struct):
    content: str | None = None


class Choice(msgspec.Struct):
    delta: Delta


class Chunk(msgspec.Struct):
    choices: list[Choice]


_chunk = msgspec.json.Decoder(Chunk)


class WrongAnswer(Exception):
    """An answer is not what was sent, or not its scrub."""


def in_http_chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def words(count: int) -> list[str]:
    return [f"{_WORDS[number % len(_WORDS)]} " for number in range(count)]


def thoughts() -> list[str]:
    """30 % of the deltas stand in think blocks; every tag is cut over two or three."""
    rest = words(DELTAS - 3 * len(_THOUGHT))
    third = len(rest) // 3
    return [
        *_THOUGHT,
        *rest[:third],
        *_THOUGHT,
        *rest[third : 2 * third],
        *_THOUGHT,
        *rest[2 * third :],
    ]


def event(choices: list[dict[str, Any]], **more: Any) -> bytes:
    chunk = {
        "id": "chatcmpl-6d1f0c9a4e2b",
        "object": "chat.completion.chunk",
        "created": 1767225600,
        "model": MODEL,
        "choices": choices,
    }
    said = json.dumps(chunk | more, separators=(",", ":"), ensure_ascii=False)
    return f"data: {said}\n\n".encode()


def choice(delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}


@dataclass(frozen=True)
class Stream:
    """One prepared reply. `events` are its SSE events, `text` what they say."""

    text: str
    events: tuple[bytes, ...]

    @cached_property
    def body(self) -> bytes:
        return b"".join(self.events)

    @cached_property
    def frames(self) -> tuple[bytes, ...]:
        """The events, an HTTP chunk each, the last with the end of the body."""
        *first, last = map(in_http_chunk, self.events)
        return (*first, last + b"0\r\n\r\n")

    @cached_property
    def scrubbed_text(self) -> str:
        return scrub(self.text, mode=SCRUB_MODE)

    @cached_property
    def silent(self) -> frozenset[int]:
        """The numbers of the events for which a scrubbing relay may have nothing to send yet."""
        scrubber = DeltaScrubber(mode=SCRUB_MODE)
        return frozenset(
            number
            for number, sent in enumerate(self.events[:-1])
            if not scrubber.feed(json.loads(sent[6:]))
        )


def stream_of(deltas: list[str]) -> Stream:
    usage = {"prompt_tokens": 20, "completion_tokens": len(deltas), "total_tokens": 220}
    return Stream(
        "".join(deltas),
        (
            event([choice({"role": "assistant", "content": ""})]),
            *(event([choice({"content": delta})]) for delta in deltas),
            event([choice({}, "stop")]),
            event([], usage=usage),
            b"data: [DONE]\n\n",
        ),
    )


STREAMS = {"words": stream_of(words(DELTAS)), "thoughts": stream_of(thoughts())}


def plain_body() -> bytes:
    """A whole answer of PLAIN_BYTES."""
    message = {"role": "assistant", "content": ""}
    reply = {
        "id": "chatcmpl-6d1f0c9a4e2b",
        "object": "chat.completion",
        "created": 1767225600,
        "model": MODEL,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
    }
    bare = len(json.dumps(reply))
    message["content"] = (
        "".join(words(PLAIN_BYTES))[: PLAIN_BYTES - bare].encode("ascii", "replace").decode()
    )
    message["content"] = message["content"].replace("\n", " ").replace('"', "'")
    return json.dumps(reply).encode()


PLAIN = plain_body()


@dataclass(frozen=True)
class Work:
    """What a client asks for. `pace`: burst, cut, lockstep, plain or idle; `stream` names a Stream."""

    pace: str
    stream: str = "words"
    scrubbed: bool = False
    exact: bool = True  # an answer's bytes are compared, not only its text
    head: str = ""  # further header lines
    verified: set[bytes] = field(default_factory=set, compare=False)

    @property
    def units(self) -> int:
        """What one request counts for: its events where each goes alone, else itself."""
        return len(STREAMS[self.stream].events) if self.pace == "lockstep" else 1

    def request(self, client: int) -> bytes:
        """The client's number tells the upstream whose stream this is."""
        body = json.dumps(
            {
                "model": f"{MODEL}-nothink" if self.scrubbed else MODEL,
                "stream": self.pace != "plain",
                "messages": [
                    {"role": "system", "content": f"bench {self.pace} {self.stream} {client}"},
                    {"role": "user", "content": "Say two hundred words about relays, please."},
                ],
            }
        ).encode()
        head = (
            f"POST {CHAT_PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: OpenAI/Python 2.9.0\r\n"
            "Accept: application/json\r\nContent-Type: application/json\r\n"
            f"{self.head}Authorization: Bearer {KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    def check(self, body: bytes) -> None:
        """Raises WrongAnswer."""
        if self.pace == "plain":
            if not self.exact:
                self._check_text(whole_text(body), whole_text(PLAIN))
            elif body != PLAIN:
                raise WrongAnswer(f"{len(body)} bytes, not those sent: {body[:200]!r}")
            return
        stream = STREAMS[self.stream]
        if not self.scrubbed:
            if not self.exact:
                if body != stream.body:
                    self._check_text(text_of(body), stream.text)
            elif body != stream.body:
                raise WrongAnswer(f"{len(body)} bytes, not those sent: {body[-300:]!r}")
            return
        if body in self.verified:
            return
        if text_of(body) != stream.scrubbed_text:
            raise WrongAnswer(f"not the one-shot scrub: {text_of(body)[:300]!r}")
        if len(self.verified) < 1000:  # bodies differ by how the stream was cut
            self.verified.add(body)

    @staticmethod
    def _check_text(found: str, sent: str) -> None:
        if found != sent:
            raise WrongAnswer(f"not the text that was sent: {found[:300]!r}")


def whole_text(body: bytes) -> str:
    """The content of a reply that is no stream."""
    return str(json.loads(body)["choices"][0]["message"]["content"])


def text_of(body: bytes) -> str:
    """The content of a whole event stream. Raises WrongAnswer where it does not end as it should."""
    *events, done, rest = body.split(b"\n\n")
    if done != b"data: [DONE]" or rest:
        raise WrongAnswer(f"no clean end: {body[-300:]!r}")
    chunks = [_chunk.decode(sent[6:]) for sent in events]
    return "".join([each.delta.content or "" for chunk in chunks for each in chunk.choices])
