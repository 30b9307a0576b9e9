"""Three thousand replies that no upstream should send: each request ends, no reply runs into the next, and the server
goes on.

The seed is fixed and printed; FUZZ_SEED sets another.
"""

import asyncio
import json
import os
import random
from collections import Counter
from typing import Any

import aiohttp
import pytest
from conftest import MakeGateway
from test_server_relay_faults import raw_upstream

REPLIES = 3000
CLIENTS = 12
ANSWER_SECONDS = 20
TEXTS = (
    *("<think>", "</think>", "<", "thi", "nk>", "</", "&lt;", "\\u003c", "\\ud83d", "\\n", "é"),
    *("a", "b ", "x < y", "<code>\\nprint(1)\\n</code>", "<code>\\nfinal_answer(1)\\n</code>"),
)
FIELDS = ("content",) * 4 + ("reasoning_content", "refusal", "role")
FINISHES = ("null",) * 6 + ('"stop"', '""', '"tool_calls"', "5")
INDEXES = ("0",) * 5 + ("1", "-1", "null", '"0"', "99999999999999999999")
ODD_CHUNKS = (
    *("{}", "[]", "1", "null", "NaN", "{", "{" * 300, '"' + "a" * 2000 + '"', '{"usage":5}'),
    *('{"choices":null}', '{"choices":[]}', '{"choices":[1]}', '{"choices":[{"delta":5}]}'),
    *('{"error":{"message":"no"}}', '{"error":"x"}', '{"choices":[{"delta":{"content":{"a":1}}}]}'),
    '{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":"x","total_tokens":1e99}}',
    '{"choices":[{"index":0,"delta":{"content":[{"type":"text","text":"<think>x"}]}}]}',
    '{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"c","function":{"name":"f"}}]}}]}',
)
LINES = ("data: ",) * 4 + ("data:", "event: x\ndata: ", "id: 1\ndata: ", ": c\ndata: ")
BLANK_LINES = ("\n\n",) * 6 + ("\r\n\r\n", "\n\n\n", "\r\r", "\n")
STATUSES = (
    *("200 OK",) * 12,
    *("500 No", "429 Slow", "503 No", "404 Not", "302 Found", "204 No", "400 Bad"),
    "100 Continue\r\n\r\nHTTP/1.1 200 OK",
)
TYPES = (
    *("text/event-stream",) * 5,
    *("application/json",) * 3,
    *("text/event-stream; charset=utf-8", "TEXT/Event-Stream", "text/html", ""),
)
HEADERS = ("",) * 8 + (
    *("Connection: close\r\n", "Connection: keep-alive, x-a\r\n", "Content-Encoding: gzip\r\n"),
    *("X-A: " + "b" * 5000 + "\r\n", "Retry-After: 0\r\n", "Retry-After: x\r\n", "X-A: \x01\r\n"),
    *("Set-Cookie: a=b\r\n", "Location: http://127.0.0.1:1/\r\n", "Date: \xe9\r\n"),
)
ENDS = (b"0\r\n\r\n",) * 6 + (
    *(b"", b"0\r\n", b"0\r\nA: b\r\n\r\n"),
    b"0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
)
PATHS = ("chat/completions",) * 8 + ("completions", "responses", "responses")


def odd_text(chance: random.Random) -> str:
    return "".join(chance.choices(TEXTS, k=chance.randint(0, 4))) * chance.choice((1, 1, 1, 40))


def odd_chunk(chance: random.Random) -> str:
    if chance.random() < 0.25:
        return chance.choice(ODD_CHUNKS)
    delta = f'{{"{chance.choice(FIELDS)}":"{odd_text(chance)}"}}'
    choice = f'{{"index":{chance.choice(INDEXES)},"delta":{delta},"finish_reason":{chance.choice(FINISHES)}}}'
    return f'{{"id":"u","object":"chat.completion.chunk","created":1,"model":"m","choices":[{choice}]}}'


def odd_events(chance: random.Random) -> bytes:
    blank = chance.choice(BLANK_LINES)
    events = [
        chance.choice(LINES) + odd_chunk(chance) + blank for _ in range(chance.randint(0, 12))
    ]
    return "".join([*events, *(["data: [DONE]" + blank] * (chance.random() < 0.7))]).encode()


def odd_whole(chance: random.Random) -> bytes:
    message = f'{{"role":"assistant","content":"{odd_text(chance)}"}}'
    choice = f'{{"index":0,"message":{message},"finish_reason":"stop"}}'
    whole = f'{{"id":"u","object":"chat.completion","created":1,"model":"m","choices":[{choice}]}}'
    return chance.choice((whole.encode(), odd_chunk(chance).encode(), odd_events(chance)))


