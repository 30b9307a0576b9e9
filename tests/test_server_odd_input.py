"""Odd but real input: broken encodings, halves of characters, hostile pictures, unusual answers."""

import base64
import json
import struct
import sys
import zlib
from typing import Any

import pytest
from conftest import FakeUpstream, Gateway, MakeGateway, chunk, raw_reply, scripted, text_of

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "go"}]
ASK = {"messages": MESSAGES}


def sse(*events: Any) -> bytes:
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)


FINISH = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}


async def post_raw(gateway: Gateway, body: bytes, **headers: str) -> tuple[int, Any]:
    headers = {"Content-Type": "application/json", "Connection": "close"} | headers
    async with gateway.session.post(gateway.base + CHAT, data=body, headers=headers) as response:
        return response.status, json.loads(await response.read())


@pytest.mark.parametrize(
    "model", [b'"up/model-nothink"', b'{"id":"up/model-nothink"}', b'{"id":"up/model"}', b'"agent"']
)
async def test_bytes_that_are_no_utf8_in_a_field_that_routing_skips_are_a_400(
    upstream: FakeUpstream, make_gateway: MakeGateway, model: bytes
) -> None:
    gateway = await make_gateway()
    body = b'{"model":%s,"messages":[{"role":"user","content":"\xff"}]}' % model
    status, reply = await post_raw(gateway, body)
    assert status == 400
    assert reply["error"]["type"] == "invalid_request_error"
    assert reply["error"]["message"] == "The request body is not valid JSON."
    assert not upstream.requests


