"""The zygote of runs: requests to spawn and kill in over a control socket, runs in processes out.

A process of its own, `python -m streaming.runners.run_zygote FD SETTINGS`, without threads, and without
the server's credentials in its environment. It loads the agents' modules once and forks a child per
run, each in a session of its own. A run ends with all that it started: the zygote takes in whatever
it left behind and kills it before it tells of the end. When the server ends, however it ends, so do they.
"""

import ctypes
import gc
import importlib
import logging
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from smolagents import ChatMessage, CodeAgent, LogLevel, MessageRole, Model

from streaming.agent_context import AgentFactory
from streaming.interpreters.zygote_wire import (
    Exited,
    FromZygote,
    Kill,
    Spawn,
    Spawned,
    ToZygote,
    ZygoteReady,
)
from streaming.runners.run_process import RunLimits, run_in_this_process

log = logging.getLogger("run_zygote")

_CHILD_SOCKET = 3
_PR_SET_CHILD_SUBREAPER = 36


class RunZygoteSettings(msgspec.Struct, frozen=True):
    """`loader` is `module:function`, which makes factories of `agents`, ids and where they come from."""

    loader: str
    agents: dict[str, str]
    limits: RunLimits


class _Child(msgspec.Struct):
    job: int
    pid: int
    pidfd: int


class _Zygote:
    def __init__(
        self, control: socket.socket, agents: dict[str, AgentFactory], limits: RunLimits
    ) -> None:
        self._control = control
        self._agents = agents
        self._limits = limits
        self._children: dict[int, _Child] = {}  # by pidfd

    def serve(self) -> None:
        """Until the control socket closes or the server is gone."""
        server = os.pidfd_open(os.getppid())
        _adopt_orphans()
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(server, select.POLLIN)
        try:
            gc.collect()
            gc.freeze()
            self._send(ZygoteReady((), {}, None))
            while self._serve_once(poll, server):
                pass
        finally:
            for child in list(self._children.values()):
                _kill_group(child.pid)
                self._reap(child)

    def _serve_once(self, poll: select.poll, server: int) -> bool:
        for fd, _ in poll.poll():
            if fd == server:
                return False
            if fd in self._children:
                poll.unregister(fd)
                self._send(self._reap(self._children[fd]))
            elif not self._receive(poll):
                return False
        return True

    def _receive(self, poll: select.poll) -> bool:
        data, fds, _, _ = socket.recv_fds(self._control, 4096, 1)
        if not data:
            return False
        request = msgspec.msgpack.decode(data, type=ToZygote)
        if isinstance(request, Kill):
            for child in self._children.values():
                if child.job == request.job:
                    _kill_group(child.pid)
            return True
        child = self._fork(request, fds[0])
        os.close(fds[0])
        poll.register(child.pidfd, select.POLLIN)
        self._send(Spawned(request.job, child.pid), child.pidfd)
        return True

    def _send(self, message: FromZygote, *fds: int) -> None:
        with suppress(BrokenPipeError):  # the server went: the next poll says so
            socket.send_fds(self._control, [msgspec.msgpack.encode(message)], fds)

    def _fork(self, request: Spawn, fd: int) -> _Child:
        zygote_pid = os.getpid()
        pid = os.fork()
        if pid == 0:
            try:
                os.dup2(fd, _CHILD_SOCKET)
                os.closerange(_CHILD_SOCKET + 1, os.sysconf("SC_OPEN_MAX"))
                run_in_this_process(_CHILD_SOCKET, self._agents, self._limits, zygote_pid)
            finally:
                os._exit(1)
        child = _Child(request.job, pid, os.pidfd_open(pid))
        self._children[child.pidfd] = child
        return child

    def _reap(self, child: _Child) -> Exited:
        """Wait for a child that is at its end, and end what it left behind."""
        _kill_group(child.pid)  # unreaped, so the id is still its own
        _, status, usage = os.wait4(child.pid, 0)
        del self._children[child.pidfd]
        os.close(child.pidfd)
        self._end_orphans()
        cpu_seconds = usage.ru_utime + usage.ru_stime
        return Exited(child.job, status, cpu_seconds, usage.ru_maxrss * 1024, over_disk=False)

    def _end_orphans(self) -> None:
        """Kill what runs left that are over; a living run takes in its own orphans.

        What an orphan had started becomes one in turn, so it takes rounds.
        """
        known = {child.pid for child in self._children.values()}
        while orphans := _children_of_this_process() - known:
            for pid in orphans:
                os.kill(pid, signal.SIGKILL)
            for pid in orphans:
                os.waitpid(pid, 0)


def _adopt_orphans() -> None:
    """Have processes whose parent ends become this one's children rather than init's."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # it has not become a leader yet
        os.killpg(pid, signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)


def _children_of_this_process() -> set[int]:
    return set(map(int, Path("/proc/thread-self/children").read_text().split()))


def load_agents(loader: str, agents: Mapping[str, str]) -> dict[str, AgentFactory]:
    """The factories, by the function that `loader` names."""
    module, _, name = loader.partition(":")
    make: Callable[[Mapping[str, str]], dict[str, AgentFactory]] = getattr(
        importlib.import_module(module), name
    )
    return make(agents)


class _Answering(Model):  # type: ignore[misc]
    """Says one thing."""

    def generate(self, messages: list[Any], **kwargs: Any) -> ChatMessage:
        return ChatMessage(
            role=MessageRole.ASSISTANT, content="<code>\nprint(1)\nfinal_answer(2)\n</code>"
        )


def _warm_up() -> None:
    """Have done once what every run would do again: templates compiled, caches filled. No factory is
    called, since what one opens would be shared by all runs."""
    agent = CodeAgent(
        tools=[],
        model=_Answering(model_id="warm-up"),
        verbosity_level=LogLevel.OFF,
        executor_kwargs={"timeout_seconds": None},
    )
    for _ in agent.run("go", stream=True):
        pass


def main(arguments: list[str]) -> None:
    control = socket.socket(fileno=int(arguments[0]))
    settings = msgspec.json.decode(arguments[1], type=RunZygoteSettings)
    os.environ["PYTHON_DOTENV_DISABLED"] = "1"  # smolagents would read a .env when it is imported
    logging.basicConfig(format="%(asctime)s %(levelname)s run: %(message)s")
    agents = load_agents(settings.loader, settings.agents)
    _warm_up()
    if len(os.listdir("/proc/self/task")) > 1:
        log.warning(
            "an agent's module started threads, which forks lose: start them in its factory"
        )
    _Zygote(control, agents, settings.limits).serve()


if __name__ == "__main__":
    main(sys.argv[1:])
