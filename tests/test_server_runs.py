"""The operator's view over HTTP: who may see and cancel what, timelines, and the stream of changes."""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web
from conftest import FakeUpstream, MakeGateway, scripted, until
from server_process import ROOT, server_process
from test_server_api_keys import bearer, hash_of, keys_file
from test_server_chat_agent import by_turn
from test_server_client_tools import ONE_CALL, USER, WEATHER, with_results
from test_server_workers import at_both, two_workers

from server import finished_runs, run_board, run_watch
from server.api_keys import digest_of, keys_of_file
from server.api_shapes import RunChanges, RunEntry, RunList
from server.keys import FINISHED_RUNS, KEY_RING, RUN_WATCH, SUPERVISOR
from server.run_board import RunBoard
from server.run_watch import RunWatch
from server.settings import make_settings

SECRET = "the prompt that nobody else may read"
ASK: dict[str, Any] = {"messages": [{"role": "user", "content": SECRET}], "stream": True}
ANSWER = "<code>\nfinal_answer('hello')\n</code>"
STEPS = (
    f"I will look for {SECRET}.\n<code>\nprint(double(4))\n</code>",
    "<code>\nprint('nothing')\nprint(double(400))\n</code>",
    "<code>\nfinal_answer('done')\n</code>",
)
RUNS = "/v1/runs"
KEYS = (
    {"name": "chief", "key": "chief-key", "operator": True},
    {"name": "alice", "key": "alice-key"},
    {"name": "bob", "key": "bob-key"},
)


async def got(
    session: aiohttp.ClientSession, url: str, *, method: str = "GET", key: str = ""
) -> tuple[int, Any]:
    async with session.request(method, url, **(bearer(key) if key else {})) as response:
        return response.status, await response.json()


@asynccontextmanager
async def running(
    session: aiohttp.ClientSession, base: str, *, key: str = "", **fields: Any
) -> AsyncIterator[aiohttp.ClientResponse]:
    """A run whose model says nothing until the gate opens."""
    async with session.post(
        base + "/v1/chat/completions", json=ASK | fields, **(bearer(key) if key else {})
    ) as response:
        assert response.status == 200
        yield response


@pytest.fixture
def gate(upstream: FakeUpstream) -> asyncio.Event:
    opened = asyncio.Event()
    upstream.handler = scripted(lambda _: ANSWER, gate=opened)
    return opened