def cut(data: bytes, chance: random.Random, *sizes: int) -> list[bytes]:
    pieces = []
    while data:
        size = chance.choice((*sizes, len(data)))
        pieces.append(data[:size])
        data = data[size:]
    return pieces


def odd_reply(chance: random.Random) -> bytes:
    """A reply of some kind, a few of its bytes spoiled."""
    kind = chance.choice(TYPES)
    body = odd_events(chance) if "event" in kind.lower() else odd_whole(chance)
    head = f"HTTP/1.1 {chance.choice(STATUSES)}\r\nContent-Type: {kind}\r\n{chance.choice(HEADERS)}"
    framing = chance.random()
    if framing < 0.6:
        pieces = cut(body, chance, 1, 7, 60, 300)
        if chance.random() < 0.5:
            pieces = [event + b"\n\n" for event in body.split(b"\n\n")[:-1]]
        frames = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
        head, body = f"{head}Transfer-Encoding: chunked\r\n", frames + chance.choice(ENDS)
    elif framing < 0.85:
        head += f"Content-Length: {max(0, len(body) + chance.choice((0, 0, 0, 0, 5, -3)))}\r\n"
    data = f"{head}\r\n".encode("latin-1") + body
    for _ in range(chance.choice((0, 0, 0, 1, 1, 3))):
        data = spoiled(data, chance)
    return data


def spoiled(data: bytes, chance: random.Random) -> bytes:
    """With a byte changed, put in, missing or repeated, or an end too early."""
    at = chance.randrange(len(data) + 1)
    put = chance.choice((b"\n", b"\r\n", b"\0", b"0\r\n\r\n", bytes([chance.randrange(256)])))
    return chance.choice(
        (
            data[:at] + put + data[at:],
            data[:at] + put + data[at + 1 :],
            data[:at] + data[at + chance.randint(1, 5) :],
            data[:at] + data[max(0, at - 50) :],
            data[: at + 1],
        )
    )


@pytest.mark.timeout(240)
async def test_three_thousand_odd_replies_end_and_do_no_harm(
    make_gateway: MakeGateway, caplog: pytest.LogCaptureFixture
) -> None:
    seed = int(os.environ.get("FUZZ_SEED", "20261127"))
    print(f"FUZZ_SEED={seed}")
    chance = random.Random(seed)
    sent = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        sent += 1
        for piece in cut(odd_reply(chance), chance, 10, 100, 1000):
            writer.write(piece)
            await asyncio.sleep(0.001 if chance.random() < 0.3 else 0)

    async with raw_upstream(answer) as base:
        gateway = await make_gateway(
            upstream_base=base,
            relay_first_byte_seconds=0.5,
            relay_idle_seconds=0.5,
            first_token_seconds=0.5,
            token_idle_seconds=0.5,
            breaker_failures=0,
            retries=0,
        )
        found: Counter[str] = Counter()

        async def one() -> None:
            connector = aiohttp.TCPConnector(limit=1)
            async with aiohttp.ClientSession(connector=connector) as session:
                while sent < REPLIES:
                    async with asyncio.timeout(ANSWER_SECONDS):
                        found[await said(session, gateway.base, chance)] += 1
                        # On the same connection, where it is kept.
                        async with session.get(f"{gateway.base}/healthz") as reply:
                            assert await reply.json() == {"ok": True}

        await asyncio.gather(*(one() for _ in range(CLIENTS)))
    print(dict(found))
    assert found["200"] > REPLIES // 10  # it got beyond the refusals
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert not errors


async def said(session: aiohttp.ClientSession, base: str, chance: random.Random) -> str:
    """What became of one request."""
    path = chance.choice(PATHS)
    model = chance.choice(("up/model", "up/model-nothink"))
    body: dict[str, Any] = {"model": model, "stream": chance.random() < 0.7, "store": False}
    body |= {"n": 2} if chance.random() < 0.1 else {}
    if path == "chat/completions":
        body["messages"] = [{"role": "user", "content": "go"}]
        if chance.random() < 0.05:
            body["model"] = "code-writing-agent"
    else:
        body["input" if path == "responses" else "prompt"] = "go"
    if path == "responses":
        body.pop("n", None)
    try:
        async with session.post(f"{base}/v1/{path}", json=body) as reply:
            text = await reply.read()
    except aiohttp.ClientPayloadError:
        return "cut off"  # as the upstream's own reply was
    assert b"internal_error" not in text, text
    if reply.status >= 400 and reply.content_type == "application/json" and b"upstream_" in text:
        assert json.loads(text)["error"]["message"]
    return str(reply.status)
