import asyncio
import contextlib
import gc
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
from jail_pool_thread import IN_A_CONTAINER, make_interpreter, open_pool_thread
from server_process import zygotes_of

from streaming.interpreters import jail_pool
from streaming.interpreters.jail import JailKilled
from streaming.interpreters.jail_pool import JailPool, JailUnavailable

ROOT = Path(__file__).parents[1]
NOBODY = 65_534
BIN = "/usr/local/bin:/usr/bin"


def until(holds: Callable[[], bool], within_seconds: float) -> float:
    """Wait for something that other processes bring about; returns how long it took."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < within_seconds
        time.sleep(0.002)
    return time.monotonic() - began


def is_running(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def children_of(pid: int) -> set[int]:
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                found.add(int(path.parent.name))
    return found


def jail_folders() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("smolgate-jails-*"))


async def test_it_opens_at_once_and_says_which_layers_hold() -> None:
    began = time.monotonic()
    async with JailPool(required=True, warm=0) as pool:
        assert time.monotonic() - began < 0.2
        assert pool.layers == "jail: starting"
        await asyncio.wait_for(pool.ready(), 30)
        assert pool.layers.startswith("jail: ")
        assert "seccomp" in pool.layers


async def test_layers_that_are_off_are_named_with_the_reason() -> None:
    async with JailPool(warm=0, without=["namespaces"]) as pool:
        await asyncio.wait_for(pool.ready(), 30)
        assert "no root: needs namespaces" in pool.layers


@pytest.mark.parametrize("without", [("seccomp",), ("landlock", "root")])
async def test_required_refuses_where_files_or_calls_are_open(without: tuple[str, ...]) -> None:
    async with JailPool(required=True, without=without) as pool:
        with pytest.raises(JailUnavailable, match="jails are required, and this machine"):
            await asyncio.wait_for(pool.ready(), 30)
        with pytest.raises(JailUnavailable, match="jails are required"):
            await asyncio.to_thread(pool.take, 5)


async def test_a_private_root_stands_in_for_landlock() -> None:
    async with JailPool(required=True, warm=0, without=["landlock"]) as pool:
        if "no root" not in pool.layers:
            await asyncio.wait_for(pool.ready(), 30)


async def test_auto_goes_on_with_what_there_is() -> None:
    async with JailPool(without=["seccomp", "landlock", *IN_A_CONTAINER]) as pool:
        await asyncio.wait_for(pool.ready(), 30)
        assert pool.layers == "jail: none, resource limits"
        jail = await asyncio.to_thread(pool.take, 10)
        jail.close()


async def test_other_platforms_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(JailUnavailable, match="jails need Linux"):
        await JailPool().__aenter__()


async def test_a_zygote_that_never_comes_up_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = shutil.which("false")
    assert nothing is not None
    monkeypatch.setattr(sys, "executable", nothing)
    async with JailPool() as pool:
        with pytest.raises(JailUnavailable, match="has not come up in 3 tries"):
            await asyncio.wait_for(pool.ready(), 30)


async def test_take_gives_up_in_time_when_stopped_and_when_closed() -> None:
    pool = JailPool(warm=0, without=["seccomp"], required=True)
    async with pool:
        stopped = threading.Event()
        waiting = asyncio.create_task(asyncio.to_thread(pool.take, 30, stopped.is_set))
        with pytest.raises(JailUnavailable):
            await asyncio.to_thread(pool.take, 0.01)
        stopped.set()
        pool.wake()
        with pytest.raises(JailUnavailable):
            await asyncio.wait_for(waiting, 5)
    with pytest.raises(JailUnavailable, match="closed"):
        await asyncio.to_thread(pool.take, 5)


async def test_closing_while_it_boots_leaves_nothing() -> None:
    before = children_of(os.getpid())
    pool = JailPool()
    async with pool:
        pass
    await pool.close()
    assert children_of(os.getpid()) <= before
    with pytest.raises(JailUnavailable, match="closed"):
        await pool.ready()


def test_jails_are_warm_ahead_of_demand() -> None:
    with open_pool_thread(warm=3) as thread:
        until(lambda: thread.pool.stats.warm == 3, 10)
        jail = thread.pool.take(5)
        until(lambda: thread.pool.stats.warm == 3, 10)
        assert thread.pool.stats.alive == 4
        jail.close()
        until(lambda: thread.pool.stats.alive == 3, 10)


def test_waiting_runs_find_their_jails_made() -> None:
    """For each run that has none yet there is one, to the bound; taken or given up, no more are made."""
    with open_pool_thread(warm=1) as thread:
        pool = thread.pool
        interpreters = [make_interpreter(pool) for _ in range(5)]
        until(lambda: pool.stats.warm == 5, 20)
        for number, interpreter in enumerate(interpreters):
            assert interpreter(f"{number}").output == number
        until(lambda: pool.stats.warm == 1, 20)
        assert pool.stats.spawned == 6
        for interpreter in interpreters:
            interpreter.cleanup()
        until(lambda: pool.stats.alive == pool.stats.warm == 1, 20)


def test_a_thousand_waiting_runs_have_a_bounded_number_of_jails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jail_pool, "_MOST_EXPECTED", 4)
    monkeypatch.setattr(jail_pool, "_SURPLUS_SECONDS", 0.05)
    with open_pool_thread(warm=2) as thread:
        pool = thread.pool
        interpreters = [make_interpreter(pool) for _ in range(1000)]
        until(lambda: pool.stats.warm == 4, 20)
        # One that is taken is replaced.
        assert interpreters[0]("1").output == 1
        until(lambda: pool.stats.warm == 4, 20)
        assert pool.stats.spawned == 5
        # They end without having needed one, and one is lost without having been closed.
        lost = weakref.ref(interpreters[1])
        for interpreter in (interpreters[0], *interpreters[2:]):
            interpreter.cleanup()
            interpreter.cleanup()
        del interpreters, interpreter
        gc.collect()
        assert lost() is None
        until(lambda: pool.stats.alive == pool.stats.warm == 2, 20)
        assert pool.stats.spawned == 5


def test_without_warm_jails_none_is_made_before_it_is_needed() -> None:
    with open_pool_thread(warm=0) as thread:
        waiting, running = make_interpreter(thread.pool), make_interpreter(thread.pool)
        assert running("1").output == 1
        assert thread.pool.stats.spawned == 1
        waiting.cleanup()
        running.cleanup()


def test_a_new_zygote_makes_the_jails_that_are_expected() -> None:
    with open_pool_thread(warm=1) as thread:
        pool = thread.pool
        interpreters = [make_interpreter(pool) for _ in range(3)]
        until(lambda: pool.stats.warm == 3, 20)
        [zygote] = zygotes_of(os.getpid())
        os.kill(zygote, signal.SIGKILL)
        until(lambda: pool.stats.zygote_restarts == 1 and pool.stats.warm == 3, 30)
        assert [interpreter("7").output for interpreter in interpreters] == [7, 7, 7]
        for interpreter in interpreters:
            interpreter.cleanup()


def test_200_takes_leak_no_descriptor_and_no_process() -> None:
    with open_pool_thread(warm=1) as thread:
        pool = thread.pool
        until(lambda: pool.stats.warm == 1, 10)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(200):
            pool.take(10).close()
        until(lambda: pool.stats.alive == pool.stats.warm == 1, 20)
        assert len(os.listdir("/proc/self/fd")) == before
        [zygote] = zygotes_of(os.getpid())
        assert len(children_of(zygote)) == 1


def test_many_threads_each_get_a_jail_of_their_own() -> None:
    with open_pool_thread(warm=2) as thread:
        outputs: list[int] = []

        def run(number: int) -> None:
            interpreter = make_interpreter(thread.pool, step_seconds=60)
            interpreter(f"x = {number}")
            outputs.append(interpreter("x").output)
            interpreter.cleanup()

        threads = [threading.Thread(target=run, args=(number,)) for number in range(20)]
        for one in threads:
            one.start()
        for one in threads:
            one.join(60)
        assert sorted(outputs) == list(range(20))


def test_a_jail_killed_from_outside_is_told_and_replaced() -> None:
    with open_pool_thread(warm=1) as thread:
        interpreter = make_interpreter(
            thread.pool,
            tools={"kill": lambda pid: os.kill(pid, signal.SIGKILL)},
            authorized_imports=["os"],
        )
        with pytest.raises(JailKilled, match="SIGKILL"):
            interpreter("import os\nkill(os.getpid())")
        assert interpreter("2").output == 2
        interpreter.cleanup()


def test_a_dead_warm_jail_is_not_handed_out() -> None:
    with open_pool_thread(warm=1) as thread:
        pool = thread.pool
        until(lambda: pool.stats.warm == 1, 10)
        [zygote] = zygotes_of(os.getpid())
        [jail] = children_of(zygote)
        os.kill(jail, signal.SIGKILL)
        until(lambda: pool.stats.killed == 1, 10)
        interpreter = make_interpreter(pool)
        assert interpreter("1").output == 1
        interpreter.cleanup()


@pytest.mark.parametrize("without", [(), IN_A_CONTAINER], ids=["full", "container"])
def test_a_killed_zygote_takes_its_jails_along_and_is_replaced(without: tuple[str, ...]) -> None:
    folders = jail_folders()
    with open_pool_thread(warm=1, without=without) as thread:
        interpreter = make_interpreter(thread.pool)
        interpreter("x = 1")
        [zygote] = zygotes_of(os.getpid())
        jails = children_of(zygote)
        assert len(jails) >= 1
        os.kill(zygote, signal.SIGKILL)
        assert until(lambda: not any(map(is_running, jails)), 5) < 0.5
        with pytest.raises(JailKilled, match="all variables are lost"):
            interpreter("x")
        assert interpreter("2").output == 2
        assert thread.pool.stats.zygote_restarts == 1
        interpreter.cleanup()
    assert jail_folders() == folders


PARENTS_ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(ROOT), sysconfig.get_path("purelib")]),
    "PYTHONDONTWRITEBYTECODE": "1",
}
PARENT = """
import asyncio, os, sys
from streaming.interpreters.jail import JailInterpreter
from streaming.interpreters.jail_pool import JailPool

