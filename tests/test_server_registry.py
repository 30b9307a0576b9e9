"""The agents a server has: functions, classes and saved folders; each checked, each fresh per run."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from conftest import FakeUpstream, MakeGateway, scripted, text_of
from smolagents import (
    ChatMessage,
    CodeAgent,
    MessageRole,
    Model,
    OpenAIModel,
    PythonInterpreterTool,
    Tool,
    ToolCallingAgent,
)
from smolagents.models import ChatMessageStreamDelta

from server.registry import load_agents
from server.setting_values import BadSetting
from streaming.agent_context import AgentContext


class Doubler(Tool):  # type: ignore[misc]
    name = "doubler"
    description = "Doubles a number."
    inputs = {"number": {"type": "integer", "description": "the number"}}  # noqa: RUF012
    output_type = "integer"

    def forward(self, number: int) -> int:
        return number * 2


def takes_the_context(context: AgentContext) -> CodeAgent:
    return CodeAgent(tools=[Doubler()], model=context.model)


class OwnModel(Model):  # type: ignore[misc]
    """A model that an agent's author brings along."""

    def generate_stream(self, messages: Any, **kwargs: Any) -> Any:
        for piece in ("<think>hm</think>", "<code>\nfinal_", "answer('own')\n</code>"):
            yield ChatMessageStreamDelta(content=piece)


class WholeModel(Model):  # type: ignore[misc]
    """One that cannot stream."""

    def generate(self, messages: Any, **kwargs: Any) -> ChatMessage:
        text = "<code>\nfinal_answer('whole')\n</code>"
        return ChatMessage(role=MessageRole.ASSISTANT, content=text)


def imports_numpy(context: AgentContext) -> CodeAgent:
    helper = CodeAgent(
        tools=[],
        model=context.model,
        name="helper",
        description="helps",
        additional_authorized_imports=["numpy.*", "json"],
    )
    return CodeAgent(
        tools=[],
        model=context.model,
        managed_agents=[helper],
        additional_authorized_imports=["*"],
    )


def takes_nothing() -> CodeAgent:
    return CodeAgent(tools=[], model=OwnModel(model_id="own"))


def takes_nothing_whole() -> CodeAgent:
    return CodeAgent(tools=[], model=WholeModel(model_id="own"))


an_agent = takes_nothing()


def makes_one_for_all(context: AgentContext) -> CodeAgent:
    return an_agent


def makes_no_agent(context: AgentContext) -> str:
    return "agent"


def takes_two(one: Any, two: Any) -> CodeAgent:
    return takes_nothing()


def save_agent(folder: Path) -> None:
    helper = ToolCallingAgent(
        tools=[], model=OpenAIModel("x", api_key="k"), name="helper", description="helps"
    )
    agent = CodeAgent(
        tools=[Doubler()],
        model=OpenAIModel("some-model", api_key="k"),
        managed_agents=[helper],
        max_steps=7,
        additional_authorized_imports=["json"],
    )
    agent.save(str(folder))


@pytest.mark.parametrize("attribute", ["takes_the_context", "takes_nothing"])
def test_factories_are_loaded_and_make_a_fresh_agent_each_time(attribute: str) -> None:
    agents = load_agents({"mine": f"test_server_registry:{attribute}"}, embedded=False)
    assert list(agents) == ["code-writing-agent", "mine"]


def test_what_agents_code_may_import_is_known_so_that_jails_have_it_ready() -> None:
    agents = load_agents({"mine": "test_server_registry:imports_numpy"}, embedded=False)
    assert agents.code_imports == {"numpy", "json"}


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("no_such_module:f", "No module named"),
        ("test_server_registry:nothing", "no attribute 'nothing'"),
        ("test_server_registry:an_agent", "every run needs its own"),
        ("test_server_registry:makes_no_agent", "returned str"),
        ("test_server_registry:makes_one_for_all", "same agent twice"),
        ("test_server_registry:takes_two", "more than one argument"),
        ("just-a-word", "neither a folder nor"),
        (str(Path(__file__).parent), "agent.json"),
    ],
)
def test_an_agent_that_cannot_work_is_refused_with_the_reason(source: str, says: str) -> None:
    with pytest.raises(BadSetting, match=says) as raised:
        load_agents({"mine": source}, embedded=False)
    assert f"mine={source}" in str(raised.value)
    assert "\n" not in str(raised.value)


