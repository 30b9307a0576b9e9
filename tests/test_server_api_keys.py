"""API keys: who may call, how much, what; from the environment, from a file, and read again."""

import asyncio
import json
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from conftest import FakeUpstream, MakeGateway, chunk, raw_reply, scripted, until
from server_process import ROOT, server_process, status_of

from server.api_keys import digest_of, keys_of_file, load_keys
from server.key_ring import ApiKey, KeyHolder, KeyRing
from server.keys import KEY_RING
from server.setting_values import BadSetting
from server.settings import make_settings, read_settings
from server.upstream_settings import BadEntry
from streaming.failures import InvalidKey, KeyLimit

ASK = {"messages": [{"role": "user", "content": "hello"}]}
# What Open WebUI asks besides, of the upstream's model alone.
TITLE_PROMPT = "### Task:\nGenerate a title.\n<chat_history>\nUSER: hello\n</chat_history>"
TITLE = {"messages": [{"role": "user", "content": TITLE_PROMPT}]}
PLAIN = ASK | {"model": "up/model"}


def bearer(key: str) -> dict[str, Any]:
    return {"headers": {"Authorization": f"Bearer {key}"}}


def keys_file(folder: Path, *entries: dict[str, Any]) -> str:
    path = folder / "keys.json"
    path.write_text(json.dumps(entries))
    return str(path)


def hash_of(key: str) -> str:
    return "sha256:" + digest_of(key).hex()


def completion(**usage: int) -> bytes:
    reply = {"id": "c", "object": "chat.completion", "choices": [], "usage": usage}
    return json.dumps(reply).encode()


@pytest.mark.parametrize("entry", ["k-1", hash_of("k-1")])
async def test_a_key_may_be_given_as_it_is_or_as_its_hash(
    make_gateway: MakeGateway, entry: str
) -> None:
    gateway = await make_gateway(api_keys=(entry, "other"))
    for path in ("/v1/models", "/models", "/v1/runs", "/metrics", "/no/such/route"):
        async with gateway.session.get(gateway.base + path) as response:
            assert response.status == 401, path
            assert response.headers["WWW-Authenticate"] == "Bearer"
            assert (await response.json())["error"]["code"] == "invalid_api_key"
    for wrong in ("k-2", entry if entry != "k-1" else "K-1", ""):
        async with gateway.session.get(gateway.base + "/v1/models", **bearer(wrong)) as response:
            assert response.status == 401
    for scheme in ("Bearer", "bearer", "BEARER"):
        headers = {"Authorization": f"{scheme} k-1"}
        async with gateway.session.get(gateway.base + "/v1/models", headers=headers) as response:
            assert response.status == 200
    for path in ("/healthz", "/v1/healthz", "/readyz"):
        async with gateway.session.get(gateway.base + path) as response:
            assert response.status == 200


async def test_no_key_is_kept_as_it_is_where_keys_are_looked_up(make_gateway: MakeGateway) -> None:
    gateway = await make_gateway(api_keys=("very-secret-key",))
    ring = gateway.app[KEY_RING]
    holder = ring.holder_of("Bearer very-secret-key")
    assert "very-secret-key" not in repr(vars(ring)) + repr(vars(holder))


