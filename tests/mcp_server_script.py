"""A real MCP server for tests: `python mcp_server_script.py stdio`, or `http PORT`."""

import os
import sys
import time
from typing import Literal

from mcp.server.fastmcp import FastMCP, Image

PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010804000000b51c0c02"
    "0000000b4944415478da6364f80f00010501012718e3660000000049454e44ae426082"
)


def make_server(port: int) -> FastMCP:
    server = FastMCP("numbers", host="127.0.0.1", port=port, log_level="ERROR")

    @server.tool()
    def add(a: int, b: int = 1) -> int:
        """Adds two numbers."""
        return a + b

    @server.tool()
    def process() -> dict[str, int]:
        """Who answers."""
        return {"pid": os.getpid()}

    @server.tool()
    def variable(name: str) -> str:
        """A variable of the server's environment."""
        return os.environ.get(name, "unset")

    @server.tool(name="paint-it")
    def paint(colour: Literal["red", "blue"], note: str | None = None) -> str:
        """Paints."""
        return f"{colour}, {note}"

    @server.tool()
    def fail() -> str:
        """Fails."""
        raise ValueError("the tool's own words")

    @server.tool()
    def die() -> str:
        """Ends the server during the call."""
        os._exit(3)

    @server.tool()
    def sleep(seconds: float) -> str:
        """Takes its time."""
        time.sleep(seconds)
        return "slept"

    @server.tool()
    def picture() -> Image:
        """One pixel."""
        return Image(data=PIXEL, format="png")

    return server


if __name__ == "__main__":
    if sys.argv[1] == "stdio":
        make_server(0).run("stdio")
    else:
        make_server(int(sys.argv[2])).run("streamable-http")
