"""One MCP server, started or reached once and for all runs, and again when it is lost.

In: how to reach it. Out: its tools, and calls of them from the event loop. One task owns the connection, as
the SDK's scopes must be left where they were entered. Before a call the server is asked whether it lives; if
not, it is started anew, and only then is the call made, so that none is made twice.
"""

import asyncio
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
from mcp import ClientSession, McpError, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CONNECTION_CLOSED, CallToolResult, Tool

from streaming.mcp_server import McpCallFailed, McpServer, McpUnavailable

log = logging.getLogger(__name__)

PING_SECONDS = 5.0
# A server may take its time to end; the SDK kills one that takes more than 2 s.
LEAVE_SECONDS = 10.0
# An answer may come late, and be a stream: calls have a time-out of their own.
HTTP_TIMEOUT = httpx.Timeout(30.0, read=None)


class McpConnection:
    """`await connection.open()` once; `close()` in the end."""

    def __init__(self, name: str, server: McpServer) -> None:
        self.name = name
        self.tools: list[Tool] = []
        self._server = server
        self._session: ClientSession | None = None
        self._task: asyncio.Task[None] | None = None
        self._leave = asyncio.Event()
        self._reviving = asyncio.Lock()
        self._calls = 0

    async def open(self) -> None:
        """Connect, and read the tools. Raises McpUnavailable."""
        session = await self._start()
        try:
            self.tools = await _tools_of(session)
        except (McpError, anyio.ClosedResourceError, anyio.BrokenResourceError) as error:
            await self.close()
            raise McpUnavailable(
                f"the MCP server {self.name!r} does not tell its tools: {error}"
            ) from None
        missing = set(self._server.tools) - {tool.name for tool in self.tools}
        if missing:
            await self.close()
            raise McpUnavailable(
                f"the MCP server {self.name!r} has no tool {', '.join(sorted(missing))}"
            )
        if self._server.tools:
            self.tools = [tool for tool in self.tools if tool.name in self._server.tools]

    async def call(self, tool: str, arguments: dict[str, Any]) -> CallToolResult:
        """Raises McpUnavailable, McpCallFailed."""
        session = await self._live_session()
        what = f"the tool {tool!r} of the MCP server {self.name!r}"
        self._calls += 1
        try:
            async with asyncio.timeout(self._server.call_seconds):
                return await session.call_tool(tool, arguments)
        except TimeoutError:
            raise McpCallFailed(
                f"{what} did not answer within {self._server.call_seconds:g} seconds"
            ) from None
        except McpError as error:
            if error.error.code == CONNECTION_CLOSED:
                self._forget(session)
                raise McpCallFailed(f"{what} broke off; it may have done its work") from None
            raise McpCallFailed(f"{what} failed: {error.error.message}") from None
        except (anyio.ClosedResourceError, anyio.BrokenResourceError, httpx.HTTPError):
            self._forget(session)
            raise McpCallFailed(f"{what} broke off; it may have done its work") from None
        finally:
            self._calls -= 1

    async def close(self) -> None:
        """End the connection, and a server that was started. Idempotent."""
        self._leave.set()
        self._session = None
        if self._task is not None:
            await asyncio.wait([self._task], timeout=LEAVE_SECONDS)
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def _live_session(self) -> ClientSession:
        async with self._reviving:
            session = self._session
            if session is not None and (self._calls or await _lives(session)):
                return session  # one that works on a call need not answer a ping
            log.warning("the MCP server %r is lost; connecting again", self.name)
            await self.close()
            return await self._start()

    def _forget(self, session: ClientSession) -> None:
        if self._session is session:
            self._session = None

    async def _start(self) -> ClientSession:
        self._leave = asyncio.Event()
        ready: asyncio.Future[ClientSession] = asyncio.get_running_loop().create_future()
        ready.add_done_callback(_seen)  # whoever waited for it may have been stopped
        self._task = asyncio.create_task(self._serve(ready, self._leave), name=f"mcp {self.name}")
        try:
            async with asyncio.timeout(self._server.start_seconds):
                self._session = await asyncio.shield(ready)
        except TimeoutError:
            self._task.cancel()
            await asyncio.wait([self._task])
            raise McpUnavailable(
                f"the MCP server {self.name!r} did not answer within "
                f"{self._server.start_seconds:g} seconds"
            ) from None
        return self._session

    async def _serve(self, ready: asyncio.Future[ClientSession], leave: asyncio.Event) -> None:
        """Hold the connection until it is to be left."""
        try:
            async with _opened(self._server) as session:
                await session.initialize()
                ready.set_result(session)
                await leave.wait()
        except asyncio.CancelledError:
            ready.cancel()
            raise
        except (Exception, BaseExceptionGroup) as error:  # noqa: BLE001 - told, or logged
            reason = _reason(error)
            if not ready.done():
                ready.set_exception(
                    McpUnavailable(f"the MCP server {self.name!r} cannot be used: {reason}")
                )
            elif not leave.is_set():
                log.warning("the MCP server %r is lost: %s", self.name, reason)


@asynccontextmanager
async def _opened(server: McpServer) -> AsyncIterator[ClientSession]:
    if server.command is not None:
        parameters = StdioServerParameters(
            command=server.command, args=list(server.args), env=server.env, cwd=server.cwd
        )
        # What it says on stderr is for the server's own, whoever has replaced sys.stderr.
        said = sys.__stderr__ or sys.stderr
        async with (
            stdio_client(parameters, errlog=said) as (reading, writing),
            ClientSession(reading, writing) as session,
        ):
            yield session
        return
    assert server.url is not None
    async with (
        httpx.AsyncClient(headers=server.headers, timeout=HTTP_TIMEOUT) as client,
        streamable_http_client(server.url, http_client=client) as (reading, writing, _),
        ClientSession(reading, writing) as session,
    ):
        yield session


def _seen(ready: asyncio.Future[ClientSession]) -> None:
    if not ready.cancelled():
        ready.exception()


async def _tools_of(session: ClientSession) -> list[Tool]:
    found: list[Tool] = []
    cursor = None
    while True:
        page = await session.list_tools(cursor)
        found += page.tools
        cursor = page.nextCursor
        if not cursor:
            return found


async def _lives(session: ClientSession) -> bool:
    try:
        async with asyncio.timeout(PING_SECONDS):
            await session.send_ping()
    except (TimeoutError, McpError, anyio.ClosedResourceError, anyio.BrokenResourceError):
        return False
    except httpx.HTTPError:
        return False
    return True


def _reason(error: BaseException) -> str:
    """In a few words: the first that is no group of others."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, McpError):
        return error.error.message
    text = str(error).splitlines()
    return text[0] if text else type(error).__name__
