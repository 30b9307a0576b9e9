"""The typed keys under which the application and its requests keep their state."""

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aiohttp import web

from server.finished_runs import FinishedRuns
from server.idempotency import Replays
from server.identity import Identity
from server.key_ring import KeyHolder, KeyRing
from server.presence import Presence
from server.request_counts import RequestCounts
from server.settings import Settings
from server.upstreams import Upstreams
from server.worker_link import LinkedEmbedded, WorkerLink
from streaming.agent_context import AgentFactory
from streaming.interpreters.jail_pool import JailPool
from streaming.mcp_server import McpServer
from streaming.store import Store
from streaming.supervisor import Runner, Supervisor
from streaming.tool_desk import ToolDesk
from streaming.upstream_group import UpstreamGroup

if TYPE_CHECKING:  # the first is loaded only where it is used
    from server.embedded import EmbeddedUpstream
    from server.image_fetch import ImageFetch
    from server.loop_lag import LoopLag
    from server.mcp_tools import McpTools
    from server.metered_reply import TokenMeter
    from server.response_keeper import ResponseKeeper

SETTINGS: web.AppKey[Settings] = web.AppKey("settings", Settings)
# The agents' upstream, and all of them.
UPSTREAM: web.AppKey[UpstreamGroup] = web.AppKey("upstream", UpstreamGroup)
UPSTREAMS: web.AppKey[Upstreams] = web.AppKey("upstreams", Upstreams)
SUPERVISOR: web.AppKey[Supervisor] = web.AppKey("supervisor", Supervisor)
RUNNER: web.AppKey[Runner] = web.AppKey("runner", Runner)
TOOL_DESK: web.AppKey[ToolDesk] = web.AppKey("tool_desk", ToolDesk)
AGENTS: web.AppKey[dict[str, AgentFactory]] = web.AppKey("agents", dict)
EMBEDDED: web.AppKey["EmbeddedUpstream | LinkedEmbedded"] = web.AppKey("embedded")

# What outlives a request, and this process's part in it.
STORE: web.AppKey[Store] = web.AppKey("store", Store)
PRESENCE: web.AppKey[Presence] = web.AppKey("presence", Presence)
# Those who write responses, by their ids, and all who write into the store.
RESPONSES: web.AppKey[dict[str, "ResponseKeeper"]] = web.AppKey("responses", dict)
STREAMS: web.AppKey[set[asyncio.Task[None]]] = web.AppKey("streams", set)

# The line to the parent, where this is one of many workers.
WORKER_LINK: web.AppKey[WorkerLink] = web.AppKey("worker_link", WorkerLink)
IDENTITY: web.AppKey[Identity] = web.AppKey("identity", Identity)
JAIL_POOL: web.AppKey[JailPool] = web.AppKey("jail_pool", JailPool)
REPLAYS: web.AppKey[Replays] = web.AppKey("replays", Replays)

# The MCP servers of each agent that has some, as they are set, and as they are connected.
MCP_SERVERS: web.AppKey[Mapping[str, Mapping[str, McpServer]]] = web.AppKey("mcp_servers")
MCP_TOOLS: web.AppKey["McpTools"] = web.AppKey("mcp_tools")
# What agents' code may import; jails have it loaded before they are confined.
CODE_IMPORTS: web.AppKey[frozenset[str]] = web.AppKey("code_imports", frozenset)
# The handlers of relayed requests under way.
RELAYS: web.AppKey[set[asyncio.Task[Any]]] = web.AppKey("relays", set)

KEY_RING: web.AppKey[KeyRing] = web.AppKey("key_ring", KeyRing)

REQUEST_COUNTS: web.AppKey[RequestCounts] = web.AppKey("request_counts", RequestCounts)
LOOP_LAG: web.AppKey["LoopLag"] = web.AppKey("loop_lag")
IMAGE_FETCH: web.AppKey["ImageFetch"] = web.AppKey("image_fetch")
FINISHED_RUNS: web.AppKey[FinishedRuns] = web.AppKey("finished_runs", FinishedRuns)

REQUEST_ID: web.RequestKey[str] = web.RequestKey("request_id", str)
# The caller's key, where keys are set, and its id.
KEY_HOLDER: web.RequestKey[KeyHolder] = web.RequestKey("key_holder", KeyHolder)
TOKEN_METER: web.RequestKey["TokenMeter"] = web.RequestKey("token_meter")
RUN_ID: web.RequestKey[str] = web.RequestKey("run_id", str)
API_KEY: web.RequestKey[str] = web.RequestKey("api_key", str)
# "ok", or the code of what ended the request; absent where the response's status says all.
OUTCOME: web.RequestKey[str] = web.RequestKey("outcome", str)
