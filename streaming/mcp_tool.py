"""An MCP server's tool as a smolagents tool of one run.

In: what the server says of it, and the run's stop signal. Out: a `Tool` whose calls go over the event loop to
the server, and end when the run is stopped. An agent gets text as text, structured results as objects,
pictures as images; a tool's error is an exception that the model sees.
"""

import asyncio
import base64
import io
import keyword
import re
from typing import Any

from mcp.types import CallToolResult, ImageContent, TextContent
from mcp.types import Tool as ToolOfServer
from PIL import Image
from smolagents import Tool
from smolagents.tools import AUTHORIZED_TYPES

from streaming.cancellation import StopSignal
from streaming.loop_call import wait_on_loop
from streaming.mcp_connection import McpConnection
from streaming.mcp_server import McpCallFailed


class McpTool(Tool):  # type: ignore[misc]
    """Made for each run. Raises McpUnavailable, McpCallFailed, RunCancelled when it is called."""

    skip_forward_signature_validation = True

    def __init__(
        self,
        connection: McpConnection,
        described: ToolOfServer,
        *,
        loop: asyncio.AbstractEventLoop,
        stop: StopSignal,
    ) -> None:
        self.name = tool_name(described.name)
        self.description = described.description or described.title or described.name
        self.inputs = inputs_of(described.inputSchema)
        self.output_schema = described.outputSchema
        self.output_type = "any"
        self.is_initialized = True
        self.server = connection.name
        self._connection = connection
        self._own_name = described.name
        self._loop = loop
        self._stop = stop

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if len(args) > len(self.inputs):
            raise TypeError(f"{self.name} takes {len(self.inputs)} arguments")
        arguments = dict(zip(self.inputs, args, strict=False)) | kwargs
        given = {
            name: value
            for name, value in arguments.items()
            if value is not None or not self.inputs.get(name, {}).get("nullable")
        }
        call = self._connection.call(self._own_name, given)
        return result_of(self.name, wait_on_loop(call, self._loop, self._stop))


def tool_name(name: str) -> str:
    """A name that Python code can call it by."""
    name = re.sub(r"\W", "_", name, flags=re.ASCII) or "_"
    name = f"_{name}" if name[0].isdigit() else name
    return f"{name}_" if keyword.iskeyword(name) else name


def inputs_of(schema: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """smolagents' inputs of a JSON schema's properties."""
    required = schema.get("required", ())
    inputs = {}
    for name, described in schema.get("properties", {}).items():
        known = {} if not isinstance(described, dict) else described
        one: dict[str, Any] = {
            "type": _type_of(known),
            "description": known.get("description") or known.get("title") or name,
        }
        if "enum" in known:
            one["description"] += f" (one of {', '.join(map(repr, known['enum']))})"
        if name not in required:
            one["nullable"] = True
        inputs[name] = one
    return inputs


def _type_of(described: dict[str, Any]) -> str | list[str]:
    alternatives = described.get("anyOf") or described.get("oneOf")
    if alternatives:
        named = [each.get("type", "object") for each in alternatives]
    else:
        kind = described.get("type", "object" if "$ref" in described else "any")
        named = kind if isinstance(kind, list) else [kind]
    known = list(dict.fromkeys(each for each in named if each in AUTHORIZED_TYPES))
    if not known:
        return "any"
    return known[0] if len(known) == 1 else known


def result_of(name: str, result: CallToolResult) -> Any:
    """What the agent gets. Raises McpCallFailed where the tool says that it failed."""
    texts = [block.text for block in result.content if isinstance(block, TextContent)]
    if result.isError:
        raise McpCallFailed(f"{name} failed: {' '.join(texts) or 'it does not say why'}")
    if (structured := result.structuredContent) is not None:
        # The SDK wraps what is no object.
        return structured["result"] if set(structured) == {"result"} else structured
    pictures = [block for block in result.content if isinstance(block, ImageContent)]
    if pictures and not texts:
        return Image.open(io.BytesIO(base64.b64decode(pictures[0].data)))
    others = [
        block.model_dump_json(exclude_none=True)
        for block in result.content
        if not isinstance(block, TextContent | ImageContent)
    ]
    return "\n".join([*texts, *others])
