"""An MCP server as an operator writes it down, and what can go wrong with one. Needs no SDK.

McpUnavailable      it cannot be started or reached, or is no MCP server
McpCallFailed       a call was made and has no result: refused, broken off, or too slow
"""

import msgspec


class McpServer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How one is reached: a command that speaks over its stdin and stdout, or a streamable HTTP URL.

    `tools`: the names that are given to the agent; all, if there are none. A command sees the variables
    of `env` and a few harmless ones (PATH, HOME), and nothing else of the server's.
    """

    command: str | None = None
    args: tuple[str, ...] = ()
    env: dict[str, str] = {}
    cwd: str | None = None
    url: str | None = None
    headers: dict[str, str] = {}
    tools: tuple[str, ...] = ()
    start_seconds: float = 30.0
    call_seconds: float = 60.0

    def __post_init__(self) -> None:
        if (self.command is None) == (self.url is None):
            raise ValueError("an MCP server has either a command or a url")


class McpUnavailable(Exception):
    """The message is for the operator and for the model; it holds no secret."""


class McpCallFailed(Exception):
    """The message is for the model."""
