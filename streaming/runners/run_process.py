"""Within a run's process: its end of a socket in, the run carried out, and then the process ends.

Runs after the zygote's fork and never returns. What tools write to the standard streams belongs to the
run, be it from C or from a process that they start; the run's own log goes to the server's.
"""

import codecs
import ctypes
import logging
import os
import random
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

import msgspec

from streaming.agent_context import AgentFactory
from streaming.cancellation import StopSignal
from streaming.events import Event, Failure, Final, Stdout
from streaming.runners.far_agent_run import FarJails, carry_out
from streaming.runners.run_wire import Happened, encode_events
from streaming.runners.server_line import ServerLine
from streaming.stdout import capture_installed

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
# When memory runs out the kernel takes a run before the server, and a jail (1000) before a run.
_OOM_SCORE = "500"
_READ_BYTES = 1 << 16
# How long the output of a process that a tool left running may be silent, to be over.
_LAST_OUTPUT_SECONDS = 0.2


class RunLimits(msgspec.Struct, frozen=True):
    """Of one run's process, and of each that it starts. memory_bytes is address space; 0: no limit."""

    memory_bytes: int
    cpu_seconds: int


def run_in_this_process(
    fd: int, agents: dict[str, AgentFactory], limits: RunLimits, zygote_pid: int
) -> NoReturn:
    """Carry out the run that comes over the socket `fd`, and exit."""
    status = 1
    try:
        _stand_alone(zygote_pid)
        _set_limits(limits)
        random.seed()
        stop = StopSignal()
        _serve(ServerLine(socket.socket(fileno=fd), stop), agents, stop)
        status = 0
    except BaseException:
        logging.getLogger("run").exception("a run's process failed")
    finally:
        os._exit(status)


def _serve(line: ServerLine, agents: dict[str, AgentFactory], stop: StopSignal) -> None:
    begin = line.begin()
    if begin is None:
        return

    def outlet(event: Event) -> None:
        if isinstance(event, Final | Failure):
            end_output()
        line.send(Happened(encode_events([event])))

    end_output = _take_standard_streams(lambda text: outlet(Stdout(text)))
    jails = FarJails(line) if begin.setup.jail == "server" else None
    with capture_installed():
        carry_out(line, begin, agents, stop, outlet, jails)
    line.close()


def _stand_alone(zygote_pid: int) -> None:
    """A session of its own, which dies with the zygote and takes in the orphans of its processes."""
    os.setsid()
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if os.getppid() != zygote_pid:
        os._exit(1)
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write(_OOM_SCORE)
    except OSError:
        return  # not ours to write: the limit on memory stands without it


def _set_limits(limits: RunLimits) -> None:
    if limits.memory_bytes:
        _lower(resource.RLIMIT_AS, limits.memory_bytes, limits.memory_bytes)
    if limits.cpu_seconds:
        # SIGXCPU, which is told apart from other ends, then a second later SIGKILL.
        _lower(resource.RLIMIT_CPU, limits.cpu_seconds, limits.cpu_seconds + 1)
    _lower(resource.RLIMIT_CORE, 0, 0)


def _lower(kind: int, soft: int, hard: int) -> None:
    _, ceiling = resource.getrlimit(kind)
    if ceiling != resource.RLIM_INFINITY:
        soft, hard = min(soft, ceiling), min(hard, ceiling)
    resource.setrlimit(kind, (soft, hard))


def _take_standard_streams(sink: Callable[[str], None]) -> Callable[[], None]:
    """Have descriptors 1 and 2 go to `sink`; what Python prints in the run's context never gets there.

    Returns what ends that, once all that has been written is through.
    """
    log_fd = os.dup(2)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(os.fdopen(log_fd, "w", buffering=1))
    reading, writing = os.pipe()
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    for standard in (1, 2):
        os.dup2(writing, standard)
    os.close(writing)
    sys.stdout = os.fdopen(1, "w", buffering=1, errors="replace", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="replace", closefd=False)

    pumped = 0

    def pump() -> None:
        nonlocal pumped
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        while data := os.read(reading, _READ_BYTES):
            if text := decoder.decode(data):
                sink(text)
            pumped += len(data)

    thread = threading.Thread(target=pump, name="standard-streams", daemon=True)
    thread.start()

    def end() -> None:
        for standard in (1, 2):
            os.dup2(null, standard)
        before = -1
        while thread.is_alive() and before != pumped:
            before = pumped
            thread.join(_LAST_OUTPUT_SECONDS)

    return end