async def test_requests_a_minute_are_limited_per_key(
    make_gateway: MakeGateway, tmp_path: Path
) -> None:
    path = keys_file(
        tmp_path, {"key": hash_of("slow"), "requests_per_minute": 3}, {"key": hash_of("free")}
    )
    gateway = await make_gateway(api_keys_file=path)
    statuses = []
    for _ in range(4):
        async with gateway.session.get(gateway.base + "/v1/models", **bearer("slow")) as response:
            statuses.append(response.status)
            last, headers = await response.json(), response.headers
    assert statuses == [200, 200, 200, 429]
    assert last["error"]["type"] == "rate_limit_error"
    assert last["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(headers["Retry-After"]) <= 20
    async with gateway.session.get(gateway.base + "/v1/models", **bearer("free")) as response:
        assert response.status == 200


def test_a_place_is_free_again_after_a_key_s_share_of_a_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    holder = KeyHolder(ApiKey("k", b"", requests_per_minute=6))
    for _ in range(6):
        holder.count_request()
    with pytest.raises(KeyLimit) as raised:
        holder.count_request()
    assert raised.value.retry_after == 10
    now += 10.0
    holder.count_request()
    with pytest.raises(KeyLimit):
        holder.count_request()
    now += 3600.0
    for _ in range(6):  # what was not used does not add up
        holder.count_request()
    with pytest.raises(KeyLimit):
        holder.count_request()


async def test_runs_at_one_time_are_limited_per_key(
    make_gateway: MakeGateway, upstream: FakeUpstream, tmp_path: Path
) -> None:
    gate = asyncio.Event()
    upstream.handler = scripted(lambda _: "<code>\nfinal_answer('x')\n</code>", gate=gate)
    path = keys_file(
        tmp_path,
        {"name": "one", "key": hash_of("k1"), "concurrent_runs": 1},
        {"name": "two", "key": hash_of("k2"), "concurrent_runs": 2},
    )
    gateway = await make_gateway(api_keys_file=path, max_per_key=1)
    runs = [asyncio.create_task(gateway.post(ASK, **bearer(key))) for key in ("k1", "k2", "k2")]
    await until(lambda: len(upstream.requests) == 3)
    for key in ("k1", "k2"):
        status, headers, body = await gateway.post(ASK, **bearer(key))
        assert (status, body["error"]["code"]) == (429, "key_limit")
        assert "Retry-After" in headers
    gate.set()
    assert [(await run)[0] for run in runs] == [200, 200, 200]


@pytest.mark.parametrize("asked", [ASK, TITLE], ids=["a run", "a title"])
async def test_an_agent_s_tokens_count_for_the_day(
    make_gateway: MakeGateway,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: dict[str, Any],
) -> None:
    path = keys_file(tmp_path, {"name": "k", "key": hash_of("k1"), "tokens_per_day": 15})
    gateway = await make_gateway(api_keys_file=path)
    status, _, body = await gateway.post(asked, **bearer("k1"))
    assert (status, body["usage"]["total_tokens"]) == (200, 15)
    for refused in (ASK, PLAIN):
        status, headers, body = await gateway.post(refused, **bearer("k1"))
        assert (status, body["error"]["code"]) == (429, "rate_limit_exceeded")
        assert 0 < int(headers["Retry-After"]) <= 86_400
    async with gateway.session.get(gateway.base + "/v1/models", **bearer("k1")) as response:
        assert response.status == 200  # it costs no tokens
    tomorrow = time.time() + 86_400
    monkeypatch.setattr(time, "time", lambda: tomorrow)
    assert (await gateway.post(ASK, **bearer("k1")))[0] == 200


async def test_a_relayed_reply_s_own_usage_counts(
    make_gateway: MakeGateway, upstream: FakeUpstream, tmp_path: Path
) -> None:
    path = keys_file(tmp_path, {"name": "k", "key": hash_of("k1"), "tokens_per_day": 100})
    gateway = await make_gateway(api_keys_file=path)
    holder = gateway.app[KEY_RING].holder_of("Bearer k1")
    whole = completion(prompt_tokens=7, completion_tokens=4, total_tokens=11)
    upstream.handler = raw_reply([whole], "application/json")
    assert (await gateway.post(PLAIN, **bearer("k1")))[0] == 200
    assert holder.tokens_today == 11
    events = [
        b"data: " + json.dumps(chunk(content='"usage": {"total_tokens": 1}')).encode() + b"\n\n",
        b'data: {"choices":[],"usage":{"prompt_tokens":20,"completion_tokens":3}}\n\n',
        b"data: [DONE]\n\n",
    ]
    upstream.handler = raw_reply(events)
    assert (await gateway.stream(PLAIN, **bearer("k1")))[-1] == "[DONE]"
    await until(lambda: holder.tokens_today == 34)


async def test_a_reply_without_usage_counts_by_its_events(
    make_gateway: MakeGateway, upstream: FakeUpstream, tmp_path: Path
) -> None:
    path = keys_file(tmp_path, {"name": "k", "key": hash_of("k1"), "tokens_per_day": 10_000})
    gateway = await make_gateway(api_keys_file=path)
    holder = gateway.app[KEY_RING].holder_of("Bearer k1")
    event = b"data: " + json.dumps(chunk(content="x")).encode() + b"\n\n"
    upstream.handler = raw_reply([event * 50, b"data: [DONE]\n\n"])
    body = PLAIN | {"messages": [{"role": "user", "content": "y" * 4000}]}
    await gateway.stream(body, **bearer("k1"))
    await until(lambda: holder.tokens_today)
    assert 1050 < holder.tokens_today < 1100


async def test_a_client_that_leaves_is_charged_for_what_it_got(
    make_gateway: MakeGateway, upstream: FakeUpstream, tmp_path: Path
) -> None:
    path = keys_file(tmp_path, {"name": "k", "key": hash_of("k1"), "tokens_per_day": 10_000})
    gateway = await make_gateway(api_keys_file=path)
    holder = gateway.app[KEY_RING].holder_of("Bearer k1")

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: {}\n\n" * 40)
        await asyncio.sleep(3600)
        return response

    upstream.handler = endless
    url = gateway.base + "/v1/chat/completions"
    body = PLAIN | {"stream": True}
    async with gateway.session.post(url, json=body, **bearer("k1")) as response:
        assert await response.content.readline()
        response.close()
    await until(lambda: holder.tokens_today >= 40)


async def test_models_that_a_key_may_not_use_do_not_exist_for_it(
    make_gateway: MakeGateway, tmp_path: Path
) -> None:
    path = keys_file(
        tmp_path,
        {"name": "agent", "key": hash_of("k1"), "models": ["code-*"]},
        {"name": "relay", "key": hash_of("k2"), "models": ["up/model"]},
    )
    gateway = await make_gateway(api_keys_file=path)
    seen = {}
    for key in ("k1", "k2"):
        async with gateway.session.get(gateway.base + "/v1/models", **bearer(key)) as response:
            seen[key] = {model["id"] for model in (await response.json())["data"]}
    assert seen == {"k1": {"code-writing-agent"}, "k2": {"up/model", "up/model-nothink"}}
    for key, model in (("k1", "up/model"), ("k1", "up/model-nothink"), ("k2", "any"), ("k2", None)):
        body = ASK | ({"model": model} if model else {})
        status, _, reply = await gateway.post(body, **bearer(key))
        assert (status, reply["error"]["code"], reply["error"]["param"]) == (
            404,
            "model_not_found",
            "model",
        )
    status, _, reply = await gateway.post(
        {"model": "up/model", "input": "x"}, path="/v1/embeddings", **bearer("k1")
    )
    assert (status, reply["error"]["code"]) == (404, "model_not_found")
    # A name that nobody has is answered by the default agent, for those who may use it.
    assert (await gateway.post(ASK | {"model": "any"}, **bearer("k1")))[0] == 200
    assert (await gateway.post(ASK, **bearer("k1")))[0] == 200


def test_a_reload_takes_new_keys_and_keeps_the_counters(tmp_path: Path) -> None:
    path = keys_file(tmp_path, {"name": "a", "key": hash_of("k1"), "tokens_per_day": 5})
    ring = KeyRing(lambda: load_keys((), path))
    ring.holder_of("Bearer k1").add_tokens(5)
    keys_file(
        tmp_path,
        {"name": "b", "key": hash_of("k1"), "tokens_per_day": 9},
        {"name": "new", "key": "k2"},
    )
    assert ring.reload() == 2
    holder = ring.holder_of("Bearer k1")
    assert (holder.key.id, holder.key.tokens_per_day, holder.tokens_today) == ("b", 9, 5)
    assert ring.holder_of("Bearer k2").key.id == "new"
    (tmp_path / "keys.json").write_text("[]")
    with pytest.raises(BadEntry):  # an empty file must not open the server
        ring.reload()
    assert ring.holder_of("Bearer k2").key.id == "new"
    keys_file(tmp_path, {"key": "k2"})
    ring.reload()
    with pytest.raises(InvalidKey):
        ring.holder_of("Bearer k1")


def test_names_of_models_that_callers_make_up_take_no_memory(tmp_path: Path) -> None:
    path = keys_file(tmp_path, {"key": "k", "models": ["a*"]})
    holder = KeyRing(lambda: load_keys((), path)).holder_of("Bearer k")
    tracemalloc.start()
    try:
        for number in range(1000):
            assert holder.may_use(f"a{number}")
            assert holder.may_use("a" * 10_000 + str(number))
        assert tracemalloc.get_traced_memory()[0] < 200_000
    finally:
        tracemalloc.stop()


def test_limits_that_are_read_again_hold_for_models_and_requests_of_before(tmp_path: Path) -> None:
    path = keys_file(tmp_path, {"key": "k", "models": ["a*"]})
    ring = KeyRing(lambda: load_keys((), path))
    holder = ring.holder_of("Bearer k")
    for _ in range(10):
        holder.count_request()
        assert (holder.may_use("ab"), holder.may_use("b")) == (True, False)
    keys_file(tmp_path, {"key": "k", "models": ["b"], "requests_per_minute": 1})
    ring.reload()
    assert (holder.may_use("ab"), holder.may_use("b")) == (False, True)
    holder.count_request()
    with pytest.raises(KeyLimit):
        holder.count_request()


def test_a_plain_file_has_a_key_or_hash_a_line(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# the team\nplain#key\n\n{hash_of('k2')}\n")
    assert {key.digest for key in keys_of_file(str(path))} == {
        digest_of("plain#key"),
        digest_of("k2"),
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[{"key": "topsecret", "tokens": 1}]', "unknown field"),
        ('[{"key": "topsecret", "tokens_per_day": "many"}]', "tokens_per_day"),
        ('[{"key": "topsecret", "requests_per_minute": -1}]', "below 0"),
        ('[{"key": "topsecret"}, {"key": "topsecret"}]', "twice"),
        ('[{"key": "topsecret", "name": "a\\nb"}]', "name"),
        ('[{"key": "sha256:topsecret"}]', "64 hexadecimal"),
        ('[{"key": "top secret"}]', "without blanks"),
        ("[topsecret", "no valid JSON"),
        ("top secret\n", "one key or hash a line"),
        ("# topsecret\n", "one key or hash a line"),
        ("[]", "no key"),
    ],
)
def test_a_file_that_cannot_work_is_refused_without_its_keys(
    tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(BadSetting) as raised:
        read_settings([], {"API_KEYS_FILE": str(path)})
    assert "API_KEYS_FILE" in str(raised.value)
    assert said in str(raised.value)
    assert "topsecret" not in str(raised.value)


def test_a_key_in_both_settings_is_refused(tmp_path: Path) -> None:
    path = keys_file(tmp_path, {"key": hash_of("same")})
    with pytest.raises(BadSetting, match="twice"):
        make_settings(api_keys=("same",), api_keys_file=path, upstream_base="http://up/v1")


def test_sighup_reads_the_keys_again_and_a_new_key_comes_from_one_command(tmp_path: Path) -> None:
    made = subprocess.run(
        [sys.executable, "-m", "server.new_key", "alice"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout.splitlines()
    key, entry = made[0].split()[-1], json.loads(made[1].partition("file: ")[2])
    assert key not in made[1]
    path = tmp_path / "keys.json"
    path.write_text('[{"key": "old"}]')
    with server_process(API_KEYS_FILE=str(path)) as server:
        url = f"{server.base}/v1/models"
        assert (status_of(url, key="old"), status_of(url, key=key)) == (200, 401)
        path.write_text(json.dumps([entry]))
        server.process.send_signal(signal.SIGHUP)
        server.line_with("API keys read again: 1")
        assert (status_of(url, key="old"), status_of(url, key=key)) == (401, 200)
        path.write_text("[{]")
        server.process.send_signal(signal.SIGHUP)
        assert "the keys stay as they were" in server.line_with("API_KEYS_FILE")
        assert status_of(url, key=key) == 200
        assert server.stop() == 0
        assert any("GET /v1/models 200" in line and "key=alice" in line for line in server.lines)
        assert key not in "\n".join(server.lines)


@pytest.mark.parametrize(
    ("flags", "keys", "warns"),
    [
        (("--host", "0.0.0.0"), "", True),
        (("--host", "0.0.0.0"), "k", False),
        (("--host", "127.0.0.1"), "", False),
    ],
)
def test_who_listens_to_the_world_without_keys_is_warned(
    flags: tuple[str, ...], keys: str, warns: bool
) -> None:
    with server_process(*flags, API_KEYS=keys) as server:
        assert any("NO API KEYS" in line and "WARNING" in line for line in server.lines) is warns