async def main():
    async with JailPool(warm=1, without=sys.argv[2:]) as pool:
        await pool.ready()
        interpreter = JailInterpreter(
            pool, on_print=lambda text: print(text, end="", flush=True), check_stop=lambda: None
        )
        interpreter.send_tools({})
        result = await asyncio.to_thread(interpreter, sys.argv[1])
        print(result.output, pool.layers, flush=True)
        interpreter.cleanup()

asyncio.run(main())
"""


def start_parent(
    code: str, *arguments: str, command: tuple[str, ...] = (sys.executable,)
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*command, "-c", PARENT, code, *arguments],
        env=PARENTS_ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("without", [(), IN_A_CONTAINER], ids=["full", "container"])
def test_a_killed_server_leaves_no_process_and_no_folder(without: tuple[str, ...]) -> None:
    folders = jail_folders()
    with start_parent("print('go')\n10**10**8", *without) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "go\n"
        [zygote] = children_of(parent.pid)
        family = {zygote, *children_of(zygote)}
        assert len(family) >= 2
        parent.kill()
        assert until(lambda: not any(map(is_running, family)), 5) < 0.5
    until(lambda: jail_folders() == folders, 2)


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="only root can become another user"
)
@pytest.mark.parametrize("without", [(), ("namespaces",)], ids=["full", "container"])
def test_an_ordinary_user_has_jails_too(without: tuple[str, ...]) -> None:
    become = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    prefix = (*become, "--bounding-set=-all", "--inh-caps=-all")
    works = "import subprocess, sys, smolagents; subprocess.check_call([sys.executable, '-V'])"
    for python in (sys.executable, shutil.which(f"python3.{sys.version_info.minor}", path=BIN)):
        command = (*prefix, python or "/nowhere")
        tried = subprocess.run(
            [*command, "-c", works], env=PARENTS_ENVIRONMENT, capture_output=True, check=False
        )
        if tried.returncode == 0:
            break
    else:
        pytest.skip("no Python with smolagents is open to other users here")
    with start_parent("6 * 7", *without, command=command) as parent:
        assert parent.stdout is not None
        answer = parent.stdout.read()
    assert answer.startswith("42 jail: ")
    assert "landlock, seccomp, resource limits" in answer
    assert "user" not in answer.partition("(")[0]


def test_preloaded_modules_are_there() -> None:
    with open_pool_thread(preload=["fractions", "no_such_module"]) as thread:
        interpreter = make_interpreter(thread.pool, authorized_imports=["fractions"])
        code = "import fractions\nstr(fractions.Fraction(1, 3))"
        assert interpreter(code).output == "1/3"
        interpreter.cleanup()