class Changes:
    """What a client of the event stream has seen."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._content = response.content
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.comments = 0

    @property
    def runs(self) -> dict[str, dict[str, Any]]:
        return {run["id"]: run for _, data in self.events for run in data["runs"]}

    async def read(self) -> bool:
        """The next event or comment; False at the end of the stream."""
        lines = []
        while line := (await self._content.readline()).decode().rstrip("\n"):
            lines.append(line)
        if not lines:
            return False
        if lines[0].startswith(":"):
            self.comments += 1
            return True
        name, data = lines
        assert name.startswith("event: ")
        assert data.startswith("data: ")
        msgspec.json.decode(data[6:], type=RunChanges)
        self.events.append((name[7:], json.loads(data[6:])))
        return True

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(20):
            while not condition(self):
                assert await self.read()


@asynccontextmanager
async def watching(
    session: aiohttp.ClientSession, url: str, *, key: str = ""
) -> AsyncIterator[Changes]:
    async with session.get(url, **(bearer(key) if key else {})) as response:
        assert response.status == 200, await response.text()
        assert response.content_type == "text/event-stream"
        yield Changes(response)


async def test_an_operator_sees_and_cancels_everybodys_runs_and_a_plain_key_does_not(
    make_gateway: MakeGateway, gate: asyncio.Event, tmp_path: Path
) -> None:
    gateway = await make_gateway(api_keys_file=keys_file(tmp_path, *KEYS), heartbeat_seconds=0.1)
    session, base = gateway.session, gateway.base + RUNS
    async with (
        running(session, gateway.base, key="alice-key", metadata={"job": "a"}) as alices,
        running(session, gateway.base, key="bob-key") as bobs,
    ):
        status, listed = await got(session, base + "?scope=all", key="chief-key")
        assert status == 200
        msgspec.convert(listed, RunList)
        of_key = {run["key"]: run for run in listed["data"]}
        assert set(of_key) == {"alice", "bob"}
        assert of_key["alice"]["metadata"] == {"job": "a"}
        assert of_key["alice"]["runner"] == "thread"
        assert of_key["alice"]["worker"] > 1
        assert of_key["alice"]["doing"]["kind"] == "model"
        assert of_key["alice"]["doing"]["name"] == "up/model"

        for path in ("?scope=all", "/events"):
            status, refused = await got(session, base + path, key="alice-key")
            assert (status, refused["error"]["code"]) == (403, "forbidden")
            assert "bob" not in json.dumps(refused)
            status, _ = await got(session, base + path)
            assert status == 401
        own = (await got(session, base, key="alice-key"))[1]["data"]
        assert [run["id"] for run in own] == [of_key["alice"]["id"]]
        assert {"key", "worker"}.isdisjoint(own[0])
        assert "up/model" not in json.dumps(own)
        assert (await got(session, base + "?scope=own", key="chief-key"))[1]["data"] == []

        bobs_run = f"{base}/{of_key['bob']['id']}"
        assert (await got(session, bobs_run, key="alice-key"))[0] == 404
        assert (await got(session, bobs_run + "/cancel", method="POST", key="alice-key"))[0] == 404
        status, seen = await got(session, bobs_run, key="chief-key")
        assert (status, seen["key"]) == (200, "bob")
        assert [span["kind"] for span in seen["timeline"]][-1] == "model"
        assert (await got(session, bobs_run + "/cancel", method="POST", key="chief-key"))[0] == 200
        assert b'"code":"cancelled"' in (await bobs.read()).replace(b" ", b"")
        gate.set()
        assert b"[DONE]" in await alices.read()
    await until(lambda: not gateway.app[SUPERVISOR].runs)
    ended = (await got(session, base + "?scope=all", key="chief-key"))[1]["data"]
    assert {run["key"]: run["outcome"] for run in ended} == {"alice": "ok", "bob": "cancelled"}
    assert (await got(session, base + "?scope=all&limit=1", key="chief-key"))[1]["data"] == ended[
        :1
    ]
    assert (await got(session, base, key="alice-key"))[1]["data"] == []
    alices_run = f"{base}/{of_key['alice']['id']}"
    mine = (await got(session, alices_run, key="alice-key"))[1]
    assert {"key", "worker"}.isdisjoint(mine)
    assert mine["timeline"][0]["kind"] == "queue"
    assert [span["name"] for span in mine["timeline"] if span["kind"] == "model"] == [""]
    assert (await got(session, alices_run, key="bob-key"))[0] == 404


async def test_an_operator_key_may_come_from_the_environment_and_without_keys_all_are_operators(
    make_gateway: MakeGateway, gate: asyncio.Event
) -> None:
    gateway = await make_gateway(api_keys=("alice-key",), operator_keys=(hash_of("chief-key"),))
    base = gateway.base + RUNS + "?scope=all"
    statuses = [
        (await got(gateway.session, base, key=key))[0] for key in ("chief-key", "alice-key")
    ]
    assert statuses == [200, 403]
    assert "chief-key" not in repr(
        make_settings(upstream_base="http://up/v1", operator_keys=("chief-key",))
    )
    alone = await make_gateway(operator_keys=("chief-key",))
    assert (await got(alone.session, alone.base + RUNS))[0] == 401
    is_open = await make_gateway(heartbeat_seconds=0.1)
    async with running(is_open.session, is_open.base) as response:
        _, listed = await got(is_open.session, is_open.base + RUNS + "?scope=all")
        assert [run["key"] for run in listed["data"]] == [None]
        gate.set()
        await response.read()


def test_a_new_key_may_be_an_operator_s(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "server.new_key", "on-call", "--operator"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    key, entry = (line.partition(":")[2].strip() for line in said.splitlines())
    (made,) = keys_of_file(keys_file(tmp_path, json.loads(entry)))
    assert (made.id, made.operator, made.digest) == ("on-call", True, digest_of(key))


async def test_what_a_list_is_asked_for_wrongly_is_a_400(make_gateway: MakeGateway) -> None:
    gateway = await make_gateway()
    for query, param in (
        ("scope=mine", "scope"),
        ("scope=all&limit=-1", "limit"),
        ("scope=all&limit=1001", "limit"),
        ("scope=all&limit=²", "limit"),
        ("scope=all&limit=", "limit"),
    ):
        status, refused = await got(gateway.session, f"{gateway.base}{RUNS}?{query}")
        assert (status, refused["error"]["param"]) == (400, param), query


@pytest.mark.every_runner
async def test_a_timeline_has_model_calls_code_and_tools_where_they_were(
    make_gateway: MakeGateway, upstream: FakeUpstream, runner: str
) -> None:
    upstream.handler = scripted(by_turn(*STEPS))
    gateway = await make_gateway(agents={"doubler": "runner_agents:doubler"})
    await gateway.stream(ASK | {"model": "doubler"})
    await until(lambda: not gateway.app[SUPERVISOR].runs)
    (run,) = gateway.app[FINISHED_RUNS].latest(9)
    status, seen = await got(gateway.session, f"{gateway.base}{RUNS}/{run['id']}")
    assert status == 200
    msgspec.convert(seen, RunEntry)
    assert (seen["runner"], seen["outcome"], seen["doing"]) == (runner, "ok", None)
    spans = seen["timeline"]
    kinds = [span["kind"] for span in spans]
    assert kinds[:2] == ["queue", "setup"]
    models, codes, tools, steps = (
        [span for span in spans if span["kind"] == kind]
        for kind in ("model", "code", "tool", "step")
    )
    assert [span["name"] for span in models] == ["up/model"] * 3
    assert [(span["prompt_tokens"], span["completion_tokens"]) for span in models] == [(10, 5)] * 3
    assert all(0 <= span["first_token"] <= span["end"] - span["start"] + 0.002 for span in models)
    assert [span.get("failed", 0) for span in codes] == [0, 1, 0]
    assert [(span["name"], span.get("failed", 0)) for span in tools] == [
        ("double", 0),
        ("double", 1),
    ]
    # Those of a run elsewhere are timed by their end, as they arrive; several may arrive at once.
    steps.sort(key=lambda span: span["end"])
    assert [span["name"] for span in steps] == ["1", "2", "3"]
    # One after the other. What is sent from elsewhere may come late, and on a machine that is busy very late.
    late = 0.1 if runner == "thread" else 1.0
    for model, code, step in zip(models, codes, steps, strict=True):
        assert step["start"] - late <= model["start"] <= model["end"] <= code["start"] + late
        assert code["start"] <= code["end"] <= step["end"] + late
    for tool, code in zip(tools, codes, strict=False):
        assert code["start"] - late <= tool["start"] <= tool["end"] <= code["end"] + late
    whole = seen["queue_seconds"] + seen["seconds"]
    assert max(span["end"] for span in spans) <= whole + late
    told = json.dumps(seen)
    assert not any(text in told for text in (SECRET, "nothing", "done'", "print"))


async def test_what_a_run_is_at_shows_while_it_is_at_it(
    make_gateway: MakeGateway, upstream: FakeUpstream, tmp_path: Path
) -> None:
    path = tmp_path / "go"
    script = f"<code>\nwait_for_file({str(path)!r})\n</code>"
    upstream.handler = scripted(by_turn(script, ANSWER))
    gateway = await make_gateway(agents={"able": "runner_agents:able"}, heartbeat_seconds=0.1)
    async with running(gateway.session, gateway.base, model="able") as response:
        (run,) = gateway.app[SUPERVISOR].runs.values()
        await until(lambda: run.timeline.doing and run.timeline.doing.kind == "tool")
        _, seen = await got(gateway.session, f"{gateway.base}{RUNS}/{run.id}")
        assert (seen["doing"]["kind"], seen["doing"]["name"]) == ("tool", "wait_for_file")
        going_on = [span["kind"] for span in seen["timeline"] if span["end"] is None]
        assert going_on == ["code", "tool"]
        path.touch()
        await response.read()


async def test_a_run_that_waits_for_its_client_s_tools_shows_it(
    make_gateway: MakeGateway, upstream: FakeUpstream
) -> None:
    upstream.handler = scripted(by_turn(*ONE_CALL))
    gateway = await make_gateway()
    body = {"messages": USER, "tools": [WEATHER]}
    _, _, reply = await gateway.post(body)
    url = f"{gateway.base}{RUNS}/{reply['id']}"
    _, seen = await got(gateway.session, url)
    assert (seen["status"], seen["doing"]["kind"]) == ("paused", "paused")
    message = reply["choices"][0]["message"]
    await gateway.post(body | {"messages": with_results(message, "warm")})
    await until(lambda: not gateway.app[SUPERVISOR].runs)
    spans = (await got(gateway.session, url))[1]["timeline"]
    (paused,) = (span for span in spans if span["kind"] == "paused")
    (tool,) = (span for span in spans if span["kind"] == "tool")
    assert tool["start"] <= paused["start"] <= paused["end"] <= tool["end"] + 0.1
    assert [span["kind"] for span in spans].count("queue") == 2


async def test_a_model_call_that_fails_is_shown_as_failed(
    make_gateway: MakeGateway, upstream: FakeUpstream
) -> None:
    async def refuses(request: web.Request) -> web.Response:
        return web.json_response({"error": {"message": "no"}}, status=400)

    upstream.handler = refuses
    gateway = await make_gateway()
    status, _, _ = await gateway.post(ASK | {"stream": False})
    assert status == 500
    await until(lambda: not gateway.app[SUPERVISOR].runs)
    (run,) = gateway.app[FINISHED_RUNS].latest(9)
    spans = (await got(gateway.session, f"{gateway.base}{RUNS}/{run['id']}"))[1]["timeline"]
    assert [span.get("failed") for span in spans if span["kind"] == "model"] == [1]


async def test_changes_are_told_live_and_no_prompt_is_among_them(
    make_gateway: MakeGateway, upstream: FakeUpstream, gate: asyncio.Event
) -> None:
    gateway = await make_gateway(heartbeat_seconds=0.2)
    url = gateway.base + RUNS + "/events"
    async with watching(gateway.session, url) as changes:
        await changes.until(lambda seen: seen.events)
        assert changes.events == [("snapshot", {"type": "snapshot", "runs": []})]
        async with running(gateway.session, gateway.base) as response:
            await changes.until(lambda seen: seen.runs)
            (run_id,) = changes.runs
            await changes.until(lambda seen: seen.runs[run_id]["doing"]["kind"] == "model")
            quiet, pings = len(changes.events), changes.comments
            await changes.until(lambda seen: seen.comments > pings + 2)
            assert len(changes.events) == quiet  # that time goes by is no change
            gate.set()
            await response.read()
        await changes.until(lambda seen: seen.runs[run_id]["outcome"] == "ok")
        assert changes.runs[run_id]["usage"]["total_tokens"] == 15
        assert {name for name, _ in changes.events[1:]} == {"runs"}
        assert SECRET not in json.dumps(changes.events)
        async with watching(gateway.session, url) as others:
            await others.until(lambda seen: seen.events)
            assert others.events[0][0] == "snapshot"
            assert list(others.runs) == [run_id]
    await until(lambda: not gateway.app[RUN_WATCH].watchers)
    assert gateway.app[RUN_WATCH]._looking is None


async def test_watches_end_also_where_the_last_look_fails(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail(most: int, seconds: float) -> list[dict[str, Any]]:
        raise ValueError("no such record")

    watch = RunWatch(fail)
    async with watch.watching() as watcher:
        await watch.finish()
        assert await watcher.changes() is None
    assert "the runs could not be looked for" in caplog.text


async def test_a_stream_of_changes_ends_when_its_key_is_taken_back(
    make_gateway: MakeGateway, tmp_path: Path
) -> None:
    path = keys_file(tmp_path, *KEYS)
    gateway = await make_gateway(api_keys_file=path)
    url = gateway.base + RUNS + "/events"
    async with watching(gateway.session, url, key="chief-key") as changes:
        await changes.until(lambda seen: seen.events)
        keys_file(tmp_path, KEYS[0] | {"operator": False}, *KEYS[1:])
        gateway.app[KEY_RING].reload()
        async with asyncio.timeout(10):
            while await changes.read():
                pass
        assert changes.events[-1] == ("end", {"type": "end", "runs": []})


async def test_only_so_many_may_watch_at_once(
    make_gateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_watch, "MAX_WATCHERS", 2)
    gateway = await make_gateway()
    url = gateway.base + RUNS + "/events"
    async with watching(gateway.session, url), watching(gateway.session, url) as changes:
        status, refused = await got(gateway.session, url)
        assert (status, refused["error"]["code"]) == (429, "too_many_watchers")
        await changes.until(lambda seen: seen.events)
    await until(lambda: not gateway.app[RUN_WATCH].watchers)
    async with watching(gateway.session, url):
        pass


async def test_one_key_does_not_take_all_places(
    make_gateway: MakeGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_watch, "MAX_WATCHERS_OF_A_KEY", 1)
    keys = (*KEYS, {"name": "deputy", "key": "deputy-key", "operator": True})
    gateway = await make_gateway(api_keys_file=keys_file(tmp_path, *keys))
    url = gateway.base + RUNS + "/events"
    async with watching(gateway.session, url, key="chief-key"):
        status, refused = await got(gateway.session, url, key="chief-key")
        assert (status, refused["error"]["code"]) == (429, "too_many_watchers")
        async with watching(gateway.session, url, key="deputy-key"):
            pass
    await until(lambda: not gateway.app[RUN_WATCH].watchers)
    async with watching(gateway.session, url, key="chief-key"):
        pass


def entry(number: int, **fields: Any) -> dict[str, Any]:
    """A run that goes on, as a worker tells of it."""
    return {
        "id": f"run-{number}",
        "status": "running",
        "created": 1000 + number,
        "ended": None,
        "queue_seconds": 1.0,
        "seconds": 2.0,
        "step": 1,
        "outcome": None,
        "doing": None,
        **fields,
    }


async def test_a_client_that_reads_nothing_is_given_up_and_nothing_piles_up_for_it(
    make_gateway: MakeGateway,
) -> None:
    gateway = await make_gateway(stall_seconds=0.3)
    watch = gateway.app[RUN_WATCH]
    looks = 0

    async def find(most: int, seconds: float) -> list[dict[str, Any]]:
        nonlocal looks
        looks += 1
        return [entry(n, step=looks, metadata={"m": "x" * 8000}) for n in range(500)]

    watch._find = find
    _, writer = await asyncio.open_connection(
        "127.0.0.1", int(gateway.base.rpartition(":")[2]), limit=1024
    )
    writer.write(b"GET /v1/runs/events HTTP/1.1\r\nHost: x\r\n\r\n")
    await until(lambda: looks)
    await until(lambda: not watch.watchers, 30)
    writer.close()
    assert len(watch._board._entries) == 500


def test_the_board_tells_what_is_new_and_keeps_a_bounded_number_of_ended_runs() -> None:
    board = RunBoard()
    board.take([entry(2), entry(1)], 0.0)
    first = board.version
    assert [json.loads(run)["id"] for run in board.since(-1)] == ["run-1", "run-2"]
    board.take([entry(2, seconds=3.0), entry(1, step=2)], 1.0)
    assert [json.loads(run)["id"] for run in board.since(first)] == ["run-1"]
    # One whose worker is gone is lost after a while, and comes back if it was slow alone.
    board.take([entry(1, step=2)], 1.0 + run_board.LOST_SECONDS)
    before = board.version
    board.take([entry(1, step=2)], 1.1 + run_board.LOST_SECONDS)
    (lost,) = map(json.loads, board.since(before))
    assert (lost["id"], lost["status"], lost["outcome"]) == ("run-2", "done", "worker_lost")
    assert lost["ended"] == 1002 + 1 + 3
    before = board.version
    board.take([entry(2), entry(1, step=2)], 2.0 + run_board.LOST_SECONDS)
    assert [json.loads(run)["status"] for run in board.since(before)] == ["running"]
    many = [entry(n, ended=2000 + n) for n in range(1000, 0, -1)]
    board.take(many, 9.0)
    kept = [json.loads(run)["id"] for run in board.since(-1)]
    assert len(kept) == run_board.MAX_ENDED
    assert kept[-1] == "run-1000"


async def test_ended_runs_timelines_are_bounded_in_sum(
    make_gateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = await make_gateway()
    await gateway.post(ASK | {"stream": False})
    await until(lambda: not gateway.app[SUPERVISOR].runs)
    (first,) = gateway.app[FINISHED_RUNS].latest(9)
    size = gateway.app[FINISHED_RUNS]._timeline_bytes
    assert 0 < size < 2000
    monkeypatch.setattr(finished_runs, "MAX_TIMELINE_BYTES", 2 * size)
    for _ in range(4):
        await gateway.post(ASK | {"stream": False})
    await until(lambda: not gateway.app[SUPERVISOR].runs)
    assert gateway.app[FINISHED_RUNS]._timeline_bytes <= 2 * size
    _, seen = await got(gateway.session, f"{gateway.base}{RUNS}/{first['id']}")
    assert (seen["outcome"], seen["timeline"]) == ("ok", None)
    latest = next(gateway.app[FINISHED_RUNS].latest(1))
    _, seen = await got(gateway.session, f"{gateway.base}{RUNS}/{latest['id']}")
    assert seen["timeline"]


async def test_with_workers_all_runs_are_seen_cancelled_and_told_of_at_any_of_them(
    upstream: FakeUpstream, gate: asyncio.Event, tmp_path: Path
) -> None:
    path = keys_file(tmp_path, *KEYS)
    base = "http://worker"
    events = f"{base}{RUNS}/events"
    with two_workers(upstream, API_KEYS_FILE=path, HEARTBEAT_SECONDS="0.2") as server:
        pids = set(server.workers())
        async with (
            at_both(server) as (one, two),
            watching(one, events, key="chief-key") as ones,
            watching(two, events, key="chief-key") as twos,
            running(one, base, key="alice-key") as alices,
            running(two, base, key="bob-key") as bobs,
        ):
            for changes in (ones, twos):
                await changes.until(lambda seen: len(seen.runs) == 2)
                assert {run["worker"] for run in changes.runs.values()} == pids
            of_key = {run["key"]: run["id"] for run in ones.runs.values()}
            for key, status in (("alice-key", 404), ("chief-key", 200)):
                url = f"{base}{RUNS}/{of_key['bob']}"
                assert (await got(one, url, key=key))[0] == status
            status, listed = await got(two, f"{base}{RUNS}?scope=all", key="chief-key")
            assert {run["key"] for run in listed["data"]} == {"alice", "bob"}
            assert (await got(two, f"{base}{RUNS}?scope=all", key="alice-key"))[0] == 403
            url = f"{base}{RUNS}/{of_key['bob']}/cancel"
            assert (await got(one, url, method="POST", key="chief-key"))[0] == 200
            assert b"cancelled" in await bobs.read()
            gate.set()
            assert b"[DONE]" in await alices.read()
            for changes in (ones, twos):
                await changes.until(lambda seen: all(run["outcome"] for run in seen.runs.values()))
            # A worker that is replaced lets its watchers go to the next one.
            server.process.send_signal(signal.SIGHUP)
            async with asyncio.timeout(60):
                for changes in (ones, twos):
                    while await changes.read():
                        pass
                    assert changes.events[-1] == ("end", {"type": "end", "runs": []})
        assert server.stop() == 0


async def test_a_server_that_stops_shows_its_last_runs_and_then_ends_the_stream(
    upstream: FakeUpstream, gate: asyncio.Event
) -> None:
    values: dict[str, Any] = {
        "UPSTREAM_OPENAI_BASE": upstream.base,
        "AGENT_MODEL": "up",
        "HEARTBEAT_SECONDS": "0.2",
    }
    with server_process("--drain-seconds", "20", **values) as server:
        base = server.base
        async with (
            aiohttp.ClientSession() as session,
            watching(session, base + RUNS + "/events") as changes,
            running(session, base) as response,
        ):
            await changes.until(lambda seen: seen.runs)
            server.process.terminate()
            await until(lambda: "stopping" in server.log)
            gate.set()
            await response.read()
            async with asyncio.timeout(20):
                while await changes.read():
                    pass
            assert [run["outcome"] for run in changes.runs.values()] == ["ok"]
            assert changes.events[-1] == ("end", {"type": "end", "runs": []})
        assert await asyncio.to_thread(server.process.wait, 30) == 0


async def test_a_browser_gets_the_page_at_runs_and_everybody_else_the_list(
    make_gateway: MakeGateway,
) -> None:
    gateway = await make_gateway(api_keys=("alice-key",))
    accepts = {
        "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8": "text/html",
        "application/json": "application/json",
        "*/*": "application/json",
        "text/*;q=0.5": "application/json",
        "application/json, text/html;q=0": "application/json",
        "": "application/json",
    }
    for accept, kind in accepts.items():
        headers = {"Accept": accept}
        async with gateway.session.get(gateway.base + "/runs", headers=headers) as response:
            assert response.content_type == kind, accept
            assert response.status == (200 if kind == "text/html" else 401), accept
            if kind == "text/html":
                assert "script-src 'self'" in response.headers["Content-Security-Policy"]
        headers |= bearer("alice-key")["headers"]
        for path, with_key in (("/runs", kind), ("/v1/runs", "application/json")):
            async with gateway.session.get(gateway.base + path, headers=headers) as response:
                assert (response.status, response.content_type) == (200, with_key)
                assert ("Accept" in response.headers.get("Vary", "")) == (path == "/runs")
    headers = {"Accept": "text/html"}
    for method, path in (("GET", "/v1/runs"), ("POST", "/runs"), ("GET", "/runs/x")):
        async with gateway.session.request(
            method, gateway.base + path, headers=headers
        ) as response:
            assert response.status == 401
    plain = await make_gateway(page=False)
    async with plain.session.get(plain.base + "/runs", headers=headers) as response:
        assert (response.status, response.content_type) == (200, "application/json")
