"""What is logged: one line a request with its outcome and ids; nothing forged, nothing secret."""

import asyncio
import io
import json
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from aiohttp import web
from conftest import FakeUpstream, Gateway, MakeGateway, raw_reply, scripted, until
from server_process import server_process, status_of

from server.access_line import RequestEnd, access_json, access_text, plain
from server.access_log import log_end
from server.keys import SUPERVISOR
from server.log_formats import JsonFormatter, LineFormatter
from server.log_handler import LineHandler
from server.outcomes import OUTCOMES, outcome_of
from server.request_log import new_request_id

PROMPT = "a-prompt-that-nobody-else-must-see"
ASK = {"messages": [{"role": "user", "content": PROMPT}]}
PLAIN = ASK | {"model": "up/model"}


class Lines:
    """The access log as a server would write it."""

    def __init__(self, formatter: logging.Formatter) -> None:
        self._stream = io.StringIO()
        self.handler = logging.StreamHandler(self._stream)
        self.handler.setFormatter(formatter)

    @property
    def text(self) -> str:
        return self._stream.getvalue()

    def requests(self) -> list[dict[str, Any]]:
        parsed = [json.loads(line) for line in self.text.splitlines()]
        return [line for line in parsed if line["logger"] == "server.access"]


@pytest.fixture
def lines() -> Iterator[Lines]:
    """All that is logged at INFO, as JSON."""
    lines = Lines(JsonFormatter())
    root = logging.getLogger()
    level = root.level
    root.addHandler(lines.handler)
    root.setLevel(logging.INFO)
    yield lines
    root.removeHandler(lines.handler)
    root.setLevel(level)


async def test_an_agent_s_request_has_one_line_with_all_its_ids(
    make_gateway: MakeGateway, lines: Lines
) -> None:
    gateway = await make_gateway(log_format="json", api_keys=("k-secret",))
    headers = {"Authorization": "Bearer k-secret", "X-Request-Id": "trace-1"}
    status, _, body = await gateway.post(ASK, headers=headers)
    assert status == 200
    (line,) = lines.requests()
    assert line.pop("time").endswith("Z")
    assert 0 < line.pop("seconds") < 60
    assert len(line.pop("key_id")) == 12
    assert line == {
        "level": "INFO",
        "logger": "server.access",
        "address": "127.0.0.1",
        "method": "POST",
        "path": "/v1/chat/completions",
        "status": 200,
        "outcome": "ok",
        "request_id": "trace-1",
        "run_id": body["id"],
        "code": None,
    }
    assert PROMPT not in lines.text
    assert "k-secret" not in lines.text


async def outcomes(gateway: Gateway, lines: Lines, count: int = 1) -> list[str]:
    await until(lambda: len(lines.requests()) >= count)
    return [line["outcome"] for line in lines.requests()]


async def test_a_client_that_leaves_is_client_gone(
    make_gateway: MakeGateway, upstream: FakeUpstream, lines: Lines
) -> None:
    upstream.handler = scripted(lambda _: "x", gate=asyncio.Event())
    gateway = await make_gateway(log_format="json")
    for body in (ASK, PLAIN | {"stream": True}):
        asking = asyncio.create_task(gateway.post(body))
        before = len(upstream.requests)
        await until(lambda: len(upstream.requests) > before)  # noqa: B023
        asking.cancel()
    assert await outcomes(gateway, lines, 2) == ["client_gone", "client_gone"]


async def test_a_deadline_is_a_deadline(
    make_gateway: MakeGateway, upstream: FakeUpstream, lines: Lines
) -> None:
    upstream.handler = scripted(lambda _: "x", gate=asyncio.Event())
    gateway = await make_gateway(log_format="json", run_seconds=0.05)
    assert (await gateway.post(ASK))[0] == 504
    assert await outcomes(gateway, lines) == ["deadline"]


