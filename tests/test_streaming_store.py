"""Every store keeps the interface's rules."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from store_servers import KINDS, StoreServers

from server.store_address import make_store
from streaming.store import (
    AlreadyStored,
    Conversation,
    FrontEnd,
    OverLimit,
    Record,
    RecordGone,
    Store,
)

HERE = FrontEnd(id="here", machine="m", socket="/s", url="http://here")


@pytest.fixture(params=KINDS)
async def store(
    request: pytest.FixtureRequest, tmp_path: Path, store_servers: StoreServers
) -> AsyncIterator[Store]:
    opened = make_store(store_servers.address(request.param, tmp_path))
    await opened.open()
    yield opened
    await opened.close()


async def stored(
    store: Store, record_id: str, start: int = 0, **limit: int
) -> list[tuple[int, bytes]]:
    return (await store.events(record_id, "me", start, **limit)).events


def record(record_id: str = "r", **values: object) -> Record:
    given = {"owner": "me", "kind": "response", "run": "run", "front_end": "here"} | values
    return Record(id=record_id, **given)  # type: ignore[arg-type]


async def test_events_come_back_as_they_were_appended_from_any_number(store: Store) -> None:
    await store.create(record(body=b"{}", input=b"[]"))
    await store.append("r", "run", 0, [b"a", b"b"])
    await store.append("r", "run", 2, [b"c"])
    await store.finish("r", "run", status="completed", first=3, events=[b"d"], memory=b"m")
    assert await stored(store, "r", 0) == list(enumerate([b"a", b"b", b"c", b"d"]))
    assert await stored(store, "r", 1) == [(1, b"b"), (2, b"c"), (3, b"d")]
    assert await stored(store, "r", 1, limit_bytes=1) == [(1, b"b")]
    assert await stored(store, "r", 4) == []
    found = await store.get("r", "me")
    assert found is not None
    assert (found.status, found.next_sequence, found.memory) == ("completed", 4, b"m")
    assert found.ended is not None


async def test_another_owner_finds_nothing_and_changes_nothing(store: Store) -> None:
    await store.create(record())
    await store.append("r", "run", 0, [b"a"])
    assert await store.get("r", "other") is None
    assert await store.events("r", "other", 0) == (None, [])
    assert await store.records("other", "response") == []
    assert await store.ask_cancel("r", "other") is None
    assert not await store.delete("r", "other")
    assert not (await store.heads(["r"]))["r"].cancel_asked
    assert await stored(store, "r", 0) == [(0, b"a")]


async def test_an_operator_is_told_of_everybodys_runs_and_of_nothing_else(store: Store) -> None:
    for number, owner in enumerate(("me", "you")):
        await store.create(record(f"going {number}", owner=owner, kind="run", input=b"[]"))
        await store.create(record(f"ended {number}", owner=owner, kind="run"))
        await store.finish(f"ended {number}", "run", status="completed", body=b"{}")
    await store.create(record("no run"))
    found = await store.runs(ended_seconds=600, limit=9)
    assert {each.id for each in found} == {"going 0", "going 1", "ended 0", "ended 1"}
    assert {each.owner for each in found} == {"me", "you"}
    assert not any(each.input for each in found)
    going_on = await store.runs(ended_seconds=0, limit=9)
    assert {each.id for each in going_on} == {"going 0", "going 1"}
    assert len(await store.runs(ended_seconds=600, limit=1)) == 1


async def test_only_its_run_writes_a_record_and_only_until_it_ends(store: Store) -> None:
    await store.create(record())
    with pytest.raises(RecordGone):
        await store.append("r", "other run", 0, [b"a"])
    with pytest.raises(RecordGone):
        await store.append("r", "run", 1, [b"a hole"])
    await store.finish("r", "run", status="failed")
    with pytest.raises(RecordGone):
        await store.append("r", "run", 0, [b"a"])
    with pytest.raises(RecordGone):
        await store.update("r", "run", status="in_progress")
    assert await stored(store, "r", 0) == []


async def test_a_record_is_replaced_only_where_that_is_wanted(store: Store) -> None:
    await store.create(record())
    await store.append("r", "run", 0, [b"old"])
    with pytest.raises(AlreadyStored):
        await store.create(record())
    await store.create(record(run="second"), replace=True)
    with pytest.raises(RecordGone):
        await store.append("r", "run", 1, [b"late"])
    await store.append("r", "second", 0, [b"new"])
    assert await stored(store, "r", 0) == [(0, b"new")]


async def test_an_owner_has_no_more_active_records_of_a_kind_than_it_may(store: Store) -> None:
    await store.create(record("1", kind="run"), most=2)
    await store.create(record("2", kind="run"), most=2)
    with pytest.raises(OverLimit):
        await store.create(record("3", kind="run"), most=2)
    await store.create(record("3", kind="run", owner="other"), most=2)
    await store.finish("1", "run", status="completed")
    await store.create(record("4", kind="run"), most=2)


async def test_a_wish_to_cancel_is_seen_in_the_records_head(store: Store) -> None:
    await store.create(record("1"))
    await store.create(record("2", front_end="there"))
    assert (await store.ask_cancel("1", "me")) is not None
    heads = await store.heads(["1", "2", "3"])
    assert {each: head.cancel_asked for each, head in heads.items()} == {"1": True, "2": False}


async def test_what_a_dead_front_end_left_is_adopted_once_and_no_longer_its_own(
    store: Store,
) -> None:
    await store.heartbeat(HERE, 60)
    await store.heartbeat(FrontEnd(id="there"), 60)
    await store.create(record("mine"))
    await store.create(record("theirs", front_end="there"))
    await store.append("theirs", "run", 0, [b"a"])
    assert await store.adopt_lost("here", "adopted") == []
    await store.leave("there")
    (lost,) = await store.adopt_lost("here", "adopted")
    assert (lost.id, lost.run, lost.next_sequence) == ("theirs", "adopted", 1)
    assert await store.adopt_lost("here", "again") == []
    with pytest.raises(RecordGone):
        await store.append("theirs", "run", 1, [b"b"])
    await store.finish("theirs", "adopted", status="failed", first=1, events=[b"lost"])
    assert await stored(store, "theirs", 0) == [(0, b"a"), (1, b"lost")]


async def test_a_thing_has_one_living_owner(store: Store) -> None:
    await store.heartbeat(HERE, 60)
    await store.heartbeat(FrontEnd(id="there"), 60)
    assert await store.claim(b"t", "here", seconds=60) is None
    assert await store.claim(b"t", "here", seconds=60) is None
    assert await store.claim(b"t", "there", seconds=60) == "here"
    assert await store.owner_of(b"t") == "here"
    assert await store.claim(b"t", "there", seconds=60, instead_of="here") is None
    assert await store.claim(b"t", "here", seconds=60) == "there"
    await store.leave("there")
    assert await store.owner_of(b"t") is None
    assert await store.claim(b"t", "here", seconds=60) is None
    assert await store.claim(b"u", "here", seconds=-1) is None
    assert await store.owner_of(b"u") is None


async def test_a_front_end_is_known_while_it_lives(store: Store) -> None:
    await store.heartbeat(HERE, 60)
    assert await store.front_end("here") == HERE
    await store.heartbeat(HERE, -1)
    assert await store.front_end("here") is None


async def test_all_front_ends_know_one_secret(store: Store) -> None:
    secret = await store.secret()
    assert len(secret) > 30
    assert await store.secret() == secret


async def test_requests_of_a_key_are_paid_by_the_minute_and_tokens_by_the_day(store: Store) -> None:
    used = [await store.use_key("k", requests=1, tokens=5, per_minute=2) for _ in range(3)]
    assert [round(use.ahead_seconds / 30) for use in used] == [1, 2, 3]
    assert [use.tokens_today for use in used] == [5, 10, 15]
    # What was too many is not charged.
    assert round((await store.use_key("k", requests=0, tokens=0, per_minute=2)).ahead_seconds) in {
        59,
        60,
    }


async def test_a_conversation_keeps_its_items_in_order(store: Store) -> None:
    await store.create_conversation(Conversation(id="c", owner="me", body=b"{}"))
    assert await store.add_items("c", "me", [("1", b"a"), ("2", b"b")])
    assert await store.add_items("c", "me", [("3", b"c")])
    assert not await store.add_items("c", "other", [("4", b"d")])
    assert await store.items("c", "me", limit=2) == [("1", b"a"), ("2", b"b")]
    assert await store.items("c", "me", after="2") == [("3", b"c")]
    assert await store.items("c", "me", newest_first=True, after="3", limit=1) == [("2", b"b")]
    assert await store.items("c", "other") == []
    assert await store.get_item("c", "me", "2") == b"b"
    assert await store.delete_item("c", "me", "2")
    assert not await store.delete_item("c", "me", "2")
    assert await store.get_item("c", "me", "2") is None
    assert await store.update_conversation("c", "me", b"{1}")
    found = await store.get_conversation("c", "me")
    assert found is not None
    assert found.body == b"{1}"
    assert await store.get_conversation("c", "other") is None
    assert not await store.delete_conversation("c", "other")
    assert await store.delete_conversation("c", "me")
    assert await store.items("c", "me") == []


async def test_the_oldest_that_ended_go_first_and_active_ones_stay(store: Store) -> None:
    for number in range(4):
        await store.create(record(str(number), body=b"x" * 10_000))
        if number:
            await store.finish(str(number), "run", status="completed")
    assert (await store.numbers())[:2] == (4, 1)
    assert await store.sweep(days=1, max_bytes=25_000) == 2
    assert {each.id for each in await store.records("me", "response")} == {"0", "3"}
    assert await store.sweep(days=-1, max_bytes=1 << 30) == 1
    assert {each.id for each in await store.records("me", "response")} == {"0"}
    assert (await store.numbers()).bytes < 12_000


async def test_a_watch_wakes_with_every_change(store: Store) -> None:
    await store.create(record())
    async with store.watch("r") as watch, asyncio.timeout(10):
        await store.append("r", "run", 0, [b"a"])
        await watch.changed()
        await store.finish("r", "run", status="completed")
        await watch.changed()
    assert not store.watches._watches


async def test_what_is_stored_after_its_end_has_ended(store: Store) -> None:
    await store.create(record("early"))
    await store.finish("early", "run", status="completed")
    await store.create(record("whole", status="completed", ended=1e9, created=1e9))
    found = await store.get("whole", "me")
    assert found is not None
    assert found.ended == 1e9
    assert (await store.heads(["whole"]))["whole"].ended == 1e9
    with pytest.raises(RecordGone):
        await store.append("whole", "run", 0, [b"late"])
    await store.create(record("next"), most=1)
    assert [each.id for each in await store.adopt_lost("there", "adopted")] == ["next"]
    assert await store.sweep(days=1, max_bytes=1 << 30) == 1
    assert await store.get("whole", "me") is None


async def test_conversations_count_among_the_bytes_and_go_with_the_oldest(store: Store) -> None:
    await store.create_conversation(Conversation(id="old", owner="me"))
    await store.add_items("old", "me", [("a", b"x" * 10_000)])
    await store.create_conversation(Conversation(id="new", owner="me"))
    await store.add_items("new", "me", [("a", b"x" * 10_000)])
    await store.create(record("latest"))
    await store.finish("latest", "run", status="completed")
    assert await store.sweep(days=1, max_bytes=15_000) == 1
    assert await store.get_conversation("old", "me") is None
    assert await store.get_conversation("new", "me") is not None
    assert await store.get("latest", "me") is not None


async def test_an_item_that_is_added_again_is_there_once_and_last(store: Store) -> None:
    await store.create_conversation(Conversation(id="c", owner="me"))
    await store.add_items("c", "me", [("a", b"old"), ("b", b"2")])
    before = (await store.numbers()).bytes
    await store.add_items("c", "me", [("a", b"new"), ("a", b"new")])
    assert await store.items("c", "me") == [("b", b"2"), ("a", b"new")]
    assert await store.items("c", "me", after="a") == []
    assert await store.get_item("c", "me", "a") == b"new"
    assert (await store.numbers()).bytes == before


async def test_what_was_adopted_and_not_ended_is_adopted_again(store: Store) -> None:
    await store.create(record())
    await store.heartbeat(FrontEnd(id="there"), 60)
    for _ in range(2):
        assert [each.id for each in await store.adopt_lost("there", "adopted")] == ["r"]
    await store.finish("r", "adopted", status="failed")
    assert await store.adopt_lost("there", "adopted") == []
