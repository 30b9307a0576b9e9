"""The MCP servers of all agents, each connected once for this process, and their tools for each run.

In: the servers in the agents' settings; two agents with the same one share it. Out: an agent's tools, made
afresh for a run. Raises McpUnavailable at the start where one cannot be used.
"""

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

import msgspec

from streaming.cancellation import StopSignal
from streaming.mcp_connection import McpConnection
from streaming.mcp_server import McpServer, McpUnavailable
from streaming.mcp_tool import McpTool, tool_name


class McpTools:
    """Use it as `async with McpTools(servers) as tools`."""

    def __init__(self, servers: Mapping[str, Mapping[str, McpServer]]) -> None:
        self._servers = servers
        self._connections: dict[str, list[McpConnection]] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        known: dict[bytes, McpConnection] = {}
        async with AsyncExitStack() as stack:
            for agent, servers in self._servers.items():
                self._connections[agent] = []
                for name, server in servers.items():
                    same = msgspec.json.encode((name, server))
                    if same not in known:
                        known[same] = McpConnection(name, server)
                        stack.push_async_callback(known[same].close)
                        await known[same].open()
                    self._connections[agent].append(known[same])
                self._refuse_doubles(agent)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    def of(self, agent: str, stop: StopSignal) -> list[McpTool]:
        """The agent's tools, for one run."""
        return [
            McpTool(connection, described, loop=self._loop, stop=stop)
            for connection in self._connections.get(agent, ())
            for described in connection.tools
        ]

    def _refuse_doubles(self, agent: str) -> None:
        owners: dict[str, str] = {}
        for connection in self._connections[agent]:
            for described in connection.tools:
                name = tool_name(described.name)
                other = owners.setdefault(name, connection.name)
                if other != connection.name:
                    raise McpUnavailable(
                        f"the agent {agent!r} has the tool {name!r} of two MCP servers, {other!r} "
                        f"and {connection.name!r}: choose with 'tools'"
                    )