async def test_a_silent_upstream_is_a_deadline_for_the_relay(
    make_gateway: MakeGateway, upstream: FakeUpstream, lines: Lines
) -> None:
    async def silent(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(3600)
        raise AssertionError

    upstream.handler = silent
    gateway = await make_gateway(log_format="json", relay_first_byte_seconds=0.05)
    assert (await gateway.post(PLAIN))[0] == 504
    assert await outcomes(gateway, lines) == ["deadline"]


async def test_what_the_upstream_did_is_the_upstream_s(
    make_gateway: MakeGateway, upstream: FakeUpstream, lines: Lines
) -> None:
    gateway = await make_gateway(log_format="json", retries=0)
    upstream.handler = raw_reply([b"{}"], "application/json", status=500)
    assert (await gateway.post(PLAIN))[0] == 500
    upstream.handler = raw_reply([b"{}"], "application/json", status=401)
    assert (await gateway.post(PLAIN))[0] == 401
    upstream.handler = raw_reply([b'data: {"choices": []}\n\n'])  # breaks off before its end
    assert (await gateway.stream(PLAIN))[-1] == "[DONE]"
    upstream.handler = raw_reply([b"{}"], "application/json", status=503)
    assert (await gateway.post(ASK))[0] == 503
    down = await make_gateway(log_format="json", upstream_base="http://127.0.0.1:1/v1", retries=0)
    assert (await down.post(PLAIN))[0] == 503
    assert await outcomes(gateway, lines, 5) == ["upstream"] * 5


async def test_an_agent_s_failure_is_the_agent_s(
    make_gateway: MakeGateway, upstream: FakeUpstream, lines: Lines
) -> None:
    def broken(context: Any) -> Any:
        raise RuntimeError("cannot be built")

    gateway = await make_gateway({"broken": broken}, log_format="json")
    status, _, body = await gateway.post(ASK | {"model": "broken"})
    assert (status, body["error"]["type"]) == (500, "agent_error")
    assert await outcomes(gateway, lines) == ["agent"]


async def test_what_is_not_taken_is_refused(make_gateway: MakeGateway, lines: Lines) -> None:
    gateway = await make_gateway(log_format="json", api_keys=("k",))
    good = {"Authorization": "Bearer k"}
    assert (await gateway.post(ASK))[0] == 401
    assert (await gateway.post({}, headers=good))[0] == 400
    assert (await gateway.post(ASK, path="/v1/nothing", headers=good))[0] == 404
    assert (await gateway.post(ASK, path="/v1/models", headers=good))[0] == 405
    assert await outcomes(gateway, lines, 4) == ["refused"] * 4
    codes = [line["code"] for line in lines.requests()]
    assert codes == ["invalid_api_key", "invalid_request", "not_found", "method_not_allowed"]


async def test_what_was_stopped_says_so(
    make_gateway: MakeGateway, upstream: FakeUpstream, lines: Lines
) -> None:
    upstream.handler = scripted(lambda _: "x", gate=asyncio.Event())
    gateway = await make_gateway(log_format="json")
    asking = asyncio.create_task(gateway.post(ASK))
    await until(lambda: gateway.app[SUPERVISOR].runs)
    (run,) = gateway.app[SUPERVISOR].runs
    async with gateway.session.post(f"{gateway.base}/v1/runs/{run}/cancel") as response:
        assert response.status == 200
    await asking
    ended = [line for line in lines.requests() if line["run_id"] == run]
    assert [(line["outcome"], line["code"]) for line in ended] == [("stopped", "cancelled")]


def test_every_outcome_is_a_known_word() -> None:
    codes = [None, "ok", "agent_failed", "cancelled", "queue_full", "never heard of"]
    for status in (200, 400, 429, 499, 500, 502, 503, 504):
        for code in codes:
            assert outcome_of(status, code) in OUTCOMES
    assert outcome_of(499, None) == "client_gone"
    assert outcome_of(200, "upstream_failed") == "upstream"
    assert outcome_of(429, "queue_full") == "refused"


FORGED = 'x\n2026-01-01 00:00:00 INFO forged\r\x1b[31m"\u2028\x85\u202e\udcff'


def record(text: str, *args: object, error: BaseException | None = None) -> logging.LogRecord:
    info = (type(error), error, None) if error is not None else None
    return logging.LogRecord("server", logging.INFO, "here", 1, text, args, info)


@pytest.mark.parametrize("formatter", [LineFormatter(), JsonFormatter()])
def test_a_message_stays_one_line(formatter: logging.Formatter) -> None:
    line = formatter.format(record("upstream said %s", FORGED))
    assert len(line.splitlines()) == 1
    assert "\x1b" not in line
    assert "\u202e" not in line
    line.encode()


@pytest.mark.parametrize("formatter", [LineFormatter(), JsonFormatter()])
def test_an_exception_s_text_cannot_forge_a_line(formatter: logging.Formatter) -> None:
    lines = formatter.format(record("failed", error=ValueError(FORGED))).split("\n")
    assert not [line for line in lines if line.startswith("2026-01-01")]
    assert all(line.startswith("    ") for line in lines[1:])


@pytest.mark.parametrize(
    ("make", "line_of"), [(LineFormatter, access_text), (JsonFormatter, access_json)]
)
def test_a_secret_in_a_path_is_hidden(
    make: type[LineFormatter], line_of: Callable[[RequestEnd], str]
) -> None:
    end = RequestEnd("unix", "GET", "/v1/models/hf_upstream-token", 404, 0.1, "refused", "req-1")
    made = record("%s", line_of(end))
    made.name = "server.access"
    line = make(["hf_upstream-token"]).format(made)
    assert "hf_upstream" not in line
    assert "/v1/models/(hidden)" in line


@pytest.mark.parametrize("make", [LineFormatter, JsonFormatter])
def test_secrets_are_hidden_wherever_they_come_up(make: type[LineFormatter]) -> None:
    formatter = make(["hf_upstream-token", "abc"])
    error = ValueError("with hf_upstream-token and Bearer sk-123")
    line = formatter.format(
        record("sent %s", "Authorization: Bearer sk-caller, hf_upstream-token, abc", error=error)
    )
    assert "hf_upstream" not in line
    assert "sk-" not in line
    assert "(hidden)" in line
    assert "abc" in line  # too short to tell from ordinary words


@pytest.mark.parametrize(
    "told",
    ["Bearer sk-1", "bearer: sk-1", "BEARER   sk-1", "Bearer:sk-1", "Bearer\tsk-1", "bearer=sk-1"],
)
def test_what_looks_like_a_bearer_token_is_hidden(told: str) -> None:
    line = LineFormatter().format(record("sent %s", f"{told} and more"))
    assert "sk-1" not in line
    assert line.endswith("(hidden) and more")
    assert LineFormatter().format(record("a forbearer, here")).endswith("a forbearer, here")


def test_a_path_is_printable_ascii_in_both_formats() -> None:
    path = plain('/a"\u2028\udcff\x7f')
    end = RequestEnd("::1", "GET", path, 200, 0.5, "ok", "req-1")
    assert access_text(end) == '::1 GET /a"\\u2028\\udcff\\u007f 200 0.500s ok req-1'
    assert json.loads("{" + access_json(end) + "}")["path"] == path


@contextmanager
def only_handler(formatter: logging.Formatter) -> Iterator[LineHandler]:
    """Logging as a server has it: everything goes to one handler, and not to pytest's."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    handler = LineHandler(io.StringIO())
    handler.setFormatter(formatter)
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    try:
        yield handler
    finally:
        root.handlers[:] = before
        root.setLevel(level)


def written_by(handler: LineHandler) -> list[str]:
    handler.flush()
    stream = handler.stream
    assert isinstance(stream, io.StringIO)
    return stream.getvalue().splitlines()


@pytest.mark.parametrize(("make", "log_format"), [(LineFormatter, "text"), (JsonFormatter, "json")])
def test_a_request_s_line_is_the_same_on_its_short_way(
    make: type[LineFormatter], log_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_795_360_674.25
    monkeypatch.setattr(time, "time", lambda: now)
    monkeypatch.setattr(time, "time_ns", lambda: int(now * 1e9))
    access = logging.getLogger("server.access")
    end = RequestEnd("::1", "GET", "/hf_upstream-token", 200, 0.5, "ok", "Bearer", "run-1", "key")
    with only_handler(make(["hf_upstream-token"])) as handler:
        with monkeypatch.context() as patch:
            patch.setattr(access, "info", None)
            log_end(end, log_format)
        logging.getLogger("server").info("between")
        monkeypatch.setattr(access, "filters", [lambda _: True])
        log_end(end, log_format)
        short, between, usual = written_by(handler)
    assert short == usual
    assert "between" in between
    assert "hf_upstream" not in short


def test_who_listens_later_hears_of_requests_too() -> None:
    end = RequestEnd("::1", "GET", "/", 200, 0.5, "ok", "req-1")
    listener = Lines(JsonFormatter())
    with only_handler(LineFormatter()) as handler:
        log_end(end, "text")
        logging.getLogger("server").addHandler(listener.handler)
        log_end(end, "json")
        logging.getLogger("server").removeHandler(listener.handler)
        log_end(end, "text")
        assert len(written_by(handler)) == 3
        handler.setLevel(logging.WARNING)
        log_end(end, "text")
        assert len(written_by(handler)) == 3
    assert len(listener.requests()) == 1


def test_request_ids_are_of_one_shape_and_differ_after_a_fork() -> None:
    assert re.fullmatch(r"req-[0-9a-f]{24}", new_request_id())
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, " ".join(new_request_id() for _ in range(50)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(reading, 4096).decode().split()
    os.close(reading)
    os.close(writing)
    assert len({*theirs, *(new_request_id() for _ in range(50))}) == 100


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_the_server_logs_in_the_format_asked_for_and_nothing_is_forged(log_format: str) -> None:
    environment: dict[str, Any] = {
        "LOG_FORMAT": log_format,
        "HF_TOKEN": "hf_upstream-token",
        "LOG_LEVEL": "DEBUG",
    }
    with server_process(API_KEYS="sk-caller-key", **environment) as server:
        host, port = server.base.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as raw:
            raw.sendall(
                b"GET /v1/models?a=%0aINFO%20forged HTTP/1.1\r\nHost: x\r\n"
                b"X-Request-Id: a b\x0b\r\nAuthorization: Bearer sk-caller-key\r\n"
                b"Connection: close\r\n\r\n"
            )
            while raw.recv(4096):
                pass
        url, body = f"{server.base}/v1/chat/completions", PLAIN | {"model": "Qwen/Qwen3-1.7B"}
        assert status_of(url, key="sk-caller-key", body=body) == 503
        server.line_with("/v1/chat/completions")
        assert server.stop() == 0
        text = "\n".join(server.lines)
        for secret in ("sk-caller-key", "hf_upstream-token", PROMPT):
            assert secret not in text
        assert not [line for line in server.lines if line.startswith("INFO")]
        if log_format == "json":
            parsed = [json.loads(line) for line in server.lines]
            assert {line["level"] for line in parsed} >= {"INFO"}
            (line,) = [one for one in parsed if one.get("path") == "/v1/chat/completions"]
            assert (line["status"], line["outcome"]) == (503, "upstream")
        else:
            line = server.line_with("POST /v1/chat/completions 503")
            assert " upstream req-" in line
            assert "code=upstream_unavailable" in line
