"""Whatever is asked of a store in whatever order, it answers as a plain model in memory does."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_servers import KINDS, StoreServers

from server.store_address import make_store
from streaming.store import AlreadyStored, FrontEnd, Record, RecordGone, Store

IDS, OWNERS, RUNS = ("a", "b"), ("me", "you"), ("r1", "r2")
EVENTS = st.lists(st.binary(max_size=40), max_size=5)

ids, owners, runs = st.sampled_from(IDS), st.sampled_from(OWNERS), st.sampled_from(RUNS)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("create"), ids, owners, runs, st.booleans()),
        st.tuples(st.just("append"), ids, runs, st.integers(-1, 1), EVENTS),
        st.tuples(st.just("finish"), ids, runs, st.integers(-1, 1), EVENTS),
        st.tuples(st.just("update"), ids, runs, st.binary(max_size=20)),
        st.tuples(st.just("delete"), ids, owners),
        st.tuples(st.just("cancel"), ids, owners),
        st.tuples(st.just("events"), ids, owners, st.integers(0, 6), st.integers(1, 60)),
        st.tuples(st.just("adopt")),
    ),
    max_size=25,
)


class Model:
    """Records as dictionaries; each step returns what a caller may see of it."""

    def __init__(self) -> None:
        self.records: dict[str, dict[str, Any]] = {}

    def create(self, record_id: str, owner: str, run: str, replace: bool) -> Any:
        if record_id in self.records and not replace:
            return AlreadyStored
        self.records[record_id] = {
            "owner": owner,
            "run": run,
            "events": [],
            "status": "in_progress",
            "body": b"",
            "cancel": False,
        }
        return None

    def append(self, record_id: str, run: str, skew: int, events: list[bytes]) -> Any:
        found = self._own(record_id, run)
        if not events:
            return None
        if found is None or skew:
            return RecordGone
        found["events"] += events
        return None

    def finish(self, record_id: str, run: str, skew: int, events: list[bytes]) -> Any:
        found = self._own(record_id, run)
        if found is None or (events and skew):
            return RecordGone
        found["events"] += events
        found["status"] = "completed"
        return None

    def update(self, record_id: str, run: str, body: bytes) -> Any:
        found = self._own(record_id, run)
        if found is None:
            return RecordGone
        found["body"] = body
        return None

    def delete(self, record_id: str, owner: str) -> Any:
        if self._of(record_id, owner) is None:
            return False
        del self.records[record_id]
        return True

    def cancel(self, record_id: str, owner: str) -> Any:
        found = self._of(record_id, owner)
        if found is not None and found["status"] == "in_progress":
            found["cancel"] = True
        return None

    def events(self, record_id: str, owner: str, start: int, limit: int) -> Any:
        found = self._of(record_id, owner)
        told: list[tuple[int, bytes]] = []
        for numbered in list(enumerate(found["events"] if found else ()))[start:]:
            if limit <= 0:
                break
            told.append(numbered)
            limit -= len(numbered[1])
        return told

    def adopt(self) -> Any:
        """Nobody has a lease."""
        lost = [each for each, found in self.records.items() if found["status"] == "in_progress"]
        for each in lost:
            self.records[each]["run"] = "r2"
        return sorted(lost)

    def next(self, record_id: str) -> int:
        return len(self.records[record_id]["events"]) if record_id in self.records else 0

    def _own(self, record_id: str, run: str) -> dict[str, Any] | None:
        found = self.records.get(record_id)
        is_its_own = found and found["run"] == run and found["status"] == "in_progress"
        return found if is_its_own else None

    def _of(self, record_id: str, owner: str) -> dict[str, Any] | None:
        found = self.records.get(record_id)
        return found if found is not None and found["owner"] == owner else None


async def asked(store: Store, step: tuple[Any, ...], begin: int) -> Any:
    """The same of a real store; `begin` is the record's next number."""
    try:
        match step:
            case ("create", record_id, owner, run, replace):
                record = Record(id=record_id, owner=owner, kind="k", run=run, front_end="f")
                await store.create(record, replace=replace)
            case ("append", record_id, run, skew, events):
                await store.append(record_id, run, begin + skew, events)
            case ("finish", record_id, run, skew, events):
                first = begin + skew
                await store.finish(record_id, run, status="completed", first=first, events=events)
            case ("update", record_id, run, body):
                await store.update(record_id, run, body=body)
            case ("delete", record_id, owner):
                return await store.delete(record_id, owner)
            case ("cancel", record_id, owner):
                await store.ask_cancel(record_id, owner)
            case ("events", record_id, owner, start, limit):
                return (await store.events(record_id, owner, start, limit)).events
            case ("adopt",):
                return sorted(each.id for each in await store.adopt_lost("f", "r2"))
    except (AlreadyStored, RecordGone) as error:
        return type(error)
    return None


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_answers_as_the_model_does(
    kind: str, tmp_path: Path, store_servers: StoreServers
) -> None:
    address = store_servers.address(kind, tmp_path)

    @settings(
        max_examples=25, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(STEPS)
    def check(steps: list[tuple[Any, ...]]) -> None:
        asyncio.run(compare(steps))

    async def compare(steps: list[tuple[Any, ...]]) -> None:
        store, model = make_store(address), Model()
        await store.open()
        try:
            for owner in OWNERS:
                for record_id in IDS:
                    await store.delete(record_id, owner)
            for step in steps:
                begin = model.next(step[1]) if len(step) > 1 else 0
                expected = getattr(model, step[0])(*step[1:])
                assert await asked(store, step, begin) == expected, step
            heads = await store.heads(IDS)
            assert {
                each: (head.run, head.status, head.next_sequence, head.cancel_asked)
                for each, head in heads.items()
            } == {
                each: (found["run"], found["status"], len(found["events"]), found["cancel"])
                for each, found in model.records.items()
            }
            for each, found in model.records.items():
                record = await store.get(each, found["owner"])
                assert record is not None
                assert record.body == found["body"]
            numbers = await store.numbers()
            assert numbers.records == len(model.records)
            assert (numbers.bytes > 0) == bool(model.records)
        finally:
            await store.close()

    check()


async def test_a_dead_front_ends_claim_is_nobodys(
    tmp_path: Path, store_servers: StoreServers
) -> None:
    store = make_store(store_servers.address("sqlite", tmp_path))
    await store.heartbeat(FrontEnd(id="dead"), -1)
    assert await store.claim(b"t", "dead", seconds=60) is None
    assert await store.owner_of(b"t") is None
    await store.close()
