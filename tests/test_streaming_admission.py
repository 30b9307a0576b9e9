"""Places: given in the order of arrival, within limits, and free again when they are given back."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.admission import OwnAdmission, PlaceLedger
from streaming.failures import Busy


def ask(ledger: PlaceLedger, ticket: int, granted: list[int], key: str = "") -> None:
    ledger.ask(ticket, key, lambda: granted.append(ticket))


def test_those_that_wait_are_granted_in_their_order() -> None:
    ledger, granted = PlaceLedger(1, 2, 0), list[int]()
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
    ledger, granted = PlaceLedger(1, 5, 0), list[int]()
    for ticket in range(3):
        ask(ledger, ticket, granted)
    ledger.give_back(1)
    ledger.give_back(0)
    assert granted == [0, 2]


def test_a_keys_places_are_counted_with_those_that_wait() -> None:
    ledger, granted = PlaceLedger(1, 9, 2), list[int]()
    ask(ledger, 0, granted, "mine")
    ask(ledger, 1, granted, "mine")
    with pytest.raises(Busy) as raised:
        ask(ledger, 2, granted, "mine")
    assert raised.value.code == "key_limit"
    ask(ledger, 3, granted, "yours")
    ledger.give_back(1)
    ask(ledger, 4, granted, "mine")
    assert (granted, ledger.queued) == ([0], 2)


@given(
    st.integers(1, 4),
    st.integers(0, 4),
    st.integers(0, 3),
    st.lists(st.tuples(st.booleans(), st.integers(0, 9), st.sampled_from("ab")), max_size=60),
)
def test_no_limit_is_ever_passed_and_no_place_left_empty(
    running: int, queued: int, per_key: int, steps: list[tuple[bool, int, str]]
) -> None:
    ledger, granted, keys = PlaceLedger(running, queued, per_key), list[int](), dict[int, str]()
    for number, (asks, which, key) in enumerate(steps):
        if asks:
            try:
                ask(ledger, number, granted, key)
                keys[number] = key
            except Busy:
                pass
        elif keys:
            gone = list(keys)[which % len(keys)]
            ledger.give_back(gone)
            del keys[gone]
        assert ledger.running <= running
        assert ledger.queued <= queued
        assert ledger.running + ledger.queued == len(keys)
        assert not ledger.queued or ledger.running == running
        for each in "ab":
            assert not per_key or list(keys.values()).count(each) <= per_key
    assert granted == sorted(granted)


async def test_a_wait_that_is_cancelled_does_not_trouble_who_gives_back() -> None:
    admission = OwnAdmission(PlaceLedger(1, 5, 0))
    first, second, third = (admission.ask(f"run-{number}", "") for number in range(3))
    await first.granted
    second.granted.cancel()
    first.give_back()
    assert not third.granted.done()  # the second has it, until it says that it does not want it
    second.give_back()
    async with asyncio.timeout(5):
        await third.granted
    assert (admission.running, admission.queued) == (1, 0)
