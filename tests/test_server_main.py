"""`python -m server` as a user starts it: the embedded model, the OpenAI SDK, signals, refusals."""

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import openai
import pytest
from openai import OpenAI

ROOT = Path(__file__).parent.parent
AGENT = "code-writing-agent"
EMBEDDED = "SmolLM2-135M-Instruct"


def environment(**values: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return kept | {"PYTHONPATH": str(ROOT)} | values


@contextmanager
def started(*flags: str, **values: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server process and the base URL that it says it listens on."""
    with subprocess.Popen(
        [sys.executable, "-m", "server", "--port", "0", *flags],
        env=environment(**values),
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if found := re.search(r"listening on (http\S+)", line):
                    yield process, found[1]
                    break
            else:
                pytest.fail(f"the server ended with {process.wait()}")
        finally:
            process.kill()


@pytest.fixture(scope="module")
def client() -> Iterator[OpenAI]:
    with started() as (_, base), OpenAI(base_url=base, api_key="none", max_retries=0) as sdk:
        yield sdk


def ask(text: str) -> list[openai.types.chat.ChatCompletionMessageParam]:
    return [{"role": "user", "content": text}]


def test_the_sdk_streams_an_agent_on_the_embedded_model(client: OpenAI) -> None:
    reasoning, answer, usage, order = "", "", None, []
    for chunk in client.chat.completions.create(
        model=AGENT,
        messages=ask("What is 17 * 23?"),
        stream=True,
        stream_options={"include_usage": True},
    ):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            if thought := getattr(choice.delta, "reasoning_content", None):
                reasoning += thought
                order.append("reasoning")
            if choice.delta.content:
                answer += choice.delta.content
                order.append("answer")
    assert answer == "391"
    assert re.search(r"```python\n.*17 \* 23.*\n```", reasoning, re.DOTALL)
    assert order == sorted(order, reverse=True)
    assert order.count("reasoning") > 1
    assert usage is not None
    assert usage.prompt_tokens > 0
    assert usage.completion_tokens > 0


def test_the_sdk_gets_a_whole_answer(client: OpenAI) -> None:
    reply = client.chat.completions.create(model=AGENT, messages=ask("What is 6 * 7?"))
    assert (reply.choices[0].message.content or "").endswith("</think>\n\n42")
    assert reply.usage is not None
    assert reply.usage.total_tokens > 0


def test_the_sdk_is_told_that_the_limit_of_tokens_cut_the_answer(client: OpenAI) -> None:
    reply = client.chat.completions.create(
        model=AGENT, messages=ask("What is 6 * 7?"), max_tokens=2
    )
    assert reply.choices[0].finish_reason == "length"


def test_a_title_is_the_embedded_models_own(client: OpenAI) -> None:
    prompt = "### Task:\nGenerate a title.\n<chat_history>\nUSER: Bake bread\n</chat_history>"
    reply = client.chat.completions.create(model=AGENT, messages=ask(prompt), max_tokens=20)
    assert reply.model == AGENT
    assert reply.choices[0].message.content
    assert not hasattr(reply.choices[0].message, "reasoning_content")
    assert reply.usage is not None
    assert reply.usage.completion_tokens <= 20  # of one call


@pytest.mark.parametrize("model", [EMBEDDED, f"{EMBEDDED}-nothink"])
def test_the_embedded_model_is_relayed_as_plain_chat(client: OpenAI, model: str) -> None:
    whole = client.chat.completions.create(
        model=model, messages=ask("Say hello."), max_tokens=20, temperature=0
    )
    text = "".join(
        choice.delta.content or ""
        for chunk in client.chat.completions.create(
            model=model, messages=ask("Say hello."), max_tokens=20, temperature=0, stream=True
        )
        for choice in chunk.choices
    )
    assert text
    assert text == whole.choices[0].message.content


def test_the_sdk_reads_models_and_errors(client: OpenAI) -> None:
    assert {model.id for model in client.models.list()} >= {AGENT, EMBEDDED}
    assert client.models.retrieve(AGENT).owned_by == "smolgate"
    with pytest.raises(openai.NotFoundError) as raised:
        client.models.retrieve("nobody")
    assert raised.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=AGENT, messages=[])
    assert refused.value.param == "messages"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_in_good_order(number: int) -> None:
    with started(UPSTREAM_OPENAI_BASE="http://127.0.0.1:1/v1") as (process, base):
        root = base.removesuffix("/v1")
        assert urllib.request.urlopen(f"{root}/healthz").status == 200
        process.send_signal(number)
        assert process.wait(10) == 0


def test_the_embedded_models_process_ends_with_the_server() -> None:
    with started() as (process, _):
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        deadline = time.monotonic() + 10
        while not (pids := children.read_text().split()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
        process.wait()
        deadline = time.monotonic() + 60  # one that is still being started notices when it is
        while any(alive(int(pid)) for pid in pids):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def alive(pid: int) -> bool:
    with suppress(OSError):
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"PORT": "x"}, "PORT is 'x'; allowed is 0 to 65535"),
        ({"AGENTS": "a=no_such_module:f"}, "AGENTS has a=no_such_module:f"),
        ({"AGENTS": "a=os:path"}, "it cannot be called"),
        ({"AGENT_MODEL": "x"}, "UPSTREAM_OPENAI_BASE is not set"),
    ],
)
def test_a_setting_that_cannot_work_is_one_line_and_exit_code_2(
    values: dict[str, str], says: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "server"],
        env=environment(**values),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_port_that_is_taken_is_said_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = subprocess.run(
            [sys.executable, "-m", "server", "--port", str(taken.getsockname()[1])],
            env=environment(UPSTREAM_OPENAI_BASE="http://127.0.0.1:1/v1", LOG_LEVEL="ERROR"),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert "cannot listen" in done.stderr
    assert done.stderr.count("\n") == 1


def test_help_lists_every_setting() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "server", "--help"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    for flag in ("--upstream-openai-base", "--agent-model", "--unix-socket", "--max-running"):
        assert flag in done.stdout


def read_agent(base: str) -> bytes:
    """A whole streamed run."""
    body = b'{"stream": true, "messages": [{"role": "user", "content": "x"}]}'
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{base}/chat/completions", body, headers)
    with urllib.request.urlopen(request, timeout=10) as response:
        told: bytes = response.read()
        return told


@contextmanager
def silent_upstream() -> Iterator[str]:
    """Takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/v1"


def wait_for_a_run(base: str) -> None:
    deadline = time.monotonic() + 10
    while b'"status":"running"' not in urllib.request.urlopen(f"{base}/runs").read():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def status_of(url: str) -> int:
    try:
        with urllib.request.urlopen(url) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_sigterm_ends_what_does_not_finish_in_time_with_an_error_event() -> None:
    with (
        silent_upstream() as upstream,
        started(
            "--drain-seconds", "0.5", "--heartbeat-seconds", "0.05", UPSTREAM_OPENAI_BASE=upstream
        ) as (process, base),
        ThreadPoolExecutor(1) as pool,
    ):
        client = pool.submit(read_agent, base)
        wait_for_a_run(base)
        process.send_signal(signal.SIGTERM)
        told = client.result(10)
        assert process.wait(10) == 0
    assert b'"code":"draining"' in told
    assert told.endswith(b"data: [DONE]\n\n")


def test_a_second_signal_ends_it_at_once() -> None:
    with (
        silent_upstream() as upstream,
        started(UPSTREAM_OPENAI_BASE=upstream) as (process, base),
        ThreadPoolExecutor(1) as pool,
    ):
        client = pool.submit(read_agent, base)
        wait_for_a_run(base)
        process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 5
        while status_of(f"{base}/readyz") != 503:
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 1
        with pytest.raises((OSError, http.client.HTTPException)):
            client.result(10)


def test_when_the_embedded_model_is_killed_its_streams_are_told_and_new_ones_work() -> None:
    with (
        started(JAIL="off") as (process, base),
        OpenAI(base_url=base, api_key="none", max_retries=0) as sdk,
    ):
        reply = sdk.chat.completions.create(
            model=EMBEDDED, messages=ask("Count to 500."), max_tokens=2000, stream=True
        )
        next(iter(reply))
        (child,) = descendants(process.pid)
        os.kill(child, signal.SIGKILL)
        with pytest.raises(openai.APIError, match="broke off"):
            list(reply)
        again = sdk.chat.completions.create(model=AGENT, messages=ask("What is 6 * 7?"))
        assert (again.choices[0].message.content or "").endswith("42")


def test_no_process_outlives_a_killed_server() -> None:
    with started(UPSTREAM_OPENAI_BASE="http://127.0.0.1:1/v1", JAIL="required") as (process, _):
        pids = descendants(process.pid)
        assert pids
        process.kill()
        process.wait()
        deadline = time.monotonic() + 5
        while any(map(alive, pids)):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def descendants(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [*map(int, children), *(pid for child in children for pid in descendants(int(child)))]
