"""Places: given in the order of arrival, within limits, and free again when they are given back."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.admission import OwnAdmission, PlaceLedger
from streaming.failures import Busy


def ask(
    ledger: PlaceLedger, ticket: int, granted: list[int], key: str = "", max_of_key: int = 0
) -> None:
    ledger.ask(ticket, key, max_of_key, lambda: granted.append(ticket))


def test_those_that_wait_are_granted_in_their_order() -> None:
    ledger, granted = PlaceLedger(1, 2), list[int]()
    for ticket in range(3):
        ask(ledger, ticket, granted)
    assert (granted, ledger.running, ledger.queued) == ([0], 1, 2)
    with pytest.raises(Busy) as raised:
        ask(ledger, 3, granted)
    assert (raised.value.code, raised.value.retry_after) == ("queue_full", 5)
    ledger.give_back(0)
    ledger.give_back(0)  # twice is once
    assert (granted, ledger.running, ledger.queued) == ([0, 1], 1, 1)


def test_who_waits_no_more_is_passed_over() -> None:
    ledger, granted = PlaceLedger(1, 5), list[int]()
    for ticket in range(3):
        ask(ledger, ticket, granted)
    ledger.give_back(1)
    ledger.give_back(0)
    assert granted == [0, 2]


def test_a_keys_places_are_counted_with_those_that_wait() -> None:
    ledger, granted = PlaceLedger(1, 9), list[int]()
    ask(ledger, 0, granted, "mine", 2)
    ask(ledger, 1, granted, "mine", 2)
    with pytest.raises(Busy) as raised:
        ask(ledger, 2, granted, "mine", 2)
    assert raised.value.code == "key_limit"
    ask(ledger, 3, granted, "yours")
    ledger.give_back(1)
    ask(ledger, 4, granted, "mine", 2)
    assert (granted, ledger.queued) == ([0], 2)


def test_who_resumes_is_before_those_that_have_not_begun() -> None:
    ledger, granted = PlaceLedger(1, 9), list[int]()
    for ticket in range(3):
        ask(ledger, ticket, granted)
    ledger.pause(0)
    ledger.pause(0)  # twice is once
    assert (granted, ledger.running, ledger.queued, ledger.paused) == ([0, 1], 1, 1, 1)
    ledger.resume(0, lambda: granted.append(0))
    assert (granted, ledger.running, ledger.queued, ledger.paused) == ([0, 1], 1, 2, 0)
    ledger.give_back(1)
    assert granted == [0, 1, 0]


def test_a_paused_run_counts_for_its_key_until_it_is_given_back() -> None:
    ledger, granted = PlaceLedger(3, 9), list[int]()
    ask(ledger, 0, granted, "mine", 1)
    ledger.pause(0)
    with pytest.raises(Busy):
        ask(ledger, 1, granted, "mine", 1)
    ledger.give_back(0)
    ask(ledger, 2, granted, "mine", 1)
    assert (granted, ledger.running, ledger.paused) == ([0, 2], 1, 0)


def test_who_is_gone_neither_pauses_nor_resumes() -> None:
    ledger, granted = PlaceLedger(1, 9), list[int]()
    ledger.pause(0)
    ask(ledger, 0, granted)
    ledger.resume(0, lambda: granted.append(0))  # it has not paused
    assert (granted, ledger.running, ledger.paused) == ([0], 1, 0)


@given(
    st.integers(1, 4),
    st.integers(0, 4),
    st.integers(0, 3),
    st.lists(
        st.tuples(
            st.sampled_from(["ask", "end", "pause", "resume"]),
            st.integers(0, 9),
            st.sampled_from("ab"),
        ),
        max_size=60,
    ),
)
def test_no_limit_is_ever_passed_and_no_place_left_empty(
    running: int, queued: int, per_key: int, steps: list[tuple[str, int, str]]
) -> None:
    ledger, granted, keys = PlaceLedger(running, queued), list[int](), dict[int, str]()
    paused, ever_paused = set[int](), 0
    for number, (step, which, key) in enumerate(steps):
        some = list(keys)[which % len(keys)] if keys else -1
        if step == "ask":
            try:
                ask(ledger, number, granted, key, per_key)
                keys[number] = key
            except Busy:
                pass
        elif step == "pause" and some in granted:
            ledger.pause(some)
            paused.add(some)
            ever_paused += 1
        elif step == "resume" and some in paused:
            ledger.resume(some, lambda: None)
            paused.remove(some)
        elif step == "end" and keys:
            ledger.give_back(some)
            del keys[some]
            paused.discard(some)
        assert ledger.running <= running
        assert ledger.queued <= queued + ever_paused
        assert ledger.paused == len(paused)
        assert ledger.running + ledger.queued + ledger.paused == len(keys)
        assert not ledger.queued or ledger.running == running
        for each in "ab":
            assert not per_key or list(keys.values()).count(each) <= per_key
    assert granted == sorted(granted)


async def test_a_wait_that_is_cancelled_does_not_trouble_who_gives_back() -> None:
    admission = OwnAdmission(PlaceLedger(1, 5))
    first, second, third = (admission.ask(f"run-{number}", "", 0) for number in range(3))
    await first.granted
    second.granted.cancel()
    first.give_back()
    assert not third.granted.done()  # the second has it, until it says that it does not want it
    second.give_back()
    async with asyncio.timeout(5):
        await third.granted
    assert (admission.running, admission.queued) == (1, 0)
