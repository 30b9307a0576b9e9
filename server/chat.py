"""`POST /v1/chat/completions`: the endpoint. Reads whose model is asked for and hands the request there.

In: a request. Out: an agent's run or an upstream's reply, streamed or whole. A failure before the first
byte is a status; after it, an error event and `[DONE]`, never a clean stop.
"""

from collections.abc import Iterable

from aiohttp import hdrs, web

from server.agent_reply import collect_run, stream_run
from server.agent_request import chat_request_of, run_spec_of
from server.auth import allow_work
from server.chat_request import route_of
from server.chat_schema import ChatRequest
from server.conversation import image_urls_of
from server.idempotency import Leg, wish_of
from server.joining import ReplyElsewhere
from server.keys import (
    AGENTS,
    API_KEY,
    IDENTITY,
    IMAGE_FETCH,
    PRESENCE,
    REPLAYS,
    RUN_ID,
    SETTINGS,
    SUPERVISOR,
    UPSTREAMS,
)
from server.plain_reply import answer_plainly
from server.relay_reply import send_relayed
from server.relayed_body import chat_data, whole_body
from server.run_legs import leave_seconds, leg_for
from server.settings import Settings
from server.settings_table import DEFAULT_AGENT
from server.stored_stream import StreamTerms, name_of
from server.stream_routes import start_stored_stream
from server.tool_request import tool_results_of
from server.ui_tasks import is_ui_task
from streaming.failures import InvalidRequest, ModelNotFound, UnsupportedMedia
from streaming.run_spec import RunSpec

CHAT_PATH = "/chat/completions"
JSON = "application/json"
TAKEN_TYPES = frozenset({JSON, "application/octet-stream", "text/plain"})
# The id asked for stands in every chunk, and no event may near 64 KiB.
MAX_MODEL_CHARACTERS = 256


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """The handler. Raises leaves of SmolgateError, which the middleware answers."""
    # Asked for the type alone, aiohttp parses it.
    if request.headers.get(hdrs.CONTENT_TYPE) != JSON and request.content_type not in TAKEN_TYPES:
        raise UnsupportedMedia("The request body must be application/json.")
    body = await whole_body(request)
    asked = route_of(body)
    model = asked.model_id
    agents, upstreams = request.app[AGENTS], request.app[UPSTREAMS]
    route = upstreams.exact(model)
    if route is None and model not in agents:
        route = upstreams.by_prefix(model)
    if route is not None:
        allow_work(request, route.model)
        return await send_relayed(
            request,
            CHAT_PATH,
            chat_data(body, asked, route),
            upstream=route.group,
            scrub=route.scrub,
            finishes=asked.choices,
            stream=bool(asked.stream),
        )
    agent = agent_for(model, agents, request.app[SETTINGS])
    allow_work(request, agent)
    return await _run_agent(request, body, agent, model)


def agent_for(model: str | None, agents: Iterable[str], settings: Settings) -> str:
    """The agent that answers for a model id. Raises ModelNotFound, InvalidRequest."""
    if not model:
        return DEFAULT_AGENT
    if len(model) > MAX_MODEL_CHARACTERS:
        raise InvalidRequest(
            f"'model' must have at most {MAX_MODEL_CHARACTERS} characters.", param="model"
        )
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
    if settings.plain_ui_tasks and is_ui_task(asked):
        return await answer_plainly(request, body, asked, model or agent)
    seconds = leave_seconds(request)
    name = name_of(request) if asked.stream else None
    if name is not None:  # before anything is begun, find out whether it can be stored
        await request.app[PRESENCE].arrive()
    replays = request.app[REPLAYS]
    wish = wish_of(request.headers, body, request.get(API_KEY, ""))
    async with replays.settling(wish):
        leg = replays.joinable(wish) or await leg_for(
            request,
            body,
            wish,
            tool_results_of(asked.messages),
            lambda: _spec_of(request, asked, agent),
        )
        if isinstance(leg, Leg):
            replays.keep(wish, leg)
    if isinstance(leg, ReplyElsewhere):
        return await leg.pass_on(request)
    run = leg.run
    request[RUN_ID] = run.id
    if name is not None:
        return await _store_stream(request, leg, asked, name, model or agent)
    reading = request.app[SUPERVISOR].reading(run, begin=leg.begin, leave_seconds=seconds)
    async with reading as reader:
        created = int(run.created)
        reasoning_format = asked.reasoning_format or settings.reasoning_format
        if asked.stream:
            include_usage = bool(asked.stream_options and asked.stream_options.include_usage)
            return await stream_run(
                request,
                run,
                reader,
                created=created,
                model=model or agent,
                reasoning_format=reasoning_format,
                include_usage=include_usage,
            )
        return await collect_run(
            request,
            run,
            reader,
            created=created,
            model=model or agent,
            reasoning_format=reasoning_format,
        )


async def _store_stream(
    request: web.Request, leg: Leg, asked: ChatRequest, name: str, model: str
) -> web.StreamResponse:
    """The leg as a stream that can be resumed."""
    settings = request.app[SETTINGS]
    is_set = "X-On-Disconnect" in request.headers
    terms = StreamTerms(
        name=name,
        created=int(leg.run.created),
        model=model,
        reasoning_format=asked.reasoning_format or settings.reasoning_format,
        include_usage=bool(asked.stream_options and asked.stream_options.include_usage),
        leave_seconds=leave_seconds(request) if is_set else settings.resume_seconds,
    )
    return await start_stored_stream(request, leg, terms)


async def _spec_of(request: web.Request, asked: ChatRequest, agent: str) -> RunSpec:
    fetch = request.app.get(IMAGE_FETCH)
    fetched = await fetch.fetch_all(image_urls_of(asked.messages)) if fetch is not None else {}
    return run_spec_of(
        asked,
        run_id=request.app[IDENTITY].new_id(),
        agent=agent,
        tag_names=request.app[SETTINGS].think_tags,
        fetched=fetched,
    )
