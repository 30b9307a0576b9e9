"""The typed keys under which the application and its requests keep their state."""

import asyncio
from typing import TYPE_CHECKING, Any

from aiohttp import web

from server.idempotency import Replays
from server.settings import Settings
from server.upstreams import Upstreams
from streaming.agent_context import AgentFactory
from streaming.interpreters.jail_pool import JailPool
from streaming.supervisor import Runner, Supervisor
from streaming.upstream_group import UpstreamGroup

if TYPE_CHECKING:  # loaded only where the embedded model is used
    from server.embedded import EmbeddedUpstream

SETTINGS: web.AppKey[Settings] = web.AppKey("settings", Settings)
# The agents' upstream, and all of them.
UPSTREAM: web.AppKey[UpstreamGroup] = web.AppKey("upstream", UpstreamGroup)
UPSTREAMS: web.AppKey[Upstreams] = web.AppKey("upstreams", Upstreams)
SUPERVISOR: web.AppKey[Supervisor] = web.AppKey("supervisor", Supervisor)
RUNNER: web.AppKey[Runner] = web.AppKey("runner", Runner)
AGENTS: web.AppKey[dict[str, AgentFactory]] = web.AppKey("agents", dict)
EMBEDDED: web.AppKey["EmbeddedUpstream"] = web.AppKey("embedded")

JAIL_POOL: web.AppKey[JailPool] = web.AppKey("jail_pool", JailPool)
REPLAYS: web.AppKey[Replays] = web.AppKey("replays", Replays)

# What agents' code may import; jails have it loaded before they are confined.
CODE_IMPORTS: web.AppKey[frozenset[str]] = web.AppKey("code_imports", frozenset)
# The handlers of relayed requests under way.
RELAYS: web.AppKey[set[asyncio.Task[Any]]] = web.AppKey("relays", set)

REQUEST_ID: web.RequestKey[str] = web.RequestKey("request_id", str)
API_KEY: web.RequestKey[str] = web.RequestKey("api_key", str)
OUTCOME: web.RequestKey[str] = web.RequestKey("outcome", str)