async def test_a_body_that_is_not_what_its_encoding_says_is_a_400(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    gateway = await make_gateway()
    for model in ("code-writing-agent", "up/model", "up/model-nothink"):
        body = json.dumps(ASK | {"model": model}).encode()
        status, reply = await post_raw(gateway, body, **{"Content-Encoding": "gzip"})
        assert status == 400
        assert reply["error"]["type"] == "invalid_request_error"
    assert not upstream.requests


async def test_half_a_character_as_the_answer_is_json_all_the_same(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = scripted(lambda m: "<code>\nfinal_answer('a\\ud800b')\n</code>")
    gateway = await make_gateway()
    status, _, reply = await gateway.post(ASK | {"reasoning_format": "none"})
    assert status == 200
    assert reply["choices"][0]["message"]["content"] == "a\ud800b"
    assert text_of(await gateway.stream(ASK), "content") == "a\ud800b"


async def test_half_a_character_that_was_printed_goes_back_to_the_model(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    codes = ["print('seen \\ud83d!')", "final_answer('fine')"]

    def script(messages: list[dict[str, Any]]) -> str:
        turn = sum(message["role"] == "assistant" for message in messages)
        return f"<code>\n{codes[turn]}\n</code>"

    upstream.handler = scripted(script)
    gateway = await make_gateway()
    _, _, reply = await gateway.post(ASK)
    message = reply["choices"][0]["message"]
    assert message["content"].endswith("fine")
    assert "seen \ud83d!" in message["reasoning"]
    assert "seen \ud83d!" in upstream.bodies()[1]["messages"][-1]["content"]


@pytest.mark.parametrize("before", ["", "a <"])
async def test_a_character_cut_over_two_deltas_passes_the_scrubber(
    upstream: FakeUpstream, make_gateway: MakeGateway, before: str
) -> None:
    halves = [chunk(content=text) for text in (f"{before}", "\ud83d", "\ude00 ok")]
    upstream.handler = raw_reply([sse(*halves, FINISH) + b"data: [DONE]\n\n"])
    gateway = await make_gateway()
    events = await gateway.stream(ASK | {"model": "up/model-nothink"})
    text = text_of(events, "content").encode("utf-16", "surrogatepass").decode("utf-16")
    assert text == f"{before}😀 ok"
    assert events[-1] == "[DONE]"
    assert not any("error" in event for event in events)


@pytest.mark.parametrize("field", ["content", "reasoning_content"])
async def test_a_character_cut_over_two_deltas_is_whole_for_the_agent(
    upstream: FakeUpstream, make_gateway: MakeGateway, field: str
) -> None:
    thought = [chunk(**{field: text}) for text in ("hm \ud83d", "\ude00\n", "lone \ud83d", " x\n")]
    code = [chunk(content=text) for text in ("<code>\nfinal_answer('\ud83d", "\ude00')\n</code>")]
    upstream.handler = raw_reply([sse(event) for event in (*thought, *code, FINISH)])
    gateway = await make_gateway()
    events = await gateway.stream(ASK)
    assert text_of(events, "content") == "😀"
    assert "hm 😀\nlone \ufffd x\n" in text_of(events, "reasoning")
    pieces = [event["choices"][0]["delta"] for event in events[:-1]]
    assert not any('\\ud83d"' in json.dumps(piece) for piece in pieces)


def png(width: int, height: int, *, data: bytes = b"", mangle: bool = False) -> str:
    """A data URL of a PNG whose header promises so many pixels."""

    def part(kind: bytes, body: bytes) -> bytes:
        checksum = zlib.crc32(kind + body) ^ (0xFFFF if mangle and kind != b"IHDR" else 0)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)

    header = part(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    raw = b"\x89PNG\r\n\x1a\n" + header + part(b"IDAT", data) + part(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(raw).decode()


def broken_png() -> str:
    """A PNG with a chunk that Pillow's reader answers with a SyntaxError."""
    raw = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + bytes(13) + bytes(4)
    return "data:image/png;base64," + base64.b64encode(raw).decode()


PICTURES = {
    "over 25 megapixels": (png(5001, 5000), "more than 25000000 pixels"),
    "a bomb of which Pillow warns": (png(10_000, 10_000), "more than 25000000 pixels"),
    "a bomb that Pillow refuses": (png(100_000, 100_000), "cannot be read"),
    "a broken header": (broken_png(), "cannot be read"),
    "a broken body": (png(8, 8, data=b"xx", mangle=True), "cannot be read"),
    "an empty body": (png(8, 8), "cannot be read"),
}


@pytest.mark.filterwarnings("always::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("where", ["task", "history"])
@pytest.mark.parametrize("name", PICTURES)
async def test_a_picture_that_cannot_be_taken_is_a_400_that_names_the_messages(
    upstream: FakeUpstream,
    make_gateway: MakeGateway,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    where: str,
) -> None:
    monkeypatch.setattr("warnings.showwarning", lambda said, *_: print(said, file=sys.stderr))
    url, says = PICTURES[name]
    content = [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": url}}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if where == "history":
        messages += [{"role": "assistant", "content": "nice"}, *MESSAGES]
    gateway = await make_gateway()
    for streaming in (False, True):
        status, _, reply = await gateway.post({"messages": messages, "stream": streaming})
        assert status == 400
        error = reply["error"]
        assert says in error.pop("message")
        assert error == {"type": "invalid_request_error", "param": "messages", "code": None}
    assert not upstream.requests


async def test_a_picture_inside_the_limit_is_taken(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    url = png(8, 8, data=zlib.compress(bytes(16)))
    content = [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": url}}]
    gateway = await make_gateway()
    status, _, _ = await gateway.post({"messages": [{"role": "user", "content": content}]})
    assert status == 200
    assert "data:image/png" in json.dumps(upstream.bodies()[0])


@pytest.mark.parametrize("reply", [b"[1]", b"null", b'"text"', b"7"])
async def test_json_that_is_no_object_passes_the_scrubber(
    upstream: FakeUpstream, make_gateway: MakeGateway, reply: bytes
) -> None:
    upstream.handler = raw_reply([reply], "application/json")
    gateway = await make_gateway()
    status, _, got = await gateway.post(ASK | {"model": "up/model-nothink"})
    assert (status, got) == (200, json.loads(reply))


async def test_whole_numbers_may_be_written_as_floats(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    gateway = await make_gateway()
    for body in (b"100.0", b"1e2", b"100"):
        asked = b'{"messages":[{"role":"user","content":"go"}],"max_tokens":%s}' % body
        status, _ = await post_raw(gateway, asked)
        assert status == 200
        sent = upstream.bodies()[-1]["max_tokens"]
        assert (sent, type(sent)) == (100, int)


@pytest.mark.parametrize("number", [b"1e400", b"-1e999", b"NaN", b"Infinity"])
async def test_a_number_that_is_none_is_a_400(make_gateway: MakeGateway, number: bytes) -> None:
    gateway = await make_gateway()
    asked = b'{"messages":[{"role":"user","content":"go"}],"max_tokens":%s}' % number
    status, reply = await post_raw(gateway, asked)
    assert (status, reply["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize(
    ("code", "answer"),
    [
        ("final_answer({(1, 2): 3})", "{(1, 2): 3}"),
        ("a = [1]\na.append(a)\nfinal_answer(a)", "[1, [...]]"),
        ("final_answer({'s': {3, 1}})", '{"s": [1, 3]}'),
        ("final_answer(float('nan'))", "nan"),
        ("final_answer((1, None))", "[1, null]"),
        ("final_answer(False)", "False"),
        ("final_answer(0)", "0"),
        ("final_answer([])", "[]"),
    ],
)
async def test_any_object_answers_as_text(
    upstream: FakeUpstream, make_gateway: MakeGateway, code: str, answer: str
) -> None:
    upstream.handler = scripted(lambda m: f"<code>\n{code}\n</code>")
    gateway = await make_gateway()
    assert text_of(await gateway.stream(ASK), "content") == answer


@pytest.mark.parametrize(
    "said",
    [
        "HIDDEN</think>ans",
        "<think>HIDDEN</think>ans",
        "HIDDEN</ THINK >ans",
        '<details type="reasoning" done="true">\n<summary>Thought</summary>\n> HIDDEN\n</details>ans',
        "<DETAILS class='x' type='reasoning'>HIDDEN</DETAILS>ans",
        "HIDDEN\\u003c/think\\u003eans",
        "HIDDEN&lt;/think&gt;ans",
        [{"type": "text", "text": "HIDDEN</think>"}, {"type": "text", "text": "ans"}],
        [{"type": "thinking", "thinking": "HIDDEN"}, {"type": "text", "text": "ans"}],
    ],
)
async def test_thoughts_sent_back_in_history_do_not_reach_the_model(
    upstream: FakeUpstream, make_gateway: MakeGateway, said: Any
) -> None:
    history = [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": said},
        {"role": "user", "content": "second"},
    ]
    gateway = await make_gateway()
    status, _, _ = await gateway.post({"messages": history})
    assert status == 200
    sent = json.dumps(upstream.bodies()[0]["messages"])
    assert "HIDDEN" not in sent
    assert "Thought<" not in sent
    assert "ans" in [
        m["content"] for m in upstream.bodies()[0]["messages"] if m["role"] == "assistant"
    ]


async def test_a_users_own_words_about_tags_stay(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    gateway = await make_gateway()
    said = "what does </think> mean?"
    await gateway.post({"messages": [{"role": "user", "content": said}]})
    assert said in json.dumps(upstream.bodies()[0]["messages"])


async def test_a_reply_that_is_no_stream_holds_a_megabyte_of_reasoning_at_most(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    code = "for i in range(150):\n    print('word ' * 2000)\nfinal_answer('fine')"
    upstream.handler = scripted(lambda m: f"<code>\n{code}\n</code>", pieces=1000)
    gateway = await make_gateway()
    _, _, reply = await gateway.post(ASK | {"reasoning_format": "deepseek"})
    message = reply["choices"][0]["message"]
    assert message["content"] == "fine"
    assert len(message["reasoning"]) == (1 << 20) + len("…\n[truncated]")
    assert message["reasoning"].endswith("…\n[truncated]")
    whole = text_of(await gateway.stream(ASK), "reasoning")
    assert len(whole) > 1_500_000
    _, _, reply = await gateway.post(ASK)
    content = reply["choices"][0]["message"]["content"]
    assert content.endswith("…\n[truncated]\n</think>\n\nfine")
    assert len(content) < 25_000
