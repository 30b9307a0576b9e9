"""The zygote: requests to spawn in over a control socket, confined children out.

A process of its own, `python -m streaming.interpreters.jail_zygote FD SETTINGS`, started before the
server has threads, with an environment that holds nothing of the server's. It loads what children
need once, finds out which layers of confinement this machine allows, and forks. Each child is
handed to the server as a pidfd, so that a kill can never hit a recycled process id. When the
server ends, however it ends, the zygote kills its children, removes what they left and exits.
"""

import gc
import importlib
import os
import select
import shutil
import socket
import sys
import tempfile
import types
from collections.abc import Callable
from signal import SIGKILL
from typing import NoReturn

import msgspec

from streaming.interpreters.confinement import (
    LAYERS,
    WORKSPACE,
    ConfinementPlan,
    LayerFailed,
    confine,
    prepare,
    python_paths,
)
from streaming.interpreters.workspaces import used_bytes, wipe
from streaming.interpreters.zygote_wire import (
    Exited,
    FromZygote,
    Spawn,
    Spawned,
    ZygoteReady,
    ZygoteSettings,
)

_CHILD_SOCKET = 3
# How long a jail may fill its folder unseen, where there is no tmpfs to stop it.
_DISK_CHECK_MILLISECONDS = 250


def _run_jail(fd: int, plan: ConfinementPlan, workspace: str, zygote_pid: int) -> NoReturn:
    from streaming.interpreters.jail_child import run_jail

    run_jail(fd, plan, workspace, zygote_pid)


def _probe_layers(fd: int, plan: ConfinementPlan, workspace: str, zygote_pid: int) -> NoReturn:
    """Answer with the first layer that cannot be had and why, or with nothing."""
    try:
        confine(plan, workspace, zygote_pid)
    except LayerFailed as failed:
        os.write(fd, msgspec.msgpack.encode((failed.layer, failed.reason)))
    os._exit(0)


_ENTRIES: dict[str, Callable[[int, ConfinementPlan, str, int], NoReturn]] = {
    "jail": _run_jail,
    "probe": _probe_layers,
}


class _Child(msgspec.Struct):
    job: int
    pid: int
    pidfd: int
    workspace: str
    over_disk: bool = False


