"""The load test, short: agents and relayed streams through nginx and two workers, none lost or mixed."""

import asyncio

import pytest

from bench.debian_packages import Unavailable
from bench.load import Mixed, check_agent, check_relayed, run_load
from bench.load_upstream import AGENT_STEPS, DELTAS


@pytest.mark.timeout(240)
def test_no_stream_is_lost_or_mixed(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        tallies = asyncio.run(run_load(agents=40, relays=40, seconds=4, workers=2))
    except Unavailable as error:
        pytest.skip(str(error))
    with capsys.disabled():
        print("\n" + "\n".join(tally.line(1) for tally in tallies))
    for tally in tallies:
        assert not tally.faults
        assert tally.most_at_once == 40
        assert tally.whole >= 40


def event(name: str, text: str) -> dict[str, object]:
    return {"choices": [{"delta": {name: text}}]}


def test_the_load_test_would_notice() -> None:
    own, other = "tok-relay-1-", "tok-relay-2-"
    deltas = [event("content", f"{own}{number} ") for number in range(DELTAS)]
    check_relayed(own, deltas)
    for wrong in (deltas[:-1], [deltas[1], *deltas], [event("content", f"{other}0 "), *deltas[1:]]):
        with pytest.raises(Mixed):
            check_relayed(own, wrong)
    own, other = "tok-agent-1-", "tok-agent-2-"
    lines = [event("reasoning", f"\n{own}printed {step}\n") for step in range(AGENT_STEPS)]
    answer = event("content", f"{own}answer")
    check_agent(own, [*lines, answer])
    for events in (
        lines,
        [*lines, event("content", f"{other}answer")],
        [*lines[1:], answer],
        [*reversed(lines), answer],
        [*lines, event("reasoning", f"{other}printed 0"), answer],
    ):
        with pytest.raises(Mixed):
            check_agent(own, events)
