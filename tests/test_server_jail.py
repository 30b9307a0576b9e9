"""Agents whose code runs in the jail, through the whole gateway, as a client sees it."""

import asyncio
import os
import signal
from typing import Any

import pytest
from conftest import FakeUpstream, Gateway, MakeGateway, Script, scripted, text_of, until
from server_process import children, zygotes_of
from smolagents import CodeAgent, tool

from server.keys import JAIL_POOL, SUPERVISOR
from server.registry import Agents
from streaming.agent_context import AgentContext
from streaming.events import Print

ENDLESS = "print('begun')\nlen(str(10**10**8))"
ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "go"}]}


def by_turn(*codes: str) -> Script:
    """One block of code after the other, then the last again."""

    def script(messages: list[dict[str, Any]]) -> str:
        turn = min(sum(m["role"] == "assistant" for m in messages), len(codes) - 1)
        return f"<code>\n{codes[turn]}\n</code>"

    return script


@pytest.mark.every_runner
async def test_code_prints_live_keeps_its_variables_and_answers(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = scripted(by_turn("x = 20\nprint('x is', x)", "final_answer(x + 22)"))
    gateway = await make_gateway(jail="required")
    events = await gateway.stream(ASK)
    assert text_of(events, "content") == "42"
    assert "````text\nx is 20\n````" in text_of(events, "reasoning")


async def test_tools_and_managed_agents_are_called_back_in_the_server(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    where: list[int] = []

    @tool
    def ask_outside(question: str) -> str:
        """Runs in the server.

        Args:
            question: anything
        """
        where.append(os.getpid())
        print("the tool prints")
        return question.upper()

    def factory(context: AgentContext) -> CodeAgent:
        helper = CodeAgent(tools=[], model=context.model, name="helper", description="helps")
        return CodeAgent(tools=[ask_outside], model=context.model, managed_agents=[helper])

    def script(messages: list[dict[str, Any]]) -> str:
        if "helpful agent named 'helper'" in str(messages):
            return "<code>\nprint('from below')\nfinal_answer('helped')\n</code>"
        return (
            "<code>\nanswer = ask_outside(question='who')\nreport = helper(task='x')\n"
            "final_answer(answer + str('helped' in report))\n</code>"
        )

    upstream.handler = scripted(script)
    gateway = await make_gateway({"family": factory}, jail="required")
    events = await gateway.stream(ASK | {"model": "family"})
    assert text_of(events, "content") == "WHOTrue"
    reasoning = text_of(events, "reasoning")
    assert "the tool prints\n" in reasoning
    assert "from below\n" in reasoning
    assert where == [os.getpid()]


@pytest.mark.every_runner
async def test_code_that_outruns_its_step_is_killed_told_and_the_run_goes_on(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = scripted(
        by_turn("x = 1\nlen(str(10**10**8))", "print(x)", "final_answer('went on')")
    )
    gateway = await make_gateway(jail="required", step_seconds=0.3)
    events = await gateway.stream(ASK)
    assert text_of(events, "content") == "went on"
    reasoning = text_of(events, "reasoning")
    assert "exceeded 0.3 s and was killed; all variables are lost" in reasoning
    assert "The variable `x` is not defined" in reasoning


@pytest.mark.parametrize(
    "code", ["len(str(10**10**8))", "while True:\n    pass", "import time\ntime.sleep(600)"]
)
@pytest.mark.every_runner
async def test_a_client_that_leaves_ends_running_code_at_once(
    upstream: FakeUpstream, make_gateway: MakeGateway, code: str
) -> None:
    upstream.handler = scripted(by_turn(f"print('begun')\n{code}"))
    gateway = await make_gateway(jail="required")
    supervisor = gateway.app[SUPERVISOR]
    for streaming in (True, False):
        asking = asyncio.ensure_future(gateway.post(ASK | {"stream": streaming}))
        await begun(gateway)
        loop = asyncio.get_running_loop()
        left = loop.time()
        asking.cancel()
        await until(lambda: not supervisor.runs)
        assert loop.time() - left < 1
        assert supervisor.stuck == 0
    if (pool := gateway.app.get(JAIL_POOL)) is not None:  # on a cluster they are the workers'
        await until(lambda: pool.stats.alive == 2)


async def begun(gateway: Gateway) -> None:
    """Wait until the one run's code has printed its first line."""
    supervisor = gateway.app[SUPERVISOR]
    await until(lambda: supervisor.runs)
    (run,) = supervisor.runs.values()
    async with asyncio.timeout(10):
        async for events in run.reader():
            if Print("begun\n") in events:
                return


async def test_a_jail_that_is_killed_from_outside_is_told_and_the_run_goes_on(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = scripted(by_turn(ENDLESS, "final_answer('went on')"))
    gateway = await make_gateway(jail="required")
    asking = asyncio.ensure_future(gateway.stream(ASK))
    await begun(gateway)
    (zygote,) = zygotes_of(os.getpid())
    for jail in children(zygote):
        os.kill(jail, signal.SIGKILL)
    events = await asking
    assert text_of(events, "content") == "went on"
    assert "SIGKILL" in text_of(events, "reasoning")


async def test_when_the_zygote_dies_its_runs_are_told_and_new_ones_work(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = scripted(by_turn(ENDLESS, "final_answer('went on')"))
    gateway = await make_gateway(jail="required")
    asking = asyncio.ensure_future(gateway.stream(ASK))
    await begun(gateway)
    (zygote,) = zygotes_of(os.getpid())
    os.kill(zygote, signal.SIGKILL)
    assert text_of(await asking, "content") == "went on"
    assert gateway.app[JAIL_POOL].stats.zygote_restarts == 1


@pytest.mark.every_runner
async def test_secrets_of_the_server_are_out_of_reach(
    upstream: FakeUpstream, make_gateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    code = (
        "import os\nprint('{0.environ}'.format(os))\nprint(dict(os.environ))\n"
        "try:\n    print(open('/proc/%d/environ' % os.getppid()).read())\n"
        "except Exception as error:\n    print(str(type(error)))\nfinal_answer('tried')"
    )
    upstream.handler = scripted(by_turn(code))

    gateway = await make_gateway(
        {"open": "bench.open_agent:create_agent"}, jail="required", token="hf_secret"
    )
    events = await gateway.stream(ASK | {"model": "open"})
    assert text_of(events, "content") == "tried"
    assert "hf_secret" not in text_of(events, "reasoning")
    assert "environ(" in text_of(events, "reasoning")


async def test_an_agent_may_use_the_packages_it_authorises(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    code = "import numpy as np\nfinal_answer(int(np.arange(10).sum()))"
    upstream.handler = scripted(by_turn(code))
    agents = Agents(
        numeric=lambda context: CodeAgent(
            tools=[], model=context.model, additional_authorized_imports=["numpy"]
        )
    )
    agents.code_imports = frozenset({"numpy"})
    gateway = await make_gateway(agents, jail="required")
    events = await gateway.stream(ASK | {"model": "numeric"})
    assert text_of(events, "content") == "45"