async def test_a_saved_folder_is_an_agent_on_the_servers_model(
    tmp_path: Path, upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    save_agent(tmp_path / "saved")
    agents = await asyncio.to_thread(
        load_agents, {"saved": str(tmp_path / "saved")}, embedded=False
    )
    upstream.handler = scripted(
        lambda m: "<code>\nimport json\nfinal_answer(json.dumps(doubler(21)))\n</code>"
    )
    gateway = await make_gateway(agents)
    message = {"role": "user", "content": "double"}
    events = await gateway.stream({"model": "saved", "messages": [message]})
    assert text_of(events, "content") == "42"
    sent = upstream.bodies()[0]
    assert sent["model"] == "up/model"
    assert "helper" in str(sent["messages"])


@pytest.mark.parametrize(
    ("factory", "answer"), [(takes_nothing, "own"), (takes_nothing_whole, "whole")]
)
async def test_an_author_may_bring_a_model_of_his_own(
    upstream: FakeUpstream, make_gateway: MakeGateway, factory: Any, answer: str
) -> None:
    gateway = await make_gateway({"own": factory})
    message = {"role": "user", "content": "go"}
    events = await gateway.stream({"model": "own", "messages": [message]})
    assert text_of(events, "content") == answer
    assert f"```python\nfinal_answer('{answer}')\n```" in text_of(events, "reasoning")
    assert not upstream.requests


async def test_a_tool_calling_agent_shows_its_calls(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    def factory(context: AgentContext) -> ToolCallingAgent:
        return ToolCallingAgent(tools=[Doubler()], model=context.model)

    replies = [
        '{"name": "doubler", "arguments": {"number": 4}}',
        '{"name": "final_answer", "arguments": {"answer": "eight"}}',
    ]
    upstream.handler = scripted(lambda m: replies[min(len(upstream.requests) - 1, 1)])
    gateway = await make_gateway({"calls": factory})
    message = {"role": "user", "content": "double 4"}
    events = await gateway.stream({"model": "calls", "messages": [message]})
    assert text_of(events, "content") == "eight"
    reasoning = text_of(events, "reasoning")
    assert 'Tool call: `doubler({"number": 4})`' in reasoning
    assert "````text\n8\n````" in reasoning
    assert len(upstream.bodies()[0]["tools"]) == 2


async def test_a_managed_agent_is_live_too(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    def factory(context: AgentContext) -> CodeAgent:
        helper = CodeAgent(tools=[], model=context.model, name="helper", description="helps")
        return CodeAgent(tools=[], model=context.model, managed_agents=[helper])

    def script(messages: list[dict[str, Any]]) -> str:
        if "helpful agent named 'helper'" in str(messages):
            return "<code>\nprint('from below')\nfinal_answer('helped')\n</code>"
        return "<code>\nfinal_answer(helper(task='help me'))\n</code>"

    upstream.handler = scripted(script)
    gateway = await make_gateway({"family": factory})
    message = {"role": "user", "content": "go"}
    events = await gateway.stream(
        {"model": "family", "messages": [message], "stream_options": {"include_usage": True}}
    )
    assert "helped" in text_of(events, "content")
    assert "from below\n" in text_of(events, "reasoning")
    assert events[-2]["usage"]["prompt_tokens"] == 20


async def test_a_tool_calling_agents_python_interpreter_is_a_tool_like_any_other(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    def factory(context: AgentContext) -> ToolCallingAgent:
        return ToolCallingAgent(tools=[PythonInterpreterTool()], model=context.model)

    replies = [
        '{"name": "python_interpreter", "arguments": {"code": "print(6 * 7)"}}',
        '{"name": "final_answer", "arguments": {"answer": "done"}}',
    ]
    upstream.handler = scripted(lambda m: replies[min(len(upstream.requests) - 1, 1)])
    gateway = await make_gateway({"calls": factory})
    message = {"role": "user", "content": "go"}
    events = await gateway.stream({"model": "calls", "messages": [message]})
    reasoning = text_of(events, "reasoning")
    assert 'Tool call: `python_interpreter({"code": "print(6 * 7)"})`' in reasoning
    assert "42" in reasoning
    assert text_of(events, "content") == "done"


async def test_functions_that_an_author_gives_to_the_executor_can_be_called(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    def factory(context: AgentContext) -> CodeAgent:
        functions = {"twice": lambda number: 2 * number}
        return CodeAgent(
            tools=[], model=context.model, executor_kwargs={"additional_functions": functions}
        )

    upstream.handler = scripted(lambda m: "<code>\nfinal_answer(twice(21))\n</code>")
    gateway = await make_gateway({"functions": factory})
    message = {"role": "user", "content": "go"}
    events = await gateway.stream({"model": "functions", "messages": [message]})
    assert text_of(events, "content") == "42"