class _Zygote:
    def __init__(self, control: socket.socket, settings: ZygoteSettings) -> None:
        self._control = control
        self._settings = settings
        self._children: dict[int, _Child] = {}
        self._folder: str | None = None
        self._plan = ConfinementPlan((), (*python_paths(), *settings.readable), settings.disk_bytes)

    def serve(self) -> None:
        """Until the control socket closes or the server is gone."""
        server = os.pidfd_open(os.getppid())
        try:
            self._choose_layers()
            gc.collect()
            gc.freeze()
            poll = select.poll()
            poll.register(self._control, select.POLLIN)
            poll.register(server, select.POLLIN)
            while self._serve_once(poll, server):
                pass
        finally:
            self._end_all()

    def _serve_once(self, poll: select.poll, server: int) -> bool:
        watch_disk = self._folder is not None and self._children
        events = poll.poll(_DISK_CHECK_MILLISECONDS if watch_disk else None)
        for fd, _ in events:
            if fd == server:
                return False
            if fd in self._children:
                poll.unregister(fd)
                self._reap(fd)
            elif not self._receive(poll):
                return False
        if watch_disk:
            self._check_disk()
        return True

    def _receive(self, poll: select.poll) -> bool:
        data, fds, _, _ = socket.recv_fds(self._control, 4096, 1)
        if not data:
            return False
        request = msgspec.msgpack.decode(data, type=Spawn)
        child = self._fork(request.job, request.entry, fds[0])
        os.close(fds[0])
        poll.register(child.pidfd, select.POLLIN)
        self._send(Spawned(request.job, child.pid), child.pidfd)
        return True

    def _send(self, message: FromZygote, *fds: int) -> None:
        socket.send_fds(self._control, [msgspec.msgpack.encode(message)], fds)

    def _fork(self, job: int, entry: str, fd: int) -> _Child:
        workspace = self._make_workspace(job)
        zygote_pid = os.getpid()
        pid = os.fork()
        if pid == 0:
            try:
                _keep_only(fd)
                _ENTRIES[entry](_CHILD_SOCKET, self._plan, workspace, zygote_pid)
            finally:
                os._exit(1)
        child = _Child(job, pid, os.pidfd_open(pid), workspace)
        self._children[child.pidfd] = child
        return child

    def _make_workspace(self, job: int) -> str:
        if "root" in self._plan.layers:
            return WORKSPACE
        if self._folder is None:
            self._folder = tempfile.mkdtemp(prefix="smolgate-jails-")
            os.chmod(self._folder, 0o711)  # a jail with a user id of its own must get through
        workspace = os.path.join(self._folder, str(job))
        os.mkdir(workspace, 0o700)
        return workspace

    def _reap(self, pidfd: int) -> Exited:
        child = self._children.pop(pidfd)
        _, status, usage = os.wait4(child.pid, 0)
        os.close(pidfd)
        if child.workspace != WORKSPACE:
            wipe(child.workspace)
        cpu_seconds = usage.ru_utime + usage.ru_stime
        peak_bytes = usage.ru_maxrss * 1024
        exited = Exited(child.job, status, cpu_seconds, peak_bytes, child.over_disk)
        if child.job >= 0:
            self._send(exited)
        return exited

    def _check_disk(self) -> None:
        for child in self._children.values():
            if used_bytes(child.workspace) > self._settings.disk_bytes:
                child.over_disk = True
                os.kill(child.pid, SIGKILL)  # unreaped, so the id is still its own

    def _end_all(self) -> None:
        for child in self._children.values():
            os.kill(child.pid, SIGKILL)
        for child in self._children.values():
            os.waitpid(child.pid, 0)
        if self._folder is not None:
            wipe(self._folder)

    def _choose_layers(self) -> None:
        """Drop layers until a child can be confined by all that are left; tell the server."""
        wanted = [layer for layer in LAYERS if layer in self._settings.layers]
        refused: dict[str, str] = {}
        if os.geteuid() != 0 and "user" in wanted:
            wanted.remove("user")  # nothing to give up
        while True:
            if "root" in wanted and "namespaces" not in wanted:
                wanted.remove("root")
                refused["root"] = "needs namespaces"
            self._plan = ConfinementPlan(
                tuple(wanted), self._plan.readable, self._settings.disk_bytes
            )
            failed = self._probe()
            if failed is None:
                break
            layer, reason = failed
            wanted.remove(layer)
            refused[layer] = reason
        if "root" in wanted and self._folder is not None:
            shutil.rmtree(self._folder)
            self._folder = None
        self._send(ZygoteReady(tuple(wanted), refused, self._folder))

    def _probe(self) -> tuple[str, str] | None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            child = self._fork(-1, "probe", theirs.fileno())
            theirs.close()
            answer = ours.recv(4096)
            exited = self._reap(child.pidfd)
        if answer:
            return msgspec.msgpack.decode(answer, type=tuple[str, str])
        if exited.status != 0:
            raise RuntimeError(f"a jail cannot be confined: wait status {exited.status}")
        return None


def _keep_only(fd: int) -> None:
    """In a child: the null device as 0, 1 and 2, its socket as 3, and nothing else."""
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.dup2(fd, _CHILD_SOCKET)
    os.closerange(_CHILD_SOCKET + 1, os.sysconf("SC_OPEN_MAX"))
    os.setpgid(0, 0)


def _preload(modules: tuple[str, ...]) -> None:
    """Import what children need. smolagents would read a .env, so it gets a dotenv that does not."""
    silent = types.ModuleType("dotenv")
    silent.load_dotenv = lambda *_, **__: False  # type: ignore[attr-defined]
    sys.modules["dotenv"] = silent
    try:
        from smolagents.local_python_executor import BASE_BUILTIN_MODULES, LocalPythonExecutor
    finally:
        del sys.modules["dotenv"]
    importlib.import_module("streaming.interpreters.jail_child")
    for name in (*BASE_BUILTIN_MODULES, *modules):
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001  somebody else's module
            print(f"jail: cannot preload {name}: {error}", file=sys.stderr)
    LocalPythonExecutor([], timeout_seconds=None)("[n for n in (1, 2)]")  # fill its caches
    prepare()
    if len(os.listdir("/proc/self/task")) > 1:
        print("jail: a preloaded module started threads, which forks lose", file=sys.stderr)


def _share_one_autogroup() -> None:
    """Where the kernel groups tasks by session, let the session of all jails yield to the server's."""
    try:
        with open("/proc/self/autogroup", "w", encoding="ascii") as file:
            file.write("10")
    except OSError:
        return  # a kernel without autogroups, where the jails' own niceness decides


def main(arguments: list[str]) -> None:
    control = socket.socket(fileno=int(arguments[0]))
    settings = msgspec.json.decode(arguments[1], type=ZygoteSettings)
    os.umask(0o022)
    _share_one_autogroup()
    environment = dict(os.environ)
    environment.pop("PYTHONPATH", None)
    _preload(settings.preload)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["jail"]
    try:
        _Zygote(control, settings).serve()
    except BrokenPipeError:
        return  # the server went while it was being told something


if __name__ == "__main__":
    main(sys.argv[1:])
