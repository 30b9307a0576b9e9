"""`POST /v1/chat/completions`: the endpoint. Reads whose model is asked for and hands the request there.

In: a request. Out: an agent's run or an upstream's reply, streamed or whole. A failure before the first
byte is a status; after it, an error event and `[DONE]`, never a clean stop.
"""

import secrets
from collections.abc import Iterable

from aiohttp import web

from server.agent_reply import collect_run, stream_run
from server.chat_request import chat_request_of, route_of, run_spec_of
from server.chat_wire import REASONING_FORMATS
from server.idempotency import wish_of
from server.joining import find_elsewhere
from server.keys import AGENTS, API_KEY, REPLAYS, SETTINGS, SUPERVISOR, UPSTREAMS
from server.relay_reply import send_relayed
from server.relayed_body import chat_data
from server.setting_values import leave_policy
from server.settings import Settings
from server.settings_table import DEFAULT_AGENT
from streaming.failures import InvalidRequest, ModelNotFound, UnsupportedMedia

CHAT_PATH = "/chat/completions"


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """The handler. Raises leaves of SmolgateError, which the middleware answers."""
    if request.content_type not in {"application/json", "application/octet-stream", "text/plain"}:
        raise UnsupportedMedia("The request body must be application/json.")
    body = await request.read()
    asked = route_of(body)
    model = asked.model_id
    agents, upstreams = request.app[AGENTS], request.app[UPSTREAMS]
    route = upstreams.exact(model)
    if route is None and model not in agents:
        route = upstreams.by_prefix(model)
    if route is not None:
        return await send_relayed(
            request,
            CHAT_PATH,
            chat_data(body, asked, route),
            upstream=route.group,
            scrub=route.scrub,
            finishes=asked.choices,
        )
    agent = agent_for(model, agents, request.app[SETTINGS])
    return await _run_agent(request, body, agent, model)


def agent_for(model: str | None, agents: Iterable[str], settings: Settings) -> str:
    """The agent that answers for a model id. Raises ModelNotFound."""
    if not model:
        return DEFAULT_AGENT
    if model in agents:
        return model
    if settings.unknown_model == "agent":
        return DEFAULT_AGENT
    raise ModelNotFound(f"The model '{model}' does not exist.", param="model")


async def _run_agent(
    request: web.Request, body: bytes, agent: str, model: str | None
) -> web.StreamResponse:
    settings = request.app[SETTINGS]
    asked = chat_request_of(body)
    reasoning_format = asked.reasoning_format or settings.reasoning_format
    if reasoning_format not in REASONING_FORMATS:
        raise InvalidRequest(
            f"'reasoning_format' must be one of {', '.join(REASONING_FORMATS)}.",
            param="reasoning_format",
        )
    spec = run_spec_of(
        asked,
        run_id=f"chatcmpl-{secrets.token_hex(14)}",
        agent=agent,
        tag_names=settings.think_tags,
    )
    supervisor, replays = request.app[SUPERVISOR], request.app[REPLAYS]
    leave_seconds = _leave_seconds(request, settings)
    caller = request.get(API_KEY, "")
    wish = wish_of(request.headers, body, caller)
    elsewhere = None
    async with replays.settling(wish):
        run = replays.joinable(wish)
        if run is None and wish is not None:
            elsewhere = await find_elsewhere(request, body, wish)
        if run is None and elsewhere is None:
            run = supervisor.submit(spec, key=caller)
            replays.keep(wish, run)
    if run is None:
        assert elsewhere is not None
        return await elsewhere.pass_on(request)
    async with supervisor.reading(run, leave_seconds=leave_seconds):
        created = int(run.created)
        if asked.stream:
            include_usage = bool(asked.stream_options and asked.stream_options.include_usage)
            return await stream_run(
                request,
                run,
                created=created,
                model=model or agent,
                reasoning_format=reasoning_format,
                include_usage=include_usage,
            )
        return await collect_run(
            request, run, created=created, model=model or agent, reasoning_format=reasoning_format
        )


def _leave_seconds(request: web.Request, settings: Settings) -> float:
    wanted = request.headers.get("X-On-Disconnect")
    if wanted is None:
        return settings.on_disconnect
    try:
        return leave_policy(wanted.strip().lower())
    except ValueError:
        raise InvalidRequest(
            "The header X-On-Disconnect must be cancel, finish or a number of seconds.",
            param="X-On-Disconnect",
        ) from None
