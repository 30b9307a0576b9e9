"""One timer looks at many things, and rests when there are none."""

import asyncio

from conftest import until

from streaming.pulse import Pulse


async def test_everything_is_looked_at_until_it_is_discarded() -> None:
    pulse = Pulse(0.01)
    looks: dict[str, list[float]] = {"a": [], "b": []}
    first, second = looks["a"].append, looks["b"].append
    pulse.add(first)
    pulse.add(second)
    assert len(pulse) == 2
    await until(lambda: len(looks["a"]) >= 2 and len(looks["b"]) >= 2)
    pulse.discard(first)
    count = len(looks["a"])
    await until(lambda: len(looks["b"]) >= 5)
    assert len(looks["a"]) == count
    assert looks["b"] == sorted(looks["b"])
    pulse.close()


async def test_it_may_be_discarded_and_added_from_within_a_look() -> None:
    pulse = Pulse(0.01)
    seen: list[str] = []

    def once(now: float) -> None:
        seen.append("once")
        pulse.discard(once)
        pulse.add(then)

    def then(now: float) -> None:
        seen.append("then")
        pulse.close()

    pulse.add(once)
    await until(lambda: "then" in seen)
    assert seen == ["once", "then"]


async def test_it_rests_when_there_is_nothing_to_look_at_and_wakes_for_the_next() -> None:
    pulse = Pulse(0.01)
    looked = asyncio.Event()

    def look(now: float) -> None:
        looked.set()

    for _ in range(2):
        pulse.add(look)
        async with asyncio.timeout(10):
            await looked.wait()
        looked.clear()
        pulse.discard(look)
        await until(lambda: pulse._timer is None)
